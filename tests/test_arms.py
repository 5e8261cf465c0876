"What studies compare, each against its formula written out: optimizers, losses, targets and heads"
import json, math

import pyarrow as pa
import pytest
import torch

from maou_nb import OptionError
from maou_nb.data.batches import BatchStream
from maou_nb.data.shards import find_shards, read_shard
from maou_nb.front.options import make_config
from maou_nb.judge.ask import load_net, stage_of_net
from maou_nb.model.backbones import make_backbone
from maou_nb.model.heads import Net, make_heads
from maou_nb.stages.rows import placebo_stage2
from maou_nb.stages.stage import STAGES
from maou_nb.train.optim import OptimizerOptions, make_optimizer
from maou_nb.train.options import LearnConfig, vain_remark
from maou_nb.train.runner import sources_of
from options import few, moved, run, weights

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

SHAPES = {'resnet': ('resnet', dict(channels=16, blocks=1, squeeze_excitation=True)), 'mlp-mixer': ('mlp-mixer', {}),
          'nested': ('resnet', dict(channels=16, blocks=1, block='nested')),
          'vit': ('vit', dict(position='relative')), 'smolgen': ('vit', dict(position='smolgen', num_layers=2))}

@pytest.mark.parametrize('name', SHAPES)
def test_muon_step_by_step(name):
    "Each weight of a net, after three steps: those in the blocks by Muon, tables and all else by AdamW"
    architecture, options = SHAPES[name]
    net = net_of(architecture, **options)
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

# --- taught along
def taught_alone(r):
    "The net of a run, and all rows it was judged on, as dense batches in 64 bits"
    cfg, n = make_config(**json.loads((r.dir/'config.json').read_text())), r.stage.stage
    source = sources_of(cfg, STAGES[str(n)])[1]
    batch, = (b.decode() for b in BatchStream(source, source.plan(1 << 20, shuffle=False)))
    net = load_net(r.result.checkpoint(n, 'last'))
    with torch.no_grad(): return cfg, net, {k: v.double() for k, v in net(batch.board, batch.hands).items()}, batch

def test_the_soft_policy_is_katagos(run, few):
    r = run(soft_policy_ratio=8.)
    cfg, net, outputs, batch = taught_alone(r)
    soft = torch.zeros(len(batch.policy), 1496, dtype=torch.float64)
    for i, (p, legal) in enumerate(zip(batch.policy.double(), batch.legal)):
        if legal.any(): soft[i, legal] = (p[legal] + 1e-7)**0.25 / ((p[legal] + 1e-7)**0.25).sum()
    log_p = outputs['soft_policy'].masked_fill(~batch.legal, -1e30).log_softmax(1).masked_fill(~batch.legal, 0)
    by_hand = float((torch.xlogy(soft, soft) - soft*log_p).sum(1).mean())
    last = r.last
    assert list(net.heads) == ['policy', 'value', 'soft_policy']
    assert last['valid/soft_policy_loss'] == pytest.approx(by_hand, rel=1e-4)
    parts = last['valid/policy_loss'] + last['valid/value_loss'] + 8*last['valid/soft_policy_loss']
    assert last['valid/loss'] == pytest.approx(parts, rel=1e-5)
    assert 'soft_policy_loss' not in {k.split('/')[-1] for k in run().last}

def test_joint_training_teaches_both(run, few):
    "Stage 2's head on stage 3's rows: its loss and options, and gradients that are the weighted sum"
    r = run(auxiliary='2', auxiliary_ratio=0.5, stage2_hidden_dim=8, stage2_pos_weight=3.)
    cfg, net, outputs, batch = taught_alone(r)
    legal, logits = batch.legal.double(), outputs['legal_moves']
    by_hand = -(3*legal*logits.sigmoid().log() + (1 - legal)*torch.sigmoid(-logits).log()).mean()
    last = r.last
    assert last['valid/legal_moves_loss'] == pytest.approx(float(by_hand), rel=1e-4)
    parts = last['valid/policy_loss'] + last['valid/value_loss'] + 0.5*last['valid/legal_moves_loss']
    assert last['valid/loss'] == pytest.approx(parts, rel=1e-5)
    said = vain_remark(cfg)
    assert 'stage2_threshold' in said and not any(n in said for n in ('stage2_hidden_dim', 'stage2_pos_weight'))
    stage, weight = STAGES['3'], net.backbone.stem.conv[0].weight
    def slope(loss): return torch.autograd.grad(loss, weight, retain_graph=True)[0]
    said = net(batch.board, batch.hands)
    losses = stage.loss(said, batch, cfg)
    alone = STAGES['2'].loss(said, batch, cfg)['loss']
    both = slope(losses['policy_loss']) + slope(losses['value_loss']) + 0.5*slope(alone)
    assert torch.allclose(slope(losses['loss']), both, atol=1e-6) and slope(alone).norm() > 0

def test_what_is_taught_along_is_asked_for(run, few, tmp_path):
    r = run(auxiliary='2', soft_policy_ratio=1.)
    assert r.result.predict('startpos').best and stage_of_net(load_net(r.result.checkpoint(3, 'last'))).key == '3'
    assert moved(r, run()) and weights(r).numel() > weights(run()).numel()
    for wrong in (1, 3, 'nobody'):
        with pytest.raises(OptionError, match='rows of stage 3 hold the targets of 2 alone'): run(auxiliary=wrong)
    assert 'auxiliary_ratio' in vain_remark(LearnConfig(auxiliary_ratio=2.))

def test_a_joint_run_goes_on_exactly(run, few, tmp_path):
    joint = dict(auxiliary='2', soft_policy_ratio=1., lr_scheduler='none', batch_size=64)
    whole = run(epoch=2, **joint)
    run(epoch=1, run_dir=tmp_path/'r', **joint)
    parts = run(epoch=2, run_dir=tmp_path/'r', resume_from='latest', **joint)
    assert torch.equal(weights(parts), weights(whole)) and parts.last['valid/loss'] == whole.last['valid/loss']

def test_an_export_gives_policy_and_value_alone(run, few, tmp_path):
    pytest.importorskip('onnxruntime')
    from maou_nb.front.export import export_onnx
    made = export_onnx(run(auxiliary='2', soft_policy_ratio=1.).result, tmp_path, ('fp32',))
    assert set(made.differences['fp32']) == {'policy', 'value'}

def test_a_placebo_has_everything_but_the_sense(run, few, tmp_path):
    "What it teaches is which moves are legal most often; the rules go beyond that"
    entries = placebo_stage2(few/'twelve'/'stage2', tmp_path/'placebo', seed=3)['shards']
    real = find_shards(few/'twelve'/'stage2', 2)
    assert [e['rows'] for e in entries] == [s.rows for s in real] and len(real) > 1
    one, other = (pa.concat_tables([read_shard(s) for s in find_shards(at, 2)]) for at in (few/'twelve'/'stage2', tmp_path/'placebo'))
    assert one.drop_columns('legalMoves').equals(other.drop_columns('legalMoves'))
    before, after = one['legalMoves'].to_pylist(), other['legalMoves'].to_pylist()
    assert sorted(before) == sorted(after) and sum(a == b for a, b in zip(before, after)) < len(before)/20
    again = placebo_stage2(few/'twelve'/'stage2', tmp_path/'again', seed=3)['shards']
    assert [e['sha256'] for e in again] == [e['sha256'] for e in entries]
    long = dict(stage=2, stage2_max_epochs=3, stage2_threshold=1., stage2_batch_size=32)
    taught, fed = run(**long), run(stage2_data_path=tmp_path/'placebo', **long)
    f1 = [r.last['train_eval/f1'] for r in (taught, fed)]
    print('F1 of the rules and of the placebo', f1)
    assert f1[0] > f1[1] + 0.1

SUCH = {'nested': dict(resnet_block='nested'), 'smolgen': dict(model_architecture='vit', vit_position='smolgen')}

@pytest.mark.parametrize('net', [pytest.param(SUCH['nested'], marks=pytest.mark.slow), SUCH['smolgen']], ids=SUCH)
def test_a_run_of_such_a_net_goes_on_exactly(run, net, tmp_path):
    "Its checkpoint holds all of it: two epochs in two parts end in the bits of two, and the net that is loaded is the one that was saved"
    given = dict(lr_scheduler='none', batch_size=64, ema_decay=0.9, **net)
    whole = run(epoch=2, **given)
    run(epoch=1, run_dir=tmp_path/'r', **given)
    parts = run(epoch=2, run_dir=tmp_path/'r', resume_from='latest', **given)
    assert torch.equal(weights(parts), weights(whole)) and parts.last['valid/loss'] == whole.last['valid/loss']
    kept = {k.removeprefix('ema.').removeprefix('net.'): v for k, v in whole.tensors.items() if k.startswith('ema.')}
    loaded = load_net(whole.result.checkpoint(3, 'last')).state_dict()
    assert kept and all(torch.equal(loaded[k], v) for k, v in kept.items() if k in loaded) and {*loaded} & {*kept} == {*loaded}
