"The mirror of a run: to disks and buckets, over lines that break, to servers that are down, and from processes that are killed"
import hashlib, json, os, signal, socket, subprocess, sys, threading, time
from pathlib import Path

import fsspec.config
import pytest
from fsspec.registry import _registry

from maou_nb.data import files
from maou_nb.data.files import FileError, as_path, atomic_file
from maou_nb.train import mirror as room
from maou_nb.train.mirror import Mirror, _files_at, fetch_run, mirror_problems, mirror_url
from buckets import free_port
from samples import said, thinned

STAGE = 'checkpoints/stage3'

def step(i): return f'step-{i:08d}.safetensors'

def save(run, kept, size=2_000, result=False):
    "A run folder as training leaves it after epoch `kept[-1]`: in the order of `Checkpoints.save`"
    stage = run/STAGE
    stage.mkdir(parents=True, exist_ok=True)
    names = {step(i): bytes([i % 256])*(size + i) for i in kept}
    for n, data in names.items():
        if (stage/n).exists(): continue
        with atomic_file(stage/n) as f: f.write(data)
    with atomic_file(stage/'checkpoints.json', 'w') as f:
        json.dump({'last': step(kept[-1]), 'best': step(kept[0]),
                   'files': {n: {'sha256': hashlib.sha256(d).hexdigest()} for n, d in names.items()}}, f)
    for p in stage.glob('*.safetensors'):
        if p.name not in names: p.unlink()
    with open(run/'history.jsonl', 'a') as f: f.write(json.dumps({'epoch': kept[-1], 'at': time.time_ns()}) + '\n')
    (run/'logs').mkdir(exist_ok=True)
    with open(run/'logs/events.out.tfevents.1', 'ab') as f: f.write(os.urandom(100))
    if not (run/'config.json').exists(): (run/'config.json').write_text('{"stage": "3"}')
    if result:
        with atomic_file(run/'result.json', 'w') as f: json.dump({'best': f'{STAGE}/{step(kept[0])}'}, f)

def contents(folder): return {n: p.read_bytes() for n, p in _files_at(folder).items()}

def usable(folder):
    "The run in `folder` is whole: what its manifest names is there and as it says; returns those names"
    named = json.loads((folder/STAGE/'checkpoints.json').read_text())['files']
    assert named and all(files.file_sha256(folder/STAGE/n) == f['sha256'] for n, f in named.items())
    return sorted(named)

def parts(folder): return [p for p in Path(folder).rglob('.*') if p.name != '.mirrored']

@pytest.fixture
def quick(monkeypatch): monkeypatch.setattr(files.time, 'sleep', lambda s, real=time.sleep: real(min(s, 0.01)))

@pytest.fixture(params=['memory', 'file'])
def url(request, tmp_path):
    return (f'memory://mirror-{time.time_ns()}/base/run' if request.param == 'memory'
            else f'file://{tmp_path}/far/base/run')

@pytest.fixture
def run(tmp_path): save(tmp_path/'run', [1, 2]); return tmp_path/'run'

class Sends:
    "What the mirror sends, in order; `before` is called with each URL and may raise"
    def __init__(self, monkeypatch):
        self.urls, self.before, real = [], lambda url: None, room._send
        def send(piece): self.before(piece.url); real(piece); self.urls.append(piece.url)
        monkeypatch.setattr(room, '_send', send)
    def names(self): return [u.rsplit('/', 1)[1] for u in self.urls]

@pytest.fixture
def sends(monkeypatch): return Sends(monkeypatch)

# --- a pass

def test_all_is_there_and_comes_back(url, run, tmp_path, sends):
    save(run, [1, 2, 3], result=True)
    (run/'.hidden').write_text('x'); (run/STAGE/f'.{step(9)}.1.2.part').write_bytes(b'half')
    mirror = Mirror({run: url})
    assert mirror.close() and contents(url) == contents(run) and len(contents(url)) == 8
    names = sends.names()
    assert names[-3:-2] == ['checkpoints.json'] and set(names[-2:]) == {'config.json', 'result.json'}
    back = fetch_run(url, tmp_path/'back')
    assert contents(back) == contents(run) and not parts(back) and usable(back) == [step(1), step(2), step(3)]

def test_only_what_changed_is_sent(url, run, sends):
    mirror = Mirror({run: url})
    mirror.sync(); wait(mirror)
    sends.urls.clear()
    os.utime(run/'config.json'); mirror.sync(); wait(mirror)
    assert sends.urls == []
    save(run, [1, 2, 3])
    assert mirror.close() and sends.names() == ['history.jsonl', 'events.out.tfevents.1', step(3), 'checkpoints.json']

def test_the_next_mirror_does_not_send_checkpoints_again(url, run, sends):
    assert Mirror({run: url}).close()
    sends.urls.clear(); save(run, [2, 3])
    assert Mirror({run: url}).close()
    assert step(3) in sends.names() and step(2) not in sends.names()
    assert contents(url) == contents(run)                         # and step 1, dropped between the two, is gone

def test_big_files_by_size_and_time(run, tmp_path, sends):
    (run/'big').write_bytes(b'a'*(room.SMALL + 1))
    mirror = Mirror({run: tmp_path/'far'})
    mirror.sync(); wait(mirror)
    (run/'big').write_bytes(b'b'*(room.SMALL + 1))
    assert mirror.close() and sends.names().count('big') == 2 and contents(tmp_path/'far') == contents(run)

def wait(mirror, seconds=10):
    "Until nothing that was asked for is left to do"
    with mirror._turn: assert mirror._turn.wait_for(lambda: mirror.done == mirror.asked, seconds)

def test_syncs_during_a_pass_are_one(run, tmp_path, sends):
    going, on, passes = threading.Event(), threading.Event(), []
    def before(url):
        if not passes: passes.append(1); going.set(); on.wait(10)
    sends.before = before
    mirror = Mirror({run: tmp_path/'far'})
    seen, real = [], mirror._pass
    mirror._pass = lambda: (seen.append(1), real())
    mirror.sync(); going.wait(10)
    for _ in range(100): mirror.sync()
    on.set(); wait(mirror)
    assert len(seen) == 2 and mirror.asked == 101 and mirror.close()

def test_folders_that_lie_apart(tmp_path, url):
    "Run, logs and checkpoints in three places make one run there"
    save(tmp_path/'all', [1, 2])
    (tmp_path/'run').mkdir()
    for name, to in (('checkpoints', 'models'), ('logs', 'logs')): (tmp_path/'all'/name).rename(tmp_path/to)
    for p in list((tmp_path/'all').iterdir()): p.rename(tmp_path/'run'/p.name)
    assert Mirror({tmp_path/'run': url, tmp_path/'logs': f'{url}/logs', tmp_path/'models': f'{url}/checkpoints'}).close()
    back = fetch_run(url, tmp_path/'back')
    assert usable(back) == [step(1), step(2)] and (back/'logs/events.out.tfevents.1').exists()
    assert Mirror({back: url}).close()                            # and it goes on from there

def test_places_that_cannot_be(run):
    with pytest.raises(FileError) as e: Mirror({run: run/'copy'})
    assert 'a place outside it was expected' in said(e)
    with pytest.raises(FileError) as e: Mirror({run: 'nowhere://x/run'})
    assert 'nowhere://x/run: there is no filesystem for nowhere:// here' in said(e)

# --- what is removed, and what is not

def test_a_dropped_checkpoint_goes_after_the_new_manifest(url, run, sends, monkeypatch):
    mirror = Mirror({run: url})
    mirror.sync(); wait(mirror)
    there = as_path(url)
    (there/'notes.txt').write_bytes(b'mine'); (there/STAGE/'keep.safetensors').write_bytes(b'mine'); (there/'logs/x').write_bytes(b'mine')
    as_path(f'{url}-2').mkdir(parents=True, exist_ok=True); (as_path(f'{url}-2')/'neighbour').write_bytes(b'mine')
    removed, real = [], room._remove
    def remove(u):
        named = json.loads((there/STAGE/'checkpoints.json').read_bytes())['files']
        assert u.rsplit('/', 1)[1] not in named
        removed.append(u.rsplit('/', 1)[1]); real(u)
    monkeypatch.setattr(room, '_remove', remove)
    save(run, [2, 3])
    (run/'logs/events.out.tfevents.1').unlink()
    assert mirror.close() and removed == [step(1)]
    assert ({'notes.txt', f'{STAGE}/keep.safetensors', 'logs/x', f'{STAGE}/{step(2)}', f'{STAGE}/{step(3)}',
             'logs/events.out.tfevents.1'} <= set(contents(url)))
    assert (as_path(f'{url}-2')/'neighbour').exists()

def test_nothing_goes_while_the_new_manifest_cannot(url, run, sends, quick):
    mirror = Mirror({run: url}, lambda s: None)
    mirror.sync(); wait(mirror)
    def before(u):
        if u.endswith('checkpoints.json'): raise ConnectionError('no')
    sends.before = before
    save(run, [3, 4]); mirror.sync(); wait(mirror)
    assert {f'{STAGE}/{step(i)}' for i in (1, 2, 3, 4)} <= set(contents(url))
    sends.before = lambda u: None
    assert mirror.close() and contents(url) == contents(run)

@pytest.mark.parametrize('lost', ['checkpoints', '.'])
def test_a_folder_deleted_here_stays_there(url, run, lost, tmp_path):
    mirror = Mirror({run: url}, lambda s: None)
    mirror.sync(); wait(mirror)
    before = contents(url)
    (run/lost).rename(tmp_path/'gone') if lost != '.' else run.rename(tmp_path/'gone')
    mirror.close()
    assert contents(url) == before

def test_a_checkpoint_dropped_while_it_is_sent_arrives(url, run, sends, tmp_path):
    "On a line slower than training: each pass leaves a whole run, though all that it sends is dropped meanwhile"
    steps, seen = iter(range(3, 100)), []
    def before(u):
        if 'safetensors' in u: save(run, [next(steps)]); mirror.sync()
        if len(seen) < 5 and u.endswith('config.json'): seen.append(1)
    sends.before = before
    mirror = Mirror({run: url})
    mirror.sync()
    for k in range(4):
        time.sleep(0.05)
        try: assert usable(fetch_run(url, tmp_path/f'back{k}'))
        except FileError as e: assert 'holds no run' in str(e) or 'is missing' in str(e)
    sends.before = lambda u: None
    assert mirror.close() and contents(url) == contents(run) and not parts(run)

def test_without_hard_links(url, run, monkeypatch, sends):
    "Then the file itself is sent, and the manifest waits for a pass that lost none"
    def no(*a): raise PermissionError(1, 'Operation not permitted')
    monkeypatch.setattr(room.os, 'link', no)
    told, once = [], []
    def before(u):
        if u.endswith(step(2)) and not once: once.append(1); save(run, [3, 4])
    sends.before = before
    mirror = Mirror({run: url}, told.append)
    mirror.sync(); wait(mirror)
    assert 'checkpoints.json' not in sends.names() and told == []
    assert mirror.close() and contents(url) == contents(run)

def test_another_run_there_stays(url, run, tmp_path):
    assert Mirror({run: url}).close()
    before, told = contents(url), []
    save(tmp_path/'other', [7])
    mirror = Mirror({tmp_path/'other': url}, told.append)
    for _ in range(3): mirror.sync(); wait(mirror)
    assert not mirror.close() and contents(url) == before
    assert len(told) == 1 and 'holds a run that does not come from' in told[0]

def test_a_run_begun_anew_in_its_folder(url, run, sends, tmp_path):
    "The run that is kept aside arrives before anything speaks of the new one, which is never mixed with it"
    save(run, [1, 2], result=True)
    assert Mirror({run: url}).close()
    old = contents(run)
    (run/'earlier-1').mkdir()
    for n in ('config.json', 'result.json', 'history.jsonl', 'checkpoints', 'logs'): (run/n).rename(run/'earlier-1'/n)
    (run/'config.json').write_text('{"stage": "3", "seed": 1}')
    sends.urls.clear()
    mirror = Mirror({run: url})
    mirror.sync(); wait(mirror)
    back = fetch_run(url, tmp_path/'back')
    assert contents(back/'earlier-1') == old and not (back/STAGE/'checkpoints.json').exists()
    assert not (back/'history.jsonl').exists() and not (back/'result.json').exists()
    at = [u.removeprefix(url + '/') for u in sends.urls]
    assert at.index(f'earlier-1/{STAGE}/checkpoints.json') < at.index(f'{STAGE}/checkpoints.json') < at.index('config.json')
    save(run, [1, 5], size=300)
    assert mirror.close() and not (as_path(url)/STAGE/step(2)).exists()
    back = fetch_run(url, tmp_path/'back2')
    assert usable(back) == [step(1), step(5)] and set(contents(run)) == set(contents(back))

def test_a_checkpoint_damaged_here_does_not_go(url, run, tmp_path):
    "It is named, what stands there stays usable, and the next checkpoint mends it"
    told = []
    mirror = Mirror({run: url}, told.append)
    mirror.sync(); wait(mirror)
    save(run, [2, 3])
    raw = bytearray((run/STAGE/step(3)).read_bytes()); raw[0] ^= 1; (run/STAGE/step(3)).write_bytes(bytes(raw))
    for _ in range(2): mirror.sync(); wait(mirror)
    assert len(told) == 1 and f'{run/STAGE/step(3)} is damaged' in told[0]
    assert usable(fetch_run(url, tmp_path/'back')) == [step(1), step(2)]
    save(run, [2, 4])
    assert mirror.close() and len(told) == 1 and usable(fetch_run(url, tmp_path/'back2')) == [step(2), step(4)]

def test_a_copy_of_another_size_is_sent_again(url, run, sends, tmp_path):
    assert Mirror({run: url}).close()
    (as_path(url)/STAGE/step(1)).write_bytes(b'cut')
    sends.urls.clear()
    assert Mirror({run: url}).close() and [n for n in sends.names() if 'step' in n] == [step(1)]
    assert usable(fetch_run(url, tmp_path/'back')) == [step(1), step(2)]

# --- lines that break, servers that are down

def test_a_server_that_fails_half_way_then_recovers(url, run, sends, quick):
    told, sent = [], []
    def before(u):
        sent.append(u)
        if len(sent) > 2: raise ConnectionResetError('the line broke')
    sends.before = before
    mirror = Mirror({run: url}, told.append)
    for _ in range(4): mirror.sync(); wait(mirror)
    assert len(told) == 1 and 'the line broke' in told[0] and 'training goes on' in told[0] and '\n' not in told[0]
    assert 'checkpoints.json' not in sends.names()
    sends.before = lambda u: None
    mirror.sync(); wait(mirror)
    assert contents(url) == contents(run) and mirror.close() and len(told) == 1

def test_each_kind_of_failure_is_said_once(url, run, sends):
    told, errors = [], [PermissionError('not yours'), ConnectionError('down'), ZeroDivisionError('a bug')]
    def before(u): raise errors[mirror.asked % 3]
    sends.before = before
    mirror = Mirror({run: url}, told.append)
    for _ in range(9): mirror.sync(); wait(mirror)
    assert len(told) == 3 and not mirror.close()
    assert len(told) == 4 and f'of {run}' in told[-1] and f'are not at {url}' in told[-1]

def test_one_file_that_never_goes_holds_up_nothing_else(url, run, sends):
    for n in ('a', 'b', 'c', 'd'): (run/n).write_text(n)
    def before(u):
        if u.rsplit('/', 1)[1] in 'abcd': raise PermissionError('not this one')
    sends.before = before
    told = []
    mirror = Mirror({run: url}, told.append, tries=3)
    mirror.sync(); wait(mirror); mirror.sync(); wait(mirror)
    assert {n for n in contents(run) if n not in 'abcd'} == set(contents(url))
    assert not mirror.close() and len(told) == 2 and '4 files' in told[1]

def test_a_file_that_cannot_be_read(run, tmp_path, monkeypatch):
    real = room._sign
    refuse = lambda: (_ for _ in ()).throw(PermissionError(13, 'Permission denied'))
    monkeypatch.setattr(room, '_sign', lambda p: real(p) if p.name != 'history.jsonl' else refuse())
    told = []
    mirror = Mirror({run: tmp_path/'far'}, told.append)
    mirror.sync()
    assert not mirror.close() and mirror.whole_at is None         # and the copy is never said to be fresh
    assert set(contents(run)) - set(contents(tmp_path/'far')) == {'history.jsonl'} and 'Permission denied' in told[0]

@pytest.mark.parametrize('silent', [False, True], ids=['refuses', 'never answers'])
def test_a_server_that_is_down_all_along(run, monkeypatch, silent):
    pytest.importorskip('s3fs')
    with socket.create_server(('127.0.0.1', 0)) as hole:
        monkeypatch.setitem(fsspec.config.conf, 's3',
                            {'key': 'k', 'secret': 's', 'config_kwargs': {'retries': {'max_attempts': 0}},
                             'endpoint_url': f'http://127.0.0.1:{hole.getsockname()[1] if silent else free_port()}'})
        told, took = [], []
        mirror = Mirror({run: 's3://here/down'}, told.append)
        for i in range(3, 30):
            save(run, [i - 1, i])
            begin = time.perf_counter(); mirror.sync(); took.append(time.perf_counter() - begin)
            time.sleep(0.01)
        if not silent:
            with mirror._turn: mirror._turn.wait_for(lambda: mirror.done > 0, 15)
            assert len(told) == 1 and 's3://here/down' in told[0], told
        begin = time.perf_counter()
        assert mirror.close(timeout=1) is False
        assert time.perf_counter() - begin < 2 and sorted(took)[-2] < 0.005 and max(took) < 0.05, took
        assert told[-1].startswith('6 files of') and len(told) == (1 if silent else 2)
    assert usable(run) == [step(28), step(29)]

def test_say_may_fail(run, tmp_path, sends):
    def before(u): raise ConnectionError('down')
    sends.before = before
    mirror = Mirror({run: tmp_path/'far'}, lambda s: 1/0)
    assert not mirror.close()

# --- real buckets

def test_in_a_bucket(bucket, run, tmp_path, monkeypatch):
    "There, on over a line that breaks, dropped, back, and once more without fetching anything twice"
    url, line = bucket
    run_url = f'{url}/base/run'
    mirror = Mirror({run: run_url})
    mirror.sync(); wait(mirror, 30)
    assert set(contents(run_url)) == set(contents(run))
    save(run, [3, 4], size=400_000, result=True)
    line.breaks = [150_000, 100_000]
    assert mirror.close() and line.broken == 2 and contents(run_url) == contents(run)
    back = fetch_run(run_url, tmp_path/'back')
    assert contents(back) == contents(run)
    fetched = []
    real = room.download
    monkeypatch.setattr(room, 'download', lambda far, part: (fetched.append(far.name), real(far, part)))
    fetch_run(run_url, back)
    assert set(fetched) <= {'checkpoints.json'}
    save(back, [4, 5], size=400_000); assert Mirror({back: run_url}).close() and contents(run_url) == contents(back)

# --- the other way

def test_a_damaged_file_is_named(url, run, tmp_path):
    assert Mirror({run: url}).close()
    far = as_path(url)/STAGE/step(1)
    raw = bytearray(far.read_bytes()); raw[7] ^= 1; far.write_bytes(bytes(raw))
    with pytest.raises(FileError) as e: fetch_run(url, tmp_path/'back')
    assert f'{STAGE}/{step(1)} is damaged' in said(e)
    assert not parts(tmp_path/'back') and not (tmp_path/'back'/STAGE/step(1)).exists() and (tmp_path/'back'/STAGE/step(2)).exists()
    room._remove(f'{url}/{STAGE}/{step(1)}')
    with pytest.raises(FileError) as e: fetch_run(url, tmp_path/'back')
    assert f'{STAGE}/{step(1)} is missing' in said(e)
    (as_path(url)/STAGE/'checkpoints.json').write_bytes(b'{"files": ')
    with pytest.raises(FileError) as e: fetch_run(url, tmp_path/'back')
    assert 'checkpoints.json is damaged' in said(e)

def test_equal_files_are_not_fetched_again(url, run, tmp_path, monkeypatch):
    assert Mirror({run: url}).close()
    back = fetch_run(url, tmp_path/'back')
    inodes = {n: (back/n).stat().st_ino for n in contents(back)}
    fetch_run(url, back)
    assert {n: (back/n).stat().st_ino for n in contents(back)} == inodes
    (back/STAGE/step(1)).write_bytes(b'damaged here')
    fetch_run(url, back)
    assert usable(back) == [step(1), step(2)] and (back/STAGE/step(2)).stat().st_ino == inodes[f'{STAGE}/{step(2)}']

def test_a_fetch_that_breaks_leaves_no_half(run, tmp_path, monkeypatch, quick):
    url = f'memory://mirror-{time.time_ns()}'
    assert Mirror({run: url}).close()
    def half(self, rpath, lpath, **k): Path(lpath).write_bytes(b'01234'); raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(type(as_path(url).fs), 'get_file', half)
        with pytest.raises(KeyboardInterrupt): fetch_run(url, tmp_path/'back')
    assert contents(tmp_path/'back') == {} and not parts(tmp_path/'back')
    assert contents(fetch_run(url, tmp_path/'back')) == contents(run)

def test_a_run_that_is_ahead_is_not_replaced(url, run, tmp_path):
    assert Mirror({run: url}).close()
    save(run, [2, 3]); ahead = contents(run)
    for p in (run/'history.jsonl', run/STAGE/'checkpoints.json'): os.utime(p, (time.time() + 5,)*2)
    with pytest.raises(FileError) as e: fetch_run(url, run)
    assert 'newer than what' in said(e) and contents(run) == ahead
    with pytest.raises(FileError) as e: fetch_run(f'{url}-none', tmp_path/'x')
    assert 'holds no run' in said(e) and not (tmp_path/'x').exists()

def test_a_run_that_trained_on_elsewhere_comes_back(url, run, tmp_path):
    assert Mirror({run: url}).close()
    for p in run.rglob('*.json*'): os.utime(p, (time.time() - 100,)*2)
    back = fetch_run(url, tmp_path/'back')
    save(back, [2, 3]); assert Mirror({back: url}).close()
    fetch_run(url, run)
    assert usable(run) == [step(2), step(3)]

# --- the end of a process

SCRIPT = '''
import sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_mirror import Mirror, room, save
real, slow = room._send, {slow}
def send(piece): time.sleep(slow); real(piece)
room._send = send
run = Path({run!r})
mirror = Mirror({{run: {url!r}}})
if {warm}:
    save(run, [{begin}, {begin} + 1, {begin} + 2], size=300_000, result=True); mirror.sync()
    while not mirror.done: time.sleep(0.01)
for i in range({begin}, {end}):
    save(run, [i, i + 1, i + 2], size=300_000, result=True)
    mirror.sync(); print(i, flush=True); time.sleep(0.02)
'''

def process(run, url, begin, end, slow=0.0, then='', warm=False):
    code = SCRIPT.format(tests=str(Path(__file__).parent), run=str(run), url=str(url), begin=begin, end=end, slow=slow, warm=warm) + then
    return subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})

@pytest.mark.parametrize('place', ['disk', pytest.param('s3', marks=pytest.mark.slow)])
def test_killed_while_it_sends(place, tmp_path, request, monkeypatch):
    "kill -9 at any moment: what is there is a run, and the next process goes on with it"
    run, far, named = tmp_path/'run', str(tmp_path/'far'), []
    if place == 's3':
        line = request.getfixturevalue('s3')
        monkeypatch.setenv('FSSPEC_S3_ENDPOINT_URL', f'http://127.0.0.1:{line.port}')
        far = f's3://here/{time.time_ns()}/run'
    for k in range(2):
        p = process(run, far, 1 + 1_000*k, 1_000*(k + 1), slow=0.002, warm=True)
        p.stdout.readline(); time.sleep(0.2 + 0.13*k)
        p.send_signal(signal.SIGKILL); p.wait(); p.stdout.close(); p.stderr.close()
        named.append(usable(fetch_run(far, tmp_path/f'back{k}')))
    assert named[0] < named[1]
    assert Mirror({run: far}).close()
    assert contents(fetch_run(far, tmp_path/'back')) == contents(run) and not list((run/STAGE).glob('.*.mirror.part'))
    assert set(contents(far)) == set(contents(run))               # nothing is left over from the kills

@pytest.mark.parametrize('slow, then, words', thinned([
    (5.0, '', 'Python ended before'), (0.0, 'print(mirror.close())', 'True'), (5.0, 'print(mirror.close(0.1))', 'after 0.1 s')], 3))
def test_python_ends(tmp_path, slow, then, words):
    "It ends at once, without a traceback"
    begin = time.time()
    p = process(tmp_path/'run', tmp_path/'far', 1, 4, slow, then)
    out, err = p.communicate(timeout=20)
    assert p.returncode == 0 and err == '' and words in out and time.time() - begin < 12

# --- options

@pytest.mark.parametrize('options, problem', [
    ({'output_s3': True, 's3_bucket_name': 'b', 's3_base_path': 'c', 'output_gcs': True, 'gcs_bucket_name': 'b',
      'gcs_base_path': 'c'},
     'output_s3=True: output_gcs=True is given too, and a run is mirrored to one place; one of the two was expected'),
    ({'output_s3': True, 's3_base_path': 'c'},
     'output_s3=True: s3_bucket_name is missing; the name of a bucket was expected, such as s3_bucket_name="my-models"'),
    ({'output_gcs': True, 'gcs_bucket_name': 'b'},
     'output_gcs=True: gcs_base_path is missing; a folder in the bucket was expected, such as gcs_base_path="shogi/runs"'),
    ({'output_gcs': True, 'gcs_bucket_name': 'b', 'gcs_base_path': '/'},
     'output_gcs=True: gcs_base_path is missing; a folder in the bucket was expected, such as gcs_base_path="shogi/runs"'),
    ({'output_gcs': True, 'gcs_bucket_name': 'gs://b', 'gcs_base_path': 'c'},
     "gcs_bucket_name='gs://b': the bare name of a bucket was expected, such as \"my-models\"; the folder in it is gcs_base_path"),
    ({'output_s3': True, 's3_bucket_name': 'b', 's3_base_path': 'a/../c'},
     "s3_base_path='a/../c': a folder in the bucket was expected, such as \"shogi/runs\""),
    ({'gcs_bucket_name': 'b'}, "gcs_bucket_name='b': nothing is mirrored without output_gcs=True; give that too, or leave this out"),
    ({'s3_base_path': 'b'}, "s3_base_path='b': nothing is mirrored without output_s3=True; give that too, or leave this out"),
    ({}, None), ({'output_s3': True, 's3_bucket_name': 'b', 's3_base_path': 'c'}, None),
    ({'output_gcs': True, 'gcs_bucket_name': 'b', 'gcs_base_path': '/c/d/'}, None)])
def test_options(options, problem):
    pytest.importorskip('s3fs'); pytest.importorskip('gcsfs')
    assert list(mirror_problems(**options)) == ([problem] if problem else [])

@pytest.mark.parametrize('module, name', [('s3fs', 's3'), ('gcsfs', 'gcs')])
def test_an_extra_that_is_not_installed(module, name, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    for protocol in ('s3', 's3a', 'gs', 'gcs'): monkeypatch.delitem(_registry, protocol, raising=False)
    text, = mirror_problems(**{f'output_{name}': True, f'{name}_bucket_name': 'b', f'{name}_base_path': 'c'})
    assert f'output_{name}=True: there is no filesystem' in text
    assert f'pip install "maou_nb[{name}]" brings it' in text and text.count('output_') == 1

def test_urls():
    options = {'output_gcs': False, 'gcs_bucket_name': None, 'gcs_base_path': None, 'output_s3': False,
               's3_bucket_name': None, 's3_base_path': None}
    assert mirror_url(**options, run_name='r') is None
    assert mirror_url(**{**options, 'output_s3': True, 's3_bucket_name': 'b', 's3_base_path': '/a/c/'}, run_name='r') == 's3://b/a/c/r'
    assert mirror_url(**{**options, 'output_gcs': True, 'gcs_bucket_name': 'b', 'gcs_base_path': 'a'}, run_name='r') == 'gs://b/a/r'
