"More rows of the option table: data, nets, losses, checkpoints and what is taken from them"
import collections, contextlib, functools, io, json, math, re, shutil
from unittest.mock import patch

import numpy as np
import pyarrow as pa
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from maou_nb import OptionError
from maou_nb.data import batches
from maou_nb.data.batches import BatchStream
from maou_nb.data.files import as_path, is_remote
from maou_nb.data.labels import LABEL_MIRROR, SQUARE_MIRROR
from maou_nb.data.old import write_old
from maou_nb.data.shards import EVAL_SCALE, find_shards, read_shard, write_shard
from maou_nb.judge.ask import load_net
from maou_nb.model import backbones
from maou_nb.model.backbones import ResNet
from maou_nb.model.losses import LOSSES
from maou_nb.train import callbacks
from maou_nb.train import loop as loops
from maou_nb.train.checkpoints import Checkpoints, load_tensors, part
from maou_nb.model.backbones import backbone_of
from maou_nb.front.options import make_config
from maou_nb.train.loop import Diverged, Loop, make_accelerator
from maou_nb.train.noise import NoiseScale
from maou_nb.train.options import LearnConfig, vain_remark
from maou_nb.train.processes import SharedNorm, Together
from maou_nb.train.row_results import row_results as read_rows
from maou_nb.train.runner import close_sources, sources_of, stage_loop
from maou_nb.stages.policy_value import win_rate_loss
from maou_nb.stages.stage import STAGES
from options import blocks, check, few, moved, params, row, run, shape, weights

# weights stay where they begin
slow_steps = functools.partial(dict, optimizer='sgd', momentum=0., learning_ratio=1e-12, lr_scheduler='none')

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
    train, valid, _ = sources_of(cfg, STAGES[str(n)])
    source = valid or train
    batch, = (b.decode() for b in BatchStream(source, source.plan(1 << 20, shuffle=False)))
    with torch.no_grad(): outputs = load_net(r.result.checkpoint(n, 'last'))(batch.board, batch.hands)
    return {k: v.double() for k, v in outputs.items()}, batch
def figure(r, name): return r.last[f"{'valid' if 'valid' in r.stage.rows else 'train_eval'}/{name}"]
def logs(logits): return -torch.log1p(torch.exp(-logits)), -torch.log1p(torch.exp(logits))    # of p and of 1 − p

def watch_batches(go):
    "What `go` returns, and copies of the dense batches that it trained on"
    seen, real = [], Loop.train_batch
    def spy(self, batch):
        seen.append({k: v.clone() for k in ('board', 'hands', 'policy') if (v := getattr(batch, k)) is not None})
        return real(self, batch)
    with patch.object(Loop, 'train_batch', spy): return go(), seen

# --- data
@row
def stage3_validation_data_path(run, few):
    counts = {n: sum(s.rows for s in find_shards(few/n/'stage3', 3)) for n in ('twelve', 'six')}
    r = run(stage3_validation_data_path=few/'six'/'stage3')
    assert run().stage.rows['train'] < counts['twelve'] and r.stage.rows == {'train': counts['twelve'], 'valid': counts['six']}
    named = 'validation rows, 100% of whose games are trained on'       # the six are of the twelve
    assert (run().stage.judged_on, r.stage.judged_on) == ('held-out games', named)
    with pytest.raises(OptionError, match='stage3_validation_data_path=.*stage 3 is not run'):
        run(stage=1, stage3_validation_data_path=few/'six'/'stage3')
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
    assert held['file'] is None and type(held['device']).__name__ == 'DeviceRows'
    assert len(held['memory']) == runs['file'].stage.rows['train']
    backed = lambda a: isinstance(a, np.memmap) or a is not None and backed(getattr(a, 'base', None))
    assert backed(held['mmap'].fixed) and not backed(held['memory'].fixed)
    assert 'unpacked once' in capsys.readouterr().out and list((few/'cache').rglob('*-rows.safetensors'))
    with pytest.raises(OptionError, match="dataloader_workers=2 with input_cache_mode='device'"):
        run(input_cache_mode='device', dataloader_workers=2)
@row
def cache_transforms(run, few):
    def decoded(**options):
        calls, real = [], batches.Batch.decode
        def spy(self, into=None): calls.append(len(self)); return real(self, into)
        with patch.object(batches.Batch, 'decode', spy):
            return run.afresh(no_streaming=True, input_cache_mode='memory', epoch=3, **options), sum(calls)
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
        with (patch.object(batches, '_ahead', lambda stream, *more: real_ahead(counted(stream), *more)),
              patch.object(batches, 'TOGETHER', 1),      # else so few rows need nobody who works ahead
              patch.object(Loop, 'train_batch', train)):
            r = run.afresh(prefetch_factor=n)
        return r, at_first[0]
    (a, short), (b, far) = ahead(1), ahead(8)
    assert short <= 3 < 8 <= far <= 10 and not moved(a, b)
@row
def pin_memory(run, few):
    pinned, made, real = [], [], loops.batch_loader
    def spy(*args):
        # as if there were a GPU, for this question only
        with patch.object(torch.cuda, 'is_available', lambda: True):
            made.append(real(*args))
            return made[-1]
    with patch.object(batches.Batch, 'pin_memory', lambda self: pinned.append(1) or self), patch.object(loops, 'batch_loader', spy):
        a = run.afresh(); assert not pinned and not any(m.pin for m in made)         # a CPU wants none
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
def vit_smolgen_dim(run, few):
    a, b = (run(stage=1, model_architecture='vit', vit_position='smolgen', **d) for d in ({}, dict(vit_smolgen_dim=5)))
    made = [of_part(r, 'net.backbone.stem.generator.')['weight'] for r in (a, b)]
    assert [m.shape for m in made] == [(81*81, 8 // 4), (81*81, 5)] and not torch.equal(made[0], as_begun(a)['stem.generator.weight'])
    assert 'vit_position=smolgen uses it' in vain_remark(LearnConfig(model_architecture='vit', vit_smolgen_dim=5))
    assert not (vain_remark(LearnConfig(model_architecture='vit', vit_position='smolgen', vit_smolgen_dim=5)))
@row
def resnet_block(run, few):
    a, b = run(stage=1, resnet_blocks=2), run(stage=1, resnet_blocks=2, resnet_block='nested')
    assert params(b) - params(a) == 2*(10*8*8 + 2*8 + 5*2*4 - 18*8*8 - 4*8) + 2*8 and blocks(b) == 2
    assert not any('inner' in k for k in a.tensors) and any('inner.1.body.5.weight' in k for k in b.tensors)
    with pytest.raises(OptionError, match="resnet_channels=9, .*resnet_block='nested': channels 9 cannot be halved"):
        run(stage=1, resnet_channels=9, resnet_block='nested')
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
    # only inductor takes its options
    own = lambda options: {'options': options} if backend == 'inductor' else {}
    def compile(self, dynamic, options): return real(self, backend=backend, dynamic=dynamic, **own(options))
    with patch.object(torch.nn.Module, 'compile', compile): r = run.afresh(**options)
    return r, counters['stats']['unique_graphs']
@row
def compilation(run, few):
    with contextlib.redirect_stdout(io.StringIO()) as quiet: a, none = compiled(run, 'eager', stage12_compilation=True)
    with contextlib.redirect_stdout(io.StringIO()) as said: b, some = compiled(run, 'eager', compilation=True)
    assert none == 0 < some and torch.allclose(weights(a), weights(b), atol=1e-4)
    # after the first step, and after it was judged
    assert 'compiled in' not in quiet.getvalue() and len(re.findall(r'  compiled in \d+\.\d s', said.getvalue())) == 2
    assert not torch._dynamo.callback.callback_handler.start_callbacks
    assert abs(a.last['valid/loss'] - b.last['valid/loss']) < 1e-3
@row
def stage12_compilation(run, few):
    for n in (1, 2):
        (a, none), (b, some) = compiled(run, 'eager', stage=n, compilation=True), compiled(run, 'eager', stage=n, stage12_compilation=True)
        assert none == 0 < some and torch.allclose(weights(a), weights(b), atol=1e-4), n
@row
def compile_mode(run, few):
    asked, real = [], torch.nn.Module.compile
    def spy(self, dynamic, options): asked.append((dynamic, options)); return real(self, backend='eager')
    with patch.object(torch.nn.Module, 'compile', spy):
        for mode in ('default', 'max-autotune-no-cudagraphs', 'reduce-overhead'): run.afresh(compilation=True, compile_mode=mode)
    (_, plain), (_, tuned), (_, graphs) = asked
    assert tuned['max_autotune'] and graphs['triton.cudagraphs'] and not {'max_autotune', 'triton.cudagraphs'} & plain.keys()
    assert tuned.items() > plain.items() < graphs.items() and not any(dynamic for dynamic, _ in asked)
@contextlib.contextmanager
def counted_compilation():
    "Counts graphs, calls of them, and whole and short batches that nets are asked about"
    count = collections.Counter()
    def backend(graph, inputs):
        count['graphs'] += 1
        def counted(*args): count['compiled'] += 1; return graph.forward(*args)
        return counted
    compile, ask = torch.nn.Module.compile, Loop.ask
    def asking(self, net, batch):
        whole = {min(self.settings.batch_size, source.total_rows) for source in (self.train, self.valid) if source}
        count['whole' if len(batch) in whole else 'short'] += 1
        return ask(self, net, batch)
    with patch.object(torch.nn.Module, 'compile', lambda self, dynamic, options: compile(self, backend=backend, dynamic=dynamic)):
        with patch.object(Loop, 'ask', asking): yield count
@pytest.mark.parametrize('architectures', [('resnet', 'mlp-mixer'), pytest.param(('vit', 'resnet'), marks=pytest.mark.slow)])
def test_all_nets_of_a_kernel_are_compiled(run, architectures):
    "Dynamo compiles 8 graphs of one `forward`; the nets of three stages and of several runs have more"
    with counted_compilation() as count:
        for architecture in architectures:
            run.afresh(stage='all', model_architecture=architecture, compilation=True, stage12_compilation=True)
            assert count['compiled'] == count['whole'] > 0 < count['short'], architecture
    assert count['graphs'] > 8
@pytest.mark.parametrize('ema', [pytest.param(None, marks=pytest.mark.slow), 0.9])
def test_no_size_is_compiled_for_a_short_batch(run, ema):
    "One graph to train, one to judge by, and one of the averaged net where there is one, however batches fall"
    with counted_compilation() as count:
        r = run.afresh(stage=1, stage1_batch_size=100, stage1_max_epochs=2, stage12_compilation=True, ema_decay=ema,
                       watched_positions=('startpos',))
    assert count['short'] == 2 and count['compiled'] == count['whole'] == 22 and count['graphs'] == 2
    eager = run.afresh(stage=1, stage1_batch_size=100, stage1_max_epochs=2, ema_decay=ema)
    assert torch.allclose(weights(r), weights(eager), atol=1e-4)
@pytest.mark.slow
def test_compilation_for_real(run):
    r, graphs = compiled(run, 'inductor', compilation=True, epoch=2)
    assert graphs and torch.allclose(weights(r), weights(run(epoch=2)), atol=1e-2)
    assert abs(r.last['valid/loss'] - run(epoch=2).last['valid/loss']) < 0.02

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
        assert not any(torch.equal(v, begun[k]) for k, v in of_part(free, 'net.backbone.').items()
                       if k.endswith(('weight', 'running_mean')))
        heads = of_part(frozen, 'net.heads.'), of_part(run(**slow_steps(model_architecture=architecture)), 'net.heads.')
        assert not any(torch.equal(heads[0][k], heads[1][k]) for k in heads[0])
    every = run(stage='all', freeze_backbone=True)
    assert same(of_part(every, 'net.backbone.', 2), of_part(every, 'net.backbone.', 3))
    assert not same(of_part(every, 'net.backbone.', 1), of_part(every, 'net.backbone.', 2))
    with pytest.raises(OptionError, match='freeze_backbone=True with stage=1: .*resume_backbone_from is needed'):
        run(stage=1, freeze_backbone=True)
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
    with pytest.raises(OptionError, match='trainable_layers=3: this backbone has 3 layer groups.*at most 2'):
        run(stage='all', resnet_blocks=3, trainable_layers=3)

# --- parts of a net from elsewhere
def only(r, part_name, **more): return slow_steps(weight_decay=0., seed=5, run_name=f'from {part_name}', **more)
@row
def resume_backbone_from(run, few):
    source = run(stage=2)
    taken, fresh = (run(**only(source, 'backbone', **o)) for o in ({'resume_backbone_from': str(source.result.checkpoint(2))}, {}))
    there = learnt(of_part(source, 'net.backbone.'))
    assert same(learnt(of_part(taken, 'net.backbone.')), there, atol=1e-9)
    assert not same(learnt(of_part(fresh, 'net.backbone.')), there, atol=1e-3)
    assert same(learnt(of_part(taken, 'net.heads.')), learnt(of_part(fresh, 'net.heads.')), atol=1e-9)     # and nothing else
    frozen = run(stage=1, freeze_backbone=True, resume_backbone_from=str(source.dir))
    assert same(of_part(frozen, 'net.backbone.'), of_part(source, 'net.backbone.'))                        # statistics too
    with pytest.raises(OptionError) as e: run(resnet_channels=12, resnet_blocks=2, resume_backbone_from=str(source.dir))
    sizes = [k for k, v in of_part(source, 'net.backbone.').items() if v.ndim]
    assert 'resume_backbone_from=' in str(e.value) and all(f'{k} is ' in str(e.value) for k in sizes)
    assert 'blocks.1.body.0.weight is missing' in str(e.value)
    assert 'other options (resnet_channels=8 there and 12 here, resnet_blocks=1 there and 2 here)' in str(e.value)
    for other in ({'input_features': 'pieces'}, {'model_architecture': 'mlp-mixer'}):
        name, = other
        with pytest.raises(OptionError, match=rf"other options \(.*{name}='[a-z-]+' there and '{other[name]}' here.*the same would be"):
            run(**other, resume_backbone_from=str(source.dir))
    (few/'old.pt').write_bytes(b'anything')
    with pytest.raises(OptionError,
                       match="resume_backbone_from='.*old.pt': a pickled checkpoint of another tool, whose "
                             "net is another"):
        run(resume_backbone_from=str(few/'old.pt'))

def head_is_taken(run, stage, head, options):
    "That the head of one run is where another begins, and that what does not fit is listed"
    source, option, other = run(stage=stage, **options), f'resume_{head}_head_from', 2 if stage == 1 else 1
    taken, fresh = (run(**only(source, head, stage=stage, **options, **o))
                    for o in ({option: str(source.result.checkpoint(stage, 'last'))}, {}))
    there = of_part(source, f'net.heads.{head}.')
    assert there and same(of_part(taken, f'net.heads.{head}.'), there, atol=1e-9)
    assert not same(of_part(fresh, f'net.heads.{head}.'), there, atol=1e-4)
    rest = lambda r: {k: v for k, v in learnt(of_part(r, 'net.')).items() if not k.startswith(f'heads.{head}.')}
    assert same(rest(taken), rest(fresh), atol=1e-9)
    with pytest.raises(OptionError) as e: run(stage=stage, resnet_channels=12, **options, **{option: str(source.dir)})
    assert f'{option}=' in str(e.value) and all(k in str(e.value) for k, v in there.items() if 8 in v.shape[1:2])
    with pytest.raises(OptionError, match=f'{option}=.*is not run with stage={other}'): run(stage=other, **{option: str(source.dir)})
@row
def resume_reachable_head_from(run, few): head_is_taken(run, 1, 'reachable', {})
@row
def resume_legal_moves_head_from(run, few): head_is_taken(run, 2, 'legal_moves', dict(stage2_hidden_dim=6))
@row
def resume_policy_head_from(run, few): head_is_taken(run, 3, 'policy', {})
@row
def resume_value_head_from(run, few): head_is_taken(run, 3, 'value', {})

# --- losses, by hand, of what the last net says of the rows that it was judged on
@row
def stage1_pos_weight(run, few):
    for weight in (1., 4.):
        r = run(stage=1, stage1_pos_weight=weight)
        outputs, batch = judged(r)
        (p, q), y = logs(outputs['reachable']), batch.reachable.double()
        assert figure(r, 'loss') == pytest.approx(float(-(weight*y*p + (1 - y)*q).mean()), rel=1e-5), weight
    assert r.last['train/loss'] > run(stage=1).last['train/loss']
@row
def stage2_pos_weight(run, few):
    for weight in (1., 4.):
        r = run(stage=2, stage2_pos_weight=weight)
        outputs, batch = judged(r)
        (p, q), y = logs(outputs['legal_moves']), batch.legal.double()
        assert figure(r, 'loss') == pytest.approx(float(-(weight*y*p + (1 - y)*q).mean()), rel=1e-5), weight
    with pytest.raises(OptionError, match='stage2_pos_weight=4 with stage2_gamma_neg=2'):
        run(stage=2, stage2_pos_weight=4., stage2_gamma_neg=2.)
@row
def stage2_hidden_dim(run, few):
    a, b = run(stage=2), run(stage=2, stage2_hidden_dim=6)
    shapes = lambda r: [tuple(t.shape) for k, t in of_part(r, 'net.heads.legal_moves.').items() if k.endswith('weight')]
    assert shapes(a) == [(27, 8, 1, 1)] and sorted(shapes(b)) == [(6, 8, 1, 1), (27, 6, 1, 1)]
@row
def stage2_head_dropout(run, few):
    hidden = functools.partial(dict, **slow_steps(stage=2, stage2_hidden_dim=6))
    a, b = run(**hidden()), run(**hidden(stage2_head_dropout=0.9))
    assert a.last['train/loss'] != b.last['train/loss']                                      # it acts while training …
    assert figure(a, 'loss') == pytest.approx(figure(b, 'loss'), rel=1e-4)                   # … not while judging
    with pytest.raises(OptionError, match='stage2_head_dropout=0.5 without stage2_hidden_dim'): run(stage=2, stage2_head_dropout=0.5)

def legal_p(outputs, batch): return torch.where(batch.legal, outputs['policy'], -math.inf).softmax(1)
def kl(p, target): return float((torch.xlogy(target, target) - torch.xlogy(target, p)).sum(1).mean())
@row
def policy_loss(run, few):
    for name, by_hand in (('kl', kl), ('gce', lambda p, target: float((target * (1 - p**0.1)/0.1).sum(1).mean()))):
        r = run(policy_loss=name)
        outputs, batch = judged(r)
        assert figure(r, 'policy_loss') == pytest.approx(by_hand(legal_p(outputs, batch), batch.policy.double()), rel=1e-5), name
    assert moved(r, run())
@row
def gce_parameter(run, few):
    for q in (0.4, 1.):
        r = run(policy_loss='gce', gce_parameter=q)
        outputs, batch = judged(r)
        by_hand = float((batch.policy.double() * (1 - legal_p(outputs, batch)**q)/q).sum(1).mean())
        assert figure(r, 'policy_loss') == pytest.approx(by_hand, rel=1e-5), q
    with pytest.raises(OptionError, match="gce_parameter=0.4 with policy_loss='kl'"): run(gce_parameter=0.4)
@row
def policy_target_mode(run, few):
    "The target of each row from the counts and wins of its shard, of which each row gets three moves or as many as there are"
    table, draw = read_shard(find_shards(few/'twelve'/'stage3', 3)[0]), np.random.default_rng(0)
    def more_moves(row):
        legal = np.flatnonzero(np.unpackbits(np.frombuffer(row['legalMoves'], np.uint8), bitorder='little'))
        labels = np.sort(draw.permutation(legal)[:3])
        counts = draw.integers(1, 6, len(labels))
        wins = np.round(counts*draw.random(len(labels)))
        return {**row, 'moveLabels': labels.tolist(), 'moveCounts': counts.tolist(), 'moveWins': wins.tolist(),
                'count': int(counts.sum()), 'wins': float(wins.sum())}
    rows = [more_moves(row) for row in table.to_pylist()]
    write_shard(few/'moves'/'moves.feather', pa.Table.from_pylist(rows, table.schema), 3, 'rows with several moves')
    shares = {'move-label': lambda n, w: n, 'win-rate': lambda n, w: (w + 0.5)/(n + 1), 'weighted': lambda n, w: n*(w + 0.5)/(n + 1)}
    targets = {}
    for mode, share in shares.items():
        r = run(policy_target_mode=mode, stage3_validation_data_path=few/'moves')
        outputs, batch = judged(r)
        target = torch.zeros(len(rows), 1496, dtype=torch.float64)
        for i, t in enumerate(rows):
            shares = [share(n, w) for n, w in zip(t['moveCounts'], t['moveWins'])]
            target[i, t['moveLabels']] = torch.tensor(shares, dtype=torch.float64)
        targets[mode] = target / target.sum(1, keepdim=True)
        by_hand = kl(legal_p(outputs, batch), targets[mode])
        assert torch.allclose(batch.policy.double(), targets[mode], atol=1e-6), mode
        assert figure(r, 'policy_loss') == pytest.approx(by_hand, rel=1e-5), mode
    a, b, c = targets.values()
    assert all((x - y).abs().max() > 0.1 for x, y in ((a, b), (a, c), (b, c)))
@row
def value_result_weight(run, few):
    for weight in (1., 0.3):
        r = run(value_result_weight=weight)
        outputs, batch = judged(r)
        known, value = ~batch.eval.isnan(), batch.value.double()
        target = torch.where(known, weight*value + (1 - weight)/(1 + torch.exp(-batch.eval.double()/EVAL_SCALE)), value)
        p, q = logs(outputs['value'])
        by_hand = float(-(target*p + (1 - target)*q).mean())
        assert known.float().mean() > 0.5, weight
        assert figure(r, 'value_loss') == pytest.approx(by_hand, rel=1e-5), weight
    assert moved(r, run())

@row
def policy_mask(run, few):
    "Over all labels, in the history of a run; with gce too"
    r = run(policy_mask='none')
    outputs, batch = judged(r)
    log_p = outputs['policy'].log_softmax(1)
    by_hand = torch.xlogy(batch.policy.double(), batch.policy.double()).sum(1) - (batch.policy.double()*log_p).sum(1)
    assert figure(r, 'policy_loss') == pytest.approx(float(by_hand.mean()), rel=1e-5)
    assert moved(r, run()) and moved(run(policy_loss='gce'), run(policy_loss='gce', policy_mask='none'))
    gce = run(policy_loss='gce', policy_mask='none', gce_parameter=0.5)
    outputs, batch = judged(gce)
    by_hand = (batch.policy.double()*(1 - outputs['policy'].softmax(1)**0.5)/0.5).sum(1).mean()
    assert figure(gce, 'policy_loss') == pytest.approx(float(by_hand), rel=1e-5)

@row
def soft_policy_ratio(run, few): assert moved(run(soft_policy_ratio=1.), run())    # its formula: test_arms.py
@row
def auxiliary(run, few): assert of_part(run(auxiliary='2'), 'net.heads.legal_moves.') and moved(run(auxiliary='2'), run())
@row
def auxiliary_ratio(run, few):
    r = run(auxiliary='2', auxiliary_ratio=3.).last
    parts = r['train/policy_loss'] + r['train/value_loss'] + 3*r['train/legal_moves_loss']
    assert r['train/loss'] == pytest.approx(parts, rel=1e-5)

@row
def value_result_weight_end(run, few):
    "Each step has its share, and validation the last one"
    options = dict(value_result_weight=1., value_result_weight_end=0.2, epoch=2)
    real, shares = win_rate_loss, []
    def spy(outputs, batch, cfg):
        if torch.is_grad_enabled(): shares.append(cfg.value_result_weight)
        return real(outputs, batch, cfg)
    for length in (dict(max_steps=17), dict(max_steps=20, adaptive_batch=True), {}):       # no number of epochs, or of batches a step
        with patch.dict(LOSSES, bce=spy): r = run.afresh(**options | length)
        total = r.last['step']
        if length.get('adaptive_batch'): assert total == 20 and shares[-1] == pytest.approx(1 - 0.8*19/20)
        else: assert shares[-total:] == pytest.approx([1 - 0.8*n/total for n in range(total)])    # a trial batch comes before
    outputs, batch = judged(r)
    known, value = ~batch.eval.isnan(), batch.value.double()
    target = torch.where(known, 0.2*value + 0.8/(1 + torch.exp(-batch.eval.double()/EVAL_SCALE)), value)
    p, q = logs(outputs['value'])
    assert figure(r, 'value_loss') == pytest.approx(float(-(target*p + (1 - target)*q).mean()), rel=1e-5)
    assert moved(r, run(epoch=2)) and not moved(run(epoch=2), run(epoch=2, value_result_weight_end=1.))

@row
def eval_scale(run, few):
    "In the value's target, and in the score of an answer"
    made = {}
    for scale in (300., 1200.):
        made[scale] = r = run(value_result_weight=0.3, eval_scale=scale)
        outputs, batch = judged(r)
        known, value = ~batch.eval.isnan(), batch.value.double()
        target = torch.where(known, 0.3*value + 0.7/(1 + torch.exp(-batch.eval.double()/scale)), value)
        p, q = logs(outputs['value'])
        assert figure(r, 'value_loss') == pytest.approx(float(-(target*p + (1 - target)*q).mean()), rel=1e-5), scale
        said = r.result.predict('startpos')
        assert said.score == pytest.approx(scale*math.log(said.value/(1 - said.value)), abs=0.1)
    assert moved(*made.values())
    with pytest.raises(OptionError, match='eval_scale=0'): run(eval_scale=0)

# --- training
@row
def start_epoch(run, few):
    whole, late = run(epoch=3), run(epoch=3, start_epoch=2)
    assert [h['epoch'] for h in late.history] == [3] and late.stage.epochs_trained == 1 and late.last['step'] == whole.last['step']
    assert late.history[0]['lr'] == whole.history[2]['lr'] != whole.history[0]['lr']
    with pytest.raises(OptionError, match='start_epoch=3 with epoch=3.*at most 2'): run(epoch=3, start_epoch=3)

def with_losses(run, **options):
    "A run in which validation gives losses that were made up"
    made_up = {'loss': iter([5, 3, 4, 4, 4, 4]), 'policy_loss': iter([1, 2, 3, 4, 5, 6]), 'value_loss': iter([6, 5, 4, 3, 2, 1])}
    real = Loop.evaluate
    evaluate = lambda self, source: {**real(self, source), **{k: float(next(v)) for k, v in made_up.items()}}
    with patch.object(Loop, 'evaluate', evaluate):
        return run.afresh(epoch=6, stage3_batch_size=500, **options)
@row
def early_stopping_patience(run, few):
    trained = {n: with_losses(run, early_stopping_patience=n) for n in (0, 1, 3)}
    assert {n: r.stage.epochs_trained for n, r in trained.items()} == {0: 6, 1: 3, 3: 5}
    assert all(r.stage.best_epoch == 2 for r in trained.values())
@row
def early_stopping_metric(run, few):
    runs = {m: with_losses(run, early_stopping_patience=2, early_stopping_metric=m) for m in ('total', 'policy', 'value')}
    assert ({m: (r.stage.epochs_trained, r.stage.best_epoch) for m, r in runs.items()}
            == {'total': (4, 2), 'policy': (3, 1), 'value': (6, 6)})
    for m, r in runs.items(): assert load_tensors(r.result.checkpoint(3, 'best'))[1]['epoch'] == r.stage.best_epoch, m
    r = runs['total']
    assert [load_tensors(r.result.checkpoint(3, which))[1]['epoch'] for which in ('best_policy', 'best_value')] == [1, 4]
@row
def export_onnx(run, few):
    import onnxruntime
    a, b = run(epoch=2), run(epoch=2, export_onnx=True)
    assert not list(a.dir.rglob('*.onnx')) and sorted(p.name for p in b.dir.rglob('*.onnx')) == ['model_fp16.onnx', 'model_fp32.onnx']
    net, board, hands = load_net(b.result.checkpoint(3)), torch.randint(0, 29, (2, 81)), torch.randint(0, 3, (2, 14))
    session = onnxruntime.InferenceSession(b.dir/'onnx'/'model_fp32.onnx')
    types = {'tensor(uint8)': np.uint8, 'tensor(int64)': np.int64, 'tensor(int32)': np.int32, 'tensor(float)': np.float32}
    inputs = {i.name: v.numpy().astype(types[i.type]) for i, v in zip(session.get_inputs(), (board, hands))}
    answers = dict(zip((o.name for o in session.get_outputs()), session.run(None, inputs)))
    with torch.no_grad(): outputs = net(board.byte(), hands.byte())
    assert list(inputs) == ['board', 'hand'] and set(answers) == {'policy', 'value'}
    for k, v in answers.items(): np.testing.assert_allclose(v.reshape(outputs[k].shape), outputs[k], atol=1e-4)
    with pytest.raises(OptionError, match='export_onnx=True with stage=1'): run(stage=1, export_onnx=True)
@row
def gradient_accumulation_steps(run, few):
    mixer = functools.partial(dict, model_architecture='mlp-mixer', optimizer='sgd')           # without batch norm two halves are the whole
    whole, halves = run(**mixer(stage3_batch_size=40)), run(**mixer(stage3_batch_size=20, gradient_accumulation_steps=2))
    assert halves.last['step'] == whole.last['step'] == math.ceil(whole.stage.rows['train'] / 40)
    assert torch.allclose(weights(whole), weights(halves), atol=1e-5)
    assert halves.last['train/loss'] == pytest.approx(whole.last['train/loss'], abs=1e-5)
    assert not torch.allclose(weights(whole), weights(run(**mixer(stage3_batch_size=20))), atol=1e-5)
def counts(r): return [row['effective_batch'] // 8 for row in every_step(r)]
def every_step(r): return [json.loads(l) for l in (r.dir/'steps.jsonl').read_text().splitlines()]
@pytest.fixture
def adaptive(run):
    "A function that runs with batches a step by the noise, and keeps each step's figures"
    def of(**options):
        options = dict(adaptive_batch=True, stage3_batch_size=8, adaptive_batch_interval=3, adaptive_batch_measurement_interval=2) | options
        with patch.object(callbacks.Steps.__init__, '__defaults__', (0., 10**9)): return run(**options)
    return of
@row
def noise_scale(run, few):
    a, b = run(stage3_batch_size=64), run(stage3_batch_size=64, noise_scale=True)       # against references: test_noise.py
    assert not moved(a, b) and 'noise_scale' in b.last and 'noise_scale' not in a.last
@row
def adaptive_batch(run, few, adaptive):
    r = adaptive()
    assert {*counts(r)} > {2} and moved(r, run(stage3_batch_size=8, gradient_accumulation_steps=2))
    assert r.last['step'] < run(stage3_batch_size=8, gradient_accumulation_steps=2).last['step']
@row
def adaptive_batch_min_steps(run, few, adaptive): assert min(counts(adaptive(adaptive_batch_min_steps=5))) == 5
@row
def adaptive_batch_max_steps(run, few, adaptive): assert max(counts(adaptive(adaptive_batch_max_steps=4))) == 4 < max(counts(adaptive()))
@row
def adaptive_batch_interval(run, few, adaptive):
    first = lambda r: next(i for i, (a, b) in enumerate(zip(counts(r), counts(r)[1:]), 2) if a != b)     # the step from which it is another
    often, late = adaptive(), adaptive(adaptive_batch_interval=12)
    assert first(often) % 3 == 0 and first(late) % 12 == 0 and first(often) < first(late)
@row
def adaptive_batch_smoothing(run, few, adaptive):
    a, b = (run(stage3_batch_size=64, noise_scale=True, adaptive_batch_smoothing=s) for s in (0.1, 0.9))
    assert not moved(a, b) and a.last['noise_scale'] != b.last.get('noise_scale')
@row
def adaptive_batch_measurement_interval(run, few):
    for every in (2, 7):
        measured, real = [], NoiseScale.before_step
        def spy(self, loop):
            if self.parts is not None: measured.append(loop.step)
            real(self, loop)
        options = dict(stage3_batch_size=64, noise_scale=True, adaptive_batch_measurement_interval=every)
        with patch.object(NoiseScale, 'before_step', spy): r = run.afresh(**options)
        assert measured == [*range(0, r.last['step'], every)]
@row
def ema_decay(run, few):
    a, b = run(lr_scheduler='none'), run(lr_scheduler='none', ema_decay=0.9)
    assert not of_part(a, 'ema.') and of_part(b, 'ema.').keys() == of_part(b, 'net.').keys() and not moved(a, b)
    assert a.last['train/loss'] == b.last['train/loss'] and figure(a, 'loss') != figure(b, 'loss')
    outputs, batch = judged(b)
    # of the averaged weights, which load_net takes
    assert figure(b, 'policy_loss') == pytest.approx(kl(legal_p(outputs, batch), batch.policy.double()), rel=1e-5)
    one = run(ema_decay=0.9, stage3_batch_size=100_000)                                      # a single step: (1 + 1)/(10 + 1) of the old
    begun, new, mean = (learnt(t) for t in (as_begun(one), of_part(one, 'net.backbone.'), of_part(one, 'ema.backbone.')))
    assert one.last['step'] == 1 and same(mean, {k: begun[k]*2/11 + new[k]*9/11 for k in new}, atol=1e-6)

class Spoilt(ResNet):
    "A net whose loss is a number, and whose gradient is none"
    def __init__(self): super().__init__(8, 1)
    def forward_features(self, board, hands, groups=None):
        x = super().forward_features(board, hands, groups)
        return x + 0*(x - x).sqrt()
@row
def sync_batchnorm(run, few, monkeypatch):
    # what it does to gradients and statistics, test_processes.py shows with two processes
    cfg = lambda **o: LearnConfig(stage=1, stage1_data_path=str(few/'stage1'), model_size='tiny', gpu='cpu', **o)
    def shared(world, **options):
        with monkeypatch.context() as m:
            m.setattr(loops, 'join', lambda: Together(0, world))
            m.setattr(Together, 'meet', lambda self, *why: '')       # there is nobody to meet
            m.setattr(Together, 'tell', lambda self, make: make())
            loop, _ = stage_loop(cfg(**options), STAGES['1'], backbone_of(cfg()), make_accelerator('cpu'))
        close_sources(loop)
        norms = [m for m in loop.net.modules() if isinstance(m, torch.nn.BatchNorm2d | SharedNorm)]
        assert norms
        return {type(m) is SharedNorm for m in norms}
    assert shared(2) == shared(2, sync_batchnorm=True) == {True} and shared(2, sync_batchnorm=False) == shared(1) == {False}
    why = 'one process trains; gpus=2 would start two'
    assert vain_remark(cfg(sync_batchnorm=False)) == f'set, and without effect here: sync_batchnorm ({why})'
@row
def detect_anomaly(run, few, monkeypatch):
    monkeypatch.setitem(backbones.BACKBONES, 'spoilt', Spoilt); monkeypatch.setitem(backbones.SIZES, 'spoilt', {})
    with pytest.raises(Diverged, match='the loss is nan at step [0-9]+.*detect_anomaly=True names the operation'):
        run(stage=1, model_architecture='spoilt')
    said = "stage 1 diverged in step 1: Function 'SqrtBackward0' returned nan"
    with pytest.warns(UserWarning, match='SqrtBackward'), pytest.raises(Diverged, match=said):
        run(stage=1, model_architecture='spoilt', detect_anomaly=True)

asked = []
class Asks(ResNet):
    "A net that notes whether only deterministic kernels are allowed"
    def __init__(self): super().__init__(8, 1)
    def forward_features(self, board, hands, groups=None):
        asked.append(torch.are_deterministic_algorithms_enabled())
        return super().forward_features(board, hands, groups)
@row
def deterministic(run, few, monkeypatch):
    monkeypatch.setitem(backbones.BACKBONES, 'asks', Asks); monkeypatch.setitem(backbones.SIZES, 'asks', {})
    for wanted in (False, True):
        del asked[:]
        run(stage=1, model_architecture='asks', deterministic=wanted)
        in_training = asked[1:]                                                              # the first is the trial of make_config
        assert len(in_training) >= 16 and set(in_training) == {wanted} and not torch.are_deterministic_algorithms_enabled()

# --- checkpoints and logs
@row
def resume_from(run, few, capsys):
    options, whole = dict(lr_scheduler='none'), run(lr_scheduler='none', epoch=3)
    figures = lambda r: [{k: v for k, v in h.items() if k not in loops.TIMINGS} for h in r.history]
    run.afresh(**options, epoch=1, run_dir=few/'a')
    assert 'earlier-1' not in {p.name for p in (few/'a').iterdir()}
    on = run.afresh(**options, epoch=3, run_dir=few/'a', resume_from='latest')
    assert figures(on) == figures(whole) and not moved(on, whole)
    again = run.afresh(**options, epoch=3, run_dir=few/'a', resume_from='latest')            # finished: its result, no step
    assert again.history == on.history
    elsewhere = run.afresh(**options, epoch=3, run_dir=few/'b', resume_from=str(on.result.checkpoint(3, 'last')))
    assert not moved(elsewhere, whole)
    new = run.afresh(**options, epoch=1, run_dir=few/'a')                                    # without it the old run is set aside
    assert len(new.history) == 1 and (few/'a'/'earlier-1'/'result.json').exists()
    with pytest.raises(OptionError, match='seed: 0 → 1'): run.afresh(**options, epoch=3, run_dir=few/'b', resume_from='latest', seed=1)
    with pytest.raises(OptionError, match='resume_from=.*does not exist'): run(resume_from=str(few/'nowhere'))

def saves(run, **options):
    "A run and the steps at which it saved"
    at, real = [], Checkpoints.save
    def spy(self, name, tensors, about, marks=()): at.append(about['step']); return real(self, name, tensors, about, marks)
    with patch.object(Checkpoints, 'save', spy): return run.afresh(**options), at
@row
def checkpoint_every(run, few):
    (a, each_epoch), (b, often) = saves(run, epoch=2), saves(run, epoch=2, checkpoint_every=5)
    n = a.last['step'] // 2
    assert each_epoch == [n, 2*n] and often == sorted([*range(5, 2*n + 1, 5), n, 2*n]) and not moved(a, b)
@row
def row_results(run, few):
    a, b = run(), run(row_results=True)
    assert not moved(a, b) and not (a.dir/'rows').exists()
    kept = read_rows(b.dir)
    assert len(kept) == b.stage.rows['valid'] and kept['policy_loss'].mean() == pytest.approx(b.last['valid/policy_loss'], abs=1e-5)
@row
def exam_after(run, few):
    a, b = run(), run(exam_after=True)
    assert not moved(a, b) and not (a.dir/'exam.json').exists() and (b.dir/'exam.html').exists()
    assert json.loads((b.dir/'exam.json').read_text())['figures']['moves/top1'] > 0
@row
def keep_checkpoints(run, few):
    steps = lambda r: sorted(int(p.stem.split('-')[-1]) for p in (r.dir/'checkpoints'/'stage3').glob('*.safetensors'))
    for keep in (1, 4):
        r, at = saves(run, checkpoint_every=4, keep_checkpoints=keep)
        assert steps(r) == sorted({*at[-keep:]}) and len(at) > 4                              # the best is the last: one epoch only
@row
def save_split_params(run, few):
    a, b = run(epoch=2), run(epoch=2, save_split_params=True)
    assert not list(a.dir.rglob('parts'))
    folder = b.dir/'checkpoints'/'stage3'/'parts'
    assert sorted(p.name for p in folder.iterdir()) == ['backbone.safetensors', 'policy_head.safetensors', 'value_head.safetensors']
    best = load_tensors(b.result.checkpoint(3, 'best'))[0]
    for name, prefix in (('backbone', 'net.backbone.'), ('policy_head', 'net.heads.policy.'), ('value_head', 'net.heads.value.')):
        assert same(load_tensors(folder/f'{name}.safetensors')[0], part(best, prefix))
    taken = run(**slow_steps(weight_decay=0., resume_value_head_from=str(folder/'value_head.safetensors')))
    assert same(of_part(taken, 'net.heads.value.'), part(best, 'net.heads.value.'), atol=1e-9)

def histograms(r):
    "Name → at which steps"
    log = EventAccumulator(str(r.dir/'logs'/'stage3'), size_guidance={'histograms': 0}).Reload()
    return {name: [e.step for e in log.Histograms(name)] for name in log.Tags()['histograms']}
@row
def tensorboard_histogram_frequency(run, few):
    none, second = histograms(run(epoch=4)), histograms(run(epoch=4, tensorboard_histogram_frequency=2))
    n = run(epoch=4).last['step'] // 4
    names = learnt(of_part(run(epoch=4), 'net.'))
    assert not none and second == {f'stage3/{kind}/{k}': [2*n, 4*n] for kind in ('weights', 'gradients') for k in names}
@row
def tensorboard_histogram_module(run, few):
    r = run(tensorboard_histogram_frequency=1, tensorboard_histogram_module=('heads.value.*', '*stem*piece*'))
    names = {k.split('/', 2)[2] for k in histograms(r)}
    assert names == {k for k in learnt(of_part(r, 'net.'))
                     if k.startswith('heads.value.') or 'stem' in k and 'piece' in k}
    assert len(names) == 7
    with pytest.raises(OptionError, match='tensorboard_histogram_module=.*without tensorboard_histogram_frequency'):
        run(tensorboard_histogram_module=('heads.*',))

# --- mirrors, over real servers on loopback
def files_below(root):
    "Name → bytes of the files below a folder or URL, hidden ones and what is only on disk left out"
    root = as_path(root)
    if not is_remote(root):
        return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob('*') if p.is_file()
                and not any(s.startswith('.') for s in p.relative_to(root).parts)}
    fs, at = root.fs, root.path.strip('/')
    fs.invalidate_cache()
    return {p.strip('/').removeprefix(at + '/'): fs.cat_file(p) for p in fs.find(at)}

def mirrored_run(run, few, kind, place, flag=True, stage=1):
    "A run with its mirror at bucket/base, and the names and bytes of both"
    flag_name, name, protocol = {'s3': ('output_s3', 's3', 's3'), 'gcs': ('output_gcs', 'gcs', 'gs')}[kind]
    bucket, base = place.split('/', 1)
    folder = few/f'{kind}-{bucket}-{base.replace("/", "-")}-{flag}'
    r = run.afresh(stage=stage, run_dir=folder,
                   **({flag_name: True, f'{name}_bucket_name': bucket, f'{name}_base_path': base} if flag else {}))
    return r, files_below(folder), files_below(f'{protocol}://{place}/{folder.name}')

def mirrors(run, few, kind):
    "The run is there, every stage, file for file; without the option nothing is"
    r, here, there = mirrored_run(run, few, kind, 'here/base', stage='all')
    assert here == there
    assert ({f'checkpoints/stage{n}/checkpoints.json' for n in (1, 2, 3)}
            | {'config.json', 'result.json', 'history.jsonl'} <= set(there))
    assert any(k.startswith('logs/stage3/events') for k in there) and sum(k.endswith('.safetensors') for k in there) >= 3
    _, here, there = mirrored_run(run, few, kind, 'here/base', flag=False)
    assert here and not there

def other_place(run, few, kind, protocol, place):
    "A run goes where its bucket and base path say, and nowhere else"
    _, here, there = mirrored_run(run, few, kind, place)
    assert here == there and 'result.json' in there
    name = f'{kind}-{place.replace("/", "-")}-True'
    assert not files_below(f'{protocol}://here/base/{name}')

def must_be_given(run, kind, what):
    "A mirror without a bucket or base path, and one of these without a mirror, are refused"
    option, rest = f'{kind}_{what}', {f'{kind}_{w}': 'x' for w in ('bucket_name', 'base_path') if w != what}
    with pytest.raises(OptionError, match=f'output_{kind}=True: {option} is missing'): run(stage=1, **{f'output_{kind}': True}, **rest)
    with pytest.raises(OptionError, match=f"{option}='x': nothing is mirrored without output_{kind}=True"): run(stage=1, **{option: 'x'})
@row
def watched_positions(run, few):
    r = run(epoch=2, watched_positions=('startpos',))
    lines = lambda r: [json.loads(l) for l in (r.dir/'watched.jsonl').read_text().splitlines()]
    assert [(l['stage'], l['epoch']) for l in lines(r)] == [(3, 0), (3, 1), (3, 2)] and lines(r)[0]['moves'] != lines(r)[2]['moves']
    log = EventAccumulator(str(r.dir/'logs'/'stage3')).Reload()
    assert log.Tags()['images'] == [f"stage3/{lines(r)[0]['sfen']}"]
    without = run(epoch=2)
    assert not (without.dir/'watched.jsonl').exists() and not moved(r, without)      # to be watched changes nothing
    with pytest.raises(OptionError, match="watched_positions='startpos moves 7g7e': .* is not legal"):
        run(watched_positions=('startpos moves 7g7e',))
    with pytest.raises(OptionError, match='cannot occur in a game'): run(watched_positions=('9/9/9/9/4N4/9/9/9/9 b - 1',))

@row
def output_s3(run, few, s3): mirrors(run, few, 's3')
@row
def s3_bucket_name(run, few, s3):
    as_path('s3://another').fs.mkdir('another')
    other_place(run, few, 's3', 's3', 'another/base'); must_be_given(run, 's3', 'bucket_name')
@row
def s3_base_path(run, few, s3): other_place(run, few, 's3', 's3', 'here/deep/er'); must_be_given(run, 's3', 'base_path')
@row
def output_gcs(run, few, gcs):
    mirrors(run, few, 'gcs')
    with pytest.raises(OptionError, match='output_s3=True: output_gcs=True is given too'):
        run(stage=1, output_s3=True, s3_bucket_name='here', s3_base_path='base', output_gcs=True,
            gcs_bucket_name='here', gcs_base_path='base')
@row
def gcs_bucket_name(run, few, gcs):
    as_path('gs://another').fs.mkdir('another')
    other_place(run, few, 'gcs', 'gs', 'another/base'); must_be_given(run, 'gcs', 'bucket_name')
@row
def gcs_base_path(run, few, gcs): other_place(run, few, 'gcs', 'gs', 'here/deep/er'); must_be_given(run, 'gcs', 'base_path')

# --- parts of one's own
PARTS = str(Path(__file__).with_name('own_parts.py'))

@row
def plugins(run, few):
    assert run(stage=1, plugins=PARTS, reachable_head='wide-squares').stage.epochs_trained == 1
    about = json.loads((run(stage=1, plugins=PARTS, reachable_head='wide-squares').dir/'run.json').read_text())
    assert PARTS in [p['name'] for p in about['plugins']]
    with pytest.raises(OptionError, match="plugins='nowhere.py': there is no such file"): run(stage=1, plugins='nowhere.py')
@row
def reachable_head(run, few):
    assert (shape(run(stage=1, plugins=PARTS, reachable_head='wide-squares'), 'reachable.logit')[-1] == 3
            != shape(run(stage=1), 'reachable.logit')[-1])
@row
def legal_moves_head(run, few): assert params(run(stage=2, plugins=PARTS, legal_moves_head='wide-moves')) != params(run(stage=2))
@row
def policy_head(run, few): assert params(run(plugins=PARTS, policy_head='wide-moves')) != params(run())
@row
def value_head(run, few):
    assert params(run(plugins=PARTS, value_head='narrow-value')) < params(run(value_head='value_mean')) < params(run())
    with pytest.raises(OptionError, match="value_head='policy': it gives"): run(value_head='policy')

def halves(a, b, part='loss'):
    first = lambda r: r.history[0][f'train_eval/{part}' if f'train_eval/{part}' in r.last else f'valid/{part}']
    assert first(a) < 0.75*first(b)
@row
def reachable_loss(run, few): halves(run(stage=1, plugins=PARTS, reachable_loss='half-squares'), run(stage=1))
@row
def legal_moves_loss(run, few): halves(run(stage=2, plugins=PARTS, legal_moves_loss='half-moves'), run(stage=2))
@row
def value_loss(run, few):
    halves(run(plugins=PARTS, value_loss='square'), run(), 'value_loss')
    with pytest.raises(OptionError, match="value_loss='kl': one of bce"): run(value_loss='kl')

LONG = {'cache_transforms', 'compile_mode', 'dataloader_workers', 'early_stopping_metric', 'exam_after', 'export_onnx', 'freeze_backbone',
        'gradient_checkpointing', 'output_gcs', 'output_s3', 'stage12_compilation', 'tensorboard_histogram_frequency'}

@pytest.mark.parametrize('name', [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in ROWS])
def test_option_acts(name, request): check(ROWS[name], request)
