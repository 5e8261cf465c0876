"Every word of the form is there in Japanese, none is left over, and what is not ours stays as its author wrote it"
import ast, inspect, json, re
from pathlib import Path

import pytest

from maou_nb import LearnPanel
from maou_nb.data.plugins import load_plugins
from maou_nb.front import panel, preflight, runs, study_form
from maou_nb.front.options import option_of, try_config
from maou_nb.front.panel import CALLED, Field, _note_html
from maou_nb.front.preflight import Preflight
from maou_nb.front.words import OPTIONS, PROBLEMS, REASONS, SENTENCES, STATUS, TABS, VALUES, Words
from maou_nb.stages.stage import STAGES
from maou_nb.train.folder import RunFolder
from maou_nb.train.runner import StageResult
from maou_nb.train.options import LearnConfig, choices_of, config_class, is_bool, label_of, tabs, why_idle

FIELDS, JA = LearnConfig.model_fields, Words('ja')
KANA = re.compile('[\u3040-\u30ff\u4e00-\u9fff]')

def test_every_option_has_a_label_and_help():
    assert [*OPTIONS] and {*OPTIONS} == {*FIELDS} and [*TABS] == [*tabs(LearnConfig)]
    for name, (label, help) in OPTIONS.items():
        assert (KANA.search(label) or name.startswith('optimizer_')) and KANA.search(help), name
        assert not label.endswith('。') and not help.endswith('。'), name

def test_no_two_fields_of_a_tab_are_called_the_same():
    for of in tabs(LearnConfig).values():
        for labels in ([OPTIONS[n][0] for n in of], [label_of(n, f) for n, f in of.items()]): assert len({*labels}) == len(labels)

@pytest.mark.parametrize('name', FIELDS)
def test_what_the_help_names_is_there(name):
    "Options and values that the English help names are named in Japanese too"
    words = lambda text: {w for w in re.findall(r'[a-z]\w*_\w+', text) if w in FIELDS}
    assert words(OPTIONS[name][1]) == words(FIELDS[name].description)
    if choices_of(FIELDS[name]) and name not in ('stage12_lr_scheduler', 'lr_scheduler', 'compile_mode'):
        assert all(v in JA.tip(name, FIELDS[name]) or v in VALUES[name] for v in choices_of(FIELDS[name]))

def test_every_value_has_a_name():
    chosen = {n: {*choices_of(f)} for n, f in FIELDS.items() if choices_of(f)}
    assert chosen == {n: {*v} for n, v in VALUES.items() if n}
    field = Field('optimizer', FIELDS['optimizer'], JA)
    assert field.widget.options == (('adamw · AdamW', 'adamw'), ('sgd · SGD', 'sgd'), ('muon · Muon', 'muon')) and field.value == 'adamw'
    for name, f in FIELDS.items():
        if is_bool(f): assert JA.value(name, 'true') == 'true · はい'

def said_by(module):
    "The sentences that a module asks for: texts in calls of `words`, and in tables of buttons"
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.Call) and getattr(node.func, 'id', getattr(node.func, 'attr', '')) == 'words':
            yield from (n.value for a in node.args for n in ast.walk(a) if isinstance(n, ast.Constant) and isinstance(n.value, str))

def test_every_sentence_is_used_and_there():
    source = ''.join(map(inspect.getsource, (panel, preflight, study_form)))
    asked = {*said_by(panel), *said_by(preflight), *CALLED.values()}
    assert asked <= {*SENTENCES}
    left = {s for s in SENTENCES if s not in asked and f"'{s}'" not in source} - {'default {value}', 'repeatable'}       # of Words.tip
    assert not left
    for english, japanese in SENTENCES.items(): assert {*re.findall(r'{\w+}', english)} == {*re.findall(r'{\w+}', japanese)}, english

ASKED = [{}, *(dict(model_architecture=a) for a in ('resnet', 'mlp-mixer', 'vit')), dict(optimizer='sgd'),
         dict(optimizer='sgd', momentum=0), dict(adaptive_batch=True),
         dict(policy_loss='gce'), dict(stage='all'), dict(stage=1), dict(stage=2), dict(stage=2, stage2_gamma_neg=1),
         dict(stage='all', stage12_lr_scheduler='none', lr_scheduler='none'),
         dict(lr_scheduler='none'), dict(trainable_layers=1), dict(gpu='cpu'), dict(input_cache_mode='device'), dict(no_streaming=True),
         dict(stage3_validation_data_path='x'), dict(gpus=2, gpu='cpu'), dict(output_s3=True), dict(output_gcs=True)]

def test_every_reason_is_known_and_needed():
    reasons = {why_idle(LearnConfig(**o), n) for o in ASKED for n in FIELDS} - {''}
    assert len(reasons) > 15
    for reason in reasons: assert KANA.search(JA.sentence(reason)), reason
    unused = [form for form in REASONS if not any(re.fullmatch(form, r) for r in reasons)]
    assert not unused

WRONG = [dict(stage=1), dict(stage=3, stage3_data_path='nowhere'), dict(epoch='many'), dict(epoch=0), dict(learning_ratio=0),
         dict(learning_ratio='x'),
         dict(test_ratio=1), dict(learning_ratio=1e9), dict(gpu='cuda:77'), dict(stage=3, stage3_data_path='no*where'),
         dict(resume_backbone_from='nowhere')]

def test_common_problems_are_said_in_japanese():
    problems = [p for o in WRONG for p in try_config(o)[1]]
    unused = [form for form in PROBLEMS if not any(re.search(f'(?s): ({form})$|^({form})$', p) for p in problems)]
    assert not unused
    for p in problems: assert KANA.search(JA.sentence(p)) and option_of(JA.sentence(p)) == option_of(p), p
    assert JA.sentence('what nobody foresaw') == 'what nobody foresaw' and Words().sentence('only x uses it') == 'only x uses it'

def test_options_of_a_plugin_stay_english():
    load_plugins(str(Path(__file__).with_name('attacked.py')))
    made = LearnPanel(language='ja', stage='attacked')
    own = [n for n in config_class().model_fields if n not in FIELDS]
    assert own and 'Stage attacked' in ' '.join(made.tab.titles)
    for name in own:
        field = made.fields[name]
        assert field.option.description in field.note.value or field.problem and name == 'stage_attacked_data_path', name
        says = getattr(field.widget, 'description', '') + str(getattr(field.widget, 'common', ''))
        assert label_of(name, field.option) in says, name
    assert STAGES['attacked']

def test_the_switch_keeps_what_was_chosen():
    made = LearnPanel(stage=1, optimizer='sgd', momentum=0.5, stage1_data_path=['a', 'b'], model_size='tiny', no_streaming=True,
                      input_cache_mode='memory', pin_memory=False)
    before, code, problems = made.options, made.code, made.problems
    made.language.value = 'ja'                       # as a click does
    assert (made.options, made.code, made.problems) == (before, code, problems)
    assert made.start_button.description == '開始' and made.where.label == '別プロセスで' and '問題' in made.problem_button.description
    assert made.fields['momentum'].widget.description == f'{OPTIONS["momentum"][0]} · momentum'
    made.preset.value = 'vit'
    assert made.cfg.model_architecture == 'vit'
    assert made.speak('en').options['model_architecture'] == 'vit' and made.start_button.description == 'Start'

def test_preflight_speaks_japanese():
    found = Preflight([('1', 'data', 'gone', 'bad'), ('', 'disk', 'full', 'look')], {'time': 7200., 'host': (2**30, 2**31)})
    said = found.in_html(JA)
    assert '妨げ 1 件' in said and '要確認 1 件' in said and '時間:最大で約 2.0 h' in said and '空き 2.1 GB' in said
    assert said.index('妨げ') < said.index('gone') < said.index('<details>')

def test_a_reason_is_said_in_the_language():
    assert 'のときだけ' in _note_html('', idle='only optimizer=sgd uses it', words=JA)

NOW = dict(stage=3, epoch=1.5, step=1234, positions_per_second=9000., loader_wait=0.02)
ENDED = dict(stage=1, stage_name='reachable squares', metric='accuracy', achieved_accuracy=0.93, judged_on='training rows',
             baselines={'accuracy': 0.9}, epochs_trained=3, best_epoch=2)

def standings(tmp_path):
    "All that the line on a run says, by those who say it"
    judged = [{'epoch': 1, 'seconds': 2., 'valid/top1': .1, 'valid/accuracy': .9}]
    for stage in (1, 3):
        cfg = LearnConfig(stage='all')
        for more in ({}, {'gpu_memory': .3}, {'gpu_memory': .3, 'gpu_use': .9, 'copy_age': 4.}, {'copy_age': -1.}):
            for to_come in (None, 90_000): yield runs.place_text(cfg, NOW | {'stage': stage} | more, judged, to_come)
    for goal in ({'threshold': None}, {'threshold': 0.9, 'threshold_met': True}, {'threshold': 0.97, 'threshold_met': False}):
        for epochs in (1, 3): yield StageResult.model_construct(**ENDED | goal | {'epochs_trained': epochs}).sentence()
    yield 'stage 3 was stopped by SIGTERM in epoch 2 after step 40: everything is saved, and resume_from="latest" goes on from there'
    yield runs.state_of(RunFolder(tmp_path/'none'))[1]
    run = RunFolder(tmp_path/'run'); run.path.mkdir()
    run.config_file.write_text(LearnConfig(stage='1').model_dump_json())
    yield runs.state_of(run)[1]
    yield runs._where(run)
    run.steps_file.write_text(json.dumps(NOW) + '\n')
    yield runs.state_of(run)[1]
    yield from (f'run folder: {run}', 'the process is starting')
    yield 'its process is gone without a word: was it killed? All up to its last checkpoint is there'

def test_how_a_run_stands_is_said_in_japanese(tmp_path):
    said = [part for text in standings(tmp_path) for part in text.split(' · ')]
    for part in said: assert KANA.search(JA.status(part)) and Words().status(part) == part, part
    assert not [form for form in STATUS if not any(re.fullmatch(form, part) for part in said)]
    for state in runs.STATE_COLORS: assert KANA.search(JA.status(state)), state
    assert all(KANA.search(JA.status(s.name)) and KANA.search(JA.status(s.figures[s.main].label)) for s in list(STAGES.values())[:3])
    assert JA.status('what nobody foresaw') == 'what nobody foresaw'

def test_the_switch_reaches_the_line_on_the_run(tmp_path):
    made = LearnPanel()
    run = RunFolder(tmp_path/'run'); run.path.mkdir()
    run.config_file.write_text(LearnConfig(stage='1').model_dump_json())
    made.monitor.watch(run.path); made.monitor.thread.join(10)
    assert 'nothing has been trained here yet' in made.monitor.status.value
    made.language.value = 'ja'
    assert 'まだ何も学習していません' in made.monitor.status.value and '未開始' in made.monitor.status.value
