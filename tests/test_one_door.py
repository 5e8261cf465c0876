"""One door for all: whatever names a run is taken at every door, or one plain sentence says what is right

A run is named by its result, by its folder, by a checkpoint in it, or by the URL of either. Doors are found by reflection, so that
a new one is asked, too.
"""
import contextlib, importlib, inspect, io, shlex, shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

import maou_nb
from maou_nb import (attach, browse, compare, evaluate, export_onnx, learn_multi_stage, load_net, load_run, predict,
                     prepare_stage1, prepare_stage2, prepare_stage3, show_results, summary, tensorboard)
from maou_nb.data.files import as_path
from maou_nb.front import export
from maou_nb.model.heads import Net

KNIGHT = '9/9/9/9/4N4/9/9/9/9 b - 1'
NAMED = ['result', 'folder as text', 'folder as Path', 'checkpoint', 'URL of a folder', 'URL of a checkpoint']
TINY = dict(stage=1, stage1_threshold=0, stage1_max_epochs=1, model_size='tiny', resnet_channels=4, resnet_blocks=1, gpu='cpu')

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A run of stage 1, whose folder is also in a bucket: by each way to name it"
    out = tmp_path_factory.mktemp('door')
    prepare_stage1(out/'stage1')
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.chdir(out)
        result = learn_multi_stage(**TINY, stage1_data_path='stage1', run_dir='runs/one', watched_positions=KNIGHT)
    folder, far = Path(result.run_dir), as_path('memory://one-door/runs/one')
    for p in filter(Path.is_file, folder.rglob('*')):
        there = far/p.relative_to(folder).as_posix()
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_bytes(p.read_bytes())
    checkpoint = result.checkpoint()
    named = result, str(folder), folder, checkpoint, str(far), f'{far}/{checkpoint.relative_to(folder).as_posix()}'
    return dict(zip(NAMED, named))

@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    "A folder and a cache of its own; no server is started, and no file of ONNX compared"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('MAOU_NB_CACHE', str(tmp_path/'cache'))
    monkeypatch.setattr(importlib.import_module('tensorboard.notebook'), 'start', lambda words: shown.append(words))
    monkeypatch.setattr(export, 'write_onnx', lambda net, *rest: {'heads': len(net.heads)})
    shown = []
    return SimpleNamespace(path=tmp_path, shown=shown)

def front():
    "(name, function) of everything public that is one; what registers takes names alone"
    found = {name: getattr(maou_nb, name) for name in maou_nb.__all__}
    return {n: f for n, f in found.items() if inspect.isfunction(f) and not n.startswith(('register_', 'option'))}

# what stands beside the run, where more must be given
MORE = {'predict': [KNIGHT], 'export_onnx': ['out'], 'compare': ['other'], 'prepare_stage': ['records', 'out'],
        'prepare_stage2': ['out'], 'prepare_stage3': ['out'], 'random_stage2': [50]}
# doors that take a run, in any way it is named
TAKE = ['load_run', 'load_net', 'predict', 'summary', 'evaluate', 'exam', 'show_results', 'browse', 'export_onnx', 'compare', 'tensorboard',
        'attach', 'film_strip']
# what needs the machine on which it trains
HERE_ALONE = ['attach']

def is_plain(e):
    "Whether an error is one sentence that says what is right"
    said = str(e)
    right = any(word in said for word in ('expected', 'would be right', 'may be meant', 'did you mean', 'wants a', 'prepare these'))
    return isinstance(e, (ValueError, TypeError, OSError)) and '\n' not in said and 15 < len(said) < 500 and right

WRITERS = 'prepare_stage1', 'random_stage2'

@pytest.mark.parametrize('how', NAMED)
@pytest.mark.parametrize('name', front())
def test_every_door(name, how, run, here):
    more = MORE.get(name, [])
    if name == 'compare': more = [Path(run['result'].run_dir)]
    first = here.path/'shards' if name in WRITERS and how != 'result' else run[how]       # they write into any folder
    try: front()[name](first, *more)
    except Exception as e:
        assert is_plain(e), repr(e)
        assert name not in TAKE or name in HERE_ALONE and 'URL' in how, repr(e)
    else: assert name in TAKE or name in (*WRITERS, 'random_player', 'runs'), 'is this a door? then TAKE names it'

def test_it_is_the_same_run(run):
    "Not only taken, but understood alike"
    nets = [load_net(of) for of in run.values()]
    assert all(isinstance(n, Net) for n in nets)
    assert {str(predict(of, KNIGHT).probabilities) for of in [*nets, *run.values()]} == {str(run['result'].predict(KNIGHT).probabilities)}
    assert all(load_run(of)[1].metrics == run['result'][1].metrics for of in run.values())
    assert len({evaluate(of, device='cpu').metrics['accuracy'] for of in run.values()}) == 1
    assert len({repr(summary(of)) for of in run.values()}) == 1
    assert len({repr(show_results(of, n=1)) for of in run.values()}) == 1

def test_a_result_goes_where_a_folder_goes(run):
    assert learn_multi_stage(**TINY, stage1_data_path=Path(run['result'].run_dir).parents[1]/'stage1', run_dir='on',
                             resume_from=run['result'])[1].metrics == run['result'][1].metrics

def test_far_runs_side_by_side(run):
    both = compare(run['folder as text'], run['URL of a folder'])
    assert len(both.runs) == 2 and run['URL of a folder'] in both.runs and both.differences() == []
    assert list(compare('memory://one-door/runs/*', run['result']).runs) == list(both.runs)[::-1]

def test_a_far_run_that_changed_is_fetched_anew(run):
    "Another run in its place is not taken for the one that was fetched"
    assert load_run(run['URL of a folder']).run == run['result'].run
    far = as_path('memory://one-door/changing')
    for n, p in enumerate(('config.json', 'run.json', 'result.json')):
        far.mkdir(parents=True, exist_ok=True); (far/p).write_bytes((Path(run['result'].run_dir)/p).read_bytes())
    assert load_run(str(far)).run == run['result'].run
    for p in ('run.json', 'result.json'): (far/p).write_text((far/p).read_text().replace(run['result'].run, 'f'*32))
    assert load_run(str(far)).run == 'f'*32

def test_s3(run, s3):
    "The same from a bucket over a line"
    folder, far = Path(run['result'].run_dir), as_path('s3://here/one-door')
    for p in filter(Path.is_file, folder.rglob('*')): (far/p.relative_to(folder).as_posix()).write_bytes(p.read_bytes())
    assert load_run('s3://here/one-door')[1].metrics == run['result'][1].metrics
    assert evaluate('s3://here/one-door', device='cpu').rows == 1105
    assert show_results('s3://here/one-door', n=1).svgs and export_onnx('s3://here/one-door', 'out').paths
    assert {*compare('s3://here/one-*', run['result']).runs} == {'one-door', 'one'}

# --- wrong calls

WRONG = [(lambda r: learn_multi_stage('runs/x'), "'runs/x' stands where a keyword was expected: run_dir='runs/x' may be meant"),
         (lambda r: learn_multi_stage(r), 'resume_from=result may be meant'),
         (lambda r: learn_multi_stage(2), 'stage=2 may be meant'),
         (lambda r: learn_multi_stage({'epoch': 3}), '**options may be meant'),
         (lambda r: load_run(r, 'x'), "'x' is one argument too many: it takes path by position"),
         (lambda r: evaluate('stage1', r), "'stage1' has no network, which was expected to come first, and a LearnResult has"),
         (lambda r: evaluate('shards/', r.run_dir), "data='shards/' may be meant"),
         (lambda r: predict(KNIGHT, r), f'net=a LearnResult, sfen={KNIGHT!r} may be meant'),
         (lambda r: export_onnx('out', r.run_dir), "folder_or_path='out' may be meant"),
         (lambda r: show_results('shards/', r.checkpoint()), "data='shards/' may be meant"),
         (lambda r: browse(r, dat='x'), 'dat'),
         (lambda r: evaluate(r, dat='x'), 'there is no keyword dat: did you mean data=?'),
         (lambda r: predict(r), 'sfen was expected, beside a LearnResult'),
         (lambda r: maou_nb.find_lr(r), 'resume_from=result may be meant'),
         (lambda r: maou_nb.preflight(r.run_dir), "resume_from="),
         (lambda r: prepare_stage3('games.csa'), "folder was expected, beside 'games.csa'"),
         (lambda r: prepare_stage1(), 'folder was expected, beside nothing'),
         (lambda r: compare(r), '1 run given: two or more were expected'), (lambda r: tensorboard(), 'one or more were expected'),
         (lambda r: load_net(r, stage=3), 'stage 3 is not in this run')]

@pytest.mark.parametrize('call, says', WRONG, ids=lambda x: x[:30] if isinstance(x, str) else '')
def test_wrong_calls(call, says, run):
    with pytest.raises((TypeError, ValueError)) as e: call(run['result'])
    assert says in str(e.value) and '\n' not in str(e.value), str(e.value)

def test_every_door_says_what_it_wants():
    "Too many arguments, or a keyword that there is not: the door's own sentence, not Python's"
    for name, f in front().items():
        if name in ('load_plugins', 'show_position'): continue
        with contextlib.suppress(ValueError):
            try: f(*['x']*30)
            except TypeError as e: assert is_plain(e) and 'positional argument' not in str(e), (name, str(e))

def test_an_empty_folder_is_told_of_in_short(run, tmp_path):
    (tmp_path/'empty').mkdir()
    calls = [lambda: prepare_stage3('empty', 'out'), lambda: prepare_stage2('empty', 'out'), lambda: evaluate(run['result'], 'empty'),
             lambda: load_run('empty'), lambda: load_net('empty'), lambda: browse('empty'), lambda: attach('empty'),
             lambda: compare('empty', run['result']), lambda: learn_multi_stage(**TINY, stage1_data_path='empty')]
    for call in calls:
        with pytest.raises((ValueError, OSError)) as e: call()
        said = str(e.value)
        assert said.count(' .') <= 8 and len(said) < 260 and 'empty' in said and 'expected' in said and '\n' not in said, said
    with pytest.raises(FileNotFoundError, match='the guide "Formats" lists all'): prepare_stage3('empty', 'out')

# --- TensorBoard and batches

def logdir(words):
    "The folder that TensorBoard is given, which has to be all of its arguments"
    flag, folder = shlex.split(words)
    assert flag == '--logdir'
    return Path(folder)

@pytest.fixture
def odd_names(run, tmp_path):
    "The run under names that TensorBoard reads as marks of its own, twice under the same"
    for name in ('a,b', 'a:b', 'x/same', 'y/same', "it's"): shutil.copytree(run['result'].run_dir, tmp_path/'odd, names'/name)
    return tmp_path/'odd, names'

def test_tensorboard_of_odd_names(odd_names, here):
    "Each is found under its own name, in a folder that TensorBoard can be given"
    for folders in (['a,b'], ['a:b'], ["it's"], ['a,b', 'a:b', "it's"], ['x/same', 'y/same']):
        tensorboard(*(odd_names/f for f in folders))
        folder = logdir(here.shown[-1])
        assert not {*',:'} & {*str(folder)}
        assert len([*folder.iterdir()]) == len(folders)
        assert all(list(log.glob('**/events.*')) or list(log.resolve().rglob('events.*')) for log in folder.iterdir())
    assert sorted(p.name for p in folder.iterdir()) == ['same', 'same (2)']

def test_tensorboard_reads_them(odd_names, here):
    "By TensorBoard's own reader"
    from tensorboard.backend.event_processing import plugin_event_multiplexer
    tensorboard(odd_names/'a,b', odd_names/'a:b')
    reader = plugin_event_multiplexer.EventMultiplexer()
    reader.AddRunsFromDirectory(str(logdir(here.shown[-1]))).Reload()
    assert {r.split('/')[0] for r in reader.Runs()} == {'a,b', 'a:b'}
    assert all(tags['tensors'] or tags['scalars'] for tags in reader.Runs().values())

def test_a_capped_batch_shows(run):
    result = run['result']
    assert (result[1].batch_size, result[1].batch_capped) == (69, 1000)
    assert '69 (capped, 1,000 asked for)' in repr(result) and '69 (capped, 1,000 asked for)' in result._repr_html_()
    own = learn_multi_stage(**TINY, stage1_data_path=Path(result.run_dir).parents[1]/'stage1', run_dir='own', stage1_batch_size=32)
    assert (own[1].batch_size, own[1].batch_capped) == (32, 0) and 'capped' not in repr(own) + own._repr_html_()
    found = [row for row in compare(result, own).figures() if row[1] == 'batch size']
    assert found == [(1, 'batch size', '69 (capped, 1,000 asked for)', '32')]

@pytest.mark.parametrize('name', TAKE)
def test_a_zero_byte_is_in_no_path(name, run, here):
    for bad in ('runs/\0one', 's3://bucket/\0one'):
        with pytest.raises(ValueError) as e: front()[name](bad, *MORE.get(name, []))
        assert is_plain(e.value) and 'null byte' not in str(e.value) and 'embedded' not in str(e.value), e.value

@pytest.mark.parametrize('name', TAKE)
def test_a_file_of_a_run_that_is_no_checkpoint(name, run, here):
    "Is no run at any door"
    file = Path(run['result'].run_dir)/'history.jsonl'
    with pytest.raises(ValueError) as e: front()[name](file, *MORE.get(name, []))
    assert is_plain(e.value) and 'history.jsonl' in str(e.value), e.value

@pytest.mark.parametrize('how', NAMED)
def test_another_stage_is_refused(how, run):
    for stage in ('x', 2):
        with pytest.raises(ValueError) as e: load_net(run[how], stage=stage)
        assert is_plain(e.value) and str(stage) in str(e.value), e.value
