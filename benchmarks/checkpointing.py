"""What gradient checkpointing saves and costs

`python benchmarks/checkpointing.py [--size tiny] [--batch 64] [--runs 3] [--device cpu] [--json]`

For each architecture: the peak memory of a forward and backward pass without and with `gradient_checkpointing`, the weights not
counted, the gradients counted, and how much longer the pass takes (median of several, taking turns). On a GPU the peak is what
torch's allocator says; on a CPU every tensor that an operation makes is followed from its birth to its end.
"""
import argparse, json, statistics, time, weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from maou_nb.model.backbones import make_backbone

ARCHITECTURES = ('resnet', 'mlp-mixer', 'vit')

class PeakMemory(TorchDispatchMode):
    "Follows the memory that operations on the CPU allocate: `held` bytes now, `peak` bytes at most"
    def __init__(self):
        super().__init__()
        self.held, self.peak, self.alive = 0, 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        arrays = lambda tree: (t.untyped_storage() for t in tree_iter(tree) if isinstance(t, torch.Tensor))
        given = {s._cdata for s in arrays((args, kwargs))}
        made = func(*args, **(kwargs or {}))
        for s in arrays(made):
            if s._cdata not in given and s._cdata not in self.alive: self.follow(s)   # views and in-place results are no new memory
        self.peak = max(self.peak, self.held)
        return made

    def follow(self, storage):
        "Count `storage` until it is freed"
        key, size = storage._cdata, storage.nbytes()
        def freed(_): self.held -= size; del self.alive[key]
        self.held += size
        self.alive[key] = weakref.ref(storage, freed)

def peak_bytes(f, device='cpu'):
    "The most bytes that were allocated at one time while `f` ran, beyond what was there before"
    if device == 'cpu':
        with PeakMemory() as memory: f()
        return memory.peak
    torch.cuda.synchronize(); torch.cuda.reset_peak_memory_stats(); before = torch.cuda.memory_allocated()
    f()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before

def training_pass(net, batch, device='cpu'):
    "A function that runs `batch` random positions forward and backward through `net`"
    random = torch.Generator().manual_seed(0)
    board = torch.randint(0, 29, (batch, 81), generator=random, dtype=torch.uint8).to(device)
    hands = torch.zeros(batch, 14, dtype=torch.uint8, device=device)
    def run():
        net(board, hands).square().mean().backward()
        net.zero_grad()   # so that every pass allocates its gradients
        if device != 'cpu': torch.cuda.synchronize()
    return run

def seconds(f):
    began = time.perf_counter(); f()
    return time.perf_counter() - began

def measure(name, size='tiny', batch=64, runs=0, device='cpu'):
    "Peak bytes without and with checkpointing of backbone `name`, and with `runs` the median seconds of each"
    passes = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        net = make_backbone(name, size).train().to(device)
        net.gradient_checkpointing = checkpointing
        passes.append(training_pass(net, batch, device))
        passes[-1]()   # what a first pass sets up is no part of it
    peaks = [peak_bytes(f, device) for f in passes]
    times = [[seconds(f) for f in passes] for _ in range(runs)]
    return dict(architecture=name, size=size, batch=batch, bytes=peaks, seconds=[statistics.median(t) for t in zip(*times)])

def line(m):
    "A measurement in words"
    (plain, saving), times = (b / 2**20 for b in m['bytes']), m['seconds']
    slower = f", {times[1]/times[0]:.2f} times as long" if times else ''
    return (f"{m['architecture']:9}  {m['size']}, batch {m['batch']}: peak {plain:,.1f} MiB, "
            f"with checkpointing {saving:,.1f} MiB ({saving/plain:.0%}){slower}")

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--size', default='tiny')
    parser.add_argument('--batch', type=int, default=64)
    parser.add_argument('--runs', type=int, default=3)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--json', action='store_true', help='one JSON object a line')
    args = parser.parse_args()
    for name in ARCHITECTURES:
        m = measure(name, args.size, args.batch, args.runs, args.device)
        print(json.dumps(m) if args.json else line(m), flush=True)
