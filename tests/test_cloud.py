"A bucket without an account, without an answer, or with somebody else at work in it"
import socket, time, warnings

import pytest
from upath import UPath

from maou_nb import learn_multi_stage
from maou_nb.data import alone, files
from maou_nb.data.files import FileError, as_path, find_files, is_there, upload
from maou_nb.data.options import OptionError
from maou_nb.stages.rows import prepare_stage1
from maou_nb.train.mirror import Mirror, fetch_run, sends_to

class NoCredentialsError(Exception): "As botocore calls it"

DOORS = {'listing': lambda at: find_files(at, ('.csa',), 'game records'), 'looking': lambda at: is_there(as_path(at)/'config.json'),
         'sending': lambda at: upload(files.Path(__file__), as_path(at)/'a.csa')}

@pytest.mark.parametrize('door', DOORS)
@pytest.mark.parametrize('error', [NoCredentialsError('Unable to locate credentials'), PermissionError('Forbidden')])
def test_no_account_is_one_sentence_at_once(monkeypatch, door, error):
    fs = UPath('memory://no-account').fs
    def refuse(*args, **more): raise error
    for name in ('info', 'ls', 'glob', 'find', 'isfile', 'isdir', 'exists', 'put_file'): monkeypatch.setattr(type(fs), name, refuse)
    began = time.monotonic()
    with pytest.raises(PermissionError) as e: DOORS[door]('memory://no-account')
    text = str(e.value)
    assert 'no-account' in text and 'are credentials here' in text and str(error) in text and '\n' not in text
    assert time.monotonic() - began < 2

def test_a_network_that_does_not_answer_is_said_soon_and_given_up(monkeypatch):
    monkeypatch.setattr(files, 'PATIENCE', 0.2); monkeypatch.setattr(files, 'LIMIT', 0.5)
    def slow(): time.sleep(0.3); raise ConnectionError('no route')
    said = []
    monkeypatch.setattr(warnings, 'warn', lambda text, *rest: said.append((text, time.monotonic())))
    began = time.monotonic()
    with pytest.raises(FileError, match='asking failed 2 times, the last time with: no route'): files._retried(slow, 'asking')
    assert 'asking: no answer for 0.2 seconds' in said[0][0] and said[0][1] - began < 0.4 and time.monotonic() - began < 2
    assert files._retried(lambda: 7, 'asking') == 7
    time.sleep(0.3); assert len(said) == 1

def test_what_was_deleted_there_is_sent_again_before_the_end(tmp_path):
    (tmp_path/'run').mkdir()
    for name in ('config.json', 'notes.txt', 'result.json'): (tmp_path/'run'/name).write_text('{}')
    told, far = [], UPath('memory://deleted-there')
    mirror = Mirror({tmp_path/'run': str(far)}, told.append)
    mirror.sync()
    while mirror.done < 1: time.sleep(0.01)
    assert (far/'notes.txt').exists() and not told
    for name in ('notes.txt', 'result.json'): (far/name).unlink()
    assert mirror.close() and (far/'notes.txt').exists() and (far/'result.json').exists()
    assert len(told) == 1 and '2 files' in told[0] and 'had been deleted' in told[0] and 'are sent again' in told[0]

def test_a_copy_that_is_behind_is_said_while_it_trains(tmp_path):
    from types import SimpleNamespace
    from maou_nb.front.learn import Mirroring
    told = []
    mirror = SimpleNamespace(asked=0, done=0, say_behind=lambda: told.append(mirror.asked))
    mirror.sync = lambda: setattr(mirror, 'asked', mirror.asked + 1)
    mirroring = Mirroring(mirror)
    def epochs(n):
        for _ in range(n): mirroring.after_epoch(None), mirroring.after_save(None)
    epochs(4)
    assert told == [2, 3]
    mirror.done = mirror.asked
    epochs(2)
    assert told == [2, 3]

# --- one sender at a time

@pytest.fixture
def far_run(tmp_path):
    "A run that is being mirrored, its mirror, and its URL"
    run, url = tmp_path/'run', f'memory://one-sender-{tmp_path.name}'
    run.mkdir()
    for name in ('config.json', 'notes.txt'): (run/name).write_text('{"stage": 1}')
    mirror = Mirror({run: url}, [].append)
    mirror.sync()
    while mirror.done < 1: time.sleep(0.01)
    yield run, mirror, url
    mirror.close()

@pytest.mark.parametrize('error', [ConnectionError('no route'), TimeoutError('it takes too long'), PermissionError('Forbidden')])
def test_a_record_that_cannot_be_read_is_not_nobodys(far_run, tmp_path, monkeypatch, error):
    "Somebody may well be at work there: whoever asks is told why it is not known, and nothing is sent over it"
    run, mirror, url = far_run
    at, fs = as_path(url)/alone.RECORD, as_path(url).fs
    kept = type(fs).open
    def broken(self, path, *args, **more):
        if str(path).endswith(alone.RECORD): raise error
        return kept(self, path, *args, **more)
    monkeypatch.setattr(type(fs), 'open', broken); monkeypatch.setattr(files, 'TRIES', 2)
    prepare_stage1(tmp_path/'stage1')
    options = dict(stage=1, run_dir=tmp_path/'third', gpu='cpu', model_size='tiny', stage1_data_path=tmp_path/'stage1')
    for ask in (lambda: alone.read_record(at), lambda: alone.elsewhere_at_work(at), lambda: sends_to(url),
                lambda: learn_multi_stage(**options, resume_from=url)):
        with pytest.raises(FileError) as e: ask()
        assert alone.RECORD in str(e.value) and str(error) in str(e.value) and '\n' not in str(e.value)
    fetch_run(url, tmp_path/'elsewhere')
    (tmp_path/'elsewhere'/'notes.txt').write_text('other')
    told = []
    assert not Mirror({tmp_path/'elsewhere': url}, told.append).close()
    assert any(str(error) in t for t in told) and (UPath(url)/'notes.txt').read_text() == '{"stage": 1}'
    (tmp_path/alone.RECORD).write_text('no JSON')          # what is there and is no record says nobody, as before
    assert alone.read_record(tmp_path/alone.RECORD) == {} == alone.read_record(tmp_path/'nowhere'/alone.RECORD)

def test_one_sends_at_a_time(far_run, tmp_path, monkeypatch):
    "Another machine that fetched the run is told, and goes on once the first has ended, or given no sign of life for long"
    run, mirror, url = far_run
    fetch_run(url, tmp_path/'elsewhere')
    (tmp_path/'elsewhere'/'notes.txt').write_text('other')
    told = []
    other = Mirror({tmp_path/'elsewhere': url}, told.append)
    assert not other.close() and len(told) == 1 and url in told[0] and 'sends a run there' in told[0] and 'sign of life' in told[0]
    assert (UPath(url)/'notes.txt').read_text() == '{"stage": 1}'
    prepare_stage1(tmp_path/'stage1')
    with pytest.raises(OptionError, match='resume_from: process .* trains the run at'):
        learn_multi_stage(stage=1, run_dir=tmp_path/'third', resume_from=url, gpu='cpu', model_size='tiny',
                          stage1_data_path=tmp_path/'stage1')
    # the first machine is gone: nobody gives signs of life
    mirror._stop_beats()
    monkeypatch.setattr(alone, 'FRESH', -1.)
    third = Mirror({tmp_path/'elsewhere': url}, told.append)
    assert third.close() and (UPath(url)/'notes.txt').read_text() == 'other'
    # and when it comes back it sees whose place it is now
    monkeypatch.setattr(alone, 'FRESH', 60.)
    fourth = Mirror({tmp_path/'elsewhere': url}, told.append)
    fourth.sync()
    while fourth.done < 1: time.sleep(0.01)
    (run/'notes.txt').write_text('late')
    mirror.sync()
    while mirror.done < mirror.asked: time.sleep(0.01)
    assert mirror.refused and (UPath(url)/'notes.txt').read_text() == 'other'
    assert fourth.close() and not (UPath(url)/'.process.json').exists()

def test_a_run_that_ended_leaves_no_owner(far_run, tmp_path):
    run, mirror, url = far_run
    assert (UPath(url)/'.process.json').exists() and sends_to(url) and not sends_to(url, run.absolute())
    assert mirror.close() and not (UPath(url)/'.process.json').exists() and not sends_to(url)

def test_signs_of_life_reach_a_bucket(monkeypatch):
    record = UPath('memory://signs-of-life/.process.json')
    monkeypatch.setattr(alone, 'FAR_BEAT', 0.02)
    alone.write_record(record, True)
    before = record.fs.modified(record.path)
    with alone.beating(record): time.sleep(0.3)
    assert record.fs.modified(record.path) > before and alone.read_record(record)['working']

@pytest.mark.slow
def test_a_silent_server_is_given_up(monkeypatch):
    "It takes the connection and says nothing: a word after 8 s, and an end before 110 s"
    pytest.importorskip('s3fs').S3FileSystem.clear_instance_cache()      # one that another test used knows another server
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        server.listen(64)
        for name, value in (('AWS_ACCESS_KEY_ID', 'a'), ('AWS_SECRET_ACCESS_KEY', 'b'), ('AWS_DEFAULT_REGION', 'us-east-1'),
                            ('AWS_ENDPOINT_URL', f'http://127.0.0.1:{server.getsockname()[1]}')): monkeypatch.setenv(name, value)
        monkeypatch.delitem(files.conf, 's3', raising=False)          # a server of another test
        said, began = [], time.monotonic()
        monkeypatch.setattr(warnings, 'warn', lambda text, *rest: said.append(time.monotonic() - began))
        with pytest.raises(FileError, match='is the network up'): is_there(as_path('s3://silent/x'))
        assert 7 < said[0] < 10 and time.monotonic() - began < 110
