"What a run that goes on refuses, preflight refuses in the same words; nothing is begun, or written, before"
import hashlib, json, shutil

import pytest

from maou_nb import Callback, OptionError, compare, evaluate, find_lr, learn_multi_stage, load_run, preflight
from maou_nb.front.options import make_config
from maou_nb.data.files import FileError
from maou_nb.judge.watch import film_strip
from maou_nb.stages.rows import prepare_stage2, prepare_stage3
from maou_nb.train.options import about, choices_of, config_class
from samples import ONE_FILE, thinned

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

@pytest.mark.parametrize('part', thinned([0, 1], 2))
def test_each_option_that_cannot_change_is_refused_at_both_doors(run, part):
    (out, options), asked = run, 0
    before = state(out/'run')
    assert 'goes on' in repr(preflight(**options)) and not bad(options)
    for name in FIXED[part::2]:
        for value in others(name, getattr(make_config(**options), name)):
            changed = {**options, name: value}
            said = refused(changed)
            if f'{name}: ' not in said: continue           # refused for what it is, or of a net that this is not
            assert said in bad(changed), name
            asked += 1
            break
    assert asked >= 12, asked      # of each half
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

def test_rows_that_are_judged_on_from_now_on(run, tmp_path):
    "Whatever else of a checkpoint does not fit then, the rows are what changed"
    out, options = run
    begun = {k: v for k, v in options.items() if k != 'stage3_validation_data_path'} | {'run_dir': tmp_path/'run'}
    learn_multi_stage(**begun)
    more = {**begun, 'stage3_validation_data_path': out/'more', 'epoch': 2}
    assert refused(more).startswith('stage3_validation_data_path: these are not the rows') and refused(more) in bad(more)

def test_places_that_are_not_the_runs(run, tmp_path):
    out, options = run
    shutil.copytree(out/'run', tmp_path/'run')
    learn_multi_stage(**{**options, 'run_dir': tmp_path/'other', 'seed': 1})
    moved = {**options, 'run_dir': tmp_path/'run', 'model_dir': tmp_path/'new', 'epoch': 2}
    assert refused(moved).startswith('model_dir: ') and refused(moved) in bad(moved)
    shutil.copy(tmp_path/'other'/'run.json', tmp_path/'run')
    foreign = {**options, 'run_dir': tmp_path/'run', 'epoch': 2}
    assert 'of another run' in refused(foreign) and refused(foreign) in bad(foreign)

def test_rows_of_a_stage_that_is_finished(run, tmp_path):
    out, options = run
    for name in ('rows', 'other'): prepare_stage2(out/f'{name}.csa', tmp_path/name)
    both = {**options, 'stage': '2,3', 'stage2_data_path': tmp_path/'rows', 'stage2_threshold': 0., 'stage2_max_epochs': 1,
            'stage2_test_ratio': 0.2, 'run_dir': tmp_path/'run'}
    learn_multi_stage(**both)
    changed = {**both, 'stage2_data_path': tmp_path/'other', 'epoch': 2}
    assert refused(changed).startswith('stage2_data_path: these are not the rows') and 'stage2_data_path: these are not' in bad(changed)

def test_a_result_of_another_run_is_named(run, tmp_path):
    out, options = run
    learn_multi_stage(**{**options, 'run_dir': tmp_path/'run', 'seed': 1})
    shutil.copy(out/'run'/'result.json', tmp_path/'run')
    with pytest.raises(FileError, match='result.json is of another run'): load_run(tmp_path/'run')
    learn_multi_stage(**{**options, 'run_dir': tmp_path/'run', 'seed': 1})
    assert load_run(tmp_path/'run').run == json.loads((tmp_path/'run'/'run.json').read_text())['id']

def test_rows_that_lie_where_a_run_had_others(run, tmp_path):
    out, options = run
    shutil.copytree(out/'more', tmp_path/'live')
    changed = {'stage3_validation_data_path': None, 'stage3_data_path': tmp_path/'live', 'run_dir': tmp_path/'run'}
    result = learn_multi_stage(**{**options, **changed})
    assert 'have changed since' not in evaluate(result).on
    prepare_stage3(out/'other.csa', tmp_path/'live')
    assert 'these are other rows than its run had' in evaluate(result).on
    assert 'have changed since' not in evaluate(result, out/'other').on      # they were asked for

def test_a_trial_says_that_it_begins_anew(run, capsys):
    _, options = run
    find_lr(steps=2, **options)
    assert 'resume_from: a trial begins anew' in capsys.readouterr().out

def test_watched_lines_that_show_nothing_are_left_out(run, tmp_path):
    out, options = run
    learn_multi_stage(**{**options, 'run_dir': tmp_path/'run', 'watched_positions': ['startpos']})
    strip = film_strip(tmp_path/'run')
    good = (tmp_path/'run'/'watched.jsonl').read_text()
    row = json.loads(good.splitlines()[0])
    odd = [{'sfen': 'not a position'}, {'sfen': ''}, {'moves': {'zz': .5}}, {'moves': {'5i5h+': -1.0}}, {'value': 7.0}]
    (tmp_path/'run'/'watched.jsonl').write_text(good + ''.join(json.dumps({**row, **o}) + '\n' for o in odd))
    with pytest.warns(UserWarning, match='lines show no position'): again = film_strip(tmp_path/'run')
    assert again.drawing() == strip.drawing()

class Done(Callback):
    def __init__(self): self.done = False

def test_what_is_no_method_is_refused_at_both_doors(run):
    _, options = run
    assert 'callbacks: Done.done is False' in repr(preflight(callbacks=[Done()], **options))
    with pytest.raises(OptionError, match='callbacks: Done.done is False; a method was expected'):
        learn_multi_stage(callbacks=[Done()], **options)

def test_a_comparison_shows_what_the_checkpoints_hold(run, tmp_path):
    out, options = run
    learn_multi_stage(**{**options, 'run_dir': tmp_path/'run', 'seed': 1})
    shown = compare(out/'run', tmp_path/'run').figures()
    for spoil in (lambda p: shutil.copy(out/'run'/'history.jsonl', p), lambda p: p.unlink()):
        spoil(tmp_path/'run'/'history.jsonl')
        assert compare(out/'run', tmp_path/'run').figures() == shown
