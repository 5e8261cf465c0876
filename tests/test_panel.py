"The panel, the cell it writes and the command it writes are one run; the file it watches tells how things stand"
import json, os, shlex, signal, subprocess, sys, threading, time

import pytest

from maou_nb import LearnPanel, OptionError
from maou_nb.front import runs
from maou_nb.front import cli
from maou_nb.front.cli import as_code, as_command
from maou_nb.front.panel import FIRST, PAUSE, PathLines
from maou_nb.stages.stage import STAGES
from maou_nb.train.checkpoints import Checkpoints, load_tensors
from maou_nb.train.folder import RunFolder
from maou_nb.front.runs import start_run, state_of, train_here
from maou_nb.front.study import read_study
from maou_nb.train.options import LearnConfig
from maou_nb.front.options import make_config

def until(holds, seconds=90):
    "Wait until `holds()`"
    end = time.monotonic() + seconds
    while not holds(): assert time.monotonic() < end; time.sleep(0.05)

def endless(shards, folder):
    "A run of stage 1 that goes on until it is stopped"
    return dict(stage='1', stage1_data_path=shards['stage1_data_path'], model_size='tiny', resnet_channels=8,
                resnet_blocks=1, stage1_threshold=1., stage1_max_epochs=100000, input_features='pieces', stage1_batch_size=64, gpu='cpu',
                run_dir=str(folder))

@pytest.fixture
def options(shards, tmp_path):
    "Whatever is left of the run is ended"
    yield endless(shards, tmp_path/'run')
    if (left := RunFolder(tmp_path/'run').at_work()) and left.pid != os.getpid(): left.kill()

@pytest.fixture(scope='module')
def ended(shards, tmp_path_factory):
    "A panel whose run, in a process of its own, has ended; and what it kept before"
    folder = tmp_path_factory.mktemp('ended')/'run'
    panel = LearnPanel(**{**endless(shards, folder), 'stage1_threshold': 0.1, 'stage1_max_epochs': 1})
    before = panel.monitor.kept.text
    panel.start(); panel.monitor.thread.join(90)
    return panel, before, folder

def test_panel_code_and_command_are_one_run(ended, tmp_path):
    panel, _, folder = ended
    exec(as_code(panel.cfg).replace(str(folder), str(tmp_path/'code')), {'__name__': '__main__'})
    words = shlex.split(as_command(panel.cfg).replace(str(folder), str(tmp_path/'command')))
    assert words[0] == 'maou-nb' and cli.main(words[1:]) == 0
    (tmp_path/'run').symlink_to(folder)
    config = lambda name: {k: v for k, v in json.loads((tmp_path/name/'config.json').read_text()).items() if k != 'run_dir'}
    first = lambda name: json.loads((tmp_path/name/'history.jsonl').read_text().splitlines()[0])['train/loss']
    assert config('run') == config('code') == config('command')
    assert first('run') == first('code') == first('command')

def test_its_study_has_its_options_and_folders_of_its_own(options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    panel = LearnPanel(**options, seed=7)
    panel.study.budget.value, panel.study.amount.value = 'steps', 40
    asked = read_study(panel.study.write())
    assert not {'run_dir', 'seed'} & {*asked['base']} and asked['base']['stage1_batch_size'] == 64 and asked['budget'] == {'steps': 40}
    make_config(**asked['base'])
    panel.fields['batch_size'].value = 0
    with pytest.raises(OptionError, match="batch_size='0'"): panel.study.write()

def test_a_field_for_every_option_and_none_besides():
    panel = LearnPanel()
    assert [*panel.fields] == [*LearnConfig.model_fields]
    shown = [f for of in panel.groups.values() for f in of]
    assert [row for tab in panel.tab.children for row in tab.children] == [f.row for f in shown]
    assert sorted([FIRST, 'preset', *(f.name for f in shown)]) == sorted(LearnConfig.model_fields)
    for name, field in panel.fields.items():
        option = LearnConfig.model_fields[name]
        says = field.widget.common if isinstance(field.widget, PathLines) else {'tooltip': field.widget.tooltip}
        assert option.description in says['tooltip'] and field.value == option.default

@pytest.mark.parametrize('name, value',
                         [('gradient_clip_norm', None), ('stage3_data_path', ['a', 'b,c']),
                          ('tensorboard_histogram_module', ('x.*', '[01]')), ('resnet_squeeze_excitation', False),
                          ('no_streaming', True), ('seed', 7), ('optimizer_eps', 1e-5)])
def test_values_go_into_fields_and_come_back(name, value):
    field = LearnPanel().fields[name]
    field.value = value
    assert getattr(LearnConfig(**{name: field.value}), name) == value

def test_start_stop_and_on_again(options, tmp_path):
    panel = LearnPanel(**options)
    panel.start()
    run = RunFolder(tmp_path/'run')
    until(lambda: len(run.epochs().get(1, [])) >= 2)
    assert state_of(run)[0] == 'training'; until(lambda: not panel.monitor.stop_button.disabled)
    with pytest.raises(OptionError, match='is training in'): start_run(make_config(**options))          # nobody else may
    panel.monitor.stop(); until(lambda: state_of(run)[0] == 'stopped'); panel.monitor.thread.join(20)
    assert not panel.monitor.resume_button.disabled and 'SIGTERM' in panel.monitor.status.value
    done = len(run.epochs()[1])
    panel.monitor.resume(); until(lambda: len(run.epochs()[1]) > done)
    assert [h['epoch'] for h in run.epochs()[1]] == [*range(1, len(run.epochs()[1]) + 1)]
    RunFolder(tmp_path/'run').at_work().send_signal(signal.SIGKILL)
    until(lambda: state_of(run)[0] == 'failed')
    assert 'was it killed?' in state_of(run)[1]

@pytest.mark.slow      # `gpus` is seen in tests/test_processes.py
@pytest.mark.parametrize('start', ['this process', 'a process'])
def test_two_processes_train_from_the_panel(options, tmp_path, start, monkeypatch):
    monkeypatch.delenv('PYTHONUNBUFFERED', raising=False)      # as in a shell
    panel = LearnPanel(**options, gpus=2)
    run, thread = RunFolder(tmp_path/'run'), None
    if start == 'a process': panel.start()
    else: thread = train_here(panel.cfg)
    until(lambda: len(run.epochs().get(1, [])) >= 2)
    assert state_of(run)[0] == 'training'
    monitor = runs.Monitor(tmp_path/'run'); monitor.stop()
    until(lambda: state_of(run)[0] == 'stopped', 40)
    if thread: thread.join(20); assert not thread.is_alive()
    about = load_tensors(Checkpoints(run.checkpoints(STAGES['1'])).path('last'))[1]
    assert about['processes'] == 2 and run.read_config()['gpus'] == '2'
    until(lambda: run.at_work() is None, 20)
    assert run.log(100_000).count('rows to train on') == 1

def test_a_thread_of_this_process_stops_too(options, tmp_path):
    thread = train_here(make_config(**options))
    run = RunFolder(tmp_path/'run')
    until(lambda: len(run.epochs().get(1, [])) >= 1)
    assert RunFolder(tmp_path/'run').at_work().pid == os.getpid()
    monitor = runs.Monitor(tmp_path/'run'); monitor.stop(); thread.join(30)
    assert not thread.is_alive() and state_of(run) == ('stopped', run_said(run))

def run_said(run): return run.log(1)

def test_an_error_of_the_process_is_told(options, tmp_path):
    cfg = make_config(**options).model_copy(update={'stage1_data_path': str(tmp_path/'gone')})
    child = start_run(cfg)
    until(lambda: not runs._lives(child))
    assert state_of(RunFolder(tmp_path/'run'))[0] == 'failed' and 'gone does not exist' in state_of(RunFolder(tmp_path/'run'))[1]

@pytest.mark.slow
def test_two_in_one_folder_are_refused(options, tmp_path):
    start_run(make_config(**options))
    until(lambda: RunFolder(tmp_path/'run').at_work())
    said = subprocess.run([sys.executable, '-m', 'maou_nb', *shlex.split(as_command(make_config(**options)))[1:]],
                          capture_output=True, text=True)
    assert said.returncode == 1
    assert f"process {RunFolder(tmp_path/'run').at_work().pid} is training in" in said.stderr
    assert 'Traceback' not in said.stderr

def test_a_url_is_not_listed_and_a_folder_is(tmp_path, monkeypatch):
    from maou_nb.front import panel
    for name in ('one', 'Other', '.hidden'): (tmp_path/name).mkdir()
    (tmp_path/'orders.npy').touch(); asked = []
    real = os.scandir; monkeypatch.setattr(panel.os, 'scandir', lambda p: asked.append(p) or real(p))
    assert panel.entries(f'{tmp_path}/o') == [f'{tmp_path}/Other/', f'{tmp_path}/one/', f'{tmp_path}/orders.npy']
    assert panel.entries(f'{tmp_path}/.') == [f'{tmp_path}/.hidden/'] and len(asked) == 2
    for url in ('s3://bucket/', 'gs://b/x/y', 'file:///tmp/', 'https://host/a'): assert panel.entries(url) == []
    assert len(asked) == 2 and panel.entries('\0') == panel.entries(f'{tmp_path}/none/x') == []
    for i in range(150): (tmp_path/f'many{i}').touch()
    assert len(panel.entries(f'{tmp_path}/many')) == panel.MOST_ENTRIES

def test_what_was_typed_counts_before_the_pause_is_over(tmp_path):
    "In a kernel the check waits; Start, which does not, has the text all the same"
    import asyncio
    made = LearnPanel(stage=1)
    lines = made.fields['stage1_data_path'].widget
    async def type_it():
        lines.lines[0].value = 'nowhere'
        assert made.cfg.stage1_data_path is None and lines.value == ''          # not checked yet
        made.start()
        assert made.cfg.stage1_data_path == 'nowhere' and 'nowhere does not exist' in made.problems[0]
        lines.lines[0].value = 'another'
        await asyncio.sleep(2*PAUSE)
        assert lines.value == 'another' and 'another does not exist' in made.problems[0]
    asyncio.run(type_it())
    made.set(stage1_data_path=['a', 'b'])
    assert lines.texts() == ['a', 'b'] and not lines.lines[0].disabled
    made.set(stage=2); assert all(line.disabled for line in lines.lines)

def test_problems_are_gone_to_in_turn(tmp_path):
    made = LearnPanel(stage=1, run_dir='s3://', stage1_max_epochs='many', seed=-1)
    assert made.problem_button.description == '4 problems' and made.said.value == 'above the tabs, Data, Stage 1, Optimizer'
    seen = []
    for _ in range(5): made.problem_button.click(); seen.append((made.at, made.tab.titles[made.tab.selected_index].split(' ✗')[0]))
    assert seen == [('run_dir', 'Data'), ('stage1_data_path', 'Data'), ('stage1_max_epochs', 'Stage 1'),
                    ('seed', 'Optimizer'), ('run_dir', 'Optimizer')]
    made.set(run_dir=None)
    assert made.at is None and 'maou-here' not in made.fields['run_dir'].row._dom_classes
    made.set(stage1_max_epochs=1, seed=0, stage1_data_path=str(tmp_path)); assert made.problem_button.description == '1 problem'

def test_the_kept_line_says_how_a_run_stood(ended):
    made, before, folder = ended
    assert 'Nothing was begun here' in before
    said = made.monitor.kept.text
    assert str(folder) in said and 'begun 20' in said and 'as of 20' in said and 'finished: stage 1' in said and "attach('" in said

def test_a_run_that_goes_on_while_its_end_is_drawn_is_followed(options, tmp_path):
    "The thread that is at its last look is no reason to look no more"
    class Slow(runs.Monitor):
        slow, drawing, told = False, threading.Event(), threading.Event()
        def look(self, force=False):
            if threading.current_thread() is self.thread and self.slow and force:
                self.slow = False; self.drawing.set(); self.told.wait(20)
            return super().look(force)
    first = train_here(make_config(**options)); run = RunFolder(tmp_path/'run')
    until(lambda: run.epochs())
    watched = Slow(tmp_path/'run'); watched.slow = True; watched.watch(run.path)
    watched.stop(); assert watched.drawing.wait(60)                  # it has ended, and its last charts are drawn
    first.join(60); assert not first.is_alive()
    watched.resume(); watched.told.set()
    until(lambda: 'step' in watched.status.value and 'training' in watched.status.value and not watched.stop_button.disabled)
    watched.stop(); watched.thread.join(60)
    assert not watched.thread.is_alive() and 'stopped' in watched.status.value

def test_a_folder_that_is_moved_away_is_said_to_be_gone(options, tmp_path):
    "By the monitor that looks, and by `attach` at the old place; at the new place the run is found"
    from maou_nb import attach
    run, moved = tmp_path/'run', tmp_path/'moved'
    child = start_run(make_config(**options))
    until(lambda: RunFolder(run).epochs())
    watched = attach(run); watched.watch(run)
    until(lambda: 'training' in watched.status.value)
    child.send_signal(signal.SIGSTOP); run.rename(moved)
    try: watched.thread.join(30)
    finally: child.send_signal(signal.SIGCONT); child.terminate()
    assert not watched.thread.is_alive()
    assert 'run is gone: was it moved or deleted?' in watched.status.value and 'cannot show' not in watched.status.value
    with pytest.raises(ValueError, match='is no run folder: one with a config.json in it') as e: attach(run)
    assert '\n' not in str(e.value)
    until(lambda: not runs._lives(child)); assert attach(moved).tell() in ('stopped', 'failed')
