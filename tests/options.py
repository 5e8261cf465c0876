"What the rows of the option table share: tiny data, a run for each set of options, and what is compared"
import functools, inspect
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from maou_nb import StageThresholdNotMet, learn_multi_stage
from maou_nb.stages.rows import stage1_rows
from maou_nb.stages.rows import prepare_stage1, prepare_stage2, prepare_stage3
from maou_nb.data.shards import write_shard
from maou_nb.model.backbones import BACKBONES, SECTIONS
from maou_nb.train.checkpoints import load_tensors
from maou_nb.train.options import choices_of, is_bool
from samples import ONE_FILE

TINY = {'resnet': dict(resnet_channels=8, resnet_blocks=1),
        'mlp-mixer': dict(mixer_embed_dim=8, mixer_num_layers=1, mixer_token_dim=8, mixer_channel_dim=8, mixer_dropout=0.),
        'vit': dict(vit_embed_dim=8, vit_num_layers=1, vit_num_heads=2, vit_mlp_ratio=1., vit_dropout=0.)}

def variants():
    "Options of each backbone as it is, and with every value of those of its own options that are a choice"
    for name in BACKBONES:
        yield dict(model_architecture=name)
        for option, field in (SECTIONS[name].model_fields if name in SECTIONS else {}).items():
            for value in [True] if is_bool(field) else choices_of(field): yield {'model_architecture': name, option: value}

@pytest.fixture(scope='module')
def few(tmp_path_factory):
    "Shards of twelve games, in several files; and of six of them"
    out = tmp_path_factory.mktemp('few')
    games = ONE_FILE.read_text().split('/\n')
    for name, n in (('twelve', 12), ('six', 6)): (out/f'{name}.csa').write_text('/\n'.join(games[:n]))
    prepare_stage1(out/'stage1')
    write_shard(out/'half'/'half.feather', stage1_rows().slice(0, 500), 1, 'half of the rows')
    for name in ('twelve', 'six'):
        prepare_stage2(out/f'{name}.csa', out/name/'stage2', rows_per_shard=100)
        prepare_stage3(out/f'{name}.csa', out/name/'stage3', rows_per_shard=100)
    return out

@pytest.fixture(scope='module')
def run(few, tmp_path_factory):
    "A function that trains a tiny net with some options, once for each set of them, and returns all that came of it"
    defaults = {'stage': 3, 'gpu': 'cpu', 'stage1_threshold': 0., 'stage2_threshold': 0., 'epoch': 1,
                'test_ratio': 0.3, 'learning_ratio': 0.01, 'model_size': 'tiny',
                'stage1_data_path': few/'stage1', 'stage2_data_path': few/'twelve'/'stage2', 'stage3_data_path': few/'twelve'/'stage3'}
    @functools.cache
    def cached(items):
        given = dict(items)
        options = {**defaults, 'run_dir': tmp_path_factory.mktemp('run')/given.get('run_name', 'r'), **given}
        options = {k: v for k, v in options.items() if v != 'leave out'}
        if 'model_size' not in given:
            options |= {k: v for k, v in TINY.get(options.get('model_architecture', 'resnet'), {}).items()
                        if k not in given}
        try: result, error = learn_multi_stage(**options), None
        except StageThresholdNotMet as e: result, error = e.result, e
        stage = result.stages_completed[-1]
        tensors, about = load_tensors(result.checkpoint(stage.stage, 'last'))
        return SimpleNamespace(result=result, error=error, stage=stage, tensors=tensors, history=stage.history,
                               last=stage.history[-1], dir=Path(result.run_dir))
    again = lambda **options: cached(tuple(options.items()))
    again.afresh = lambda **options: cached.__wrapped__(tuple(options.items()))    # for runs under a patch
    return again

def shape(r, part): return next(tuple(t.shape) for k, t in r.tensors.items() if part in k and k.endswith('weight'))
def params(r): return r.stage.parameters
def weights(r): return torch.cat([t.flatten() for k, t in sorted(r.tensors.items()) if k.startswith('net.') and t.is_floating_point()])
def moved(a, b): return not torch.equal(weights(a), weights(b))
def blocks(r): return len({k.split('.')[3] for k in r.tensors if k.startswith('net.backbone.blocks')})

def row(f):
    "Register a check under the name of its option in its file's ROWS (one begins like a pytest test, hence the underscore)"
    f.__globals__.setdefault('ROWS', {})[f.__name__.lstrip('_')] = f
    return f

def check(f, request):
    "Call a row with the fixtures it names"
    f(**{n: request.getfixturevalue(n) for n in inspect.signature(f).parameters})
