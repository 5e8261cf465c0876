"What studies compare, each against its formula written out: optimizers, losses, targets and heads"
import math

import pytest
import torch

from maou_nb.model.backbones import make_backbone
from maou_nb.model.heads import Net, make_heads
from maou_nb.train.optim import OptimizerOptions, make_optimizer
from options import few, run, weights

def net_of(architecture, **options):
    torch.manual_seed(0)
    backbone = make_backbone(architecture, 'tiny', **options)
    return Net(backbone, make_heads(backbone.channels, ['policy', 'value']))

# --- Muon
def newton_schulz(g):
    "KellerJordan/Muon, muon.py, `zeropower_via_newtonschulz5` in 64 bits"
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.T if g.shape[0] > g.shape[1] else g
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = a*x + (b*gram + c*(gram @ gram)) @ x
    return x.T if g.shape[0] > g.shape[1] else x

def written_out(start, grads, hidden, decays, lr, decay, betas=(0.9, 0.999), eps=1e-8):
    "Where Muon, or AdamW, takes one weight in 64 bits"
    p, mean, square = start.double(), torch.zeros_like(start).double(), torch.zeros_like(start).double()
    for t, g in enumerate(grads, 1):
        g = g.double()
        p = p*(1 - lr*decay*decays)
        if hidden:
            mean = 0.95*mean + 0.05*g
            ahead = (0.05*g + 0.95*mean).flatten(1)
            p = p - lr*0.2*math.sqrt(max(ahead.shape))*newton_schulz(ahead).reshape(p.shape)
        else:
            mean, square = betas[0]*mean + (1 - betas[0])*g, betas[1]*square + (1 - betas[1])*g**2
            p = p - lr*(mean/(1 - betas[0]**t)) / ((square/(1 - betas[1]**t)).sqrt() + eps)
    return p

SHAPES = {'resnet': dict(channels=16, blocks=1, squeeze_excitation=True), 'mlp-mixer': {}, 'vit': dict(position='relative')}

@pytest.mark.parametrize('architecture', SHAPES)
def test_muon_step_by_step(architecture):
    "Each weight of a net, after three steps: those in the blocks by Muon, tables and all else by AdamW"
    net = net_of(architecture, **SHAPES[architecture])
    start = {n: p.detach().clone() for n, p in net.named_parameters()}
    optimizer = make_optimizer(net, 0.02, 0.1, OptimizerOptions(optimizer='muon'))
    grads = {n: [torch.randn_like(p) for _ in range(3)] for n, p in start.items()}
    for t in range(3):
        for n, p in net.named_parameters(): p.grad = grads[n][t].clone()
        optimizer.step()
    turned = {n for n, p in start.items() if n.startswith('backbone.blocks') and p.ndim > 1 and not n.endswith('.table')}
    assert turned and all(n.endswith('weight') for n in turned)
    for n, p in net.named_parameters():
        by_hand = written_out(start[n], grads[n], n in turned, start[n].ndim > 1, 0.02, 0.1)
        assert torch.allclose(p.double(), by_hand, atol=2e-5), n
    assert {n for n, p in net.named_parameters() if 'exp_avg' not in optimizer.state[p]} == turned

def test_frozen_weights_are_left_to_nobody():
    net = net_of('resnet', channels=16, blocks=2)
    net.backbone.freeze_groups(net.backbone.layer_groups()[:1])
    optimizer = make_optimizer(net, 0.02, 0.1, OptimizerOptions(optimizer='muon'))
    ours = {id(p) for g in optimizer.param_groups for p in g['params']}
    assert ours == {id(p) for p in net.parameters() if p.requires_grad} and optimizer.param_groups[0]['params']
    net.backbone.freeze_groups(net.backbone.layer_groups())
    optimizer = make_optimizer(net, 0.02, 0.1, OptimizerOptions(optimizer='muon'))
    for p in net.parameters(): p.grad = torch.ones_like(p)
    before = net.backbone.stem.conv[0].weight.clone()
    optimizer.step()
    assert torch.equal(before, net.backbone.stem.conv[0].weight) and not optimizer.param_groups[0]['params']

def test_a_run_with_muon_goes_on_exactly(run, few, tmp_path):
    "Both states are in the checkpoint: one epoch, and then another, end in the bits of two"
    muon = dict(optimizer='muon', lr_scheduler='none', batch_size=64)
    whole = run(epoch=2, **muon)
    run(epoch=1, run_dir=tmp_path/'r', **muon)
    parts = run(epoch=2, run_dir=tmp_path/'r', resume_from='latest', **muon)
    assert parts.last['step'] == whole.last['step'] > 20
    assert torch.equal(weights(parts), weights(whole)) and parts.last['valid/loss'] == whole.last['valid/loss']
    names = {k.rpartition('.')[2] for k in whole.tensors if k.startswith('optimizer.')}
    assert names == {'momentum_buffer', 'step', 'exp_avg', 'exp_avg_sq'}
