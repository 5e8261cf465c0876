"A run is known by what it is: its id, its places, its data, and the one process that trains in it"
import json, multiprocessing, os, shutil, time
from pathlib import Path

import psutil
import pytest
import torch

from maou_nb import evaluate, learn_multi_stage, load_run, show_results
from maou_nb.data.alone import FolderLock
from maou_nb.data.files import FileError
from maou_nb.data.options import OptionError
from maou_nb.stages.rows import prepare_stage1
from maou_nb.train.checkpoints import CheckpointError, Checkpoints, load_tensors
from maou_nb.train.folder import RunFolder, begun_folder
from maou_nb.train.loop import TIMINGS, Callback
from maou_nb.train.options import LearnConfig
from maou_nb.train.runner import StageThresholdNotMet

SMALL = dict(stage=1, gpu='cpu', model_size='tiny', resnet_channels=8, resnet_blocks=1, stage1_batch_size=100,
             stage1_threshold=0., stage1_max_epochs=1)

@pytest.fixture
def small(shards, tmp_path, monkeypatch):
    "Options of a run of a second; one works in a folder of one's own"
    monkeypatch.chdir(tmp_path)
    return {**SMALL, 'stage1_data_path': shards['stage1_data_path']}

def train(**options):
    "What a run reached that has no epoch too few to go on"
    with pytest.raises(StageThresholdNotMet) as e: learn_multi_stage(**{**options, 'stage1_threshold': 1.})
    return e.value.result

def timeless(history): return [{k: v for k, v in h.items() if k not in TIMINGS} for h in history]

# --- two runs, one place

def test_two_runs_with_one_model_dir_both_go_on_as_themselves(small):
    shared = {**small, 'model_dir': 'models', 'log_dir': 'logs'}
    two = {n: {**shared, 'run_dir': n, 'seed': seed} for seed, n in enumerate(('a', 'b'))}
    first = {n: train(**o) for n, o in two.items()}
    on = {n: train(**{**o, 'stage1_max_epochs': 2, 'resume_from': 'latest'}) for n, o in two.items()}
    for n in two:
        assert on[n][1].history[:1] == first[n][1].history and len(on[n][1].history) == 2
        assert Path('models', n, 'stage1').is_dir() and list(Path('logs', n, 'stage1').glob('events*'))
    ids = {n: RunFolder(n).read_about()['id'] for n in two}
    assert len({*ids.values()}) == 2
    for n, i in ids.items():
        kept = Checkpoints(Path('models', n, 'stage1'))
        assert kept.manifest['run'] == i == kept.load('last')[1]['saved']['run']
        said = json.loads(Path(n, 'result.json').read_text())['stages_completed'][0]['sha256']
        assert said == {k: kept.manifest['files'][name]['sha256'] for k, name in kept.marks.items()}

def test_of_one_name_in_one_place_the_second_gets_a_number(small):
    for n in ('x/run', 'y/run'): learn_multi_stage(**small, run_dir=n, model_dir='models')
    assert [RunFolder(n).models.name for n in ('x/run', 'y/run')] == ['run', 'run-2']
    assert all(load_run(n).checkpoint(1).exists() for n in ('x/run', 'y/run'))

def test_an_older_layout_is_found_and_anothers_refused(small):
    "A version before kept checkpoints right in model_dir, where the second of two runs wrote over the first"
    def older(n):
        run = RunFolder(n)
        about = {k: v for k, v in run.read_about().items() if k not in ('id', 'folder', 'places')}
        shutil.copytree(run.models, 'models', dirs_exist_ok=True); shutil.rmtree(run.models)
        Path('models/.run').unlink()
        manifest = Path('models/stage1/checkpoints.json'); said = json.loads(manifest.read_text()); said.pop('run')
        manifest.write_text(json.dumps(said)); run.about_file.write_text(json.dumps(about))
    options = {n: {**small, 'run_dir': n, 'model_dir': 'models', 'resume_from': 'latest'} for n in ('a', 'b')}
    for n in options: train(**{**options[n], 'resume_from': None}); older(n)
    assert len(train(**{**options['b'], 'stage1_max_epochs': 2})[1].history) == 2
    assert RunFolder('b').models == Path('models').absolute()
    with pytest.raises(OptionError, match='model_dir: models holds the checkpoints of another run than a'): train(**options['a'])

def test_a_checkpoint_that_another_run_wrote_is_said(small):
    first = learn_multi_stage(**small, run_dir='a')
    shutil.rmtree('a'); learn_multi_stage(**{**small, 'seed': 1}, run_dir='a')
    with pytest.raises(CheckpointError, match='is not the checkpoint that this result names'): evaluate(first)

# --- where it is called from

def test_a_run_knows_its_data_from_everywhere(small, shards, tmp_path, monkeypatch):
    "From another folder, after chdir, with ~, and moved with its data"
    shutil.copytree(shards['stage1_data_path'], 'here/shards'); Path('elsewhere').mkdir()
    monkeypatch.chdir('here'); monkeypatch.setenv('HOME', str(tmp_path/'here'))
    result = learn_multi_stage(**{**small, 'stage1_data_path': 'shards'}, run_dir='runs/a', model_dir='models')
    home = learn_multi_stage(**{**small, 'stage1_data_path': '~/shards'}, run_dir='~/runs/home')
    assert Path('runs/home/result.json').exists() and not Path('~').exists()
    monkeypatch.chdir('../elsewhere')
    want = evaluate(result).metrics
    for run in (load_run('../here/runs/a'), home): assert evaluate(run).metrics == want
    show_results(load_run('../here/runs/a'))
    shutil.move('../here', '../there')
    assert evaluate(load_run('../there/runs/a')).metrics == want == evaluate('../there/runs/a').metrics

# --- one process at a time

def trains(folder, barrier, said):
    lock = FolderLock(folder)
    for _ in range(200):
        barrier.wait()
        got = lock.take(patience=0.)
        said.put(got); barrier.wait()
        lock.free(); barrier.wait()

@pytest.mark.slow
def test_the_lock_has_one_owner_200_times(tmp_path):
    many = multiprocessing.get_context('spawn')
    barrier, said = many.Barrier(2), many.Queue()
    both = [many.Process(target=trains, args=(str(tmp_path), barrier, said)) for _ in range(2)]
    for p in both: p.start()
    got = [said.get(timeout=60) for _ in range(400)]
    for p in both: p.join(30)
    assert got.count(True) == got.count(False) == 200

class HoldsOn(Callback):
    "Trains no further until the other process has its answer"
    def __init__(self, answered): self.answered = answered
    def before_fit(self, loop): assert self.answered.wait(30), 'the other process got no answer: does it train, too?'

def starts(options, count, barrier, answered, said):
    for n in range(count):
        barrier.wait()
        try: learn_multi_stage(**options, run_dir=f'run{n}', callbacks=[HoldsOn(answered[n])]); told = 'trained'
        except (OptionError, AssertionError) as e: told = str(e)
        answered[n].set()
        said.put((n, told))

def start_both(small, count):
    "Two processes start `count` runs at the same moment; one trains each, and the other is told while it does"
    many = multiprocessing.get_context('spawn')
    barrier, said, answered = many.Barrier(2), many.Queue(), [many.Event() for _ in range(count)]
    both = [many.Process(target=starts, args=(small, count, barrier, answered, said)) for _ in range(2)]
    for p in both: p.start()
    got = sorted(said.get(timeout=120) for _ in range(2*count))
    for p in both: p.join(60)
    for n in range(count):
        refused, trained = sorted((t for i, t in got if i == n), key=lambda t: t == 'trained')
        assert 'is training in' in refused and trained == 'trained', got
        assert not list(Path(f'run{n}').glob('earlier-*')) and not RunFolder(f'run{n}').was_killed()

def test_of_two_starts_one_trains(small): start_both(small, 2)

@pytest.mark.slow
def test_of_two_starts_one_trains_twenty_times(small): start_both(small, 20)

def test_a_clock_that_is_set_changes_nothing(small, monkeypatch):
    "By an hour, forth and back, as the process and psutil see it"
    whole = learn_multi_stage(**{**small, 'stage1_max_epochs': 2}, run_dir='whole')
    clock, created, seen = time.time, psutil.Process.create_time, []
    class Steps(Callback):
        def after_step(self, loop):
            shift = 3600*(-1)**loop.step
            monkeypatch.setattr(time, 'time', lambda: clock() + shift)
            monkeypatch.setattr(psutil.Process, 'create_time', lambda self: created(self) + shift)
            run = RunFolder('run')
            seen.append(run.at_work().pid == os.getpid() and not run.was_killed())
            with pytest.raises(OptionError, match='is training in'): run.claimed().__enter__()
    run = learn_multi_stage(**{**small, 'stage1_max_epochs': 2}, run_dir='run', callbacks=[Steps()])
    assert all(seen) and len(seen) > 10 and timeless(run[1].history) == timeless(whole[1].history)

@pytest.mark.parametrize('locks', [True, False])
def test_another_machine_is_believed_while_its_record_is_fresh(locks, small, monkeypatch):
    if not locks: monkeypatch.setattr('maou_nb.data.alone.fcntl', None); monkeypatch.setattr('maou_nb.train.folder.SETTLE', 0.05)
    learn_multi_stage(**small, run_dir='run')
    record = RunFolder('run').process_file
    record.write_text(json.dumps({'pid': 7, 'host': 'elsewhere', 'working': True})); before = record.read_text()
    with pytest.raises(OptionError, match='process 7 on elsewhere, which gave a sign of life'): learn_multi_stage(**small, run_dir='run')
    assert record.read_text() == before and not list(Path('run').glob('earlier-*'))
    os.utime(record, (0, 0))
    learn_multi_stage(**small, run_dir='run')

def test_runs_of_one_second_have_different_names(small):
    cfg = LearnConfig()
    assert len({begun_folder(cfg).path for _ in range(20)}) == 20

def test_two_preparations_of_one_folder(tmp_path):
    lock = FolderLock(tmp_path); assert lock.take()
    with pytest.raises(FileError, match='shards are being made in .* by another process'): prepare_stage1(tmp_path)
    lock.free(); prepare_stage1(tmp_path)
    assert not (tmp_path/'.lock').exists()

# --- what a resume asks

ASKED = [(dict(labels='other'), "as 'other'"),
         (dict(version='9.9', config={'newer': 1}), r'not known here \(newer\): version 9.9')]

@pytest.mark.parametrize('change, words', ASKED)
def test_a_resume_asks_as_much_as_predict(change, words, small):
    learn_multi_stage(**small, run_dir='run')
    kept = Checkpoints('run/checkpoints/stage1')
    tensors, about = kept.load('last')
    config = {**about['config'], **change.get('config', {})}
    kept.save(kept.path('last').stem, tensors, {**about, **change, 'config': config}, ['best'])
    again = {**small, 'stage1_max_epochs': 2, 'run_dir': 'run', 'resume_from': 'latest'}
    with pytest.raises(ValueError, match=words): learn_multi_stage(**again)

# --- heads

def test_a_head_is_found_in_a_run_of_all_stages(small, shards):
    all_of_it = {**small, **shards, 'stage': 'all', 'stage2_threshold': 0., 'stage2_max_epochs': 1, 'epoch': 1}
    learn_multi_stage(**all_of_it, run_dir='whole')
    for folder in ('whole', 'whole/checkpoints'):
        taken = learn_multi_stage(**small, run_dir='taken', resume_reachable_head_from=folder, stage1_learning_rate=1e-12)
        head = lambda path: load_tensors(path)[0]['net.heads.reachable.logit.weight']
        assert torch.allclose(head(taken.checkpoint(1)), head(load_run('whole').checkpoint(1)), atol=1e-6)

def test_a_head_comes_with_its_adapter(small):
    "From the checkpoint, and from parts; without it, it is said"
    through = {**small, 'resnet_blocks': 2, 'trainable_layers': 1}
    source = learn_multi_stage(**{**through, 'stage1_max_epochs': 2}, run_dir='source', save_split_params=True)
    parts = Path('source/checkpoints/stage1/parts')
    head, backbone, adapter = (parts/f'{n}.safetensors' for n in ('reachable_head', 'backbone', 'adapter'))
    still = {**through, 'stage1_learning_rate': 1e-12}
    weight = lambda r: load_tensors(r.checkpoint(1))[0]['net.adapter.0.weight']
    for n, (h, b) in enumerate([('source', 'source'), (head, backbone)]):
        taken = learn_multi_stage(**still, run_dir=f'taken{n}', resume_reachable_head_from=h, resume_backbone_from=b)
        assert torch.allclose(weight(taken), weight(source), atol=1e-6)
    fresh = learn_multi_stage(**still, run_dir='fresh')
    assert not torch.allclose(weight(fresh), weight(source), atol=1e-4)
    with pytest.raises(OptionError, match='was trained with an adapter'):
        learn_multi_stage(**{**through, 'trainable_layers': None}, run_dir='no', resume_reachable_head_from='source')
    adapter.unlink()
    with pytest.raises(OptionError, match='adapter.safetensors'):
        learn_multi_stage(**still, run_dir='no', resume_reachable_head_from=head)

# --- places and locks that somebody changed

@pytest.mark.parametrize('place', ['../../victim', '..', '', 'a//b', '/a\0b', '/' + 'x'*5000, 7])
def test_odd_places_are_not_believed(tmp_path, place):
    (tmp_path/'run.json').write_text(json.dumps({'folder': str(tmp_path), 'places': {'checkpoints': place, 'logs': 'logs'}}))
    run = RunFolder(tmp_path)
    assert (run.models, run.logs) == (tmp_path/'checkpoints', tmp_path/'logs')
