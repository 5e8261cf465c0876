"A stage, a head, a loss, a backbone and a callback of one's own, from a file: no line of maou_nb/ knows of them"
import dataclasses, hashlib, json, re, shutil, signal, subprocess, sys, time
from pathlib import Path

import numpy as np
import pytest
from rsshogi.core import Board
from rsshogi.types import Color

from maou_nb import attach, browse, compare, evaluate, learn_multi_stage, load_run, preflight, prepare_stage, show_results
from maou_nb.data.board import to_sfen
from maou_nb.data.options import OptionError
from maou_nb.data.plugins import load_plugins
from maou_nb.data.shards import find_shards, read_shard
from maou_nb.stages.rows import prepare_stage1, prepare_stage3
from maou_nb.train.checkpoints import load_tensors, part
from maou_nb.train.loop import TIMINGS
from conftest import kept_registries
from samples import ONE_FILE

PLUGIN = str(Path(__file__).with_name('attacked.py'))
TESTS = Path(__file__).parent

@pytest.fixture(scope='module')
def plugin():
    "The module, known here"
    [loaded] = load_plugins(PLUGIN)
    return sys.modules[loaded.module]

@pytest.fixture(scope='module')
def shards(plugin, tmp_path_factory):
    "Rows of 20 games"
    out = tmp_path_factory.mktemp('own')
    (out/'games.csa').write_text('/\n'.join(ONE_FILE.read_text().split('/\n')[:20]))
    prepare_stage1(out/'1'); prepare_stage3(out/'games.csa', out/'3', rows_per_shard=600)
    made = prepare_stage('attacked', out/'games.csa', out/'attacked', rows_per_shard=600)
    assert made.stage == 'attacked' and made.rows > 1500
    return dict(stage1_data_path=str(out/'1'), stage_attacked_data_path=str(out/'attacked'), stage3_data_path=str(out/'3'))

@pytest.fixture(scope='module')
def options(shards):
    "A run of three stages with everything that has a state"
    return dict(stage='1,attacked,3', plugins=[PLUGIN], gpu='cpu', model_size='tiny', resnet_channels=8, resnet_blocks=1, batch_size=64,
                stage1_threshold=0., stage_attacked_threshold=0.05, stage_attacked_max_epochs=2, stage_attacked_test_ratio=0.2,
                stage_attacked_pos_weight=2., epoch=2, ema_decay=0.98, mirror_augmentation=True, learning_ratio=0.003,
                policy_loss='smooth', checkpoint_every=3, resume_from='latest', **shards)

def timeless(result): return [[{k: v for k, v in h.items() if k not in TIMINGS} for h in s.history] for s in result.stages_completed]

def sums(result):
    "SHA-256 of the last weights of each stage"
    tensors = [load_tensors(result.checkpoint(s.stage, 'last'))[0] for s in result.stages_completed]
    parts = [sorted({**part(t, 'net.'), **part(t, 'ema.', False), **part(t, 'optimizer.', False)}.items()) for t in tensors]
    return [hashlib.sha256(b''.join(k.encode() + v.contiguous().numpy().tobytes() for k, v in p)).hexdigest() for p in parts]

def test_its_targets_are_what_the_rules_say(shards):
    "Against rsshogi, square by square"
    rows = read_shard(find_shards(shards['stage_attacked_data_path'], 'attacked')[0]).slice(0, 150).to_pylist()
    for r in rows:
        board = Board(to_sfen(np.array(r['boardIdPositions'], np.uint8), np.array(r['piecesInHand'], np.uint8)))
        for i in range(81):
            from rsshogi.types import Square
            assert board.is_attacked_by(Square((i % 9)*9 + i // 9), Color.WHITE) == bool(r['attackedSquares'][i])
            assert bool(r['attackers'][i]) == bool(r['attackedSquares'][i])

@pytest.fixture(scope='module')
def uninterrupted(options, tmp_path_factory):
    return learn_multi_stage(**options, run_dir=tmp_path_factory.mktemp('whole')/'run')

def test_it_trains_between_the_others(uninterrupted):
    result = uninterrupted
    assert [s.stage for s in result.stages_completed] == [1, 'attacked', 3]
    own = result['attacked']
    assert own.metric == 'f1' and own.threshold == 0.05 and own.threshold_met and own.judged_on == 'held-out games'
    assert own.epochs_trained == 1                         # its threshold ended it
    assert {'f1', 'recall', 'loss', 'attacked_share'} <= set(own.metrics) and 'f1' in own.baselines
    html = result._repr_html_()
    assert 'attacked attacked squares' in html and 'claiming all' in html and html.count('<img') == 3
    saved = json.loads(Path(result.run_dir, 'result.json').read_text())
    assert saved['stage'] == ['1', 'attacked', '3'] and saved['stages_completed'][1]['stage'] == 'attacked'
    assert Path(result.run_dir, 'checkpoints', 'stage_attacked', 'checkpoints.json').exists()
    kept = load_tensors(result.checkpoint('attacked'))[1]
    assert kept['plugins'][-1]['name'] == PLUGIN and len(kept['plugins'][-1]['sha256']) == 64

@pytest.mark.slow
def test_killed_it_goes_on_exactly(options, uninterrupted, tmp_path):
    "In the middle of its own stage"
    script = 'import json, sys\nfrom maou_nb import learn_multi_stage\nlearn_multi_stage(**json.loads(sys.argv[1]))'
    start = lambda: subprocess.Popen([sys.executable, '-c', script,
                                      json.dumps({**options, 'run_dir': str(tmp_path/'run')})],
                                     stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    p = start()
    while not list((tmp_path/'run'/'checkpoints'/'stage_attacked').glob('*.safetensors')): assert p.poll() is None; time.sleep(0.005)
    p.send_signal(signal.SIGKILL); p.wait()
    assert start().wait(300) == 0
    result = load_run(tmp_path/'run')
    assert timeless(result) == timeless(uninterrupted) and sums(result) == sums(uninterrupted)

def test_its_network_is_judged_asked_and_drawn(uninterrupted):
    held = evaluate(uninterrupted, stage='attacked')
    assert held.stage == 'attacked' and held.known == 'held out'
    assert held.metrics['f1'] == pytest.approx(uninterrupted['attacked'].metrics['f1'], abs=1e-6)
    assert 'attacked squares' in repr(held) and 'baseline' not in held._repr_html_()
    boards = show_results(uninterrupted, stage='attacked', n=2)
    assert len(boards.svgs) == 2 and 'as the network sees it' in boards.svgs[0]
    answer = uninterrupted.predict('lnsgkgsnl/1r5b1/ppppppppp/9/9/9/PPPPPPPPP/1B5R1/LNSGKGSNL b - 1', stage='attacked')
    assert 'squares taken for attacked' in answer.sentence() and answer.picture.startswith('<svg')

def test_the_command_line_and_the_panels_process_know_it(options, shards, tmp_path):
    from maou_nb.front.cli import as_command, as_words, read_flags
    from maou_nb.front.options import make_config
    from maou_nb.front.runs import start_run, state_of
    from maou_nb.train.folder import RunFolder
    cfg = make_config(**{**options, 'stage': 'attacked', 'stage_attacked_max_epochs': 1,
                         'run_dir': str(tmp_path/'run'), 'policy_loss': 'kl'})
    assert read_flags(as_words(cfg)).options['stage_attacked_pos_weight'] == '2.0' and '--plugins' in as_command(cfg)
    process, began = start_run(cfg), time.time()
    while process.is_running() and process.status() != 'zombie' and time.time() - began < 100: time.sleep(0.05)
    run = RunFolder(tmp_path/'run')
    assert state_of(run)[0] == 'finished', run.log()
    assert load_run(run.path)['attacked'].epochs_trained == 1

def test_its_options_are_in_the_help(alone):
    helps = alone.stdout.split('HELP')[1]
    assert '--stage-attacked-max-epochs INT' in helps and 'Stage attacked:' in helps

def test_the_panel_has_a_tab_for_it(options):
    from maou_nb import LearnPanel
    panel = LearnPanel(**{k: v for k, v in options.items() if k != 'resume_from'})
    assert 'Stage attacked' in panel.tab.titles and not panel.problems, panel.problems
    assert panel.fields['stage_attacked_pos_weight'].value == '2.0'

def test_its_options_are_refused_like_any(options):
    with pytest.raises(OptionError) as e: learn_multi_stage(**{**options, 'stage_attacked_max_epochs': 0, 'stage_attacked_pos_weight': -1})
    assert 'stage_attacked_max_epochs=0' in str(e.value) and 'stage_attacked_pos_weight=-1' in str(e.value)
    with pytest.raises(OptionError,
                       match="stage_attacked_data_path: stage=attacked needs the shards of stage attacked"):
        learn_multi_stage(stage='attacked', plugins=PLUGIN)
    with pytest.raises(OptionError, match="policy_loss='weighted': one of kl, gce, smooth was expected"):
        learn_multi_stage(**{**options, 'policy_loss': 'weighted'})
    with pytest.raises(OptionError, match="policy_head='two-layer': it gives"): learn_multi_stage(**{**options, 'policy_head': 'two-layer'})

ALONE = '''
import sys
from maou_nb import compare, evaluate, load_run, learn_multi_stage
for f in (lambda: evaluate(sys.argv[1], stage='attacked'), lambda: learn_multi_stage(stage='attacked'),
          lambda: load_run(sys.argv[1]).predict('startpos', stage='attacked'), lambda: compare(sys.argv[1], sys.argv[1])):
    try: f()
    except (ValueError, KeyError) as e: print(type(e).__name__, str(e).splitlines()[0])
print(repr(load_run(sys.argv[1])).splitlines()[1])
from maou_nb.front.cli import main
print('COMMAND', file=sys.stderr)
assert main(['learn-model', '--config', f'{sys.argv[1]}/config.json']) == 1
assert not any('attacked' in (m or '') for m in sys.modules)
print('HELP', flush=True)
main(['learn-model', '--help', '--plugins', sys.argv[2]])
'''

@pytest.fixture(scope='module')
def alone(uninterrupted):
    "What a process says that does not know the plugin until it is named"
    done = subprocess.run([sys.executable, '-c', ALONE, uninterrupted.run_dir, PLUGIN], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done

def test_nothing_is_imported_because_a_file_says_so(alone):
    "Whoever loads the run is told which plugin it needs"
    done = alone
    lines = done.stdout.split('HELP')[0].splitlines()
    assert sum('attacked.py' in l and 'load_plugins(' in l for l in lines) == 3 and 'copy it again' not in done.stdout, lines
    assert re.search('UserWarning: plugin .*attacked.py .* was used: load_plugins', done.stderr), done.stderr
    assert any("stage='attacked': one of 1, 2, 3" in l for l in lines) and lines[-1].startswith('stage attacked (attacked squares): f1')
    said = done.stderr.split('COMMAND')[1]
    assert f'--plugins {PLUGIN}' in said and 'Traceback' not in said

def test_a_plugin_that_changed_is_told_of(uninterrupted, tmp_path):
    from maou_nb.data.plugins import missing_plugins
    kept = load_tensors(uninterrupted.checkpoint('attacked'))[1]['plugins']
    assert missing_plugins(kept) == [] and 'has changed since' in missing_plugins([{**kept[-1], 'sha256': '0'*64}])[0]

@pytest.mark.parametrize('door', [lambda run: load_run(run.run_dir), lambda run: evaluate(run, stage='attacked', batch_size=4096),
                                  lambda run: run.predict('startpos', stage='attacked'),
                                  lambda run: show_results(run, stage='attacked', n=1), lambda run: browse(run, stage='attacked', rows=1),
                                  lambda run: attach(run.run_dir), lambda run: compare(run, run)],
                         ids=['load_run', 'evaluate', 'predict', 'show_results', 'browse', 'attach', 'compare'])
def test_every_door_warns_of_a_plugin_that_changed(uninterrupted, monkeypatch, door):
    from maou_nb.data import plugins
    changed = {m: dataclasses.replace(p, sha256='0'*64) for m, p in plugins.PLUGINS.items()}
    monkeypatch.setattr(plugins, 'PLUGINS', changed)
    with pytest.warns(UserWarning, match='attacked.py has changed since: it was [0-9a-f]{12}, and is 000000000000'): door(uninterrupted)

def test_preflight_says_it_of_the_run_that_goes_on(uninterrupted, options, tmp_path):
    shutil.copytree(uninterrupted.run_dir, tmp_path/'run')
    about = json.loads((tmp_path/'run'/'run.json').read_text())
    for p in about['plugins']: p['sha256'] = '0'*64
    (tmp_path/'run'/'run.json').write_text(json.dumps(about))
    for where in (dict(run_dir=tmp_path/'run', resume_from='latest'), dict(run_dir=tmp_path/'other', resume_from=tmp_path/'run')):
        found = preflight(**{**options, **where, 'stage': '1'})
        said = [s for _, what, s, _ in found.lines if what == 'plugins']
        assert any('attacked.py has changed since: it was 000000000000' in s for s in said), found

def test_a_callback_of_ones_own_is_kept_and_missed(plugin, options, tmp_path, capsys):
    small = {**options, 'stage': '1', 'stage1_max_epochs': 1, 'resume_from': None, 'policy_loss': 'kl'}
    first = plugin.Counting()
    learn_multi_stage(**small, run_dir=tmp_path/'run', callbacks=[first])
    assert first.n == 18
    more = {**small, 'stage1_max_epochs': 2, 'stage1_threshold': 1., 'resume_from': 'latest', 'run_dir': tmp_path/'run'}
    second = plugin.Counting()
    with pytest.raises(Exception, match='below its threshold'): learn_multi_stage(**more, callbacks=[second])
    assert second.n == 36 and second.total > first.total
    with pytest.raises(Exception, match='below its threshold'): learn_multi_stage(**{**more, 'stage1_max_epochs': 3})
    assert 'callback Counting had a state in this checkpoint, and is not given' in capsys.readouterr().out

def test_a_backbone_and_a_head_of_ones_own(options, tmp_path):
    result = learn_multi_stage(**{**{k: v for k, v in options.items() if not k.startswith('resnet')},
                                  'stage': '1', 'resume_from': None, 'model_architecture': 'myopic',
                                  'reachable_head': 'two-layer', 'policy_loss': 'kl', 'run_dir': tmp_path/'run'})
    keys = load_tensors(result.checkpoint(1))[0]
    assert 'net.heads.reachable.layers.2.bias' in keys and 'net.backbone.stem.piece.weight' in keys

@pytest.mark.parametrize('what, code', [
    ('stage', "from maou_nb import *\n"
              "from maou_nb.model.losses import bce_loss\n"
              "@register_stage('cell')\n"
              "class Cell(Stage):\n"
              "    name, columns, parts = 'c', (Column('cell', 'reachableSquares', 'squares'),), "
              "(Part('cell', 81, 'reachable'),)\n"
              "    figures = {'accuracy': Figure('a')}\n"
              "    def loss(self, outputs, batch, cfg): return {'loss': bce_loss(outputs['cell'], batch.cell)}\n"),
    ('head', "from maou_nb import register_head\n"
             "from maou_nb.model.heads import SquareHead\n"
             "@register_head('cell')\n"
             "class Cell(SquareHead): pass\n")])
def test_what_a_cell_registers_is_refused_for_a_process(what, code, shards, tmp_path):
    "With the line that makes a file of the cell"
    options = (dict(stage='cell', stage_cell_data_path=shards['stage1_data_path']) if what == 'stage'
               else dict(stage='1', stage1_data_path=shards['stage1_data_path'], reachable_head='cell'))
    from maou_nb.front.runs import start_run
    from maou_nb.train.options import config_class
    with kept_registries():
        exec(code, {'__name__': '__main__'})           # as cells are run
        with pytest.raises(ValueError) as e: start_run(config_class()(**options, run_dir=str(tmp_path/'run'), model_size='tiny'))
    assert f"{what} 'cell' was registered in a cell" in str(e.value) and '%%writefile cell.py' in str(e.value)

def test_the_librarys_stages_stay(plugin):
    from maou_nb.stages.stage import STAGES, register_stage
    class Mine(STAGES['1'].__class__): "Mine"
    with pytest.raises(ValueError, match='comes with the library'): register_stage('1')(Mine)
    with pytest.raises(ValueError, match='is registered by'):
        register_stage('attacked')(type('Other', (plugin.Attacked,), {'__module__': 'elsewhere'}))
