"The rate that `find_lr` suggests: near the best of a swept grid whatever the seed, and none where the curve shows none"
import importlib.util, json, math, re
from pathlib import Path

import pytest
import torch

from maou_nb import find_lr
from maou_nb.front.learn import new_backbone
from maou_nb.stages.stage import STAGES
from maou_nb.train.loop import make_accelerator
from maou_nb.train.options import LearnConfig
from maou_nb.train.runner import close_sources, stage_loop
from maou_nb.train.trials import RateTrial
from samples import said

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location('find_lr_benchmark', ROOT/'benchmarks'/'find_lr.py')
bench = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bench)
KEPT = [json.loads(line) for line in (ROOT/'benchmarks'/'results'/'find-lr-cpu.jsonl').read_text().splitlines()]
SMALL = dict(stage=1, model_size='tiny', resnet_channels=8, resnet_blocks=1, stage1_batch_size=64, gpu='cpu')

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

@pytest.mark.parametrize('seed', [0, pytest.param(7, marks=pytest.mark.slow)])
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

# --- a step is that of the run
def trial_loop(data, **changed):
    "A loop of stage 1 on a CPU"
    cfg = LearnConfig(**{**SMALL, 'stage1_data_path': data, **changed})
    return stage_loop(cfg, STAGES['1'], new_backbone(cfg), make_accelerator('cpu', 'fp32'), say=lambda text: None)[0]

def test_batches_of_a_step_are_accumulated(shards):
    "As in the run: batches of 32, four a step, cost and change what batches of 128 do"
    made = {}
    for name, changed in (('alone', dict(stage1_batch_size=32)), ('four', dict(stage1_batch_size=32, gradient_accumulation_steps=4)),
                          ('big', dict(stage1_batch_size=128))):
        loop = trial_loop(shards['stage1_data_path'], seed=3, **changed)
        before = {k: v.clone() for k, v in loop.net.state_dict().items()}
        made[name] = loop.find_lr(steps=20)
        assert all(v.equal(before[k]) for k, v in loop.net.state_dict().items())
        close_sources(loop)
    assert made['four'].losses != made['alone'].losses and made['four'].rates == made['big'].rates[:len(made['four'].rates)]
    assert made['four'].before == pytest.approx(made['big'].before, rel=0.05)      # but for batch norm, the same rows
    assert 'a step has 4 batches' in repr(made['four']) and 'a step has' not in repr(made['big'])

def test_the_trial_of_a_step_is_that_of_the_loop(shards):
    "The same weights, in a net that counts no batches"
    data, changed = shards['stage1_data_path'], dict(model_architecture='mlp-mixer', mixer_embed_dim=16, mixer_num_layers=1)
    changed |= dict(gradient_accumulation_steps=5, max_steps=8, learning_ratio=1e-3, stage1_batch_size=96, stage1_threshold=1.)
    changed |= dict(stage12_lr_scheduler='none', gradient_clip_norm=1e9, mirror_augmentation=False)
    run, tried = (trial_loop(data, **changed) for _ in range(2))
    run.fit()
    steps = tried.steps_forever()
    for _ in range(8): tried.try_batches_of_step(*next(steps))
    steps.close()
    for (k, a), b in zip(run.net.state_dict().items(), tried.net.state_dict().values()): assert torch.allclose(a, b, atol=1e-6), k
    for loop in (run, tried): close_sources(loop)

def test_adaptive_batch_is_tried_as_it_begins(shards):
    found = find_lr(steps=3, stage=3, stage3_data_path=shards['stage3_data_path'], stage3_batch_size=32, adaptive_batch=True,
                    model_size='tiny', resnet_channels=8, resnet_blocks=1, gpu='cpu')
    assert 'a step has 2 batches, the fewest of adaptive_batch, with which it begins' in repr(found)

# --- what is said
def test_a_loss_that_is_no_number_is_not_blamed_on_the_rates(shards):
    loop = trial_loop(shards['stage1_data_path'])
    with torch.no_grad(): next(loop.net.parameters()).fill_(math.nan)
    trial = loop.find_lr(steps=20)
    close_sources(loop)
    assert 'of 31 steps is not a number before the first is taken, whatever the rate' in trial.why and trial.suggestion is None

def test_rates_out_of_bounds_and_too_few_steps(shards):
    options = dict(SMALL, stage1_data_path=shards['stage1_data_path'])
    for asked, why in ((dict(low=1e-300, high=1e300), 'low=1e-300: a rate of at least 1e-12 was expected'),
                       (dict(high=1e7), 'high=10000000.0: a rate of at most 1e+06 was expected')):
        with pytest.raises(ValueError, match=re.escape(why)) as error: find_lr(**asked, **options)
        assert said(error)
    assert '10 steps are too few for a curve: more steps, 30 at least, were expected' in find_lr(steps=10, **options).why
    assert RateTrial([1.], [1.], [1.]).why.startswith('1 rate was tried before it ended')
    assert repr(RateTrial([1.], [1.], [1.])).startswith('1 rate from 1 to 1; none')

def test_few_rows_are_said(shards):
    "Each is seen again and again"
    few = find_lr(**{**SMALL, 'stage1_batch_size': 256}, steps=20, stage1_data_path=shards['stage1_data_path'])
    many = find_lr(**{**SMALL, 'stage1_batch_size': 32}, steps=20, stage1_data_path=shards['stage1_data_path'])
    assert 'learnt by heart' in repr(few) and 'learnt by heart' not in repr(many)

def test_a_trial_takes_no_random_numbers(shards):
    torch.manual_seed(5)
    find_lr(steps=20, **SMALL, stage1_data_path=shards['stage1_data_path'])
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.rand(1).equal(after)
