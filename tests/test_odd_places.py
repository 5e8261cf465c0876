"""Every small file of a run or a set of shards, replaced by something that no program wrote there, at every door that reads it

A result, or one sentence that names the file; never what a library below raised, never a wait.
"""
import os, random, shutil, signal, socket, sys, warnings
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from test_small_files import look, went_on, whole      # noqa: F401, a fixture

def folder(path): path.mkdir()
def full_folder(path): path.mkdir(); (path/'x').write_text('x')
def pipe(path): os.mkfifo(path)
def loop_of_links(path): path.symlink_to(path.with_name(f'{path.name}-2')); path.with_name(f'{path.name}-2').symlink_to(path)
def link_to_nothing(path): path.symlink_to(path.with_name('nothing'))
def link_to_a_device(path): path.symlink_to('/dev/zero')
def link_to_a_folder(path): path.symlink_to(path.parent.parent, target_is_directory=True)

def a_socket(path):
    s, before = socket.socket(socket.AF_UNIX), os.getcwd()
    os.chdir(path.parent)                # a socket's path may not be long
    try: s.bind(path.name)
    finally: os.chdir(before); s.close()

def content(data): return lambda path: path.write_bytes(data)

WRITTEN = {
    'empty': b'', 'white': b' \n', 'no UTF-8': b'\xff\xfe{"a": 1}', 'UTF-16': '{"stage": 1}\n'.encode('utf-16'), 'BOM': b'\xef\xbb\xbf{}',
    'deep': b'[' * 100_000, 'deep objects': b'{"a":' * 100_000, 'a huge number': b'{"stage": 1' + b'0'*5000 + b'}\n',
    'NaN': b'{"stage": NaN, "files": Infinity}\n', 'a large exponent': b'{"stage": 1e999, "epoch": -1e999}\n',
    'twice a key': b'{"stage": 1, "stage": [2], "files": 1, "files": {}}\n', 'a list': b'[{}]', 'null': b'null\n',
    'half a pair': b'{"stage": "\\ud800", "run_dir": "\\udc80"}\n', 'zeros': bytes(5000)}
PLACES = folder, full_folder, pipe, a_socket, loop_of_links, link_to_nothing, link_to_a_device, link_to_a_folder
ODD = {f.__name__: f for f in PLACES} | {name: content(data) for name, data in WRITTEN.items()}

@contextmanager
def within(seconds):
    def late(*_): raise TimeoutError(f'not within {seconds} s')
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try: yield
    finally: signal.alarm(0); signal.signal(signal.SIGALRM, before)

def sentences():
    from maou_nb import OptionError
    from maou_nb.data.files import DiskError, FileError
    from maou_nb.train.checkpoints import CheckpointError
    from maou_nb.train.loop import OutOfRoom
    return FileError, OptionError, CheckpointError, DiskError, OutOfRoom, FileNotFoundError

def small_files(top):
    "The files of `top` of which the names are promised, all small ones and the hidden ones"
    return sorted(p.relative_to(top) for p in top.rglob('*') if p.is_file() and p.stat().st_size < 1 << 16
                  and p.suffix in ('.json', '.jsonl', '.log', '') and 'events' not in p.name)

def replaced(path, put):
    if path.is_dir() and not path.is_symlink(): shutil.rmtree(path)
    else: path.unlink(missing_ok=True)
    put(path)

def every_door(top, options, deep):
    "Name → what reads a run in `top`/run or shards in `top`/stage2"
    from maou_nb import evaluate, learn_multi_stage, load_run, predict, preflight, show_results
    from maou_nb.judge.inspect import shard_info
    from maou_nb.judge.review import browse, review
    from maou_nb.stages.rows import prepare_stage2
    from maou_nb.train.mirror import fetch_run
    run, two = top/'run', top/'stage2'
    mine = {k: v.replace('TOP', str(top)) if isinstance(v, str) else v for k, v in options.items()}
    doors = {f'look {i}': d for i, d in enumerate(look(run, deep))}
    doors |= {'evaluate': lambda: evaluate(run, two), 'its own': lambda: evaluate(run), 'predict': lambda: predict(run, 'startpos'),
              'review': lambda: review(run, two, rows=50), 'browse': lambda: browse(run, two, rows=50),
              'show': lambda: show_results(run, two, n=1, rows=50), 'shard_info': lambda: shard_info(two),
              'preflight': lambda: repr(preflight(**{**mine, 'resume_from': 'latest', 'run_dir': str(run)})),
              'fetch': lambda: fetch_run(f'file://{run}', top/'fetched'), 'fetch run': lambda: load_run(top/'fetched')}
    bring = lambda **more: learn_multi_stage(**{**mine, 'run_dir': str(top/'branch'), **more})
    doors |= {'resume_from': lambda: bring(resume_from=str(run)), 'a head': lambda: bring(stage=2, resume_backbone_from=str(run)),
              'resume': lambda: went_on(run, mine), 'prepare': lambda: prepare_stage2(top/'one.csa', two)}
    return doors

def told(door, top):
    "What a door says in time, if it gives no result: one of our sentences, about a file here or an option"
    try:
        with within(10): door()
    except sentences() as e: return str(e) if '\n' in str(e) or not (str(top) in str(e) or '_path: ' in str(e)) else ''
    return ''

def check(whole, top, name, odd):
    "Every door, with something odd in place of the small file called `name`"
    folder, options = whole
    shutil.copytree(folder, top)
    replaced(top/name, ODD[odd])
    mine = {k: v.replace(str(folder), 'TOP') if isinstance(v, str) else v for k, v in options.items()}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for door, ask in every_door(top, mine, deep=odd in ('folder', 'NaN', 'deep')).items(): assert not told(ask, top), (name, odd, door)
    shutil.rmtree(top)

# whose folder it is, .lock tells, and is tested elsewhere
def names(folder): return [str(n) for n in small_files(folder) if n.name != '.lock']

@pytest.mark.slow
def test_a_folder_or_something_else_in_place_of_each_small_file(whole, tmp_path):
    for name in names(whole[0]):
        for odd in ('folder', random.Random(name).choice([*ODD])): check(whole, tmp_path/'top', name, odd)

@pytest.mark.slow
@pytest.mark.parametrize('odd', ODD)
def test_anything_in_place_of_each_small_file(odd, whole, tmp_path):
    for name in names(whole[0]): check(whole, tmp_path/'top', name, odd)
