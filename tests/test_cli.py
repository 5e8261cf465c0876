"The command line says what the config model says, takes values whole, tells all problems at once, and prints the result alone"
import json, signal, subprocess, sys, time

import pytest

from maou_nb.front import cli
from maou_nb.front.learn import LearnResult
from maou_nb.train.config import LearnConfig

FIELDS = LearnConfig.model_fields
COMMAND = [sys.executable, '-m', 'maou_nb']
TINY = ['--model-size', 'tiny', '--resnet-channels', '8', '--resnet-blocks', '1', '--gpu', 'cpu']

@pytest.fixture
def asked(monkeypatch, capsys):
    "What a command line asks `learn_multi_stage` for, as a valid config"
    monkeypatch.setattr(cli, '_all_problems', lambda options, problems: [cli._as_flags(p) for p in problems])     # paths need not exist here
    def ask(*argv):
        got = {}
        monkeypatch.setattr(cli, 'learn_multi_stage', lambda **options: got.update(options) or LearnResult(stage='3', stages_completed=[], run_dir='.'))
        assert cli.main(['learn-model', *argv]) == 0, capsys.readouterr().err
        capsys.readouterr()
        return LearnConfig(**got)
    return ask

def refused(capsys, *argv):
    "The message that a command line is refused with"
    assert cli.main(['learn-model', *argv]) == 1
    seen = capsys.readouterr()
    assert seen.out == '' and 'Traceback' not in seen.err
    return seen.err

def test_help_lists_every_option(capsys):
    assert cli.main(['learn-model', '--help']) == 0
    text = ' '.join(capsys.readouterr().out.split())
    for name, field in FIELDS.items():
        assert f'{cli.flag_of(name)} ' in text and ' '.join(cli._help(field).replace('%%', '%').split()).replace('- ', '-') in text.replace('- ', '-'), name
    assert {a.dest for a in cli.make_parser()._actions} == {*FIELDS, 'config', 'help'}

@pytest.mark.parametrize('argv, name, value', [
    (['--no-streaming'], 'no_streaming', True), (['--no-streaming', 'false'], 'no_streaming', False), (['--no-no-streaming'], 'no_streaming', False), (['--no-streaming=TRUE'], 'no_streaming', True),
    (['--compilation'], 'compilation', True), (['--no-compilation'], 'compilation', False), (['--compilation', 'true'], 'compilation', True), (['--compilation', 'False'], 'compilation', False),
    (['--compilation', '--no-compilation'], 'compilation', False), (['--pin-memory', '--epoch', '4'], 'pin_memory', True),
    (['--stage1-data-path', 'a,b'], 'stage1_data_path', 'a,b'), (['--stage1-data-path', 'x[01]*', '--stage1-data-path', 'a b'], 'stage1_data_path', ['x[01]*', 'a b']), (['--stage1-data-path=-odd'], 'stage1_data_path', '-odd'),
    (['--tensorboard-histogram-module', '*.weight', '--tensorboard-histogram-module', 'heads.*'], 'tensorboard_histogram_module', ('*.weight', 'heads.*')), (['--tensorboard-histogram-module', 'a,b'], 'tensorboard_histogram_module', ('a,b',)),
    (['--gradient-clip-norm', 'none'], 'gradient_clip_norm', None), (['--gradient-clip-norm', 'None'], 'gradient_clip_norm', None), (['--lr-scheduler', 'none'], 'lr_scheduler', 'none'),
    (['--stage', 'ALL'], 'stage', 'all'), (['--optimizer', 'AdamW'], 'optimizer', 'adamw'), (['--epoch', '3', '--epoch', '5'], 'epoch', 5), (['--learning-ratio', '1e-3'], 'learning_ratio', 0.001)])
def test_values(asked, argv, name, value):
    assert getattr(asked(*argv), name) == value

def test_the_environment_changes_nothing(asked, monkeypatch):
    for name, value in (('seed', '5'), ('SEED', '5'), ('STAGE', '1'), ('MAOU_NB_SEED', '5'), ('epoch', '99')): monkeypatch.setenv(name, value)
    assert asked() == LearnConfig()

def test_not_given_is_left_to_the_model(asked):
    "Options that were not given are not passed at all"
    assert asked('--seed', '7').model_fields_set == {'seed'}

@pytest.mark.parametrize('argv, says', [
    (['--epo', '3'], '--epo: there is no such flag; did you mean --epoch?'), (['--streaming'], '--streaming: there is no such flag; did you mean --no-streaming?'), (['--seed'], '--seed: a value was expected'),
    (['3'], "'3': a flag was expected"), (['--epoch', '0'], "--epoch='0': input should be greater than or equal to 1"), (['--compilation', 'maybe'], "--compilation='maybe'"), (['--seed', 'x'], "--seed='x'"),
    (['--optimizer', 'adam'], "--optimizer='adam': input should be 'adamw' or 'sgd'"), (['--config', 'nowhere.json'], '--config=nowhere.json: cannot be read'), (['--no-streaming'], '--no-streaming=True with --input-cache-mode='),
    (['--start-epoch', '10'], '--start-epoch=10 with --epoch=10: epochs are counted from 0')])
def test_refusals(capsys, argv, says):
    assert says in refused(capsys, *argv)

def test_all_problems_in_one_message(capsys, tmp_path):
    text = refused(capsys, '--stage', 'all', '--stage1-data-path', str(tmp_path/'none'), '--epoch', '0', '--lerning-ratio', '0.1', '--seed', '--vit-dropout', '0.1', '--policy-loss-ratio', '0', '--value-loss-ratio', '0')
    for part in ('8 problems:', '--lerning-ratio: there is no such flag; did you mean --learning-ratio?', '--seed: a value was expected', "--epoch='0'", '--stage1-data-path: ', '--stage2-data-path: ', '--stage3-data-path: ', '--vit-dropout=0.1', '--policy-loss-ratio=0.0'):
        assert part in text, (part, text)

def test_a_saved_config(asked, capsys, tmp_path):
    cfg = LearnConfig(stage='all', stage1_data_path=['a', 'b,[c]'], gradient_clip_norm=None, no_streaming=True, seed=4, tensorboard_histogram_module=['*'], learning_ratio=0.123)
    (tmp_path/'config.json').write_text(cfg.model_dump_json())
    assert asked('--config', str(tmp_path/'config.json')) == cfg
    assert asked('--config', str(tmp_path/'config.json'), '--seed', '5', '--no-no-streaming') == cfg.model_copy(update={'seed': 5, 'no_streaming': False})
    (tmp_path/'bad.json').write_text('[1]')
    assert 'is no JSON object' in refused(capsys, '--config', str(tmp_path/'bad.json'))

def test_unknown_keys_of_a_config(capsys, tmp_path):
    (tmp_path/'odd.json').write_text('{"nonsense": 1, "epoch": "many"}')
    text = refused(capsys, '--config', str(tmp_path/'odd.json'))
    assert 'nonsense: there is no such option' in text and "--epoch='many'" in text

def test_other_commands(capsys):
    assert cli.main(['--version']) == 0 and cli.main(['--help']) == 0
    assert cli.main([]) == 1 and cli.main(['train']) == 1
    assert "'train' is no command" in capsys.readouterr().err

def run(*argv): return subprocess.run([*COMMAND, 'learn-model', *argv], capture_output=True, text=True)

def paths(shards): return [x for n in (1, 2, 3) for x in (f'--stage{n}-data-path', shards[f'stage{n}_data_path'])]

def test_a_whole_run(shards, tmp_path):
    "The result alone on standard output; its folder's config gives the same run again"
    done = run('--stage', 'all', *paths(shards), *TINY, '--stage1-threshold', '0', '--stage2-threshold', '0', '--epoch', '1', '--run-dir', str(tmp_path/'run'))
    assert done.returncode == 0, done.stderr
    result = LearnResult.model_validate_json(done.stdout)
    assert [s.stage for s in result.stages_completed] == [1, 2, 3] and 'rows to train on' in done.stderr
    again = run('--config', str(tmp_path/'run'/'config.json'), '--run-dir', str(tmp_path/'again'))
    assert LearnResult.model_validate_json(again.stdout)[3].metrics == result[3].metrics

def test_a_threshold_that_is_not_met(shards, tmp_path):
    done = run('--stage', '1', *paths(shards), *TINY, '--stage1-threshold', '1', '--stage1-max-epochs', '1', '--run-dir', str(tmp_path/'run'))
    assert done.returncode == 1 and 'below its threshold' in done.stderr and 'Traceback' not in done.stderr
    assert json.loads(done.stdout)['stages_completed'][0]['threshold_met'] is False

def test_sigterm_saves_and_the_saved_config_goes_on(shards, tmp_path):
    argv = [*COMMAND, 'learn-model', '--stage', '1', *paths(shards), *TINY, '--stage1-threshold', '1', '--stage1-max-epochs', '100000', '--stage1-batch-size', '16', '--run-dir', str(tmp_path/'run')]
    with open(tmp_path/'err', 'w') as err, subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=err, text=True) as p:
        while not (tmp_path/'run'/'checkpoints'/'stage1'/'checkpoints.json').exists(): assert p.poll() is None; time.sleep(0.05)
        p.send_signal(signal.SIGTERM)
        out = p.communicate(timeout=60)[0]
    assert p.returncode == 143 and 'SIGTERM' in json.loads(out)['stopped']
    reached = json.loads(out)['partial']['epochs_trained']
    on = run('--config', str(tmp_path/'run'/'config.json'), '--resume-from', 'latest', '--stage1-max-epochs', str(reached + 1))
    assert on.returncode == 1 and json.loads(on.stdout)['stages_completed'][0]['epochs_trained'] == reached + 1
