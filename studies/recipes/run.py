"""Two recipes against the README's settings, on the sample games, at equal time

python studies/recipes/run.py [--seconds 60] [--seeds 5] [--explore] [--work FOLDER]
The machine should be quiet: seconds are measured once for each arm, and become steps.
"""
import argparse
import os
from pathlib import Path

from maou_nb.front.options import PRESETS
from maou_nb.front.study import study
from maou_nb.stages.rows import prepare_stage3

HOME = Path(__file__).absolute().parent
SAMPLES = HOME.parents[1]/'samples'/'games'
README = dict(model_size='tiny', learning_ratio=0.004, batch_size=128)
TRIED = {
    'resnet': {
        'lr 0.01': dict(learning_ratio=0.01),
        'lr 0.02': dict(learning_ratio=0.02), 'mirrored': dict(learning_ratio=0.01, mirror_augmentation=True),
        'muon': dict(optimizer='muon', learning_ratio=0.01),
        'muon 0.02': dict(optimizer='muon', learning_ratio=0.02, mirror_augmentation=True),
        'batch 64': dict(learning_ratio=0.01, batch_size=64), 'no stages': dict(learning_ratio=0.01, weight_decay=0.1)},
    'vit': {
        'lr 0.002': dict(learning_ratio=0.002), 'lr 0.001': dict(learning_ratio=0.001),
        'muon': dict(optimizer='muon', learning_ratio=0.004),
        'muon 0.01': dict(optimizer='muon', learning_ratio=0.01),
        'muon mirrored': dict(optimizer='muon', learning_ratio=0.004, mirror_augmentation=True)}}

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seconds', type=float, default=60)
    parser.add_argument('--seeds', type=int, default=5)
    parser.add_argument('--explore', action='store_true')
    parser.add_argument('--nets', nargs='+', default=['resnet', 'vit'])
    parser.add_argument('--work', type=Path, default=HOME/'scratch')
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    os.chdir(args.work)
    if not Path('shards').exists(): prepare_stage3(SAMPLES, 'shards')
    for net in args.nets:
        base = dict(stage3_data_path='shards', model_architecture=net, gpu='cpu', input_cache_mode='memory', **README)
        arms = {'README': {}, **(TRIED[net] if args.explore else {'recipe': PRESETS[f'tuned-{net}']})}
        print(study(f'explore-{net}' if args.explore else net, base, arms, args.seeds, {'seconds': args.seconds},
                    folder=args.work if args.explore else HOME))

if __name__ == '__main__': main()
