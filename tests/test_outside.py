"""Names from outside stay in their folders, links are not written through, and only files are read

What a bucket, a manifest or a result names is read, written and removed inside their folder alone.
"""
import inspect, json, os, random, signal, socket, stat
from contextlib import contextmanager

import pytest
import torch

from maou_nb.data import files
from maou_nb.data.files import FileError, as_path, atomic_file, file_sha256, find_files, is_inside, path_inside, read_json
from maou_nb.data.records import read_games
from maou_nb.data.shards import ShardError, find_shards, read_manifest, write_manifest
from maou_nb.front.cli import _read_config
from maou_nb.front.learn import load_run
from maou_nb.front.options import try_config
from maou_nb.train.checkpoints import CheckpointError, Checkpoints, find_checkpoint
from maou_nb.train.folder import RunFolder, add_line, read_lines
from maou_nb.train.mirror import Mirror, fetch_run
from public import public
from samples import said

@pytest.fixture
def victim(tmp_path):
    "A file beside the folders that may be written to; it is there afterwards, as it was"
    path = tmp_path/'victim'
    path.write_text('precious')
    yield path
    assert path.read_text() == 'precious' and not path.is_symlink()

def odd_names(n, seed=0):
    "Names put together of what leads elsewhere, and of what does not"
    rng = random.Random(seed)
    parts = ['..', '.', '', 'a', 'b.safetensors', '~', 'C:', '\\', '..\\', 'ü　x', '\0', '\n', '*', ' ', '...']
    return ['/'.join(rng.choices(parts, k=rng.randint(1, 5))) for _ in range(n)]

def test_no_name_leads_out(tmp_path):
    inside = 0
    for name in odd_names(3000):
        try: path = path_inside(tmp_path, name, 'a manifest')
        except FileError as e:
            assert '\n' not in str(e) and 'a manifest names' in str(e)
            continue
        assert os.path.normpath(path) == str(path) and path != tmp_path and path.is_relative_to(tmp_path)
        inside += 1
    assert inside > 50
    assert not any(map(is_inside, (None, 3, b'a', ['a'], '/etc/passwd', 'C:/x', '..\\x', '\\\\host\\x')))

def kept(folder, names=('step-1',)):
    made = Checkpoints(folder, keep=1)
    for n in names: made.save(n, {'w': torch.zeros(1)}, {'step': 1}, ['best'])
    return made

OUT = ['../victim', '../../victim', '/victim', 'a/../../victim']

def spoil(path, name, where):
    "Have the manifest of checkpoints at `path` name `name`"
    manifest = json.loads(path.read_text())
    if where == 'files': manifest['files'][name] = {'sha256': '0'*64}
    else: manifest[where] = name
    path.write_text(json.dumps(manifest))

@pytest.mark.parametrize('where', ['files', 'last', 'best', 'best_policy'])
@pytest.mark.parametrize('name', OUT)
def test_a_manifest_of_checkpoints_names_its_own(tmp_path, victim, name, where):
    name = name.replace('/victim', str(victim)) if name[0] == '/' else name
    made = kept(tmp_path/'run')
    spoil(tmp_path/'run'/'checkpoints.json', name, where)
    again = Checkpoints(made.folder)
    doors = [lambda: again.save('step-2', {}, {}), lambda: made.load(), lambda: made.load_newest(), lambda: find_checkpoint(tmp_path/'run')]
    for door in doors:
        with pytest.raises(CheckpointError) as error: door()
        assert 'names' in said(error)
    made.save('step-2', {}, {})         # who wrote the manifest last still knows it
    assert victim.exists() and 'victim' not in (made.folder/'checkpoints.json').read_text()

@pytest.mark.parametrize('name', OUT)
def test_a_manifest_of_shards_names_its_own(tmp_path, victim, name):
    name = name.replace('/victim', str(victim)) if name[0] == '/' else name
    entry = dict(name=name, rows=1, bytes=1, sha256='', folds=None)
    (tmp_path/'set').mkdir()
    (tmp_path/'set'/'manifest.json').write_text(json.dumps({'shards': [entry]}))
    (tmp_path/'set'/'a.feather').write_bytes(b'ARROW1')
    doors = [lambda: write_manifest(tmp_path/'set', []), lambda: read_manifest(tmp_path/'set'), lambda: find_shards(tmp_path/'set', 3)]
    for door in doors:
        with pytest.raises(ShardError) as error: door()
        assert 'names' in said(error)

@pytest.mark.parametrize('name', OUT)
def test_a_result_names_checkpoints(tmp_path, victim, name):
    name = name.replace('/victim', str(victim)) if name[0] == '/' else name
    run = tmp_path/'run'
    run.mkdir()
    (run/'config.json').write_text('{}')
    stage = dict(stage=3, stage_name='x', achieved_accuracy=1, final_loss=1, epochs_trained=1,
                 threshold_met=True, checkpoints={'best': name})
    (run/'result.json').write_text(json.dumps(dict(stage='3', stages_completed=[stage], run_dir='x')))
    with pytest.raises(CheckpointError) as error: find_checkpoint(run)
    assert 'names' in said(error)
    with pytest.raises(FileError) as error: load_run(run).checkpoint()
    assert 'names' in said(error)

def far_run(name, key=None, manifest=None):
    "A run in a bucket of memory, with one more key"
    root = f'/{name}/run'
    store = as_path(f'memory://{name}').fs.store
    from fsspec.implementations.memory import MemoryFile
    def put(key, data): store[key] = MemoryFile(as_path(f'memory://{name}').fs, key, data)
    put(f'{root}/config.json', b'{"stage": 3}')
    put(f'{root}/checkpoints/stage3/checkpoints.json', json.dumps(manifest or {'last': None, 'best': None, 'files': {}}).encode())
    if key: put(f'{root}/{key}', b'evil')
    return f'memory:/{root}'

@pytest.mark.parametrize('key', ['{victim}', '/{victim}', '../victim', 'a/../../victim', 'a//b', '..\\victim'])
def test_a_key_of_a_bucket_stays_inside(tmp_path, victim, key):
    url = far_run(f'outside-{abs(hash(key))}', key.replace('{victim}', str(victim)))
    with pytest.raises(FileError) as error: fetch_run(url, tmp_path/'here')
    assert 'names' in said(error) and not (tmp_path/'here').exists()

def test_a_far_manifest_stays_inside(tmp_path, victim):
    url = far_run('outside-manifest', manifest={'last': None, 'best': None, 'files': {'../../../victim': {'sha256': file_sha256(victim)}}})
    with pytest.raises(FileError) as error: fetch_run(url, tmp_path/'here')
    assert 'names' in said(error)

def test_links_to_folders_are_followed_and_links_to_files_are_not(tmp_path, victim):
    "A run's checkpoints may lie on another disk; a link where a file is to be is replaced, or refused"
    run, disk = tmp_path/'run', tmp_path/'disk'
    for p in (run, disk): p.mkdir()
    (run/'checkpoints').symlink_to(disk)
    kept(run/'checkpoints'/'stage3')
    assert (disk/'stage3'/'step-1.safetensors').exists()
    for name in ('history.jsonl', 'run.log', 'config.json'): (run/name).symlink_to(victim)
    folder = RunFolder(run)
    for write in (lambda: add_line(folder.history_file, {}), lambda: folder.say('x')):
        with pytest.raises(FileError) as error: write()
        assert 'is a link' in said(error)
    folder.write(folder.config_file, '{"stage": 3}')
    mirror = Mirror({run: f'file://{tmp_path}/far'})
    assert mirror.close()
    assert (tmp_path/'far'/'checkpoints'/'stage3'/'step-1.safetensors').exists()
    back = tmp_path/'back'
    back.mkdir()
    (back/'checkpoints').symlink_to(tmp_path/'disk2')
    (tmp_path/'disk2').mkdir()
    (back/'config.json').symlink_to(victim)
    fetch_run(str(tmp_path/'far'), back)
    assert (tmp_path/'disk2'/'stage3'/'step-1.safetensors').exists() and not (back/'config.json').is_symlink()

def test_a_part_file_is_never_a_link(tmp_path, victim, monkeypatch):
    part = tmp_path/f'.x.{os.getpid()}.{files.get_ident()}.part'
    part.symlink_to(victim)
    with atomic_file(tmp_path/'x') as f: f.write(b'whole')
    assert (tmp_path/'x').read_bytes() == b'whole'

def test_links_in_a_run_that_is_gone_on_with(tmp_path, victim):
    from maou_nb.stages.stage import STAGES
    kept(tmp_path/'old'/'checkpoints'/'stage3')
    new = RunFolder(tmp_path/'new')
    (new.models/'stage3').mkdir(parents=True)
    (new.models/'stage3'/'step-1.safetensors').symlink_to(victim)
    new.bring(tmp_path/'old', list(STAGES.values()))

# ---- only files are read

@contextmanager
def soon(seconds=10):
    "A `TimeoutError` if the body takes longer"
    def late(*_): raise TimeoutError('it waits for ever')
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try: yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)

@pytest.fixture(scope='module')
def specials(tmp_path_factory):
    folder = tmp_path_factory.mktemp('special')
    os.mkfifo(folder/'pipe')
    listening = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(folder)
    listening.bind('socket')
    os.chdir(here)
    (folder/'link').symlink_to(folder/'pipe')
    yield ['/dev/zero', '/dev/full', *(str(folder/n) for n in ('pipe', 'socket', 'link'))]
    listening.close()

def path_takers():
    "(name, function, its parameter) of the package's public functions that take a path first"
    for name, f in public():
        if not inspect.isfunction(f): continue
        for p in list(inspect.signature(f).parameters.values())[:1]:
            if 'Path' in str(p.annotation): yield name, f, p.name

# what they need beside the path; those in PURE look at no file
MORE = {'read_hcpe_table': ('x',), 'export_onnx': ('x',), 'export': ('x',), 'predict': ('startpos',),
        'prepare_stage2': ('out',), 'prepare_stage3': ('out',), 'placebo_stage2': ('out',),
        'write_manifest': ([],), 'save_tensors': ({},), 'save_parts': ({}, {}), 'load_part': ('backbone',),
        'path_inside': ('a', 'x'), 'from_folder': ('x',), 'add_line': ({},), 'write_script': ({},),
        'cut_lines': (bool,), 'copy_file': ('x',), 'find_shards': (3,),
        'find_files': (('',), 'files'), 'read_shard': (), 'upload': (as_path('memory://outside/x'),), 'named_checkpoint': ('a', 'x'),
        'adapter_of': ('policy_head',), 'alone_in': ('x is done',), 'is_there': ()}
PURE = {'is_remote', 'kept_paths', 'from_folder', 'named_checkpoint', 'listed', 'holds_none', 'files_below', 'keys_below',
        'upload', 'download', 'read_file', 'write_shard',
        'read_lines', 'cut_lines', 'compare', 'short_path', 'whole', 'found_again', 'own_place', 'owner_of', 'kept_elsewhere',
        'disk_in_words', 'naming', 'damaged', 'unfinished',
        'write_exam', 'random_stage2',
        'read_record', 'write_record', 'elsewhere_at_work', 'beating', 'sends_to', 'age_of'}    # a record that is none says nobody

def test_every_door_refuses_what_is_no_file(specials, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tried, wrong = set(), []
    for name, f, _ in path_takers():
        short = name.rsplit('.', 1)[-1]
        if short in PURE: continue
        for special in specials:
            try:
                with soon():
                    made = f(special, *MORE.get(short, ()))
                    if inspect.isgenerator(made): list(made)
                    if hasattr(made, '__enter__'):
                        with made: pass
            except TimeoutError: wrong.append((name, special, 'waits'))
            except TypeError as e: wrong.append((name, special, f'say in MORE what it needs: {e}'))
            except (ValueError, OSError, RuntimeError) as e:
                if '\n' in str(e) or 'expected' not in str(e): wrong.append((name, special, str(e)))
            else: wrong.append((name, special, f'gives {made!r}'))
        tried.add(short)
    assert not wrong, '\n'.join(map(str, wrong))
    assert len(tried) > 15
    assert stat.S_ISCHR(os.stat('/dev/zero').st_mode)      # and it was not replaced

def test_every_option_that_is_a_path(specials, shards):
    from maou_nb.train.options import config_class
    names = [n for n in config_class().model_fields if n.endswith(('_dir', '_path', '_from')) and not n.endswith('base_path')]
    assert len(names) > 8
    for special in specials:
        for name in names:
            with soon(): _, problems = try_config({**shards, 'stage': 'all', 'model_size': 'tiny', name: special})
            assert any(p.startswith(name) for p in problems), (name, special, problems)

def test_special_files_inside_folders(tmp_path):
    "A pipe where a game, a shard or a file of a run is expected"
    os.mkfifo(tmp_path/'a.csa')
    with soon(), pytest.raises(FileError) as error: list(read_games(tmp_path))
    assert 'is a pipe' in said(error)
    run = tmp_path/'run'
    run.mkdir()
    for name in ('config.json', 'run.json', 'result.json', 'history.jsonl', 'run.log', '.process.json',
                 'checkpoints.json', 'manifest.json'):
        os.mkfifo(run/name)
    folder = RunFolder(run)
    doors = [folder.read_config, folder.epochs, lambda: read_lines(folder.history_file), lambda: Checkpoints(run).manifest,
             lambda: load_run(run),
             lambda: read_manifest(run), lambda: _read_config(run/'config.json'), lambda: add_line(folder.history_file, {}), folder.log]
    for door in doors:
        with soon(), pytest.raises((FileError, CheckpointError)): door()
    with soon(): assert folder.read_about() == {} and folder.process() == {}

def test_linked_folders_of_games_are_read_once(tmp_path):
    from samples import ONE_FILE
    (tmp_path/'disk').mkdir()
    (tmp_path/'disk'/'a.csa').write_bytes(ONE_FILE.read_bytes())
    (tmp_path/'games').mkdir()
    for name in ('one', 'two'): (tmp_path/'games'/name).symlink_to(tmp_path/'disk')
    (tmp_path/'disk'/'round').symlink_to(tmp_path/'games')
    assert len(find_files(tmp_path/'games', ('.csa',), 'games')) == 1

def test_json_is_bounded(tmp_path, monkeypatch):
    (tmp_path/'a.json').write_text('['*200_000)
    with pytest.raises(FileError): read_json(tmp_path/'a.json')
    for name in ('manifest.json', 'checkpoints.json', 'config.json', 'result.json'): (tmp_path/name).write_text('{"a":'*200_000)
    for door in (lambda: read_manifest(tmp_path), lambda: Checkpoints(tmp_path).manifest, RunFolder(tmp_path).read_config,
                 lambda: load_run(tmp_path)):
        with pytest.raises((FileError, CheckpointError)): door()
    monkeypatch.setattr(files, 'MOST_JSON', 10)
    with pytest.raises(FileError, match='larger than 10 bytes'): read_json(tmp_path/'a.json')
