"""Two processes that train together, started once; a test gives both the same job, and gets what each answered

Run as a script it is one of them. Jobs run in one process, too, which is what two are compared with."""
import contextlib, errno, io, json, os, signal, subprocess, sys, threading, time, traceback
from pathlib import Path

from lab import free_port

def _line(f): return json.loads(f.readline() or '{"gone": true}')

class Pair:
    "Processes that wait for jobs"
    def __init__(self, folder, n=2, names=('RANK', 'LOCAL_RANK', 'WORLD_SIZE'), **more):
        rank, local, world = names
        env = {**os.environ, world: str(n), 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(free_port()), 'OMP_NUM_THREADS': '1',
               'TQDM_DISABLE': '1', **more}
        self.logs = [Path(folder)/f'process-{r}.log' for r in range(n)]
        self.all = [subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log.open('w'),
                                     env={**env, rank: str(r), local: str(r)}, text=True) for r, log in enumerate(self.logs)]

    def __call__(self, job, may_go=False, **given):
        "What each process answers to a job; one that is gone answers nothing where it `may_go`"
        for p in self.all: print(json.dumps([job, given], default=str), file=p.stdin, flush=True)
        told = [_line(p.stdout) for p in self.all]
        assert may_go or not any('gone' in t for t in told), [log.read_text()[-2000:] for log in self.logs]
        strays = [t.pop('strays', []) for t in told]
        assert not any(strays), strays
        return told

    def close(self):
        for p in self.all: p.stdin.close()
        for p in self.all:
            try: p.wait(20)
            except subprocess.TimeoutExpired: p.kill()

# --- jobs: a dict that JSON holds is answered
def acts(rank=None, at=None, how='stop', **more):
    "Callbacks that do something in process `rank` after step `at`"
    from maou_nb import Callback
    from maou_nb.train.processes import join
    class Act(Callback):
        def after_step(self, loop):
            if loop.step != at or rank not in (None, join().rank): return
            if how == 'SIGTERM': os.kill(os.getpid(), signal.SIGTERM)
            elif how == 'stop': loop.stop.why = 'test'
            elif how == 'interrupt': raise KeyboardInterrupt
            elif how == 'killed': os.kill(os.getpid(), signal.SIGKILL)
            elif how == 'full': raise OSError(errno.ENOSPC, 'No space left on device', 'history.jsonl')
            else: raise ValueError('odd')
    class Amid(Callback):
        def before_step(self, loop):
            if loop.step != at: return
            if rank != join().rank: time.sleep(600*(how == 'waits'))      # as one does that waits for NCCL
            elif how == 'waits': os.kill(os.getpid(), signal.SIGKILL)
            else: raise ValueError('odd in a step')
    class Lone(Callback):
        def after_epoch(self, loop):
            if rank == join().rank: {'evaluate': lambda: loop.evaluate(loop.train), 'state': loop.state, 'look': loop.check_loss}[at]()
    class Early(Callback):
        def begin(self, loop):
            if rank == join().rank: raise ValueError('odd before the first step')
    class Noisy(Callback):
        def after_step(self, loop):
            for p in loop.net.parameters(): p.data.fill_(float('nan'))
    kinds = {'nan': Noisy, 'amid': Amid, 'waits': Amid, 'early': Early, 'lone': Lone}
    return [kinds.get(how, Act)()] if how in ('nan', 'early') or at else []

def learn(options, act=None, cwd=None):
    "A run; its result or its error, and what was said"
    from maou_nb import learn_multi_stage
    from maou_nb.front import learn as room
    from unittest.mock import patch
    if cwd: os.chdir(cwd)
    mirrors = []
    class Copy:
        asked = done = 0
        def __init__(self, copies, say): mirrors.append(copies)
        def sync(self): pass
        def age(self): return 0.
        def close(self, timeout): pass
    answer = {}
    with patch.object(room, 'Mirror', Copy):
        begun = time.monotonic()
        try: answer['result'] = learn_multi_stage(callbacks=acts(**(act or {})), **options).model_dump(mode='json')
        except BaseException as e: answer.update(error=str(e), kind=type(e).__name__)
    return answer | {'mirrors': len(mirrors), 'seconds': time.monotonic() - begun}

def epoch(options, out, batch=69):
    "An epoch in 64 bits: gradients of its first three steps, weights and figures after it; of each process a file"
    import torch
    from maou_nb import Callback
    from maou_nb.front.learn import new_backbone
    from maou_nb.front.options import make_config
    from maou_nb.stages.stage import stages_of
    from maou_nb.train.checkpoints import save_tensors
    from maou_nb.train.loop import make_accelerator
    from maou_nb.train.processes import join
    from maou_nb.train.runner import close_sources, stage_loop
    kept = {}
    class Keep(Callback):
        def before_step(self, loop):
            if loop.step < 3 or loop.batch == loop.batches_per_epoch:
                net = loop.accelerator.unwrap_model(loop.net)
                kept.update({f'grad.{loop.step}.{n}': p.grad.clone() for n, p in net.named_parameters() if p.grad is not None})
    torch.set_default_dtype(torch.float64)
    try:
        cfg = make_config(**options)
        stage = stages_of(cfg)[0]
        loop, _ = stage_loop(cfg, stage, new_backbone(cfg), make_accelerator('cpu', 'fp32'), (Keep(),))
        loop.fit()
        net = loop.accelerator.unwrap_model(loop.net).state_dict()
        kept |= {f'net.{k}': v for k, v in net.items()}
        if loop.averaged is not None: kept |= {f'ema.{k}': v for k, v in loop.averaged.state_dict().items()}
        save_tensors(Path(f'{out}-{join().rank}'), {k: v.contiguous() for k, v in kept.items()})
        close_sources(loop)
    finally: torch.set_default_dtype(torch.float32)
    return {'history': loop.history}

def rates(options):
    "What `find_lr` finds"
    from maou_nb.front.learn import find_lr
    found = find_lr(steps=12, **options)
    return {'rates': found.rates, 'losses': found.losses}

def rows(options, cache, share=None):
    "What the batches of two epochs hold here, or in the process that `share` means, and what was unpacked for that"
    from unittest.mock import patch
    from xxhash import xxh3_64_hexdigest
    from maou_nb.data import sources
    from maou_nb.data.batches import BatchStream
    from maou_nb.front.learn import new_backbone
    from maou_nb.front.options import make_config
    from maou_nb.stages.stage import stages_of
    from maou_nb.train import runner
    from maou_nb.train.loop import make_accelerator
    cfg, heard = make_config(**options), []
    unpacked = patch.object(sources, 'load_rows', side_effect=sources.load_rows)
    copied = patch.object(sources, 'rows_of_table', side_effect=sources.rows_of_table)
    with unpacked as unpacked, copied as copied, patch.object(runner, 'FEW', 0), patch.dict(os.environ, MAOU_NB_CACHE=str(cache)):
        stage = stages_of(cfg)[0]
        loop, _ = runner.stage_loop(cfg, stage, new_backbone(cfg), make_accelerator('cpu', 'fp32'), say=heard.append)
        source, seen = loop.train, []
        source.window, source.window_rows = 2, 0
        for epoch in range(2):
            plan = source.plan(37, seed=1, epoch=epoch, mirror=True)
            stream = iter(BatchStream(source, plan, 0, *(share or (loop.together.rank, loop.together.world))))
            for k in range(len(plan)):
                loop.together.meet()
                seen.append(xxh3_64_hexdigest(b''.join(t.numpy().tobytes() for t in next(stream).tensors())))
        answer = {'rows': seen, 'unpacked': unpacked.call_count + copied.call_count, 'shards': len(source.shards), 'heard': heard,
                  'cache': source.cache, 'folder': str(source._folder or '')}
        runner.close_sources(loop)
        loop.together.meet()
    return answer

def gpu_norms():
    "What batch norms become that go over several GPUs, beside what torch makes of them"
    import copy
    import torch
    from maou_nb.train.processes import share_norms
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4, eps=1e-3), torch.nn.BatchNorm1d(4, affine=False))
    made = torch.nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(net))
    held = [*net]
    share_norms(net, torch.device('cuda'))
    answers = {}
    for name, mine in (('shared', net), ('copied', copy.deepcopy(net))):
        theirs, own = ([{k: v for k, v in vars(m).items() if k[0] != '_'} | {'process_group': m.process_group} for m in n[1:]]
                       for n in (made, mine))
        kinds = all(isinstance(m, torch.nn.SyncBatchNorm) and m.process_group is None for m in mine[1:])
        weights, expected = mine.state_dict(), made.state_dict()
        alike = weights.keys() == expected.keys() and all(weights[k].equal(expected[k]) for k in expected)
        answers[name] = [theirs == own, kinds, alike]
    return answers | {'held': all(a is b for a, b in zip(held, net))}

def gpu_wrap(options):
    "Which devices the wrapped net is told of, where accelerate takes this process for one with a GPU"
    from accelerate import Accelerator
    from unittest.mock import PropertyMock, patch
    from maou_nb.front.learn import new_backbone
    from maou_nb.front.options import make_config
    from maou_nb.stages.stage import stages_of
    from maou_nb.train.loop import make_accelerator
    from maou_nb.train.runner import close_sources, stage_loop
    cfg = make_config(**options)
    with patch.object(Accelerator, 'multi_device', PropertyMock(return_value=True)):
        loop, _ = stage_loop(cfg, stages_of(cfg)[0], new_backbone(cfg), make_accelerator('cpu', 'fp32'), say=lambda text: None)
    close_sources(loop)
    return {'kind': type(loop.net).__name__, 'devices': loop.net.device_ids}

JOBS = {f.__name__: f for f in (learn, epoch, rates, rows, gpu_norms, gpu_wrap)}

def done(job, given):
    "The answer of a job, with what it printed"
    with contextlib.redirect_stdout(io.StringIO()) as said:
        try: answer = JOBS[job](**given)
        except Exception: answer = {'broken': traceback.format_exc()}
    return answer | {'said': said.getvalue()}

def strays_told(strays):
    "Put into `strays` what another thread than the main one asks the processes' store, or has them do, and gradients nobody announced"
    import torch
    import torch.distributed as dist
    from maou_nb.train.processes import join
    def told(owner, name, meant=lambda a: True):
        real = getattr(owner, name)
        def call(*a, **k):
            if threading.current_thread() is not threading.main_thread() and meant(a):
                strays.append(f'{threading.current_thread().name}: {name}')
            return real(*a, **k)
        setattr(owner, name, call)
    # one waits there for another, and whoever else asks waits with it; a clone is another store
    common = lambda a: a[0] is dist.distributed_c10d._get_default_store()
    for name in ('add', 'check', 'compare_set', 'delete_key', 'get', 'multi_get', 'multi_set', 'num_keys', 'set', 'wait'):
        told(dist.Store, name, common)
    for name in ('all_gather', 'all_gather_object', 'all_reduce', 'barrier', 'broadcast', 'broadcast_object_list', 'new_group'):
        told(dist, name)
    # one that fails there, or before, would leave the others waiting
    net = torch.nn.parallel.DistributedDataParallel
    for name in ('__init__', 'forward'):
        def call(self, *a, real=getattr(net, name), name=name, **k):
            if not join().amid and torch.is_grad_enabled() and (name == '__init__' or self.training): strays.append(f'{name}, unannounced')
            return real(self, *a, **k)
        setattr(net, name, call)

if __name__ == '__main__':
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    from maou_nb.train.processes import join
    join()
    strays_told(strays := [])
    for line in sys.stdin:
        print(json.dumps(done(*json.loads(line)) | {'strays': strays}), file=answers, flush=True)
        strays.clear()
        if join().lost: break       # as a run does, whose processes can't meet any more
