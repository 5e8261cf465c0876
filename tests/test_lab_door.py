"""Saving in JupyterLab raises nothing: at the root of a clone, and where `make lab` opens it, which leaves no tracked file changed

Each in a clone of its own, made of the working tree, so that nothing is written into this one.
"""
import contextlib, json, os, re, shutil, signal, subprocess, sys, time
from pathlib import Path

import nbformat
import pytest

from lab import browser, command, lab, open_notebook, shot, wait_for_kernel
from samples import ROOT

def git(folder, *words):
    "What git says in `folder`"
    own = ['-c', 'user.name=a test', '-c', 'user.email=test@example.org', '-c', 'core.hooksPath=/dev/null']
    return subprocess.run(['git', *own, *words], cwd=folder, check=True, capture_output=True, text=True).stdout

@pytest.fixture
def clone(tmp_path):
    "A clone of the working tree as it is now, with whatever git tracks or would"
    there = tmp_path/'clone'
    for name in git(ROOT, 'ls-files', '-z', '--cached', '--others', '--exclude-standard').split('\0'):
        if not name or not (ROOT/name).is_file(): continue
        (there/name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT/name, there/name)
    git(there, 'init', '-q'); git(there, 'add', '-A'); git(there, 'commit', '-q', '-m', 'as it is')
    return there

SAVED = "() => { const w = window.jupyterapp.shell.currentWidget; return !w.context.model.dirty }"
ASK_DIALOG = "() => [...document.querySelectorAll('.jp-Dialog')].map(d => d.innerText)"

def change_and_save(page, file):
    "Write a line into the last cell of the notebook that is open, save it, and fail on any dialog"
    was = file.stat().st_mtime_ns
    page.evaluate("() => { const n = window.jupyterapp.shell.currentWidget.content; "
                  "n.activeCellIndex = n.widgets.length - 1; n.activeCell.model.sharedModel.setSource('\"written by a test\"') }")
    command(page, 'docmanager:save')
    until = time.monotonic() + 30
    while file.stat().st_mtime_ns == was or not page.evaluate(SAVED):
        assert not (said := page.evaluate(ASK_DIALOG)), said
        assert time.monotonic() < until, 'it was not saved'
        page.wait_for_timeout(200)
    page.wait_for_timeout(1000)
    assert not (said := page.evaluate(ASK_DIALOG)), said
    assert 'written by a test' in nbformat.read(file, as_version=4).cells[-1].source

@pytest.mark.slow
def test_saving_at_the_root(clone):
    "JupyterLab over the clone itself, with whatever the environment of developers adds to it"
    before = {*clone.rglob('*')}
    with browser() as page, lab(clone) as url:
        open_notebook(page, url, 'nbs/tutorials/70_quickstart.ipynb')
        change_and_save(page, clone/'nbs'/'tutorials'/'70_quickstart.ipynb')
        shot(page, 'lab-at-the-root')
    assert git(clone, 'status', '--porcelain').split() == ['M', 'nbs/tutorials/70_quickstart.ipynb']
    assert not (clone/'.nbtext').exists() and not [p for p in {*clone.rglob('*')} - before if p.suffix == '.py']

@contextlib.contextmanager
def started(folder, log, *words):
    "`tools/lab.py` of the clone; the address that it prints"
    env = {n: v for n, v in os.environ.items() if n not in ('DISPLAY', 'WAYLAND_DISPLAY')}
    env |= {'PYTHONPATH': str(ROOT), 'JUPYTER_RUNTIME_DIR': f'{log}.runtime', 'JUPYTERLAB_WORKSPACES_DIR': f'{log}.workspaces',
            'JUPYTERLAB_SETTINGS_DIR': f'{log}.settings', 'IPYTHONDIR': f'{log}.ipython'}
    settings = Path(env['JUPYTERLAB_SETTINGS_DIR'])/'@jupyterlab'/'apputils-extension'/'notification.jupyterlab-settings'
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({'fetchNews': 'false', 'checkForUpdates': False}))
    with open(log, 'w') as out:
        p = subprocess.Popen([sys.executable, folder/'tools'/'lab.py', *words], env=env, stdin=subprocess.DEVNULL,
                             stdout=out, stderr=subprocess.STDOUT, start_new_session=True, cwd='/')
    try:
        until, found = time.monotonic() + 60, None
        while not found:
            assert p.poll() is None and time.monotonic() < until, log.read_text()[-2000:]
            found = re.search(r'http://(?:localhost|127\.0\.0\.1):\d+/lab\S*', log.read_text())
            time.sleep(0.2)
        yield found[0]
    finally:
        os.killpg(p.pid, signal.SIGTERM)
        try: p.wait(10)
        except subprocess.TimeoutExpired: os.killpg(p.pid, signal.SIGKILL)

@pytest.mark.slow
def test_make_lab(clone, tmp_path):
    "Opens the quickstart's copy by the address that is printed; saving it changes nothing that is tracked; a copy is never overwritten"
    own = clone/'notebooks'/'tutorials'/'71_your_games.ipynb'
    own.parent.mkdir(parents=True)
    own.write_text('mine')
    with browser() as page, started(clone, tmp_path/'log', '--LabApp.expose_app_in_browser=True', '--ServerApp.port=0') as url:
        assert '/lab/tree/notebooks/tutorials/70_quickstart.ipynb' in url and 'token=' in url
        page.goto(url)
        page.wait_for_selector('.jp-Notebook .jp-Cell')
        page.wait_for_function("() => window.jupyterapp?.shell.currentWidget?.context?.isReady")
        wait_for_kernel(page)           # which writes into the notebook's metadata when it comes
        for folder in ('samples', 'runs', 'notebooks'): assert (clone/folder).is_dir()
        change_and_save(page, clone/'notebooks'/'tutorials'/'70_quickstart.ipynb')
        shot(page, 'lab-door')
    said = (tmp_path/'log').read_text()
    assert git(clone, 'status', '--porcelain') == ''
    assert own.read_text() == 'mine' and '1 kept as you left them' in said and 'ssh -L' in said
    tutorials = {p.name for p in (clone/'nbs'/'tutorials').glob('*.ipynb')}
    assert {p.name for p in own.parent.glob('*.ipynb')} == tutorials

def test_texts_of_notebooks(clone):
    "What contributors use in its place: a notebook as text, and back, with its outputs and ids"
    tool, nb, text = clone/'tools'/'nbtext.py', clone/'nbs'/'data'/'01_labels.ipynb', clone/'.nbtext'/'data'/'01_labels.py'
    run = lambda name: subprocess.run([sys.executable, tool, name], capture_output=True, text=True)
    before = nbformat.read(nb, as_version=4)
    assert run(nb).stdout == 'wrote .nbtext/data/01_labels.py\n' and run(nb).stdout == ''
    was = text.read_text()
    assert '#| export' in was and 'jupytext' not in was
    text.write_text(was.replace('"""\n# ', '"""\n#!/bin/bash\n# Changed ', 1))      # a shebang stays one
    os.utime(text, (time.time() + 5,)*2)
    assert run(text).stdout == 'wrote nbs/data/01_labels.ipynb\n'
    after = nbformat.read(nb, as_version=4)
    assert after.cells[0].source.startswith('#!/bin/bash\n# Changed ') and after.metadata == before.metadata
    assert [c.id for c in after.cells[1:]] == [c.id for c in before.cells[1:]]
    assert [c.get('outputs') for c in after.cells[1:]] == [c.get('outputs') for c in before.cells[1:]]
    after.cells[0].source += '\n\na """ b'
    nbformat.write(after, nb)
    os.utime(nb, (time.time() + 10,)*2)
    odd = run(nb)
    assert odd.returncode == 1 and 'cell 1 would come back changed' in odd.stderr and not text.exists(), odd
    assert run(clone/'README.md').returncode == 1 and run(clone/'nbs'/'none.ipynb').returncode == 1

def test_nothing_pairs_notebooks():
    "No settings of jupytext lie where its extension of JupyterLab would find them"
    names = {'jupytext.toml', '.jupytext.toml', 'jupytext.yml', '.jupytext.yml', 'jupytext.yaml', '.jupytext.yaml',
             'jupytext.json', '.jupytext.json', 'jupytext.py', '.jupytext.py', '.jupytext'}
    tracked = git(ROOT, 'ls-files').splitlines()
    assert not [f for f in tracked if Path(f).name in names]
    assert 'jupytext' not in (ROOT/'pyproject.toml').read_text()
    notebooks = {f: json.loads((ROOT/f).read_text(encoding='utf-8')) for f in tracked if f.endswith('.ipynb')}
    paired = [f for f, nb in notebooks.items() if 'formats' in nb['metadata'].get('jupytext', {})]
    assert not paired, 'their metadata pairs them with a text: without `formats` of `jupytext` they can be saved'
