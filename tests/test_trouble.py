"What goes wrong while training ends the run with a sentence, and loses nothing that was saved"
import errno, sys, time

import jupyter_client
import psutil
import pytest
import torch

from maou_nb import learn_multi_stage
from maou_nb.data.sources import StreamingFileSource
from maou_nb.model.backbones import BACKBONES, SIZES, ResNet
from maou_nb.front import learn
from maou_nb.stages.rows import prepare_stage3
from maou_nb.train import checkpoints, loop
from maou_nb.train.checkpoints import Checkpoints
from maou_nb.train.loop import Callback, Diverged, OutOfRoom
from samples import GAMES, said, thinned

@pytest.fixture
def run(shards, tmp_path, monkeypatch):
    "A run of stage 1 on a backbone in which `fault` is called with the number of each forward pass of training"
    def go(fault=lambda n: None, **options):
        class Faulty(ResNet):
            passes = 0
            def __init__(self): super().__init__(8, 1)
            def forward_features(self, board, hands, groups=None):
                x = super().forward_features(board, hands, groups)
                if not self.training or len(board) == 2: return x
                Faulty.passes += 1
                change = fault(Faulty.passes)
                return change(x) if change else x
        monkeypatch.setitem(BACKBONES, 'faulty', Faulty); monkeypatch.setitem(SIZES, 'faulty', {})
        usual = dict(stage=1, gpu='cpu', model_architecture='faulty', stage1_threshold=1., stage1_max_epochs=3,
                     stage1_batch_size=100, run_dir=tmp_path/'run', stage1_data_path=shards['stage1_data_path'])
        return learn_multi_stage(**{**usual, **options})
    return go

def fails_at(step, error):
    "A fault that raises `error` in pass `step`"
    def fault(n):
        if n == step: raise error
    return fault

@pytest.mark.parametrize('error', [torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB'),
                                   RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you "
                                                "tried to allocate 9 bytes")])
def test_out_of_memory(run, tmp_path, error):
    "The sentence says what would fit; a batch of half the size, two of them a step, is the same training"
    with pytest.raises(OutOfRoom) as e: run(fails_at(15, error))
    assert 'stage1_batch_size=50 with gradient_accumulation_steps=2' in said(e) and '100 rows a batch' in said(e)
    # the epoch before is there
    assert Checkpoints(tmp_path/'run'/'checkpoints'/'stage1').load('last')[1]['step'] == 12

def test_a_full_disk(run, tmp_path, monkeypatch):
    "What was saved before stays"
    real, calls = checkpoints.save_tensors, []
    def full(*args):
        calls.append(1)
        if len(calls) == 2: raise OSError(errno.ENOSPC, 'No space left on device')
        return real(*args)
    monkeypatch.setattr(checkpoints, 'save_tensors', full)
    with pytest.raises(OutOfRoom) as e: run()
    assert 'the disk is full' in said(e) and 'resume_from' in said(e)
    assert Checkpoints(tmp_path/'run'/'checkpoints'/'stage1').load('last')[1]['epoch'] == 1

def test_a_loss_that_is_no_number_is_never_the_newest_checkpoint(run, tmp_path):
    with pytest.raises(Diverged) as e: run(lambda n: (lambda x: x*float('nan')) if n > 15 else None, checkpoint_every=1)
    assert 'stage 1 diverged: the loss is nan at step 16' in said(e) and 'a lower learning rate' in said(e)
    tensors, about = Checkpoints(tmp_path/'run'/'checkpoints'/'stage1').load('last')
    assert about['step'] == 15
    assert all(torch.isfinite(t).all() for k, t in tensors.items() if k.startswith('net.') and t.is_floating_point())

def test_any_other_error_passes_as_it_is(run, tmp_path):
    "Between two steps the state is whole, so it is saved; in the middle of one it is not, and the last checkpoint stands"
    class Odd(Exception): pass
    with pytest.raises(Odd): run(fails_at(17, Odd('mine')))
    assert Checkpoints(tmp_path/'run'/'checkpoints'/'stage1').load('last')[1]['step'] == 12
    class Breaks(loop.Callback):
        def after_step(self, loop):
            if loop.step == 17: raise Odd('mine')
    with pytest.MonkeyPatch.context() as m:
        m.setattr(learn, 'in_notebook', lambda: True); m.setattr(learn, 'LivePlot', Breaks)
        with pytest.raises(Odd): run(run_dir=tmp_path/'again')
    assert Checkpoints(tmp_path/'again'/'checkpoints'/'stage1').load('last')[1]['step'] == 17

CELL = '''
from maou_nb import learn_multi_stage
r = learn_multi_stage(stage=1, gpu='cpu', model_size='tiny', resnet_channels=8, resnet_blocks=1,
                      stage1_threshold=1., stage1_max_epochs=100000, input_features='pieces', stage1_batch_size=16,
                      stage1_data_path={data!r}, run_dir={run!r}, resume_from='latest')
print('came back:', bool(r.stopped), r.partial.epochs_trained)
'''

def test_a_kernels_interrupt(shards, tmp_path):
    "Jupyter's stop button: the cell returns the partial result, the kernel lives on, and the same cell goes on"
    manager, client = jupyter_client.manager.start_new_kernel(kernel_name='python3')
    try:
        epochs = []
        for _ in range(2):
            out, done = [], tmp_path/'run'/'history.jsonl'
            seen = len(done.read_text().splitlines()) if done.exists() else 0
            client.execute(CELL.format(data=str(shards['stage1_data_path']), run=str(tmp_path/'run')))
            until = time.monotonic() + 120
            while not done.exists() or len(done.read_text().splitlines()) < seen + 2: assert time.monotonic() < until; time.sleep(0.1)
            manager.interrupt_kernel()
            reply = client.get_shell_msg(timeout=60)
            while (m := client.get_iopub_msg(timeout=10))['content'].get('execution_state') != 'idle':
                if m['msg_type'] == 'stream': out.append(m['content']['text'])
            assert reply['content']['status'] == 'ok', reply['content']
            text = ''.join(out)
            assert 'was stopped by SIGINT' in text and 'came back: True' in text
            epochs.append(int(text.split('came back: True')[1].split()[0]))
        assert epochs[1] >= epochs[0] + 1
    finally: client.stop_channels(); manager.shutdown_kernel(now=True)

WITH_WORKERS = {
    'loader': "from maou_nb.data.batches import batch_loader, BatchStream\n"
              "from maou_nb.data.sources import StreamingFileSource\n"
              "def work():\n"
              "    s = StreamingFileSource(sys.argv[1], 1)\n"
              "    while True: [*batch_loader(BatchStream(s, s.plan(32)), workers=2)]\n",
    'prepare': "from maou_nb.data.prepare import _Work\n"
               "def work(): _Work(None).run(time.sleep, [600]*2, [1, 1], worth=0)\n"}

@pytest.mark.parametrize('wait', thinned([1.5, 0], 2))      # while they begin, and while they work
@pytest.mark.parametrize('who', WITH_WORKERS)
def test_workers_end_with_a_parent_that_is_killed(who, wait, shards, tmp_path):
    (tmp_path/'main.py').write_text(f"import sys, time\n{WITH_WORKERS[who]}\nif __name__ == '__main__': work()\n")
    parent = psutil.Popen([sys.executable, tmp_path/'main.py', str(shards['stage1_data_path'])])
    of_its = lambda: [c for c in parent.children() if 'spawn_main' in ' '.join(c.cmdline())]
    until = time.monotonic() + 60
    while len(of_its()) < 2 and time.monotonic() < until: time.sleep(0.01)
    time.sleep(wait)
    workers = parent.children()
    assert len(workers) >= 2
    parent.kill(); parent.wait()
    gone, alive = psutil.wait_procs(workers, timeout=30)
    for w in alive: w.kill()
    assert not alive

@pytest.mark.parametrize('cache', ['memory', 'device'])
def test_rows_that_fit_alone(shards, tmp_path, monkeypatch, cache):
    "What is judged on is counted before the first epoch begins; a run that is finished needs no room"
    usual = dict(stage=3, gpu='cpu', epoch=1, resnet_channels=8, resnet_blocks=1, stage3_data_path=shards['stage3_data_path'],
                 input_cache_mode=cache, test_ratio=0.2)
    def free(more):
        room = lambda self: {p: self.memory_wanted().get(p, 0) + more for p in ('host', 'device')}
        monkeypatch.setattr(StreamingFileSource, 'memory_free', room)
    free(100_000)
    with pytest.raises(MemoryError) as e: learn_multi_stage(**usual, run_dir=tmp_path/'tight')
    assert f"cache='{cache}' needs" in said(e) and 'more are wanted for rows to judge on, and' in said(e)
    assert "input_cache_mode='file' of a run" in said(e) and not [*tmp_path.glob('tight/checkpoints/*/*.safetensors')]
    free(10_000_000)
    result = learn_multi_stage(**usual, run_dir=tmp_path/'wide')
    free(0)
    again = learn_multi_stage(**usual, run_dir=tmp_path/'wide', resume_from='latest')
    assert len(result.stages_completed) == len(again.stages_completed) == 1

def test_copies_on_disk_are_made_before_the_first_epoch(shards, tmp_path, monkeypatch):
    "That of the rows that are judged on, too"
    monkeypatch.setenv('MAOU_NB_CACHE', str(tmp_path/'cache'))
    prepare_stage3(GAMES/'selfplay-1.csa', tmp_path/'judged')
    made = []
    class Look(Callback):
        def before_fit(self, loop): made.extend((tmp_path/'cache').rglob('*.safetensors'))
    learn_multi_stage(stage=3, gpu='cpu', epoch=1, resnet_channels=8, resnet_blocks=1, input_cache_mode='mmap', run_dir=tmp_path/'run',
                      stage3_data_path=shards['stage3_data_path'], stage3_validation_data_path=str(tmp_path/'judged'), callbacks=[Look()])
    assert len(made) == 2
