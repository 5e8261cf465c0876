"""Two recipes against the README's settings, on the sample games, at equal time

python studies/recipes/run.py [--seconds 60] [--seeds 1 2 3 4 5] [--explore] [--work FOLDER]
The machine should be quiet: seconds are measured once for each arm, and become steps. --explore tries each change of TRIED in
the same way; nbs/guides/89_recipes.ipynb says what of it was done, and is the report.
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
MUON = dict(optimizer='muon', learning_ratio=0.03)
TRIED = {       # on one seed each, at equal positions; what was kept is in PRESETS
    'resnet': {
        'lr 0.012': dict(learning_ratio=0.012), 'muon': MUON, 'muon 0.06': MUON | dict(learning_ratio=0.06),
        'batch 64': MUON | dict(batch_size=64), 'mirrored': MUON | dict(mirror_augmentation=True),
        'joint': MUON | dict(auxiliary=('2',)), 'value less': MUON | dict(value_loss_ratio=0.5),
        'squeeze and excitation': MUON | dict(resnet_squeeze_excitation=True), 'weight decay': MUON | dict(weight_decay=0.3)},
    'vit': {
        'muon 0.005': MUON | dict(learning_ratio=0.005), 'muon 0.015': MUON | dict(learning_ratio=0.015), 'muon': MUON,
        'batch 64': MUON | dict(learning_ratio=0.015, batch_size=64), 'value less': MUON | dict(learning_ratio=0.015, value_loss_ratio=0.5),
        'relative': MUON | dict(learning_ratio=0.015, vit_position='relative')}}

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seconds', type=float, default=60)
    parser.add_argument('--seeds', type=int, nargs='+', default=[1, 2, 3, 4, 5])
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
