"Disks that fail at any write, signals that come twice, processes that are killed: one sentence, and nothing saved is lost"
import builtins, errno, io, json, os, shutil, signal, subprocess, sys, time

import psutil
import pytest

from maou_nb import Callback, learn_multi_stage
from maou_nb.data.files import DiskError, clear_parts, disk_words
from maou_nb.data.options import OptionError
from maou_nb.stages.rows import prepare_stage1, prepare_stage2
from maou_nb.train.checkpoints import Checkpoints
from maou_nb.train.loop import OutOfRoom, StopWish, WorkerGone
from samples import ONE_FILE, said

class Failing(io.FileIO):
    "A file whose writes fail from some number on, counted over all files"
    left, error, seen = 0, errno.ENOSPC, 0
    def write(self, data):
        Failing.seen += 1
        if Failing.seen > Failing.left: raise OSError(Failing.error, os.strerror(Failing.error))
        return super().write(data)

@pytest.fixture
def failing(monkeypatch, tmp_path):
    "Has writes below the test's folder fail after so many, with an error; a context"
    real = io.open
    def opened(file, mode='r', buffering=-1, encoding=None, errors=None, newline=None, opener=None, **more):
        writes = set(mode) & set('wax') and not more
        if not writes or not str(file).startswith(str(tmp_path)):
            return real(file, mode, buffering, encoding, errors, newline, opener=opener, **more)
        if Failing.error == errno.EACCES and Failing.seen >= Failing.left:
            raise PermissionError(errno.EACCES, 'Permission denied', str(file))
        raw = io.BufferedWriter(Failing(file, mode.replace('b', '').replace('t', ''), opener=opener))
        return raw if 'b' in mode else io.TextIOWrapper(raw, encoding, errors, newline)
    def after(writes, error):
        Failing.left, Failing.error, Failing.seen = writes, error, 0
        m = pytest.MonkeyPatch()
        m.setattr(builtins, 'open', opened); m.setattr(io, 'open', opened)
        return m
    yield after

ERRORS = {errno.ENOSPC: 'the disk is full', errno.EDQUOT: 'the quota of this account is used up', errno.EIO: 'the disk has a fault',
          errno.EACCES: 'this account may not'}

def is_a_sentence(error, tmp_path, what):
    text = str(error)
    assert '\n' not in text and what in text and str(tmp_path) in text and 'GB are free there' in text, repr(error)

SMALL = dict(stage=1, gpu='cpu', model_size='tiny', resnet_channels=4, resnet_blocks=1, stage1_threshold=1.,
             stage1_max_epochs=2, stage1_batch_size=400)

def test_a_run_on_a_disk_that_fails_at_any_write(tmp_path, failing):
    "At its options, lines, checkpoints, results and TensorBoard's first and last words; what is saved goes on"
    prepare_stage1(tmp_path/'stage1')
    options = dict(SMALL, stage1_data_path=tmp_path/'stage1', run_dir=tmp_path/'run', resume_from='latest', stage1_threshold=0.)
    m = failing(10**9, errno.ENOSPC)
    learn_multi_stage(**dict(options, run_dir=tmp_path/'fine'))
    m.undo()
    every = Failing.seen
    assert every > 8
    for i, left in enumerate(sorted({*range(0, every, max(1, every // 8)), every - 2, every - 1})):
        error = [*ERRORS][i % 4]
        m = failing(left, error)
        try:
            learn_multi_stage(**dict(options, run_dir=tmp_path/f'run{i}'))
            # lines of steps go by the clock, so one write more or less may be needed; the last word is not needed
            assert Failing.seen <= left or not (tmp_path/f'run{i}'/'.process.json').exists()
        except (OutOfRoom, DiskError, OptionError) as e:
            if not isinstance(e, OptionError): is_a_sentence(e, tmp_path, ERRORS[error])
        finally: m.undo()
    assert learn_multi_stage(**dict(options, run_dir=tmp_path/f'run{i}')).stages_completed      # the last got furthest

@pytest.mark.parametrize('error', ERRORS)
def test_prepare_on_a_disk_that_fails(tmp_path, failing, error):
    one = tmp_path/'one.csa'
    one.write_text(ONE_FILE.read_text().split('/\n')[0])
    m = failing(10**9, error)
    prepare_stage2(one, tmp_path/'fine'); prepare_stage1(tmp_path/'fine1')
    m.undo()
    for i, left in enumerate(range(Failing.seen)):
        m = failing(left, error)
        try:
            with pytest.raises((DiskError, OSError)) as e: prepare_stage2(one, tmp_path/f'{i}'); prepare_stage1(tmp_path/f'{i}-1')
        finally: m.undo()
        assert type(e.value) is DiskError or 'cannot be written to' in str(e.value)
        if type(e.value) is DiskError: is_a_sentence(e.value, tmp_path, ERRORS[error])
    assert prepare_stage2(one, tmp_path/'0').rows == prepare_stage2(one, tmp_path/'fine').rows

def test_sigterm_twice_ends_as_once():
    with StopWish() as wish:
        for _ in range(3): os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
    assert wish.why == 'SIGTERM'
    with pytest.raises(KeyboardInterrupt), StopWish() as wish:
        for _ in range(2): os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)

FIRST_RUN = '''
import json, sys
from maou_nb import learn_multi_stage
from maou_nb.train import loop
take = loop.StopWish.__enter__
def enter(self): print(sorted(m for m in sys.modules if m == 'torch._dynamo')); self.before = set(sys.modules); return take(self)
leave = loop.StopWish.__exit__
def exit(self, *e): print(sorted(m for m in set(sys.modules) - self.before if m.startswith('torch._'))); leave(self, *e)
loop.StopWish.__enter__, loop.StopWish.__exit__ = enter, exit
learn_multi_stage(**json.loads(sys.argv[1]))
'''

def test_the_first_run_imports_no_compiler_where_an_interrupt_would_break_it(tmp_path):
    prepare_stage1(tmp_path/'stage1')
    options = dict(SMALL, stage1_data_path=str(tmp_path/'stage1'), run_dir=str(tmp_path/'run'), stage1_threshold=0., deterministic=True)
    done = subprocess.run([sys.executable, '-c', FIRST_RUN, json.dumps(options)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [l for l in done.stdout.splitlines() if l.startswith('[')]
    assert lines == ["['torch._dynamo']", '[]']

def test_what_killed_processes_leave_is_cleared_by_the_next(tmp_path):
    prepare_stage1(tmp_path/'stage1')
    gone = next(n for n in range(1 << 21, 1 << 22) if not psutil.pid_exists(n))
    parts = [tmp_path/'stage1'/f'.a.feather.{gone}.1.part', tmp_path/'stage1'/'.preparing'/f'.b.arrow.{gone}.1.part',
             tmp_path/'run'/f'.result.json.{gone}.1.part', tmp_path/'run'/'checkpoints'/'stage1'/f'.x.safetensors.{gone}.9.part']
    living, own = (tmp_path/'run'/f'.config.json.{os.getppid()}.1.part', tmp_path/'run'/'.mine.part')
    for p in (*parts, living, own): p.parent.mkdir(parents=True, exist_ok=True); p.write_text('half')
    prepare_stage1(tmp_path/'stage1')
    learn_multi_stage(**dict(SMALL, stage1_data_path=tmp_path/'stage1', run_dir=tmp_path/'run', stage1_threshold=0., resume_from='latest'))
    assert [p.exists() for p in (*parts, living, own)] == [False]*4 + [True]*2
    assert clear_parts(tmp_path) == 0

def test_a_loader_worker_that_is_killed_is_one_sentence(tmp_path):
    "What was trained is saved, and the run goes on"
    prepare_stage1(tmp_path/'stage1')
    from maou_nb.train.loop import Callback
    class Kill(Callback):
        def after_step(self, loop):
            if loop.step < 5: return
            for c in psutil.Process().children(recursive=True):
                if 'spawn_main' in ' '.join(c.cmdline()) and 'resource_tracker' not in ' '.join(c.cmdline()): c.kill()
            time.sleep(0.5)
    options = dict(SMALL, stage1_data_path=tmp_path/'stage1', run_dir=tmp_path/'run', dataloader_workers=1, prefetch_factor=1,
                   stage1_batch_size=50, stage1_max_epochs=1, stage1_threshold=0.)
    with pytest.raises(WorkerGone) as e: learn_multi_stage(**options, callbacks=[Kill()])
    assert '\n' not in said(e) and 'stage 1 lost a worker that loads data' in said(e) and 'resume_from="latest" goes on' in said(e)
    assert Checkpoints(tmp_path/'run'/'checkpoints'/'stage1').load('last')[1]['step'] >= 5
    assert learn_multi_stage(**dict(options, resume_from='latest')).stages_completed

# --- folders that go while a run trains

class At(Callback):
    "Does something after a step"
    def __init__(self, step, do): self.step, self.do = step, do
    def after_step(self, loop):
        if loop.step == self.step: self.do()

def test_logs_that_are_deleted_begin_anew(tmp_path, capsys):
    prepare_stage1(tmp_path/'stage1')
    options = dict(SMALL, stage1_data_path=tmp_path/'stage1', run_dir=tmp_path/'run', stage1_threshold=0., checkpoint_every=1)
    result = learn_multi_stage(**options, callbacks=[At(2, lambda: shutil.rmtree(tmp_path/'run'/'logs'))])
    assert result[1].epochs_trained == 1 and (tmp_path/'run'/'result.json').exists()
    assert 'this log was deleted while the run trains; it goes on' in capsys.readouterr().out
    assert len(list((tmp_path/'run'/'logs'/'stage1').iterdir())) == 1

@pytest.mark.parametrize('step', [1, 3])
@pytest.mark.parametrize('gone', ['deleted', 'moved'])
def test_a_run_folder_that_goes_is_one_sentence(tmp_path, gone, step):
    "Nothing is begun in its place, and where it is now it goes on"
    prepare_stage1(tmp_path/'stage1')
    run, now = tmp_path/'run', tmp_path/'now'
    options = dict(SMALL, stage1_data_path=tmp_path/'stage1', run_dir=run, stage1_threshold=0., checkpoint_every=1)
    do = (lambda: shutil.rmtree(run)) if gone == 'deleted' else (lambda: run.rename(now))
    with pytest.raises(DiskError) as e: learn_multi_stage(**options, callbacks=[At(step, do)])
    assert '\n' not in said(e) and f'{run} is gone: was it moved or deleted' in said(e) and not run.exists()
    if gone == 'moved': assert learn_multi_stage(**dict(options, run_dir=now, resume_from='latest'))[1].epochs_trained == 1

@pytest.mark.parametrize('number', sorted({*errno.errorcode} - {errno.EAGAIN, errno.EINTR, errno.EINPROGRESS}))
def test_every_error_of_the_system_has_words(number):
    "Those of networks and processes are not a disk's"
    error = OSError(number, os.strerror(number))
    text = disk_words(error, 'games')
    if isinstance(error, (ConnectionError, TimeoutError, ChildProcessError, ProcessLookupError, BlockingIOError)): return
    assert text.startswith('games: ') and os.strerror(number) in text and 'GB are free there' in text

LARGE = '''
import json, resource, sys
from maou_nb import learn_multi_stage
options, hard = json.loads(sys.argv[1]), resource.getrlimit(resource.RLIMIT_FSIZE)[1]
for most in map(int, sys.argv[2:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try: learn_multi_stage(**options, run_dir=f'run{most}')
    except Exception as e: print(f'said: {e}')
'''

def test_files_that_may_not_be_so_large(tmp_path):
    "One after the other in one process: the options, the first lines, a checkpoint"
    prepare_stage1(tmp_path/'stage1')
    options = dict(SMALL, stage1_data_path=str(tmp_path/'stage1'), stage1_threshold=0.)
    words = [sys.executable, '-c', LARGE, json.dumps(options), '0', '3000', '20000']
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    texts = [l for l in done.stdout.splitlines() if l.startswith('said: ')]
    assert len(texts) == 3 and 'Traceback' not in done.stderr
    for text, most in zip(texts, (0, 3_000, 20_000)):
        assert str(tmp_path/f'run{most}') in text and 'a file may not be so large here' in text
