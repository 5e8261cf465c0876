"""The tutorials beside the quickstart run top to bottom and show what they promise

Those that train do so on 50 of the sample games, in `make test-all`.
"""
import re, subprocess, sys

import nbformat
import pytest

from samples import ONE_FILE, ROOT

def run_copy(folder, name, games=None, instead={}):
    "Run a copy of the tutorial `name` somewhere else, on so many games and with other words where they are given; its cells' outputs"
    nb = nbformat.read(ROOT/'nbs'/'tutorials'/name, as_version=4)
    if games:
        (folder/'games.csa').write_text('/\n'.join(ONE_FILE.read_text().split('/\n')[:games]))
        own = dict.fromkeys(("'../../samples/games/selfplay-0.csa'", "'../../samples/games'"), repr(str(folder/'games.csa')))
        for c in nb.cells:
            for old, new in (own | instead).items(): c.source = c.source.replace(old, new)
    for c in nb.cells: c.source = c.source.replace("Path('../../samples", f"Path({str(ROOT)!r} + '/samples")
    nbformat.write(nb, folder/name)
    done = subprocess.run([sys.executable, '-m', 'jupyter', 'nbconvert', '--to', 'notebook', '--execute',
                           '--output', 'done.ipynb', str(folder/name)],
                          capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return [o for c in nbformat.read(folder/'done.ipynb', as_version=4).cells if c.cell_type == 'code' for o in c.outputs]

def test_your_games(tmp_path):
    shown = run_copy(tmp_path, '71_your_games.ipynb')
    words = 'second copy of a game', 'eval outside', 'bytes a row', 'perfect shuffle', 'aria-label='
    for part in words: assert part in html(shown), part
    assert any('broken.csa, line 4: move 2 of the game, -3335FU, is illegal' in o.get('text', '') for o in shown)

def html(shown):
    "All that is shown, and the text of its pictures"
    kinds = 'text/html', 'image/svg+xml', 'text/plain'
    made = ' '.join(o.get('text', '') + ''.join(''.join(o.get('data', {}).get(kind, '')) for kind in kinds) for o in shown)
    return made + ' '.join(re.sub('<[^>]*>', '', made).split())

@pytest.mark.slow
def test_your_backbone(tmp_path, games=50):
    shown = html(run_copy(tmp_path, '72_your_backbone.ipynb', games))
    for part in ('stage 3 after 2 epochs', 'model_architecture', 'line-mix', 'the network gives it'): assert part in shown, part

@pytest.mark.slow
def test_reading_the_curves(tmp_path, games=50):
    shown = html(run_copy(tmp_path, '74_reading_the_curves.ipynb', games))
    for part in ('stage 1 after', 'stage 3 after 4 epochs', 'learning_ratio', 'eliability'): assert part in shown, part

@pytest.mark.slow
def test_it_plays(tmp_path, games=50):
    fewer = {'games=200': f'games={games//3}', **dict.fromkeys(('games=40', 'games=20'), f'games={games//6}'),
             'games=16': 'games=2', 'nodes=50': 'nodes=10'}
    shown = html(run_copy(tmp_path, '75_it_plays.ipynb', games, fewer))
    for part in ('today against yesterday', 'searching against at sight', 'random', '先手：', 'an engine', 'top-1, held out',
                 'your move, as Black', 'unfinished after 2 moves'): assert part in shown, part

@pytest.mark.slow
def test_resume_and_compare(tmp_path):
    shown = run_copy(tmp_path, '75_resume_and_compare.ipynb')
    assert any("('failed'" in o.get('data', {}).get('text/plain', '') for o in shown)
    assert any(o.get('data', {}).get('text/plain') == 'True' for o in shown)
    assert 'seed-1' in html(shown)

@pytest.mark.slow
def test_to_the_cloud(tmp_path):
    shown = run_copy(tmp_path, '76_to_the_cloud.ipynb')
    assert any('checkpoints/stage2/checkpoints.json' in o.get('data', {}).get('text/plain', '') for o in shown) and 'recall' in html(shown)

@pytest.mark.slow
def test_your_stage(tmp_path, games=50):
    shown = html(run_copy(tmp_path, '73_your_stage.ipynb', games))
    for part in ('attacked squares', 'predicting nothing', 'stage attacked after', 'policy_loss'): assert part in shown, part
