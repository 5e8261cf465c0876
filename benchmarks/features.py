"""What a net gains from what it is shown, and what its value head needs: arms with seeds

`python benchmarks/features.py ROWS --other ROWS [--study shown] [--nets resnet,vit] [--seeds 5] [--jobs 4] [--out FILE]`
`python benchmarks/features.py --cost`: positions/s with attacks and without, in turns
`python benchmarks/features.py --table FILE…`: what the lines of such runs say, with intervals

Every arm trains a tiny net on the same rows in the same order, from the same seeds, as stage 3 alone. A fifth of the
games is held out; `--other` are rows of games between other engines. A line of JSON a run. What doesn't begin within
`--budget` seconds is left out, and named. `--study`s:

    shown   pieces, counts (attacked by at least 1, 2, 3), attacks; with --nets resnet more facts, too
    value   what changes in the value head, its target, its weight: each with attacks shown
"""
import argparse, json, math, multiprocessing, statistics, sys, tempfile, time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch
from torch import nn

from maou_nb.data.board import KINDS
from maou_nb.data.html import markdown_table
from maou_nb.model.backbones import backbone_of
from maou_nb.model.features import RAYS, AttackMaps, register_features
from maou_nb.model.heads import ValueHead, register_head
from maou_nb.stages.rows import prepare_stage3
from maou_nb.stages.stage import STAGES
from maou_nb.train.loop import make_accelerator
from maou_nb.train.options import LearnConfig
from maou_nb.train.runner import close_sources, source_maker, stage_loop
from train import GAMES, kept, pure, timed

# --- Arms: features of their own

OPPOSITE = [RAYS.index((-row, -column)) for row, column in RAYS]

@register_features('counts')
class Counts(AttackMaps):
    "Attacked by at least 1, 2, 3 of each side"
    planes = 6
    def forward(self, board, hands): return super().forward(board, hands)[:, :, 28:34]

class AndMore(AttackMaps):
    "The planes of `AttackMaps`, and those of `more`"
    def forward(self, board, hands):
        counts = self.attackers(board)
        more = self.more(board, counts)
        return torch.cat([super().forward(board, hands).float(), *(m.float().view(len(board), 81, -1) for m in more)], 2)

@register_features('attacks-pins')
class Pins(AndMore):
    "Own and opposing pieces that stand alone between their king and a slider of the other side"
    planes = AttackMaps.planes + 2
    def more(self, board, counts):
        rays = self.sight(board)[-8:].permute(2, 0, 1).long()        # (B, 8, 81): the nearest piece each way
        sliders = self.table.view(20, 29, 28)[12:].sum(2).bool()     # (8, 29): what slides towards the square
        for side in (0, 1):
            own = lambda code: (code > 14*side) & (code <= 14 + 14*side)
            king = rays == 8 + 14*side
            # the ray opposite to each: a slider of the other side there, the king here
            behind = rays[:, OPPOSITE]
            attacked = sliders[OPPOSITE][torch.arange(8, device=board.device)[:, None], behind] & ~own(behind) & (behind > 0)
            yield ((king & attacked).any(1)) & own(board)

@register_features('attacks-kings')
class Kings(AndMore):
    "Squares next to each king, with attackers minus defenders"
    planes = AttackMaps.planes + 4
    def more(self, board, counts):
        every = counts.sum(3)
        for side in (0, 1):
            near = counts[:, :, side, KINDS.index('K')] > 0
            yield near
            yield near*(every[:, :, 1 - side] - every[:, :, side])/4

@register_features('attacks-camp')
class Camps(AndMore):
    "How many rows it is to each side's promotion zone"
    planes = AttackMaps.planes + 2
    def more(self, board, counts):
        row = torch.arange(81, device=board.device).div(9, rounding_mode='floor').expand(len(board), 81)
        yield (row - 2).clamp(min=0)/6
        yield (6 - row).clamp(min=0)/6


# --- Arms: value heads of their own

def value_head(name, hidden=64, dropout=0.):
    "A `ValueHead` of another width, or with dropout before its last layer"
    def make(channels):
        head = ValueHead(channels, hidden)
        if dropout: head.mlp.insert(2, nn.Dropout(dropout))
        return head
    register_head(name)(make)

value_head('value-16', 16); value_head('value-256', 256); value_head('value-drop', dropout=0.5)

POOLS = {'maximum': (64, lambda x: x.amax(2)), 'squares': (4, lambda x: x.flatten(1))}

class Pooled(ValueHead):
    "A `ValueHead` that sees the board as one of `POOLS` does, by so many channels; `squares`: each by itself"
    def __init__(self, channels, pool):
        hidden, pooled = POOLS[pool]
        super().__init__(channels, hidden)
        self.pool = pooled
        self.mlp = nn.Sequential(nn.Linear(81*hidden if pool == 'squares' else hidden, 64), nn.ReLU(), nn.Linear(64, 1))

def pooled_head(pool): register_head(f'value-{pool}')(lambda channels: Pooled(channels, pool))

for pool in POOLS: pooled_head(pool)

VALUES = {
    'as it is': {}, 'weight 0.03': dict(value_loss_ratio=0.03), 'weight 0.3': dict(value_loss_ratio=0.3),
    'weight 1': dict(value_loss_ratio=1.), 'head of 16': dict(value_head='value-16'), 'head of 256': dict(value_head='value-256'),
    'dropout 0.5': dict(value_head='value-drop'), 'mean alone': dict(value_head='value_mean'),
    'maximum alone': dict(value_head='value-maximum'), 'squares apart': dict(value_head='value-squares'),
    'averaged, 0.99': dict(ema_decay=0.99),
    'half evals': dict(value_result_weight=0.5), 'evals alone': dict(value_result_weight=0.),
    'evals, averaged': dict(value_result_weight=0.3, ema_decay=0.99, value_loss_ratio=0.3),
    'half of the epochs': dict(epoch=2), 'weight decay 0.1': dict(weight_decay=0.1)}
SHOWN = {name: dict(input_features=name) for name in ('pieces', 'counts', 'attacks')}
LONGER = {'pieces for 5 epochs': dict(input_features='pieces', epoch=5)}      # of 4: far more than attacks cost
MORE = {name: dict(input_features=name) for name in ('attacks-pins', 'attacks-kings', 'attacks-camp')}
RATES = {'resnet': 0.004, 'mlp-mixer': 0.002, 'vit': 0.001}

def arms_of(study, net):
    "Name → options"
    if study == 'value': return {name: dict(input_features='attacks') | options for name, options in VALUES.items()}
    return SHOWN | LONGER | (MORE if net == 'resnet' else {})

# --- A run

FIGURES = ('policy_loss', 'top1', 'top5', 'value_loss', 'value_accuracy', 'brier', 'baseline_brier')

def figures(found): return {k: round(found[k], 5) for k in FIGURES}

def run(job, args):
    "Train one arm with one seed; its figures on rows that it was not trained on"
    torch.set_num_threads(1)
    options = dict(stage='3', stage3_data_path=args.rows, test_ratio=0.2, epoch=args.epochs, batch_size=args.batch,
                   model_architecture=job['net'], model_size='tiny', learning_ratio=RATES[job['net']]*(args.batch/128)**0.5,
                   seed=job['seed'], value_loss_ratio=0.1, input_cache_mode='memory', gpu=args.gpu)
    cfg = LearnConfig(**{**options, **job['options']})
    torch.manual_seed(cfg.seed)
    backbone, silent = backbone_of(cfg), lambda text: None
    loop, _ = stage_loop(cfg, STAGES['3'], backbone, make_accelerator(cfg.gpu, 'fp32'), say=silent)
    began = time.perf_counter()
    try:
        loop.fit()
        last, seconds, found = loop.history[-1], time.perf_counter() - began, {}
        found['train'] = {k: round(last[f'train/{k}'], 5) for k in FIGURES if f'train/{k}' in last}
        found['held'] = figures({k.removeprefix('valid/'): v for k, v in last.items() if k.startswith('valid/')})
        if args.other:
            source = source_maker(cfg, STAGES['3'], loop.device, silent)(args.other, STAGES['3'].columns)
            found['other'] = figures(loop.evaluate(source)); source.close()
    finally: close_sources(loop)
    return {'kind': 'run', 'study': args.study, **job, 'rows': loop.train.total_rows, 'epochs': cfg.epoch, 'batch': args.batch,
            'steps': loop.step, 'seconds': round(seconds, 2), **found}

def jobs_of(args):
    "Seed by seed, so that what a budget leaves is complete for fewer seeds"
    return [dict(net=net, arm=arm, seed=seed, options=options) for seed in range(args.seeds) for net in args.nets
            for arm, options in arms_of(args.study, net).items() if not args.arms or arm in args.arms]

def run_all(args, say):
    "All runs, some at a time"
    began, jobs = time.perf_counter(), jobs_of(args)
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context('spawn')) as pool:
        waiting = {}
        def more():
            while jobs and len(waiting) < args.jobs and time.perf_counter() - began < args.budget:
                job = jobs.pop(0)
                waiting[pool.submit(run, job, args)] = job
        more()
        while waiting:
            done = next(as_completed(waiting)); job = waiting.pop(done)
            try: say(done.result())
            except Exception as e: say({'kind': 'error', **job, 'error': f'{type(e).__name__}: {e}'})
            more()
    for job in jobs: say({'kind': 'skipped', **job})

# --- What it costs

def cost(args, say):
    "Seconds of bare steps of one net with attacks and without, in turns, and of making maps alone"
    with tempfile.TemporaryDirectory() as folder:
        prepare_stage3(sorted(GAMES.glob('*.csa'))[:2], folder)
        for net in args.nets:
            loops = {}
            for shown in ('pieces', 'attacks'):
                cfg = LearnConfig(stage='3', stage3_data_path=folder, test_ratio=0.2, stage3_batch_size=args.batch, model_size=args.size,
                                  model_architecture=net, input_features=shown, gpu=args.gpu, precision=args.precision)
                torch.manual_seed(0)
                loop, _ = stage_loop(cfg, STAGES['3'], backbone_of(cfg), make_accelerator(cfg.gpu, cfg.precision), say=lambda text: None)
                loops[shown] = loop, kept(loop)
            took = {shown: [] for shown in loops}
            for turn in range(args.rounds + 1):
                for shown, (loop, rows) in loops.items():
                    seconds = timed(loop.device, lambda: pure(loop, [rows]*args.steps)) / args.steps
                    if turn: took[shown].append(seconds)     # the first warms up
            ratio = [a/b for a, b in zip(took['attacks'], took['pieces'])]
            say({'kind': 'cost', 'net': net, 'size': args.size, 'batch': args.batch, 'device': str(loop.device),
                 'precision': cfg.precision, 'ms_pieces': round(1e3*statistics.median(took['pieces']), 3),
                 'ms_attacks': round(1e3*statistics.median(took['attacks']), 3),
                 'ratio': round(statistics.median(ratio), 4), 'ratios': [round(r, 3) for r in ratio]})
            for loop, _ in loops.values(): close_sources(loop)

# --- What the lines say

T95 = {1: math.nan, 2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}   # Student's t

def with_interval(values):
    "Mean ± half of its interval of 95 %"
    n = len(values)
    if n < 2: return ''.join(f'{v:.4f}' for v in values)
    return f'{statistics.mean(values):.4f}\u00a0±\u00a0{T95[n]*statistics.stdev(values)/math.sqrt(n):.4f}'

def cells(on, figure, by, first):
    "The mean of a figure on a set of rows, and its paired difference from the `first` arm, over the runs that have it"
    of = {seed: x[on][figure] for seed, x in by.items() if on in x}
    apart = [v - first[seed][on][figure] for seed, v in of.items() if on in first.get(seed, ())]
    return with_interval(list(of.values())), '' if by is first else with_interval(apart)

def table(lines, study, rows, figures=('top1', 'policy_loss', 'value_accuracy', 'brier')):
    "The runs of a study on so many rows as a table in Markdown; a difference is from its net's first arm, paired by seed"
    head = ['net', 'arm', 'seeds', *(f'{k}, {on}{what}' for k in figures for on in ('held out', 'other') for what in ('', ' − first'))]
    mine, out = [x for x in lines if x['kind'] == 'run' and (x['study'], x['rows']) == (study, rows)], []
    for net in dict.fromkeys(x['net'] for x in mine):
        of = {arm: {x['seed']: x for x in mine if (x['net'], x['arm']) == (net, arm)} for arm in arms_of(study, net)}
        of = {arm: by for arm, by in of.items() if by}
        first = next(iter(of.values()))
        out += [(net, arm, len(by), *(c for k in figures for on in ('held', 'other') for c in cells(on, k, by, first)))
                for arm, by in of.items()]
    return markdown_table(out, head)

def options():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = lambda text: text.split(',')
    p.add_argument('rows', nargs='*', help='shards of stage 3 to train on')
    p.add_argument('--other', help='shards of stage 3 to be judged on as well')
    p.add_argument('--study', choices=('shown', 'value'), default='shown')
    p.add_argument('--nets', type=names, default=['resnet', 'mlp-mixer', 'vit'])
    p.add_argument('--arms', type=names, help='only these')
    p.add_argument('--seeds', type=int, default=5)
    p.add_argument('--epochs', type=int, default=4)
    p.add_argument('--batch', type=int, default=128)
    p.add_argument('--jobs', type=int, default=2, help='runs at a time')
    p.add_argument('--budget', type=float, default=math.inf, metavar='SECONDS')
    p.add_argument('--gpu', help='as for learn_multi_stage')
    p.add_argument('--out', type=Path, help='file to which lines are added')
    p.add_argument('--cost', action='store_true')
    p.add_argument('--size', default='tiny')
    p.add_argument('--precision', default='fp32')
    p.add_argument('--steps', type=int, default=20)
    p.add_argument('--rounds', type=int, default=9)
    p.add_argument('--table', type=Path, nargs='+', metavar='FILE')
    return p.parse_args()

def main():
    args = options()
    if args.table:
        lines = [json.loads(line) for path in args.table for line in path.read_text().splitlines()]
        for study, rows in dict.fromkeys((x['study'], x['rows']) for x in lines if x['kind'] == 'run'):
            print(f'{study}, {rows:,} rows\n\n{table(lines, study, rows)}\n')
        return
    def say(line):
        text = json.dumps(line); print(text, flush=True)
        if args.out:
            with args.out.open('a') as f: f.write(text + '\n')
    if args.cost: cost(args, say)
    elif args.rows: run_all(args, say)
    else: sys.exit('ROWS, or --cost, or --table FILE, was expected')

if __name__ == '__main__': main()
