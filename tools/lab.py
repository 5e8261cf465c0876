"""JupyterLab on copies of the tutorials, where samples/ and runs/ are seen: `python tools/lab.py [words for jupyter lab]`

The copies lie in notebooks/tutorials/, which git does not look at: what is run and saved there changes nothing that is tracked.
A copy that is there already is kept, whatever is in it; who deletes it gets a fresh one. Without a display, as on a machine that
is rented, no browser is started: the address is printed.
"""
import os, shutil, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TUTORIALS, COPIES = ROOT/'nbs'/'tutorials', ROOT/'notebooks'/'tutorials'     # as deep: they name ../../samples
FIRST = '70_quickstart.ipynb'

def copy_tutorials():
    "(copied, kept): names of tutorials"
    COPIES.mkdir(parents=True, exist_ok=True)
    (ROOT/'runs').mkdir(exist_ok=True)
    found = sorted(p.name for p in TUTORIALS.glob('*.ipynb'))
    kept = [n for n in found if os.path.lexists(COPIES/n)]
    fresh = [n for n in found if n not in kept]
    for name in fresh: shutil.copyfile(TUTORIALS/name, COPIES/name)
    return fresh, kept

def has_display():
    "Whether a browser that is started here can be seen"
    return sys.platform in ('darwin', 'win32') or bool(os.environ.get('DISPLAY') or os.environ.get('WAYLAND_DISPLAY'))

def words(given):
    "What JupyterLab is started with"
    own = [f'--ServerApp.root_dir={ROOT}', f'--LabApp.default_url=/lab/tree/{(COPIES/FIRST).relative_to(ROOT).as_posix()}']
    if not has_display() and '--no-browser' not in given: own.append('--no-browser')
    if hasattr(os, 'geteuid') and os.geteuid() == 0 and '--allow-root' not in given: own.append('--allow-root')
    return [*own, *given]

def main(given):
    if {'-h', '--help'} & {*given}:
        print(__doc__)
        return
    fresh, kept = copy_tutorials()
    place = f'{COPIES.relative_to(ROOT)}/'
    print(f'{len(fresh)} tutorials copied to {place}, {len(kept)} kept as you left them; runs go to runs/', flush=True)
    if not has_display():
        print('Open the address with the token below. From another machine: ssh -L PORT:localhost:PORT to this one, '
              'with the port of the address.', flush=True)
    os.chdir(ROOT)
    os.execv(sys.executable, [sys.executable, '-m', 'jupyterlab', *words(given)])

if __name__ == '__main__': main(sys.argv[1:])
