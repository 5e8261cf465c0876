"`search`: small real trainings, ended early, killed and gone on with; what cannot be is one sentence"
import json, os, signal, subprocess, sys, time
from pathlib import Path

import numpy as np
import optuna
import pytest

from maou_nb import Callback, OptionError, load_run, search, study
from maou_nb.data.files import FileError
from maou_nb.front import search as room
from maou_nb.front.runs import config_of
from maou_nb.train.folder import RunFolder
from samples import said, thinned

ROOT = Path(__file__).resolve().parents[1]
SPACE = {'learning_ratio': (1e-3, 0.1, 'log')}

@pytest.fixture
def base(shards, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return dict(stage=1, stage1_data_path=shards['stage1_data_path'], stage1_batch_size=128, stage1_max_epochs=2, stage1_threshold=1.,
                model_size='tiny', resnet_channels=8, resnet_blocks=1, gpu='cpu')

def bare(result): return [(t.number, t.options, t.figure, t.steps, t.state) for t in result.trials]

def test_it_finds_goes_on_and_tells(base):
    heard = []
    base['stage1_max_epochs'] = 1
    found = search(base, {**SPACE, 'resnet_channels': [4, 8]}, trials=3, name='one', say=heard.append)
    assert [line.split(' · ')[0] for line in heard] == [f'trial {n} finished' for n in range(3)]
    assert len({str(t.options) for t in found.trials}) == 3 and {t.steps for t in found.trials} == {9}
    assert found.figure == 'accuracy' and found.best.figure == max(t.figure for t in found.trials)
    assert found.best_options == base | found.best.options
    kept = load_run(found.best.run_dir)
    assert max(h['train_eval/accuracy'] for h in kept[1].history) == found.best.figure
    again = search(base, {**SPACE, 'resnet_channels': [4, 8]}, trials=4, name='one', say=heard.append)
    assert len(heard) == 4 and len(again.trials) == 4 and set(map(str, bare(found))) < set(map(str, bare(again)))
    assert found._repr_html_().count('<tr') == 4 and 'best accuracy' in repr(found)

def test_a_loss_that_the_space_defines_is_no_metric(base, shards):
    "The smallest weight would have the smallest loss"
    for metric, option in (('loss', 'value_loss_ratio'), ('value_loss', 'value_result_weight'), ('policy_loss', 'policy_mask')):
        values = ['legal', 'none'] if option == 'policy_mask' else [1., .1]
        with pytest.raises(OptionError) as e:
            search({**base, 'stage': 3, 'stage3_data_path': shards['stage3_data_path']},
                   {option: values, 'learning_ratio': [.01, .02]}, trials=2, metric=metric)
        assert f"metric={metric!r}: it is another quantity for each {option} that is tried; a figure" in said(e)
    assert not Path('studies').exists()

@pytest.mark.slow
def test_equal_seeds_try_the_same_and_another_seed_does_not(base):
    runs = [search(base, SPACE, trials=2, name=n, seed=s, say=lambda t: None) for n, s in (('a', 0), ('b', 0), ('c', 1))]
    assert bare(runs[0]) == bare(runs[1]) != bare(runs[2])

def test_what_base_says_is_tried_first(base):
    found = search({**base, 'learning_ratio': 0.02}, SPACE, trials=1, name='first')
    assert found.best.options == {'learning_ratio': 0.02}

def test_a_loss_is_better_lower(base):
    found = search(base, {'learning_ratio': [0.02, 1e-7]}, trials=2, sampler='grid', metric='loss', name='low', pruner='none')
    assert found.lower and found.best.options == {'learning_ratio': 0.02} and found.trials[1].figure > found.best.figure

def test_a_pruner_ends_a_run_and_says_so(base):
    "As any early end: saved, with the reason; its figure is no best one"
    pruner = optuna.pruners.ThresholdPruner(lower=0.85)
    base['stage1_max_epochs'] = 4
    found = search(base, {'learning_ratio': [0.02, 1e-7]}, trials=2, sampler='grid', pruner=pruner, name='cut')
    states = {t.options['learning_ratio']: t for t in found.trials}
    bad = states[1e-7]
    assert states[0.02].state == 'finished' and bad.state == 'pruned' and bad.steps == 9 and found.best is states[0.02]
    assert 'stopped by the pruner' in bad.why and 'after epoch 1' in bad.why
    assert 'stopped' in load_run(bad.run_dir).stopped or 'not come to an end' in load_run(bad.run_dir).stopped
    assert '1 pruned' in repr(found)

class Faulty(Callback):
    "Has no room for nets of 16 channels"
    def before_fit(self, loop):
        if loop.cfg.resnet_channels == 16: raise RuntimeError('CUDA out of memory. Tried to allocate 9 GiB')

def test_trials_that_fail_are_told_and_end_nothing(base):
    heard = []
    found = search(base, {'resnet_channels': [8, 16]}, trials=2, sampler='grid', name='room', callbacks=[Faulty()], say=heard.append)
    failed = [t for t in found.trials if t.state == 'failed']
    assert len(failed) == 1 and failed[0].options == {'resnet_channels': 16} and failed[0].why and '\n' not in failed[0].why
    assert found.best.options == {'resnet_channels': 8} and any(failed[0].why in line for line in heard)

def test_a_loss_that_is_no_number_fails_its_trial_alone(base):
    vit = dict(model_architecture='vit', vit_embed_dim=16, vit_num_layers=1, vit_num_heads=2, resnet_channels=None, resnet_blocks=None)
    wild = {**base, **vit, 'optimizer': 'sgd', 'gradient_clip_norm': None, 'stage1_batch_size': 32}
    found = search(wild, {'learning_ratio': [0.05, 1000.]}, trials=2, sampler='grid', name='wild')
    states = {t.options['learning_ratio']: t for t in found.trials}
    assert states[0.05].state == 'finished' and states[1000.].state == 'failed' and 'diverged' in states[1000.].why

class StopOnce(Callback):
    "Interrupts the second run, as a person does"
    runs = 0
    def before_fit(self, loop): StopOnce.runs += 1
    def after_step(self, loop):
        if StopOnce.runs == 2 and loop.step == 7: loop.stop.why = 'SIGINT'

@pytest.mark.slow
def test_an_interrupt_ends_the_search_and_the_same_call_goes_on(base):
    heard, quiet = [], lambda text: None
    whole = search(base, SPACE, trials=3, name='whole', say=quiet)
    stopped = search(base, SPACE, trials=3, name='stopped', callbacks=[StopOnce()], say=heard.append)
    assert 'the same call goes on' in heard[-1] and [t.state for t in stopped.trials] == ['finished', 'not ended']
    assert bare(search(base, SPACE, trials=3, name='stopped', say=quiet)) == bare(whole)

SCRIPT = """
import json, sys
from maou_nb import search
base, space = json.loads(sys.argv[1])
search(base, {n: tuple(v) for n, v in space.items()}, trials=3, name='killed')
"""

def test_a_search_that_was_killed_ends_with_the_same_table(base):
    "In the middle of its second trial, by SIGKILL; the journal's last line is cut, too"
    base |= {'stage1_max_epochs': 4, 'checkpoint_every': 4, 'resnet_channels': 4}
    asked = json.dumps([base, SPACE])
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'TQDM_DISABLE': '1'}
    child = subprocess.Popen([sys.executable, '-c', SCRIPT, asked], env=env)
    line = Path('studies/killed/trial-001/history.jsonl')
    while not line.exists() and child.poll() is None: time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    with open('studies/killed/optuna.log', 'a') as f: f.write('{"op_code": 6, "wor')
    ended = search(base, SPACE, trials=3, name='killed', say=lambda text: None)
    assert [t.state for t in ended.trials] == ['finished']*3
    assert bare(ended) == bare(search(base, SPACE, trials=3, name='whole', say=lambda text: None))

def test_another_search_needs_another_name(base):
    search(base, SPACE, trials=1, name='mine')
    longer = {**base, 'stage1_max_epochs': 3}
    for changed, what in ((dict(base=longer), 'base: stage1_max_epochs 2 → 3'), (dict(seed=1), 'seed 0 → 1'),
                          (dict(space={'resnet_channels': [8, 16]}), 'space: learning_ratio'),
                          (dict(metric='loss'), "'accuracy' → 'loss'")):
        with pytest.raises(OptionError, match='another search lies in') as error:
            search(**{'base': base, 'space': SPACE, 'trials': 2, 'name': 'mine', **changed})
        assert what in said(error)
    Path('studies/mine/search.json').write_text('{"ba')
    with pytest.raises(OptionError, match='search.json is damaged') as error: search(base, SPACE, name='mine')
    assert said(error)

@pytest.mark.parametrize(('changed', 'what'), [
    (dict(base=None), 'base=None: a dict of options was expected'),
    (dict(base={'run_dir': 'x'}), "base: run_dir='x': each trial has a folder of its own"),
    (dict(base={'gpus': 2}), 'a search trains in this process'),
    (dict(base={'epochs': 2}), 'epochs: there is no such option; did you mean epoch?'),
    (dict(space={}), 'space={}: a dict'), (dict(space=None), 'space=None: a dict'),
    (dict(space={'lr': (0.1, 1.)}), 'lr: there is no such option; did you mean learning_ratio?'),
    (dict(space={'run_name': ['a', 'b']}), 'run_name: the search says it itself'),
    (dict(space={'learning_ratio': 0.1}), 'learning_ratio=0.1: a range (low, high)'),
    (dict(space={'learning_ratio': (1., 0.1)}), 'the lower end first'),
    (dict(space={'learning_ratio': (0., 0.1, 'log')}), 'above 0 for logarithms'),
    (dict(space={'learning_ratio': (0.1, 1., 'lin')}), 'was expected'),
    (dict(space={'learning_ratio': (-1., 0.1)}), 'input should be greater than 0'),
    (dict(space={'optimizer': ['adamw', 'lion']}), "optimizer='lion'"),
    (dict(space={'optimizer': []}), 'optimizer=[]'), (dict(space={'optimizer': ['sgd', 'sgd']}), 'each choice once'),
    (dict(space={'optimizer': [{}]}), 'as a choice'),
    (dict(space={'momentum': (0.5, 0.9)}), 'momentum: it would be varied in vain, as only optimizer=sgd'),
    (dict(space={'learning_ratio': ('0.1', '1')}), 'texts are no ends of a range'),
    (dict(space={'resnet_channels': (8., 16.5)}), 'resnet_channels takes whole numbers: a range between two'),
    (dict(space={'resnet_channels': optuna.distributions.FloatDistribution(8, 16)}), 'takes whole numbers'),
    (dict(space={'nesterov': (0, 1)}), 'nesterov takes no numbers: a list of choices'),
    (dict(space={'optimizer': ['SGD', 'sgd']}), "'SGD', 'sgd' are the same choice"),
    (dict(space={'gpus': [None, 2]}), 'gpus: a search trains in this process'),
    (dict(space={'seed': (0, 9)}), 'seed: the best of several'),
    (dict(space={'keep_checkpoints': [1, 2]}), 'changes nothing of what is learnt'),
    (dict(space={'': [1, 2]}), "'' is no name of an option"),
    (dict(trials=0), 'trials=0: a whole number from 1'), (dict(seed=-1), 'seed=-1: a whole number from 0'),
    (dict(metric='top1'), "metric='top1': one of accuracy"), (dict(metric=3), 'metric=3: one of'),
    (dict(name='../x'), "name='../x': a name for a folder"), (dict(name=''), "name='': a name"),
    (dict(sampler='best'), "sampler='best': one of tpe, "), (dict(sampler='grid'), 'learning_ratio is a range; a list of choices'),
    (dict(pruner='best'), "pruner='best': one of median, "), (dict(callbacks=[print]), 'is no Callback')])
def test_odd_arguments_are_a_sentence_and_make_nothing(base, changed, what):
    more = changed.get('base')
    given = {'base': base, 'space': SPACE, 'trials': 1, **changed} | ({'base': base | more} if more else {})
    with pytest.raises(ValueError) as error: search(**given)
    assert what in said(error) and not Path('studies').exists()

def test_an_option_says_which_numbers_a_range_has(base):
    "0 to 1 is all there is between, of a decay; numbers of NumPy's are numbers"
    dists = room.checked_space(base, {'learning_ratio': (1, 3, 'log'), 'stage12_weight_decay': (0, 1),
                                      'resnet_channels': (np.int64(8), 16.), 'resnet_blocks': np.arange(1, 3),
                                      'stage1_batch_size': range(32, 97, 32)})
    kinds = [type(d).__name__[0] for d in dists.values()]
    assert kinds == ['F', 'F', 'I', 'C', 'C'] and dists['stage1_batch_size'].choices == (32, 64, 96)
    assert room._first({'resnet_channels': 9}, {'resnet_channels': optuna.distributions.IntDistribution(8, 32, step=8)}) == {}

def test_a_large_grid_is_not_laid_out():
    dists = {n: optuna.distributions.CategoricalDistribution(range(2_000)) for n in ('warmup_steps', 'batch_size', 'epoch')}
    assert room._grid({}, dists, 2) == [{'warmup_steps': 0, 'batch_size': 0, 'epoch': n} for n in (0, 1)]

class Second(Callback):
    "Begins the same search while it goes on"
    def __init__(self, again): self.again, self.heard = again, []
    def before_fit(self, loop):
        with pytest.raises(FileError, match='the search in studies/twice is going on by another process') as error: self.again()
        self.heard.append(said(error))

def test_trials_that_no_journal_knows_are_of_another_search(base):
    "Their figures are not taken for those of other options"
    search(base, SPACE, trials=1, name='old', say=lambda text: None)
    folder = Path('studies/old')
    (folder/'trial-007').mkdir()
    with pytest.raises(OptionError, match='knows trial-007, which is of another search') as error: search(base, SPACE, trials=2, name='old')
    assert said(error)
    for lost in ('optuna.log', 'search.json'): (folder/lost).unlink()
    with pytest.raises(OptionError, match='knows trial-000') as error: search(base, SPACE, trials=1, name='old')
    assert said(error) and not (folder/'search.json').exists()

def test_a_study_is_not_made_where_a_search_lies(base):
    search(base, SPACE, trials=1, name='mine', say=lambda text: None)
    with pytest.raises(FileError, match='holds a search: another name was expected') as error: study('mine', base, {'a': {}}, seeds=1)
    assert said(error) and not Path('studies/mine/study.json').exists()

@pytest.mark.parametrize('sampler', [optuna.samplers.GridSampler({'optimizer': ['adamw', 'sgd']}), optuna.samplers.BruteForceSampler()])
def test_a_sampler_that_has_tried_all_ends_the_search(base, sampler):
    call = lambda: search({**base, 'stage1_max_epochs': 1}, {'optimizer': ['adamw', 'sgd']}, trials=5, sampler=sampler, name='all',
                          pruner='none', say=lambda text: None)
    found = call()
    assert {t.options['optimizer']: t.state for t in found.trials} == {'adamw': 'finished', 'sgd': 'finished'}
    assert bare(call()) == bare(found)

def test_a_sampler_of_values_outside_the_space_is_a_sentence(base):
    sampler = optuna.samplers.PartialFixedSampler({'optimizer': 'lion'}, optuna.samplers.RandomSampler())
    with pytest.raises(OptionError, match='it tries what is not in the space') as error:
        search(base, {'optimizer': ['adamw', 'sgd']}, sampler=sampler, name='fixed')
    assert said(error)

def test_two_searches_in_one_folder(base):
    "The second is refused; what lies there is kept, or named if it cannot be gone on with"
    go = lambda **more: search(base, **{'space': SPACE, 'trials': 1, 'name': 'twice', 'say': lambda text: None, **more})
    second = Second(go)
    found, folder = go(callbacks=[second]), Path('studies/twice')
    assert len(second.heard) == 1 and bare(found) == bare(go())
    journal, about = folder/'optuna.log', folder/'search.json'
    good = journal.read_bytes()
    for data in (good.replace(b'\n', b'\nodd\n', 1), b'\xff\n', b'[1]\n', b'{"a": 1}\n', b'{"op_code": 99}\n', b'{"op_code": 4}\n'):
        journal.write_bytes(data)
        with pytest.raises(OptionError, match='optuna.log is damaged') as error: go()
        assert said(error)
    journal.write_bytes(good)
    about.rename(folder/'kept.json')
    with pytest.raises(OptionError, match='search.json is gone, and trials are there') as error: go(space={'resnet_channels': [8, 16]})
    assert said(error)
    (folder/'kept.json').rename(about)
    assert bare(found) == bare(go())
    (folder/'study.json').write_text('{}')
    Path('studies/file').write_text('')
    for name, what in (('twice', 'holds a study'), ('file', 'is no folder')):
        with pytest.raises(OptionError, match=what) as error: go(name=name)
        assert said(error)

def test_an_option_of_one_choice_may_be_varied_beside_it(base):
    assert set(room.checked_space(base, {'momentum': (0.5, 0.9), 'optimizer': ['adamw', 'sgd']})) == {'momentum', 'optimizer'}

def test_options_that_do_nothing_beside_others_are_left_out_of_a_trial(base):
    space = {'optimizer': ['adamw', 'sgd'], 'momentum': [0.8, 0.9]}
    found = search(base, space, trials=4, sampler='grid', name='both')
    assert [t.state for t in found.trials] == ['finished']*3         # AdamW is tried once
    assert {t.options['optimizer']: 'momentum' in t.options for t in found.trials} == {'adamw': False, 'sgd': True}
    room.make_config(**found.best_options, run_dir='again')

@pytest.mark.parametrize('space', thinned([{'vit_num_layers': [1, 2]}, {'vit_num_layers': [1, 2], 'preset': ['vit', 'small-resnet']}], 2))
def test_what_a_preset_says_counts_as_said(base, space):
    base = {'preset': 'vit', 'model_size': 'tiny'} | {n: v for n, v in base.items() if 'resnet' not in n} | {'stage1_max_epochs': 1}
    found = search(base, space, trials=9, sampler='grid', name='preset', say=lambda text: None)
    assert sorted(map(str, (t.options for t in found.trials))) == sorted(map(str, (
        [{'vit_num_layers': 1}, {'vit_num_layers': 2}] if len(space) == 1 else
        [{'vit_num_layers': 1, 'preset': 'vit'}, {'vit_num_layers': 2, 'preset': 'vit'}, {'preset': 'small-resnet'}])))
    layers = {config_of(RunFolder(t.run_dir)).vit_num_layers for t in found.trials if 'vit_num_layers' in t.options}
    assert layers == {1, 2}

def test_without_optuna_the_extra_is_named(base, monkeypatch):
    room._optuna.cache_clear()
    monkeypatch.setattr(room, 'find_spec', lambda name: None)
    with pytest.raises(OptionError, match=r'pip install "maou_nb\[search\]" would be right') as error: search(base, SPACE)
    assert said(error)
    room._optuna.cache_clear()

@pytest.mark.slow      # tests/test_house.py looks for optuna, too, in a process that trains
def test_optuna_is_imported_by_a_search_alone():
    done = subprocess.run([sys.executable, '-c', 'import sys, maou_nb; maou_nb.search; print("optuna" in sys.modules)'],
                          env={**os.environ, 'PYTHONPATH': str(ROOT)}, capture_output=True, text=True)
    assert done.stdout.strip() == 'False', done.stderr
