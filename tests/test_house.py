"The rules of the house: rooms import to the left, private names stay at home, an option says all of itself, workers stay small"
import ast, importlib, json, re, subprocess, sys
from pathlib import Path

import pytest

from maou_nb.data.options import RESUMES, About
from maou_nb.data.plugins import load_plugins
from maou_nb.stages.stage import STAGES
from maou_nb.train.options import LIBRARY, LearnConfig, config_class, tabs, why_idle
from conftest import kept_registries

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {p.relative_to(ROOT/'maou_nb').with_suffix('').as_posix().replace('/', '.'): p for p in (ROOT/'maou_nb').rglob('*.py')
         if p.parent != ROOT/'maou_nb' and p.stem != '__init__'}
FLOORS = ('data', 'show', 'model', 'stages', 'train', 'judge', 'play', 'front')      # left to right

def order():
    "Module → its place: the number of its notebook"
    found = {}
    for nb in sorted((ROOT/'nbs').rglob('[0-9]*.ipynb')):
        exp = re.search(r'#\| default_exp ([\w.]+)', nb.read_text(encoding='utf-8'))
        if exp: found[exp[1]] = (FLOORS.index(nb.parent.name), int(nb.name[:2]))
    return found

def imports(path):
    "(module of ours, name, line) of each import at the top of a module"
    package = ['maou_nb', *path.relative_to(ROOT/'maou_nb').parent.parts]
    for node in ast.parse(path.read_text(encoding='utf-8')).body:
        if isinstance(node, ast.Import):
            yield from ((a.name.removeprefix('maou_nb.'), '', node.lineno) for a in node.names if a.name.startswith('maou_nb.'))
        elif isinstance(node, ast.ImportFrom) and (node.level or (node.module or '').startswith('maou_nb')):
            base = package[:len(package) - node.level + 1] if node.level else []
            full = '.'.join([*base, *filter(None, [node.module])]).removeprefix('maou_nb').lstrip('.')
            yield from ((full, a.name, node.lineno) for a in node.names)

@pytest.mark.parametrize('room', ROOMS)
def test_rooms_import_from_the_left(room):
    places = order()
    for there, name, line in imports(ROOMS[room]):
        if there in places and room in places: assert places[there] < places[room], f'{room}, line {line}, imports {there}'

def test_the_ground_floor_knows_boards_labels_and_html_alone():
    for room, path in ROOMS.items():
        if room.startswith('show.'):
            elsewhere = {m for m, *_ in imports(path) if m and not m.startswith('show')}
            assert elsewhere <= {'data.board', 'data.html', 'data.labels'}, room

@pytest.mark.parametrize('room', ROOMS)
def test_private_names_stay_at_home(room):
    crossing = [(m, n) for m, n, _ in imports(ROOMS[room]) if n.startswith('_') and not n.startswith('__')]
    assert not crossing
    tree = ast.parse(ROOMS[room].read_text(encoding='utf-8'))
    pokes = [n.lineno for n in ast.walk(tree)
             if isinstance(n, ast.Attribute) and n.attr == '__dict__'
             and not (isinstance(n.value, ast.Name) and n.value.id == 'self')]
    assert not pokes, f'another object\'s __dict__, lines {pokes}'

FILES = {'config.json', 'run.json', 'result.json', 'history.jsonl', 'steps.jsonl', 'watched.jsonl', 'checkpoints.json', 'checkpoints'}

def test_the_names_of_a_runs_files_stand_in_one_place():
    "Checkpoints and the folder around them name them; only sentences do so elsewhere"
    for room, path in ROOMS.items():
        if room in ('train.checkpoints', 'train.folder'): continue
        tree = ast.parse(path.read_text(encoding='utf-8'))
        words = {id(n.values[i]) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for i in range(len(n.values))}
        defaults = {id(d) for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) for d in n.args.defaults}
        named = [(n.lineno, n.value) for n in ast.walk(tree)
                 if isinstance(n, ast.Constant) and n.value in FILES and id(n) not in words | defaults]
        paths = [(n.lineno, n.value) for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)
                 and any(f'/{f}' in n.value or n.value.startswith(f'{f}/') for f in FILES) and ' ' not in n.value.strip()]
        assert not named and not paths, f'{room}: {named + paths}'

def test_the_free_memory_of_a_gpu_is_asked_for_in_one_place():
    "Torch alone does not count what it holds itself: a second run in a kernel would find too little"
    asking = {room for room, path in ROOMS.items() for n in ast.walk(ast.parse(path.read_text(encoding='utf-8')))
              if isinstance(n, ast.Attribute) and n.attr == 'mem_get_info'}
    assert asking == {'data.machine'}

def test_an_option_says_all_of_itself():
    "Group, stages, what a resume may do, and when it is idle: in the field, and in one section"
    with kept_registries():
        load_plugins(str(Path(__file__).with_name('attacked.py')))
        for config in (LearnConfig, config_class()):
            for name, field in config.model_fields.items():
                said = field.json_schema_extra
                assert isinstance(said, About) and said.group and field.description and said.resume in RESUMES, name
                assert set(said.stages) <= set(STAGES), name
                assert isinstance(said.idle(config()), str) and isinstance(why_idle(config(), name), str), name
    names = [n for section in LIBRARY for n in section.model_fields]
    assert len(names) == len(set(names)) == len(LearnConfig.model_fields)
    assert sorted(n for fields in tabs(LearnConfig).values() for n in fields) == sorted(names)

ASKED = [dict(stage='4'), dict(stage='all', epoch=0, optimizer='lion', dataloader_workers=-1),
         dict(stage=1, stage1_data_path='nowhere'), dict(no_streaming=True), dict(gpu='cuda:77'),
         dict(model_architecture='vit', resnet_blocks=3, vit_embed_dim=30, vit_num_heads=4),
         dict(policy_loss_ratio=0, value_loss_ratio=0), dict(freeze_backbone=True, stage=2),
         dict(trainable_layers=99, stage=1, model_size='tiny'), dict(resume_from='latest'),
         dict(cache_transforms=True), dict(resume_value_head_from='x', stage=1),
         dict(watched_positions='nonsense'), dict(output_s3=True), dict(export_onnx=True, stage=1), dict(policy_head='none'), dict(lr=1)]

def test_make_config_answers_alike_whatever_was_imported(monkeypatch):
    "In a process that imported its room alone, and in this one, which imports everything"
    ask = f'''
import json
from maou_nb.front.options import RULES, try_config
print(json.dumps([len(RULES), [try_config(o)[1] for o in {ASKED!r}]]))'''
    alone = subprocess.run([sys.executable, '-c', ask], capture_output=True, text=True, cwd='/')
    assert alone.returncode == 0, alone.stderr
    monkeypatch.chdir('/')
    for room in ROOMS: importlib.import_module(f'maou_nb.{room}')
    from maou_nb.front.options import RULES, try_config
    rules, answers = json.loads(alone.stdout)
    assert (rules, answers) == (len(RULES), [try_config(o)[1] for o in ASKED])
    assert rules == 23 and all(answers)

LOADED = '''
import sys
{code}
print(sorted(m.removeprefix('maou_nb.') for m in sys.modules if m.startswith('maou_nb.') and m.count('.') == 2))
print([m for m in ('torch', 'matplotlib', 'IPython', 'ipywidgets', 'pydantic', 'accelerate', 'tensorboard') if m in sys.modules])
'''

def loaded(code):
    "(rooms of ours, heavy libraries) that a fresh process has after `code`"
    done = subprocess.run([sys.executable, '-c', LOADED.format(code=code)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [ast.literal_eval(l) for l in done.stdout.splitlines()[-2:]]

def test_what_a_worker_that_prepares_data_imports():
    rooms, heavy = loaded("import pickle\n"
                          "from maou_nb.data.prepare import _expand_task\n"
                          "from maou_nb.data.columns import columns_of\n"
                          "columns_of(3)")
    assert heavy == [] and {r.split('.')[0] for r in rooms} == {'data', 'stages'}
    assert [r for r in rooms if r.startswith('stages')] == ['stages.rows']

def test_what_a_worker_of_a_loader_imports(shards, tmp_path):
    "It gets a stream of batches, and need not know stages, records or the file a user's stage is written in"
    import pickle
    from maou_nb.data.batches import BatchStream
    from maou_nb.data.sources import StreamingFileSource
    load_plugins(str(Path(__file__).with_name('attacked.py')))
    own = BatchStream(s := StreamingFileSource(shards['stage3_data_path'], 3), s.plan(64))
    (tmp_path/'stream').write_bytes(pickle.dumps([own, STAGES['attacked'].columns]))
    rooms, heavy = loaded(f"import pickle\n"
                          f"stream, columns = pickle.load(open({str(tmp_path/'stream')!r}, 'rb'))\n"
                          f"assert len(next(iter(stream))) == 64 and columns.answers is None")
    assert heavy == ['torch']
    assert rooms == ['data.batches', 'data.board', 'data.columns', 'data.files', 'data.labels', 'data.machine',
                     'data.old', 'data.order', 'data.plugins', 'data.rows', 'data.shards', 'data.sources']

def test_a_picture_of_a_board_needs_little():
    rooms, heavy = loaded('from maou_nb import show_position\nshow_position("startpos")')
    assert rooms == ['data.board', 'data.html', 'data.labels', 'show.boards', 'show.pictures'] and 'torch' not in heavy

def test_the_package_itself_is_light():
    assert loaded('import maou_nb') == [[], []]

PLAIN = '''
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('IPython', 'ipywidgets'): raise ImportError(f'{name} is not there')
sys.meta_path.insert(0, Missing())
import maou_nb as m
tiny = dict(stage='1', stage1_data_path='shards', stage1_max_epochs=1, stage1_threshold=0., gpu='cpu', resnet_channels=8, resnet_blocks=1)
if __name__ == '__main__':
    m.search
    print('optuna' in sys.modules)
    m.prepare_stage1('shards')
    for name in 'ab': result = m.learn_multi_stage(**tiny, run_dir=name)
    print(m.preflight(**tiny), m.evaluate('a'), m.predict(m.load_net('a'), 'startpos'), m.compare('a', 'b'), m.load_run('a'))
    print(len(m.show_results('a', n=2).svgs), m.summary(m.load_net('a')))
'''

def test_a_machine_that_only_trains_needs_neither_ipython_nor_widgets(tmp_path):
    done = subprocess.run([sys.executable, '-c', PLAIN], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith('False\n'), "optuna is a search's own"
    assert 'accuracy' in done.stdout
