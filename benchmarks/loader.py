"""How fast rows become batches: `python benchmarks/loader.py [--rows N] [--runs N] [--cores N] [--quick] [--json]`

Every mode of a source beside the plainest gather of the same records, in memory and in a map (whose small pages make far rows
dearer), a copy of the same memory, and the dense layout of the older tool read with Polars. Each figure is the median of several
runs, and the runs of all of them take turns, so that a busy machine is busy for all. A run is a whole epoch. `packed-gather` and the
resident modes have their order before the clock starts; what drawing it costs, once a window, is `draw-order`. `compact-file` reads,
unpacks and orders its windows while the clock runs. All of it has one core, or as many as `--cores` says: then windows are unpacked
beside the gathering; copies gain by more cores, too, so the goals are those of one.
"""
import argparse, json, os, statistics, tempfile, time
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument('--rows', type=int, help='rows of the set; default 2,097,152, with --quick 524,288')
parser.add_argument('--runs', type=int, help='runs of each; default 9, with --quick 7')
parser.add_argument('--cores', type=int, default=1, help='cores that are used')
parser.add_argument('--quick', action='store_true', help='under 40 seconds')
parser.add_argument('--json', action='store_true', help='one JSON object a line')
ARGUMENTS = parser.parse_args()
if not all(n is None or n > 0 for n in (ARGUMENTS.rows, ARGUMENTS.runs, ARGUMENTS.cores)):
    parser.error('--rows, --runs, --cores: numbers above 0 were expected')

# before Polars, Arrow and torch count the cores
if hasattr(os, 'sched_setaffinity'): os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:ARGUMENTS.cores])
for name in ('OMP_NUM_THREADS', 'POLARS_MAX_THREADS', 'MKL_NUM_THREADS', 'ARROW_IO_THREADS'): os.environ[name] = str(ARGUMENTS.cores)

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.ipc as ipc
import torch
torch.set_num_threads(ARGUMENTS.cores); pa.set_cpu_count(ARGUMENTS.cores)

from maou_nb.data.batches import Batch, BatchStream, batch_loader
from maou_nb.stages.rows import prepare_stage3
from maou_nb.data.shards import find_shards, read_shard, write_manifest, write_shard
from maou_nb.data.columns import columns_of
from maou_nb.data.sources import FileSource, StreamingFileSource

SAMPLES = Path(__file__).resolve().parents[1]/'samples'/'games'
SHARD = 1 << 16   # rows of a shard here: an epoch has several windows

def repeated(table, rows, folder):
    "Shards of `rows` rows in `folder`: those of `table` over and over, each time in another order"
    random, entries = np.random.default_rng(0), []
    for i in range(-(-rows // SHARD)):
        n = min(SHARD, rows - i*SHARD)
        order = np.concatenate([random.permutation(len(table)) for _ in range(-(-n // len(table)))])[:n]
        entries.append(write_shard(folder/f'stage3-{i:05d}.feather', table.take(pa.array(order)).combine_chunks(),
                                   3, 'the sample games, repeated'))
    write_manifest(folder, entries, stage=3)

def dense_file(table, rows, path):
    "`rows` rows of `table` in the dense layout of the older tool: nested lists, LZ4"
    dense = Batch.from_rows(FileSource(table, 3)[np.arange(rows)], 3).decode()
    flat = lambda t: pa.array(t.numpy().reshape(-1))
    lists = lambda values, width: pa.ListArray.from_arrays(pa.array(np.arange(0, len(values) + 1, width, dtype=np.int32)), values)
    columns = {'id': pa.array(np.arange(rows, dtype=np.uint64)),
               'boardIdPositions': lists(lists(flat(dense.board), 9), 9), 'piecesInHand': lists(flat(dense.hands), 14),
               'moveLabel': lists(flat(dense.policy), 1496), 'resultValue': flat(dense.value)}
    table = pa.table(columns)
    with ipc.new_file(str(path), table.schema, options=ipc.IpcWriteOptions(compression='lz4')) as w: w.write_table(table)

def dense_polars(path, size, epoch):
    "An epoch over a dense file: read, shuffle, cut into batches of tensors; there is no legal mask in it"
    df = pl.read_ipc(path)
    board = df['boardIdPositions'].explode().explode().to_numpy().reshape(-1, 81)
    hands, policy = df['piecesInHand'].explode().to_numpy().reshape(-1, 14), df['moveLabel'].explode().to_numpy().reshape(-1, 1496)
    columns = board, hands, policy, df['resultValue'].to_numpy()
    order = np.random.default_rng(epoch).permutation(len(df))
    for i in range(0, len(df), size): [torch.from_numpy(c[order[i:i + size]]) for c in columns]
    return len(df)

def an_epoch(source, plan, decode=False):
    "Every batch of an epoch, through the loader; on one core a thread that works ahead has nobody to work beside, so there is none"
    dense, rows = None, 0
    for batch in batch_loader(BatchStream(source, plan), prefetch=0):
        if decode: dense = batch.decode(dense)
        rows += len(batch)
    return rows

class Bench:
    "The sets, and one run of each name"
    def __init__(self, folder, rows, dense_rows):
        self.folder = Path(folder)
        os.environ['MAOU_NB_CACHE'] = str(self.folder/'cache')
        prepare_stage3(SAMPLES, self.folder/'once')
        shards = find_shards(self.folder/'once', 3)
        self.on_disk = sum(Path(s.path).stat().st_size for s in shards) / sum(s.rows for s in shards)
        table = pa.concat_tables([read_shard(s) for s in shards]).combine_chunks()
        (self.folder/'many').mkdir(); repeated(table, rows, self.folder/'many')
        dense_file(self.folder/'once', dense_rows, self.folder/'dense.feather')
        many = self.folder/'many'
        self.file = StreamingFileSource(many, 3)
        self.memory, self.mmap = FileSource(many, 3), FileSource(many, 3, cache='mmap', say=lambda s: None)
        self.records = self.memory.resident.fixed.view(np.uint8).reshape(-1, columns_of(3).record.itemsize)
        self.mapped = self.mmap.resident.fixed.view(np.uint8).reshape(-1, columns_of(3).record.itemsize)
        self.resident = self.memory.resident.nbytes / len(self.records)

    def one_run(self, size, epoch):
        "name → (seconds, rows), for each name once"
        n, out = len(self.records), np.empty((size, columns_of(3).record.itemsize), np.uint8)
        order, plan = np.random.default_rng(epoch).permutation(n), self.memory.plan(size, 1, epoch)
        def gather(records):
            for i in range(0, n - size + 1, size): np.take(records, order[i:i + size], axis=0, out=out, mode='clip')
            return n // size * size
        dense = next(iter(batch_loader(BatchStream(self.memory, self.memory.plan(size))))).decode()
        buffers = [dense.board.contiguous(), dense.hands.contiguous(), dense.legal, dense.policy,
                   dense.value.contiguous(), dense.eval.contiguous()]
        copies = [torch.ones_like(b) for b in buffers]
        def copy(times=max(1, 65_536 // size)):
            for _ in range(times):
                for a, b in zip(copies, buffers): a.copy_(b)
            return times*size
        self.dense_bytes = sum(b.nbytes for b in buffers) / size
        names = {'packed-gather': lambda: gather(self.records), 'packed-gather-map': lambda: gather(self.mapped),
                 'draw-order': lambda: plan.numbers(0) is None or n,
                 'compact-memory': lambda: an_epoch(self.memory, plan),
                 'compact-mmap': lambda: an_epoch(self.mmap, plan),
                 'compact-file': lambda: an_epoch(self.file, self.file.plan(size, 1, epoch)),
                 'decoded-reused': lambda: an_epoch(self.memory, plan, decode=True), 'memcpy': copy,
                 'dense-polars': lambda: dense_polars(self.folder/'dense.feather', size, epoch)}
        figures = {}
        for name, run in names.items():
            began = time.perf_counter(); rows = run()
            figures[name] = (time.perf_counter() - began) / rows
        return figures

    def bytes_per_row(self, name):
        "What a row of `name` takes: in a batch, or decoded"
        return {'packed-gather': columns_of(3).record.itemsize,
                'packed-gather-map': columns_of(3).record.itemsize, 'draw-order': 8,
                'decoded-reused': self.dense_bytes, 'memcpy': self.dense_bytes,
                'dense-polars': 81 + 14 + 4*1496 + 4}.get(name, self.resident)

GOALS = [('compact-memory', 'packed-gather', 0.75), ('compact-mmap', 'packed-gather', 0.75),
         ('compact-mmap', 'packed-gather-map', None), ('compact-file', 'packed-gather', None),
         ('compact-memory', 'dense-polars', 15), ('compact-mmap', 'dense-polars', 15),
         ('compact-file', 'dense-polars', None), ('decoded-reused', 'memcpy', 0.5)]

def main():
    "Measure, and print medians with their ratios"
    a = ARGUMENTS
    rows, runs = a.rows or (1 << 19 if a.quick else 1 << 21), a.runs or (7 if a.quick else 9)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(folder, rows, 8_192 if a.quick else 16_384)
        for size in (1024, 4096):
            bench.one_run(size, 0)                                   # pages are touched, caches filled
            figures = [bench.one_run(size, 1 + i) for i in range(runs)]
            rate = {name: 1 / statistics.median(f[name] for f in figures) for name in figures[0]}
            for name, r in rate.items():
                row = {'name': name, 'rows_per_s': round(r), 'bytes_per_row': round(bench.bytes_per_row(name), 1),
                       'batch': size, 'shard_bytes_per_row': round(bench.on_disk, 1)}
                print(json.dumps(row) if a.json
                      else f'batch {size:<5} {name:<17} {r:>12,.0f} rows/s '
                           f'{row["bytes_per_row"]:>9,.1f} bytes/row', flush=True)
            if a.json: continue
            whole = statistics.median(f['packed-gather'] / (f['compact-memory'] + f['draw-order']) for f in figures)
            print(f'    compact-memory with its order drawn / packed-gather: {whole:.2f}')
            for name, than, goal in GOALS:
                ratio = statistics.median(f[than] / f[name] for f in figures)
                print(f'    {name} / {than}: {ratio:.2f}' + (f' (goal {goal}: {"met" if ratio >= goal else "NOT met"})' if goal else ''))
        if a.json: return
        for name, size, goal in (('shards-on-disk', bench.on_disk, 115), ('resident', bench.resident, 340)):
            print(f'{name:<17} {size:.1f} bytes/row (goal {goal}: {"met" if size <= goal else "NOT met"})')

if __name__ == '__main__': main()
