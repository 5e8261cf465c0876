"The quickstart runs top to bottom: on 50 games in `make test`, as a reader has it in `make test-all`"
import json, subprocess, sys

import nbformat
import pytest

from samples import ONE_FILE, ROOT

QUICKSTART = ROOT/'nbs'/'tutorials'/'70_quickstart.ipynb'

def run_copy(folder, games, options):
    "Run a copy of the quickstart that reads `games` and writes below `folder`; its result"
    nb = nbformat.read(QUICKSTART, as_version=4)
    cell = next(c for c in nb.cells if c.source.startswith('games = Path('))
    cell.source = (f"games, shards = Path({str(games)!r}), Path('../../runs/quickstart-shards')\n"
                   f"run_dir = Path('../../runs/quickstart')\n"
                   f"options = {options}")
    copy = folder/'nbs'/'tutorials'/'70_quickstart.ipynb'
    copy.parent.mkdir(parents=True)
    nbformat.write(nb, copy)
    done = subprocess.run([sys.executable, ROOT/'tools'/'demo.py', copy], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    run = folder/'runs'/'quickstart'
    for what in (run/'quickstart.ipynb', run/'result.json', run/'config.json', run/'history.jsonl'): assert what.exists()
    assert list(run.glob('checkpoints/stage*/*.safetensors')) and list(run.glob('logs/stage*/events*'))
    return json.loads((run/'result.json').read_text()), nbformat.read(run/'quickstart.ipynb', as_version=4), done.stdout

@pytest.mark.slow
def test_small(tmp_path):
    result, nb, said = run_copy(tmp_path, ONE_FILE, dict(stage1_max_epochs=30, stage1_threshold=0.95, stage2_threshold=0.1, epoch=1))
    assert [s['stage'] for s in result['stages_completed']] == [1, 2, 3]
    kept = [o for c in nb.cells if c.cell_type == 'code' for o in c.outputs]
    # what was live stays as curves and a picture of them, and the result has them too
    data = [o.get('data', {}) for o in kept]
    assert sum({'application/vnd.plotly.v1+json', 'image/png'} <= d.keys() for d in data) == 6
    assert any({'image/svg+xml', 'image/png'} <= d.keys() for d in data)
    assert 'runs/quickstart/result.json' in said and 'tensorboard --logdir' in said

@pytest.mark.slow
def test_as_the_reader_has_it(tmp_path):
    result, _, _ = run_copy(tmp_path, ONE_FILE.parent, dict(stage1_max_epochs=30, stage2_threshold=0.9, epoch=4))
    one, two, three = result['stages_completed']
    assert one['achieved_accuracy'] >= 0.99 and two['achieved_accuracy'] >= 0.85 and two['judged_on'] == 'held-out games'
    assert three['metrics']['top1'] > 4 * three['baselines']['top1']
    assert three['metrics']['value_accuracy'] > three['baselines']['value_accuracy'] + 0.05
