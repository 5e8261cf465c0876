"""The three architectures at equal parameters and equal compute

`python benchmarks/architectures.py [--epochs 12 2 4] [--games FOLDER] [--nets vit]`

Each trains the three stages one after the other on the sample games, the same rows in the same batches and for the
same epochs, at the best of a few learning rates for stage 2 after one epoch. A row a net: parameters and MFLOPs per
position of its backbone, what each stage reached, seconds, positions/s.
"""
import argparse, contextlib, io, sys, tempfile, time
from pathlib import Path

from maou_nb import StageThresholdNotMet, learn_multi_stage, prepare_stage1, prepare_stage2, prepare_stage3
from maou_nb.model.backbones import flops_per_position, parameter_count
from maou_nb.train.options import LearnConfig
from maou_nb.model.backbones import backbone_of

NETS = {'resnet': dict(resnet_channels=48, resnet_blocks=4),
        'mlp-mixer': dict(mixer_embed_dim=72, mixer_num_layers=6, mixer_token_dim=64, mixer_channel_dim=144),
        'vit': dict(vit_embed_dim=96, vit_num_layers=2, vit_num_heads=4, vit_mlp_ratio=2.75)}

def train(**options):
    "The result of one stage, whether or not it met a threshold; what it says is not shown"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try: result = learn_multi_stage(**options)
        except StageThresholdNotMet as e: result = e.result
    if result.stopped: sys.exit(result.stopped)      # half a run is no figure
    return result

def compare(games, epochs, rates, nets=tuple(NETS), shown='attacks'):
    "A row for each net"
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        prepare_stage1(d/'stage1'); prepare_stage2(games, d/'stage2'); prepare_stage3(games, d/'stage3')
        common = dict(model_size='tiny', input_features=shown, gpu='cpu', batch_size=128, stage1_batch_size=16, stage2_test_ratio=0.2,
                      stage1_threshold=1., stage2_threshold=1., value_loss_ratio=0.1, lr_scheduler='warmup_cosine_decay',
                      stage1_max_epochs=epochs[0], stage2_max_epochs=epochs[1], epoch=epochs[2],
                      **{f'stage{n}_data_path': str(d/f'stage{n}') for n in (1, 2, 3)})
        for name in nets:
            net = dict(common, model_architecture=name, **NETS[name])
            tried = {}
            for rate in rates:
                trial = train(**{**net, 'stage': 2, 'stage2_max_epochs': 1, 'learning_ratio': rate,
                                 'run_dir': str(d/f'{name}-try-{rate}')})
                tried[rate] = trial[2].achieved_accuracy
            rate, before, began, row = max(tried, key=tried.get), {}, time.perf_counter(), {}
            for n in (1, 2, 3):
                result = train(**net, stage=n, learning_ratio=rate, run_dir=str(d/f'{name}-{n}'), **before)
                before = {'resume_backbone_from': str(result.checkpoint(n, 'last'))}
                row[n] = result[n]
            backbone = backbone_of(LearnConfig(**net))
            speed = row[3].history[-1]['positions_per_second']
            yield (name, f'{parameter_count(backbone):,}', f'{flops_per_position(backbone) / 1e6:.1f}',
                   f'{rate:g}', f'{row[1].achieved_accuracy:.4f}', f'{row[2].achieved_accuracy:.4f}',
                   f"{row[3].metrics['top1']:.4f}", f"{row[3].metrics['top5']:.4f}",
                   f"{row[3].metrics['value_accuracy']:.4f}", f"{row[3].metrics['policy_loss']:.3f}",
                   f'{time.perf_counter() - began:.0f}', f'{speed:,.0f}')

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--epochs', type=int, nargs=3, default=(12, 2, 4), help='of stages 1, 2 and 3')
    parser.add_argument('--games', default=Path(__file__).resolve().parents[1]/'samples'/'games')
    parser.add_argument('--rates', type=float, nargs='+', default=(0.001, 0.002, 0.004, 0.008))
    parser.add_argument('--nets', nargs='+', choices=NETS, default=tuple(NETS))
    parser.add_argument('--shown', default='attacks', help='input_features; default attacks')
    args = parser.parse_args()
    heads = ('net', 'parameters', 'MFLOPs', 'rate', 'stage 1 accuracy', 'stage 2 F1', 'top-1', 'top-5',
             'value accuracy', 'policy loss', 'seconds', 'positions/s')
    print('| ' + ' | '.join(heads) + ' |\n' + '|---'*len(heads) + '|')
    for row in compare(args.games, args.epochs, args.rates, args.nets, args.shown): print('| ' + ' | '.join(row) + ' |', flush=True)
