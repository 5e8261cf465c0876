"The tutorials beside the quickstart run top to bottom on the sample games, and show what they promise"
import subprocess, sys

import nbformat

from samples import ROOT

def run_copy(folder, name):
    "Run a copy of the tutorial `name` somewhere else; its cells' outputs"
    nb = nbformat.read(ROOT/'nbs'/'tutorials'/name, as_version=4)
    for c in nb.cells: c.source = c.source.replace("Path('../../samples", f"Path({str(ROOT)!r} + '/samples")
    nbformat.write(nb, folder/name)
    done = subprocess.run([sys.executable, '-m', 'jupyter', 'nbconvert', '--to', 'notebook', '--execute', '--output', 'done.ipynb', str(folder/name)], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return [o for c in nbformat.read(folder/'done.ipynb', as_version=4).cells if c.cell_type == 'code' for o in c.outputs]

def test_your_games(tmp_path):
    shown = run_copy(tmp_path, '51_your_games.ipynb')
    html = ' '.join(o.get('data', {}).get('text/html', '') for o in shown)
    for part in ('second copy of a game', 'eval outside', 'bytes a row', 'perfect shuffle', '<svg'): assert part in html, part
    assert any('broken.csa, line 4: move 2 of the game, -3335FU, is illegal' in o.get('text', '') for o in shown)
