"""Checkpoints that no run wrote: damaged, or whole and with parts of another shape, type or number

A run that goes on, and whoever loads the network, ends with a result or one sentence.
"""
import json, random, shutil, sys, time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from mutators import WHOLE, fuzz_here, run_apart, spoil_bytes, spoil_tree

LONG = pytest.mark.slow

def make_run(folder):
    "A run of stage 1 in `folder` with averaged weights, stopped in the middle of an epoch; its config"
    from maou_nb.front.learn import train_run
    from maou_nb.front.options import make_config
    from maou_nb.stages.rows import prepare_stage1
    from maou_nb.train.loop import Callback
    class StopAfter(Callback):
        def after_step(self, loop):
            if loop.step == 5: loop.stop.why = 'SIGTERM'
    prepare_stage1(folder/'stage1')
    cfg = make_config(stage=1, gpu='cpu', model_size='tiny', resnet_channels=4, resnet_blocks=1, stage1_threshold=1.,
                      stage1_max_epochs=2, stage1_batch_size=400, ema_decay=0.9, run_dir=folder/'run',
                      stage1_data_path=str(folder/'stage1'), resume_from='latest')
    assert train_run(cfg, pictures=False, say=lambda text: None, callbacks=[StopAfter()]).stopped
    return cfg

def loop_of(cfg):
    from maou_nb.model.backbones import backbone_of
    from maou_nb.stages.stage import STAGES
    from maou_nb.train.loop import make_accelerator
    from maou_nb.train.runner import stage_loop
    return stage_loop(cfg, STAGES['1'], backbone_of(cfg), make_accelerator('cpu', 'fp32'), say=lambda text: None)[0]

def go_on(cfg, folder):
    "Go on from the newest checkpoint in `folder`, to the end of the epoch"
    from maou_nb.train import runner
    from maou_nb.train.checkpoints import Checkpoints
    loop, said = loop_of(cfg), []
    newest = Checkpoints(folder).load_newest(said.append)
    runner.go_on(loop, *newest, said.append, folder)
    loop.one_epoch()
    runner.close_sources(loop)

def put(folder, tensors, about):
    "One checkpoint in `folder`, with the manifest it should have"
    from maou_nb.train.checkpoints import Checkpoints
    shutil.rmtree(folder, ignore_errors=True)
    return Checkpoints(folder).save('epoch-0001-step-00000005', tensors, about, ['best'])

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "The config of a run, and what its newest checkpoint holds"
    from maou_nb.train.checkpoints import Checkpoints
    folder = tmp_path_factory.mktemp('odd')
    cfg = make_run(folder)
    return cfg, Checkpoints(folder/'run'/'checkpoints'/'stage1').load('last')

def without(prefix): return lambda tensors, about: ({k: v for k, v in tensors.items() if not k.startswith(prefix)}, about)
def with_tensor(name, change): return lambda tensors, about: ({**tensors, name: change(tensors[name])}, about)
def said(**new): return lambda tensors, about: (tensors, {**about, **new})

WEIGHT = 'net.backbone.stem.0.weight'
ODD = {'no average': without('ema.'), 'no random state': without('random.'), 'no sums of its epoch': without('means.'),
       'half an optimizer': without('optimizer.0.exp_avg'), 'whole numbers': lambda t, a: ({k: v.long() for k, v in t.items()}, a),
       'an optimizer of another net': lambda t, a: ({**t, 'optimizer.999.step': torch.zeros(())}, a),
       'another shape in the optimizer': with_tensor('optimizer.0.exp_avg', lambda v: v[:1]),
       'another shape of the random state': with_tensor('random.cpu', lambda v: v[:9]),
       'sums of negative rows': with_tensor('means.rows', lambda v: -v), 'a batch beyond': said(batch=10**6), 'no place': said(epoch=None),
       'text for a place': said(step='5'), 'another step': said(step=99), 'no history': said(history=7),
       'odd rows': said(history=[{'a': 1}]),
       'no options': said(config=None), 'options that cannot be': said(config={'seed': []}), 'of another stage': said(stage=3),
       'no data': said(data=None), 'a list of callbacks': said(callbacks=[1]), 'says nothing': lambda t, a: (t, {})}

@pytest.mark.parametrize('what', ODD)
def test_what_fits_no_run_is_one_sentence(run, tmp_path, what):
    from maou_nb.data.options import OptionError
    from maou_nb.train.checkpoints import CheckpointError
    cfg, (tensors, about) = run
    put(tmp_path/'stage1', *ODD[what](tensors, about))
    with pytest.raises((CheckpointError, OptionError)) as e: go_on(cfg, tmp_path/'stage1')
    told = str(e.value)
    assert '\n' not in told and ('was expected' in told or 'begin another run' in told or 'resume_from' in told)

def test_a_turned_bit_is_seen_in_a_file_that_is_alone(tmp_path):
    from maou_nb.train.checkpoints import CheckpointError, load_tensors, save_tensors
    drawn, path = random.Random(0), tmp_path/'alone.safetensors'
    tensors = {'a': torch.randn(5, 3), 'b': torch.arange(7), 'c': torch.randn(()).bfloat16(), 'd': torch.zeros(0),
               'e': torch.tensor([True])}
    save_tensors(path, tensors, {'epoch': 3})
    good, about = load_tensors(path)
    data, seen = path.read_bytes(), 0
    for _ in range(600):
        at, turned = drawn.randrange(len(data)), bytearray(data)
        turned[at] ^= 1 << drawn.randrange(8)
        path.write_bytes(turned)
        try: found, said = load_tensors(path)
        except CheckpointError as e: seen += 1; assert '\n' not in str(e) and str(e).startswith(str(path))
        else: assert said == about and found.keys() == good.keys() and all(torch.equal(found[k], good[k]) for k in good)
    assert seen > 400

def test_what_was_saved_goes_on(run, tmp_path):
    cfg, (tensors, about) = run
    put(tmp_path/'stage1', tensors, about)
    go_on(cfg, tmp_path/'stage1')

def test_checkpoints_that_are_deleted_while_it_trains_are_missed(tmp_path):
    from maou_nb.train.checkpoints import Checkpoints
    told = []
    kept = Checkpoints(tmp_path/'stage1', keep=2, say=told.append)
    save = lambda n, marks=(): kept.save(f'step-{n}', {'x': torch.zeros(1)}, {'step': n}, marks)
    save(1, ['best']); save(2); save(3)
    (tmp_path/'stage1'/'step-1.safetensors').unlink()
    save(4)
    assert len(told) == 1 and 'step-1.safetensors was deleted while the run trains' in told[0]
    assert kept.path('best') is None and kept.load('last')[1]['step'] == 4 and kept.load_newest()[1]['step'] == 4
    shutil.rmtree(tmp_path/'stage1'); save(5, ['best'])
    assert len(told) == 2 and 'step-3.safetensors, step-4.safetensors were deleted' in told[1]
    (tmp_path/'stage1'/'checkpoints.json').write_text('{'); save(6)
    assert 'checkpoints.json is damaged' in told[2] and [*kept.manifest['files']] == ['step-5.safetensors', 'step-6.safetensors']
    (tmp_path/'stage1'/'checkpoints.json').unlink(); save(7)
    assert len(told) == 3 and [*kept.manifest['files']][-2:] == ['step-6.safetensors', 'step-7.safetensors']

# --- fuzz

DTYPES = (torch.int64, torch.uint8, torch.float16, torch.float64, torch.bool, torch.bfloat16)
SHAPES = (lambda t: t.reshape(-1), lambda t: t[None], lambda t: t.reshape(-1)[:1], lambda t: t.reshape(-1)[:0],
          lambda t: torch.zeros((), dtype=t.dtype), lambda t: torch.cat([t.reshape(-1)]*2))

def spoil_tensors(tensors, rng):
    "Tensors of which one to three are lost, renamed, added, or of another type, shape or value"
    tensors = dict(tensors)
    for _ in range(rng.choice([1, 1, 2, 3])):
        name, how = rng.choice(sorted(tensors)), rng.randrange(6)
        if how == 0: del tensors[name]
        elif how == 1: tensors[rng.choice([f'{name}?', name.replace('.', ''), 'optimizer.x.y', 'means.sum.x'])] = tensors.pop(name)
        elif how == 2: tensors[rng.choice(['net.more', 'optimizer.0.more', 'random.cuda.0', 'callback.a.b'])] = tensors[name].clone()
        elif how == 3: tensors[name] = tensors[name].to(rng.choice(DTYPES))
        elif how == 4: tensors[name] = rng.choice(SHAPES)(tensors[name]).clone()
        else: tensors[name] = torch.full_like(tensors[name], rng.choice([0, 1, 255] if tensors[name].dtype == torch.uint8 else [0, -1, 7]))
    return tensors

def spoiled_checkpoints(n, seed, folder):
    from maou_nb.data.files import FileError
    from maou_nb.data.options import OptionError
    from maou_nb.judge.ask import load_net
    from maou_nb.train.checkpoints import CheckpointError, Checkpoints
    cfg, rng, fine, refused = make_run(folder), random.Random(seed), 0, 0
    tensors, about = Checkpoints(folder/'run'/'checkpoints'/'stage1').load('last')
    at = folder/'odd'/'stage1'
    path = put(at, tensors, about)
    raw, listed, manifest = path.read_bytes(), (at/'checkpoints.json').read_bytes(), at/'checkpoints.json'
    for i in range(n):
        context = i % 4
        if context == 0: path.write_bytes(spoil_bytes(raw, rng)); manifest.write_bytes(listed)
        elif context == 1:
            path.write_bytes(raw)
            manifest.write_bytes(rng.choice(WHOLE) if i % 8 == 1 else json.dumps(spoil_tree(json.loads(listed), rng)).encode())
        elif context == 2: put(at, spoil_tensors(tensors, rng), about)
        else:
            spoilt = spoil_tree(about, rng)
            put(at, tensors, spoilt if isinstance(spoilt, dict) else {'config': spoilt})      # as `save` wants one
        if context == 0 and i % 8: manifest.unlink()      # nothing vouches for it
        doors = [lambda: load_net(path), lambda: load_net(at)]
        if manifest.exists(): doors.append(lambda: go_on(cfg, at))
        for door in doors:
            began = time.monotonic()
            try: door(); fine += 1
            except (CheckpointError, OptionError, FileError, FileNotFoundError) as e:
                assert '\n' not in str(e) and ('odd' in str(e) or 'resume_from' in str(e) or 'stage1_' in str(e)), (i, repr(e))
                refused += 1
            except Exception as e: raise AssertionError((i, seed)) from e
            assert time.monotonic() - began < 10
    return fine, refused

@pytest.mark.parametrize('n', [40, pytest.param(10_000, marks=LONG)])
def test_spoiled_checkpoints(n):
    fine, refused = run_apart(__file__, 'checkpoints', n)
    assert refused > n and fine > n/10

if __name__ == '__main__': fuzz_here({'checkpoints': spoiled_checkpoints})
