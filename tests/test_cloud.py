"A bucket without an account, without an answer, or with somebody else at work in it"
import time, warnings

import pytest
from upath import UPath

from maou_nb.data import files
from maou_nb.data.files import FileError, as_path, find_files, is_there, upload
from maou_nb.train.mirror import Mirror

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
    mirroring = Mirroring(mirror, every=None)
    for _ in range(4): mirroring.after_epoch(None)
    assert told == [2, 3]
    mirror.done = mirror.asked
    for _ in range(2): mirroring.after_epoch(None)
    assert told == [2, 3]
