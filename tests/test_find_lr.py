"The rate that `find_lr` suggests: near the best of a swept grid whatever the seed, and none where the curve shows none"
import importlib.util, json, math
from pathlib import Path

import pytest

from maou_nb import find_lr
from maou_nb.train.runner import close_sources
from maou_nb.train.trials import RateTrial
from samples import said

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location('find_lr_benchmark', ROOT/'benchmarks'/'find_lr.py')
bench = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bench)
KEPT = [json.loads(line) for line in (ROOT/'benchmarks'/'results'/'find-lr-cpu.jsonl').read_text().splitlines()]
SMALL = dict(stage=1, model_size='tiny', resnet_channels=16, resnet_blocks=1, stage1_batch_size=64, gpu='cpu')

def best(net): return bench.middle_rate(KEPT, '3', net)       # the games are others here

def suggested(net, seed, data):
    loop = bench.loop_of(net, '3', seed, data)
    try: return loop.find_lr()
    finally: close_sources(loop)

def test_what_was_measured_lies_within_a_factor_of_three():
    "30 suggestions, of three architectures and ten seeds, each beside the best rate of a grid that reaches to both sides of it"
    for net in bench.NETS:
        rate, means = bench.best_rate(KEPT, '3', net)
        found = [x for x in KEPT if x['kind'] == 'found' and x['stage'] == '3' and x['net'] == net]
        assert [x['seed'] for x in found] == [*range(10)] and min(means) < rate < max(means)
        assert all(rate/3 < x['suggestion'] < 3*rate and x['valley'][0] <= x['suggestion'] < x['valley'][1] for x in found), net

@pytest.mark.parametrize('seed', [0, 7])
def test_a_suggestion_is_near_the_best(seed, shards):
    assert best('resnet')/3 < suggested('resnet', seed, shards['stage3_data_path']).suggestion < 3*best('resnet')

@pytest.mark.slow
@pytest.mark.parametrize('net', bench.NETS)
def test_all_suggestions_are_near_the_best(net, shards):
    for seed in range(10):
        trial = suggested(net, seed, shards['stage3_data_path'])
        assert best(net)/3 < trial.suggestion < 3*best(net), (seed, trial)

def test_rates_that_show_nothing_are_refused_in_a_sentence(shards):
    "Too low ones, too few, and ones that are too high from the first on"
    options = dict(SMALL, stage1_data_path=shards['stage1_data_path'])
    for asked, why in ((dict(low=1e-6, high=1e-4, steps=40), 'a higher `high`'), (dict(steps=3), 'more steps'),
                       (dict(low=100., high=1e4), ' expected')):
        trial = find_lr(**asked, **options)
        assert trial.suggestion is None and trial.valley is None and why in trial.why and '\n' not in trial.why, trial
        assert trial.why in repr(trial) and trial.why.split('`')[0] in trial._repr_html_()

def test_the_range_must_rise(shards):
    options = dict(SMALL, stage1_data_path=shards['stage1_data_path'])
    with pytest.raises(ValueError, match='a rate below high=0.1 was expected') as error: find_lr(low=1., high=0.1, **options)
    assert said(error)

def made(change, noise=0.):
    rates = [1e-5*10**(i/20) for i in range(100)]
    batches = [4 + 0.4*math.sin(12.9898*i) for i in range(101)]        # batches are unequal, by far more than a step changes
    shaken = [noise*math.sin(78.233*i*i) for i in range(100)]
    return RateTrial(rates, [b + change(r) + s for r, b, s in zip(rates, batches, shaken)], batches[:100])

def test_unequal_batches_do_not_move_the_suggestion():
    "Of a valley around 0.01"
    valley = lambda r: -math.exp(-(math.log10(r) + 2)**2)
    found = [made(valley, noise).suggestion for noise in (0., 0.1, 0.2)]
    assert all(0.005 < f < 0.011 for f in found), found

def test_noise_alone_is_no_valley():
    for noise in (0.01, 0.3): assert 'no more than its noise' in made(lambda r: 0., noise).why

def test_a_single_peak_is_left_out():
    trial = made(lambda r: -math.exp(-(math.log10(r) + 2)**2))
    was = trial.suggestion
    trial.losses[20], trial.losses[70] = 90., -90.
    assert trial.suggestion == pytest.approx(was, rel=0.05)
