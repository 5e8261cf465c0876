"What a run that goes on refuses, preflight refuses in the same words; nothing is begun, or written, before"
import hashlib

import pytest

from maou_nb import OptionError, learn_multi_stage, preflight
from maou_nb.front.options import make_config
from maou_nb.stages.rows import prepare_stage3
from maou_nb.train.options import about, choices_of, config_class
from samples import ONE_FILE

TINY = dict(stage=3, gpu='cpu', model_architecture='vit', model_size='tiny', vit_embed_dim=8, vit_num_layers=1, vit_num_heads=2,
            vit_mlp_ratio=1., epoch=1, batch_size=256, resume_from='latest')
FIXED = [n for n, f in config_class().model_fields.items() if about(f).resume == 'fixed']

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "Rows, and options of a run on them that has ended, and goes on"
    out, games = tmp_path_factory.mktemp('gone'), ONE_FILE.read_text().split('/\n')
    for name, part in (('rows', games[:12]), ('more', games[12:16]), ('other', games[16:20])):
        (out/f'{name}.csa').write_text('/\n'.join(part))
        prepare_stage3(out/f'{name}.csa', out/name)
    options = {**TINY, 'stage3_data_path': out/'rows', 'stage3_validation_data_path': out/'more', 'run_dir': out/'run'}
    learn_multi_stage(**options)
    return out, options

def others(name, now):
    "Values of an option that are not the run's"
    field = config_class().model_fields[name]
    yield from (c for c in choices_of(field) if c != now)
    if isinstance(now, bool): yield not now
    elif isinstance(now, int): yield from (now + 1, 2*now)
    elif isinstance(now, float): yield from (now/2 + 0.05, now/2)
    elif now is None: yield from (True, 2, 0.5, 'x')

def state(folder): return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob('*')) if p.is_file()}

def refused(options):
    "What a run that goes on says, if it is refused"
    try: learn_multi_stage(**options)
    except OptionError as e: return str(e)
    return ''

def bad(options): return '\n'.join(text for _, _, text, mark in preflight(**options).lines if mark == 'bad')

def test_each_option_that_cannot_change_is_refused_at_both_doors(run):
    (out, options), asked = run, 0
    before = state(out/'run')
    assert 'goes on' in repr(preflight(**options)) and not bad(options)
    for name in FIXED:
        for value in others(name, getattr(make_config(**options), name)):
            changed = {**options, name: value}
            said = refused(changed)
            if f'{name}: ' not in said: continue           # refused for what it is, or of a net that this is not
            assert said in bad(changed), name
            asked += 1
            break
    assert asked >= 12, asked
    assert state(out/'run') == before, {p.name for p, v in state(out/'run').items() if before.get(p) != v}

def test_other_rows_are_refused_at_both_doors(run):
    out, options = run
    before = state(out/'run')
    for name in ('stage3_data_path', 'stage3_validation_data_path'):
        said = refused({**options, name: out/'other', 'epoch': 2})
        assert said.startswith(f'{name}: these are not the rows'), said
        assert said in bad({**options, name: out/'other', 'epoch': 2})
    none = {**options, 'epoch': 2} | {'stage3_validation_data_path': None}
    assert refused(none).startswith('stage3_validation_data_path: these are not the rows') and refused(none) in bad(none)
    changed = {k for k, v in state(out/'run').items() if before.get(k) != v}
    assert {p.name for p in changed} <= {'config.json', 'run.json'}, changed
