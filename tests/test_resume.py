"A run that is killed, whenever and however often, ends as if it had not been: the same history, the same weights to the last bit"
import hashlib, json, os, random, signal, subprocess, sys, time
from pathlib import Path

import pytest

from maou_nb import OptionError, learn_multi_stage, load_run
from maou_nb.data.files import file_sha256
from maou_nb.stages.rows import prepare_stage1, prepare_stage2, prepare_stage3
from maou_nb.train.checkpoints import MANIFEST, Checkpoints, load_tensors, part, save_tensors
from maou_nb.train.loop import TIMINGS, Callback
from samples import ONE_FILE

RUN = '''import json, sys
from maou_nb import learn_multi_stage
if __name__ == "__main__": print(repr(learn_multi_stage(**json.loads(sys.argv[1]))))'''

def made_of(games, out):
    "Data paths of all three stages, made of so many games, in several shards"
    (out/'games.csa').write_text('/\n'.join(ONE_FILE.read_text().split('/\n')[20 - games:20]))
    prepare_stage1(out/'stage1')
    prepare_stage2(out/'games.csa', out/'stage2', rows_per_shard=30*games)
    prepare_stage3(out/'games.csa', out/'stage3', rows_per_shard=30*games)
    return {f'stage{n}_data_path': str(out/f'stage{n}') for n in (1, 2, 3)}

@pytest.fixture(scope='module')
def shards(tmp_path_factory):
    "Of 8 games: an epoch has the 16 steps that it has at least"
    return made_of(8, tmp_path_factory.mktemp('eight'))

def stateful(shards):
    """A run of all stages with everything that has a state

    Dropout, mirrored rows, averaged weights, added-up gradients, a schedule, early stopping.
    """
    return dict(stage='all', gpu='cpu', model_architecture='vit', model_size='tiny', vit_embed_dim=32,
                vit_num_layers=2, vit_num_heads=2, vit_dropout=0.1,
                stage1_threshold=0., stage2_threshold=0., stage2_test_ratio=0.2,
                batch_size=64, gradient_accumulation_steps=2, mirror_augmentation=True, ema_decay=0.98, epoch=2,
                early_stopping_patience=5, learning_ratio=0.003, checkpoint_every=3, resume_from='latest', **shards)

@pytest.fixture(scope='module')
def options(tmp_path_factory):
    "Of 20 games: long enough to be killed in"
    return stateful(made_of(20, tmp_path_factory.mktemp('twenty')))

class Process:
    "A Python process of its own that trains, until it is ended by a signal or by itself"
    def __init__(self, folder, options):
        self.folder, script = folder, folder.parent/'run.py'; script.write_text(RUN)
        self.log = open(folder.parent/'log.txt', 'w+')
        self.p = subprocess.Popen([sys.executable, str(script), json.dumps({**options, 'run_dir': str(folder)})],
                                  stdout=self.log, stderr=subprocess.STDOUT,
                                  env={**os.environ, 'PYTHONUNBUFFERED': '1'})

    def said(self): return Path(self.log.name).read_text()

    def wait_until_it_trains(self):
        while 'run folder' not in self.said():
            assert self.p.poll() is None, self.said()
            time.sleep(0.02)
        return self

    def wait_for(self, steps):
        "Wait until checkpoints of so many steps, of all stages together, are there, or the run is over"
        while self.p.poll() is None and saved_steps(self.folder) < steps: time.sleep(0.01)
        return self

    def end(self, how=signal.SIGKILL):
        "Send the signal; whether the process was still there to get it"
        there = self.p.poll() is None
        if there: self.p.send_signal(how)
        self.p.wait(120)
        return there

    def finish(self):
        assert self.p.wait(300) == 0, self.said()
        return self

def saved_steps(folder):
    "Steps that the newest checkpoints of all stages have done"
    found = [folder/'checkpoints'/f'stage{n}'/'checkpoints.json' for n in (1, 2, 3)]
    return sum(int(json.loads(f.read_text())['last'].split('-step-')[1].split('.')[0]) for f in found if f.exists())

def outcome(folder):
    "Histories without timings, and the SHA-256 of the last weights of each stage"
    result = load_run(folder)
    assert not result.stopped and len(result.stages_completed) == 3
    timeless = [[{k: v for k, v in h.items() if k not in TIMINGS} for h in s.history] for s in result.stages_completed]
    lines = [json.loads(l) for l in (folder/'history.jsonl').read_text().splitlines()]
    assert [{k: v for k, v in h.items() if k not in TIMINGS} for h in lines] == sum(timeless, [])
    sums = []
    for n in (1, 2, 3):
        tensors = load_tensors(result.checkpoint(n, 'last'))[0]
        kept = {k: v for name in ('net.', 'ema.', 'optimizer.') for k, v in part(tensors, name, False).items()}
        data = b''.join(k.encode() + v.contiguous().numpy().tobytes() for k, v in sorted(kept.items()))
        sums.append(hashlib.sha256(data).hexdigest())
    return timeless, sums

@pytest.fixture(scope='module')
def uninterrupted(options, tmp_path_factory):
    "What the run comes to, and how many steps it takes"
    folder = tmp_path_factory.mktemp('whole')/'run'
    Process(folder, options).finish()
    return outcome(folder), saved_steps(folder)

# change nothing but where rows are held and who gathers them
ELSEWHERE = [{}, dict(input_cache_mode='memory'), dict(input_cache_mode='mmap'), dict(dataloader_workers=1)]

def survive(folder, options, uninterrupted, kills, seed):
    "End a run `kills` times at random moments and in different ways, each time with rows held or gathered elsewhere, and let it finish"
    whole, steps = uninterrupted
    rng, landed, stages = random.Random(seed), 0, []
    for i, at in enumerate(sorted(rng.randrange(int(0.85*steps)) for _ in range(kills))):
        p = Process(folder, {**options, **ELSEWHERE[(i + 1) % len(ELSEWHERE)]}).wait_until_it_trains().wait_for(at)
        time.sleep(rng.uniform(0, 0.1))
        landed += p.end(rng.choice([signal.SIGKILL]*3 + [signal.SIGTERM]))
        stages.append(max((n for n in (1, 2, 3) if (folder/'checkpoints'/f'stage{n}'/'checkpoints.json').exists()), default=0))
    Process(folder, options).finish()
    assert landed >= 0.6*kills
    assert outcome(folder) == whole
    return landed, stages

@pytest.mark.slow
def test_killed_three_times(options, uninterrupted, tmp_path):
    "From memory, then from a map, then through a worker, and to the end from files: where rows are changes nothing"
    print(survive(tmp_path/'run', options, uninterrupted, 3, 1))

@pytest.mark.slow
def test_killed_twenty_times(options, uninterrupted, tmp_path):
    "Ten times a run, until there were twenty: a run may be over before"
    landed, i = 0, 0
    while landed < 20:
        got, stages = survive(tmp_path/f'{i}'/'run' if (tmp_path/f'{i}').mkdir() is None else None, options, uninterrupted, 10, 100 + i)
        print(f'run {i}: ended {got} times, in stages {stages}')
        landed += got; i += 1

@pytest.mark.slow
def test_a_signal_saves_first(options, uninterrupted, tmp_path):
    "The process ends by itself, with the partial result, at a step that was saved; going on loses nothing"
    quiet = {**options, 'checkpoint_every': None}
    for how, stage in ((signal.SIGTERM, 1), (signal.SIGINT, 2)):
        p = Process(tmp_path/'run', quiet).wait_until_it_trains()
        while not (tmp_path/'run'/'checkpoints'/f'stage{stage}'/'checkpoints.json').exists(): assert p.p.poll() is None; time.sleep(0.01)
        time.sleep(0.2); p.p.send_signal(how); p.finish()
        result = load_run(tmp_path/'run')
        assert how.name in result.stopped and 'everything is saved' in p.said() and len(result.stages_completed) < 3
        n = len(result.stages_completed) + 1
        newest = Checkpoints(tmp_path/'run'/'checkpoints'/f'stage{n}').load_newest()
        assert f'after step {newest[1]["step"] if newest else 0}' in result.stopped
    Process(tmp_path/'run', quiet).finish()
    assert outcome(tmp_path/'run') == uninterrupted[0]

def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(shards, tmp_path, capsys):
    options = stateful(shards) | dict(vit_embed_dim=16, vit_num_layers=1)
    learn_multi_stage(**options, run_dir=tmp_path/'run')
    whole = outcome(tmp_path/'run')
    stage3 = Checkpoints(tmp_path/'run'/'checkpoints'/'stage3')
    last = stage3.path('last')
    last.write_bytes(last.read_bytes()[:-100])
    capsys.readouterr()
    learn_multi_stage(**options, run_dir=tmp_path/'run')
    said = capsys.readouterr().out
    assert f'{last.name} is damaged' in said and 'the one before it is taken' in said
    assert outcome(tmp_path/'run') == whole

@pytest.mark.parametrize('stop_at', [3, 16, 20])
def test_a_budget_of_steps_is_kept_to_over_a_stop(tmp_path, shards, stop_at):
    "In the first epoch, in the last, which is a part of one, and after the last step, before it is judged"
    class StopAt(Callback):
        def after_step(self, loop):
            if loop.step == stop_at: raise RuntimeError('enough')
    options = dict(stage='3', gpu='cpu', model_size='tiny', resnet_channels=8, resnet_blocks=1, batch_size=128, max_steps=20,
                   learning_ratio=0.01, lr_scheduler='cosine_annealing_lr', checkpoint_every=1, **shards)
    whole = learn_multi_stage(**options, run_dir=tmp_path/'whole')
    with pytest.raises(RuntimeError, match='enough'): learn_multi_stage(**options, run_dir=tmp_path/'cut', callbacks=[StopAt()])
    cut = learn_multi_stage(**options, run_dir=tmp_path/'cut', resume_from='latest')
    timeless = lambda r: [{k: v for k, v in h.items() if k not in TIMINGS} for h in r[3].history]
    assert timeless(cut) == timeless(whole) and whole[3].history[-1]['step'] == 20
    nets = [part(load_tensors(r.checkpoint(3, 'last'))[0], 'net.') for r in (whole, cut)]
    assert all(nets[0][k].equal(nets[1][k]) for k in nets[0])
    again = learn_multi_stage(**options, run_dir=tmp_path/'cut', resume_from='latest')
    assert timeless(again) == timeless(whole)
    with pytest.raises(OptionError, match='max_steps'):
        learn_multi_stage(**{**options, 'max_steps': 30}, run_dir=tmp_path/'cut', resume_from='latest')

class Overflow(Callback):
    "Says of some steps that they overflow, as those of fp16 may: `overflowing` takes none of these"
    def before_step(self, loop): loop.optimizer.overflows = loop.step + loop.skipped in (2, 7, 8)

SMALL = dict(stage='3', gpu='cpu', model_size='tiny', resnet_channels=8, resnet_blocks=1, batch_size=96)

@pytest.fixture
def overflowing(monkeypatch):
    from accelerate.optimizer import AcceleratedOptimizer
    step = AcceleratedOptimizer.step
    monkeypatch.setattr(AcceleratedOptimizer, 'step', lambda self, closure=None: None if self.overflows else step(self, closure))
    monkeypatch.setattr(AcceleratedOptimizer, 'step_was_skipped', property(lambda self: self.overflows))

@pytest.mark.parametrize('length', [{'max_steps': 14}, {'epoch': 1}])
@pytest.mark.parametrize('stop_at', [3, pytest.param(7, marks=pytest.mark.slow), 12])
def test_steps_that_overflowed_are_no_reason_to_refuse(tmp_path, shards, overflowing, length, stop_at):
    class StopAt(Callback):
        def after_step(self, loop):
            if loop.step == stop_at: raise RuntimeError('enough')
    options = dict(**SMALL, learning_ratio=0.01,
                   checkpoint_every=1, **length, **shards)
    whole = learn_multi_stage(**options, run_dir=tmp_path/'whole', callbacks=[Overflow()])
    with pytest.raises(RuntimeError, match='enough'):
        learn_multi_stage(**options, run_dir=tmp_path/'cut', callbacks=[Overflow(), StopAt()])
    cut = learn_multi_stage(**options, run_dir=tmp_path/'cut', callbacks=[Overflow()], resume_from='latest')
    (ours, about), (theirs, _) = (load_tensors(r.checkpoint(3, 'last')) for r in (cut, whole))
    assert about['skipped'] == 3 and about['step'] == whole[3].history[-1]['step']
    assert all(ours[k].equal(theirs[k]) for k in part(ours, 'net.', strip=False))
    steps = about['step'] + 3
    assert cut[3].skipped == 3 and f'3 of {steps} steps overflowed in fp16 and were not taken' in cut[3].sentence() in repr(cut)

def test_skipped_steps_are_made_up_for_and_the_history_has_the_rates_that_were(tmp_path, shards, overflowing):
    began = {}
    class Rates(Callback):
        def after_step(self, loop):
            if loop.batch < 2: began.setdefault(loop.epoch, loop.scheduler.base_lrs[0]*loop.scheduler.lr_lambdas[0](loop.step - 1))
    common = dict(**SMALL, learning_ratio=0.01, **shards)
    whole = learn_multi_stage(**common, run_dir=tmp_path/'epoch', epoch=1, callbacks=[Overflow()])
    steps = 2*(whole[3].history[-1]['step'] + 3)      # of two whole epochs
    r = learn_multi_stage(**common, run_dir=tmp_path/'run', max_steps=steps, callbacks=[Overflow(), Rates()])
    assert r[3].history[-1]['step'] == steps and r[3].skipped == 3 and len(r[3].history) == 3
    assert [h['lr'] for h in r[3].history][1:] == pytest.approx([began[e] for e in (1, 2)])

def test_the_epoch_it_goes_on_with_may_be_named(tmp_path, shards):
    "`start_epoch` then says nothing new: averages go on, too"
    class End(Callback):
        def after_epoch(self, loop):
            if loop.epoch == 2: raise RuntimeError('enough')
    options = dict(**SMALL, epoch=3, ema_decay=0.999, **shards)
    whole = learn_multi_stage(**options, run_dir=tmp_path/'whole')
    with pytest.raises(RuntimeError, match='enough'): learn_multi_stage(**options, run_dir=tmp_path/'cut', callbacks=[End()])
    cut = learn_multi_stage(**options, run_dir=tmp_path/'cut', start_epoch=2, resume_from='latest')
    a, b = (load_tensors(r.checkpoint(3, 'last'))[0] for r in (whole, cut))
    assert any(k.startswith('ema.') for k in a) and all(a[k].equal(b[k]) for k in a)

def test_best_is_what_the_history_has_as_the_best(tmp_path, shards):
    "Also where the run went on from an earlier checkpoint, or is judged by another figure"
    options = dict(**SMALL, learning_ratio=0.01, run_dir=tmp_path, **shards)
    r = learn_multi_stage(**options, epoch=3)
    assert r[3].best_epoch == 3
    newest = r.checkpoint(3, 'last')
    newest.write_bytes(newest.read_bytes()[:-9])
    again = learn_multi_stage(**options | {'learning_ratio': 1.}, epoch=4, resume_from='latest')
    losses = {h['epoch']: h['valid/loss'] for h in again[3].history}
    assert min(losses, key=losses.get) == again[3].best_epoch == load_tensors(again.checkpoint(3))[1]['epoch'] == 2
    for metric, figure in (('policy', 'policy_loss'), ('value', 'value_loss')):
        r = learn_multi_stage(**options, epoch=4, early_stopping_metric=metric, resume_from='latest')
        kept = [h for h in r[3].history if any(f'epoch-{h["epoch"]:04d}' in p.name for p in r.checkpoint(3).parent.glob('*.safetensors'))]
        best = min(kept, key=lambda h: h[f'valid/{figure}'])['epoch']
        assert r[3].best_epoch == load_tensors(r.checkpoint(3))[1]['epoch'] == best

def test_skipped_steps_that_the_optimizer_counted_are_refused(tmp_path, shards):
    "A checkpoint says that a step was not taken, and its optimizer took it"
    class StopAt(Callback):
        def after_step(self, loop):
            if loop.step == 5: raise RuntimeError('enough')
    options = dict(**SMALL, checkpoint_every=1,
                   epoch=1, run_dir=tmp_path/'run', **shards)
    with pytest.raises(RuntimeError, match='enough'): learn_multi_stage(**options, callbacks=[StopAt()])
    kept = Checkpoints(tmp_path/'run'/'checkpoints'/'stage3')
    tensors, about = kept.load_newest()
    save_tensors(kept.path('last'), tensors, {**about, 'skipped': 1, 'step': about['step'] - 1})
    manifest = json.loads((kept.folder/MANIFEST).read_text())
    manifest['files'][kept.path('last').name]['sha256'] = file_sha256(kept.path('last'))
    (kept.folder/MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match='its optimizer counts 5 steps where its step is 4, not taken: 1;'):
        learn_multi_stage(**options, resume_from='latest')

def test_what_a_slow_disk_keeps_is_the_run_as_it_was(tmp_path, shards, monkeypatch):
    "Training goes on while a checkpoint is written: each has the weights of its own step"
    options = dict(stage='1', gpu='cpu', model_size='tiny', resnet_channels=8, resnet_blocks=1, batch_size=128, stage1_max_epochs=2,
                   stage1_threshold=0., ema_decay=0.9, checkpoint_every=2, keep_checkpoints=100, **shards)
    real, late = Checkpoints.save, []
    def slow(self, *args):
        time.sleep(0.2)
        late.append(at.step)
        return real(self, *args)
    class At(Callback):
        step = 0
        def after_step(self, loop): self.step = loop.step
    at = At()
    learn_multi_stage(**options, run_dir=tmp_path/'prompt')
    monkeypatch.setattr(Checkpoints, 'save', slow)
    learn_multi_stage(**options, run_dir=tmp_path/'slow', callbacks=[at])
    a, b = ({p.name: load_tensors(p)[0] for p in (tmp_path/run/'checkpoints'/'stage1').glob('*.safetensors')} for run in ('prompt', 'slow'))
    steps = sorted(int(name.split('-')[-1].split('.')[0]) for name in b)
    assert len(late) == len(steps) > 5 and sum(now > step for now, step in zip(late, steps)) > 3, (late, steps)
    assert a.keys() == b.keys() and all(a[n][k].equal(b[n][k]) for n in a for k in a[n])
