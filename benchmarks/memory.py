"""What memory preparing and streaming take as the data grows: `python benchmarks/memory.py [FOLDER] [--sizes 1 2 4 8] [--json]`

The games of FOLDER are taken once, twice, four and eight times. A copy is not thrown out as a second copy of the same game, because
its games are cut short by as many plies as it has copies before it, which gives each another key and mostly another fold. Each size is
prepared, and then streamed through in shuffled batches, in processes of their own, and their peak resident memory is printed.
"""
import argparse, json, resource, subprocess, sys, tempfile, time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

def copies(folder, out, times):
    "Files of the games in `folder`, `times` over, each time one ply shorter"
    from maou_nb.data.records import record_files
    for k in range(times):
        for f in record_files(folder):
            games = [shorter(g, k) for g in f.read_text().split('/\n')]
            (out/f'{f.stem}-{k}.csa').write_text('/\n'.join(games))

def shorter(game, k):
    "`game` without its last `k` moves"
    lines = game.rstrip('\n').split('\n')
    moves = [i for i, l in enumerate(lines) if len(l) >= 7 and l[0] in '+-' and l[1:5].isdigit()]
    gone = {i for j in moves[len(moves) - k:] for i in (j, j + 1)} if k else set()
    return '\n'.join(l for i, l in enumerate(lines) if i not in gone or l.startswith('%')) + '\n'

def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def prepare(games, out):
    "Prepare stage 3 in this process alone"
    from concurrent.futures import Executor, Future
    from maou_nb.stages.rows import prepare_stage3
    class Here(Executor):
        def submit(self, f, *a):
            future = Future(); future.set_result(f(*a)); return future
    began = time.perf_counter()
    made = prepare_stage3(games, out, rows_per_shard=50_000, executor=Here())
    return {'rows': made.rows, 'positions': made.positions, 'seconds': time.perf_counter() - began}

def stream(out):
    "Go through the shards in shuffled batches"
    from maou_nb.data.sources import StreamingFileSource
    source, began = StreamingFileSource(out, 3), time.perf_counter()
    plan = source.plan(1024, seed=0)
    rows = sum(len(source.take(plan, k)) for k in range(len(plan)))
    return {'rows': rows, 'seconds': time.perf_counter() - began}

def measured(name, *args):
    "What `name` of this file reports when run in a process of its own, with its peak in MB"
    done = subprocess.run([sys.executable, __file__, '--part', name, *map(str, args)], capture_output=True, text=True)
    assert not done.returncode, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('folder', nargs='?', default=ROOT/'samples'/'games', type=Path, help='CSA files; default: the sample games')
    p.add_argument('--sizes', type=int, nargs='+', default=[1, 2, 4, 8])
    p.add_argument('--json', action='store_true', help='one JSON object a line')
    p.add_argument('--part', nargs='+', help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.part:
        made = {'prepare': prepare, 'stream': stream}[a.part[0]](*a.part[1:])
        print(json.dumps(made | {'peak_mb': round(peak())})); return
    for times in a.sizes:
        with tempfile.TemporaryDirectory() as tmp:
            games, out = Path(tmp)/'games', Path(tmp)/'shards'
            games.mkdir(); copies(a.folder, games, times)
            for name, args in (('prepare', (games, out)), ('stream', (out,))):
                row = {'name': name, 'times': times, **measured(name, *args)}
                print(json.dumps(row) if a.json
                      else f"{name:<8} {times}x  {row['rows']:>10,} rows  peak {row['peak_mb']:>5} MB  "
                           f"{row['seconds']:6.1f} s", flush=True)

if __name__ == '__main__': main()
