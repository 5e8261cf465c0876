"""How fast records become shards: `python benchmarks/prepare.py [FOLDER] [--games N] [--runs N] [--json]`

Prints positions per second of stages 2 and 3 on one core, whole and by part, of stage 3 with two processes (their start left out), and the
seconds of stage 1. Medians of several runs, beside the rules library alone (legal moves as integers), measured in the same run.
"""
import argparse, json, os, statistics, tempfile, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

CORES = os.sched_getaffinity(0) if hasattr(os, 'sched_getaffinity') else None

from rsshogi.core import Board, Move
from maou_nb.data.positions import positions
from maou_nb.stages.rows import prepare_stage1, prepare_stage2, prepare_stage3
from maou_nb.data.records import read_games, record_files

def seconds(f):
    "How long `f` takes, and what it returns"
    began = time.perf_counter(); made = f()
    return time.perf_counter() - began, made

def rules_alone(games):
    "Walk `games` asking only for the legal moves"
    for g in games:
        board = Board(g.start + ' 1')
        for m in map(Move, g.moves.tolist()): list(map(hash, board.legal_moves())); board.apply_move(m)

def one_core(yes):
    "Keep to one core, or take them all again"
    if CORES: os.sched_setaffinity(0, {min(CORES)} if yes else CORES)

def measure(files, out, pool):
    "One run of everything: name → (seconds, positions)"
    one_core(True)
    parsing, games = seconds(lambda: list(read_games(files)))
    n = sum(len(g.moves) + 1 for g in games)
    figures = {'read-csa': parsing, 'rules-alone': seconds(lambda: rules_alone(games))[0]}
    figures['walk-and-columns'] = seconds(lambda: [positions(games[i:i + 64]) for i in range(0, len(games), 64)])[0]
    figures['stage2'] = seconds(lambda: prepare_stage2(files, out/'stage2'))[0]
    figures['stage3'] = seconds(lambda: prepare_stage3(files, out/'stage3'))[0]
    one_core(False)
    figures['stage3-2-processes'] = seconds(lambda: prepare_stage3(files, out/'both', executor=pool))[0]
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
    with tempfile.TemporaryDirectory() as out, ProcessPoolExecutor(2, mp_context=get_context('spawn')) as pool:
        # the processes are up
        prepare_stage3(files[:1], Path(out)/'first', executor=pool)
        prepare_stage3(files[1:2], Path(out)/'second', executor=pool)
        runs = [measure(files, Path(out), pool) for _ in range(a.runs)]
    for name in runs[0]:
        s, n = statistics.median(r[name][0] for r in runs), runs[0][name][1]
        row = {'name': name, 'rows_per_s': round(n / s), 'seconds': round(s, 3), 'rows': n}
        print(json.dumps(row) if a.json else f"{name:<20} {row['rows_per_s']:>9,} positions/s   {s:7.3f} s   {n:,} positions")

if __name__ == '__main__': main()
