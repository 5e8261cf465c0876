"""A run that was written before stages were values, in tests/old_run/

It loads, is judged, drawn and gone on with, its averaged weights included.
"""
import json, shutil
from pathlib import Path

import pytest
import torch

from maou_nb import evaluate, learn_multi_stage, load_net, load_run, show_results
from maou_nb.train.checkpoints import load_tensors
from maou_nb.train.loop import TIMINGS

HERE = Path(__file__).parent/'old_run'

@pytest.fixture
def run(tmp_path, monkeypatch):
    "A copy, with its shards beside it as they were"
    shutil.copytree(HERE, tmp_path/'old')
    monkeypatch.chdir(tmp_path/'old')
    return Path('run')

def options(**more):
    "What it was begun with"
    return {k: v for k, v in json.loads((HERE/'run'/'config.json').read_text()).items() if v is not None} | more

def test_it_loads_and_is_drawn(run):
    result = load_run(run)
    assert [s.stage for s in result.stages_completed] == [1, 2, 3] and result[3].metric == 'top1'
    assert result._repr_html_().count('<img') == 3 and 'uniform over legal moves' in result._repr_html_()
    net = load_net(result.checkpoint(3))
    raw, averaged = (load_net(result.checkpoint(3), w).state_dict() for w in ('raw', 'averaged'))
    assert any(not torch.equal(raw[k], averaged[k]) for k in raw) and all(torch.equal(net.state_dict()[k], averaged[k]) for k in raw)
    assert 'win rate' in repr(result.predict('startpos'))

def test_it_is_judged_as_it_was(run):
    result = load_run(run)
    for n in (2, 3):
        found = evaluate(result, stage=n)
        assert found.known == 'held out'
        for k, v in result[n].metrics.items():
            if k in found.metrics: assert found.metrics[k] == pytest.approx(v, abs=1e-5), (n, k)
    assert len(show_results(result, n=2).svgs) == 2

def test_it_goes_on(run):
    "One more epoch: the history so far stays, and what a new run of the same length reaches is reached"
    longer = learn_multi_stage(**options(epoch=4, resume_from='latest'))
    before = load_run(HERE/'run')[3].history
    drop = lambda h: {k: v for k, v in h.items() if k not in TIMINGS}
    assert [drop(h) for h in longer[3].history[:3]] == [drop(h) for h in before] and longer[3].epochs_trained == 4

def test_the_same_options_train_the_same_weights(run):
    "Every tensor of every checkpoint, to the bit; files differ, since they hold the config, which has more options now"
    learn_multi_stage(**options(run_dir='again'))
    for old in sorted((run/'checkpoints').rglob('*.safetensors')):
        a, b = load_tensors(old)[0], load_tensors(Path('again')/old.relative_to(run))[0]
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a if not k.startswith('random.')), old
