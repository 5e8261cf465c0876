"""What registering, and the options of a run, refuse: an epoch, or the next run, must not be the first to say it."""
import dataclasses, re, subprocess, sys

import numpy as np
import pyarrow as pa
import pytest, torch
from torch import nn

from maou_nb import Callback, Column, Figure, Part, Section, Stage, option, learn_multi_stage, prepare_stage, register_stage
from maou_nb.data.batches import DenseBatch
from maou_nb.data.columns import COLUMNS, TAKEN, Columns
from maou_nb.data.options import OptionError
from maou_nb.data.plugins import PluginError, load_plugins
from maou_nb.data.positions import tally_table
from maou_nb.front.options import try_config
from maou_nb.judge.ask import read_position
from maou_nb.model.heads import HEADS, SquareHead, register_head
from maou_nb.model.losses import LOSS_PARTS, LOSSES, register_loss
from maou_nb.stages.stage import STAGES
from maou_nb.train.options import LearnConfig
from maou_nb.train.runner import StageThresholdNotMet, plugins_of
from samples import ONE_FILE, said


def stage(part='q', column=('q', 'x', 'squares'), width=81, head='reachable', named='gap', answers=None, **more):
    "A class of a small stage"
    columns = Columns('mine', (Column(*column),), answers=answers)
    return type('Mine', (Stage,), dict(name='mine', columns=columns, figures={'accuracy': Figure('a')},
                                       parts=(Part(part, width, head, named),)) | more)


JUDGED = dict(metrics=lambda self: 1, row_errors=lambda self, outputs, batch: {})     # numbers have no usual ones

@pytest.fixture
def mine():
    "Registers `stage(…)` and forgets it"
    def register(**facts):
        register_stage('mine')(stage(**facts))
        return STAGES['mine']
    yield register
    STAGES.pop('mine', None)
    COLUMNS.pop('mine', None)


@pytest.fixture(scope='module', autouse=True)
def squares():
    "A loss for `q`"
    @register_loss('gap', of='q')
    def gap_loss(outputs, batch, cfg): return {'loss': ((outputs['q'] - batch.q.float())**2).mean()}


def test_the_librarys_names_stay():
    "Also for another thing of the library"
    before = HEADS['policy']
    with pytest.raises(ValueError, match='comes with the library'): register_head('policy')(SquareHead)
    assert HEADS['policy'] is before


@pytest.mark.parametrize('made, why', [
    (dict(part='policy'), 'another name would be right'),
    (dict(column=('q', 'fold', 'squares')), 'another name would be right'),
    (dict(part='r'), "no column is called 'r', as its first part is: name that after one of q, or write"),
    (dict(threshold='hi'), "threshold='hi': a number, or None, was expected"),
    (dict(threshold=float('nan')), 'threshold=nan: a number, or None, was expected'),
    (dict(treshold=0.9), "nothing asks for 'treshold'; did you mean 'threshold'"),
    (dict(threshold=0.9, names={'threshold': ''}), 'threshold=0.9 would never act'),
    (dict(names={'data': ''}), r"names\['data'\] is empty"),
    (dict(names={'nonsense': 'x'}), r"names\['nonsense'\]: one of"),
    (dict(column=('q', 'x', 'number'), width=0), "'q' is a number, and what judges by itself asks for flags: write metrics and row_errors"),
    (dict(column=('q', 'x', 'levels')), 'write metrics and row_errors'),
    (dict(parts=(Part('q', 81, 'reachable', 'gap'), Part('r', 81, 'reachable', 'gap'))), 'it has 2 parts, and what judges'),
    (dict(parts=Part('q', 81, 'reachable', 'gap')), r'a tuple such as \(Part\(…\),\) was expected'),
    (dict(parts=('q',)), 'a tuple such as'),
    (dict(parts=(Part('q', 81, 'reachable', 'gap', ratio='nonesuch'),)), "ratio='nonesuch' of 'q' is none of its options"),
    (dict(figures=['accuracy']), 'a dict such as'), (dict(figures={'accuracy': 'a'}), 'a dict such as'),
    (dict(columns='q'), "columns='q': Columns, or several Column, were expected"),
    (dict(columns=()), '`columns` is missing'),
    (dict(part='keys', column=('keys', 'x', 'squares')), "no part can be called 'keys'"),
    (dict(part='backbone', column=('backbone', 'x', 'squares')), "no part can be called 'backbone'"),
    (dict(options=Section()), 'a subclass of Section was expected'),
    (dict(options=type('O', (Section,), {'__annotations__': {'depth': int}, 'depth': 3})), 'depth was not made by option'),
    (dict(options=type('O', (Section,), {'__annotations__': {'epoch': int}, 'epoch': option(3, 'Epochs', 'Mine', 'free')})),
     "stage '3' has an option epoch, too; another name would be right$"),
    (dict(head='nobody'), "head 'nobody' of 'q' is not known: choose from")], ids=str)
def test_what_does_not_fit_is_refused_at_once(made, why):
    "And the stage is not added"
    with pytest.raises(ValueError, match=why) as e: register_stage('mine')(stage(**made))
    said(e)
    assert 'mine' not in STAGES


@pytest.mark.parametrize('thing', [int, Stage(), stage()(), len], ids=str)
def test_what_is_no_class_of_a_stage(thing):
    with pytest.raises(ValueError, match='a subclass of Stage was expected') as e: register_stage('mine')(thing)
    said(e)


def test_names_are_wanted():
    "A decorator without its parentheses gets the class for a name"
    for register in (register_stage, register_head, lambda thing: register_loss(thing, of='q')):
        with pytest.raises(TypeError, match='wants a (name|key)') as e: register(stage())
        said(e)
    for wrong in ('', None, 5):
        for register in (register_head, lambda name: register_loss(name, of='q')):
            with pytest.raises(TypeError, match='wants a name') as e: register(wrong)
            said(e)


@pytest.mark.parametrize('key', ['a'*300, 'all', 'Ä', '../up', '7', '', True, None])
def test_what_is_no_key(key):
    with pytest.raises(ValueError, match='stage .* was expected') as e: register_stage(key)(stage())
    said(e)


def test_no_target_hides_what_a_batch_or_a_record_has():
    "Every public name of a batch is taken"
    names = {n for n in dir(DenseBatch) if not n.startswith('_')}
    names |= {f.name for f in dataclasses.fields(DenseBatch)}
    assert names <= {*TAKEN}, names - {*TAKEN}
    for name in TAKEN:
        with pytest.raises(ValueError, match='another name would be right') as e: Columns('mine', (Column(name, 'x', 'squares'),))
        said(e)
    with pytest.raises(ValueError, match='letters, digits and _') as e: Column('a b', 'x', 'squares')
    said(e)


# ---- plugins

def test_a_plugin_that_fails_leaves_nothing(tmp_path):
    "Its own error is said"
    file = tmp_path/'half.py'
    file.write_text("from maou_nb.model.heads import register_head\n@register_head('half')\nclass H: pass\n1/0\n")
    with pytest.raises(PluginError, match='ZeroDivisionError'): load_plugins(str(file))
    assert 'half' not in HEADS


def test_a_name_edited_away_is_gone(tmp_path):
    "With what was said of it, when the file is read again"
    file = tmp_path/'edited.py'
    for name in 'old', 'new':
        file.write_text(f"from maou_nb import register_head, register_loss\n@register_head('{name}')\nclass H: pass\n"
                        f"@register_loss('{name}', of='policy')\ndef loss(outputs, batch, cfg): pass\n")
        load_plugins(str(file))
    assert [('new' in r, 'old' in r) for r in (HEADS, LOSSES, LOSS_PARTS)] == [(True, False)]*3


def test_a_class_of_the_library_under_an_own_name_is_the_plugins(tmp_path):
    "Whoever registers a name is asked for, not who wrote the class"
    file = tmp_path/'wide.py'
    file.write_text("from maou_nb import register_head\nfrom maou_nb.model.heads import SquareHead\n"
                    "def add(name): register_head(name)(SquareHead)\nadd('wide')\n")
    [plugin] = load_plugins(str(file))
    assert HEADS.homes['wide'] == plugin.module
    assert plugins_of(LearnConfig(stage='1', reachable_head='wide')) == [plugin.about()]
    assert plugins_of(LearnConfig(stage='1')) == []


def test_a_cell_may_use_a_class_of_the_library_too():
    "And a process of its own does not know that name"
    code = ("from maou_nb import register_head\nfrom maou_nb.model.heads import SquareHead\nregister_head('wide')(SquareHead)\n"
            "from maou_nb.front.runs import known_here_only\nfrom maou_nb.train.options import LearnConfig\n"
            "print(known_here_only(LearnConfig(stage='1', reachable_head='wide')))")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert "head 'wide' was registered in a cell" in done.stdout, done.stderr


# ---- a trial

def asked(**options): return try_config({'stage': 'mine', 'model_size': 'tiny', **options})[1]

def of(problems, word): return [p for p in problems if word in p]

class Plain(nn.Module):
    "Metrics that are no Metric"
    def update(self, outputs, batch): pass
    def compute(self): return {'accuracy': 1.}


@pytest.mark.parametrize('loss, why', [
    (lambda o, b, c: o['q'].mean(), 'gives Tensor, where a dict of scalars was expected'),
    (lambda o, b, c: {'total': o['q'].mean()}, "gives total, where 'loss' was expected"),
    (lambda o, b, c: {'loss': o['q'].mean(1)}, r"gives 'loss' of shape \(2,\), where a scalar was expected"),
    (lambda o, b, c: {'loss': o['q'].mean(), 'all': o}, "gives 'all' of shape dict"),
    (lambda o, b, c: {'loss': torch.zeros(())}, 'does not depend on the answers'),
    (lambda o, b, c: {'loss': 0.5}, 'does not depend on the answers'),
    (lambda o, b, c: o['policy'], r"fails on a trial batch \(KeyError: 'policy'\)")])
@pytest.mark.parametrize('own', [True, False])
def test_a_loss_is_tried(mine, loss, why, own):
    "The stage's own, and one that an option names"
    if own: mine(loss=lambda self, *given: loss(*given))
    else:
        register_loss('tried', of='q')(loss)
        mine(named='tried')
    [problem] = of(asked(), 'its loss') or of(asked(), "its 'loss'")
    assert problem.startswith("stage='mine': its" if own else "q_loss='tried': its") and '\n' not in problem
    assert re.search(why, problem), problem


@pytest.mark.parametrize('facts, why', [
    (dict(metrics=lambda self: Plain()), 'metrics() gives Plain, where a torchmetrics Metric, such as a SumMetric, was expected'),
    (dict(figures={'f1': Figure('F1')}), "figures names 'f1', and its metrics compute accuracy, exact, baseline_accuracy"),
    (dict(best_by=lambda self, cfg: {'best': 'nonsense'}), "best_by names 'nonsense', and its metrics compute"),
    (dict(metrics=lambda self: 1/0), 'metrics fail on a trial batch (ZeroDivisionError: division by zero)')])
def test_metrics_are_tried(mine, facts, why):
    mine(**facts)
    [problem] = of(asked(), why)
    assert problem.startswith("stage='mine': ") and '\n' not in problem


def test_a_default_head_is_tried_with_its_keywords(mine):
    mine(parts=(Part('q', 81, 'reachable', 'gap', keywords=lambda cfg: {'depth': 3}),))
    [problem] = of(asked(), 'q_head')
    assert problem == "q_head='reachable': this head takes no depth=3, which an option gives"


def test_a_broken_stage_is_not_another_runs_business(mine):
    mine(parts=(Part('q', 7, 'reachable', 'gap'),), metrics=lambda self: 1/0)
    assert of(asked(), 'q_head') and not [p for p in try_config({'stage': '1', 'model_size': 'tiny'})[1] if 'mine' in p or 'q_' in p]


def test_an_unknown_stages_options_are_not_listed_beside_it():
    [problem] = asked(stage_mine_max_epochs=3, stage_mine_data_path='x')
    assert "stage='mine': one of" in problem


# ---- its rows

@pytest.mark.parametrize('kind, answer, why', [
    ('squares', lambda n: np.ones((n, 9)), r'are float64 of shape \(\d+, 9\), where whole numbers of shape \(\d+, 81\) were expected'),
    ('squares', lambda n: np.full((n, 81), 2), 'go from 2 to 2, where 0 to 1 was expected'),
    ('squares', lambda n: np.zeros((n, 81)), 'are float64'),
    ('levels', lambda n: np.full((n, 81), 256), 'go from 256 to 256, where 0 to 255 was expected'),
    ('levels', lambda n: np.full((n, 81), -1), 'go from -1 to -1'),
    ('labels', lambda n: np.ones((n, 1496), np.uint8), r'of shape \(\d+, 1496\), where whole numbers of shape \(\d+, 187\)'),
    ('number', lambda n: np.zeros((n, 2)), r'where numbers of shape \(\d+,\) were expected'),
    ('number', lambda n: ['a']*n, 'where numbers of shape'),
    ('number', lambda n: 3., r'of shape \(\)'),
    ('number', lambda n: np.zeros(n + 1), r'were expected'),
    ('number', lambda n: np.full(n, np.inf), 'hold inf, where numbers, or NaN for unknown, were expected'),
    ('number', lambda n: 1/0, 'fail on positions with id, .*boards.*: ZeroDivisionError: division by zero')])
def test_answers_that_do_not_fit_are_named(mine, tmp_path, kind, answer, why):
    "Stage and column, before a shard is written"
    mine(column=('q', 'x', kind), answers=lambda rows: {'x': answer(len(rows['id']))}, **JUDGED)
    with pytest.raises(ValueError, match="the answers of stage 'mine' .*" + why) as e:
        prepare_stage('mine', ONE_FILE, tmp_path/'rows')
    said(e)
    assert not list((tmp_path/'rows').glob('*.feather'))


def test_answers_leave_the_librarys_columns_alone(mine, tmp_path):
    mine(answers=lambda rows: {'x': rows['boards'] > 0, 'boardIdPositions': rows['boards']*0})
    with pytest.raises(ValueError, match="the answers of stage 'mine' have boardIdPositions, which is none of its columns x") as e:
        prepare_stage('mine', ONE_FILE, tmp_path/'rows')
    said(e)


@pytest.mark.parametrize('rules, why', [(lambda: 1/0, 'fail: ZeroDivisionError'), (lambda: [1], 'give list, where a table was expected'),
                                        (lambda: pa.table({'a': [1]}), 'give the columns a, where id, ')])
def test_rules_that_do_not_fit(mine, tmp_path, rules, why):
    mine(columns=Columns('mine', (Column('q', 'x', 'squares'),), rules=rules))
    with pytest.raises(ValueError, match="the rules of stage 'mine' " + why) as e: prepare_stage('mine', folder=tmp_path/'rows')
    said(e)
    for more in ({'paths': 'x.csa'}, {'nonsense': 1}):
        with pytest.raises(ValueError, match=f'{[*more][0]} would do nothing, as the rules give its rows'):
            prepare_stage('mine', folder=tmp_path/'rows', **more)


@pytest.mark.parametrize('kind, values', [
    ('squares', np.eye(81)[:3].astype(bool)), ('levels', np.arange(243).reshape(3, 81)),
    ('labels', np.arange(3*1496).reshape(3, 1496) % 3 == 0), ('number', np.array([1, np.nan, 3])), ('rate', np.arange(3))])
def test_answers_come_back_as_they_were(mine, kind, values):
    more = {'count': np.ones(3, np.uint32)} if kind == 'rate' else {}
    columns = mine(column=('q', 'x', kind), answers=lambda rows: {'x': values, **more}, **JUDGED).columns
    rows = {'id': np.arange(3, dtype=np.uint64), 'boards': np.zeros((3, 81), np.uint8), 'hands': np.zeros((3, 14), np.uint8),
            'fold': np.zeros(3, np.uint8), 'game': np.zeros(3, np.uint64), 'ply': np.zeros(3, np.uint16)}
    made = tally_table(rows, columns)['x'].to_pylist()
    if kind == 'labels': made = [np.unpackbits(np.frombuffer(m, np.uint8), bitorder='little') for m in made]
    expected = [[None if v != v else v for v in np.ravel(row).tolist()] for row in values]
    assert [np.ravel(np.array(m, object)).tolist() for m in made] == expected


# ---- drawn

@pytest.mark.parametrize('kind', ['number', 'rate'])
def test_a_number_a_row_is_drawn(mine, kind):
    "By what a stage has without writing it"
    made = mine(column=('q', 'x', kind), width=0, head='value', **JUDGED)
    batch = DenseBatch(made.columns, torch.zeros(2, 81, dtype=torch.uint8), torch.zeros(2, 14, dtype=torch.uint8),
                       {'q': torch.tensor([0.25, 1.])})
    outputs = {'q': torch.tensor([-1., 1.])}
    heat, caption = made.picture(batch, 0)
    assert heat.shape == (81,) and caption == '0.25'
    picture, below = made.mistakes(batch.rows(slice(0, 1)), {'q': outputs['q'][:1]})
    assert picture.startswith('<svg') and below == '0.25, and the network says -1'
    answer = made.answer(*read_position('startpos'), {'q': outputs['q'][:1]}, 3)
    assert answer.sentence() == 'mine: -1' and answer.picture.startswith('<svg') and answer.best is None


# ---- callbacks

class Keeps(Callback):
    "Keeps what a checkpoint cannot hold"
    steps = 0
    def __init__(self, kept): self.kept = kept
    def after_step(self, loop): self.steps += 1
    def state(self): return {'kept': self.kept}


@pytest.mark.parametrize('kept', [[torch.zeros(1)], {1, 2}, object(), (1, 2), {1: 2}, torch.eye(2).to_sparse()], ids=str)
def test_a_state_that_cannot_be_kept_is_said_before_a_step(shards, tmp_path, kept):
    callback = Keeps(kept)
    with pytest.raises(TypeError, match=r"callback Keeps: state\(\)\['kept'\] (is|would come back as) ") as e:
        learn_multi_stage(stage=1, stage1_data_path=shards['stage1_data_path'], model_size='tiny', gpu='cpu',
                          run_dir=tmp_path/'run', callbacks=[callback])
    said(e)
    assert callback.steps == 0


class Counts(Callback):
    "Counts steps and epochs, both in what a checkpoint keeps"
    def __init__(self): self.n = 0
    def after_step(self, loop): self.n += 1
    def after_epoch(self, loop): self.n += 1000
    def state(self): return {'n': self.n}
    def load(self, state): self.n = state['n']


class Ends(Callback):
    "Ends the run after so many steps"
    def __init__(self, steps): self.steps = steps
    def after_step(self, loop):
        self.steps -= 1
        if not self.steps: raise KeyboardInterrupt


@pytest.mark.parametrize('ends', [3, 7, 18, 20, 40])
def test_a_state_is_that_of_the_step_that_was_saved(shards, tmp_path, ends):
    "Wherever the run ended: also between the end of an epoch and the next"
    options = dict(stage=1, stage1_data_path=shards['stage1_data_path'], model_size='tiny', resnet_channels=8, resnet_blocks=1,
                   gpu='cpu', stage1_max_epochs=3, stage1_threshold=0.999, stage1_batch_size=64, run_dir=tmp_path/'run',
                   resume_from='latest', checkpoint_every=3)
    first = Counts()
    learn_multi_stage(**options, callbacks=[first, Ends(ends)])
    second = Counts()
    with pytest.raises(StageThresholdNotMet): learn_multi_stage(**options, callbacks=[second])
    assert second.n == 3*18 + 3000


@pytest.mark.parametrize('given, why', [
    ([None], 'callbacks: None is no Callback'), ([Counts], 'is no Callback'),
    ([type('Odd', (Callback,), {'after_steps': lambda self, loop: None})()], "nothing asks for 'after_steps'; did you mean 'after_step'"),
    ([type('Odd', (Callback,), {'before_epoch': lambda self, loop: None})()], 'Odd.before_epoch is never called: one of before_fit')],
    ids=str)
def test_what_is_no_callback_or_never_called(shards, given, why):
    with pytest.raises(OptionError, match=why) as e:
        learn_multi_stage(stage=1, stage1_data_path=shards['stage1_data_path'], callbacks=given)
    said(e)


def test_two_callbacks_of_one_name(shards, tmp_path):
    with pytest.raises(TypeError, match='callback Counts: two with a state are called so; give one a `name`') as e:
        learn_multi_stage(stage=1, stage1_data_path=shards['stage1_data_path'], model_size='tiny', gpu='cpu',
                          run_dir=tmp_path/'run', callbacks=[Counts(), Counts()])
    said(e)
