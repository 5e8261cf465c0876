"""How fast records become shards, on one core: `python benchmarks/prepare.py [FOLDER] [--games N] [--runs N] [--json]`

Prints positions per second of stages 2 and 3, whole and by part, and the seconds of stage 1. Medians of several runs, beside the
rules library alone (legal moves as integers), measured in the same run.
"""
import argparse, json, os, statistics, tempfile, time
from pathlib import Path

if hasattr(os, 'sched_setaffinity'): os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})   # before Polars counts the cores

from rsshogi.core import Board
from maou_nb.data.positions import positions
from maou_nb.data.prepare import prepare_stage1, prepare_stage2, prepare_stage3
from maou_nb.data.records import read_games, record_files

def seconds(f):
    "How long `f` takes, and what it returns"
    began = time.perf_counter(); made = f()
    return time.perf_counter() - began, made

def rules_alone(games):
    "Walk `games` asking only for the legal moves"
    for g in games:
        board = Board(g.start + ' 1')
        for m in g.moves: list(map(hash, board.legal_moves())); board.apply_move(m)

def measure(files, out):
    "One run of everything: name → (seconds, positions)"
    parsing, games = seconds(lambda: list(read_games(files)))
    n = sum(len(g.moves) + 1 for g in games)
    figures = {'read-csa': parsing, 'rules-alone': seconds(lambda: rules_alone(games))[0]}
    figures['walk-and-columns'] = seconds(lambda: [positions(games[i:i + 64]) for i in range(0, len(games), 64)])[0]
    figures['stage2'] = seconds(lambda: prepare_stage2(files, out/'stage2'))[0]
    figures['stage3'] = seconds(lambda: prepare_stage3(files, out/'stage3'))[0]
    return {k: (s, n) for k, s in figures.items()} | {'stage1': (seconds(lambda: prepare_stage1(out/'stage1'))[0], 1105)}

def main():
    "Measure, and print medians"
    here = Path(__file__).resolve().parents[1]
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('folder', nargs='?', default=here/'samples'/'games', type=Path, help='CSA files; default: the sample games')
    p.add_argument('--games', type=int, default=1000, help='files to take (a file of the samples holds 50 games)')
    p.add_argument('--runs', type=int, default=3)
    p.add_argument('--json', action='store_true', help='one JSON object a line')
    a = p.parse_args()
    found = record_files(a.folder)
    files = [found[i*len(found) // min(a.games, len(found))] for i in range(min(a.games, len(found)))]
    with tempfile.TemporaryDirectory() as out: runs = [measure(files, Path(out)) for _ in range(a.runs)]
    for name in runs[0]:
        s, n = statistics.median(r[name][0] for r in runs), runs[0][name][1]
        row = {'name': name, 'rows_per_s': round(n / s), 'seconds': round(s, 3), 'rows': n}
        print(json.dumps(row) if a.json else f"{name:<18} {row['rows_per_s']:>9,} positions/s   {s:7.3f} s   {n:,} positions")

if __name__ == '__main__': main()
