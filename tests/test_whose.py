"Whose a folder is: a run goes on with what is its own, wherever that was copied or moved to, and with nothing else"
import itertools, json, os, shutil, threading, time
from pathlib import Path

import pytest

from maou_nb import learn_multi_stage, load_run
from maou_nb.data.alone import FolderLock
from maou_nb.data.files import FileError
from maou_nb.data.options import OptionError
from maou_nb.front.learn import finished_stages, train_run
from maou_nb.front.options import make_config
from maou_nb.stages.rows import prepare_stage1
from maou_nb.train import mirror as room
from maou_nb.train.checkpoints import CheckpointError, Checkpoints, find_checkpoint
from maou_nb.train.folder import RunFolder, owner_of
from maou_nb.train.loop import TIMINGS
from maou_nb.train.mirror import Mirror, State, _is_later, fetch_run, standing, state_here
from maou_nb.train.runner import StageThresholdNotMet
from samples import thinned

SMALL = dict(stage=1, gpu='cpu', model_size='tiny', resnet_channels=8, resnet_blocks=1, stage1_batch_size=400,
             stage1_threshold=1., tensorboard_histogram_frequency=0)

@pytest.fixture
def train(shards, tmp_path, monkeypatch):
    "Trains so many epochs in a folder of one's own; gives the result, and what was said"
    monkeypatch.chdir(tmp_path)
    def train(epochs=1, **options):
        said = []
        cfg = make_config(**{**SMALL, 'stage1_data_path': shards['stage1_data_path'], 'stage1_max_epochs': epochs, **options})
        with pytest.raises(StageThresholdNotMet) as e: train_run(cfg, say=said.append, pictures=False)
        return e.value.result, '\n'.join(said)
    return train

def goes_on(train, epochs=2, **options): return train(epochs, resume_from='latest', **options)

def id_of(run): return RunFolder(run).read_about()['id']

def rows(result): return [{k: v for k, v in r.items() if k not in TIMINGS} for r in result[1].history]

def contents(*folders):
    "All files, but for hidden ones, with what is in them"
    return {p: p.read_bytes() for f in folders for p in sorted(Path(f).rglob('*')) if p.is_file() and not p.name.startswith('.')}

def refused(words, *folders):
    "An `OptionError` with these words, which changes nothing in `folders`"
    class Refused:
        def __enter__(self): self.before = contents(*folders)
        def __exit__(self, kind, error, _):
            assert kind is OptionError and words in str(error) and '\n' not in str(error), error
            assert contents(*folders) == self.before
            return True
    return Refused()

# --- copies

@pytest.mark.parametrize('kept', ['model_dir', pytest.param('log_dir', marks=pytest.mark.slow), 'link'])
def test_a_copy_shares_nothing_with_its_original(train, kept):
    elsewhere = {} if kept == 'link' else {kept: 'kept'}
    train(run_dir='a', **elsewhere)
    if kept == 'link':      # to a larger disk
        shutil.move('a/checkpoints', 'kept'); Path('a/checkpoints').symlink_to(Path('kept').absolute())
        goes_on(train, 1, run_dir='a')
    shutil.copytree('a', 'b', symlinks=True)
    with refused('b is a copy of a', 'a', 'b', 'kept'): goes_on(train, run_dir='b', **elsewhere)
    branch, _ = train(2, run_dir='c', resume_from='a')
    first, _ = goes_on(train, run_dir='a', **elsewhere)
    assert rows(first) == rows(branch) and id_of('c') != id_of('a')
    os.rename('a', 'moved')
    goes_on(train, 3, run_dir='moved', **elsewhere)
    with refused('b is a copy of moved', 'moved', 'b', 'kept'): goes_on(train, run_dir='b', **elsewhere)
    shutil.rmtree('moved')                       # now it is the only one
    assert len(goes_on(train, 4, run_dir='b', **elsewhere)[0][1].history) == 4

def test_a_copy_with_all_that_is_its_own_goes_on_for_itself(train):
    train(run_dir='a', model_dir='m')
    for n in ('a', 'm'): shutil.copytree(n, f'there/{n}')
    goes_on(train, 2, run_dir='there/a', model_dir='there/m')
    assert len(Checkpoints('m/a/stage1').manifest['files']) == 1 and len(Checkpoints('there/m/a/stage1').manifest['files']) == 2
    goes_on(train, 3, run_dir='a', model_dir='m'); goes_on(train, 3, run_dir='there/a')
    assert RunFolder('there/a').models == Path('there/m/a').absolute()

def test_a_first_start_of_the_same_name_is_no_copy(train):
    "The cell says latest from the beginning, and another run of that name is in model_dir"
    train(run_dir='x/run', model_dir='m')
    result, said = goes_on(train, 1, run_dir='y/run', model_dir='m')
    assert 'starts afresh' in said and RunFolder('y/run').models.name == 'run-2' and id_of('x/run') != id_of('y/run')

# --- moved, gone, not believed

def test_what_was_moved_is_found_where_the_options_say(train):
    train(run_dir='a', model_dir='m', log_dir='l')
    Path('big').mkdir(); shutil.move('m', 'big/m')
    with refused('the checkpoints of a are not in m/a', 'a', 'big'): goes_on(train, run_dir='a')
    with refused('the checkpoints of a are not in m/a', 'a', 'big'): goes_on(train, run_dir='a', model_dir='m')
    with refused('n/a holds no checkpoints of a', 'a', 'big'): goes_on(train, run_dir='a', model_dir='n')
    result, _ = goes_on(train, run_dir='a', model_dir='big/m', log_dir='l2')
    assert len(result[1].history) == 2 and RunFolder('a').models == Path('big/m/a').absolute() and not Path('m').exists()
    assert list(Path('l2/a/stage1').glob('events*')) and load_run('a').checkpoint(1).is_relative_to(Path('big').absolute())
    assert len(goes_on(train, 3, run_dir='a')[0][1].history) == 3            # and is known from now on

@pytest.mark.parametrize('other', ['new', 'of another run'])
def test_another_model_dir_is_refused(train, other):
    train(run_dir='a', model_dir='m')
    if other != 'new': train(run_dir='x/a', model_dir='n')
    with refused('n/a holds no checkpoints of a, which run.json says are in m/a', 'a', 'm', 'n'):
        goes_on(train, run_dir='a', model_dir='n')
    with refused('n/a holds no checkpoints of a', 'a', 'm', 'n'): train(2, run_dir='a', model_dir='n', resume_from='a')

def test_nothing_begins_afresh_where_something_was(train):
    train(run_dir='a'); shutil.move('a/checkpoints', 'away')
    with refused('the checkpoints of a are not in a/checkpoints', 'a', 'away'): goes_on(train, run_dir='a')
    shutil.move('away', 'a/checkpoints')
    assert len(goes_on(train, run_dir='a')[0][1].history) == 2

def test_a_run_that_had_trained_nothing_begins(train):
    "Killed before its first checkpoint, with an empty place elsewhere"
    train(run_dir='a', model_dir='m')
    for f in ('history.jsonl', 'result.json'): Path('a', f).unlink()
    shutil.rmtree('m/a/stage1')
    _, said = goes_on(train, 1, run_dir='a', model_dir='m')
    assert 'starts afresh' in said

VICTIMS = {'nothing': None, 'files': '', 'another run': 'ab'*16 + '\n/somewhere', 'odd mark': '\xff\0', 'many lines': 'ab\n'*9999}

@pytest.mark.parametrize('mark', VICTIMS.values(), ids=VICTIMS)
def test_places_of_others_are_not_believed(train, tmp_path, mark):
    train(run_dir='a')
    victim = tmp_path/'victim'
    if mark is not None:
        (victim/'stage1').mkdir(parents=True); shutil.copytree('a/checkpoints', victim, dirs_exist_ok=True)
        manifest = json.loads((victim/'stage1/checkpoints.json').read_text())
        (victim/'stage1/checkpoints.json').write_text(json.dumps({**manifest, 'run': 'cd'*16}))
        (victim/'.run').write_text(mark, encoding='latin-1') if mark else None
    about = {**RunFolder('a').read_about(), 'places': {'checkpoints': str(victim), 'logs': str(victim)}}
    Path('a/run.json').write_text(json.dumps(about))
    run = RunFolder('a')
    assert (run.models, run.logs) == (run.path/'checkpoints', run.path/'logs')
    shutil.move('a/checkpoints', 'away')
    before = contents(victim)
    with refused('model_dir: the checkpoints of a are not in', victim, 'a'): goes_on(train, run_dir='a')
    assert contents(victim) == before and victim.exists() == (mark is not None)

def test_no_mark_is_waited_for(tmp_path):
    (tmp_path/'p').mkdir(); os.mkfifo(tmp_path/'p/.run'); (tmp_path/'d/.run').mkdir(parents=True)
    assert owner_of(tmp_path/'p') == owner_of(tmp_path/'d') == owner_of(tmp_path/'none') == ('', '')

# --- from elsewhere

def test_only_the_run_that_came_from_there_goes_on(train):
    a, _ = train(2, run_dir='a'); train(run_dir='b', seed=1)
    other = "b holds another run, which did not come from there"
    for source in ('a', a.checkpoint(1)):
        with refused(other, 'a', 'b'): train(3, run_dir='b', resume_from=str(source))
    for epochs in (3, 4):                                                    # the same cell twice
        for n, source in (('c', 'a'), ('d', str(a.checkpoint(1)))):
            assert len(train(epochs, run_dir=n, resume_from=source)[0][1].history) == epochs
    with refused('a holds a later checkpoint of the same run', 'a'):
        train(3, run_dir='a', resume_from=str(sorted(Path('a/checkpoints/stage1').glob('*.safetensors'))[0]))
    assert len(train(3, run_dir='a', resume_from=a.checkpoint(1, 'last'))[0][1].history) == 3
    shutil.rmtree('a'); train(2, run_dir='a', seed=2)                        # another run in the place of its source
    with refused('c holds another run', 'a', 'c'): train(5, run_dir='c', resume_from='a')

def test_options_that_were_refused_may_be_mended(train):
    train(run_dir='a')
    for _ in range(2):
        with pytest.raises(OptionError, match='seed'): train(2, run_dir='b', resume_from='a', seed=3)
    assert len(train(2, run_dir='b', resume_from='a')[0][1].history) == 2

# --- results of others

def test_a_result_of_others_is_not_believed(shards, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    both = {**SMALL, **shards, 'stage': ('1', '2'), 'stage1_threshold': 0., 'stage2_threshold': 0., 'stage2_max_epochs': 1,
            'stage1_max_epochs': 1, 'stage2_batch_size': 400}
    for n, seed in (('x', 0), ('y', 1)): learn_multi_stage(**{k: v for k, v in both.items() if 'stage3' not in k}, run_dir=n, seed=seed)
    cfg, said = make_config(**{k: v for k, v in both.items() if 'stage3' not in k}, run_dir='y', seed=1), []
    assert finished_stages(cfg, RunFolder('y'), said.append) == load_run('y').stages_completed[:1] and not said
    own = json.loads(Path('y/result.json').read_text())
    def without(s): s.pop('sha256')
    def half(s): s['sha256'].popitem()
    for change in (None, without, half, lambda s: s['sha256'].update(best='ab'*32)):
        result = json.loads(Path('x/result.json').read_text()) if change is None else json.loads(json.dumps(own))
        if change: change(result['stages_completed'][0])
        Path('y/result.json').write_text(json.dumps(result)); said.clear()
        assert finished_stages(cfg, RunFolder('y'), said.append) == [] and 'asked of the checkpoints' in said[0]
    own['stages_completed'][1]['checkpoints']['best'] = 'checkpoints/stage2/none.safetensors'
    Path('y/result.json').write_text(json.dumps(own))
    with pytest.raises(FileError, match='none.safetensors, which the result names, is not there'): load_run('y').checkpoint()

def test_a_result_leads_to_no_checkpoint_of_another_run(train):
    "Of a run that keeps its checkpoints elsewhere"
    for n, seed in (('a', 0), ('b', 1)): train(run_dir=n, seed=seed, model_dir='m')
    best = find_checkpoint('a')[0]
    assert best.parent.parent.name == 'a'
    shutil.copy('b/result.json', 'a/result.json')
    with pytest.raises(CheckpointError, match='a holds no checkpoint'): find_checkpoint('a')
    Path('a/run.json').unlink()                      # whose it is, nobody knows then
    assert find_checkpoint('a')[0].parent.parent.name == 'b'

# --- a run at a URL

@pytest.fixture
def at(tmp_path, monkeypatch):
    "Works on one of several machines"
    def at(name): (tmp_path/name).mkdir(exist_ok=True); monkeypatch.chdir(tmp_path/name)
    return at

@pytest.fixture
def url(): return f'memory://whose-{time.time_ns()}/first'

@pytest.mark.parametrize('elsewhere', [{}, {'model_dir': 'm', 'log_dir': 'l'}])
def test_the_later_state_of_a_run_is_kept(train, at, url, elsewhere):
    at('one'); train(run_dir=url, **elsewhere)
    at('two'); later, _ = goes_on(train, 3, run_dir=url, **elsewhere)
    at('one'); here, said = goes_on(train, 2, run_dir=url, **elsewhere)
    assert rows(here) == rows(later) and f'fetched {url}' in said and standing(url, Path('runs/first').absolute()) == 'ours'
    kept = Path('m/first' if elsewhere else 'runs/first/checkpoints')
    assert len(Checkpoints(kept/'stage1').manifest['files']) == 3 and not (elsewhere and Path('runs/first/checkpoints').exists())
    goes_on(train, 4, run_dir=url, **elsewhere)
    at('two'); assert len(goes_on(train, 4, run_dir=url, **elsewhere)[0][1].history) == 4

def test_a_run_of_another_bucket_does_not_go_on(train, at, url):
    at('one'); train(run_dir=url)
    at('two'); train(run_dir=f'{url}/first', seed=1)
    at('one')
    with refused('runs/first, where the run at', 'runs/first'): goes_on(train, run_dir=f'{url}/first')
    with refused(f'runs/first is kept at {url}, and there is no run at', 'runs/first'): goes_on(train, run_dir=f'{url}/none/first')
    with refused('runs/first, where the run at', 'runs/first'): train(2, run_dir='runs/first', resume_from=f'{url}/first')

def test_where_nobody_answers_what_is_here_goes_on(train, at, url, monkeypatch):
    at('one'); train(run_dir=url)
    def broken(*_, **__): raise FileError('sending failed: no route was expected to be gone')
    monkeypatch.setattr(room, '_files_at', broken)
    result, said = goes_on(train, 2, run_dir=url)
    assert len(result[1].history) == 2 and 'does not tell how far the run is there' in said

def test_a_mirror_writes_over_no_later_state(train, at, url):
    "Whichever option says that there is a copy, and in a run that begins anew as well"
    at('one'); train(run_dir=url)
    at('two'); goes_on(train, 3, run_dir=url)
    at('one'); told, home = [], Path('runs/first').absolute()
    def far(): return {n: room._read(p) for n, p in room._files_at(url).items()}
    before = far()
    assert not Mirror({home: url}, told.append).close() and 'holds a later state of this run' in told[0] and far() == before
    result, said = train(1, run_dir=url)                     # anew: what is kept aside here is an earlier state
    assert 'holds a run that does not come from' in said and far() == before
    fetch_run(url, 'back'); assert state_here(Path('back').absolute()).steps == room._state(room._files_at(url)).steps

def test_which_state_is_later():
    later = [({}, {'stage1': 1}), ({'stage1': 1}, {'stage1': 2}), ({'stage1': 9}, {'stage1': 8, 'stage2': 0}),
             ({'stage2': 3, 'stage1': 9}, {'stage3': 1}), ({'mine': 1}, {'mine': 2})]
    for a, b in later:
        assert _is_later(State('x', b), State('x', a)) and not _is_later(State('x', a), State('x', b))
        assert not _is_later(State('x', a), State('x', a))

# --- the lock

ODD = {'pipe': os.mkfifo, 'folder': os.mkdir, 'link to a device': lambda p: os.symlink('/dev/zero', p),
       'dangling link': lambda p: os.symlink(Path(p).parent.parent/'outside', p), 'link to a file': lambda p: os.symlink(__file__, p)}

@pytest.mark.parametrize('make', ODD.values(), ids=ODD)
def test_what_is_no_lock_is_said(train, tmp_path, make):
    for n, door in (('run', lambda: train(run_dir='run')), ('out', lambda: prepare_stage1(tmp_path/'out'))):
        (tmp_path/n).mkdir(); make(str(tmp_path/n/'.lock'))
        with pytest.raises(FileError, match=r'\.lock is no file: .* was expected there'): door()
        assert os.path.lexists(tmp_path/n/'.lock') and len(os.listdir(tmp_path/n)) == 1
        assert not FolderLock(tmp_path/n).held() and RunFolder(tmp_path/n).at_work() is None
    assert not (tmp_path/'outside').exists()

def test_a_lock_that_is_deleted_still_holds(tmp_path):
    mine, other = FolderLock(tmp_path), FolderLock(tmp_path)
    for n in range(20):
        assert mine.take()
        mine.path.unlink()
        if n % 2: assert other.take(patience=0.) is False; mine.path.unlink(missing_ok=True)
        if n % 3: mine.path.write_text('')
        assert other.held() and other.take(patience=0.) is False
        mine.free(trace=bool(n % 5))
        assert not other.held() and other.take(patience=0.)
        other.free()

def test_of_many_who_take_it_one_has_it(tmp_path):
    "While somebody deletes the hidden file again and again"
    inside, most, until = [], [], time.monotonic() + 1.5
    def work():
        lock = FolderLock(tmp_path)
        while time.monotonic() < until:
            if not lock.take(patience=0.): continue
            inside.append(1); most.append(len(inside)); time.sleep(0.001); inside.pop()
            lock.free(trace=len(most) % 2 == 0)
    def delete():
        while time.monotonic() < until: (tmp_path/'.lock').unlink(missing_ok=True); time.sleep(0.0005)
    threads = [threading.Thread(target=f) for f in (work, work, work, delete)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert max(most) == 1 and len(most) > 20

def test_files_of_locks_are_closed(tmp_path):
    open_now = lambda: len(os.listdir('/proc/self/fd'))
    mine, other, before = FolderLock(tmp_path), FolderLock(tmp_path), open_now()
    for _ in range(5): mine.take(); other.take(patience=0.); other.held(); mine.free()
    (tmp_path/'.lock').unlink(); (tmp_path/'.lock').mkdir()
    with pytest.raises(FileError): mine.take()
    assert open_now() == before

# --- manifests

SPOILT = {'gone': None, 'empty': '', 'cut off': '{"last": "epo', 'no names': '{}', 'another program': '[1]', 'nested': '['*100_000}

@pytest.mark.parametrize('said, more', thinned([*itertools.product(SPOILT, [(), ('run.json', 'history.jsonl', 'result.json')])], 3))
def test_a_manifest_is_made_again(train, said, more):
    whole, _ = train(3, run_dir='a', keep_checkpoints=2, model_dir='m')
    path, id = Path('m/a/stage1/checkpoints.json'), id_of('a')
    before = json.loads(path.read_text())
    path.unlink() if SPOILT[said] is None else path.write_text(SPOILT[said])
    for name in more: Path('a', name).unlink()
    again, told = goes_on(train, 3, run_dir='a', keep_checkpoints=2, model_dir='m')
    assert f'{path.absolute()} was damaged or gone, and was made again from {len(before["files"])} checkpoints' in told
    assert json.loads(path.read_text()) == before and before['run'] == id == id_of('a') and rows(again) == rows(whole)

def test_what_is_no_checkpoint_is_not_listed(tmp_path):
    import torch
    from maou_nb.train.checkpoints import MANIFEST, save_tensors
    kept = Checkpoints(tmp_path, say=lambda text: None)
    for n in range(3): kept.save(f's-{n}', {'x': torch.ones(n + 1)}, {'step': n}, ['best'] if n == 1 else [])
    before = kept.manifest
    (tmp_path/'junk.safetensors').write_bytes(b'junk'); save_tensors(tmp_path/'mine.safetensors', {'x': torch.ones(1)}, {'a': 1})
    save_tensors(tmp_path/'odd.safetensors', {}, {'step': 7, 'marks': 'best'}); (tmp_path/'d.safetensors').mkdir()
    (tmp_path/MANIFEST).unlink(); kept.mend()
    assert kept.manifest == before
    outside = json.dumps({**before, 'files': {'../x.safetensors': {'sha256': 'a'}, **before['files']}})
    (tmp_path/MANIFEST).write_text(outside); kept.mend()
    assert (tmp_path/MANIFEST).read_text() == outside                 # which is refused, and not mended
    with pytest.raises(CheckpointError, match=r"names '\.\./x"): kept.manifest
