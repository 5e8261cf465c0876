"""The wheel can be installed beside the newest fastai and nbdev: pip finds versions that suit all"""
import json, os, re, shutil, subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKED = 'maou_nb', 'README.md', 'LICENSE', 'settings.ini', 'setup.py', 'pyproject.toml'
BESIDE = 'fastai', 'nbdev'

def pip(python, *args):
    "Run pip of `python` with `args`, seeing nothing of this checkout"
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    return subprocess.run([python, '-m', 'pip', *args], env=env, capture_output=True, text=True, cwd='/')

def resolved(python, folder, *args):
    "What pip would install for `args`, name to version; nothing is installed"
    report = folder/'report.json'
    done = pip(python, 'install', '--dry-run', '--quiet', '--report', str(report), *args)
    assert done.returncode == 0, done.stderr
    found = [o['metadata'] for o in json.loads(report.read_text())['install']]
    return {re.sub(r'[-_.]+', '-', o['name']).lower(): o['version'] for o in found}

@pytest.fixture(scope='module')
def python(tmp_path_factory):
    "The interpreter of an empty environment; skips where pip reaches no index"
    venv = tmp_path_factory.mktemp('clean')/'venv'
    subprocess.run([sys.executable, '-m', 'venv', venv], check=True)
    python = str(venv/'bin/python')
    tried = pip(python, 'download', '--no-deps', '--retries=0', '--timeout=20', '--quiet',
                '-d', str(venv/'there'), BESIDE[0])
    if tried.returncode: pytest.skip(f'no index within reach: {tried.stderr.strip()[-200:]}')
    return python

@pytest.fixture(scope='module')
def wheel(python, tmp_path_factory):
    "The wheel, built from a copy: what an earlier build left here stays out of it"
    copy, out = tmp_path_factory.mktemp('copy'), tmp_path_factory.mktemp('wheel')
    for name in PACKED:
        if (ROOT/name).is_dir(): shutil.copytree(ROOT/name, copy/name)
        else: shutil.copy(ROOT/name, copy/name)
    done = pip(python, 'wheel', '--no-deps', '--quiet', '-w', str(out), str(copy))
    assert done.returncode == 0, done.stderr
    return str(next(out.glob('*.whl')))

@pytest.mark.slow
def test_newest_fastai_and_nbdev_fit_beside(python, wheel, tmp_path):
    newest = resolved(python, tmp_path, '--no-deps', *BESIDE)
    # one torch for all, that of the set-up: the newest would bring CUDA along
    torch = re.search(r'^TORCH=(.+)$', (ROOT/'tools/setup.sh').read_text(), re.M)[1]
    limits = tmp_path/'limits.txt'
    limits.write_text(f'torch=={torch}\n')
    together = resolved(python, tmp_path, '-c', str(limits), wheel, *BESIDE)
    assert 'maou-nb' in together
    assert {k: together[k] for k in BESIDE} == newest
