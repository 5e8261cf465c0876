"""What registering, and the options of a run, refuse: an epoch, or the next run, must not be the first to say it."""
import dataclasses, hashlib, json, re, subprocess, sys
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest, torch
from torch import nn
from torchmetrics import Metric
from torchmetrics.classification import BinaryAccuracy

from maou_nb import Callback, Column, Figure, Part, Section, Stage, option, learn_multi_stage, prepare_stage, register_stage
from maou_nb.data.batches import DenseBatch
from maou_nb.data.columns import COLUMNS, TAKEN, Columns
from maou_nb.data.options import OptionError
from maou_nb.data.plugins import PLUGINS, PluginError, load_plugins, missing_plugins
from maou_nb.data.positions import tally_table
from maou_nb.front.options import along_problems, try_config
from maou_nb.data.sources import StreamingFileSource
from maou_nb.front.runs import compare, known_here_only
from maou_nb.judge.ask import load_net, read_position
from maou_nb.model.heads import HEADS, SquareHead, register_head
from maou_nb.model.losses import LOSS_PARTS, LOSSES, register_loss
from maou_nb.stages.stage import STAGES
from maou_nb.train.callbacks import threshold_met
from maou_nb.train.checkpoints import CheckpointError
from maou_nb.train.loop import Loop, make_accelerator
from maou_nb.train.options import LearnConfig, config_class
from maou_nb.train.runner import StageThresholdNotMet, plugins_of
from samples import ONE_FILE, said


def plain(value):
    "A test's name for `value`, the same in every process"
    return re.sub(r' at 0x[0-9a-f]+', '', str(value))[:60]


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
    (dict(head='nobody'), "head 'nobody' of 'q' is not known: choose from")], ids=plain)
def test_what_does_not_fit_is_refused_at_once(made, why):
    "And the stage is not added"
    with pytest.raises(ValueError, match=why) as e: register_stage('mine')(stage(**made))
    said(e)
    assert 'mine' not in STAGES


@pytest.mark.parametrize('thing', [int, Stage(), stage()(), len], ids=plain)
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


def test_one_name_is_of_one_part():
    "An edited cell may change its part; another function may not take the name for another"
    def first(outputs, batch, cfg): pass
    def second(outputs, batch, cfg): pass
    register_loss('partial', of='q')(first)
    register_loss('partial', of='r')(first)
    with pytest.raises(ValueError, match="loss 'partial' is one of r: another name for that of q would be right") as e:
        register_loss('partial', of='q')(second)
    said(e)
    assert LOSSES['partial'] is first and LOSS_PARTS['partial'] == 'r'


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
    code = "from maou_nb import register_head\nfrom maou_nb.model.heads import SquareHead\nregister_head('in-a-cell')(SquareHead)\n"
    exec(code, {'__name__': '__main__'})           # as cells are run
    assert "head 'in-a-cell' was registered in a cell" in known_here_only(LearnConfig(stage='1', reachable_head='in-a-cell'))


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


@pytest.mark.parametrize('kept', [[torch.zeros(1)], {1, 2}, object(), (1, 2), {1: 2}, torch.eye(2).to_sparse()], ids=plain)
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
        if not self.steps: raise RuntimeError('ended')


@pytest.mark.parametrize('ends', [3, 18, *(pytest.param(n, marks=pytest.mark.slow) for n in (7, 20, 40))])
def test_a_state_is_that_of_the_step_that_was_saved(shards, tmp_path, ends):
    "Wherever the run ended: also between the end of an epoch and the next"
    options = dict(stage=1, stage1_data_path=shards['stage1_data_path'], model_size='tiny', resnet_channels=8, resnet_blocks=1,
                   gpu='cpu', stage1_max_epochs=3, stage1_threshold=0.999, stage1_batch_size=64, run_dir=tmp_path/'run',
                   resume_from='latest', checkpoint_every=3)
    first = Counts()
    with pytest.raises(RuntimeError, match='ended'): learn_multi_stage(**options, callbacks=[first, Ends(ends)])
    second = Counts()
    with pytest.raises(StageThresholdNotMet): learn_multi_stage(**options, callbacks=[second])
    assert second.n == 3*18 + 3000


@pytest.mark.parametrize('given, why', [
    ([None], 'callbacks: None is no Callback'), ([Counts], 'is no Callback'),
    ([type('Odd', (Callback,), {'after_steps': lambda self, loop: None})()], "nothing asks for 'after_steps'; did you mean 'after_step'"),
    ([type('Odd', (Callback,), {'before_epoch': lambda self, loop: None})()], 'Odd.before_epoch is never called: one of before_fit')],
    ids=plain)
def test_what_is_no_callback_or_never_called(shards, given, why):
    with pytest.raises(OptionError, match=why) as e:
        learn_multi_stage(stage=1, stage1_data_path=shards['stage1_data_path'], callbacks=given)
    said(e)


def test_two_callbacks_of_one_name(shards, tmp_path):
    with pytest.raises(TypeError, match='callback Counts: two with a state are called so; give one a `name`') as e:
        learn_multi_stage(stage=1, stage1_data_path=shards['stage1_data_path'], model_size='tiny', gpu='cpu',
                          run_dir=tmp_path/'run', callbacks=[Counts(), Counts()])
    said(e)


# ---- plugins of several files, moved and edited

HEAD_FILE = ("from maou_nb import register_head\nfrom maou_nb.model.heads import SquareHead\n@register_head({name!r})\n"
             "class H(SquareHead):\n    depth = {depth}\n")

@pytest.fixture
def importable(tmp_path, monkeypatch):
    "A folder from which modules can be imported; they are forgotten afterwards"
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before: del sys.modules[name]


def test_a_module_that_was_edited_is_read_again(importable):
    "And its sum is that of the code that runs"
    file = importable/'modp_edited.py'
    sums = []
    for depth in (1, 22):
        file.write_text(HEAD_FILE.format(name='modp', depth=depth))
        [plugin] = load_plugins('modp_edited')
        sums.append(plugin.sha256)
        assert HEADS['modp'].depth == depth
    assert sums[0] != sums[1] == hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_module_that_fails_leaves_nothing(importable):
    (importable/'modp_fails.py').write_text(HEAD_FILE.format(name='modfail', depth=1) + '1/0\n')
    with pytest.raises(PluginError, match="plugins='modp_fails': importing it failed with ZeroDivisionError: .* in line 6$") as e:
        load_plugins('modp_fails')
    said(e)
    assert 'modfail' not in HEADS and 'modp_fails' not in sys.modules


@pytest.mark.parametrize('kind', ['package', 'file'])
def test_a_plugin_of_several_files_is_one(importable, kind):
    "What it imports registers for it: found, summed, and known to another process by its name"
    if kind == 'package':
        name, part = 'pack_of_parts', importable/'pack_of_parts'/'heads.py'
        part.parent.mkdir()
        (part.parent/'__init__.py').write_text('from . import heads\n')
    else:
        name, part = str(importable/'front.py'), importable/'helper_of_front.py'
        (importable/'front.py').write_text('import helper_of_front\n')
    head = f'part-of-{kind}'
    part.write_text(HEAD_FILE.format(name=head, depth=1))
    [plugin] = load_plugins(name)
    cfg = config_class()(stage='1', reachable_head=head, plugins=[name])
    assert plugins_of(cfg) == [plugin.about()] and known_here_only(cfg) == ''
    assert known_here_only(cfg.model_copy(update={'plugins': ()})).endswith(f'plugins=[{name!r}] would be right')
    part.write_text(HEAD_FILE.format(name=head, depth=2))
    [again] = load_plugins(name)
    assert again.sha256 != plugin.sha256 and HEADS[head].depth == 2
    assert 'has changed since' in missing_plugins([plugin.about()])[0]


def test_what_a_module_registered_is_kept_without_being_named(importable):
    "As by `import mylib`, before training"
    (importable/'mylib_of_heads.py').write_text(HEAD_FILE.format(name='lib', depth=1))
    __import__('mylib_of_heads')
    [about] = plugins_of(LearnConfig(stage='1', reachable_head='lib'))
    assert about == {'name': 'mylib_of_heads', 'sha256': hashlib.sha256((importable/'mylib_of_heads.py').read_bytes()).hexdigest()}
    assert missing_plugins([about]) == []


def test_a_file_that_was_moved_or_copied_is_the_same(tmp_path):
    "Another with the same name is not"
    first, second, third = (tmp_path/n for n in ('mv1.py', 'mv2.py', 'mv3.py'))
    first.write_text(HEAD_FILE.format(name='moved', depth=1))
    load_plugins(str(first))
    second.write_bytes(first.read_bytes())
    load_plugins(str(second))
    third.write_text(HEAD_FILE.format(name='moved', depth=3))
    with pytest.raises(PluginError, match="head 'moved' is registered by .*mv2.py: another name would be right"): load_plugins(str(third))
    second.unlink()
    load_plugins(str(third))
    assert HEADS['moved'].depth == 3


CELL = HEAD_FILE.format(name='cell-head', depth=1)
BECOMES_A_FILE = f'''
code = {CELL!r}
exec(compile(code, 'cell', 'exec'))
from pathlib import Path
from maou_nb import load_plugins
from maou_nb.front.runs import known_here_only
from maou_nb.train.callbacks import threshold_met
from maou_nb.train.checkpoints import CheckpointError
from maou_nb.train.loop import Loop, make_accelerator
from maou_nb.train.options import LearnConfig, config_class
cfg = LearnConfig(stage='1', reachable_head='cell-head', plugins=['cell_head.py'])
Path('cell_head.py').write_text(code.replace('depth = 1', 'depth = 5'))
load_plugins('cell_head.py')
from maou_nb.model.heads import HEADS
print(HEADS['cell-head'].depth, repr(known_here_only(cfg)))
'''

def test_a_cell_becomes_a_file(tmp_path):
    "As `needs_file` advises, in the same kernel"
    done = subprocess.run([sys.executable, '-c', BECOMES_A_FILE], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "5 ''\n", done.stderr


@pytest.mark.parametrize('name, why', [
    ('sys', 'no module of a file has this name here'), ('nothing.at.all', 'no module of a file has this name'),
    (5, 'Python files, or names of modules, were expected'), ([None], 'Python files, or names of modules'),
    ('exits.py', 'importing it failed with SystemExit: 3, in line 2'), ('notes.txt', 'no module of a file has this name'),
    ('./notes.txt', 'it does not end in .py'),
    ('bad_parent.child', 'importing it failed with ZeroDivisionError')], ids=plain)
def test_names_that_are_no_plugin(importable, monkeypatch, name, why):
    monkeypatch.chdir(importable)
    (importable/'exits.py').write_text('import sys\nsys.exit(3)\n')
    (importable/'notes.txt').write_text('notes')
    (importable/'bad_parent').mkdir()
    (importable/'bad_parent'/'__init__.py').write_text('1/0\n')
    with pytest.raises(PluginError, match=why) as e: load_plugins(name)
    said(e)


# ---- a run is read by whoever has what it used

def test_a_stage_that_was_not_run_is_not_asked_for(mine, shards, tmp_path):
    "Its options are not kept"
    mine()
    run = tmp_path/'run'
    learn_multi_stage(stage=1, stage1_data_path=shards['stage1_data_path'], model_size='tiny', resnet_channels=8, resnet_blocks=1,
                      gpu='cpu', stage1_threshold=0., stage1_max_epochs=1, run_dir=run)
    STAGES.pop('mine')
    COLUMNS.pop('mine')
    assert 'q_head' not in json.loads((run/'config.json').read_text())
    assert load_net(run).about['stage'] == 1 and len(compare(run, run).runs) == 1


def test_a_resume_says_which_plugin_it_needs(shards, tmp_path):
    file, run = tmp_path/'needed.py', tmp_path/'run'
    file.write_text(HEAD_FILE.format(name='needed', depth=1))
    options = dict(stage=1, stage1_data_path=shards['stage1_data_path'], model_size='tiny', resnet_channels=8, resnet_blocks=1,
                   gpu='cpu', stage1_threshold=0., stage1_max_epochs=1, run_dir=str(run), reachable_head='needed')
    learn_multi_stage(**options, plugins=str(file))
    HEADS.pop('needed')
    PLUGINS.clear()
    for resume in ('latest', str(run)):
        problems = try_config({**options, 'resume_from': resume, 'run_dir': str(run) if resume == 'latest' else str(tmp_path/'other')})[1]
        assert any(p.startswith('plugins: plugin ') and 'needed.py' in p and 'was used' in p for p in problems), problems


def test_a_changed_network_is_refused_in_a_sentence(shards, tmp_path):
    file, run = tmp_path/'wide.py', tmp_path/'run'
    code = ("from torch import nn\nfrom maou_nb import register_head\n@register_head('wide-one')\nclass W(nn.Module):\n"
            "    def __init__(self, channels):\n        super().__init__()\n"
            "        self.layers = nn.Sequential(nn.Conv2d(channels, WIDTH, 1), nn.Conv2d(WIDTH, 1, 1))\n"
            "    def forward(self, x): return self.layers(x).flatten(1)\n")
    file.write_text(code.replace('WIDTH', '4'))
    options = dict(stage=1, stage1_data_path=shards['stage1_data_path'], model_size='tiny', resnet_channels=8, resnet_blocks=1,
                   gpu='cpu', stage1_threshold=0., stage1_max_epochs=1, run_dir=str(run), reachable_head='wide-one', plugins=str(file))
    learn_multi_stage(**options)
    file.write_text(code.replace('WIDTH', '6'))
    more = {**options, 'resume_from': 'latest', 'stage1_max_epochs': 2, 'stage1_threshold': 1.}
    why = 'resume_from: stage 1 has another network than its checkpoint: .* has a plugin changed since'
    with pytest.raises(OptionError, match=why) as e:
        learn_multi_stage(**more)
    said(e)
    with pytest.raises(CheckpointError, match='does not hold the network that it describes.*wide.py has changed since') as e:
        load_net(run)
    said(e)


# ---- lower is better

def test_a_figure_may_be_better_when_lower(mine):
    "Best epoch and threshold alike"
    made = mine(figures={'error': Figure('error', lower=True)}, **JUDGED)
    loop = SimpleNamespace(stage=made, judged_on='valid', settings=SimpleNamespace(threshold=0.4),
                           history=[{'valid/error': e} for e in (0.5, 0.3, 0.6)], figure=lambda name: 0.6)
    assert Loop._best(loop, 'error') == 1 and not threshold_met(loop)
    loop.figure = lambda name: 0.3
    assert threshold_met(loop)


def test_metrics_that_keep_sums_elsewhere_are_refused(mine):
    "A checkpoint in the middle of an epoch would lose them"
    class Wraps(Metric):
        def __init__(self):
            super().__init__()
            self.inner = BinaryAccuracy()
        def update(self, outputs, batch): self.inner.update(outputs['q'].sigmoid(), batch.q.int())
        def compute(self): return {'accuracy': self.inner.compute()}
    mine(metrics=lambda self: Wraps())
    [problem] = of(asked(), "keep what makes 'accuracy' elsewhere than in states of their own")
    assert problem.startswith("stage='mine'")


def test_a_copy_of_rows_is_of_these_columns(tmp_path, monkeypatch, mine):
    "Not of others of the same names and sizes"
    monkeypatch.setenv('MAOU_NB_CACHE', str(tmp_path/'cache'))
    keys = set()
    for column, kind in (('x', 'squares'), ('y', 'squares'), ('x', 'levels')):
        both = ('x', 'y') if column == 'x' else ('y', 'x')
        columns = Columns('mine', (Column('q', both[0], kind), Column('r', both[1], kind)),
                          answers=lambda rows: {'x': rows['boards'] > 0, 'y': rows['boards'] == 0})
        mine(columns=columns, **JUDGED)
        prepare_stage('mine', ONE_FILE, tmp_path/'rows')
        keys.add(StreamingFileSource(tmp_path/'rows', 'mine')._copy_key())
    assert len(keys) == 3

def test_lower_is_what_a_figure_says_else_what_it_is_called():
    class S(Stage): figures = {'errors_found': Figure('mistakes found', lower=False), 'moves_off': Figure('moves off', lower=True),
                               'error': Figure('error'), 'hits': Figure('hits')}
    assert {f: S().lower(f) for f in (*S.figures, 'value_loss')} == \
        {'errors_found': False, 'moves_off': True, 'error': True, 'hits': False, 'value_loss': True}

def test_parts_of_one_name_are_refused():
    "One head would learn both, and a loss be lost"
    class Soft(Stage):
        columns, figures = Columns('soft', (Column('legal', 'legalMoves', 'labels'),)), {'f1': Figure('f1')}
        parts = (Part('soft_policy', 1496, 'legal_moves', 'bce'),)
    STAGES['soft'] = soft = Soft()
    try:
        soft.key = 'soft'
        cfg = LearnConfig(auxiliary='soft')
        assert not [*along_problems(cfg)]
        assert "two parts of stage 3 would be called 'soft_policy'; names that differ" in \
            [*along_problems(cfg.model_copy(update={'soft_policy_ratio': 2.}))][0]
    finally: del STAGES['soft']

def test_no_variable_of_accelerate_changes_a_run(monkeypatch):
    "It divides losses, or compiles nets, where it is asked to by its own variables"
    for name, value in {'GRADIENT_ACCUMULATION_STEPS': '4', 'DYNAMO_BACKEND': 'inductor', 'MIXED_PRECISION': 'bf16'}.items():
        monkeypatch.setenv(f'ACCELERATE_{name}', value)
    a = make_accelerator('cpu', 'fp32')
    assert (a.gradient_accumulation_steps, a.mixed_precision, a.state.dynamo_plugin.backend.value) == (1, 'no', 'NO')
