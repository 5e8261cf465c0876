"""What a GPU makes of the library, in lines of JSON

`python benchmarks/gpu.py [--budget 450] [--only speed,syncs] [--skip-done FILE] [--out FILE] [--tiny]`

Jobs are done in order of importance. One that would begin after `--budget` seconds is named by a
line `skipped`, and `--skip-done FILE` goes on where the run that wrote FILE ended. Lines are printed
and, on a GPU, also added to `benchmarks/results/gpu-<card>.jsonl`; `--out` names another file.
`--tiny` tries the script itself, on a CPU too; its lines are no results, so only `--out` keeps them.
What `kind` a line can be of:

    machine              the card, its peak, versions
    speed                positions/s of an epoch and of bare steps: precision, compiled or not, cache
    whatif               positions/s of bare steps with one thing changed
    syncs                host-device synchronisations while batches are trained, by who asks
    kernels              where the GPU's time goes
    curve                losses in bf16 and fp16 beside those in fp32
    resume               whether a stopped run goes on bit for bit, with deterministic kernels
    ddp1                 whether one process under DDP ends with the weights it has without
    deterministic_late   whether deterministic kernels may be asked for after a matrix product
    recompile            how many calls still run compiled as nets follow each other
    skipped, error       a job that was not done, with its keywords
"""
import argparse, json, os, statistics, subprocess, sys, tempfile, time, traceback, warnings
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')      # before the first matrix product
os.environ.setdefault('TQDM_DISABLE', '1')

import pyarrow as pa
import torch
from pyarrow import feather
from torch.profiler import ProfilerActivity, profile

import maou_nb
from maou_nb.data.shards import write_shard
from maou_nb.model.backbones import backbone_of, flops_per_position
from maou_nb.model.heads import Net
from maou_nb.stages.rows import prepare_stage3
from maou_nb.stages.stage import STAGES
from maou_nb.train.callbacks import Saver, Steps, Watch
from maou_nb.train.checkpoints import Checkpoints
from maou_nb.train.loop import Callback, Means, best_device, make_accelerator
from maou_nb.train.options import LearnConfig
from maou_nb.train.runner import close_sources, stage_loop
from train import GAMES, kept, matmul_peak, pure, synchronise, timed

BEGAN = time.perf_counter()
RESULTS = Path(__file__).resolve().parent/'results'
LIBRARY = str(Path(maou_nb.__file__).parent)
ARCHITECTURES = 'resnet', 'mlp-mixer', 'vit'

WHOLE = dict(size='base', batch=4096, copies=12, steps=40, seconds=2.5, rounds=3, whatif_steps=12,
             small_batch=1024, curve_steps=150, resume_steps=40)
TINY = dict(size='tiny', batch=64, copies=2, steps=4, seconds=0.5, rounds=2, whatif_steps=2,
            small_batch=64, curve_steps=20, resume_steps=10)
TINY_NETS = {
    'resnet': dict(resnet_channels=8, resnet_blocks=1),
    'mlp-mixer': dict(mixer_embed_dim=16, mixer_num_layers=1, mixer_token_dim=16, mixer_channel_dim=16,
                      mixer_dropout=.1),
    'vit': dict(vit_embed_dim=16, vit_num_layers=1, vit_num_heads=2, vit_dropout=.1)}
SMALL_NETS = {
    'resnet': dict(resnet_channels=64, resnet_blocks=4),
    'mlp-mixer': dict(mixer_embed_dim=64, mixer_num_layers=4, mixer_dropout=.1),
    'vit': dict(vit_embed_dim=128, vit_num_layers=3, vit_num_heads=4, vit_dropout=.1)}

# --- A loop, and steps of it

def make_loop(args, architecture, precision, compiled=False, cache='file', batch=None, net=None,
              callbacks=(), **options):
    "A loop of stage 3 over the rows of `args`; `net`: sizes, if they are not those of `args`"
    if compiled: torch.compiler.reset()       # else the 9th graph of `Net.forward` is not compiled
    batch = batch or args.batch
    if net is None: net = TINY_NETS[architecture] if args.tiny else {}
    cfg = LearnConfig(stage='3', stage3_data_path=args.data, test_ratio=0.01, learning_ratio=1e-3,
                      model_architecture=architecture, model_size=args.size, precision=precision,
                      batch_size=batch, stage3_batch_size=batch, compilation=compiled,
                      input_cache_mode=cache, **net, **options)
    accelerator = make_accelerator(cfg.gpu, cfg.precision)
    torch.manual_seed(cfg.seed)
    backbone, silent = backbone_of(cfg), lambda text: None
    loop, _ = stage_loop(cfg, STAGES['3'], backbone, accelerator, callbacks, say=silent)
    return loop

@contextmanager
def open_loop(*args, **options):
    "The loop that `make_loop` makes, closed afterwards"
    loop = make_loop(*args, **options)
    try: yield loop
    finally: close_sources(loop)

def small_net(args, architecture):
    "Sizes with which a few dozen steps take seconds"
    return (TINY_NETS if args.tiny else SMALL_NETS)[architecture]

def small_loop(args, architecture, precision, *callbacks, **options):
    "A loop of a small net and small batches that only a callback ends"
    return make_loop(args, architecture, precision, batch=args.small_batch, epoch=1000,
                     net=small_net(args, architecture), callbacks=callbacks, **options)

def halving(measure, batch):
    "`measure(batch)`, with half the batch where memory runs out"
    while True:
        try: return measure(batch)
        except RuntimeError as e:
            if 'out of memory' not in str(e).lower() or batch < 64: raise
        batch //= 2
        if torch.cuda.is_available(): torch.cuda.empty_cache()

def train_steps(loop, steps):
    "`steps` batches of an epoch as the loop trains them, with the callbacks that a run has"
    loop.net.train()
    loop.batch, loop.means, loop.wait = 0, Means(loop.stage, loop.device), 0.
    loop.plan = loop.train.plan(loop.settings.batch_size)
    for _, batch in zip(range(steps), loop.batches(loop.train, loop.epoch)): loop.train_batch(batch)
    loop.means.compute()
    loop.epoch += 1

def full_batches(loop):
    "How many batches of an epoch are whole"
    return max(1, loop.train.total_rows // loop.settings.batch_size)

# --- Speed

def flops_of(loop):
    "Floating-point operations of a position, forward, backbone and heads"
    with torch.device('meta'):
        backbone = backbone_of(loop.cfg)
        heads = loop.stage.heads(loop.cfg, backbone.channels)
        return flops_per_position(Net(backbone, heads))

def in_turns(loop, rows, steps, rounds):
    "A round: seconds of bare steps, those of as many trained batches, the loader's share of these"
    for _ in range(rounds):
        bare = timed(loop.device, lambda: pure(loop, [rows]*steps))
        whole = timed(loop.device, lambda: train_steps(loop, steps))
        yield bare, whole, loop.wait / whole

def rates(args, loop):
    "Figures of bare steps and of an epoch's, after warming up"
    device, batch, rows, flops = loop.device, loop.settings.batch_size, kept(loop), flops_of(loop)
    cuda = device.type == 'cuda'
    first = timed(device, lambda: pure(loop, [rows]))
    pure(loop, [rows]*3)
    if cuda: torch.cuda.reset_peak_memory_stats(device)
    step = timed(device, lambda: pure(loop, [rows]*3)) / 3
    steps = min(full_batches(loop), args.steps, max(4, int(args.seconds / step)))
    train_steps(loop, min(3, steps))
    bare, whole, waits = zip(*in_turns(loop, rows, steps, args.rounds))
    took = statistics.median(whole)
    only, epoch = steps*batch / statistics.median(bare), steps*batch / took
    peak = torch.cuda.max_memory_allocated(device) if cuda else 0
    of_peak = 3*flops / args.peak                 # of a position: forward, and twice as much backward
    return dict(steps=steps, rounds=args.rounds,
                first_step_s=round(first, 2), ms_per_step=round(1e3*took / steps, 2),
                pure=round(only), epoch=round(epoch),
                epoch_of_pure=round(statistics.median(b / w for b, w in zip(bare, whole)), 3),
                spread=round((max(whole) - min(whole)) / took, 3),
                loader_wait=round(statistics.median(waits), 4), peak_gb=round(peak / 1e9, 2),
                gflops_per_position=round(flops / 1e9, 3),
                mfu_epoch=round(of_peak*epoch, 4), mfu_pure=round(of_peak*only, 4))

def speed(args, architecture, precision, compiled, cache, **options):
    "Positions/s of an epoch with what a run has around it, and of bare steps"
    def measure(batch):
        opened = open_loop(args, architecture, precision, compiled, cache, batch, **options)
        with opened as loop, tempfile.TemporaryDirectory() as folder:
            loop.callbacks = [Watch(), Steps(Path(folder)/'steps.jsonl')]
            loop.call('before_fit')
            return dict(architecture=architecture, precision=precision, compiled=compiled, cache=cache,
                        batch=batch, **rates(args, loop), **options)
    return halving(measure, args.batch)

@contextmanager
def cudnn_benchmark():
    "With the fastest of cuDNN's convolutions, which it tries out"
    torch.backends.cudnn.benchmark = True
    try: yield
    finally: torch.backends.cudnn.benchmark = False

def whatif(args, architecture, precision):
    "Positions/s of the bare step with one thing changed at a time"
    def measure(batch):
        with open_loop(args, architecture, precision, batch=batch) as loop:
            rows, steps = kept(loop), args.whatif_steps
            def rate():
                pure(loop, [rows]*3)
                run = lambda: pure(loop, [rows]*steps)
                return round(steps*batch / min(timed(loop.device, run) for _ in range(2)))
            found = {'as it is': rate()}
            with cudnn_benchmark(): found['cudnn.benchmark'] = rate()
            return dict(architecture=architecture, precision=precision, batch=batch,
                        positions_per_second=found)
    return halving(measure, args.batch)

# --- Where the time goes

def place_of(stack, otherwise):
    "The innermost line of the library in `stack`, or `otherwise`"
    own = [f'{Path(f.filename).name}:{f.lineno}' for f in stack if f.filename.startswith(LIBRARY)]
    return own[-1] if own else otherwise

@contextmanager
def counted_syncs(device):
    "How often each line lets the host wait for the device"
    places = Counter()
    def note(message, category, filename, lineno, *rest):
        if 'synchroniz' not in str(message): return
        places[place_of(traceback.extract_stack(), f'{Path(filename).name}:{lineno}')] += 1
    with warnings.catch_warnings():
        warnings.simplefilter('always')
        warnings.showwarning = note
        if device.type == 'cuda': torch.cuda.set_sync_debug_mode('warn')
        try: yield places
        finally:
            if device.type == 'cuda': torch.cuda.set_sync_debug_mode('default')

def syncs(args, architecture, precision, cache):
    "Host-device synchronisations while batches are trained, by the line that asks for them"
    net, batch = small_net(args, architecture), min(args.batch, 1024)
    with open_loop(args, architecture, precision, cache=cache, batch=batch, net=net) as loop:
        train_steps(loop, 2)
        steps = min(full_batches(loop), 20)
        with counted_syncs(loop.device) as places: train_steps(loop, steps)
    total = sum(places.values())
    return dict(architecture=architecture, precision=precision, cache=cache, steps=steps, total=total,
                per_step=round(total / steps, 2), places=dict(places.most_common(12)))

def profiled(loop, steps):
    "Profiler's events of `steps` trained batches, added up by name"
    cuda = loop.device.type == 'cuda'
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA]*cuda
    with profile(activities=activities) as seen:
        train_steps(loop, steps)
        synchronise(loop.device)
    return seen.key_averages()

def longest_first(events, cuda):
    "(Microseconds, name, calls) of what ran on the GPU, or without one on the CPU"
    own = lambda e: e.self_device_time_total if cuda else e.self_cpu_time_total
    there = lambda e: not cuda or str(e.device_type).endswith('CUDA')
    return sorted(((own(e), e.key, e.count) for e in events if own(e) > 0 and there(e)), reverse=True)

def kernels(args, architecture, precision, compiled, **options):
    "Where the time of the GPU goes in whole training batches"
    steps = 3
    def measure(batch):
        with open_loop(args, architecture, precision, compiled, batch=batch, **options) as loop:
            train_steps(loop, steps)
            events = profiled(loop, steps)
            longest = longest_first(events, loop.device.type == 'cuda')
        total = sum(took for took, *_ in longest) or 1
        top = [(round(took / total, 3), calls, name[:90]) for took, name, calls in longest[:14]]
        attention = {e.key for e in events if 'scaled_dot_product' in e.key and 'aten::_' in e.key}
        return dict(architecture=architecture, precision=precision, compiled=compiled, batch=batch,
                    gpu_ms_per_step=round(total / 1e3 / steps, 2), top=top, attention=sorted(attention),
                    **options)
    return halving(measure, args.batch)

# --- Whether numbers are right

class Losses(Callback):
    "Keeps the losses of steps, and ends the run after step `until`"
    def __init__(self, until): self.until, self.seen = until, []
    def after_step(self, loop):
        self.seen.append(loop.losses['loss'])
        if loop.step >= self.until: raise KeyboardInterrupt

def run_to_end(loop):
    "`loop` after a run that `Losses` ended"
    try: loop.fit()
    except KeyboardInterrupt: pass
    finally: close_sources(loop)
    return loop

@contextmanager
def deterministic():
    "With deterministic kernels alone"
    torch.use_deterministic_algorithms(True)
    try: yield
    finally: torch.use_deterministic_algorithms(False)

def curve(args, architecture):
    "Losses of the same steps in each precision"
    steps, found = args.curve_steps, {}
    halves = ('bf16', 'fp16') if best_device().type == 'cuda' else ('bf16',)
    for precision in ('fp32', *halves):
        losses = Losses(steps)
        run_to_end(small_loop(args, architecture, precision, losses))
        found[precision] = torch.stack(losses.seen).float().cpu()
    last, between = max(1, steps // 5), max(1, steps // 8)
    gap = lambda precision: float((found[precision] - found['fp32']).abs().max())
    return dict(architecture=architecture, steps=steps, batch=args.small_batch,
                end={p: round(float(l[-last:].mean()), 4) for p, l in found.items()},
                largest_gap={p: round(gap(p), 4) for p in halves},
                samples={p: [round(float(x), 4) for x in l[::between]] for p, l in found.items()},
                finite=all(bool(l.isfinite().all()) for l in found.values()))

def weights_of(loop):
    "Tensors of the net and of the averaged net"
    net = loop.accelerator.unwrap_model(loop.net).state_dict()
    averaged = loop.averaged.state_dict()
    return {f'{part}.{k}': v for part, tensors in (('net', net), ('ema', averaged))
            for k, v in tensors.items()}

def differing(a, b):
    "Names of weights in which two loops are not equal bit for bit"
    there = weights_of(b)
    return [k for k, v in weights_of(a).items() if not torch.equal(v, there[k])]

def resume(args, architecture, precision):
    "Whether a run stopped amid an epoch goes on bit for bit, and a second run is equal at all"
    end = args.resume_steps
    at = 2*end // 5
    random = dict(ema_decay=.99, mirror_augmentation=True)
    loop = lambda *callbacks: small_loop(args, architecture, precision, *callbacks, **random)
    with deterministic(), tempfile.TemporaryDirectory() as folder:
        first, second = (run_to_end(loop(Losses(end))) for _ in range(2))
        run_to_end(loop(Saver(folder, every=at), Losses(at)))
        third = loop(Losses(end))
        torch.manual_seed(12345)                # the checkpoint says what random numbers come next
        third.load_state(*Checkpoints(folder).load_newest())
        run_to_end(third)
        differ = differing(first, third)
        return dict(architecture=architecture, precision=precision, steps=end, stopped_at=at,
                    run_twice_equal=not differing(first, second), resumed_equal=not differ,
                    differ=differ[:4], tensors=len(weights_of(first)))

def recording(calls):
    "A backend of torch.compile that compiles nothing, and adds each call of a graph to `calls`"
    def backend(graph, example):
        def run(*inputs):
            calls.append(graph)
            return graph.forward(*inputs)
        return run
    return backend

def compiled_calls(net, batch, sizes):
    "How many calls of `net` run compiled, in training and in evaluation, with batches of `sizes`"
    calls = []
    net._compiled_call_impl = torch.compile(net._call_impl, backend=recording(calls))
    for training in (True, False):
        net.train(training)
        with torch.set_grad_enabled(training):
            for size in sizes: net(batch.board[:size], batch.hands[:size])
    return len(calls)

def recompile(args):
    "How many calls still run compiled as nets follow each other, as in a notebook of several runs"
    torch.compiler.reset()
    sizes, found = (args.small_batch, args.small_batch - 7), {}
    with open_loop(args, 'resnet', 'fp32', batch=args.small_batch, net=TINY_NETS['resnet']) as loop:
        batch = kept(loop)
    for architecture in ARCHITECTURES:
        for stage in ('1', '2', '3'):
            cfg = LearnConfig(stage='3', stage3_data_path=args.data, model_size='tiny',
                              model_architecture=architecture, **TINY_NETS[architecture])
            backbone = backbone_of(cfg)
            net = Net(backbone, STAGES[stage].heads(cfg, backbone.channels)).to(loop.device)
            name = f'{len(found) + 1} {architecture} stage {stage}'
            found[name] = f'{compiled_calls(net, batch, sizes)}/{2*len(sizes)}'
    torch.compiler.reset()
    return dict(calls_compiled=found)

# --- What wants a process of its own

def ddp_child(args):
    "Train some steps, whether or not there is a process group; says what the weights add up to"
    loop = small_loop(args, 'resnet', 'fp32', Losses(args.resume_steps))
    if torch.distributed.is_initialized():      # accelerate begins a group of one, and wraps nothing for it
        on_gpu = loop.device.type == 'cuda'
        loop.net = torch.nn.parallel.DistributedDataParallel(loop.net, device_ids=[loop.device.index] if on_gpu else None)
    name = type(loop.net).__name__
    with deterministic(): took = timed(loop.device, lambda: run_to_end(loop))
    weights = loop.accelerator.unwrap_model(loop.net).state_dict().values()
    total = sum(float(v.double().abs().sum()) for v in weights)
    about = dict(wrapped=name, seconds=round(took, 2), sum=total, device=str(loop.device))
    print(json.dumps(about), flush=True)
    if torch.distributed.is_initialized(): torch.distributed.destroy_process_group()

def late_child(args):
    "Ask for deterministic kernels after a matrix product was done without them, as in a notebook"
    os.environ.pop('CUBLAS_WORKSPACE_CONFIG', None)
    a = torch.randn(64, 64, device=best_device())
    a @ a
    os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')    # as `deterministic=True` does
    try:
        with deterministic():
            a @ a
            synchronise(a.device)
        print(json.dumps(dict(works=True)))
    except RuntimeError as e: print(json.dumps(dict(works=False, error=str(e)[:160])))

CHILDREN = {'ddp': ddp_child, 'late': late_child}

def child(args, name, **env):
    "What the child `name` says, in a process with `env`"
    tiny = ['--tiny'] if args.tiny else []
    command = [sys.executable, __file__, '--child', name, '--data', args.data, *tiny]
    done = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True,
                          timeout=150)
    lines = [line for line in done.stdout.splitlines() if line.startswith('{')]
    return json.loads(lines[-1]) if lines else dict(rc=done.returncode, stderr=done.stderr[-400:])

def ddp1(args):
    "The same steps without a process group and in a group of one"
    port = str(20000 + os.getpid() % 20000)
    alone = child(args, 'ddp')
    group = child(args, 'ddp', RANK='0', LOCAL_RANK='0', WORLD_SIZE='1', LOCAL_WORLD_SIZE='1',
                  MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
    return dict(alone=alone, group=group, same='sum' in alone and alone['sum'] == group.get('sum'))

def deterministic_late(args):
    "Whether deterministic kernels may be asked for late"
    return child(args, 'late')

# --- Jobs

def job(function, **keywords):
    "Name, function, keywords"
    return function.__name__, function, keywords

def for_each(function, *keywords):
    "Jobs of each architecture with each of `keywords`"
    return [job(function, architecture=a, **words) for a in ARCHITECTURES for words in keywords]

def how(precision, cache, compiled=False):
    "Keywords of `speed`"
    return dict(precision=precision, compiled=compiled, cache=cache)

# every keyword that a line repeats is named, defaults too: by them `--skip-done` knows a job's line
PLAIN = dict(precision='bf16', compiled=False)
JOBS = [
    *for_each(speed, how('bf16', 'file')),
    *for_each(resume, dict(precision='bf16')),
    job(syncs, architecture='vit', precision='bf16', cache='file'),
    *for_each(speed, how('bf16', 'device', True)),
    *for_each(curve, {}),
    job(syncs, architecture='vit', precision='bf16', cache='device'),
    job(syncs, architecture='vit', precision='fp16', cache='file'),
    job(speed, architecture='vit', **how('bf16', 'file'), vit_position='relative'),
    *for_each(speed, how('tf32', 'file')),
    job(speed, architecture='vit', **how('bf16', 'device', True), vit_position='relative'),
    job(kernels, architecture='vit', **PLAIN),
    job(kernels, architecture='resnet', **PLAIN),
    job(kernels, architecture='mlp-mixer', **PLAIN),
    job(ddp1),
    job(deterministic_late),
    job(recompile),
    *for_each(speed, how('bf16', 'device'), how('bf16', 'memory')),
    *for_each(speed, how('fp32', 'file')),
    *for_each(speed, how('fp16', 'file')),
    job(speed, architecture='vit', **how('bf16', 'file'), pin_memory=False),
    job(whatif, architecture='resnet', precision='bf16'),
    job(kernels, architecture='vit', **PLAIN, vit_position='relative'),
    job(resume, architecture='resnet', precision='fp32'),
    *for_each(speed, how('bf16', 'file', True), how('fp16', 'file', True),
              how('fp32', 'file', True)),
    *for_each(speed, how('bf16', 'device', True) | dict(compile_mode='max-autotune-no-cudagraphs')),
]
KINDS = list(dict.fromkeys(kind for kind, *_ in JOBS))
KEYWORDS = {word for *_, keywords in JOBS for word in keywords}

def is_done(kind, keywords, lines):
    "Whether one of `lines` is the job's"
    same = lambda line: all(line.get(word) == keywords.get(word) for word in KEYWORDS)
    return any(line['kind'] == kind and same(line) for line in lines)

def wanted(args, cuda):
    "The jobs that `args` asks for; fp16 and tf32 are a GPU's"
    lines = [json.loads(line) for line in args.skip_done.open()] if args.skip_done else []
    kinds = args.only or KINDS
    able = lambda keywords: cuda or keywords.get('precision') not in ('fp16', 'tf32')
    return [(kind, function, keywords) for kind, function, keywords in JOBS
            if kind in kinds and able(keywords) and not is_done(kind, keywords, lines)]

def say_to(path):
    "A function that prints a line, and adds it to the file `path` if there is one"
    if path: path.parent.mkdir(parents=True, exist_ok=True)
    def say(kind, **what):
        at = round(time.perf_counter() - BEGAN, 1)
        line = json.dumps({'kind': kind, 'at': at, **what}, default=str)
        print(line, flush=True)
        if path:
            with path.open('a') as file: file.write(line + '\n')
    return say

def do(kind, function, keywords, args, say):
    "Say the line of a job, or that there is no time, or what went wrong"
    began = time.perf_counter()
    if began - BEGAN > args.budget: return say('skipped', what=kind, words=keywords)
    try:
        found = function(args, **keywords)
        say(kind, **found, took=round(time.perf_counter() - began, 1))
    except Exception as e:
        say('error', what=kind, words=keywords, error=f'{type(e).__name__}: {e}'[:500])
    if torch.cuda.is_available(): torch.cuda.empty_cache()

# --- All of it

def prepare(folder, files, copies):
    "Path of rows of the sample games, `copies` times over: an epoch is to be long enough to time"
    prepare_stage3(sorted(GAMES.glob('*.csa'))[:files], folder/'games')
    rows = pa.concat_tables([feather.read_table(f) for f in (folder/'games').glob('*.feather')])
    # Rows that differ in nothing but their origin's name: a shard that is there twice is read once
    for i in range(copies): write_shard(folder/f'{i}.feather', rows, 3, f'sample games, copy {i}')
    return str(folder/'*.feather')

def copy_rate(device, size):
    "Bytes a second that a copy on the device reads and writes"
    a = torch.empty(size, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    b.copy_(a)
    return 10*2*size / timed(device, lambda: [b.copy_(a) for _ in range(10)])

def peak_of(device):
    "Floating-point operations a second of a large product in the precision that trains"
    if device.type == 'cuda': return matmul_peak(device, torch.bfloat16)
    return matmul_peak(device, torch.float32, 512)

def machine(device, peak):
    "What the figures were measured on"
    cuda = device.type == 'cuda'
    facts = dict(torch=torch.__version__, device=torch.cuda.get_device_name() if cuda else 'cpu',
                 peak_tflops_bf16=round(peak / 1e12, 2),
                 copy_tb_s=round(copy_rate(device, 1 << (31 if cuda else 22)) / 1e12, 3),
                 cpus=os.cpu_count())
    if cuda:
        facts |= dict(capability=torch.cuda.get_device_capability(),
                      peak_tflops_fp32=round(matmul_peak(device, torch.float32, 4096) / 1e12, 1),
                      cudnn_tf32=torch.backends.cudnn.allow_tf32,
                      matmul_tf32=torch.backends.cuda.matmul.allow_tf32,
                      memory_gb=round(torch.cuda.mem_get_info()[1] / 1e9, 1))
    return dict(facts, date=time.strftime('%Y-%m-%d'))

def results_file(args, device):
    "Where lines are kept: of a whole run on a GPU among the results"
    if args.out or args.tiny or device.type != 'cuda': return args.out
    card = torch.cuda.get_device_name().lower().removeprefix('nvidia ').replace(' ', '-')
    return RESULTS/f'gpu-{card}.jsonl'

def kinds(text):
    "Kinds of jobs, split at commas"
    names = text.split(',')
    unknown = ', '.join(name for name in names if name not in KINDS)
    if not unknown: return names
    raise argparse.ArgumentTypeError(f'no job is called {unknown}: there are {", ".join(KINDS)}')

def lines_file(text):
    "A file that is there"
    if not Path(text).is_file(): raise argparse.ArgumentTypeError(f'{text} is no file')
    return Path(text)

def options():
    "What the command line asks for, with the extent that is meant"
    plain = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    p.add_argument('--budget', type=float, default=450, metavar='SECONDS',
                   help='after which no job begins; default 450')
    p.add_argument('--only', type=kinds, help='kinds of jobs, as in speed,syncs')
    p.add_argument('--skip-done', type=lines_file, metavar='FILE',
                   help='leave out jobs whose lines are in FILE')
    p.add_argument('--out', type=Path, metavar='FILE', help='add lines to FILE and to no other')
    p.add_argument('--tiny', action='store_true', help='tiny nets and few steps')
    p.add_argument('--size', help='model_size; default base')
    p.add_argument('--batch', type=int, help='default 4096')
    p.add_argument('--copies', type=int, help='how often the sample games are taken; default 12')
    p.add_argument('--child', choices=CHILDREN, help=argparse.SUPPRESS)
    p.add_argument('--data', help=argparse.SUPPRESS)
    given = {name: value for name, value in vars(p.parse_args()).items() if value is not None}
    absent = dict.fromkeys(('only', 'skip_done', 'out', 'child'))
    extent = TINY if given['tiny'] else WHOLE
    return argparse.Namespace(**{**absent, **extent, **given})

def main():
    args, device = options(), best_device()
    if args.child: return CHILDREN[args.child](args)
    if device.type != 'cuda' and not args.tiny: sys.exit('there is no GPU to be measured; --tiny tries all of it on this machine')
    say = say_to(results_file(args, device))
    with tempfile.TemporaryDirectory() as folder:
        args.data = prepare(Path(folder), 1 if args.tiny else None, args.copies)
        args.peak = peak_of(device)
        say('machine', **machine(device, args.peak))
        for job in wanted(args, device.type == 'cuda'): do(*job, args, say)

if __name__ == '__main__': main()
