"""How near the rate that `find_lr` suggests is to the best of a swept grid

python benchmarks/find_lr.py [--only sweep,find] [--nets resnet mlp-mixer vit] [--stages 3] [--seeds 10] [--grid-seeds 2] [--out FILE]
Small nets of three architectures on the sample games. `sweep` trains a few hundred steps at each rate of a grid, whose factor is 2,
as a run does; `find` asks `find_lr` on fresh seeds. Each prints a line of JSON, and lines that are in FILE already are not made again.
At the end stands a table: the best rate of the grid, and each suggestion as a multiple of it.
"""
import argparse, json, platform, tempfile, time
from math import prod
from pathlib import Path

import torch

from maou_nb.front.learn import new_backbone
from maou_nb.stages.rows import prepare_stage
from maou_nb.stages.stage import STAGES
from maou_nb.train.loop import make_accelerator
from maou_nb.train.options import LearnConfig
from maou_nb.train.runner import close_sources, stage_loop

GAMES = Path(__file__).resolve().parents[1]/'samples'/'games'
NETS = {'resnet': dict(resnet_channels=32, resnet_blocks=2), 'mlp-mixer': dict(mixer_embed_dim=32, mixer_num_layers=2),
        'vit': dict(vit_embed_dim=32, vit_num_layers=2, vit_num_heads=2)}
RATES = [2.5e-4*2**i for i in range(10)]       # to 0.128
STEPS, BATCH = 300, 32

def loop_of(net, stage, seed, data, rate=0.01, steps=STEPS):
    "The loop of a run of `steps` steps"
    own = {f'stage{stage}_data_path': str(data), f'stage{stage}_batch_size': BATCH, **NETS[net]}
    cfg = LearnConfig(stage=stage, gpu='cpu', seed=seed, learning_ratio=rate, max_steps=steps, warmup_steps=steps//10, test_ratio=0.04,
                      stage1_threshold=1., stage2_threshold=1., stage12_lr_scheduler='warmup_cosine_decay',
                      model_architecture=net, model_size='tiny', **own)
    return stage_loop(cfg, STAGES[stage], new_backbone(cfg), make_accelerator('cpu', 'fp32'), say=lambda text: None)[0]

def swept(net, stage, seed, data, rate):
    "The judged loss after a run at `rate`"
    loop = loop_of(net, stage, seed, data, rate)
    try: loop.fit()
    finally: close_sources(loop)
    return {'loss': loop.history[-1][f'{loop.judged_on}/loss']}

def found(net, stage, seed, data):
    "What `find_lr` finds"
    loop, began = loop_of(net, stage, seed, data), time.perf_counter()
    try: trial = loop.find_lr()
    finally: close_sources(loop)
    tried = {'valley': trial.valley, 'why': trial.why, 'tried': len(trial.rates)}
    return {'suggestion': trial.suggestion, **tried, 'seconds': round(time.perf_counter() - began, 1)}

def jobs(asked):
    "What is to be measured: dicts without their results"
    for stage in asked.stages:
        if 'sweep' in asked.only:
            yield from ({'kind': 'swept', 'stage': stage, 'net': n, 'seed': s, 'rate': r} for s in range(asked.grid_seeds)
                        for n in asked.nets for r in RATES)
        if 'find' in asked.only:
            yield from ({'kind': 'found', 'stage': stage, 'net': n, 'seed': s} for s in range(asked.seeds) for n in asked.nets)

def best_rate(lines, stage, net):
    "(the rate of the lowest mean loss, rate → mean loss)"
    losses = {}
    for x in lines:
        if (x['kind'], x.get('stage'), x.get('net')) == ('swept', stage, net): losses.setdefault(x['rate'], []).append(x['loss'])
    means = {r: sum(v)/len(v) for r, v in sorted(losses.items())}
    return (min(means, key=means.get) if means else None), means

def middle_rate(lines, stage, net):
    "The middle of the rates that the grid cannot tell from the best: their losses are within 0.02, and seeds differ by more"
    means = best_rate(lines, stage, net)[1]
    tied = [r for r, loss in means.items() if loss < min(means.values()) + 0.02]
    return prod(tied)**(1/len(tied))

def table(lines):
    "Best rates, and suggestions as multiples of them"
    for stage, net in dict.fromkeys((x['stage'], x['net']) for x in lines if 'net' in x):
        best, means = best_rate(lines, stage, net)
        if best is None: continue
        print(f'stage {stage} {net}: best {best:.2g};', ', '.join(f'{r:.2g}: {l:.3f}' for r, l in means.items()))
        mine = [x for x in lines if (x['kind'], x.get('stage'), x.get('net')) == ('found', stage, net)]
        told = [f'{x["suggestion"]/best:.2f}' if x['suggestion'] else 'refused' for x in mine]
        known = [x['suggestion']/best for x in mine if x['suggestion']]
        if known:
            off = best/middle_rate(lines, stage, net)
            print('  × best:', ' '.join(told), f'geometric mean {prod(known)**(1/len(known)):.2f},',
                  f'farthest {max(max(k, 1/k) for k in known):.2f};',
                  f'of the middle of those as good {max(max(k*off, 1/k/off) for k in known):.2f}')

def main():
    parse = argparse.ArgumentParser()
    parse.add_argument('--only', default='sweep,find', type=lambda s: s.split(','))
    parse.add_argument('--nets', nargs='+', default=[*NETS])
    parse.add_argument('--stages', nargs='+', default=['3'])
    parse.add_argument('--seeds', type=int, default=10)
    parse.add_argument('--grid-seeds', type=int, default=2)
    parse.add_argument('--out', type=Path)
    asked = parse.parse_args()
    torch.set_num_threads(1)
    lines = [json.loads(x) for x in asked.out.read_text().splitlines()] if asked.out and asked.out.exists() else []
    def keep(line):
        lines.append(line)
        print(json.dumps(line), flush=True)
        if asked.out:
            with open(asked.out, 'a') as f: f.write(json.dumps(line) + '\n')
    if not lines: keep({'kind': 'machine', 'torch': torch.__version__, 'threads': 1, 'python': platform.python_version()})
    folder = Path(tempfile.mkdtemp())
    for job in jobs(asked):
        if any(job.items() <= x.items() for x in lines): continue
        data = folder/job['stage']
        if not data.exists(): prepare_stage(job['stage'], None if job['stage'] == '1' else GAMES, data)
        about = {k: v for k, v in job.items() if k != 'kind'}
        keep(job | {'swept': swept, 'found': found}[job['kind']](data=data, **about))
    table(lines)

if __name__ == '__main__': main()
