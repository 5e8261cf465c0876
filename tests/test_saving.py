"Checkpoints that a thread writes: whatever fails or interrupts, what a run says of itself is so"
import json, os, signal, threading, time

import fsspec
import pytest
import torch

from maou_nb import learn_multi_stage, load_run
from maou_nb.front import learn
from maou_nb.stages.rows import prepare_stage1
from maou_nb.train import checkpoints
from maou_nb.train.checkpoints import Checkpoints, load_tensors
from maou_nb.train.loop import TIMINGS, Callback, OutOfRoom

@pytest.fixture(scope='module')
def stage1(tmp_path_factory):
    out = tmp_path_factory.mktemp('shards')
    prepare_stage1(out/'stage1')
    return out/'stage1'

@pytest.fixture
def train(stage1, tmp_path):
    "Nine steps an epoch, two epochs"
    def run(*callbacks, **options):
        given = dict(stage='1', gpu='cpu', model_size='tiny', resnet_channels=8, resnet_blocks=1, stage1_batch_size=128,
                     stage1_max_epochs=2, stage1_threshold=None, stage1_data_path=stage1, run_dir=tmp_path/'run', checkpoint_every=6)
        return learn_multi_stage(**{**given, **options}, callbacks=[*callbacks])
    run.folder = tmp_path/'run'/'checkpoints'/'stage1'
    return run

class Send(Callback):
    "Sends this process signals at some steps; seconds of sleep between"
    def __init__(self, **at): self.at = {int(step.strip('s')): signals for step, signals in at.items()}
    def after_step(self, loop):
        for i, s in enumerate(self.at.pop(loop.step, ())):
            if i: threading.Timer(0.3, os.kill, (os.getpid(), s)).start()
            else: os.kill(os.getpid(), s)

class Fails:
    "A disk that cannot write some checkpoints, each for so many times"
    def __init__(self, monkeypatch, **times):
        self.times, real = {int(k.strip('s')): n for k, n in times.items()}, Checkpoints.save
        def save(checkpoints, name, tensors, about, marks):
            time.sleep(0.2)
            if self.times.get(about['step'], 0) > 0:
                self.times[about['step']] -= 1
                raise OSError(28, 'No space left on device', str(checkpoints.folder/name))
            return real(checkpoints, name, tensors, about, marks)
        monkeypatch.setattr(Checkpoints, 'save', save)

def steps_in(folder): return sorted(load_tensors(f, whole=False)[1]['step'] for f in folder.glob('*.safetensors'))

def same_end(a, b):
    timeless = lambda r: [{k: v for k, v in h.items() if k not in TIMINGS} for h in r[1].history]
    assert timeless(a) == timeless(b)
    (x, _), (y, _) = (load_tensors(r.checkpoint(1, 'last')) for r in (a, b))
    assert all(torch.equal(x[k], y[k]) for k in x)

@pytest.mark.parametrize('failing, stop, saved', [
    (dict(s6=1), 7, [7]),       # the one before it; that of the stop can be written
    (dict(s6=1), 6, [6]),       # the stop comes in the step of a checkpoint that fails: it is written again
    (dict(s6=9), 6, []), (dict(s7=9), 7, [6])])
def test_a_stop_does_not_hide_what_could_not_be_written(train, tmp_path, monkeypatch, failing, stop, saved):
    with monkeypatch.context() as mp:
        Fails(mp, **failing)
        with pytest.raises(OutOfRoom, match='stage 1 could not go on: .*No space left on device.* goes on from the last checkpoint'):
            train(Send(**{f's{stop}': [signal.SIGTERM]}))
    assert steps_in(train.folder) == saved
    same_end(train(resume_from='latest'), train(run_dir=tmp_path/'whole'))

def test_another_error_has_it_as_a_note(train, monkeypatch):
    class Odd(Callback):
        def after_step(self, loop):
            if loop.step == 7: raise KeyError('odd')
    Fails(monkeypatch, s6=1, s7=1)
    with pytest.raises(KeyError, match='odd') as e: train(Odd())
    assert len(e.value.__notes__) == 1 and 'No space left' in e.value.__notes__[0]

def test_who_has_lost_patience_leaves_no_writer_behind(train, tmp_path, monkeypatch):
    "A second Ctrl-C while a checkpoint is written: what comes after in that folder is not overwritten by it"
    real = checkpoints.save_tensors
    def slow(path, *args):
        time.sleep(1.5)
        return real(path, *args)
    with monkeypatch.context() as mp:
        mp.setattr(checkpoints, 'save_tensors', slow)
        with pytest.raises(KeyboardInterrupt): train(Send(s7=[signal.SIGINT, signal.SIGINT]))
        assert not [t for t in threading.enumerate() if t.name.startswith('checkpoint')]
    assert steps_in(train.folder) == [6]
    same_end(train(resume_from='latest'), train(run_dir=tmp_path/'whole'))

def test_the_copy_has_what_is_here(train, tmp_path, monkeypatch):
    "Soon after a checkpoint is written, not a checkpoint later"
    url = f'memory://saving-{tmp_path.name}'
    monkeypatch.setattr(learn, 'mirror_folders', lambda cfg, run: {run.path: url})
    last, seen = 'run/checkpoints/stage1/checkpoints.json', []
    class Look(Callback):
        def after_step(self, loop):
            if loop.step != 12: return
            far, until = fsspec.filesystem('memory'), time.monotonic() + 20
            while not (tmp_path/last).exists(): time.sleep(0.05)
            here = json.loads((tmp_path/last).read_text())['last']
            at = f'{url.removeprefix("memory:/")}/{last.removeprefix("run/")}'
            while time.monotonic() < until and not (far.exists(at) and json.loads(far.cat(at))['last'] == here): time.sleep(0.05)
            seen.append((here, json.loads(far.cat(at))['last']))
    class Pause(Callback):
        def after_step(self, loop): time.sleep(0.1)          # a checkpoint is written meanwhile
    train(Pause(), Look(), checkpoint_every=None)
    assert seen == [('epoch-0001-step-00000009.safetensors',)*2]

def test_callbacks_hear_of_each_checkpoint(train):
    class Hear(Callback):
        heard = []
        def after_save(self, loop): self.heard.append(sorted(f.name for f in train.folder.glob('[!.]*.safetensors'))[-1])
    train(Hear(), keep_checkpoints=100)
    assert len(Hear.heard) == len(set(Hear.heard)) == len(steps_in(train.folder)) and Hear.heard == sorted(Hear.heard)

def test_parts_are_those_of_the_best_net_however_a_run_ended(train, monkeypatch):
    train(save_split_params=True)
    parts, best = train.folder/'parts', load_run(train.folder.parents[1]).checkpoint(1)
    good = {f.name: {k: v.clone() for k, v in load_tensors(f)[0].items()} for f in parts.glob('*.safetensors')}    # not of the file
    step = load_tensors(best)[1]['step']
    head = parts/'reachable_head.safetensors'
    for spoil in (lambda: head.write_bytes(head.read_bytes()[:-9]), head.unlink,
                  lambda: checkpoints.save_tensors(head, {'x': torch.ones(2)}, {'stage': 1, 'step': step - 3})):
        spoil()
        train(save_split_params=True, resume_from='latest')
        again = {f.name: load_tensors(f) for f in parts.glob('*.safetensors')}
        assert {about['step'] for _, about in again.values()} == {step} and again.keys() == good.keys()
        assert all(torch.equal(good[n][k], again[n][0][k]) for n in good for k in good[n])

def test_a_best_checkpoint_that_is_damaged_hinders_no_resume(train):
    train(save_split_params=True)
    best = load_run(train.folder.parents[1]).checkpoint(1)
    best.write_bytes(best.read_bytes()[:-9])
    assert len(train(save_split_params=True, resume_from='latest', stage1_max_epochs=3)[1].history) == 3

def test_what_was_judged_is_marked_whoever_ends_the_run(train):
    class Fail(Callback):
        def after_epoch(self, loop): raise RuntimeError('mine')
    with pytest.raises(RuntimeError, match='mine'): train(Fail(), checkpoint_every=None)
    there = Checkpoints(train.folder)
    assert there.marks['best'] == there.marks['last'] == 'epoch-0001-step-00000009.safetensors'
