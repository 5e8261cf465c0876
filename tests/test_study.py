"A study: the same whether it is killed or not, refusals in a sentence, records without weights or places, runs and notes"
import json, os, random, signal, subprocess, sys, time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from maou_nb import OptionError, load_study, note, runs, search, study
from maou_nb.data.files import FileError
from maou_nb.data.packed import HCPE, write_hcpe
from maou_nb.data.records import read_games
from maou_nb.front import cli
from maou_nb.front.study import Records, base_of, plan_of, read_study
from maou_nb.front.options import make_config
from maou_nb.stages.rows import prepare_stage1, prepare_stage3

SAMPLES = Path(__file__).parents[1]/'samples/games'

@pytest.fixture(scope='module')
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp('study')
    prepare_stage1(folder/'stage1')
    prepare_stage3(SAMPLES/'selfplay-0.csa', folder/'stage3')
    return folder

@pytest.fixture(scope='module')
def base(shards):
    return dict(stage3_data_path=str(shards/'stage3'), model_size='tiny', resnet_channels=16, resnet_blocks=1, gpu='cpu', batch_size=32)

ARMS = {'plain': {}, 'sgd': {'optimizer': 'sgd', 'learning_ratio': 0.1}}

def figures(made):
    "What a study found, without times"
    return made.table().drop('seconds').sort('arm', 'seed')

def rows_of(made):
    "What each held-out row scored in each run"
    return {key: made.records.rows(made.record(*key)) for key in made.cells}

SCRIPT = """
import sys
from maou_nb import study
if __name__ == '__main__': study('killed', **{asked!r}, seeds=2, budget={{'steps': 20}}, folder=sys.argv[1], at_once=2, show=False)
"""

@pytest.fixture(scope='module', autouse=True)
def one_thread():
    "As processes of a study have: sums of other numbers of threads round otherwise"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)

@pytest.fixture(scope='module')
def whole(base, tmp_path_factory):
    "Trained in threads of this process: one of its own for each run costs more than the run"
    with ThreadPoolExecutor(2) as pool:
        return study('whole', base, ARMS, seeds=2, budget={'steps': 20}, folder=tmp_path_factory.mktemp('whole'), executor=pool, show=False)

@pytest.mark.slow
@pytest.mark.parametrize('kills', [1, 5])
def test_a_killed_study_ends_with_the_same_table(base, whole, tmp_path, kills):
    script = tmp_path/'killed.py'
    script.write_text(SCRIPT.format(asked=dict(base=base | {'checkpoint_every': 5}, arms=ARMS)))
    begin = lambda: subprocess.Popen([sys.executable, str(script), str(tmp_path)], start_new_session=True, stderr=subprocess.DEVNULL)
    rng = random.Random(kills)
    for _ in range(kills):
        child = begin()
        end = time.monotonic() + rng.uniform(6, 14)
        while time.monotonic() < end and child.poll() is None: time.sleep(0.1)
        if child.poll() is None: os.kill(child.pid, rng.choice([signal.SIGKILL, signal.SIGINT]))
        child.wait()
    assert begin().wait() == 0
    made = load_study(tmp_path/'killed')
    assert {c.state for c in made.cells.values()} == {'finished'}
    assert figures(made).equals(figures(whole))
    assert all(a.equals(b) for a, b in zip(rows_of(made).values(), rows_of(whole).values()))

def test_a_second_call_trains_nothing_and_more_seeds_are_added(base, whole):
    before = {p: p.stat().st_mtime_ns for p in whole.folder.rglob('results/**/*')}
    with ThreadPoolExecutor(1) as pool:
        again = study('whole', base, ARMS, seeds=3, budget={'steps': 20}, folder=whole.folder.parent, executor=pool, show=False)
    assert all(p.stat().st_mtime_ns == t for p, t in before.items() if p.is_file())
    assert figures(again).filter(pl.col('seed') < 2).equals(figures(whole)) and len(again.table()) == 6

def test_seeds_differ_and_arms_share_what_is_held_out(whole):
    found = whole.outcomes()
    assert len({told['figures']['policy_loss'] for told in found.values()}) == len(found)
    assert len({tuple(told['rows']['id']) for told in found.values()}) == 1
    for told in found.values(): assert told['figures']['top1'] == pytest.approx(told['rows']['top1'].mean())

def test_records_hold_no_weights_and_no_places(whole, shards):
    files = [p for p in (whole.folder/'results').rglob('*') if p.is_file()]
    assert {p.suffix for p in files} == {'.json', '.feather'}
    for p in files:
        if p.suffix == '.json': assert str(shards) not in p.read_text() and str(whole.folder) not in p.read_text()
    record = whole.record('sgd', 1)
    assert record['options']['optimizer'] == 'sgd' and record['taken'][0]['steps'] == 20 and record['history']

def test_records_alone_are_a_study(whole, tmp_path):
    import shutil
    for name in ('study.json', 'results'): (shutil.copytree if name == 'results' else shutil.copy)(whole.folder/name, tmp_path/name)
    assert figures(load_study(tmp_path)).equals(figures(load_study(whole.folder)))

def spoiled(whole, to, change):
    "A study of the records of `whole`, each changed"
    import shutil
    shutil.copytree(whole.folder/'results', to/'results'); shutil.copy(whole.folder/'study.json', to)
    for path in (to/'results').rglob('*.json'):
        record = json.loads(path.read_text())
        change(record)
        path.write_text(json.dumps(record))
    return load_study(to)

def test_exams_are_compared_too(whole, tmp_path):
    def examined(record): record['exam'] = {'mates/found/1': .5 + .01*record['seed'] + .2*(record['arm'] == 'sgd'), 'value/temperature': 1.}
    made = spoiled(whole, tmp_path/'all', examined)
    row, = made.verdict('exam/mates/found/1').differences.to_dicts()
    assert row['difference'] == pytest.approx(.2) and row['by'] == 'seeds' and made.better()['exam/mates/found/1'] == 'higher'
    assert not [n for n in made.table().columns if 'exam' in n] and 'exam/' not in repr(made)

def test_a_run_that_failed_is_said_wherever_its_study_is_read(whole, tmp_path):
    made = spoiled(whole, tmp_path/'all', lambda record: None)
    (made.folder/'results'/'sgd'/'1.json').unlink()
    made.records.fail('sgd', 1, 'the loss is nan')
    again = load_study(made.folder)
    assert again.cells['sgd', 1].state == 'failed' and '1 failed' in again.line()
    told, = [n for n in again.verdict().notes if 'failed' in n]
    assert told.startswith('sgd, seed 1: the loss is nan (it failed, and is left out') and told in repr(again)
    again.forget_failure('sgd', 1)
    assert load_study(made.folder).cells['sgd', 1].state == 'waiting'

DOUBTED = 'validation rows, whose games may have been trained on'

def test_positions_whose_games_are_unknown_are_not_called_held_out_games(base, whole, tmp_path, monkeypatch):
    "As preparation, run, evaluation and comparison say it"
    write_hcpe(list(read_games(SAMPLES/'selfplay-0.csa')), tmp_path/'all')
    np.random.default_rng(0).permutation(np.fromfile(tmp_path/'all', HCPE)).tofile(tmp_path/'loose.hcpe')
    prepare_stage3(tmp_path/'loose.hcpe', tmp_path/'loose')
    loose = base | {'stage3_data_path': str(tmp_path/'loose')}
    with ThreadPoolExecutor(1) as pool:
        made = study('compared', loose, {'a': {}, 'b': {'weight_decay': 0.1}}, 1, budget={'steps': 4}, folder=tmp_path, executor=pool,
                     show=False)
    words = made.verdict().words()
    assert f'{DOUBTED}; the intervals take them' in words and f'The runs are judged on {DOUBTED}' in words
    assert 'held-out' not in words and 'held-out' not in made._repr_html_()
    assert 'held-out games with' in whole.verdict().words() and DOUBTED not in whole.verdict().words()
    monkeypatch.chdir(tmp_path)
    found = search(loose | {'stage': 3, 'epoch': 1}, {'weight_decay': [0.1, 0.2]}, trials=1, say=lambda text: None)
    assert f'judged on {DOUBTED}' in repr(found) and DOUBTED in found._repr_html_()

COMMITTED = sorted((Path(__file__).parents[1]/'studies').glob('*/*/study.json'))

@pytest.mark.parametrize('path', COMMITTED, ids=lambda p: '/'.join(p.parts[-3:-1]))
def test_committed_studies_are_read(path):
    assert {c.state for c in load_study(path.parent).cells.values()} == {'finished'}

OTHERS = {'base': lambda a: a['base'].update(resnet_channels=24), 'budget': lambda a: a['max_steps'].update(plain=21),
          'arm': lambda a: a['arms']['sgd'].update(momentum=.5), 'less': lambda a: a['base'].pop('batch_size')}

@pytest.mark.parametrize('what', OTHERS)
def test_records_of_another_study_are_not_taken(whole, tmp_path, what):
    made = spoiled(whole, tmp_path/'all', lambda record: None)
    OTHERS[what](asked := json.loads((made.folder/'study.json').read_text()))
    (made.folder/'study.json').write_text(json.dumps(asked))
    with pytest.raises(FileError, match=r'\.json is of another study, with .* instead of .*: delete it') as error: load_study(made.folder)
    assert '\n' not in str(error.value)

def test_records_of_other_places_and_older_versions_are_taken(whole, tmp_path):
    def changed(record): record['options'] |= {'gone': 3, 'checkpoint_every': 7}
    made = spoiled(whole, tmp_path/'all', changed)
    asked = json.loads((made.folder/'study.json').read_text())
    asked['base'] |= {'gpu': 'cuda', 'stage3_data_path': 'elsewhere', 'unknown': 3}
    (made.folder/'study.json').write_text(json.dumps(asked))
    assert load_study(made.folder).table().height == len(made.cells)

def test_records_that_do_not_say_on_what_they_were_judged(whole, tmp_path):
    old = spoiled(whole, tmp_path/'old', lambda record: record.pop('judged_on'))
    assert 'judged on' not in old.verdict().words() and 'held-out games with' in old.verdict().words()

def test_a_base_may_not_go_before_the_budget(base, whole, tmp_path):
    with pytest.raises(OptionError, match=r"base: max_steps=10 beside a budget of .*; one of them was expected"):
        study('both', base | {'max_steps': 10}, ARMS, 1, budget={'steps': 20}, folder=tmp_path)
    assert 'max_steps' not in base_of(whole.run_folder('plain', 0))

def test_what_a_budget_means(base, shards):
    both = base | dict(stage=(1, 3), stage1_data_path=str(shards/'stage1'), stage1_threshold=None, stage1_max_epochs=1)
    one, two = plan_of(make_config(**base, max_steps=100)), plan_of(make_config(**both, max_steps=100))
    assert [p.steps for p in one] == [100] and two[-1].steps == 100 and two[0].positions == 32
    assert one[-1].flops == two[-1].flops > 0

def test_runs_in_threads_of_one_process_take_turns(base, whole, tmp_path):
    "They come to what a run comes to that has a process of its own"
    made = study('processes', base, {'sgd': ARMS['sgd']}, seeds=1, budget={'steps': 20}, folder=tmp_path, show=False)
    assert figures(made).equals(figures(whole).filter(arm='sgd', seed=0)) and len(figures(made)) == 1

@pytest.fixture(scope='module')
def functions(base, tmp_path_factory):
    "Functions as arms, one of which fails, in a process of another executor"
    with ProcessPoolExecutor(1, get_context('spawn')) as pool:
        return study('functions', base, {'once': {}, 'breaks': breaks, 'twice': twice}, seeds=1, budget={'positions': 640},
                     folder=tmp_path_factory.mktemp('functions'), executor=pool, show=False)

def test_functions_as_arms_and_any_executor(functions):
    assert functions.record('twice', 0)['taken'][0]['steps'] == 15
    assert functions.record('once', 0)['taken'][0]['steps'] == 20 and [*functions.failed] == [('breaks', 0)]

def twice(options):
    "Train, and train again on what was learnt"
    from maou_nb import learn_multi_stage
    first = learn_multi_stage(**options | {'run_dir': options['run_dir'] + '-first', 'max_steps': 5})
    return learn_multi_stage(**options | {'max_steps': 15, 'resume_backbone_from': str(first.checkpoint())})

def test_a_run_that_fails_is_told_and_the_others_go_on(functions):
    made = functions
    assert [made.cells[arm, 0].state for arm in ('once', 'breaks', 'twice')] == ['finished', 'failed', 'finished']
    assert 'no such thing' in repr(made) and 'no such thing' in made._repr_html_()

def breaks(options): raise ValueError('no such thing')

ODD = {
    'name=': dict(name='../up'),
    'base: seed is set': dict(base=dict(seed=3)), "arm 'a': lerning_ratio": dict(arms={'a': {'lerning_ratio': 1}}),
    'arms=': dict(arms={}), "arms['a']": dict(arms={'a': 3}), 'seeds=': dict(seeds=0), 'budget=': dict(budget={'hours': 1}),
    'executor=': dict(executor=ThreadPoolExecutor), 'does not fork': dict(executor=ProcessPoolExecutor(1)),
    'at_once=': dict(at_once=0), 'as their last stage': dict(arms={'a': {}, 'b': {'stage': 1}}),
    'stage1_threshold may end': dict(arms={'a': dict(stage=(1, 3))}),
    'but the stages before the last take': dict(arms={'a': dict(stage=(1, 3), stage1_threshold=None)}),
}

@pytest.mark.parametrize('says', ODD)
def test_what_cannot_be_is_refused_in_a_sentence(says, base, shards, tmp_path):
    asked = dict(name='odd', base=base | dict(stage1_data_path=str(shards/'stage1')), arms={'a': {}}, seeds=1, budget={'steps': 4},
                 folder=tmp_path, show=False)
    given = ODD[says]
    if 'base' in given: given = {'base': asked['base'] | given['base']}
    with pytest.raises((ValueError, OptionError)) as e: study(**asked | given)
    assert says in str(e.value) and '\n' not in str(e.value), str(e.value)

def test_another_base_or_arm_is_another_study(base, whole):
    for change, says in ((dict(base=base | {'batch_size': 16}), 'base: '),
                         (dict(arms={'plain': {'momentum': 0.5, 'optimizer': 'sgd'}}), "arm 'plain'"),
                         (dict(budget={'steps': 21}), 'budget: ')):
        asked = dict(base=base, arms=ARMS, seeds=2, budget={'steps': 20}) | change
        with pytest.raises(OptionError) as e: study('whole', **asked, folder=whole.folder.parent, show=False)
        assert str(e.value).startswith(says)

def test_the_command(base, shards, tmp_path, capfd):
    "Which trains in processes of their own"
    file = tmp_path/'rates.yaml'
    file.write_text(json.dumps({'name': 'rates', 'base': base, 'grid': {'learning_ratio': [0.01, 0.03]}, 'seeds': 1, 'budget': {'steps': 5},
                                'folder': str(tmp_path)}))                # JSON is YAML
    code, said = cli.main(['study', str(file)]), capfd.readouterr()
    assert code == 0, said.err
    told, (a, b) = json.loads(said.out), ['learning_ratio=0.01', 'learning_ratio=0.03']
    assert [r['arm'] for r in told['runs']] == [r['arm'] for r in told['arms'] if r['figure'] == 'top1'] == [a, b]
    assert {(d['arm'], d['baseline']) for d in told['differences']} == {(b, a)}
    assert told['sentences'] and all(s in said.err for s in told['sentences'])
    for text, says in (('name: [', 'this is no YAML'), ('5', 'were expected'),
                       ('name: a\nbse: {}', "'bse' is unknown"), ('name: a', 'base is missing')):
        file.write_text(text)
        with pytest.raises(FileError, match=says): read_study(file)

def test_a_damaged_record_is_named(whole, tmp_path):
    path = Records(tmp_path).path('plain', 0)
    path.parent.mkdir(parents=True)
    path.write_text('{"arm": 1}')
    with pytest.raises(FileError, match='plain/0.json is no record'): Records(tmp_path).read('plain', 0)

def test_runs_in_a_table(whole, tmp_path):
    every = runs(whole.folder/'runs')
    assert {*every.frame['run']} >= {'plain/0', 'plain/1', 'sgd/0', 'sgd/1'} and '3/top1' in every.frame.columns
    note(every['plain/0'], 'as <b>expected</b>', tags='first')
    again = runs(whole.folder/'runs').filter(tag='first')
    assert [*again.frame['run']] == ['plain/0'] and '<b>' not in again._repr_html_()
    top = every.sort('top1').frame['3/top1'].to_list()
    assert top == sorted(top, reverse=True)
    assert every.filter(text='optimizer=sgd').frame['run'].str.starts_with('sgd').all()
    for bad, says in ((lambda: note(every['sgd/0']), 'a note, or tags'),
                      (lambda: runs(tmp_path/'none'), 'is no folder'), (lambda: runs(tmp_path), 'holds no run')):
        with pytest.raises((ValueError, FileError), match=says): bad()

def test_a_damaged_run_stands_in_the_table(tmp_path, whole):
    import shutil
    shutil.copytree(whole.run_folder('plain', 0), tmp_path/'runs'/'good')
    (tmp_path/'runs'/'bad').mkdir()
    (tmp_path/'runs'/'bad'/'config.json').write_text('{')
    frame = runs(tmp_path/'runs').frame
    assert frame.filter(pl.col('run') == 'bad')['state'][0].startswith('not readable')
