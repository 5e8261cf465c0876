"""Every option acts: one row for each, with the option at two values and what must differ in the run

More rows are in test_options_training.py. The meta-test fails when the config has a field without a row, or a row is of no field."""
import functools, json, math
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from maou_nb import OptionError, learn_multi_stage
from maou_nb.data.shards import find_shards, read_shard, write_shard
from maou_nb.data.sources import StreamingFileSource
from maou_nb.front import learn
from maou_nb.front.options import OwnNumbers
from maou_nb.stages.rows import stage1_rows
from maou_nb.train import runner as stages
from maou_nb.train.optim import OptimizerOptions, make_optimizer
from maou_nb.train.options import LearnConfig
from options import TINY, blocks, check, few, moved, params, row, run, shape, weights

# --- data
@row
def stage(run, few):
    assert [s.stage for s in run(stage='all').result.stages_completed] == [1, 2, 3]
    for n in (1, 2, 3): assert [s.stage for s in run(stage=str(n)).result.stages_completed] == [n]
@row
def stage1_data_path(run, few):
    assert run(stage=1).stage.rows == {'train': 1105}
    assert run(stage=1, stage1_data_path=few/'half').stage.rows == {'train': 500}
@row
def stage2_data_path(run, few):
    one = find_shards(few/'twelve'/'stage2', 2)[0]
    assert run(stage=2, stage2_data_path=few/'six'/'stage2').stage.rows['train'] < run(stage=2).stage.rows['train']
    assert run(stage=2, stage2_data_path=str(few/'twelve'/'stage2'/'*-00000-*.feather')).stage.rows['train'] == one.rows
@row
def stage3_data_path(run, few):
    both = (str(few/'twelve'/'stage3'), str(few/'six'/'stage3'))
    one, two = run(), run(stage3_data_path=both)
    assert sum(two.stage.rows.values()) > sum(one.stage.rows.values())
@row
def no_streaming(run, few):
    # else so few rows are one window
    with patch.object(stages, 'StreamingFileSource', functools.partial(StreamingFileSource, window=2, window_rows=0)):
        a, b = run(seed=77, input_cache_mode='memory'), run(seed=77, input_cache_mode='memory', no_streaming=True)
    assert len(find_shards(few/'twelve'/'stage3', 3)) > 4 and a.stage.rows == b.stage.rows    # the same split …
    assert moved(a, b)                                                                        # … in another order
    with pytest.raises(OptionError, match="input_cache_mode='memory', 'mmap' or 'device' would be right"): run(no_streaming=True)
@row
def _test_ratio(run, few):
    for ratio in (0.3, 0.6):
        folds = [f for s in find_shards(few/'twelve'/'stage3', 3) for f in read_shard(s)['fold'].to_pylist()]
        held = sum(f < round(100*ratio) for f in folds)
        assert run(test_ratio=ratio).stage.rows == {'train': len(folds) - held, 'valid': held}
@row
def stage2_test_ratio(run, few):
    a, b = run(stage=2), run(stage=2, stage2_test_ratio=0.3)
    assert (a.stage.judged_on, b.stage.judged_on) == ('training rows', 'held-out games') and b.stage.rows['valid'] > 0
    assert 'train_eval/f1' in a.last and 'valid/f1' in b.last

# --- model
@row
def preset(run, few):
    judged = lambda **own: run(stage=2, preset='quick', **own).stage.judged_on       # it holds a fifth out
    assert (judged(), judged(stage2_test_ratio=0.)) == ('held-out games', 'training rows')
    with pytest.raises(OptionError, match='one of quick, small-resnet'): run(preset='slow')
@row
def gpu(run, few):
    assert run(gpu='cpu').stage.epochs_trained == 1
    with pytest.raises(OptionError, match="gpu='cuda:99'"): run(gpu='cuda:99')
@row
def gpus(run, few, monkeypatch):
    # that the processes train as one does, test_processes.py shows
    asked = []
    def started(cfg, processes, stop, say):
        asked.append(processes)
        return {'result': learn_multi_stage(**cfg.model_copy(update={'gpus': None}).model_dump()).model_dump(mode='json')}
    monkeypatch.setattr(learn, 'launch', started)
    a, b = run.afresh(gpus=3), run.afresh(gpus=1)
    assert asked == [3] and weights(a).equal(weights(b))
    with pytest.raises(OptionError, match="gpus='all': there is no GPU to be used"): run(gpus='all')
@row
def precision(run, few):
    a, b = run(precision='fp32'), run(precision='bf16')
    assert moved(a, b) and abs(a.last['train/loss'] - b.last['train/loss']) < 0.2
    with pytest.raises(OptionError, match='fp16'): run(precision='fp16')
    with pytest.raises(OptionError, match="precision='tf32': of CUDA GPUs alone"): run(precision='tf32')
@row
def model_architecture(run, few):
    names = [sorted(k for k in run(stage=1, model_architecture=a).tensors if 'blocks.0' in k) for a in TINY]
    assert len({tuple(n) for n in names}) == 3
@row
def model_size(run, few):
    write_shard(few/'some'/'some.feather', stage1_rows().slice(0, 20), 1, 'twenty rows')      # of a large net each costs
    one_step = dict(stage=1, stage1_data_path=few/'some', stage1_batch_size=20)
    assert params(run(model_size='tiny', **one_step)) < params(run(model_size='small', **one_step))
@row
def input_features(run, few):
    plain, shown = run(stage=1, input_features='pieces'), run(stage=1)
    assert params(shown) - params(plain) == 35*8
    assert [any('plane' in k for k in r.tensors) for r in (shown, plain)] == [True, False]
    with pytest.raises(OptionError, match="input_features='atacks': one of pieces, attacks was expected"): run(input_features='atacks')
@row
def resnet_channels(run, few): assert [shape(run(stage=1, resnet_channels=c), 'heads.reachable')[1] for c in (8, 12)] == [8, 12]
@row
def resnet_blocks(run, few): assert [blocks(run(stage=1, resnet_blocks=n)) for n in (1, 3)] == [1, 3]

mixer, vit = functools.partial(dict, stage=1, model_architecture='mlp-mixer'), functools.partial(dict, stage=1, model_architecture='vit')
@row
def mixer_embed_dim(run, few): assert [shape(run(**mixer(mixer_embed_dim=c)), 'heads.reachable')[1] for c in (8, 12)] == [8, 12]
@row
def mixer_num_layers(run, few): assert [blocks(run(**mixer(mixer_num_layers=n))) for n in (1, 2)] == [1, 2]
@row
def mixer_token_dim(run, few): assert params(run(**mixer(mixer_token_dim=16))) - params(run(**mixer())) == 8 * (81*2 + 1)
@row
def mixer_channel_dim(run, few): assert params(run(**mixer(mixer_channel_dim=16))) - params(run(**mixer())) == 8 * (8*2 + 1)
@row
def mixer_dropout(run, few): assert run(**mixer(mixer_dropout=0.5)).last['train/loss'] != run(**mixer()).last['train/loss']
@row
def vit_embed_dim(run, few): assert [shape(run(**vit(vit_embed_dim=c)), 'heads.reachable')[1] for c in (8, 12)] == [8, 12]
@row
def vit_num_layers(run, few): assert [blocks(run(**vit(vit_num_layers=n))) for n in (1, 2)] == [1, 2]
@row
def vit_num_heads(run, few):
    a, b = run(**vit()), run(**vit(vit_num_heads=4))
    assert params(a) == params(b) and moved(a, b)
    with pytest.raises(OptionError, match='vit_num_heads=3'): run(**vit(vit_num_heads=3))
@row
def vit_mlp_ratio(run, few): assert params(run(**vit(vit_mlp_ratio=2.))) - params(run(**vit())) == 8 * (8*2 + 1)
@row
def vit_dropout(run, few): assert run(**vit(vit_dropout=0.5)).last['train/loss'] != run(**vit()).last['train/loss']

# --- stages 1 and 2
@row
def stage1_threshold(run, few):
    assert run(stage=1).stage.threshold_met and run(stage=1).stage.epochs_trained == 1
    failed = run(stage=1, stage1_threshold=1., stage1_max_epochs=2)
    assert 'stage 1' in str(failed.error) and not failed.stage.threshold_met
    assert run(stage=1, stage1_threshold=None, stage1_max_epochs=2).stage.epochs_trained == 2
@row
def stage1_max_epochs(run, few):
    assert [run(stage=1, stage1_threshold=1., stage1_max_epochs=n).stage.epochs_trained for n in (1, 2)] == [1, 2]
@row
def stage1_batch_size(run, few): assert [run(stage=1, stage1_batch_size=n).last['step'] for n in (1105, 100)] == [1, 12]
@row
def stage1_learning_rate(run, few): assert [run(stage=1, stage1_learning_rate=x).last['lr'] for x in (0.003, 0.02)] == [0.003, 0.02]
@row
def stage2_threshold(run, few):
    assert run(stage=2).stage.threshold_met
    assert 'stage 2' in str(run(stage=2, stage2_threshold=1., stage2_max_epochs=1).error)
@row
def stage2_max_epochs(run, few):
    assert [run(stage=2, stage2_threshold=1., stage2_max_epochs=n).stage.epochs_trained for n in (1, 2)] == [1, 2]
@row
def stage2_batch_size(run, few):
    assert run(stage=2, stage2_batch_size=100).last['step'] == math.ceil(run(stage=2).stage.rows['train'] / 100)
@row
def stage2_learning_rate(run, few): assert [run(stage=2, stage2_learning_rate=x).last['lr'] for x in (0.003, 0.02)] == [0.003, 0.02]

# the weights stay, so losses can be compared
still = functools.partial(dict, stage=2, optimizer='sgd', momentum=0., stage2_learning_rate=1e-12)
def loss(r): return r.last['train/loss']
@row
def stage2_gamma_neg(run, few): assert 0 < loss(run(**still(stage2_gamma_neg=2.))) < loss(run(**still()))
@row
def stage2_gamma_pos(run, few): assert 0 < loss(run(**still(stage2_gamma_pos=2.))) < loss(run(**still()))
@row
def stage2_clip(run, few): assert 0 < loss(run(**still(stage2_clip=0.2))) < loss(run(**still()))
@row
def stage12_lr_scheduler(run, few):
    two = functools.partial(dict, stage=1, stage1_threshold=1., stage1_max_epochs=2)
    flat, cosine = run(**two(stage12_lr_scheduler='none')), run(**two(stage12_lr_scheduler='cosine_annealing_lr'))
    assert [h['lr'] for h in flat.history] == [0.01, 0.01]
    assert [h['lr'] for h in cosine.history] == pytest.approx([0.01, 0.005])
    auto = [run(**two(stage1_batch_size=n)).history[1]['lr'] for n in (256, 257)]            # auto: only over 256
    assert auto[0] == 0.01 and run(**two(stage1_batch_size=257)).history[0]['lr'] < 0.01
@row
def stage12_weight_decay(run, few):
    a, b = run(stage=1), run(stage=1, stage12_weight_decay=0.9)
    assert shape(a, 'stem') == shape(b, 'stem') and moved(a, b)
    assert not moved(run(), run(stage12_weight_decay=0.9))                                    # stage 3 has its own

# --- stage 3
@row
def epoch(run, few): assert [run(epoch=n).stage.epochs_trained for n in (1, 2)] == [1, 2]
@row
def stage3_batch_size(run, few): assert run(stage3_batch_size=100).last['step'] == math.ceil(run().stage.rows['train'] / 100)
@row
def policy_loss_ratio(run, few):
    for ratio in (0., 2.):
        last = run(policy_loss_ratio=ratio).last
        assert last['train/loss'] == pytest.approx(ratio*last['train/policy_loss'] + last['train/value_loss'], rel=1e-5)
@row
def value_loss_ratio(run, few):
    for ratio in (0., 2.):
        last = run(value_loss_ratio=ratio).last
        assert last['train/loss'] == pytest.approx(last['train/policy_loss'] + ratio*last['train/value_loss'], rel=1e-5)
    with pytest.raises(OptionError, match='nothing would be learnt'): run(value_loss_ratio=0., policy_loss_ratio=0.)

# --- optimizer
@row
def batch_size(run, few):
    rows = run().stage.rows['train']
    assert run(batch_size=20).last['step'] == math.ceil(rows / 20)
    assert run(batch_size=100_000).last['step'] >= 16                                         # capped
@row
def max_steps(run, few):
    whole, part = run(stage='all'), run(stage='all', max_steps=7)
    assert part.last['step'] == 7 and part.result[1].history[-1]['step'] == whole.result[1].history[-1]['step']
    rates = [[h['lr'] for h in run(epoch=1, max_steps=n, warmup_steps=0, lr_scheduler='cosine_annealing_lr').history] for n in (7, 20)]
    assert [len(r) for r in rates] == [1, 2] and rates[0][0] == rates[1][0] == 0.01 > rates[1][1] > 0
@row
def learning_ratio(run, few): assert [run(learning_ratio=x, lr_scheduler='none').last['lr'] for x in (0.003, 0.02)] == [0.003, 0.02]
@row
def weight_decay(run, few):
    assert moved(run(), run(weight_decay=0.9))
    assert not moved(run(stage=1), run(stage=1, weight_decay=0.9))
@row
def lr_scheduler(run, few):
    rates = {s: [h['lr'] for h in run(epoch=2, lr_scheduler=s).history] for s in ('none', 'cosine_annealing_lr', 'warmup_cosine_decay')}
    assert rates['none'] == [0.01, 0.01] and rates['cosine_annealing_lr'] == pytest.approx([0.01, 0.005])
    assert rates['warmup_cosine_decay'][0] < 0.002
    assert run(epoch=2, lr_scheduler='Warmup+CosineDecay').history[0]['lr'] == rates['warmup_cosine_decay'][0]
@row
def warmup_steps(run, few): assert [run(warmup_steps=n).last['lr'] for n in (0, 9)] == pytest.approx([0.01, 0.001])
@row
def optimizer(run, few):
    assert any('exp_avg' in k for k in run().tensors) and any('momentum_buffer' in k for k in run(optimizer='SGD').tensors)
    both = run(optimizer='Muon').tensors
    assert any('exp_avg' in k for k in both) and any('momentum_buffer' in k for k in both)
@row
def nesterov(run, few):
    "Two steps of one gradient, written out"
    sgd = functools.partial(run, stage=1, optimizer='sgd')
    assert moved(sgd(), sgd(nesterov=True))
    assert not moved(run(stage=1), run(stage=1, nesterov=True))
    assert not moved(sgd(momentum=0.), sgd(momentum=0., nesterov=True))
    net = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(net.weight)
    step = make_optimizer(net, 0.1, cfg=OptimizerOptions(optimizer='sgd', nesterov=True, momentum=0.5))
    net.weight.grad, moves = torch.ones(1, 1), []
    for _ in range(2):
        step.step()
        moves.append(net.weight.item())
    assert moves == pytest.approx([-0.1*(1 + 0.5*1), -0.1*(1.5 + 1 + 0.5*1.5)])
@row
def momentum(run, few): assert moved(run(optimizer='sgd'), run(optimizer='sgd', momentum=0.1))

@row
def optimizer_beta1(run, few):
    assert moved(run(), run(optimizer_beta1=0.5))
    assert not moved(run(optimizer='sgd'), run(optimizer='sgd', optimizer_beta1=0.5))
@row
def optimizer_beta2(run, few): assert moved(run(), run(optimizer_beta2=0.9))
@row
def optimizer_eps(run, few): assert moved(run(), run(optimizer_eps=1e-2))
@row
def gradient_clip_norm(run, few):
    "With SGD the weights cannot move further than the sum of the clipped steps"
    sgd = functools.partial(dict, stage=1, optimizer='sgd', momentum=0., stage1_batch_size=100, learning_ratio=0.1)
    learnt = lambda r: torch.cat([t.flatten() for k, t in sorted(r.tensors.items())
                                  if k.startswith('net.') and 'running' not in k and 'num_batches' not in k])
    start = learnt(run(**{**sgd(), 'learning_ratio': 1e-12}))
    short, far = (learnt(run(**sgd(gradient_clip_norm=n))) for n in (0.01, None))
    assert (short - start).norm() <= 12 * 0.1 * 0.01 * 1.01 < (far - start).norm()
@row
def seed(run, few):
    a, b = run(seed=7), run(seed=7, run_name='another')
    assert moved(run(), a)
    assert not moved(a, b)

# --- logs and output
@row
def run_dir(run, few):
    for name in ('x', 'y'):
        r = run(stage=1, run_dir=few/'runs'/name)
        assert (few/'runs'/name/'result.json').exists() and (few/'runs'/name/'config.json').exists()
        assert r.result.run_dir == str(few/'runs'/name)
@row
def run_name(run, few, monkeypatch):
    monkeypatch.chdir(few)
    r = run(stage=1, run_dir='leave out', run_name='mine')
    assert r.dir == few/'runs'/'mine' and Path('logs/mine/stage1').is_dir() and Path('models/mine/stage1').is_dir()
@row
def log_dir(run, few):
    for name in ('l', 'm'):
        run(stage=1, log_dir=few/name)
        assert list((few/name).glob('*/stage1/events*'))
@row
def model_dir(run, few):
    for name in ('k', 'n'):
        r = run(stage=1, model_dir=few/name)
        assert list((few/name).glob('*/stage1/*.safetensors')) and r.result.checkpoint(1).is_relative_to(few/name)

@pytest.mark.parametrize('name', ROWS)
def test_option_acts(name, request): check(ROWS[name], request)

def test_every_option_has_a_row():
    from test_options_training import ROWS as more
    assert not set(ROWS) & set(more) and set(ROWS) | set(more) == set(LearnConfig.model_fields)

def test_config_comes_back_from_the_run_folder(run):
    r = run()
    again = learn_multi_stage(**{**json.loads((r.dir/'config.json').read_text()), 'run_dir': str(r.dir.with_name('again'))})
    assert again[3].metrics == r.stage.metrics

DRAWING = {
    'dropout': lambda: torch.nn.Dropout(.5)(torch.ones(4, 4)), 'weights': lambda: torch.nn.Linear(4, 4),
    'lstm': lambda: torch.nn.LSTM(3, 4),
    'attention': lambda: torch.nn.functional.scaled_dot_product_attention(*[torch.ones(1, 2, 3, 8)]*3, dropout_p=.2),
    'orthogonal': lambda: torch.nn.init.orthogonal_(torch.empty(3, 3)), 'truncated': lambda: torch.nn.init.trunc_normal_(torch.empty(3, 3)),
    'normal': lambda: torch.normal(0., 1., (2,)), 'bernoulli': lambda: torch.bernoulli(torch.full((3,), .5)),
    'multinomial': lambda: torch.multinomial(torch.ones(3), 2), 'exponential': lambda: torch.empty(3).exponential_(),
    'rand': lambda: torch.rand(3), 'randn_like': lambda: torch.randn_like(torch.ones(3)), 'randint': lambda: torch.randint(5, (3,)),
    'randint_like': lambda: torch.randint_like(torch.ones(3), 5), 'permutation': lambda: torch.randperm(4)}

@pytest.mark.parametrize('draw', DRAWING.values(), ids=DRAWING)
def test_whatever_is_drawn_apart_takes_no_number_of_a_run(draw):
    before = torch.get_rng_state()
    with OwnNumbers(): draw()
    assert torch.equal(torch.get_rng_state(), before)
    draw()
    assert not torch.equal(torch.get_rng_state(), before)      # as it would
    torch.set_rng_state(before)
