"""Arguments of public functions that are no options of a run: each with odd values is a result, or one of our sentences

The functions and their parameters are found by reflection, so that a new one is asked, too.
"""
import concurrent.futures, inspect, math, time, warnings

from pathlib import Path

import pytest

import maou_nb
from maou_nb.front.options import make_config
from maou_nb.front.runs import comparison_chart
from maou_nb.show.plots import picture
from maou_nb import learn_multi_stage
from samples import ONE_FILE

OF_RUNS = {'learn_multi_stage', 'preflight', 'LearnPanel'}          # all they take are options
FUNCTIONS = [n for n in maou_nb.__all__ if inspect.isfunction(getattr(maou_nb, n))
             and not n.startswith('register_') and n not in OF_RUNS | {'option'}]
ODD = [0, -1, True, 1.5, math.nan, math.inf, 'x', '', ' ', None, [], [1], {}, (), object(), b'x', '\0', '\ud800', 'x'*300]
SMALL = dict(gpu='cpu', model_size='tiny', resnet_channels=4, resnet_blocks=1, batch_size=128)

def asked():
    "(function, parameter) of everything that takes a number, a text or several"
    for name in FUNCTIONS:
        for p in inspect.signature(getattr(maou_nb, name)).parameters.values():
            if p.kind is not p.VAR_KEYWORD: yield pytest.param(name, p.name, id=f'{name}-{p.name}')

@pytest.fixture(scope='module')
def run(tmp_path_factory, shards):
    "A short run of stage 1 that watched a position"
    folder = tmp_path_factory.mktemp('odd')/'run'
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return learn_multi_stage(**SMALL, stage='1', stage1_data_path=shards['stage1_data_path'], stage1_max_epochs=1,
                                 stage1_threshold=0., watched_positions=['startpos'], run_dir=str(folder))

def filled(name, run, shards, here, pool):
    "A call of the function that works"
    options = dict(SMALL, stage='1', stage1_data_path=shards['stage1_data_path'])
    records = dict(paths=ONE_FILE, folder=here/'out', executor=pool)
    players, short = [maou_nb.random_player(n) for n in 'ab'], dict(games=1, show=False, max_moves=4)
    searched = dict(base=dict(options, stage1_max_epochs=1, stage1_threshold=0.), space={'learning_ratio': (0.01, 0.02)})
    return {'search': dict(searched, trials=1, name='odd'), 'find_lr': dict(options, steps=3), 'overfit_one_batch': dict(options, steps=3),
            'load_run': dict(path=run.run_dir), 'load_net': dict(path=run.run_dir), 'predict': dict(net=run.checkpoint(), sfen='startpos'),
            'evaluate': dict(of=run, data=shards['stage1_data_path']), 'exam': dict(of=run), 'film_strip': dict(run=run),
            'show_results': dict(of=run, data=shards['stage1_data_path']), 'browse': dict(of=run, data=shards['stage1_data_path']),
            'export_onnx': dict(of=run.run_dir, folder_or_path=here/'onnx', precisions='fp32'),
            'attach': dict(run_dir=run.run_dir), 'compare': dict(runs=run.run_dir), 'tensorboard': dict(runs=run.run_dir),
            'show_position': dict(position='startpos'), 'summary': dict(of=maou_nb.load_net(run.run_dir).backbone),
            'net_player': dict(of=run.run_dir), 'random_player': {}, 'match': dict(short, a=players[0], b=players[1]),
            'ladder': dict(short, of=players), 'load_match': dict(folder=here), 'play_against': dict(of=players[0]),
            'size_table': dict(names=['resnet']), 'load_plugins': dict(names=()), 'prepare_stage1': dict(folder=here/'out'),
            'prepare_stage2': records, 'prepare_stage3': records, 'prepare_stage': dict(stage=2, **records),
            'random_stage2': dict(folder=here/'out', rows=20, scattered=1.), 'load_study': dict(path=here),
            'runs': dict(folder=Path(run.run_dir).parent), 'note': dict(run=run.run_dir, text='odd', tags='odd'),
            'study': dict(name='odd', base=dict(options, stage1_threshold=None), arms={'plain': {}}, seeds=1, budget={'steps': 1},
                          folder=here/'studies', show=False)}[name]

def call(f, given, name, value):
    "Call `f` with `value` in place of one argument"
    kind = inspect.signature(f).parameters[name].kind
    if kind is inspect.Parameter.VAR_POSITIONAL: return f(value, given[name])
    return f(**{**given, name: value})

def is_said(e):
    "Whether it is a sentence"
    return isinstance(e, (ValueError, OSError, TypeError)) and getattr(e, 'errno', None) is None and len(str(e)) > 30 and '\n' not in str(e)

@pytest.fixture
def no_tensorboard(monkeypatch):
    "It is started by none of this"
    from tensorboard import notebook
    monkeypatch.setattr(notebook, 'start', lambda text: None)

@pytest.fixture
def no_training(monkeypatch):
    "A study asks and writes, and trains none of its runs"
    from maou_nb.front.study import Study
    monkeypatch.setattr(Study, 'train', lambda *_: None)

@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name, parameter', asked())
def test_odd_arguments(name, parameter, run, shards, tmp_path, monkeypatch, no_tensorboard, no_training):
    monkeypatch.chdir(tmp_path)
    wrong, f = [], getattr(maou_nb, name)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        for i, value in enumerate(ODD):
            given, began = filled(name, run, shards, tmp_path/f'here{i}', pool), time.monotonic()
            try: call(f, given, parameter, value)
            except Exception as e:
                if not is_said(e): wrong.append(f'{parameter}={value!r:.40}: {type(e).__name__}: {e!s:.150}')
            allowed = 30 if name == 'export_onnx' else 5        # s; torch.export takes some
            if time.monotonic() - began > allowed: wrong.append(f'{parameter}={value!r:.40}: {time.monotonic() - began:.1f} s')
    left = [p.name for p in tmp_path.iterdir() if not p.name.startswith('here') and p.suffix in ('.feather', '.onnx')]
    assert not wrong and not left, '\n'.join([*wrong, *left])

def test_generators(shards, tmp_path, run):
    "A generator of paths is looked at more than once"
    folder = Path(shards['stage1_data_path'])
    assert maou_nb.evaluate(run, folder.glob('*.feather')).rows == maou_nb.evaluate(run, str(folder)).rows
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        made = maou_nb.prepare_stage2(Path(ONE_FILE).parent.glob(Path(ONE_FILE).name), tmp_path/'out', executor=pool)
    assert made.rows

def test_one_run_twice(run, monkeypatch):
    monkeypatch.chdir(Path(run.run_dir).parent)
    assert [*maou_nb.compare(run, './run').runs] == ['run']

def test_a_name_beside_a_folder(tmp_path, shards):
    options = dict(SMALL, stage='1', stage1_data_path=shards['stage1_data_path'], run_dir=str(tmp_path/'c1'))
    with pytest.raises(ValueError, match="run_name='c2'.*'c1'"): make_config(**options, run_name='c2')
    assert make_config(**options, run_name='c1').run_name == 'c1'

def test_names_in_a_picture():
    runs = {name: (None, {1: [{'epoch': 0, 'valid/loss': 1., 'valid/accuracy': 0.5}]}) for name in ('$x^{$', '_hidden')}
    fig = comparison_chart(runs).figure()
    assert len(fig.legends[0].get_texts()) == 2 and picture(fig, 'curves')

def test_an_export_into_a_file(tmp_path, run):
    (tmp_path/'notes.txt').write_text('kept')
    with pytest.raises(ValueError, match='a folder, or a name that ends in .onnx, was expected'):
        maou_nb.export_onnx(run.run_dir, tmp_path/'notes.txt')
    assert (tmp_path/'notes.txt').read_text() == 'kept'
