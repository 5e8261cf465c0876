"""The small files of a run with content that nobody wrote: mended where a checkpoint knows better, else one sentence

What is looked for is another exception, so the fuzz runs in a process of its own, whose memory is measured.
"""
import json, random, re, shutil, sys, time, warnings
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from mutators import run_apart, spoil
from samples import ONE_FILE

SMALL = 'history.jsonl', 'steps.jsonl', 'watched.jsonl', 'config.json', '.process.json', 'result.json', 'run.json'
LONG = pytest.mark.slow
START = 'startpos'

def make_run(folder):
    "A run of two stages in `folder`, and its options"
    from maou_nb import learn_multi_stage
    from maou_nb.stages.rows import prepare_stage1, prepare_stage2
    (folder/'one.csa').write_text(ONE_FILE.read_text().split('/\n')[0])
    prepare_stage1(folder/'stage1'); prepare_stage2(folder/'one.csa', folder/'stage2')
    options = dict(stage=['1', '2'], gpu='cpu', model_size='tiny', resnet_channels=8, resnet_blocks=1, stage1_threshold=0.,
                   stage2_threshold=0., stage1_max_epochs=2, stage2_max_epochs=2, stage1_batch_size=400, stage2_batch_size=32,
                   watched_positions=START, stage1_data_path=str(folder/'stage1'), stage2_data_path=str(folder/'stage2'))
    learn_multi_stage(run_dir=folder/'run', **options)
    return options

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "A folder with a run in it, and the options of the run"
    folder = tmp_path_factory.mktemp('small')
    return folder, make_run(folder)

def timeless(rows):
    from maou_nb.train.loop import TIMINGS
    return [{k: v for k, v in r.items() if k not in TIMINGS} for r in rows]

def went_on(folder, options):
    "The result of going on with a run, and what it said"
    from maou_nb.front.learn import train_run
    from maou_nb.front.options import make_config
    said = []
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        result = train_run(make_config(run_dir=folder, resume_from='latest', **options), say=said.append, pictures=False)
    return result, '\n'.join(said)

FOREIGN = {'config.json': b'{"compilerOptions": {"strict": true}}', 'result.json': b'{"stage": "1", "stages_completed": []}',
           'history.jsonl': b'{"stage": 1, "epoch": 1, "loss": "low"}\n', 'steps.jsonl': b'{"at": "10:00", "level": "info"}\n',
           'watched.jsonl': b'[1, 2]\n', '.process.json': b'{"working": true}', 'run.json': b'{"data": [1], "plugins": "x"}'}

@pytest.mark.parametrize('content', [b'', b'{"stage": 1, "st\n', b'[]\n', b'\xff\xfe\x00\n', b'[' * 50_000 + b'\n', FOREIGN, None])
def test_a_resume_mends_them(whole, tmp_path, content):
    "All small files at once are empty, cut off, of another kind, no text, nested, another program's, or gone; checkpoints are whole"
    from maou_nb import load_run
    from maou_nb.train.folder import read_lines
    folder, options = whole
    shutil.copytree(folder/'run', tmp_path/'run')
    run, before = tmp_path/'run', load_run(folder/'run')
    for name in SMALL:
        if content is None: (run/name).unlink()
        else: (run/name).write_bytes(content[name] if content is FOREIGN else content)
    result, said = went_on(run, options)
    assert [s.model_dump() for s in result.stages()] == [s.model_dump() for s in before.stages()]
    assert load_run(run).stages() == before.stages()
    assert read_lines(run/'history.jsonl') == read_lines(folder/'run'/'history.jsonl')
    assert 'result.json' in said and 'asked of the checkpoints' in said
    if content not in (None, b''): assert all(str(run/n) in said for n in ('history.jsonl', 'steps.jsonl', 'watched.jsonl'))

@pytest.mark.parametrize('places', [{'checkpoints': 'é'*50}, {'checkpoints': 'elsewhere', 'logs': 'nowhere'}, {'checkpoints': ''}])
def test_a_place_in_the_folder_that_is_not_there_hides_no_checkpoints(whole, tmp_path, places):
    from maou_nb import load_run
    folder, options = whole
    shutil.copytree(folder/'run', tmp_path/'run')
    about = json.loads((tmp_path/'run'/'run.json').read_text())
    (tmp_path/'run'/'run.json').write_text(json.dumps(about | {'places': places}))
    result, _ = went_on(tmp_path/'run', options)
    assert [s.model_dump() for s in result.stages()] == [s.model_dump() for s in load_run(folder/'run').stages()]

@pytest.mark.parametrize('name', ['steps.jsonl', 'watched.jsonl'])
def test_good_lines_beside_damaged_ones_stay(whole, tmp_path, name):
    from maou_nb.train.folder import read_lines
    folder, options = whole
    shutil.copytree(folder/'run', tmp_path/'run')
    path = tmp_path/'run'/name
    good = path.read_bytes()
    path.write_bytes(b'{"stage": \n' + good + b'\0'*100 + b'\n')
    _, said = went_on(tmp_path/'run', options)
    rows = len(good.splitlines())
    assert f'{path}: 2 of {rows + 2} lines were damaged, and are left out' in said and path.read_bytes() == good
    path.write_bytes(b'oh\n' + good)
    with pytest.warns(UserWarning, match='1 line is damaged and left out'): assert len(read_lines(path)) == rows

def test_a_result_that_no_checkpoint_can_mend(whole, tmp_path):
    from maou_nb.train.checkpoints import CheckpointError
    folder, options = whole
    shutil.copytree(folder/'run', tmp_path/'run')
    (tmp_path/'run'/'result.json').write_text('{')
    shutil.rmtree(tmp_path/'run'/'checkpoints'/'stage1')
    with pytest.raises(CheckpointError, match='does not tell what stage 1 reached, though stage 2 has begun: copy it'):
        went_on(tmp_path/'run', options)

def test_only_one_room_parses_json():
    "So that what damaged JSON raises is known in one place"
    package = Path(__file__).parents[1]/'maou_nb'
    rooms = {p.relative_to(package).as_posix(): p.read_text() for p in package.rglob('*.py')}
    parses = {name for name, text in rooms.items() if re.search(r'\bjson\.loads?\(', text)}
    assert parses == {'data/files.py', 'data/position_tables.py'}       # which looks for keys that stand twice

# --- fuzz

def look(run, deep):
    "Look at a run through every door that reads its small files"
    from maou_nb import compare, film_strip, load_run
    from maou_nb.front.runs import Monitor, config_of, state_of
    from maou_nb.train.folder import RunFolder
    folder = RunFolder(run)
    doors = [lambda: repr(load_run(run)), lambda: load_run(run).checkpoint(), lambda: config_of(folder), lambda: state_of(folder),
             lambda: (folder.epochs(), folder.steps(), folder.read_about()), lambda: (folder.at_work(), folder.was_killed()),
             lambda: repr(film_strip(run)), lambda: repr(compare(run, run))]
    if deep: doors += [lambda: load_run(run)._repr_html_(), lambda: film_strip(run).drawing(), lambda: compare(run, run)._repr_html_(),
                       lambda: Monitor(run).tell(), lambda: drawn(Monitor(run))]
    return doors

def drawn(monitor):
    from IPython.utils.capture import capture_output
    with capture_output(): monitor.show_pictures(); monitor.draw(force=True)

def no_other_error(doors, about, context):
    "Every door gives a result, or one of our sentences that names a file of `about`; how many were results"
    from maou_nb.data.files import FileError
    from maou_nb.data.options import OptionError
    from maou_nb.train.checkpoints import CheckpointError
    fine = 0
    for i, door in enumerate(doors):
        began = time.monotonic()
        try: door(); fine += 1
        except (FileError, OptionError, CheckpointError, FileNotFoundError) as e:
            assert '\n' not in str(e) and any(n in str(e) for n in about), (i, str(context)[:600], repr(e))
        except Exception as e: raise AssertionError((i, str(context)[:600])) from e
        assert time.monotonic() - began < 10, (i, context)
    return fine

def spoiled_small_files(n, seed, folder):
    options, rng, fine = make_run(folder), random.Random(seed), 0
    run = folder/'run'
    contents = {name: (run/name).read_bytes() for name in SMALL}
    asked = 0
    for i in range(n):
        names = rng.sample(SMALL, rng.choice([1, 1, 1, 2]))
        new = {name: spoil(name, contents[name], [*contents.values()], rng) for name in names}
        for name, data in new.items(): (run/name).write_bytes(data)
        doors = look(run, deep=i % 40 == 0)
        fine += no_other_error(doors, [str(run), 'config.json'], new); asked += len(doors)
        if i % 60 == 30:
            kept = {p: p.read_bytes() for p in run.rglob('*.safetensors')}
            result, said = went_on(run, options)      # checkpoints are whole, so nothing is in its way
            assert [s.epochs_trained for s in result.stages()] == [1, 1], new.keys()
            assert {p: p.read_bytes() for p in run.rglob('*.safetensors')} == kept, new.keys()
        for name in SMALL: (run/name).write_bytes(contents[name])
    return fine, asked - fine

@pytest.mark.parametrize('n', [50, pytest.param(10_000, marks=LONG)])
def test_spoiled_small_files(n):
    fine, refused = run_apart(__file__, 'small', n)
    assert fine > n and refused > n/4

if __name__ == '__main__':
    from mutators import fuzz_here
    fuzz_here({'small': spoiled_small_files})
