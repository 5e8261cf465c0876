"The gradient noise scale against references written out, and what follows it: batches a step, steered and gone on with exactly"
import contextlib
import json
import math
import signal
from unittest.mock import patch

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from maou_nb.front.options import make_config, try_config
from maou_nb.front.preflight import preflight
from maou_nb.front.study import _taken
from maou_nb.model.backbones import backbone_of, make_backbone
from maou_nb.model.heads import Net
from maou_nb.show.plots import stage_chart
from maou_nb.stages.stage import STAGES
from maou_nb.train.checkpoints import CheckpointError, Checkpoints
from maou_nb.train.loop import TIMINGS, Callback, Loop, Settings, make_accelerator
from maou_nb.train.noise import NoiseScale, noise_callbacks, noise_and_slope
from maou_nb.train.optim import lr_factor
from maou_nb.train.options import LearnConfig, vain_remark
from maou_nb.train.runner import close_sources, go_on, loop_remarks, stage_loop
from maou_nb.train.trials import batch_trial
from options import TINY, few, moved, run, weights      # noqa: F401, fixtures
from pair import Pair, done
from samples import thinned

@pytest.fixture(scope='module')
def loop_of(few):
    "A function that makes the loop of a stage of a tiny net"
    made = []
    def make(stage=1, architecture='vit', callbacks=(), **options):
        cfg = make_config(stage=stage, model_architecture=architecture, model_size='tiny', gpu='cpu', stage1_data_path=few/'stage1',
                          stage3_data_path=few/'twelve'/'stage3', **{**TINY[architecture], **options})
        torch.manual_seed(0)
        accelerator = make_accelerator('cpu', cfg.precision)
        loop, _ = stage_loop(cfg, STAGES[str(stage)], backbone_of(cfg), accelerator, callbacks, say=lambda text: None)
        made.append(loop)
        return loop
    yield make
    for loop in made: close_sources(loop)

@pytest.fixture(scope='module')
def by_all_rows(loop_of):
    "What all rows say at the first weights, whatever the batches"
    return by_rows(loop_of(stage1_batch_size=64))

still = dict(optimizer='sgd', momentum=0., learning_ratio=1e-12, gradient_clip_norm=1e-3)      # measured before it is clipped

def gradient(loop, batch, rows=slice(None)):
    "The gradient of some rows of a batch, in 64 bits"
    part = batch.rows(rows)
    outputs = loop.net(part.board, part.hands)
    grads = torch.autograd.grad(loop.stage.loss(outputs, part, loop.cfg)['loss'], loop.parameters)
    return torch.cat([g.flatten() for g in grads]).double()

def by_rows(loop):
    "(tr Σ, |G|²) of all rows of a loop, row by row, as an unbiased estimate of no parts has them"
    each = torch.cat([torch.stack([gradient(loop, b, slice(i, i + 1)) for i in range(len(b))])
                      for b in loop.batches(loop.train, training=False)])
    mean, n = each.mean(0), len(each)
    noise = float((each - mean).square().sum() / (n - 1))
    return noise, float(mean.square().sum()) - noise/n

def measured(loop):
    "Noise and slope of each step that was measured"
    found, scale = [], next(cb for cb in loop.callbacks if isinstance(cb, NoiseScale))
    real = NoiseScale.after_step
    def spy(self, loop):
        if self is scale and self.new is not None: found.append(self.new.double())
        real(self, loop)
    with patch.object(NoiseScale, 'after_step', spy): loop.fit()
    return torch.stack(found)

@pytest.mark.parametrize('more, epochs', thinned([
    (dict(stage1_batch_size=64), 6),                                       # halves of a batch
    (dict(stage1_batch_size=16, gradient_accumulation_steps=4), 6)], 2))   # the batches of a step
def test_the_estimate_is_that_of_all_rows(loop_of, by_all_rows, more, epochs):
    "Weights stay; the mean over epochs is the noise of single rows' gradients, and their slope"
    loop = loop_of(noise_scale=True, adaptive_batch_measurement_interval=1, stage1_threshold=1., stage1_max_epochs=epochs, **still, **more)
    noise, slope = by_all_rows
    found = measured(loop)
    assert len(found) == epochs*(17 + 1)
    found = found.view(epochs, -1, 2)[:, :-1].flatten(0, 1)                # but the last steps, of 17 rows
    error = found.std(0) / len(found)**0.5
    for mean, sure, true in zip(found.mean(0), error, (noise, slope)): assert abs(mean - true) < 3*sure < 0.4*true, (mean, sure, true)

def test_a_step_by_hand(loop_of):
    "Parts of unlike size, each step of an epoch, in 64 bits: what is measured is what the formula says of them"
    by_hand = []
    class Keep(Callback):
        parts = ()
        def before_backward(self, loop):
            if loop.batch == loop.first: self.parts = []
            batch = loop.given[1]
            cut = [slice(0, None, 2), slice(1, None, 2)] if loop.count == 1 else [slice(None)]
            self.parts += [(len(batch.rows(s)), gradient(loop, batch, s)) for s in cut]
        def after_step(self, loop):
            if not all(n for n, _ in self.parts): return       # a step of one row has no two parts
            rows = sum(n for n, _ in self.parts)
            square = lambda g: float(g.square().sum())
            small = sum(square(g) for _, g in self.parts) / len(self.parts)
            whole = square(sum(n*g for n, g in self.parts) / rows)
            by_hand.append(noise_and_slope(small, whole, sum(1/n for n, _ in self.parts) / len(self.parts), rows))
    torch.set_default_dtype(torch.float64)
    try:
        for size, together in ((151, 1), (151, 3), (184, 2)):      # 1105 rows: the last parts are 48, 48 and 1
            by_hand.clear()
            loop = loop_of(noise_scale=True, adaptive_batch_measurement_interval=1, stage1_batch_size=size, stage1_threshold=1.,
                           stage1_max_epochs=1, gradient_accumulation_steps=together, callbacks=[Keep()], **still)
            found = measured(loop)
            assert len(found) == len(by_hand) == {(151, 1): 8, (151, 3): 3, (184, 2): 3}[size, together]
            assert torch.allclose(found, torch.tensor(by_hand), rtol=1e-4, atol=1e-7*float(found.abs().max()))
    finally: torch.set_default_dtype(torch.float32)

def test_the_averages(loop_of):
    "Noise and slope have a moving average each, both from 0; the scale is their quotient"
    loop = loop_of(noise_scale=True, adaptive_batch_measurement_interval=3, adaptive_batch_smoothing=0.25, stage1_batch_size=64,
                   stage1_threshold=1., stage1_max_epochs=2, learning_ratio=0.01)
    found, mean = measured(loop), torch.zeros(2, dtype=torch.float64)
    assert len(found) == -(-2*18 // 3)
    for new in found: mean = 0.75*mean + 0.25*new
    scale = next(cb for cb in loop.callbacks if isinstance(cb, NoiseScale))
    assert torch.allclose(scale.means.double(), mean, rtol=1e-5) and scale.scale() == pytest.approx(float(mean[0]/mean[1]), rel=1e-5)
    assert loop.history[-1]['noise_scale'] == pytest.approx(scale.scale())

@pytest.mark.parametrize('architecture, more', thinned([
    ('resnet', {}), ('resnet', dict(gradient_checkpointing=True)), ('vit', dict(vit_dropout=0.3, ema_decay=0.9)),
    ('mlp-mixer', dict(mixer_dropout=0.3, gradient_accumulation_steps=3)), ('resnet', dict(precision='bf16')),
    ('vit', dict(vit_dropout=0.3, gradient_checkpointing=True)), ('resnet', dict(auxiliary='2', soft_policy_ratio=1.))], 4))
def test_to_be_measured_changes_nothing(run, architecture, more):
    options = dict(model_architecture=architecture, stage3_batch_size=37, epoch=2, **TINY[architecture]) | more
    plain, watched = run(**options), run(**options, noise_scale=True)
    assert not moved(plain, watched)
    own = {'noise_scale', 'effective_batch', *TIMINGS}
    assert [{k: v for k, v in h.items() if k not in own} for h in watched.history] == \
        [{k: v for k, v in h.items() if k not in TIMINGS} for h in plain.history]
    assert all(h['noise_scale'] > 0 for h in watched.history) and 'noise_scale' not in plain.last

def test_a_compiled_net_is_measured(loop_of):
    "A second pass through a graph that torch compiled"
    options = dict(noise_scale=True, adaptive_batch_measurement_interval=2, stage1_batch_size=300, stage1_threshold=1., stage1_max_epochs=1)
    eager, compiled = loop_of(**options), loop_of(**options, stage12_compilation=True)
    a, b = measured(eager), measured(compiled)
    assert torch.allclose(a, b, rtol=0.01)
    resnet = dict(architecture='resnet', stage1_batch_size=300, stage1_threshold=1., stage1_max_epochs=1, stage12_compilation=True)
    ours = torch._functorch.config.donated_buffer, torch.compiler.config.cache_key_tag
    plain, watched = loop_of(**resnet), loop_of(**resnet, noise_scale=True)
    for loop in (plain, watched): loop.fit()             # one that measures takes no graph of one that doesn't: of the kernel,
    # or of the cache on the disk
    assert all(torch.equal(a, b) for a, b in zip(plain.net.parameters(), watched.net.parameters()))
    assert (torch._functorch.config.donated_buffer, torch.compiler.config.cache_key_tag) == ours == (True, '')

@contextlib.contextmanager
def scaled():
    "Loops made inside have an accelerator that scales losses as in fp16, and computes in 32 bits all the same"
    real = make_accelerator
    def make(device, precision):
        a = real('cpu', 'fp32')
        a.scaler = torch.amp.GradScaler('cpu', init_scale=2.**9, growth_interval=1)
        return a
    with patch(f'{__name__}.make_accelerator', make): yield

def as_half(loop):
    "`loop`, its accelerator as in fp16"
    a = loop.accelerator
    a.native_amp, a.state._mixed_precision, a.autocast = True, 'fp16', contextlib.nullcontext
    return loop

def test_weights_that_a_net_leaves_out_have_no_noise(loop_of, monkeypatch):
    "Whatever measures gradients takes them for 0"
    loop = loop_of(1, noise_scale=True, adaptive_batch_measurement_interval=1, stage1_batch_size=200, stage1_max_epochs=1, **still)
    spare = torch.nn.Parameter(torch.ones(3))
    loop.parameters.append(spare)
    assert loop.try_batches(4) is not None
    assert not loop.gradients()[-1].any() and measured(loop).isfinite().all()

@pytest.mark.parametrize('more, graphs', [({}, True), (dict(gradient_accumulation_steps=2), False), (dict(noise_scale=True), False)])
def test_a_step_that_goes_backward_twice_takes_no_cuda_graph(loop_of, more, graphs):
    with patch.object(torch.nn.Module, 'compile') as compiled:
        loop = loop_of(1, stage12_compilation=True, compile_mode='reduce-overhead', **more)
    assert compiled.call_args.kwargs['options']['triton.cudagraphs'] is graphs
    assert any('no CUDA graphs' in said for said in loop_remarks(loop)) is not graphs

def test_gradients_are_divided_by_the_scale_once(loop_of):
    "Also where stages before had an optimizer of the same backbone"
    def norm(loop):
        batch = next(iter(loop.batches(loop.train)))
        loop.accelerator.backward(loop.stage.loss(loop.ask(loop.net, batch), batch, loop.cfg)['loss'])
        return float(loop.clip()), [p.grad.clone() for p in loop.parameters if p.grad is not None]
    options = dict(stage3_batch_size=64, vit_dropout=0.)
    plain = loop_of(3, **options)
    with scaled(): earlier = loop_of(1, **options)
    backbone = earlier.accelerator.unwrap_model(earlier.net).backbone
    loop, _ = stage_loop(earlier.cfg.model_copy(update={'stage': '3'}), STAGES['3'], backbone, earlier.accelerator, say=lambda text: None)
    plain.net.load_state_dict(loop.net.state_dict())
    try: (half, divided), (whole, grads) = norm(as_half(loop)), norm(plain)
    finally: close_sources(loop)
    assert half == pytest.approx(whole, rel=1e-4)
    for a, b in zip(divided, grads, strict=True): assert torch.allclose(a, b, rtol=1e-3, atol=1e-6)

def test_scaled_losses_and_clipped_gradients(loop_of):
    "In fp16 losses are scaled; what is measured is not"
    options = dict(noise_scale=True, adaptive_batch_measurement_interval=1, stage1_batch_size=300, stage1_threshold=1.,
                   stage1_max_epochs=1, **still)
    for more in ({}, dict(gradient_accumulation_steps=2)):
        plain = measured(loop_of(**options, **more))
        with scaled(): loop = as_half(loop_of(**options, **more))
        half = measured(loop)
        assert loop.accelerator.scaler.get_scale() > 2.**9 and torch.allclose(plain, half, rtol=1e-3), more

# --- steering
class Made(type(STAGES['1'])):
    "A made problem: what all rows agree on, and what each pair of rows has with opposite signs, `loud` times as strong"
    names = {**type(STAGES['1']).names, 'adaptive': 'adaptive_batch'}
    loud = 0.
    def loss(self, outputs, batch, cfg):
        out = outputs['reachable'].mean(1)
        signs = torch.randint(0, 2, (len(out),)).float()*2 - 1
        return {'loss': (out*(1 + self.loud*signs)).mean()}

def made_loop(*callbacks, least=2, most=8, every=10, size=16, steps=None, epochs=1, loud=0., schedule='none', **options):
    stage = Made()
    stage.key, stage.loud = '1', loud
    cfg = LearnConfig(stage='1', adaptive_batch=True, adaptive_batch_min_steps=least, adaptive_batch_max_steps=most,
                      adaptive_batch_interval=every, adaptive_batch_measurement_interval=1,
                      **{**still, 'gradient_clip_norm': None, **options})
    from maou_nb.data.sources import FileSource
    torch.manual_seed(0)
    net = Net(make_backbone('vit', 'tiny', **{k.removeprefix('vit_'): v for k, v in TINY['vit'].items()}), stage.heads(cfg, 8))
    return Loop(net=net, stage=stage, cfg=cfg, train=FileSource(made_loop.folder, 1), accelerator=make_accelerator('cpu', 'fp32'),
                callbacks=[*noise_callbacks(cfg, stage), *callbacks],
                settings=Settings(epochs=epochs, steps=steps, batch_size=size, lr=cfg.learning_ratio, schedule=schedule))

@pytest.fixture(autouse=True)
def its_rows(few): made_loop.folder = few/'stage1'

class Noting(Callback):
    "Which batches each step had, and its learning rate"
    def __init__(self): self.steps, self.rates = [], []
    def before_step(self, loop):
        self.steps.append((loop.epoch, loop.first, loop.count))
        self.rates.append(loop.optimizer.param_groups[0]['lr'])

def test_it_steers_up_and_down():
    "Rows that agree: the fewest. Rows that contradict each other: the most, and back"
    class Louder(Callback):
        def after_step(self, loop): loop.stage.loud = 30. if 20 <= loop.step < 60 else 0.
    noting = Noting()
    loop = made_loop(noting, Louder(), epochs=7, every=5, adaptive_batch_smoothing=0.2)
    loop.fit()
    counts = [n for _, first, n in noting.steps if first + n < loop.batches_per_epoch]       # but those that end an epoch
    first, loud, late = counts[:20], counts[30:50], counts[-20:]
    assert {*first} == {2} and loud.count(8) >= 10 and min(loud) > 3 and {*late} == {2}, counts
    assert {*counts} <= {*range(2, 9)}

@pytest.mark.slow
def test_the_number_is_what_the_scale_asks_for():
    "Of noise known by its formula, to the nearest number"
    class Keep(Callback):
        def after_step(self, loop): seen.append((loop.callbacks[0].scale(), loop.batches_a_step, loop.step))
    seen = []
    loop = made_loop(Keep(), epochs=30, loud=6., every=4, most=16, adaptive_batch_smoothing=0.02)
    loop.fit()
    for scale, n, step in seen:
        if step % 4 == 0: assert n == max(2, min(16, round(scale/16)) if scale < 16*16 else 16)
    # all rows nearly alike: |G|² is that of one row, and signs of weight 6 add 36 of it, so the scale is about 36
    assert 25 < seen[-1][0] < 55 and seen[-1][1] in (2, 3)

def test_an_epoch_has_its_rows_in_the_order_of_old_however_steps_end():
    "Each batch once an epoch and in order; no step reaches into the next epoch"
    def seen_by(**how):
        seen, real, noting = [], Loop.train_batch, Noting()
        def spy(self, batch):
            seen.append((batch.board.sum().item(), len(batch)))
            return real(self, batch)
        with patch.object(Loop, 'train_batch', spy): made_loop(noting, epochs=2, **how).fit()
        return seen, noting.steps
    (loud, a), (quiet, b) = seen_by(loud=30., every=3), seen_by()
    assert loud == quiet and len(loud) == 2*70 and len(a) < len(b)
    for steps in (a, b):
        for epoch in range(2):
            at = 0
            for _, first, n in (s for s in steps if s[0] == epoch):
                assert first == at
                at += n
            assert at == 70

def test_the_schedule_runs_over_batches():
    "Half over after half of the rows, and at its end after the last, whatever steps were taken"
    noting = Noting()
    loop = made_loop(noting, epochs=2, loud=30., every=7, schedule='warmup_cosine_decay', warmup_steps=10, learning_ratio=1e-9)
    loop.fit()
    assert loop.batches_a_step == 8 and loop.step == len(noting.steps) < loop.total_steps == 2*35
    by_hand = [1e-9*lr_factor(epoch*70 + first, 2*70, 20, 'warmup_cosine_decay') for epoch, first, _ in noting.steps]
    assert noting.rates == pytest.approx(by_hand, rel=1e-9)
    assert loop.scheduler.get_last_lr()[0] == pytest.approx(0, abs=1e-15)
    assert [h['lr'] for h in loop.history] == pytest.approx([1e-9*lr_factor(e*70, 140, 20, 'warmup_cosine_decay') for e in range(2)])

def test_a_budget_of_steps_is_kept():
    "`max_steps` counts optimizer steps, and the schedule runs over them"
    for loud, epochs in ((0., {2}), (30., {4, 5})):
        noting = Noting()
        loop = made_loop(noting, steps=45, loud=loud, every=2, schedule='cosine_annealing_lr', learning_ratio=1e-9)
        loop.fit()
        assert loop.step == len(noting.steps) == 45 and loop.finished and len(loop.history) in epochs
        assert noting.rates == pytest.approx([1e-9*lr_factor(n, 45, 0, 'cosine_annealing_lr') for n in range(45)], rel=1e-9)
        assert loop.history[-1]['step'] == 45

# --- going on
def steered(few, folder, **more):
    return dict(stage=3, gpu='cpu', model_architecture='vit', model_size='tiny', **{**TINY['vit'], 'vit_dropout': 0.2},
                stage3_data_path=few/'twelve'/'stage3', test_ratio=0.3, stage3_batch_size=8, learning_ratio=0.003, epoch=2,
                adaptive_batch=True, adaptive_batch_interval=3, adaptive_batch_measurement_interval=2, ema_decay=0.9,
                checkpoint_every=5, run_dir=folder, resume_from='latest') | more

def timeless(answer): return [{k: v for k, v in h.items() if k not in TIMINGS} for h in answer['result']['stages_completed'][0]['history']]

def saved(folder): return Checkpoints(folder/'checkpoints'/'stage3').load('last')

@pytest.mark.slow
def test_a_run_that_was_killed_ends_as_if_it_had_not_been(few, tmp_path):
    "By SIGKILL between two checkpoints, after the number of batches has changed"
    whole = done('learn', dict(options=steered(few, tmp_path/'whole')))
    assert 'result' in whole, whole
    numbers = [json.loads(l)['effective_batch'] for l in (tmp_path/'whole'/'steps.jsonl').read_text().splitlines()]
    one = Pair(tmp_path, n=1)
    try: assert one('learn', may_go=True, options=steered(few, tmp_path/'cut'), act=dict(at=23, how='killed'))[0].get('gone')
    finally: one.close()
    assert one.all[0].returncode == -signal.SIGKILL
    about = Checkpoints(tmp_path/'cut'/'checkpoints'/'stage3').load_newest()[1]
    assert about['step'] == 20 and about['batch'] and about['batches_a_step'] > 2, about
    again = done('learn', dict(options=steered(few, tmp_path/'cut')))
    assert timeless(again) == timeless(whole) and max(numbers) > 16
    (a, told), (b, said) = saved(tmp_path/'cut'), saved(tmp_path/'whole')
    assert told['batches_a_step'] == said['batches_a_step'] and told['step'] == said['step']
    assert a.keys() == b.keys() and 'callback.NoiseScale.means' in a
    for k in a: assert torch.equal(a[k], b[k]), k

def test_a_checkpoint_that_cannot_be(few, tmp_path, loop_of):
    done('learn', dict(options=steered(few, tmp_path/'r', epoch=1)))
    tensors, about = saved(tmp_path/'r')
    cfg = make_config(**steered(few, tmp_path/'r'))
    loop, _ = stage_loop(cfg, STAGES['3'], backbone_of(cfg), make_accelerator('cpu', 'fp32'), say=lambda text: None)
    def odd(more={}, **facts):
        with pytest.raises(CheckpointError) as e: go_on(loop, {**tensors, **more}, {**about, **facts}, print, 'r')
        return str(e.value)
    try:
        for n in (1, 9, 2.5, 'x', None): assert f'its steps have {str(n)!r} batches' in odd(batches_a_step=n)
        assert f'its step is {10**6} where' in odd(step=10**6) and 'its step is 3 where' in odd(step=3)
        for means, said in ((torch.zeros(3), 'of shape (3,)'), (torch.tensor([1., math.nan]), 'its noise scale is no number')):
            assert said in odd({'callback.NoiseScale.means': means})
        go_on(loop, tensors, about, lambda text: None)
        assert loop.batches_a_step == about['batches_a_step']
    finally: close_sources(loop)

# --- what is said
def test_odd_values_are_refused():
    base = dict(stage=3, gpu='cpu')
    said = lambda **o: [p for p in try_config({**base, **o})[1] if p.startswith(next(iter(o)))]
    for option, value, text in (
            ('adaptive_batch_min_steps', 1, 'input should be greater than or equal to 2'), ('adaptive_batch_max_steps', 1, 'or equal to 2'),
            ('adaptive_batch_min_steps', 2.5, 'valid integer'), ('adaptive_batch_interval', 0, 'or equal to 1'),
            ('adaptive_batch_measurement_interval', 0, 'or equal to 1'), ('adaptive_batch_smoothing', 0, 'greater than 0'),
            ('adaptive_batch_smoothing', 1.5, 'less than or equal to 1'), ('adaptive_batch_smoothing', math.nan, 'number'),
            ('adaptive_batch_max_steps', None, 'integer'), ('adaptive_batch', 'maybe', 'boolean'), ('noise_scale', 3, 'boolean')):
        found = said(**{option: value})
        assert len(found) == 1 and text in found[0] and '\n' not in found[0], (option, value, found)
    assert said(adaptive_batch_min_steps=9, adaptive_batch=True) == [
        'adaptive_batch_min_steps=9 with adaptive_batch_max_steps=8: the fewest batches a step are more than the most; '
        'at most 8 would be right']

def test_what_acts_on_nothing_is_said():
    vain = lambda **o: vain_remark(LearnConfig(**o)).removeprefix('set, and without effect here: ')
    assert vain(adaptive_batch_max_steps=4) == 'adaptive_batch_max_steps (only adaptive_batch=true uses it)'
    assert vain(adaptive_batch=True, gradient_accumulation_steps=3) == \
        'gradient_accumulation_steps (adaptive_batch says how many batches a step has)'
    both = dict(adaptive_batch=True, stage='all')
    assert vain(gradient_accumulation_steps=3, **both) == vain(noise_scale=True, **both) == ''
    assert vain(adaptive_batch=True, noise_scale=True) == 'noise_scale (adaptive_batch measures it anyway)'
    assert vain(adaptive_batch=True, stage='1') == 'adaptive_batch (stage 3 is not run)'
    unmeasured = 'no noise scale is measured; noise_scale or adaptive_batch would'
    assert vain(adaptive_batch_smoothing=0.5) == f'adaptive_batch_smoothing ({unmeasured})'
    assert vain(adaptive_batch_smoothing=0.5, noise_scale=True, stage='1') == ''

def test_the_run_says_what_it_does(run, capsys):
    run.afresh(adaptive_batch=True, adaptive_batch_interval=3, adaptive_batch_measurement_interval=1000, stage3_batch_size=8)
    out = capsys.readouterr().out
    assert '; batch 8 × 2 to 8, ' in out and 'asked every 3 steps; the learning rate stays, and its schedule runs over batches' in out
    assert 'adaptive_batch_measurement_interval=1000: the stage ends after' in out
    run.afresh(adaptive_batch=True, max_steps=5, stage3_batch_size=8)
    out = capsys.readouterr().out
    assert 'schedule runs over steps' in out and 'max_steps=5: about 0.' in out and ' to 0.' in out

def test_an_inherited_batch_leaves_an_epoch_its_steps(few, loop_of):
    loop = loop_of(3, adaptive_batch=True, adaptive_batch_max_steps=4)
    assert math.ceil(loop.batches_per_epoch / 4) >= 16 > math.ceil(loop.train.total_rows / (loop.settings.batch_size + 1) / 4) - 2

def test_where_it_shows(run):
    "In the history, in single steps, in TensorBoard, and as a panel"
    r = run(noise_scale=True, stage3_batch_size=64, adaptive_batch_measurement_interval=1, epoch=2)
    log = EventAccumulator(str(r.dir/'logs'/'stage3'), size_guidance={'scalars': 0}).Reload()
    scalars = [e.value for e in log.Scalars('stage3/noise_scale')]
    assert scalars == pytest.approx([h['noise_scale'] for h in r.history]) and 'stage3/steps/noise_scale' in log.Tags()['scalars']
    steps = [json.loads(l) for l in (r.dir/'steps.jsonl').read_text().splitlines()]
    assert all(row['effective_batch'] == 64 for row in steps) and steps
    panel = stage_chart(r.history, steps=steps).panels[2][0]
    assert 'noise scale' in panel.title and panel.lines[0].y == [row['noise_scale'] for row in steps if 'noise_scale' in row]
    assert [l.name for l in panel.lines] == ['noise scale', 'rows a step'] and len(stage_chart(run().history).panels) == 2

# --- before a run
def test_preflight_tells_the_critical_batch(few, loop_of, by_all_rows, tmp_path):
    "A range that holds the noise of all rows, or no figure; a run that goes on knows it"
    options = dict(stage=1, stage1_data_path=few/'stage1', model_architecture='vit', model_size='tiny', **TINY['vit'], gpu='cpu',
                   stage1_batch_size=64)
    noise, slope = by_all_rows
    loop = loop_of(stage1_batch_size=64)
    before = [p.clone() for p in loop.parameters]
    tried = loop.try_batches(16)
    assert all(torch.equal(a, b) for a, b in zip(before, loop.parameters)) and loop.step == loop.batch == 0
    assert tried.low < noise/slope < tried.high < 10*tried.low
    line = lambda **o: next(f for _, what, f, _ in preflight(**{**options, 'run_dir': tmp_path/'r', **o}).lines if what == 'critical batch')
    said = line()
    assert 'by the gradients of 16 batches of 64 at the first weights' in said and said.startswith(f'about {tried!r}'[6:20])
    assert 'fewer than 4 batches of 400' in line(stage1_batch_size=400)
    done('learn', dict(options={**options, 'run_dir': tmp_path/'r', 'noise_scale': True, 'stage1_max_epochs': 2, 'stage1_threshold': 0.}))
    on = line(resume_from='latest', stage1_max_epochs=3, stage1_threshold=1., noise_scale=True)
    assert 'as the run measured it in epoch 1' in on

def test_a_range_that_holds_what_is_true():
    "Of 300 made nets: where a figure is given, its range holds the truth in nine of ten at least; noise gives none"
    torch.manual_seed(0)
    scatter = (1/torch.arange(1., 301.)).double()
    for true, claims in ((30., 0.99), (300., 0.99), (1e6, 0.)):
        given = right = 0
        for _ in range(300):
            slope = torch.randn(300, dtype=torch.float64)
            each = slope/slope.norm() + torch.randn(16, 300, dtype=torch.float64)*(scatter*true/scatter.sum()/100).sqrt()
            tried = batch_trial(each @ each.T, 100)
            if not math.isnan(tried.scale): given, right = given + 1, right + (tried.low < true < tried.high)
        assert given >= 300*claims and right >= 0.9*given - (3 if not claims else 0), (true, given, right)
        assert claims or given <= 15

def test_a_study_counts_the_rows_that_steered_steps_had(run):
    "Steps of so many rows each would say another number"
    r = run(adaptive_batch=True, epoch=2, stage3_batch_size=37, adaptive_batch_interval=2)
    [took] = _taken(r.result)
    assert took['positions'] == 2*r.stage.rows['train'] != took['steps']*37 and took['steps'] == r.last['step']
