"Every loss against an independent reference on random inputs, at its limits, and on logits that no net should give"
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from maou_nb.data.shards import EVAL_SCALE
from maou_nb.model.losses import asymmetric_loss, bce_loss, gce_policy_loss, legal_log_softmax, policy_loss, value_loss, value_target

SEEDS = pytest.mark.parametrize('seed', range(4))
SHAPES = pytest.mark.parametrize('shape', [(1, 1), (7, 81), (16, 1496)])
DTYPES = pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])


def answers(seed, shape, share=0.1, scale=3.0):
    "Logits and yes-or-no targets"
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g) * scale, torch.rand(shape, generator=g) < share


def moves(seed, n=12, labels=200, scale=3.0):
    "Logits, target and legal moves; 1 to 40 legal moves a row, of which about a third were played"
    g = torch.Generator().manual_seed(seed)
    order = torch.rand(n, labels, generator=g).argsort(1)
    legal = order < torch.randint(1, 41, (n, 1), generator=g)
    played = torch.rand(n, labels, generator=g) * (torch.rand(n, labels, generator=g) < 0.35) * legal
    played = torch.where(order == 0, 0.5, played)   # the first of the legal moves always
    return torch.randn(n, labels, generator=g) * scale, played / played.sum(1, keepdim=True), legal


def grad(loss, logits, *args, **kwargs):
    "The loss and its slope"
    logits = logits.clone().requires_grad_()
    value = loss(logits, *args, **kwargs)
    value.backward()
    return value.detach(), logits.grad


# binary cross entropy

@SEEDS
@SHAPES
@pytest.mark.parametrize('pos_weight', [1.0, 0.2, 7.5])
def test_bce_is_torchs(seed, shape, pos_weight):
    logits, targets = answers(seed, shape)
    reference = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(pos_weight))
    for a, b in zip(grad(bce_loss, logits, targets, pos_weight), grad(reference, logits, targets.float())):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@SEEDS
@pytest.mark.parametrize('pos_weight', [1.0, 4.0])
def test_bce_in_64_bits(seed, pos_weight):
    logits, targets = answers(seed, (8, 81))
    p, y = 1 / (1 + torch.exp(-logits.double())), targets.double()
    assert (bce_loss(logits, targets, pos_weight).item()
            == pytest.approx(-(pos_weight*y*p.log() + (1 - y)*(1 - p).log()).mean().item(), rel=1e-5))


# asymmetric loss

def ridnik(logits, targets, gamma_pos, gamma_neg, clip):
    "L+ = (1 − p)^γ+ log p, L− = p_m^γ− log(1 − p_m), p_m = max(p − clip, 0), answer by answer in 64 bits"
    total = 0.0
    for logit, yes in zip(logits.double().flatten().tolist(), targets.flatten().tolist()):
        p = 1 / (1 + math.exp(-logit))
        p_m = max(p - clip, 0.0)
        total -= (1 - p)**gamma_pos * math.log(p) if yes else p_m**gamma_neg * math.log(1 - p_m)
    return total / logits.numel()


@SEEDS
@SHAPES
def test_asymmetric_loss_of_zeros_is_bce(seed, shape):
    logits, targets = answers(seed, shape)
    for a, b in zip(grad(asymmetric_loss, logits, targets, 0, 0, 0), grad(nn.BCEWithLogitsLoss(), logits, targets.float())):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@SEEDS
@pytest.mark.parametrize('shape', [(1, 1), (7, 81), (3, 1496)])
@pytest.mark.parametrize('gamma_pos, gamma_neg, clip',
                         [(0, 4, 0), (1, 4, 0.05), (0, 2, 0.05), (2, 0, 0), (0.5, 1.5, 0.2), (0, 0, 0.1), (1, 1, 0)])
def test_asymmetric_loss_is_the_papers(seed, shape, gamma_pos, gamma_neg, clip):
    logits, targets = answers(seed, shape)
    assert (asymmetric_loss(logits, targets, gamma_pos, gamma_neg, clip).item()
            == pytest.approx(ridnik(logits, targets, gamma_pos, gamma_neg, clip), rel=2e-5, abs=1e-7))


@SEEDS
@pytest.mark.parametrize('args', [(0, 4, 0.05), (1, 4, 0.05), (2, 2, 0), (0.5, 1.5, 0.2)])
def test_asymmetric_slope_is_the_papers(seed, args):
    logits, targets = answers(seed, (4, 81))
    step, slope = 1e-6, grad(asymmetric_loss, logits, targets, *args)[1]
    for i in range(0, 4*81, 23):
        near = [logits.double().flatten().index_add(0, torch.tensor([i]), torch.tensor([s], dtype=torch.double)) for s in (step, -step)]
        a, b = (ridnik(n, targets, *args) for n in near)
        assert slope.flatten()[i].item() == pytest.approx((a - b) / (2*step), rel=1e-3, abs=1e-7)


@pytest.mark.parametrize('gamma_neg', [0.5, 1, 4])
def test_asymmetric_slope_where_the_clip_begins(gamma_neg):
    "A probability of exactly `clip`: p_m is 0, the power's slope may be infinite, the loss's is not"
    loss, slope = grad(asymmetric_loss, torch.zeros(3), torch.zeros(3), 0, gamma_neg, 0.5)
    assert loss.abs() < 1e-6 and slope.isfinite().all()


# policy

@SEEDS
def test_log_softmax_row_by_row(seed):
    logits, _, legal = moves(seed)
    log_p = legal_log_softmax(logits, legal)
    for row, l, m in zip(log_p, logits, legal): torch.testing.assert_close(row[m], l[m].log_softmax(0))
    assert (log_p[~legal] == 0).all()


@SEEDS
@pytest.mark.parametrize('n, labels', [(1, 3), (12, 200), (9, 1496)])
def test_policy_loss_is_torchs_kl(seed, n, labels):
    logits, policy, legal = moves(seed, n, labels)
    kl = nn.KLDivLoss(reduction='sum')
    reference = lambda x: torch.stack([kl(l[m].log_softmax(0), t[m]) for l, t, m in zip(x, policy, legal)]).mean()
    a, b = grad(policy_loss, logits, policy, legal), grad(reference, logits)
    for x, y in zip(a, b): torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)
    assert (a[1][~legal] == 0).all()


@SEEDS
def test_a_perfect_policy_costs_nothing(seed):
    _, policy, legal = moves(seed)
    loss, slope = grad(policy_loss, policy.log().clamp(min=-60), policy, legal)
    assert abs(loss) < 1e-5 and slope.abs().max() < 1e-6


def gce(logits, policy, legal, q):
    "(1 − p^q)/q of each legal move, weighted by the target, move by move in 64 bits"
    total = 0.0
    for l, t, m in zip(logits.double(), policy.double(), legal):
        p = l[m].exp() / l[m].exp().sum()
        total += sum(w * (1 - x**q) / q for w, x in zip(t[m].tolist(), p.tolist()))
    return total / len(logits)


@SEEDS
@pytest.mark.parametrize('q', [0.01, 0.1, 0.5, 0.7, 1.0])
@pytest.mark.parametrize('n, labels', [(1, 3), (12, 200), (3, 1496)])
def test_gce_is_its_formula(seed, q, n, labels):
    logits, policy, legal = moves(seed, n, labels)
    assert gce_policy_loss(logits, policy, legal, q=q).item() == pytest.approx(gce(logits, policy, legal, q), rel=1e-5, abs=1e-6)


@SEEDS
def test_gce_approaches_cross_entropy(seed):
    "(1 − p^q)/q = −log p − q·(log p)²/2 + …, so the distance shrinks with q, down to what 32 bits can tell"
    logits, policy, legal = moves(seed)
    log_p = legal_log_softmax(logits.double(), legal)
    entropy, second = -(policy*log_p).sum(1).mean().item(), (policy*log_p**2).sum(1).mean().item()
    for q in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
        away = entropy - gce_policy_loss(logits, policy, legal, q=q).item()
        assert -1e-5 <= away <= q*second/2 + 1e-5
        if q <= 1e-2: assert away == pytest.approx(q*second/2, rel=20*q, abs=1e-5)
    a, b = (grad(f, logits, policy, legal, **k)[1] for f, k in ((gce_policy_loss, dict(q=1e-6)), (policy_loss, {})))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


# value

@SEEDS
def test_value_loss_is_binary_cross_entropy(seed):
    g = torch.Generator().manual_seed(seed)
    logits, value = torch.randn(64, generator=g) * 3, torch.rand(64, generator=g)
    reference = sum(-(v*math.log(p) + (1 - v)*math.log(1 - p)) for p, v in zip(logits.double().sigmoid().tolist(), value.tolist())) / 64
    loss, slope = grad(value_loss, logits, value)
    assert loss.item() == pytest.approx(reference, rel=1e-5)
    torch.testing.assert_close(slope, (logits.sigmoid() - value) / 64)


@pytest.mark.parametrize('value, eval, weight, target', [
    (1.0, 0.0, 1.0, 1.0),                      # the result alone
    (1.0, 0.0, 0.0, 0.5),                      # the evaluation alone: 0 centipawns are even
    (0.0, EVAL_SCALE, 0.0, 0.7310586),              # one unit of the sigmoid
    (0.0, -EVAL_SCALE, 0.0, 0.2689414),
    (0.5, EVAL_SCALE*math.log(3), 0.6, 0.6*0.5 + 0.4*0.75),
    (1.0, -EVAL_SCALE*math.log(4), 0.25, 0.25 + 0.75*0.2),
    (0.0, 30000.0, 0.5, 0.5),                  # a mate
    (0.0, -math.inf, 0.5, 0.0),
    (1.0, math.nan, 0.0, 1.0), (0.5, math.nan, 0.3, 0.5), (0.0, math.nan, 1.0, 0.0),   # no evaluation: the result, whatever the weight
])
def test_value_target_by_hand(value, eval, weight, target):
    made = value_target(torch.tensor([value]), torch.tensor([eval]), weight)
    assert made.dtype == torch.float32 and made.item() == pytest.approx(target, abs=1e-6)


@SEEDS
def test_value_target_of_a_batch(seed):
    g = torch.Generator().manual_seed(seed)
    value, eval = torch.randint(0, 3, (256,), generator=g) / 2, torch.randn(256, generator=g) * 1500
    eval[torch.rand(256, generator=g) < 0.3] = math.nan
    for weight in (0.0, 0.3, 0.7, 1.0):
        by_hand = [v if math.isnan(e) else weight*v + (1 - weight) / (1 + math.exp(-e/600)) for v, e in zip(value.tolist(), eval.tolist())]
        torch.testing.assert_close(value_target(value, eval, weight, 600.), torch.tensor(by_hand), rtol=0, atol=1e-6)
    assert torch.equal(value_target(value, eval, 1.0), value)


# logits that no net should give

EXTREME = [-1e4, -200.0, -30.0, 0.0, 30.0, 200.0, 1e4]
POLICIES = pytest.mark.parametrize('loss',
                                   [policy_loss,
                                    *(lambda *a, q=q: gce_policy_loss(*a, q=q) for q in (1e-6, 0.1, 1.0))],
                                   ids=['kl', 'gce-1e-6', 'gce-0.1', 'gce-1'])


def check(loss, logits, *args):
    "The loss of `logits`, in 32 bits and finite, with finite slopes"
    value, slope = grad(loss, logits, *args)
    assert value.dtype == torch.float32 and slope.dtype == logits.dtype
    assert value.isfinite() and slope.isfinite().all()
    return value.item(), slope


@DTYPES
@pytest.mark.parametrize('answer', [False, True])
@pytest.mark.parametrize('loss, args', [(bce_loss, (1.0,)), (bce_loss, (50.0,)), (value_loss, ()), *((asymmetric_loss, a) for a in (
    (0, 0, 0), (1, 4, 0.05), (0, 4, 0), (0.5, 0.5, 0), (0.5, 0.5, 0.2), (2, 0, 0.05)))])
def test_extreme_answers(loss, args, answer, dtype):
    targets = torch.full((len(EXTREME),), answer)
    assert check(loss, torch.tensor(EXTREME, dtype=dtype), targets, *args)[0] >= 0
    for logit in EXTREME: check(loss, torch.tensor([logit], dtype=dtype), targets[:1], *args)
    right = torch.tensor([1e4 if answer else -1e4], dtype=dtype)
    assert check(loss, right, targets[:1], *args)[0] == pytest.approx(0, abs=1e-6)


@DTYPES
@POLICIES
def test_extreme_policies(loss, dtype):
    row = torch.tensor(EXTREME, dtype=dtype)
    logits = torch.stack([row, row.flip(0), row*0, torch.full_like(row, 1e4), torch.full_like(row, -1e4)])
    for legal in (torch.ones(5, 7, dtype=torch.bool), torch.eye(7, dtype=torch.bool)[:5], torch.arange(7).expand(5, 7) % 2 == 0):
        for policy in (legal / legal.sum(1, keepdim=True), F.one_hot(legal.int().argmax(1), 7).float()):
            value, slope = check(loss, logits, policy, legal)
            assert value >= 0 and (slope[~legal] == 0).all()


@DTYPES
@POLICIES
def test_a_single_legal_move_costs_nothing(loss, dtype):
    legal = torch.eye(7, dtype=torch.bool)
    logits = torch.tensor(EXTREME, dtype=dtype).expand(7, 7).clone()
    value, slope = check(loss, logits, legal.float(), legal)
    assert value == 0 and (slope == 0).all()


@POLICIES
def test_no_legal_move_costs_nothing(loss):
    value, slope = check(loss, torch.tensor([EXTREME]), torch.zeros(1, 7), torch.zeros(1, 7, dtype=torch.bool))
    assert value == 0 and (slope == 0).all()


@SEEDS
@pytest.mark.parametrize('dtype, close', [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_16_bits_say_what_32_say(seed, dtype, close):
    "The loss is that of the rounded logits in 32 bits, and near that of the logits before they were rounded"
    logits, targets = answers(seed, (8, 81))
    move_logits, policy, legal = moves(seed)
    for loss, x, *args in ((bce_loss, logits, targets), (asymmetric_loss, logits, targets, 1, 4, 0.05),
                           (policy_loss, move_logits, policy, legal),
                           (gce_policy_loss, move_logits, policy, legal), (value_loss, logits[:, 0], logits[:, 1].sigmoid())):
        half = loss(x.to(dtype), *args)
        assert torch.equal(half, loss(x.to(dtype).float(), *args))
        assert half.item() == pytest.approx(loss(x, *args).item(), rel=close)
