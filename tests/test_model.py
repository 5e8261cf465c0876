"The three architectures at small sizes: shapes, gradients, freezing, and what is refused"
import copy

import pytest
import torch

from maou_nb.data.board import HAND_MAX
from maou_nb.model.backbones import BACKBONES, SIZES, make_backbone, parameter_count
from maou_nb.model.heads import HEADS, Net, make_heads
from maou_nb.model.losses import asymmetric_loss, bce_loss, gce_policy_loss, policy_loss, value_loss

ARCHITECTURES = {
    'resnet': dict(channels=16, blocks=3),
    'mlp-mixer': dict(embed_dim=16, num_layers=3, token_dim=16, channel_dim=32, dropout=0.1),
    'vit': dict(embed_dim=16, num_layers=3, num_heads=2, mlp_ratio=2.0, dropout=0.1),
}
SHAPES = dict(reachable=(8, 81), legal_moves=(8, 1496), policy=(8, 1496), value=(8,))
architectures = pytest.mark.parametrize('name', ARCHITECTURES)


def make_net(name, groups=None, **overrides):
    torch.manual_seed(0)
    backbone = make_backbone(name, 'tiny', **{**ARCHITECTURES[name], **overrides})
    return Net(backbone, make_heads(backbone.channels, HEADS), groups)


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


@architectures
@pytest.mark.parametrize('dtype', [torch.uint8, torch.int32, torch.int64])
def test_any_integer_boards(name, dtype):
    net, batch = make_net(name).eval(), make_batch()
    a, b = (net(board, batch['hands'])['policy'] for board in (batch['board'], batch['board'].to(dtype)))
    assert torch.equal(a, b)


@architectures
@pytest.mark.parametrize('checkpointing', [False, True])
def test_gradients_reach_every_parameter(name, checkpointing):
    net, batch = make_net(name), make_batch()
    net.backbone.gradient_checkpointing = checkpointing
    total_loss(net(batch['board'], batch['hands']), batch).backward()
    for key, p in net.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0, key


@architectures
def test_it_learns_a_batch_by_heart(name):
    net, batch = make_net(name), make_batch()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    losses = [step(net, batch, optimizer) for _ in range(60)]
    assert losses[-1] < losses[0] * 0.6


@architectures
@pytest.mark.parametrize('frozen', [1, 2, 3])
def test_frozen_groups_do_not_move(name, frozen):
    net, batch = make_net(name), make_batch()
    groups = net.backbone.layer_groups()
    assert len(groups) == 3
    net.backbone.freeze_groups(groups[:frozen])
    fixed = [m for group in groups[:frozen] for m in group]
    state = lambda modules: [copy.deepcopy(m.state_dict()) for m in modules]
    before, whole = state(fixed), copy.deepcopy(net.state_dict())
    for _ in range(2): step(net, batch)
    for a, b in zip(before, state(fixed)):
        assert all(torch.equal(a[k], b[k]) for k in a)
    assert all(p.grad is None for m in fixed for p in m.parameters())
    free = [k for m in (x for g in groups[frozen:] for x in g) for k, p in m.named_parameters() if p.grad is None]
    assert not free
    assert any(not torch.equal(whole[k], v) for k, v in net.state_dict().items() if k.startswith('heads.'))


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
@pytest.mark.parametrize('checkpointing', [False, True])
def test_checkpointing_changes_nothing(name, checkpointing):
    net, batch = make_net(name), make_batch()
    other = copy.deepcopy(net)
    other.backbone.gradient_checkpointing = checkpointing
    for n in (net, other):
        torch.manual_seed(3)   # dropout
        step(n, batch)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), other.state_dict().values()))


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


@pytest.mark.parametrize('name', ARCHITECTURES)
def test_sizes_grow(name):
    with torch.device('meta'): counts = [parameter_count(make_backbone(name, size)) for size in ('tiny', 'small', 'base', 'large')]
    assert counts == sorted(counts) and 100_000 < counts[0] < 300_000
    assert set(SIZES[name]) == {'tiny', 'small', 'base', 'large'}


@pytest.mark.parametrize('call, message', [
    (lambda: make_backbone('alexnet'), "backbone 'alexnet' is not known: choose from resnet, mlp-mixer, vit"),
    (lambda: make_backbone('vit', 'huge'), "vit size 'huge' is not known: choose from tiny, small, base, large"),
    (lambda: make_backbone('resnet', depth=4), "resnet keyword 'depth' is not known: choose from channels, blocks, squeeze_excitation"),
    (lambda: make_backbone('resnet', depth=None), "resnet keyword 'depth' is not known: choose from channels, blocks, squeeze_excitation"),
    (lambda: make_backbone('vit', embed_dim=100), 'embed_dim 100 cannot be split among num_heads 8: choose a multiple of it'),
    (lambda: make_heads(16, ['checkmate']), "head 'checkmate' is not known: choose from reachable, legal_moves, policy, value"),
    (lambda: make_heads(16, ['policy'], moves={}), "head 'moves' is not known: choose from reachable, legal_moves, policy, value"),
    (lambda: make_heads(16, ['legal_moves'], legal_moves=dict(dropout=0.5)), 'dropout 0.5 needs hidden_dim: a single linear layer has no hidden units to drop'),
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
