"What nobody should give a study, and what others may have left in its folder: each is a sentence, and nothing is lost; without training"
import functools, json, math, os, pickle, shutil, threading
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from maou_nb import load_study, study
from maou_nb.data.files import FileError
from maou_nb.front.cli import as_json
from maou_nb.front.study import (VERSION, Arm, Records, StudyView, _check_result, _agreed, arms_of, _asked_in, budget_of, grid, read_study,
                                 said_error, seeds_of, sent)
from maou_nb.front.study_form import StudyForm, study_text
from maou_nb.front.workers import Workers
from maou_nb.stages.stage import stage_of

ASKED = {'version': VERSION, 'stage': '3', 'base': {}, 'arms': {'a': {}, 'b': {'epoch': 2}}, 'seeds': [0, 1], 'budget': {'steps': 9},
         'max_steps': {'a': 9, 'b': 9}}

def record(arm, seed, top1=.5, positions=288, **more):
    "As a run leaves it"
    return {'arm': arm, 'seed': seed, 'stage': 3, 'judged_on': 'held-out games', 'figures': {'top1': top1, 'loss': 2.},
            'taken': [{'stage': 3, 'steps': 9, 'positions': positions, 'seconds': 1.}], 'rows': {'train': 80, 'valid': 4},
            'fingerprint': 'f', 'machine': {'torch': '2'}, 'history': [{'stage': 3, 'step': 9, 'valid/top1': top1}]} | more

@pytest.fixture
def folder(tmp_path):
    "A study of two arms and two seeds, written by hand"
    (tmp_path/'study.json').write_text(json.dumps(ASKED))
    for n, (arm, seed) in enumerate((a, s) for a in 'ab' for s in (0, 1)):
        hits = pl.DataFrame({'id': [1, 2, 3, 4], 'game': [7, 7, 8, 9], 'top1': [0., 1., n/4, n/8]})
        Records(tmp_path).write(record(arm, seed, hits['top1'].mean()), hits)
    return tmp_path

def says(what, *calls):
    "Each call is refused, in one sentence with `what` in it"
    for call in calls:
        with pytest.raises(ValueError) as e: call()
        assert what in str(e.value) and '\n' not in str(e.value), str(e.value)

def test_names_that_are_no_folder_everywhere():
    for name in ('../up', 'a/b', 'a\\b', 'nul', 'COM1.x', 'end.', ' x', 'あ'*90, 'x'*101, 'a\nb', '', 3, None, 'a:b', '\ud800'):
        says('arms=', lambda: arms_of({name: {}}))
    assert {*arms_of({'学習率 0.01': {}, 'earlier-1': {}, 'équipe': {}})}
    says('by more than case', lambda: arms_of({'Plain': {}, 'plain': {}}), lambda: arms_of({'STRASSE': {}, 'straße': {}}))
    says('is no option', lambda: arms_of({'a': {1: 2}}))

def test_a_grid_loses_no_arm():
    says('two arms would be called', lambda: grid(epoch=[1, 1]), lambda: grid(epoch=[1, '1']))
    says('at least one', grid, lambda: grid(epoch=[]))
    says('a list of values', lambda: grid(epoch={1: 2}), lambda: grid(epoch='12'), lambda: grid(epoch=3))
    assert len(grid(epoch=iter([1, 2]), batch_size=(n for n in (3, 4)))) == 4

def test_budgets_and_seeds_are_whole_and_finite():
    for odd in ({'steps': .5}, {'steps': 2.5}, {'steps': 1e300}, {'positions': 10**400}, {'flops': 1e300}, {'seconds': math.nan},
                {'steps': 0},                {'flops': -1}, {'steps': '4'}, {'steps': True}, {'steps': 4, 'flops': 4}, {}, [4], 'steps'):
        says('budget=', lambda: budget_of(odd))
    assert budget_of({'steps': np.int64(4)}) == {'steps': 4} and budget_of({'positions': 1e6}) == {'positions': 1_000_000}
    for odd in (0, -1, 1.5, True, None, '3', [], [1, 1], [-1], [1.], [True], {1: 2}, 10**9, iter(range(10**9)), [2**31]):
        says('seeds=', lambda: seeds_of(odd))
    assert seeds_of(np.int64(2)) == [0, 1] and seeds_of(np.array([4, 2])) == [4, 2] and all(type(s) is int for s in seeds_of(np.arange(3)))

class Caller:
    def __init__(self, n): self.n = n
    def __call__(self, options): return self.n

def made(n): return lambda options: n

def test_functions_are_known_by_what_they_do_and_hold():
    key = lambda does: Arm('a', does=does).noted()['source']
    for make in (made, Caller, lambda n: functools.partial(made, n)):
        assert key(make(1)) == key(make(1)) != key(make(2))
    assert Arm('a', does=functools.partial(made, 1)).noted()['function'] == 'partial'
    assert pickle.loads(sent(made(3), 'a'))({}) == 3
    says('cannot be sent', lambda: sent(functools.partial(made, threading.Lock()), 'a'))

FACTOR = 1

def scaled(options): return FACTOR
def calls(options): return scaled(options)

def test_what_is_around_a_function_is_noted(monkeypatch):
    key = lambda does: Arm('a', does=does).noted()
    for one, other in (({1, 'b'}, {2}), (np.zeros(3), np.ones(3)), (Path('a'), Path('b')), (b'a', b'b'), ([{1: {2}}], [{1: {3}}])):
        for make in (made, Caller, lambda n: functools.partial(made, n)):
            assert key(make(one)) == key(make(one)) != key(make(other)) and 'untold' not in key(make(one))
    bare = [eval(f'lambda options: {n}') for n in (1, 1, 2)]                 # without a text
    assert key(bare[0]) == key(bare[1]) != key(bare[2])
    before = key(scaled), key(calls)
    monkeypatch.setitem(globals(), 'FACTOR', 2)
    assert not [a for a, b in zip(before, (key(scaled), key(calls))) if a == b]
    assert key(made(threading.Lock()))['untold'] == ['lock']

def test_a_function_that_cannot_be_told_is_said_and_an_earlier_note_is_enough(folder):
    noted = Arm('b', does=made(threading.Lock())).noted()
    asked = ASKED | {'arms': {'a': {}, 'b': noted}}
    (folder/'study.json').write_text(json.dumps(asked))
    assert 'Whether the function of b is the one it was cannot be told, as it holds lock.' in load_study(folder).remarks()
    old = ASKED | {'arms': {'a': {}, 'b': {n: noted[n] for n in ('function', 'source')}}}
    assert _agreed(old, asked, 'x')['arms']['b'] == noted
    changed = {'arms': {'a': {}, 'b': noted | {'around': 'other'}}}
    says('was begun with', lambda: _agreed(asked, asked | changed, 'x'), lambda: _agreed(old, asked | {'arms': {'b': {'epoch': 2}}}, 'x'))

def test_what_a_function_returns_is_looked_at():
    says('its function returned None', lambda: _check_result(None, 'a', 0, stage_of(3)))
    says('its function returned a dict', lambda: _check_result({'figures': {n: n for n in range(99)}}, 'a', 0, stage_of(3)))
    assert said_error(KeyError('x')) == "KeyError: 'x'" and said_error(SystemExit()) == 'SystemExit'
    assert said_error(ValueError('a\nb')) == 'a b' and len(said_error(ValueError('x'*9999))) < 500

class Two(Exception):
    def __init__(self, a, b): super().__init__(f'{a} and {b}')

def raises(): raise Two('this', 'that')

def test_an_error_that_cannot_travel_is_told_and_its_place_is_in_the_log(tmp_path):
    with Workers(1, tmp_path/'log') as workers: told = workers.submit(raises)
    assert str(told.exception()) == 'Two: this and that'
    assert 'in raises' in (tmp_path/'log').read_text()

class Elsewhere(Executor):
    def submit(self, *call): return 3

def test_executors_that_take_no_call(folder):
    with ThreadPoolExecutor(1) as closed: pass
    made = load_study(folder)
    made.asked['seeds'] = [5]
    for pool, what in ((closed, 'one that takes calls'), (Elsewhere(), 'get_executor() of a Dask client')):
        says(what, lambda: made.train({}, {'a': Arm('a')}, pool, StudyView(made, False)))
    says('at_once=2', lambda: study('x', {}, {'a': {}}, executor=ThreadPoolExecutor(1), at_once=2))
    says('executor=', lambda: study('x', {}, {'a': {}}, executor=ThreadPoolExecutor))

def test_places_that_are_anothers(tmp_path):
    (tmp_path/'file').write_text('')
    (tmp_path/'x'/'runs'/'a').mkdir(parents=True)
    says('is a file', lambda: study('file', {}, {'a': {}}, folder=tmp_path), lambda: study('x', {}, {'a': {}}, folder=tmp_path/'file'))
    says('no study.json', lambda: study('x', {}, {'a': {}}, folder=tmp_path))

def test_a_study_json_of_others(folder):
    for odd in ({'arms': []}, {'arms': {'../x': {}}}, {'arms': {'a': 3}}, {'seeds': ['0']}, {'seeds': [0, 0]}, {'max_steps': {'a': 'x'}},
                {'max_steps': {'c': 3}}, {'budget': {'hours': 1}}, {'base': None}, {'stage': 3}):
        (folder/'study.json').write_text(json.dumps(ASKED | odd))
        says('is damaged', lambda: load_study(folder), lambda: _asked_in(folder))
    for text, what in (('{"version": 1}', 'is damaged'), ('{}', 'no study of this version'), ('[]', 'where a dict'),
                       ('{"ver', 'not readable JSON'),
                       (json.dumps(ASKED | {'stage': 'own'}), 'not registered here')):
        (folder/'study.json').write_text(text)
        says(what, lambda: load_study(folder))
    says('path=', lambda: load_study(None), lambda: load_study('s3://a/b'))

def test_records_of_others(folder):
    path = Records(folder).path('b', 1)
    good = json.loads(path.read_text())
    for odd in ({'arm': 'a'}, {'seed': 0}, {'seed': '1'}, {'figures': []}, {'figures': {'top1': 'x'}}, {'history': [3]},
                {'taken': [{'steps': 'x'}]}, {'taken': [{'steps': math.nan}]}, {'taken': [{'positions': -1}]},
                {'taken': [{'steps': 1 << 70}]},
                {'exam': [1]}, {'exam': {'x': 'y'}}, {'guesses': [1]}, {'guesses': {'top1': 'x'}}, {'guesses': {'top1': None}},
                {'rows': [1]},
                {'rows': {'valid': 'x'}}, {'machine': 'x'}, {'fingerprint': [1]}, {'judged_on': [1]}, {'options': 3}, {'history': [{}]},
                {'figures': {'top1': 10**400}},
                {'held_out': '../../../etc'}, {'held_out': 3}):
        path.write_text(json.dumps(good | odd))
        says("no record of arm 'b', seed 1", lambda: load_study(folder))
    path.write_text(json.dumps(good | {'stage': 1}))
    says('is of stage 1', lambda: load_study(folder))
    path.write_text('{"arm": "b"')
    says('not readable JSON', lambda: load_study(folder))

def test_a_record_forgives_that_its_run_failed(folder):
    Records(folder).fail('b', 1, 'the loss is nan')
    made = load_study(folder)
    assert made.failed == {} and made.cells['b', 1].state == 'finished' and 'failed' not in made.verdict().words()
    Records(folder).path('b', 1).unlink()
    assert load_study(folder).failed == {('b', 1): 'the loss is nan'}

def test_rows_that_are_damaged_or_others(folder):
    path = Records(folder).path('b', 1).with_suffix('.feather')
    whole, made = path.read_bytes(), load_study(folder)
    says('is trained again', *[lambda: (path.write_bytes(bad), made.outcomes()) for bad in (whole[:-40], b'', b'ARROW1', whole[:80])])
    for odd in (pl.DataFrame({'top1': [1.]}), pl.DataFrame({'id': [1]*4}), pl.DataFrame({'top1': ['x']*4})):
        odd.write_ipc(path)
        says('holds no scores', made.outcomes)
    path.unlink()
    assert 'no verdict: ' in repr(made) and 'no verdict: ' in made._repr_html_()         # and no error of a notebook's cell

def test_bytes_that_polars_panics_of(folder):
    path, rng = Records(folder).path('b', 1).with_suffix('.feather'), np.random.default_rng(0)
    whole, made = path.read_bytes(), load_study(folder)
    for _ in range(150):
        bad = bytearray(whole)
        for at in rng.integers(len(bad), size=3): bad[at] = rng.integers(256)
        path.write_bytes(bad)
        try: made.outcomes()
        except FileError as e: assert '\n' not in str(e)

def test_figures_that_are_no_number_or_missing(folder):
    path = Records(folder).path('b', 1)
    path.write_text(json.dumps(record('b', 1, math.nan) | {'figures': {'top1': None, 'loss': math.nan, 'steps': 3.}}))
    path.with_suffix('.feather').unlink()
    made = load_study(folder)
    assert made.cells['b', 1].says == '–' and made.table()['3/steps'].to_list() == [None]*3 + [3.]
    assert made.table()['steps'].to_list() == [9]*4
    json.dumps(as_json(made), allow_nan=False)
    assert 'b, seed 1, kept no results of rows' in made.verdict().words()

def test_more_runs_than_polars_looks_at(folder):
    (folder/'study.json').write_text(json.dumps(ASKED | {'seeds': [*range(120)]}))
    shutil.rmtree(folder/'results')
    for seed in range(120): Records(folder).write(record('a', seed, 1), None)
    Records(folder).write(record('b', 119, .25) | {'figures': {'top1': .25, 'late': 1.5}}, None)
    assert load_study(folder).table()['late'].drop_nulls().to_list() == [1.5]

def test_what_is_no_fair_comparison_is_said(folder):
    assert load_study(folder).remarks() == []
    for seed in (0, 1):
        other = dict(positions=576, fingerprint=f'{seed}', machine={'torch': '3'}, judged_on='rows')
        Records(folder).write(record('b', seed, **other), None)
    (folder/'study.json').write_text(json.dumps(ASKED | {'budget': {'positions': 288}}))
    said = ' '.join(load_study(folder).remarks())
    for what in ('b took 576 positions a run, 2.00 times what a took (288)', 'different held-out rows', 'different machines',
                 'data has changed'):
        assert what in said and what in load_study(folder).verdict('loss').words()
    (folder/'study.json').write_text(json.dumps(ASKED | {'budget': {'seconds': 9.},
                                                         'arms': {'a': {}, 'b': {'function': 'f', 'source': 'x'}}}))
    said = ' '.join(load_study(folder).remarks())
    assert 'only its last run is counted' in said and 'does not reproduce elsewhere' in said

def options_of(folder, arm, **more):
    for seed in (0, 1):
        path = Records(folder).path(arm, seed)
        path.write_text(json.dumps(json.loads(path.read_text()) | {'options': {'max_steps': 9, **more}}))

WEIGHTS = {'value_loss_ratio': .5, 'policy_loss_ratio': 2., 'soft_policy_ratio': 1., 'auxiliary': ['2']}

@pytest.mark.parametrize('name, value', WEIGHTS.items())
def test_losses_that_are_different_quantities_are_not_compared(folder, name, value):
    arms = {'a': {}, 'b': {name: value}}
    (folder/'study.json').write_text(json.dumps(ASKED | {'arms': arms}))
    options_of(folder, 'a')
    options_of(folder, 'b', **{name: value})
    for seed in (0, 1):                      # surely lower
        path = Records(folder).path('b', seed)
        path.write_text(json.dumps(json.loads(path.read_text()) | {'figures': {'loss': 1. - seed/1e6}}))
    made = load_study(folder).verdict('loss')
    assert made.differences['verdict'].to_list() == ['not comparable'] and 'not comparable' in repr(made) + made._repr_html_()
    assert f'The loss of b is another quantity, with {name}=' in made.words() and 'better' not in made.words()
    assert 'another quantity' not in load_study(folder).verdict('top1').words()
    options_of(folder, 'b')
    (folder/'study.json').write_text(json.dumps(ASKED | {'arms': {'a': {}, 'b': {}}}))
    assert load_study(folder).verdict('loss').differences['verdict'].to_list() == ['better']

def test_a_part_of_a_loss_is_set_apart_by_its_own_options(folder):
    "That of rows is the same quantity whatever was learnt by"
    for name, value, figure in (('value_result_weight', .5, 'value_loss'), ('eval_scale', 400., 'value_loss'),
                                ('policy_mask', 'none', 'policy_loss')):
        (folder/'study.json').write_text(json.dumps(ASKED | {'arms': {'a': {}, 'b': {name: value}}}))
        options_of(folder, 'a')
        options_of(folder, 'b', **{name: value})
        for arm, seed in load_study(folder).cells:
            path, off = Records(folder).path(arm, seed), (arm == 'b')*(1 + seed/1e6)
            figures = {'loss': 3. - off, 'value_loss': 2. - off, 'policy_loss': 2. - off}
            path.write_text(json.dumps(json.loads(path.read_text()) | {'figures': figures}))
        told = {f: load_study(folder).verdict(f).differences['verdict'].item() for f in ('loss', 'value_loss', 'policy_loss')}
        other = {'value_loss': 'policy_loss', 'policy_loss': 'value_loss'}[figure]
        assert told == {'loss': 'not comparable', figure: 'not comparable', other: 'better'}, name

def test_arms_that_were_trained_on_other_rows_are_told(folder):
    for seed in (0, 1): Records(folder).write(record('b', seed, fingerprint='g', rows={'train': 90, 'valid': 4}), None)
    assert load_study(folder).remarks() == ['The runs are of different training rows: 80 (f); 90 (g).']

def test_figures_of_an_exam_are_of_its_positions(folder):
    says('exam_after=True', lambda: load_study(folder).verdict('exam/mates/found/1'))
    for arm, seed in load_study(folder).cells:
        path = Records(folder).path(arm, seed)
        more = {'exam': {'mates/found/1': .5 + seed/10}, 'guesses': {'top1': .1}, 'judged_on': 'validation rows, whose …'}
        path.write_text(json.dumps(json.loads(path.read_text()) | more))
    made = load_study(folder)
    words = made.verdict('exam/mates/found/1').words()
    assert 'Intervals are over seeds, for the positions of the exam.' in words
    assert not any(what in words for what in ('held-out', 'rows', 'Guessing', 'judged on'))
    assert 'Guessing' in made.verdict('top1').words()

def test_the_first_arm_is_the_baseline_or_nothing_is_said(folder):
    made = load_study(folder)
    assert made.verdict('top1').baseline == 'a' and made.verdict(['top1'], better={'top1': 'lower'}).better == {'top1': 'lower'}
    says('some of', lambda: made.verdict('top9'), lambda: made.verdict([]), lambda: made.verdict(['id']))
    shutil.rmtree(folder/'results'/'a')
    says("baseline='a'", load_study(folder).verdict)
    assert repr(load_study(folder)) == f'study {folder.name}: 2 of 4 runs done'
    shutil.rmtree(folder/'results')
    says('no run is done yet', load_study(folder).verdict, load_study(folder).curves)

HEAD = 'name: a\nbase: {}\n'
ODD = {
    'line 5: this is no YAML that can be read (x stands there twice)': 'arms:\n  x: {}\n  x: {epoch: 2}',
    'name stands there twice': 'name: b',
    'python/object': 'arms: !!python/object/apply:os.system ["true"]', 'nested too deeply, or refers to itself': 'arms: &b {x: *b}',
    'too large': 'seeds: &a0 [1,1,1,1,1,1,1,1,1]\n' + '\n'.join(f'x{i}: &a{i} [{",".join([f"*a{i - 1}"]*9)}]' for i in range(1, 9)),
    'nested': 'arms: ' + '['*3000 + ']'*3000, 'the name False': 'arms: {no: {}}', 'the name 1': 'arms: {a: {1: 2}}',
    'grid has': 'grid: {1: [2]}',
    'a list of values': 'grid: {a: b}', "arm 'a' is 0": 'arms: {a: 0}', 'of arms and of grid': 'arms: {e=1: }\ngrid: {e: [1]}',
    'arms, or grid, is missing': 'seeds: 3', 'month must be': 'arms: {a: {x: 2026-99-99}}', 'larger than': '#'*(2 << 20),
    'another document': '---\nx: 1'}

@pytest.mark.parametrize('what', ODD)
def test_yaml_that_says_nothing_good(what, tmp_path):
    (tmp_path/'x.yaml').write_text(HEAD + ODD[what])
    says(what, lambda: read_study(tmp_path/'x.yaml'))

def test_yaml_as_people_write_it(tmp_path):
    (tmp_path/'x.yaml').write_text('\ufeffname: a\nbase: &b {epoch: 1}\nfolder:\narms:\n'
                                   '  x: {<<: *b, learning_ratio: 1e-3}\n  y:\nbudget: {flops: 1e15}')
    assert read_study(tmp_path/'x.yaml') == {'name': 'a', 'base': {'epoch': 1}, 'budget': {'flops': 1e15},
                                             'arms': {'x': {'epoch': 1, 'learning_ratio': .001}, 'y': {}}}
    os.mkfifo(tmp_path/'pipe')
    says('is a pipe', lambda: read_study(tmp_path/'pipe'))
    says('file=', lambda: read_study(None), lambda: read_study(''))

def test_the_form_writes_where_it_may_and_what_is_read_again(tmp_path):
    form = StudyForm(lambda: {'stage3_data_path': Path('x'), 'stage': (1, 3), 'run_name': '1e5'}, str(tmp_path/'in'))
    for name in ('../evil', 'a/b', ''):
        form.name.value = name
        says('name=', form.write)
    assert not (tmp_path/'evil.yaml').exists()
    form.name.value = 'mine'
    assert read_study(form.write())['base'] == {'stage3_data_path': 'x', 'stage': [1, 3], 'run_name': '1e5'} and form.write()
    assert read_study(form.write())['folder'] == str(tmp_path/'in')      # where its table is looked for
    (tmp_path/'in'/'mine.yaml').write_text('name: mine   # by hand')
    says('would be lost', form.write)
    assert '1e5' in study_text('1e5', 'b:', 3, {}, '', 0) and "'1e5'" in study_text('1e5', 'b:', 3, {}, '', 0)
