"More rows of the option table: data, nets, losses, checkpoints and what is taken from them"
import functools, json, math, shutil
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from maou_nb import OptionError, StageThresholdNotMet, learn_multi_stage
from maou_nb.data import batches, sources
from maou_nb.data.batches import BatchStream
from maou_nb.data.labels import LABEL_MIRROR, SQUARE_MIRROR
from maou_nb.data.old import write_old
from maou_nb.data.shards import find_shards, read_shard
from maou_nb.front.judge import load_net
from maou_nb.model import backbones
from maou_nb.model.backbones import ResNet
from maou_nb.train import loop as loops
from maou_nb.train.checkpoints import Checkpoints, load_tensors, part
from maou_nb.train.config import backbone_of, make_config
from maou_nb.train.loop import Diverged, Loop
from maou_nb.train.stages import sources_of
from options import check, few, moved, params, row, run, shape, weights

slow_steps = functools.partial(dict, optimizer='sgd', momentum=0., learning_ratio=1e-12, lr_scheduler='none')   # weights stay where they begin

def of_part(r, prefix, stage=None):
    "The tensors of a run's last checkpoint of `stage` whose names begin with `prefix`"
    tensors = r.tensors if stage is None else load_tensors(r.result.checkpoint(stage, 'last'))[0]
    return part(tensors, prefix)

def learnt(tensors): return {k: v for k, v in tensors.items() if 'running_' not in k and 'num_batches' not in k}
def same(a, b, **near):
    "Whether two dicts of tensors have the same names and values"
    return a.keys() == b.keys() and all(torch.allclose(a[k], b[k], **near) if near else torch.equal(a[k], b[k]) for k in a)

def judged(r):
    "What the last net of a run says of all rows that it was judged on, and those rows, in 64 bits"
    cfg, n = make_config(**json.loads((r.dir/'config.json').read_text())), r.stage.stage
    train, valid, _ = sources_of(cfg, n)
    source = valid or train
    batch, = (b.decode() for b in BatchStream(source, source.plan(1 << 20, shuffle=False)))
    with torch.no_grad(): outputs = load_net(r.result.checkpoint(n, 'last'))(batch.board, batch.hands)
    return {k: v.double() for k, v in outputs.items()}, batch
def figure(r, name): return r.last[f"{'valid' if 'valid' in r.stage.rows else 'train_eval'}/{name}"]
def logs(logits): return -torch.log1p(torch.exp(-logits)), -torch.log1p(torch.exp(logits))    # of p and of 1 − p

def watch_batches(go):
    "What `go` returns, and copies of the dense batches that it trained on"
    seen, real = [], Loop.train_batch
    def spy(self, batch): seen.append({k: v.clone() for k in ('board', 'hands', 'policy') if (v := getattr(batch, k)) is not None}); return real(self, batch)
    with patch.object(Loop, 'train_batch', spy): return go(), seen

# --- data
@row
def stage3_validation_data_path(run, few):
    counts = {n: sum(s.rows for s in find_shards(few/n/'stage3', 3)) for n in ('twelve', 'six')}
    r = run(stage3_validation_data_path=few/'six'/'stage3')
    assert run().stage.rows['train'] < counts['twelve'] and r.stage.rows == {'train': counts['twelve'], 'valid': counts['six']}
    assert (run().stage.judged_on, r.stage.judged_on) == ('held-out games', 'held-out rows')
    with pytest.raises(OptionError, match='stage3_validation_data_path=.*stage 3 is not run'): run(stage=1, stage3_validation_data_path=few/'six'/'stage3')
@row
def input_file_packed(run, few):
    tables = [read_shard(s) for s in find_shards(few/'six'/'stage3', 3)]
    for kind in ('plain', 'packed'):
        (few/kind).mkdir()
        assert write_old(tables, few/kind/'rows.npy', 3, f'npy-{kind}') == sum(map(len, tables))
    plain, packed = run(stage3_data_path=few/'plain'), run(stage3_data_path=few/'packed', input_file_packed=True)
    assert plain.stage.rows == packed.stage.rows and not moved(plain, packed)
    with pytest.raises(OptionError, match='input_file_packed=True reads it'): run(stage3_data_path=few/'packed')
    with pytest.raises(OptionError, match='input_file_packed=False reads it'): run(stage3_data_path=few/'plain', input_file_packed=True)
@row
def on_bad(run, few, capsys):
    shutil.copytree(few/'twelve'/'stage3', few/'damaged')
    bad = sorted((few/'damaged').glob('*.feather'))[0]
    bad.write_bytes(bad.read_bytes()[:-200])
    with pytest.raises(Exception, match=bad.name): run(stage3_data_path=few/'damaged')
    r = run(stage3_data_path=few/'damaged', on_bad='skip')
    assert sum(r.stage.rows.values()) == sum(run().stage.rows.values()) - find_shards(few/'twelve'/'stage3', 3)[0].rows
    out = capsys.readouterr().out
    assert '1 left out' in out and bad.name in out
@row
def input_cache_mode(run, few, capsys, monkeypatch):
    monkeypatch.setenv('MAOU_NB_CACHE', str(few/'cache'))
    held, real = {}, Loop.fit
    def spy(self): out = real(self); held[self.train.cache] = self.train._held; return out
    with patch.object(Loop, 'fit', spy): runs = {m: run.afresh(input_cache_mode=m) for m in ('file', 'memory', 'mmap', 'device')}
    for m, r in runs.items(): assert not moved(r, runs['file']) and r.stage.metrics == runs['file'].stage.metrics, m
    assert held['file'] is None and type(held['device']).__name__ == 'DeviceRows' and len(held['memory']) == runs['file'].stage.rows['train']
    backed = lambda a: isinstance(a, np.memmap) or a is not None and backed(getattr(a, 'base', None))
    assert backed(held['mmap'].fixed) and not backed(held['memory'].fixed)
    assert 'unpacked once' in capsys.readouterr().out and list((few/'cache').rglob('*-rows.safetensors'))
    with pytest.raises(OptionError, match="dataloader_workers=2 with input_cache_mode='device'"): run(input_cache_mode='device', dataloader_workers=2)
@row
def cache_transforms(run, few):
    def decoded(**options):
        calls, real = [], batches.Batch.decode
        def spy(self, into=None): calls.append(len(self)); return real(self, into)
        with patch.object(batches.Batch, 'decode', spy): return run.afresh(no_streaming=True, input_cache_mode='memory', epoch=3, **options), sum(calls)
    (a, often), (b, once) = decoded(), decoded(cache_transforms=True)
    rows = sum(a.stage.rows.values())
    assert (often, once) == (3*rows, rows) and not moved(a, b)
    with pytest.raises(OptionError, match='cache_transforms=True.*no_streaming=True would be right'): run(cache_transforms=True)
@row
def dataloader_workers(run, few):
    made, real = [], batches.DataLoader
    def spy(*args, **options): made.append((options['num_workers'], options['prefetch_factor'])); return real(*args, **options)
    with patch.object(batches, 'DataLoader', spy): r = run.afresh(stage=1, dataloader_workers=1, prefetch_factor=3)
    assert made == [(1, 3)]*2 and not moved(r, run(stage=1))
@row
def prefetch_factor(run, few):
    def ahead(n):
        "How many batches are made by the time the first is trained on, waited for a while"
        made, at_first, real_ahead, real_train = [], [], batches._ahead, Loop.train_batch
        def counted(stream):
            for b in stream: made.append(1); yield b
        def train(self, batch):
            if not at_first:
                for _ in range(100 if n > 1 else 20):
                    if len(made) > n: break
                    loops.time.sleep(0.01)
                loops.time.sleep(0.1); at_first.append(len(made))
            return real_train(self, batch)
        with patch.object(batches, '_ahead', lambda stream, *more: real_ahead(counted(stream), *more)), patch.object(Loop, 'train_batch', train): r = run.afresh(prefetch_factor=n)
        return r, at_first[0]
    (a, short), (b, far) = ahead(1), ahead(8)
    assert short <= 3 < 8 <= far <= 10 and not moved(a, b)
@row
def pin_memory(run, few):
    pinned, made, real = [], [], loops.batch_loader
    def spy(*args):
        with patch.object(torch.cuda, 'is_available', lambda: True): made.append(real(*args)); return made[-1]      # as if there were a GPU, for this question only
    with patch.object(batches.Batch, 'pin_memory', lambda self: pinned.append(1) or self), patch.object(loops, 'batch_loader', spy):
        a = run.afresh(); assert not pinned and not any(m.pin for m in made)
        b = run.afresh(pin_memory=True)
    assert len(pinned) >= b.last['step'] and not moved(a, b)
    with pytest.raises(OptionError, match="pin_memory=True with input_cache_mode='device'"): run(input_cache_mode='device', pin_memory=True)
@row
def mirror_augmentation(run, few):
    (a, plain), (b, mixed) = (watch_batches(lambda: run.afresh(mirror_augmentation=m)) for m in (False, True))
    (x, p), (y, q) = ((torch.cat([s['board'] for s in seen]), torch.cat([s['policy'] for s in seen])) for seen in (plain, mixed))
    flipped = (x != y).any(1)
    assert torch.equal(y[flipped], x[flipped][:, SQUARE_MIRROR]) and 0.35 < flipped.float().mean() < 0.65
    assert torch.equal(q[flipped], p[flipped][:, LABEL_MIRROR]) and torch.equal(p[~flipped], q[~flipped]) and moved(a, b)

# --- model
@row
def resnet_squeeze_excitation(run, few):
    a, b = run(stage=1), run(stage=1, resnet_squeeze_excitation=True)
    width = 8 // 4
    assert params(b) - params(a) == 8*width + width + width*8 + 8
    assert any('gate' in k for k in b.tensors) and not any('gate' in k for k in a.tensors)
@row
def vit_position(run, few):
    a, b = (run(stage=1, model_architecture='vit', vit_position=p) for p in ('learned', 'relative'))
    assert of_part(a, 'net.backbone.stem.position')[''].shape == (81, 8) and not of_part(b, 'net.backbone.stem.position')
    table, = (t for k, t in b.tensors.items() if k.startswith('net.') and k.endswith('bias.table'))
    assert table.shape == (2, 17, 17) and table.abs().sum() > 0
@row
def gradient_checkpointing(run, few):
    for architecture in ('resnet', 'mlp-mixer', 'vit'):
        calls, real = [], backbones.checkpoint
        def spy(*args, **options): calls.append(1); return real(*args, **options)
        with patch.object(backbones, 'checkpoint', spy):
            a = run.afresh(stage=1, model_architecture=architecture); assert not calls
            b = run.afresh(stage=1, model_architecture=architecture, gradient_checkpointing=True)
        assert len(calls) == b.last['step'] and torch.allclose(weights(a), weights(b), atol=1e-5), architecture

def compiled(run, backend, **options):
    "A run and how many graphs were compiled in it"
    from torch._dynamo.utils import counters
    torch._dynamo.reset(); counters.clear()
    real = torch.nn.Module.compile
    with patch.object(torch.nn.Module, 'compile', lambda self, *args: real(self, *args, backend=backend)): r = run.afresh(**options)
    return r, counters['stats']['unique_graphs']
@row
def compilation(run, few):
    (a, none), (b, some) = compiled(run, 'eager', stage12_compilation=True), compiled(run, 'eager', compilation=True)
    assert none == 0 < some and torch.allclose(weights(a), weights(b), atol=1e-4) and abs(a.last['valid/loss'] - b.last['valid/loss']) < 1e-3
@row
def stage12_compilation(run, few):
    for n in (1, 2):
        (a, none), (b, some) = compiled(run, 'eager', stage=n, compilation=True), compiled(run, 'eager', stage=n, stage12_compilation=True)
        assert none == 0 < some and torch.allclose(weights(a), weights(b), atol=1e-4), n
@pytest.mark.slow
def test_compilation_for_real(run):
    r, graphs = compiled(run, 'inductor', compilation=True, epoch=2)
    assert graphs and torch.allclose(weights(r), weights(run(epoch=2)), atol=1e-2) and abs(r.last['valid/loss'] - run(epoch=2).last['valid/loss']) < 0.02

def as_begun(r):
    "The backbone of a run before its first step"
    torch.manual_seed(0)
    return backbone_of(make_config(**json.loads((r.dir/'config.json').read_text()))).state_dict()
@row
def freeze_backbone(run, few):
    for architecture in ('resnet', 'mlp-mixer', 'vit'):
        free, frozen = (run(model_architecture=architecture, freeze_backbone=f) for f in (False, True))
        begun = as_begun(free)
        assert same(of_part(frozen, 'net.backbone.'), begun), architecture                    # batch norm statistics as well
        assert not any(torch.equal(v, begun[k]) for k, v in of_part(free, 'net.backbone.').items() if k.endswith(('weight', 'running_mean')))
        heads = of_part(frozen, 'net.heads.'), of_part(run(**slow_steps(model_architecture=architecture)), 'net.heads.')
        assert not any(torch.equal(heads[0][k], heads[1][k]) for k in heads[0])
    every = run(stage='all', freeze_backbone=True)
    assert same(of_part(every, 'net.backbone.', 2), of_part(every, 'net.backbone.', 3)) and not same(of_part(every, 'net.backbone.', 1), of_part(every, 'net.backbone.', 2))
    with pytest.raises(OptionError, match='freeze_backbone=True with stage=1: .*resume_backbone_from is needed'): run(stage=1, freeze_backbone=True)
@row
def trainable_layers(run, few):
    r = run(stage='all', resnet_blocks=3, trainable_layers=1)
    begun, at = as_begun(r), {n: of_part(r, 'net.backbone.', n) for n in (1, 2, 3)}
    last = lambda tensors: {k: v for k, v in tensors.items() if k.startswith('blocks.2')}
    others = lambda tensors: {k: v for k, v in tensors.items() if not k.startswith('blocks.2')}
    moves = lambda a, b: not any(torch.equal(a[k], b[k]) for k in a if k.endswith(('weight', 'running_mean')))
    assert moves(others(begun), others(at[1])) and moves(others(at[1]), others(at[2])) and same(others(at[2]), others(at[3]))
    assert same(last(begun), last(at[1])) and same(last(at[1]), last(at[2])) and moves(last(at[2]), last(at[3]))
    both = run(resnet_blocks=3, trainable_layers=1, freeze_backbone=True)                     # it wins over the other
    assert moves(last(as_begun(both)), last(of_part(both, 'net.backbone.')))
    none = run(resnet_blocks=3, trainable_layers=0)
    assert same(of_part(none, 'net.backbone.'), as_begun(none))
    with pytest.raises(OptionError, match='trainable_layers=3: this backbone has 3 layer groups.*at most 2'): run(stage='all', resnet_blocks=3, trainable_layers=3)

@pytest.mark.parametrize('name', ROWS)
def test_option_acts(name, request): check(ROWS[name], request)
