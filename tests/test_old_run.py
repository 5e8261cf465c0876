"""A run that was written before stages were values, in tests/old_run/

It loads, is judged, drawn and gone on with, its averaged weights included.
"""
import json, math, shutil
from pathlib import Path

import pytest
import torch

from maou_nb import OptionError, evaluate, learn_multi_stage, load_net, load_run, show_results
from maou_nb.front.cli import read_flags
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

def test_it_is_shown_what_it_was_begun_with(run):
    "Pieces, though the default is another now: when it is asked, and when it goes on; it cannot change"
    shown = lambda: json.loads((run/'config.json').read_text()).get('input_features')
    assert shown() is None and load_net(load_run(run).checkpoint(3)).backbone.stem.embedding.features is None
    with pytest.raises(OptionError, match='input_features: pieces → attacks'):
        learn_multi_stage(**options(epoch=4, resume_from='latest', input_features='attacks'))
    learn_multi_stage(**options(epoch=4, resume_from='latest'))
    assert shown() == 'pieces'

def test_the_same_options_train_the_same_weights(run):
    "Every tensor of every checkpoint, to the bit; files differ, since they hold the config, which has more options now"
    learn_multi_stage(**options(run_dir='again', input_features='pieces'))      # there was no other
    for old in sorted((run/'checkpoints').rglob('*.safetensors')):
        a, b = load_tensors(old)[0], load_tensors(Path('again')/old.relative_to(run))[0]
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a if not k.startswith('random.')), old

def test_it_has_the_scale_of_evals_that_it_was_begun_with(run, tmp_path):
    "600, there having been no other: when it is asked, and when it goes on, unless another is named"
    result = load_run(run)
    said = result.predict('startpos')
    assert said.score == pytest.approx(600*math.log(said.value/(1 - said.value)), abs=0.1)
    scale = lambda: json.loads((run/'config.json').read_text()).get('eval_scale')
    assert scale() is None
    for epoch in (4, 5):
        learn_multi_stage(**options(epoch=epoch, resume_from='latest'))
        assert scale() == 600
    learn_multi_stage(**options(epoch=5, resume_from=str(run), run_dir='elsewhere'))
    assert json.loads(Path('elsewhere/config.json').read_text())['eval_scale'] == 600
    learn_multi_stage(**options(epoch=6, resume_from='latest', eval_scale=500))
    assert scale() == 500
    learn_multi_stage(**options(epoch=7, resume_from='latest'))
    assert scale() == 500

def test_another_scale_is_said_when_it_goes_on(run, capsys):
    learn_multi_stage(**options(epoch=4, resume_from='latest', eval_scale=500))
    assert 'eval_scale: 600.0 → 500.0' in ''.join(capsys.readouterr())

def test_the_command_line_has_its_scale(run):
    assert read_flags(['--config', str(run/'config.json')]).options['eval_scale'] == 600
    assert read_flags(['--config', str(run/'config.json'), '--eval-scale', '500']).options['eval_scale'] == '500'
