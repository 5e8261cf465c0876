"""How much of pure compute a training epoch reaches: `python benchmarks/train.py [--rounds N] [--batch B] [--json]`

For each stage and architecture an epoch through the loop, with loader, decoding, losses, metrics, clipping and
callbacks, against as many steps of as many rows of forward, loss, backward and optimizer on one decoded batch. Both are
timed in turn, and ratios are taken round by round, so that a noisy machine disturbs both alike. With a GPU: bf16,
compilation and rows on the device each on and off, and the share of the peak of a large matrix product.
"""
import argparse, json, math, resource, statistics, tempfile, time
from dataclasses import replace
from pathlib import Path

import torch

from maou_nb.stages.rows import prepare_stage1, prepare_stage2, prepare_stage3
from maou_nb.model.backbones import flops_per_position
from maou_nb.train.options import LearnConfig
from maou_nb.train.loop import Means, best_device, make_accelerator
from maou_nb.train.runner import close_sources, stage_loop
from maou_nb.stages.stage import STAGES

GAMES = Path(__file__).resolve().parents[1]/'samples'/'games'
# about 10,000 positions/s on two cores
SIZES = {'resnet': dict(resnet_channels=32, resnet_blocks=2),
         'mlp-mixer': dict(mixer_embed_dim=32, mixer_num_layers=2, mixer_token_dim=32, mixer_channel_dim=64,
                           mixer_dropout=0.),
         'vit': dict(vit_embed_dim=32, vit_num_layers=1, vit_num_heads=2, vit_mlp_ratio=2., vit_dropout=0.)}

def synchronise(device):
    if device.type == 'cuda': torch.cuda.synchronize(device)

def timed(device, f):
    synchronise(device); began = time.perf_counter(); f(); synchronise(device)
    return time.perf_counter() - began

def kept(loop):
    "A decoded batch in memory of its own"
    batch = next(loop.batches(loop.train))
    return replace(batch, room={}, board=batch.board.clone(), hands=batch.hands.clone(),
                   targets={k: t.clone() for k, t in batch.targets.items()})

def of_an_epoch(loop, batch):
    "`batch` as often as an epoch has batches; the last has fewer rows"
    full, rest = divmod(loop.train.total_rows, len(batch))
    return [batch]*full + [batch.rows(slice(rest))]*bool(rest)

def pure(loop, batches, optimizer=None):
    "Steps on decoded batches and nothing else, by the loop's optimizer or another one"
    loop.net.train()
    optimizer = optimizer or loop.optimizer
    for batch in batches:
        with loop.accelerator.autocast(): outputs = loop.net(batch.board, batch.hands)
        loop.accelerator.backward(loop.stage.loss(outputs, batch, loop.cfg)['loss'])
        loop.accelerator.clip_grad_norm_(loop.net.parameters(), 1.)
        optimizer.step(); optimizer.zero_grad()

def epoch(loop):
    "An epoch of training as the loop does it"
    loop.batch, loop.means, loop.wait = 0, Means(loop.stage, loop.device), 0.
    loop.train_epoch()

def measure(cfg, stage, rounds, least=20_000):
    "Rates and shares of one stage under `cfg`"
    torch.manual_seed(0)
    from maou_nb.model.backbones import backbone_of
    accelerator = make_accelerator(cfg.gpu, cfg.precision)
    backbone = backbone_of(cfg)
    loop, _ = stage_loop(cfg, STAGES[str(stage)], backbone, accelerator, say=lambda text: None)
    rows = loop.train.total_rows
    repeats = math.ceil(least / rows)                 # of a stage with few rows several epochs
    batch = kept(loop)
    batches = of_an_epoch(loop, batch)*repeats
    for _ in range(2): pure(loop, [batch]*4 + batches[-1:])      # a shorter one may be compiled apart
    epoch(loop)
    if loop.device.type == 'cuda': torch.cuda.reset_peak_memory_stats(loop.device)
    whole, bare, waits = [], [], []
    for _ in range(rounds):
        bare.append(timed(loop.device, lambda: pure(loop, batches)))
        waits.append(0.)
        def epochs():
            for _ in range(repeats): epoch(loop); waits[-1] += loop.wait
        whole.append(timed(loop.device, epochs)); waits[-1] /= whole[-1]
    peak = (torch.cuda.max_memory_allocated(loop.device) if loop.device.type == 'cuda'
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*1024)
    close_sources(loop)
    rate = lambda times: rows*repeats / statistics.median(times)
    return dict(architecture=cfg.model_architecture, stage=stage, batch=loop.settings.batch_size,
                device=str(loop.device), precision=accelerator.mixed_precision, compiled=loop.settings.compile,
                cache=cfg.input_cache_mode,
                pure=round(rate(bare)), epoch=round(rate(whole)),
                ratio=round(statistics.median(b / w for b, w in zip(bare, whole)), 3),
                loader_wait=round(statistics.median(waits), 4), peak_mb=round(peak / 1e6),
                flops=flops_per_position(backbone))

def matmul_peak(device, dtype, n=8192):
    "Floating-point operations a second of a large matrix product, the best of three runs"
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3): a @ b
    return 10 * 2*n**3 / min(timed(device, lambda: [a @ b for _ in range(10)]) for _ in range(3))

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rounds', type=int, default=5); parser.add_argument('--batch', type=int, default=256)
    parser.add_argument('--stage', type=int, choices=(1, 2, 3))
    parser.add_argument('--architecture', choices=SIZES)
    parser.add_argument('--json', action='store_true')
    args = parser.parse_args()
    if args.rounds < 1: parser.error('--rounds: at least 1 was expected')
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        prepare_stage1(d/'stage1'); prepare_stage2(GAMES, d/'stage2'); prepare_stage3(GAMES, d/'stage3')
        common = dict(stage='all', batch_size=args.batch, stage1_batch_size=args.batch,
                      **{f'stage{n}_data_path': str(d/f'stage{n}') for n in (1, 2, 3)})
        runs = [(s, LearnConfig(model_architecture=a, model_size='tiny', **SIZES[a], **common)) for a in SIZES
                for s in (1, 2, 3) if args.stage in (None, s) and args.architecture in (None, a)]
        if best_device().type == 'cuda':
            peak = matmul_peak(best_device(), torch.bfloat16)
            print(f'matmul peak, bf16: {peak / 1e12:.0f} TFLOP/s')
            big = dict(common, batch_size=4096, stage1_batch_size=None, model_size='base')
            runs += [(3, LearnConfig(model_architecture=a, precision=p, compilation=c, input_cache_mode=m, **big))
                     for a in SIZES
                     for p, c, m in (('fp32', False, 'file'), ('bf16', False, 'file'), ('bf16', True, 'file'),
                                     ('bf16', True, 'device'))]
        else: print('no GPU: bf16, compilation and rows on the device are not measured')
        for stage, cfg in runs:
            r = measure(cfg, stage, args.rounds)
            # forward, and twice as much backward
            if best_device().type == 'cuda': r['of_peak'] = round(3*r['flops']*r['epoch'] / peak, 4)
            print(json.dumps(r) if args.json
                  else '  '.join(f'{k} {v:,}' if isinstance(v, int) and not isinstance(v, bool) else f'{k} {v}'
                                 for k, v in r.items()), flush=True)

if __name__ == '__main__': main()
