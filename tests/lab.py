"A throw-away JupyterLab, and a headless Chromium that works in it"
import contextlib, json, os, re, shutil, signal, socket, subprocess, sys, tempfile, time, urllib.request
from pathlib import Path

import pytest

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
SHOTS = Path(__file__).resolve().parents[1]/'build'/'screenshots'
# else cells that are out of sight leave the page
SETTINGS = {'notebook-extension/tracker': {'windowingMode': 'none', 'recordTiming': False},
            'apputils-extension/notification': {'fetchNews': 'false', 'checkForUpdates': False}}

def free_port():
    "A port of this machine that nobody listens on"
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); return s.getsockname()[1]

@contextlib.contextmanager
def lab(folder):
    "JupyterLab over `folder`; its address"
    private, port = Path(tempfile.mkdtemp(prefix='lab')), free_port()
    for name, what in SETTINGS.items():
        f = private/'settings'/'@jupyterlab'/f'{name}.jupyterlab-settings'
        f.parent.mkdir(parents=True, exist_ok=True); f.write_text(json.dumps(what))
    env = {**os.environ, 'JUPYTERLAB_SETTINGS_DIR': f'{private}/settings',
           'JUPYTERLAB_WORKSPACES_DIR': f'{private}/workspaces', 'JUPYTER_RUNTIME_DIR': f'{private}/runtime',
           'IPYTHONDIR': f'{private}/ipython'}
    command = [sys.executable, '-m', 'jupyterlab', '--allow-root', '--no-browser', '--ip=127.0.0.1',
               f'--port={port}', '--ServerApp.port_retries=0', f'--ServerApp.root_dir={folder}',
               '--IdentityProvider.token=', '--ServerApp.password=', '--LabApp.expose_app_in_browser=True']
    with open(private/'log', 'w') as log:
        server = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log,
                                  stderr=subprocess.STDOUT, start_new_session=True)
    try:
        until = time.monotonic() + 60
        while True:
            try: urllib.request.urlopen(f'http://127.0.0.1:{port}/api/status', timeout=2); break
            except OSError:
                assert server.poll() is None and time.monotonic() < until, (private/'log').read_text()[-2000:]
                time.sleep(0.2)
        yield f'http://127.0.0.1:{port}'
    except BaseException:
        SHOTS.mkdir(parents=True, exist_ok=True)
        shutil.copy(private/'log', SHOTS/'lab.log')
        raise
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try: server.wait(10)
        except subprocess.TimeoutExpired: os.killpg(server.pid, signal.SIGKILL)
        shutil.rmtree(private, ignore_errors=True)

@contextlib.contextmanager
def browser(width=1280, height=1500):
    "A page of a headless Chromium"
    if not CHROMIUM:
        if os.environ.get('CI'): pytest.fail('there is no Chromium: tools/packages.sh installs it')
        pytest.skip('there is no Chromium: `sudo tools/packages.sh` installs it')
    from playwright.sync_api import sync_playwright
    with sync_playwright() as pw:
        b = pw.chromium.launch(executable_path=CHROMIUM, headless=True, args=['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage'])
        page = b.new_page(viewport={'width': width, 'height': height})
        page.set_default_timeout(60_000)
        said = []
        page.on('console', lambda m: said.append(f'{m.type}: {m.text}'))
        page.on('pageerror', lambda e: said.append(f'error: {e}'))
        try: yield page
        except BaseException:
            shot(page, 'failed')
            (SHOTS/'console.log').write_text('\n'.join(said))
            raise
        finally: b.close()

def command(page, name, **args):
    "Start a command of JupyterLab; its promise is not waited for, since it may never settle"
    page.evaluate('([c, a]) => { void window.jupyterapp.commands.execute(c, a) }', [name, args])

def theme(page, name):
    "Have the page in the theme `light` or `dark`, and wait until it is: what is typed meanwhile may be lost"
    command(page, 'apputils:change-theme', theme=f'JupyterLab {name.title()}')
    page.wait_for_function("""light => document.body.dataset.jpThemeLight === String(light)
        && !document.querySelector('#jupyterlab-splash')""", arg=name == 'light')
    page.wait_for_timeout(1000)           # until all is drawn again

def wait_for_kernel(page):
    "Until the kernel is connected and idle, which the toolbar says too early"
    page.wait_for_function("""() => { const c = window.jupyterapp?.shell.currentWidget?.sessionContext;
        return c?.isReady && c.session?.kernel?.connectionStatus === 'connected' && c.session.kernel.status === 'idle' }""")

def open_notebook(page, url, path):
    "Open the notebook at `path`, alone on the page"
    page.goto(f'{url}/doc/tree/{path}')
    page.wait_for_selector('.jp-Notebook .jp-Cell')
    wait_for_kernel(page)

def run_cell(page, text, timeout=120):
    "Run the first code cell that contains `text`, and wait until it is done; its element"
    cell = page.locator('.jp-CodeCell').filter(has_text=text).first
    cell.locator('.jp-InputArea-editor').click()
    command(page, 'notebook:run-cell')
    page.wait_for_function("t => { const c = [...document.querySelectorAll('.jp-CodeCell')]"
                           ".find(c => c.textContent.includes(t)); "
                           "return /\\[\\d+\\]/.test(c.querySelector('.jp-InputPrompt').textContent) }",
                           arg=text, timeout=timeout*1000)
    errors = cell.locator('.jp-RenderedText[data-mime-type="application/vnd.jupyter.stderr"]').filter(has_text="Traceback")
    assert not errors.count(), errors.first.inner_text()
    return cell

def restart_kernel(page):
    "A new kernel; prompts are cleared, so that cells can be waited for again"
    page.evaluate("() => { void window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart() }")
    page.wait_for_timeout(1500)
    wait_for_kernel(page)

def field(page, name):
    "The input of the option `name` in the panel"
    label = page.locator('label, .widget-label-basic span').filter(has_text=re.compile(rf'(^|· ){name}$'))
    return page.locator('.maou-field').filter(has=label).locator('input, select, textarea').first

def shot(page, name, of=None):
    "Keep a screenshot in build/screenshots/"
    SHOTS.mkdir(parents=True, exist_ok=True)
    (of or page).screenshot(path=SHOTS/f'{name}.png')

def button_of(page, name):
    "The last button that is seen and says `name`, whole: several begin alike, and those of a study are hidden"
    return page.locator('.jupyter-button:visible').filter(has_text=re.compile(rf'^\s*{re.escape(name)}\s*$')).last
