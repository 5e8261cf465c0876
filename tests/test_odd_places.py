"""Every small file of a run or a set of shards, replaced by something that no program wrote there, at every door that reads it

A result, or one sentence that names the file; never what a library below raised, never a wait.
"""
import inspect, os, shutil, signal, socket, sys, time, warnings
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from test_small_files import look, make_run, went_on, whole      # noqa: F401, a fixture

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

WRITTEN = {'empty': b'', 'white': b' \n', 'no UTF-8': b'\xff\xfe{"a": 1}', 'UTF-16': '{"stage": 1}\n'.encode('utf-16'), 'BOM': b'\xef\xbb\xbf{}',
           'deep': b'[' * 100_000, 'deep objects': b'{"a":' * 100_000, 'a huge number': b'{"stage": 1' + b'0'*5000 + b'}\n', 'NaN': b'{"stage": NaN, "files": Infinity}\n',
           'a large exponent': b'{"stage": 1e999, "epoch": -1e999}\n', 'twice a key': b'{"stage": 1, "stage": [2], "files": 1, "files": {}}\n',
           'half a pair': b'{"stage": "\\ud800", "run_dir": "\\udc80"}\n', 'a list': b'[{}]', 'zeros': bytes(5000), 'null': b'null\n'}
ODD = {f.__name__.replace('_', ' '): f for f in (folder, full_folder, pipe, a_socket, loop_of_links, link_to_nothing, link_to_a_device, link_to_a_folder)} | \
      {name: content(data) for name, data in WRITTEN.items()}

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

def test_list(whole, tmp_path):
    folder, options = whole
    print(small_files(folder))
    from maou_nb import evaluate, predict, load_net
    bad = []
    n = 0
    for rel in small_files(folder):
        for odd, put in ODD.items():
            top = tmp_path/'top'
            shutil.rmtree(top, ignore_errors=True); shutil.copytree(folder, top)
            mine = {k: v.replace(str(folder), str(top)) if isinstance(v, str) else v for k, v in options.items()}
            replaced(top/rel, put)
            run = top/'run'
            doors = look(run, deep=False) + [lambda: evaluate(run, top/'stage2'), lambda: went_on(run, mine)]
            with warnings.catch_warnings():
                for i, d in enumerate(doors):
                    warnings.simplefilter('ignore')
                    n += 1
                    t = time.time()
                    try:
                        with within(10): d()
                    except sentences() as e:
                        if '\n' in str(e) or str(top) not in str(e): bad.append((str(rel), odd, i, 'SENT', repr(e)[:300]))
                    except BaseException as e:
                        import traceback
                        tb = traceback.extract_tb(e.__traceback__)
                        mm = [f for f in tb if 'maou_nb' in f.filename and 'tests' not in f.filename]
                        bad.append((str(rel), odd, i, 'RAW', repr(e)[:200], [f'{f.name}:{f.lineno}' for f in mm[-4:]]))
                    if time.time() - t > 5: bad.append((str(rel), odd, i, 'SLOW', time.time()-t))
    print(n)
    for b in bad: print(*b)
