"What only a GPU can show; skipped where there is none"
import contextlib, itertools, time

import pytest
import torch
from torch import nn

from maou_nb.data.machine import free_on
from maou_nb.model import backbones, heads
from maou_nb.model.backbones import backbone_of
from maou_nb.stages.rows import prepare_stage1
from maou_nb.stages.stage import STAGES
from maou_nb.train.callbacks import Averaging, Saver
from maou_nb.train.loop import Means, make_accelerator
from maou_nb.train.options import LearnConfig
from maou_nb.train.runner import close_sources, stage_loop

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no CUDA GPU')

SIZES = {'resnet': dict(resnet_channels=32, resnet_blocks=2),
         'mlp-mixer': dict(mixer_embed_dim=32, mixer_num_layers=2, mixer_token_dim=32, mixer_channel_dim=64),
         'vit': dict(vit_embed_dim=64, vit_num_layers=2, vit_num_heads=2)}
architectures = pytest.mark.parametrize('architecture', SIZES)

@pytest.fixture(scope='module')
def rows(tmp_path_factory):
    "The rows of stage 1"
    folder = tmp_path_factory.mktemp('rows')
    prepare_stage1(folder)
    return str(folder)

@contextlib.contextmanager
def loop_of(rows, architecture, *callbacks, batch=128, dropout=0.1, **options):
    "A loop over `rows`, closed afterwards"
    name = architecture.split('-')[-1]
    own = {} if architecture == 'resnet' else {f'{name}_dropout': dropout}
    cfg = LearnConfig(stage='1', stage1_data_path=rows, stage1_batch_size=batch, model_architecture=architecture,
                      **SIZES[architecture], **own, **options)
    torch.manual_seed(0)
    loop, _ = stage_loop(cfg, STAGES['1'], backbone_of(cfg), make_accelerator(cfg.gpu, cfg.precision), callbacks,
                         say=lambda text: None)
    try: yield loop
    finally: close_sources(loop)

def train(loop, steps):
    "Train some batches of an epoch"
    loop.net.train()
    loop.batch, loop.means = 0, Means(loop.stage, loop.device)
    for batch in itertools.islice(loop.batches(loop.train), steps): loop.train_batch(batch)

@contextlib.contextmanager
def no_waiting():
    "An error where the host waits for the GPU"
    torch.cuda.set_sync_debug_mode('error')
    try: yield
    finally: torch.cuda.set_sync_debug_mode('default')

@pytest.mark.parametrize('cache', ['file', 'memory', 'device'])
@pytest.mark.parametrize('precision', ['bf16', 'fp32', 'tf32'])
@architectures
def test_no_step_waits(rows, architecture, precision, cache):
    "Between the counted looks nothing lets the host wait: batches are pinned, sums stay on the GPU, the optimizer is fused"
    with loop_of(rows, architecture, Averaging(0.9), precision=precision, input_cache_mode=cache) as loop:
        train(loop, 3)
        loop.net.train()
        loop.batch = 0
        batches = loop.batches(loop.train)
        next(batches)
        with no_waiting():
            for batch in itertools.islice(batches, 5): loop.train_batch(batch)
        assert loop.step == 8 and all(g['fused'] for g in loop.optimizer.param_groups)

@architectures
def test_padded_products_are_the_same(rows, architecture, monkeypatch):
    "Outputs and gradients with zeros beside sizes that are no multiple of 8"
    with loop_of(rows, architecture, precision='bf16', dropout=0.) as loop:
        batch, found = next(loop.batches(loop.train)), []
        for padded in (True, False):
            if not padded:
                for module in (backbones, heads): monkeypatch.setattr(module, 'on_tensor_cores', lambda x: False)
            outputs = loop.ask(loop.net, batch)
            loop.stage.loss(outputs, batch, loop.cfg)['loss'].backward()
            outputs = torch.cat([v.detach().float().flatten() for v in outputs.values()])
            found.append((outputs, torch.cat([p.grad.flatten() for p in loop.parameters if p.grad is not None])))
            loop.optimizer.zero_grad()
        for a, b in zip(*found): assert (a - b).norm() <= 0.02*b.norm()

@pytest.mark.parametrize('mode', ['default', 'reduce-overhead'])
@architectures
def test_compiled_nets_learn_the_same(rows, architecture, mode):
    "A compiled epoch, averaged weights and judging included, comes to what an eager one does"
    found = []
    for on in (False, True):
        with loop_of(rows, architecture, Averaging(0.9), precision='fp32', dropout=0., stage12_compilation=on,
                     learning_ratio=1e-3, compile_mode=mode if on else 'default') as loop:
            loop.one_epoch()
            loop.one_epoch()
            found.append([row[f'train_eval/{name}'] for row in loop.history for name in ('loss', 'accuracy')])
    assert found[0] == pytest.approx(found[1], abs=0.01)

def test_dropout_of_a_compiled_net():
    "Shares in forward and backward, the same places in both, other places each time"
    torch.compiler.reset()
    drop = backbones.Dropout(0.1).cuda()
    drop.compile()
    x = torch.ones(1000, 512, device='cuda', requires_grad=True)
    first, second = drop(x), drop(x)
    first.sum().backward()
    assert torch.equal(first.detach(), x.grad) and not torch.equal(first, second)
    for y in (first, second):
        assert y.unique().tolist() == pytest.approx([0., 1/0.9]) and float((y == 0).float().mean()) == pytest.approx(0.1, abs=0.003)
    torch.cuda.manual_seed(3); a = drop(x)
    torch.cuda.manual_seed(3); b = drop(x)
    assert torch.equal(a, b)

def test_fp32_is_fp32_and_tf32_is_not():
    x, conv = torch.randn(64, 64, 9, 9), nn.Conv2d(64, 64, 3, padding=1)
    wanted = [conv.double()(x.double()), (x.flatten(1)[:, :64].double() @ x.flatten(1)[:, 64:128].double())]
    conv.float()
    def error(precision):
        make_accelerator('cuda:0', precision)
        y = x.cuda()
        found = [conv.cuda()(y), y.flatten(1)[:, :64] @ y.flatten(1)[:, 64:128]]
        return [float((f.double().cpu() - w).norm() / w.norm()) for f, w in zip(found, wanted)]
    assert max(error('fp32')) < 2e-6 and min(error('tf32')) > 5e-5
    make_accelerator('cuda:0', 'fp32')

def test_a_step_that_overflows_is_not_counted(rows):
    "fp16: no step, no schedule, no average, and a finite norm"
    with loop_of(rows, 'resnet', Averaging(0.9), precision='fp16') as loop:
        before = {k: v.clone() for k, v in loop.averaged.state_dict().items()}
        loop.accelerator.scaler._init_scale = 2.**24
        train(loop, 1)
        assert loop.step == 0 and loop.scheduler.last_epoch == 0 and loop.batch == 1
        assert all(torch.equal(before[k], v) for k, v in loop.averaged.state_dict().items())
        for batch in itertools.islice(loop.batches(loop.train, start=1), 8): loop.train_batch(batch)
        assert 0 < loop.step < 9 and torch.isfinite(loop.means.norms)

@pytest.mark.parametrize('room', [True, False])
def test_a_checkpoint_is_what_it_was(rows, tmp_path, monkeypatch, room):
    "Copied beside the steps that follow, or before them where the card has no room: never with what they change"
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda device=None: ((1 << 40)*room, 1 << 40))
    with loop_of(rows, 'resnet', Averaging(0.9)) as loop:
        train(loop, 3)
        saver = Saver(tmp_path)
        saver.save(loop)           # torch takes the memory for a copy
        assert saver.waited() is None
        wanted = {k: v.detach().cpu().clone() for k, v in loop.state()[0].items()}
        torch.cuda._sleep(1_000_000_000)       # the GPU is half a second behind
        began = time.perf_counter()
        saver.save(loop)
        assert (time.perf_counter() - began < 0.2) is room
        loop.net.train()
        for batch in itertools.islice(loop.batches(loop.train), 5): loop.train_batch(batch)
        assert saver.waited() is None
        tensors, about = saver.checkpoints.load('last')
        assert about['step'] == 3 and tensors.keys() == wanted.keys() and all(torch.equal(tensors[k], v) for k, v in wanted.items())

def test_what_torch_holds_for_later_is_free():
    torch.cuda.empty_cache()
    before = free_on('cuda:0')
    torch.empty(1 << 28, dtype=torch.uint8, device='cuda:0')       # given back at once, and held by torch
    assert torch.cuda.mem_get_info(0)[0] < before - (1 << 27) and free_on(torch.device('cuda:0')) > before - (1 << 26)

def test_what_is_chosen_by_itself(rows):
    half = 'bf16' if torch.cuda.get_device_capability() >= (8, 0) else 'no'
    with loop_of(rows, 'resnet') as loop:
        assert loop.accelerator.mixed_precision == half
        assert all(t.is_pinned() for t in next(iter(loop._loader(loop.train, 0, 0, True))).tensors())
