"""What the search costs beside its net: nodes/s of one search, and of many in step, against the net's calls alone

python benchmarks/search.py [--sizes tiny small] [--seconds 4] [--batch 16] [--threads 2]
Prints a line of JSON for each net: positions/s of the net alone in such batches, nodes/s of a search on the start position's
game, of 32 games in step, their shares of the net's, and where a search's time goes. Both are measured in turns, in one run.
"""
import argparse, json, time
from statistics import median

import numpy as np

from maou_nb.data.labels import legal_labels
from maou_nb.model.backbones import make_backbone
from maou_nb.model.heads import Net, make_heads
from maou_nb.data.random import random_positions
from maou_nb.play.evaluator import Evaluator
from maou_nb.play.games import plan, read_openings
from maou_nb.play.lockstep import Table, step
from maou_nb.play.rules import Track
from maou_nb.play.search import NetPlayer, Search, Thinking, ask_net
from rsshogi.core import Board

def alone(evaluator, batch, seconds):
    "Positions a second of the net's calls"
    boards, hands = random_positions(batch)
    labels, n, start = [legal_labels(Board())]*batch, 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        evaluator(boards, hands, labels)
        n += batch
    return n/(time.perf_counter() - start)

def searched(evaluator, batch, seconds):
    "(nodes a second, shares of time: gathering leaves, the net and what it says)"
    opening = read_openings()[0]
    search = Search(Track(opening.start, opening.moves), Thinking(nodes=10**9, batch=batch))
    start, spent = time.perf_counter(), [0., 0.]
    while time.perf_counter() - start < seconds:
        at = time.perf_counter()
        leaves = search.gather(batch if search.root.priors is not None else 1)
        between = time.perf_counter()
        ask_net(evaluator, [(search, leaf) for leaf in leaves])
        spent = [spent[0] + between - at, spent[1] + time.perf_counter() - between]
    whole = time.perf_counter() - start
    return (search.root.n - 1)/whole, [round(s/whole, 3) for s in spent]

def in_step(evaluator, batch, seconds):
    "Positions a second that the net is asked in 32 games in step"
    player = NetPlayer('net', evaluator, Thinking(nodes=100, batch=batch))
    tables = [Table((player, player), p.number, *p.opening, 0) for p in plan(32, read_openings())]
    before, start = evaluator.asked, time.perf_counter()
    while time.perf_counter() - start < seconds and tables:
        step(player, tables)
        tables = [t for t in tables if not t.went.end]
    return (evaluator.asked - before)/(time.perf_counter() - start)

def main():
    parse = argparse.ArgumentParser()
    parse.add_argument('--sizes', nargs='+', default=['tiny', 'small'])
    parse.add_argument('--architectures', nargs='+', default=['resnet', 'mlp-mixer', 'vit'])
    parse.add_argument('--seconds', type=float, default=4.)
    parse.add_argument('--batch', type=int, default=16)
    parse.add_argument('--threads', type=int, default=2)
    asked = parse.parse_args()
    for size in asked.sizes:
        for name in asked.architectures:
            backbone = make_backbone(name, size)
            evaluator = Evaluator(Net(backbone, make_heads(backbone.channels, ['policy', 'value'])).eval(), threads=asked.threads)
            rounds = [(alone(evaluator, asked.batch, asked.seconds/4), searched(evaluator, asked.batch, asked.seconds/4),
                       in_step(evaluator, asked.batch, asked.seconds/4)) for _ in range(4)]
            print(json.dumps({'kind': 'search',
                'net': name, 'size': size, 'batch': asked.batch, 'threads': asked.threads, 'runtime': evaluator.runtime,
                'alone': round(median(r[0] for r in rounds)), 'search': round(median(r[1][0] for r in rounds)),
                'in_step': round(median(r[2] for r in rounds)),
                'search_of_alone': round(median(r[1][0]/r[0] for r in rounds), 3),
                'in_step_of_alone': round(median(r[2]/r[0] for r in rounds), 3),
                'gather_and_net': np.median([r[1][1] for r in rounds], axis=0).tolist()}), flush=True)

if __name__ == '__main__': main()
