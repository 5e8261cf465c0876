"The three architectures at small sizes: shapes, gradients, freezing, checkpointing, costs, and what is refused"
import copy, sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from maou_nb.data.board import HAND_MAX
from maou_nb.model import backbones, heads
from maou_nb.model.backbones import (BACKBONES, SIZES, Backbone, RelativeBias, SquareAttention, SquareEmbedding,
                                     flops_per_position, make_backbone,
                                     parameter_count, register_backbone, size_table, summary)
from maou_nb.model.heads import MoveHead, Net, make_heads
from maou_nb.model.losses import asymmetric_loss, bce_loss, gce_policy_loss, policy_loss, value_loss
from samples import thinned

USUAL = 'reachable', 'legal_moves', 'policy', 'value'
ARCHITECTURES = {
    'resnet': dict(channels=16, blocks=3),
    'mlp-mixer': dict(embed_dim=16, num_layers=3, token_dim=16, channel_dim=32, dropout=0.1),
    'vit': dict(embed_dim=16, num_layers=3, num_heads=2, mlp_ratio=2.0, dropout=0.1),
}
VARIANTS = {name: (name, {}) for name in ARCHITECTURES} | {
    'resnet-se': ('resnet', dict(squeeze_excitation=True)), 'resnet-nested': ('resnet', dict(block='nested')),
    'resnet-nested-se': ('resnet', dict(block='nested', squeeze_excitation=True)),
    'vit-relative': ('vit', dict(position='relative')), 'vit-smolgen': ('vit', dict(position='smolgen'))}
SHAPES = dict(reachable=(8, 81), legal_moves=(8, 1496), policy=(8, 1496), value=(8,))
architectures = pytest.mark.parametrize('name', VARIANTS)   # and their variants
def some(*names): return pytest.mark.parametrize('name', [n if n in names else pytest.param(n, marks=pytest.mark.slow) for n in VARIANTS])


def make_net(name, groups=None, **overrides):
    torch.manual_seed(0)
    name, keywords = VARIANTS[name]
    backbone = make_backbone(name, 'tiny', **{**ARCHITECTURES[name], **keywords, **overrides})
    return Net(backbone, make_heads(backbone.channels, USUAL), groups)


def make_batch(n=8, seed=1):
    g = torch.Generator().manual_seed(seed)
    board = torch.randint(0, 29, (n, 81), generator=g, dtype=torch.uint8)
    hands = (torch.rand(n, 14, generator=g) * (torch.tensor(HAND_MAX) + 1)).to(torch.uint8)
    legal = torch.rand(n, 1496, generator=g) < 0.05
    policy = torch.where(legal, torch.rand(n, 1496, generator=g), 0.)
    return dict(board=board, hands=hands, legal=legal, policy=policy / policy.sum(1, keepdim=True),
                reachable=torch.rand(n, 81, generator=g) < 0.1, value=torch.rand(n, generator=g))


def total_loss(outputs, batch):
    return (bce_loss(outputs['reachable'], batch['reachable']) + asymmetric_loss(outputs['legal_moves'], batch['legal'], 0, 2, 0.05)
            + policy_loss(outputs['policy'], batch['policy'], batch['legal']) + value_loss(outputs['value'], batch['value']))


def step(net, batch, optimizer=None):
    optimizer = optimizer or torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.1)
    optimizer.zero_grad()
    loss = total_loss(net.train()(batch['board'], batch['hands']), batch)
    loss.backward()
    optimizer.step()
    return loss.item()


@architectures
def test_shapes(name):
    net, batch = make_net(name), make_batch()
    features = net.backbone.forward_features(batch['board'], batch['hands'])
    assert features.shape == (8, 16, 9, 9) and features.is_floating_point()
    assert {k: tuple(v.shape) for k, v in net(batch['board'], batch['hands']).items()} == SHAPES


def textbook(net):
    "A copy of `net` of torch's own layers, attention by one product for queries, keys and values"
    net = copy.deepcopy(net)
    own = {backbones.AlignedLinear: nn.Linear, heads.EachSquare: nn.Conv2d,
           backbones.LayerNorm: nn.LayerNorm, backbones.Dropout: nn.Dropout}
    def attention(self, x):
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        bias = None if self.bias is None else self.bias(x)
        weights = (q @ k.mT / q.shape[-1]**0.5 + (0 if bias is None else bias)).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))
    for m in net.modules():
        if type(m) in own: m.__class__ = own[type(m)]
        if type(m) is SquareAttention: m.forward = attention.__get__(m)
    assert not any(type(m).forward in {cls.forward for cls in own} for m in net.modules())
    return net


@architectures
@pytest.mark.parametrize('padded', [False, True])
def test_layers_are_those_of_the_textbook(name, padded, monkeypatch):
    "Whatever suits a GPU, padding too, changes neither outputs nor gradients, nor what weights are called"
    for module in (backbones, heads): monkeypatch.setattr(module, 'on_tensor_cores', lambda x: padded)
    net = make_net(name, **({} if 'resnet' in name else dict(dropout=0.))).double()
    for m in net.modules():     # else squares with equal pieces are equal, and the largest of them is either
        if type(m) is RelativeBias: nn.init.normal_(m.table)
    plain, batch = textbook(net), make_batch()
    assert [*plain.state_dict()] == [*net.state_dict()]
    found = [n(batch['board'], batch['hands']) for n in (net, plain)]
    for outputs in found: total_loss(outputs, batch).backward()
    for k, v in found[1].items(): torch.testing.assert_close(found[0][k], v, rtol=1e-9, atol=1e-11)
    for a, b in zip(net.parameters(), plain.parameters()): torch.testing.assert_close(a.grad, b.grad, rtol=1e-8, atol=1e-11)


@architectures
def test_bf16_is_handed_on_and_fp16_is_not(name):
    "Between blocks too; what comes of it is near to what 32 bits give"
    net, batch = make_net(name).eval(), make_batch()
    def between(dtype):
        seen = []
        with torch.autocast('cpu', dtype or torch.bfloat16, enabled=dtype is not None):
            hooks = [b.register_forward_hook(lambda m, i, o: seen.append(o.dtype)) for b in net.backbone.blocks]
            outputs = net(batch['board'], batch['hands'])
        for hook in hooks: hook.remove()
        return set(seen), outputs
    (full, wanted), (half, got), (small, _) = (between(d) for d in (None, torch.bfloat16, torch.float16))
    assert (full, half) == ({torch.float32}, {torch.bfloat16}) and ('resnet' in name or small == {torch.float32})
    for k, v in wanted.items(): assert (got[k].float() - v).norm() < 0.05*v.norm() + 0.01


def test_dropout_of_a_compiled_net():
    "A share is dropped, the same in forward and backward, elsewhere each time, and nowhere in evaluation"
    torch.compiler.reset()
    drop = backbones.Dropout(0.1)
    drop.compile(backend='eager')
    x = torch.ones(200, 128, requires_grad=True)
    first, second = drop(x), drop(x)
    first.sum().backward()
    assert torch.equal(first.detach(), x.grad) and not torch.equal(first, second)
    for y in (first, second):
        assert y.unique().tolist() == pytest.approx([0, 1/0.9]) and float((y == 0).float().mean()) == pytest.approx(0.1, abs=0.01)
    assert torch.equal(drop.eval()(x), x)


@some('resnet', 'vit-smolgen')      # of each, test_graphs.py counts the graphs
def test_a_net_is_one_graph(name):
    "In training and in evaluation, in 32 and 16 bits: dynamo refuses `fullgraph` where a graph would break"
    torch.compiler.reset()
    net, batch, graphs = make_net(name, **({'blocks': 1} if 'resnet' in name else {'num_layers': 1})), make_batch(), []
    net.compile(fullgraph=True, dynamic=False, backend=lambda graph, inputs: graphs.append(graph) or graph.forward)
    for training in (True, False):
        net.train(training)
        for half in (False, True):
            for again in range(2):
                with torch.set_grad_enabled(training), torch.autocast('cpu', torch.bfloat16, enabled=half):
                    outputs = net(batch['board'], batch['hands'])
    assert {k: tuple(v.shape) for k, v in outputs.items()} == SHAPES and len(graphs) == 4


@pytest.mark.parametrize('fused', [None, True])
def test_an_optimizer_goes_on_in_its_layout(fused):
    "Means lie in memory as the weights do, also after they were in a file, and steps are equal to the last bit"
    from maou_nb.train.checkpoints import load_optimizer, optimizer_tensors
    from maou_nb.train.optim import make_optimizer
    batch, nets = make_batch(), [make_net('resnet') for _ in range(2)]
    whole, again = (make_optimizer(net, 0.01, 0.1, fused=fused) for net in nets)
    for _ in range(2): step(nets[0], batch, whole)
    nets[1].load_state_dict(nets[0].state_dict())
    load_optimizer(again, {k: v.clone(memory_format=torch.contiguous_format) for k, v in optimizer_tensors(whole).items()})
    assert any(p.dim() == 4 and not p.is_contiguous() for p in again.state)
    for p, kept in again.state.items(): assert kept['exp_avg'].stride() == kept['exp_avg_sq'].stride() == p.stride()
    for net, optimizer in zip(nets, (whole, again)): step(net, batch, optimizer)
    for a, b in zip(*(net.state_dict().values() for net in nets)): assert torch.equal(a, b)


@architectures
@pytest.mark.parametrize('dtype', [torch.uint8, torch.int32, torch.int64])
def test_any_integer_boards(name, dtype):
    net, batch = make_net(name).eval(), make_batch()
    a, b = (net(board, batch['hands'])['policy'] for board in (batch['board'], batch['board'].to(dtype)))
    assert torch.equal(a, b)


@architectures
def test_training_is_deterministic(name):
    "Where torch is told to use no other kernels, three steps twice are equal to the last bit"
    torch.use_deterministic_algorithms(True)
    try:
        nets = [make_net(name) for _ in range(2)]
        for net in nets:
            optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
            torch.manual_seed(5)
            for seed in range(3): step(net, make_batch(seed=seed), optimizer)
    finally: torch.use_deterministic_algorithms(False)
    for a, b in zip(*(net.state_dict().values() for net in nets)): assert torch.equal(a, b)


@architectures
@pytest.mark.parametrize('checkpointing', [False, True])
def test_gradients_reach_every_parameter(name, checkpointing):
    net, batch = make_net(name), make_batch()
    net.backbone.gradient_checkpointing = checkpointing
    total_loss(net(batch['board'], batch['hands']), batch).backward()
    for key, p in net.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0, key


@some(*ARCHITECTURES)
def test_it_learns_a_batch_by_heart(name):
    net, batch = make_net(name), make_batch()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    losses = [step(net, batch, optimizer) for _ in range(60)]
    assert losses[-1] < losses[0] * 0.6


def moved(net, steps=3):
    "After some steps of AdamW with decay in training mode: what moved and what did not, weights and batch norm statistics, by name"
    batch, before = make_batch(), copy.deepcopy(net.state_dict())
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(steps): step(net, batch, optimizer)
    same = {k for k, v in net.state_dict().items() if torch.equal(v, before[k])}
    return before.keys() - same, same


def state_of(net, modules):
    "The names in `net`'s state of what belongs to `modules`"
    prefixes = [f'{k}.' for k, m in net.named_modules() if any(m is o for o in modules)]
    return {k for k in net.state_dict() if k.startswith(tuple(prefixes))}


@architectures
@pytest.mark.parametrize('checkpointing', [False, True])
@pytest.mark.parametrize('frozen', [0, 1, 2, 3])
def test_what_is_frozen_stays_and_all_else_moves(name, frozen, checkpointing):
    net = make_net(name)
    net.backbone.gradient_checkpointing = checkpointing
    groups = net.backbone.layer_groups()
    assert len(groups) == 3
    net.backbone.freeze_groups(groups[:frozen])
    fixed = state_of(net, [m for g in groups[:frozen] for m in g])
    assert bool(fixed) == bool(frozen)
    if 'resnet' in name and frozen: assert any('running_mean' in k for k in fixed)
    did, did_not = moved(net)
    assert did_not == fixed and did == net.state_dict().keys() - fixed


@architectures
@pytest.mark.parametrize('thawed', [1, 2])
def test_frozen_upper_groups_stay(name, thawed):
    "Freezing need not begin at the squares: gradients pass through what is frozen"
    net = make_net(name)
    groups = net.backbone.layer_groups()
    net.backbone.freeze_groups(groups[thawed:])
    assert moved(net)[1] == state_of(net, [m for g in groups[thawed:] for m in g]) != set()


@architectures
@pytest.mark.parametrize('groups', [1, 2])
def test_groups_above_the_adapter_stay(name, groups):
    net = make_net(name, groups=groups)
    above = state_of(net, [m for g in net.backbone.layer_groups()[groups:] for m in g])
    assert above and moved(net)[1] == above
    assert {'adapter.0.weight', 'adapter.1.running_mean', 'adapter.1.running_var'} <= moved(net)[0]


@architectures
def test_frozen_statistics_are_used(name):
    "A frozen backbone says the same in training mode as in evaluation mode"
    net, batch = make_net(name), make_batch()
    step(net, batch)
    net.backbone.freeze_groups(net.backbone.layer_groups())
    a, b = (net.train(mode).backbone(batch['board'], batch['hands']) for mode in (True, False))
    assert torch.equal(a, b)


def test_freezing_nothing_thaws():
    net, batch = make_net('resnet'), make_batch()
    net.backbone.freeze_groups(net.backbone.layer_groups())
    net.backbone.freeze_groups([])
    before = copy.deepcopy(net.backbone.state_dict())
    step(net, batch)
    assert all(not torch.equal(before[k], v) for k, v in net.backbone.state_dict().items() if 'piece' not in k)


@architectures
def test_hands_matter(name):
    net, batch = make_net(name).eval(), make_batch()
    empty = torch.zeros_like(batch['hands'])
    a, b = net(batch['board'], empty), None
    for i in range(14):
        hands = empty.clone()
        hands[:, i] = 1
        b = net(batch['board'], hands)
        assert all(not torch.equal(a[k], b[k]) for k in a), f'hand count {i} is ignored'


@architectures
def test_one_position_does_not_depend_on_its_batch(name):
    net, batch = make_net(name).eval(), make_batch()
    together, alone = net(batch['board'], batch['hands']), net(batch['board'][:1], batch['hands'][:1])
    for k in together: torch.testing.assert_close(together[k][:1], alone[k], rtol=1e-4, atol=1e-5)


@architectures
def test_lower_groups_through_an_adapter(name):
    net, batch = make_net(name, groups=2), make_batch()
    total_loss(net(batch['board'], batch['hands']), batch).backward()
    top = [p for m in net.backbone.layer_groups()[2] for p in m.parameters()]
    assert all(p.grad is None for p in top)
    assert all(p.grad is not None for m in (*net.backbone.layer_groups()[0], net.adapter) for p in m.parameters())


@architectures
def test_checkpointing_gives_the_same(name):
    "Loss, gradients and batch norm statistics, dropout included"
    batch, results = make_batch(), []
    for checkpointing in (False, True):
        net = make_net(name).train()
        net.backbone.gradient_checkpointing = checkpointing
        torch.manual_seed(3)
        loss = total_loss(net(batch['board'], batch['hands']), batch)
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in net.parameters()), *net.buffers()])
    for a, b in zip(*results, strict=True): torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    norms = [m for m in net.modules() if isinstance(m, _BatchNorm)]
    assert all(m.num_batches_tracked == 1 for m in norms) and ('resnet' not in name or norms)


@pytest.fixture(scope='module')
def checkpointing():
    "`benchmarks/checkpointing.py`"
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'benchmarks'))
    try: import checkpointing
    finally: sys.path.pop(0)
    return checkpointing


@pytest.mark.parametrize('name', ARCHITECTURES)
def test_checkpointing_takes_less_memory(name, checkpointing):
    measured = checkpointing.measure(name)
    print('\n' + checkpointing.line(measured))
    plain, saving = measured['bytes']
    assert saving < 0.65 * plain


def test_peak_memory_by_hand(checkpointing):
    kib = lambda n: torch.empty(n * 256)   # float32
    def f():
        a = kib(100); b = a + 1            # 200
        del a
        c = b * 2; c.add_(1); c.view(2, -1)  # 200: in-place results and views are no new memory
        del b, c
        _d = kib(150)                      # 150
    assert checkpointing.peak_bytes(f) == 200 * 1024


@architectures
def test_weights_survive_contiguous_storage(name):
    net, batch = make_net(name).eval(), make_batch()
    other = make_net(name).eval()
    for p in other.parameters(): torch.nn.init.zeros_(p)
    other.load_state_dict({k: v.contiguous() for k, v in net.state_dict().items()})
    a, b = (n(batch['board'], batch['hands'])['policy'] for n in (net, other))
    assert torch.equal(a, b)


@architectures
def test_16_bit_autocast(name):
    net, batch = make_net(name), make_batch()
    with torch.autocast('cpu', torch.bfloat16): loss = total_loss(net(batch['board'], batch['hands']), batch)
    loss.backward()
    assert loss.dtype == torch.float32 and all(p.grad.isfinite().all() for p in net.parameters())


def test_squeeze_excitation():
    plain, squeezed = (make_backbone('resnet', channels=16, blocks=3, squeeze_excitation=s) for s in (False, True))
    assert parameter_count(squeezed) - parameter_count(plain) == 3 * (16*4 + 4 + 4*16 + 16)
    gate = squeezed.blocks[0].body[-1]
    x = torch.randn(4, 16, 9, 9).to(memory_format=torch.channels_last).requires_grad_()
    first, _, second, _ = gate.gate
    squeeze = torch.stack([x[:, :, r, c] for r in range(9) for c in range(9)]).sum(0) / 81
    factor = 1 / (1 + torch.exp(-((squeeze @ first.weight.T + first.bias).clamp(min=0) @ second.weight.T + second.bias)))
    torch.testing.assert_close(gate(x), torch.einsum('bcrk,bc->bcrk', x, factor))
    assert gate(x).is_contiguous(memory_format=torch.channels_last)
    gate(x).square().sum().backward()
    assert x.grad.is_contiguous(memory_format=torch.channels_last)
    assert all(p.grad.abs().sum() > 0 for p in gate.parameters())
    assert torch.autograd.gradcheck(copy.deepcopy(gate).double(), torch.randn(2, 16, 2, 2, dtype=torch.double, requires_grad=True))


@pytest.mark.parametrize('block, many', [('plain', 7), ('nested', 13)])
@pytest.mark.parametrize('squeeze_excitation', [False, True])
def test_resnet_keeps_channels_last(squeeze_excitation, block, many):
    net = make_backbone('resnet', channels=16, blocks=3, squeeze_excitation=squeeze_excitation, block=block)
    batch, seen = make_batch(), []
    for block in net.blocks:
        block.register_forward_hook(lambda m, x, out: seen.append(out.is_contiguous(memory_format=torch.channels_last)))
    x = net(batch['board'], batch['hands'])
    x.square().mean().backward()
    assert seen == [True]*3 and x.is_contiguous(memory_format=torch.channels_last)
    kernels = [p for p in net.parameters() if p.dim() == 4 and p.shape[2] == 3]
    assert len(kernels) == many and all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)


def normed(x, norm, trained):
    "Batch norm by sums: of the batch itself, or by the statistics it kept"
    mean, var = (x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)) if trained else (norm.running_mean, norm.running_var)
    scale = norm.weight / (var + norm.eps).sqrt()
    return x*scale[:, None, None] + (norm.bias - mean*scale)[:, None, None]


def windows(x, kernel):
    "A convolution that keeps the board, as a sum over the kernel's places"
    n = kernel.shape[-1] // 2
    wide = torch.nn.functional.pad(x, (n,)*4)
    return sum(torch.einsum('bcrk,oc->bork', wide[:, :, i:i + 9, j:j + 9], kernel[:, :, i, j])
               for i in range(2*n + 1) for j in range(2*n + 1))


@pytest.mark.parametrize('trained', [True, False])
def test_nested_blocks_by_hand(trained):
    "KataGo's NestedBottleneckResBlock: norm, ReLU, 1×1 down; twice x + (norm, ReLU, 3×3) twice; norm, ReLU, 1×1 up; + x"
    net, batch = make_backbone('resnet', channels=16, blocks=2, block='nested').double(), make_batch()
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.weight); nn.init.normal_(m.bias); nn.init.normal_(m.running_mean); nn.init.uniform_(m.running_var, 0.5, 2)
    net.train(trained)
    x = stem = net.stem(batch['board'], batch['hands'])
    act = lambda x, norm, conv: windows(normed(x, norm, trained).clamp(min=0), conv.weight)
    for block in net.blocks:
        out = act(x, block.down[0], block.down[2])
        assert out.shape[1] == 8 and len(block.inner) == 2
        for b in block.inner: out = out + act(act(out, b.body[0], b.body[2]), b.body[3], b.body[5])
        x = x + act(out, block.up[0], block.up[2])
    want = normed(x, net.norm[0], trained).clamp(min=0)
    assert (want - stem).abs().max() > 0.1
    torch.testing.assert_close(net(batch['board'], batch['hands']), want)


@pytest.mark.parametrize('block, reach', [('plain', 2), ('nested', 4)])
def test_blocks_know_no_place(block, reach):
    "What is moved on a large board comes out moved, and is seen so many squares away"
    made = backbones.BLOCKS[block](16).eval().double()
    for m in made.modules():
        if isinstance(m, nn.BatchNorm2d): nn.init.normal_(m.weight); nn.init.normal_(m.bias)
    x = torch.zeros(1, 16, 21, 21, dtype=torch.double)
    x[0, :, 10, 10] = torch.randn(16, dtype=torch.double)
    moved = x.roll((1, 2), (2, 3))
    inner = slice(7, 17)      # where neither edge is seen
    torch.testing.assert_close(made(moved)[:, :, inner, inner], made(x).roll((1, 2), (2, 3))[:, :, inner, inner])
    seen = (made(x) - made(torch.zeros_like(x)))[0, :, 5:16, 5:16].abs().sum(0) > 1e-12
    assert seen.any(0).nonzero()[:, 0].tolist() == [*range(5 - reach, 6 + reach)]


@pytest.mark.parametrize('size, blocks', thinned([('tiny', 7), ('small', 11), ('base', 18), ('large', 36)], 2))
def test_nested_blocks_at_equal_flops(size, blocks):
    with torch.device('meta'): plain, nested = (make_backbone('resnet', size, **more) for more in ({}, dict(blocks=blocks, block='nested')))
    C, n = plain.channels, len(plain.blocks)
    assert flops_per_position(plain) == 2*28*C + 2*81*9*C*C*(1 + 2*n)
    assert flops_per_position(nested) == 2*28*C + 2*81*C*C*(9 + 10*blocks)
    assert abs(flops_per_position(nested) / flops_per_position(plain) - 1) < 0.05


def smolgen_by_hand(bias, weight, x):
    "lczero-training's `smolgen_weights` for each position and head apart, in plain sums"
    swish = lambda x: x / (1 + torch.exp(-x))
    def norm(x, layer):
        x = x - x.sum()/len(x)
        return x / ((x*x).sum()/len(x) + layer.eps).sqrt()*layer.weight + layer.bias
    found = []
    for position in x:
        compressed = torch.cat([torch.stack([(row*square).sum() for row in bias.compress.weight]) for square in position])
        hidden = norm(swish(bias.whole.weight @ compressed + bias.whole.bias), bias.whole_norm)
        codes = norm(swish(bias.heads.weight @ hidden + bias.heads.bias), bias.heads_norm)
        found += [torch.stack([torch.stack([(weight[81*i + j]*code).sum() for j in range(81)]) for i in range(81)])
                  for code in codes.chunk(bias.num_heads)]
    return torch.stack(found).view(len(x), bias.num_heads, 81, 81)


def test_smolgen_by_hand():
    torch.manual_seed(0)
    bias, x = backbones.Smolgen(16, 2, backbones.pair_generator(8)).double(), torch.randn(2, 81, 16, dtype=torch.double)
    for p in (*bias.parameters(), *bias.generator[0].double().parameters()): nn.init.normal_(p, std=0.3)
    torch.testing.assert_close(bias(x), want := smolgen_by_hand(bias, bias.generator[0].weight, x))
    assert (want[0] - want[1]).abs().max() > 0.1      # it hangs on the position
    attention = SquareAttention(16, 2, bias=bias).double()
    q, k, v = (attention.qkv(x)[..., i*16:(i + 1)*16] for i in range(3))
    heads = [((q[..., s] @ k[..., s].transpose(1, 2) / 8**0.5 + want[:, h]).softmax(-1) @ v[..., s])
             for h, s in enumerate((slice(0, 8), slice(8, 16)))]
    torch.testing.assert_close(attention(x), attention.out(torch.cat(heads, -1)))


def test_smolgen_of_zeros_is_plain_attention():
    "A learned ViT with the same weights answers alike, and gradients are the same; the generator itself has one"
    plain, smolgen = (make_backbone('vit', **{**ARCHITECTURES['vit'], 'dropout': 0.}, position=p).double() for p in ('learned', 'smolgen'))
    missing = smolgen.load_state_dict(plain.state_dict(), strict=False)
    assert not missing.unexpected_keys and all('bias.' in k or k == 'stem.generator.weight' for k in missing.missing_keys)
    batch = make_batch()
    answers = lambda net: net(batch['board'], batch['hands'])
    assert (answers(smolgen) - answers(plain)).abs().max() > 1e-3
    nn.init.zeros_(smolgen.stem.generator.weight)
    torch.testing.assert_close(answers(smolgen), answers(plain))
    for net in (plain, smolgen): answers(net).square().mean().backward()
    grads = {k: p.grad for k, p in smolgen.named_parameters()}
    for k, p in plain.named_parameters(): torch.testing.assert_close(grads[k], p.grad)
    assert grads['stem.generator.weight'].abs().max() > 0


def test_one_generator_for_all_blocks():
    "It is counted and saved once, freezes with the stem, and goes along into a copy"
    net = make_backbone('vit', **ARCHITECTURES['vit'], position='smolgen', smolgen_dim=24)
    names = [k for k in net.state_dict() if 'generator' in k]
    assert names == ['stem.generator.weight'] and net.stem.generator.weight.shape == (81*81, 24)
    other = copy.deepcopy(net)
    for n in (net, other):
        assert all(b.attention.bias.generator[0] is n.stem.generator for b in n.blocks)
    assert other.stem.generator is not net.stem.generator
    assert make_backbone('vit', 'base', position='smolgen').stem.generator.in_features == 512 // 4
    net.freeze_groups(net.layer_groups()[:1])
    assert not net.stem.generator.weight.requires_grad and net.blocks[1].attention.bias.heads.weight.requires_grad


@pytest.mark.parametrize('size, ratio', [('tiny', 3.375), ('small', 3.6875), ('base', 3.8125), ('large', 3.8125)])
def test_smolgen_at_equal_flops(size, ratio):
    with torch.device('meta'):
        plain, smolgen, wider = (make_backbone('vit', size, **more) for more in (
            {}, dict(position='smolgen'), dict(position='smolgen', mlp_ratio=ratio)))
    C, heads, d = plain.channels, plain.blocks[0].attention.num_heads, smolgen.stem.generator.in_features
    each = max(4, d // 8)
    block = 81*C*each + 81*each*d + d*heads*d + heads*d*81*81
    assert flops_per_position(smolgen) - flops_per_position(plain) == 2*block*len(plain.blocks)
    weights = C*each + 81*each*d + d + 2*d + (d + 1)*heads*d + 2*heads*d
    assert parameter_count(smolgen) - parameter_count(plain) == 6561*d + weights*len(plain.blocks)
    assert abs(flops_per_position(wider) / flops_per_position(plain) - 1) < 0.02


def test_relative_position_reads_differences():
    bias = RelativeBias(3)
    torch.nn.init.normal_(bias.table)
    random = torch.Generator().manual_seed(0)
    for here, there in torch.randint(0, 81, (200, 2), generator=random).tolist():
        difference = there//9 - here//9 + 8, there % 9 - here % 9 + 8
        assert torch.equal(bias()[:, here, there], bias.table[:, difference[0], difference[1]])
    used = torch.autograd.grad(bias().sum(), bias.table)[0]   # how many pairs share an entry
    assert used[0].sum() == 81*81 and used.min() == 1 and used[0, 8, 8] == 81


def test_relative_attention_by_hand():
    torch.manual_seed(0)
    attention, x = SquareAttention(8, 2, bias=RelativeBias(2)), torch.randn(2, 81, 8)
    torch.nn.init.normal_(attention.bias.table)
    q, k, v = (attention.qkv(x)[..., i*8:(i + 1)*8] for i in range(3))
    heads = [((q[..., s] @ k[..., s].transpose(1, 2) / 2 + attention.bias()[h]).softmax(-1) @ v[..., s])
             for h, s in enumerate((slice(0, 4), slice(4, 8)))]
    torch.testing.assert_close(attention(x), attention.out(torch.cat(heads, -1)))


def test_relative_vit_has_no_absolute_vectors():
    relative, learned = (make_backbone('vit', **ARCHITECTURES['vit'], position=p) for p in ('relative', 'learned'))
    shapes = lambda net: {k: tuple(p.shape) for k, p in net.named_parameters()}
    tables = {f'blocks.{i}.attention.bias.table': (2, 17, 17) for i in range(3)}
    assert dict(shapes(relative).items() - shapes(learned).items()) == tables
    assert dict(shapes(learned).items() - shapes(relative).items()) == {'stem.position': (81, 16)}
    assert shapes(make_backbone('vit', **ARCHITECTURES['vit'])) == shapes(learned)


def test_relative_vit_knows_distances():
    "With its table at 0 the order of the squares is nothing to it, and as soon as the table is learned it is"
    net, batch = make_backbone('vit', **{**ARCHITECTURES['vit'], 'dropout': 0.0}, position='relative').eval(), make_batch()
    order = torch.randperm(81, generator=torch.Generator().manual_seed(0))
    shuffled = lambda: (net(batch['board'], batch['hands']).flatten(2)[:, :, order]
                        - net(batch['board'][:, order], batch['hands']).flatten(2)).abs().max().item()
    assert shuffled() < 1e-5
    for block in net.blocks: torch.nn.init.normal_(block.attention.bias.table)
    assert shuffled() > 1e-2


@pytest.mark.parametrize('head', ['legal_moves', 'policy'])
def test_move_head_with_a_layer_in_between(head):
    torch.manual_seed(0)
    plain, wide = (make_heads(16, [head], **{head: options})[head] for options in ({}, dict(hidden_dim=40, dropout=0.5)))
    assert parameter_count(plain) == 16*27 + 27 and parameter_count(wide) == 16*40 + 40 + 40*27 + 27
    x = torch.randn(4, 16, 9, 9)
    a, b = wide.train()(x), wide(x)
    assert a.shape == (4, 1496) and not torch.equal(a, b)
    assert torch.equal(wide.eval()(x), wide(x))
    first, last = wide.classes[0], wide.classes[-1]
    hidden = (torch.einsum('bcrk,hc->bhrk', x, first.weight[:, :, 0, 0]) + first.bias[:, None, None]).clamp(min=0)
    map = torch.einsum('bhrk,mh->bmrk', hidden, last.weight[:, :, 0, 0]) + last.bias[:, None, None]
    torch.testing.assert_close(wide(x), map.flatten(1)[:, wide.cell])
    wide.train()(x).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in wide.parameters())


def test_half_of_the_hidden_units_are_dropped():
    head = MoveHead(16, hidden_dim=40, dropout=0.5)
    seen = []
    head.classes[2].register_forward_hook(lambda m, x, out: seen.append((out[x[0] > 0] == 0).float().mean().item()))
    head.train()(torch.randn(64, 16, 9, 9))
    head.eval()(torch.randn(64, 16, 9, 9))
    assert abs(seen[0] - 0.5) < 0.02 and seen[1] == 0


@architectures
@pytest.mark.parametrize('groups', [None, 2])
def test_summary_adds_up(name, groups):
    net = make_net(name, groups=groups)
    net.backbone.freeze_groups(net.backbone.layer_groups()[:1])
    *rows, whole = summary(net.train()).rows
    for key in ('parameters', 'trainable', 'MFLOPs per position'): assert sum(r[key] for r in rows) == pytest.approx(whole[key], abs=1e-9)
    assert whole['parameters'] == parameter_count(net)
    assert whole['trainable'] == sum(p.numel() for p in net.parameters() if p.requires_grad) < whole['parameters']
    assert whole['MFLOPs per position'] * 1e6 == pytest.approx(flops_per_position(net))
    assert 'elsewhere' not in [r['part'] for r in rows]
    assert [r['output'] for r in rows if r['part'] == 'block 3'] == ['not run']*bool(groups)


@architectures
def test_counting_leaves_the_net_alone(name):
    net, fast = make_net(name).train(), torch.backends.mha.get_fastpath_enabled()
    net.backbone.freeze_groups(net.backbone.layer_groups()[:1])
    modes, state, drawn = [m.training for m in net.modules()], copy.deepcopy(net.state_dict()), torch.get_rng_state()
    summary(net); flops_per_position(net)
    assert modes == [m.training for m in net.modules()] and torch.equal(drawn, torch.get_rng_state())
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert torch.backends.mha.get_fastpath_enabled() == fast and all(p.grad is None for p in net.parameters())


@architectures
def test_flops_do_not_depend_on_the_device(name):
    here = make_net(name)
    with torch.device('meta'):
        there = Net(make_backbone(VARIANTS[name][0], 'tiny',
                                  **{**ARCHITECTURES[VARIANTS[name][0]], **VARIANTS[name][1]}), make_heads(16, USUAL))
    assert flops_per_position(here) == flops_per_position(there) > 0
    assert summary(here).rows == summary(there).rows


@pytest.fixture
def registered():
    "Lets a test register backbones, and forgets them afterwards"
    before = {**BACKBONES}, {**SIZES}
    yield
    for known, was in zip((BACKBONES, SIZES), before): known.clear(); known.update(was)


def test_what_a_backbone_of_ones_own_costs(registered):
    "Blocks of torch's own transformer, one of them used twice, and work outside of stem, blocks and norm"
    @register_backbone('borrowed')
    class Borrowed(Backbone):
        def __init__(self, channels=16):
            block = lambda: nn.TransformerEncoderLayer(channels, 2, 32, batch_first=True)
            twice = block()
            super().__init__(channels, SquareEmbedding(channels), [twice, twice, block()], nn.LayerNorm(channels))
            self.extra = nn.Linear(channels, channels)
        def forward_features(self, board, hands, groups=None):
            extra = self.extra(torch.ones(1, self.channels, device=board.device))
            return super().forward_features(board, hands, groups) + extra[:, :, None, None]
    net = make_backbone('borrowed')
    layer = 2*81 * (16*3*16 + 16*16 + 2*16*32) + 2 * 2*81*81*16
    assert flops_per_position(net) == 2*28*16 + 3*layer + 2*16*16
    one = parameter_count(net.blocks[0])
    rows = {r['part']: (r['parameters'], r['MFLOPs per position'] * 1e6) for r in summary(net).rows}
    assert rows['block 1'] == (one, pytest.approx(layer))
    assert rows['block 2'] == (0, pytest.approx(layer)) and rows['block 3'] == rows['block 1']
    assert rows['elsewhere'] == (17*16, pytest.approx(2*16*16)) and rows['all'][0] == parameter_count(net)
    sizes = size_table(['borrowed']).rows
    assert sizes == [{'architecture': 'borrowed', 'size': 'as it is', 'keywords': '',
                      'parameters': parameter_count(net), 'MFLOPs per position': flops_per_position(net) / 1e6}]
    step(Net(net, make_heads(16, USUAL)), make_batch())


def test_a_table_shows_itself_as_text_and_markdown():
    table = size_table(['resnet'])
    text, (head, ruler, *lines) = repr(table).split('\n'), table._repr_markdown_().split('\n')
    cells = lambda line: [c.strip() for c in line.strip('|').split('|')]
    assert len(text) == 5 and len(lines) == 4 and ruler == '|:--|:--|:--|--:|--:|'
    assert cells(head) == list(table.rows[0])
    assert cells(lines[0]) == ['resnet', 'tiny', 'channels=48, blocks=4', '190,272', '30.24']
    assert [line.split()[1] for line in text[1:]] == ['tiny', 'small', 'base', 'large']
    assert len({len(line) for line in text}) == 1


@pytest.mark.parametrize('name', ARCHITECTURES)
def test_sizes_grow(name):
    with torch.device('meta'): counts = [parameter_count(make_backbone(name, size)) for size in ('tiny', 'small', 'base', 'large')]
    assert counts == sorted(counts) and 100_000 < counts[0] < 300_000
    assert set(SIZES[name]) == {'tiny', 'small', 'base', 'large'}


@pytest.mark.parametrize('call, message', [
    (lambda: make_backbone('alexnet'), "backbone 'alexnet' is not known: choose from resnet, mlp-mixer, vit"),
    (lambda: make_backbone('vit', 'huge'), "vit size 'huge' is not known: choose from tiny, small, base, large"),
    (lambda: make_backbone('resnet', depth=4),
     "resnet keyword 'depth' is not known: choose from channels, blocks, squeeze_excitation, block"),
    (lambda: make_backbone('resnet', depth=None),
     "resnet keyword 'depth' is not known: choose from channels, blocks, squeeze_excitation, block"),
    (lambda: make_backbone('vit', position='none'), "position 'none' is not known: choose from learned, relative, smolgen"),
    (lambda: make_backbone('resnet', channels=15, block='nested'), 'channels 15 cannot be halved for nested blocks: choose an even number'),
    (lambda: make_backbone('resnet', block='round'), "block 'round' is not known: choose from plain, nested"),
    (lambda: make_backbone('vit', embed_dim=100), 'embed_dim 100 cannot be split among num_heads 8: choose a multiple of it'),
    (lambda: make_heads(16, ['checkmate']), f"head 'checkmate' is not known: choose from {', '.join(USUAL)}, value_mean"),
    (lambda: make_heads(16, ['policy'], moves={}), f"head 'moves' is not known: choose from {', '.join(USUAL)}, value_mean"),
    (lambda: make_heads(16, ['legal_moves'], legal_moves=dict(dropout=0.5)),
     'dropout 0.5 needs hidden_dim: a single linear layer has no hidden units to drop'),
])
def test_refused_in_one_sentence(call, message):
    with pytest.raises(ValueError) as e: call()
    assert str(e.value) == message


def test_overrides_of_none_are_ignored():
    assert make_backbone('resnet', 'tiny', channels=None, blocks=2).channels == 48
    assert list(BACKBONES) == list(ARCHITECTURES)


def test_policy_losses_leave_illegal_moves_alone():
    batch = make_batch()
    for loss in (policy_loss, lambda *a: gce_policy_loss(*a, q=0.1)):
        logits = torch.randn(8, 1496, generator=torch.Generator().manual_seed(0)).mul_(5).requires_grad_()
        loss(logits, batch['policy'], batch['legal']).backward()
        assert (logits.grad[~batch['legal']] == 0).all() and logits.grad[batch['legal']].abs().sum() > 0
        a, b = (loss(x, batch['policy'], batch['legal']) for x in (logits, logits.masked_fill(~batch['legal'], 99.)))
        torch.testing.assert_close(a, b)
