"The command line says what the config model says, takes values whole, tells all problems at once, and prints the result alone"
import importlib.metadata, inspect, json, os, re, shutil, signal, subprocess, sys, time
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from maou_nb.data.files import FileError
import maou_nb
from maou_nb.front import cli, learn
from maou_nb.train import options as config
from maou_nb.front.learn import LearnResult
from maou_nb.train.checkpoints import CheckpointError
from maou_nb.train.options import LearnConfig
from maou_nb.data.options import OptionError
from maou_nb.train.loop import Diverged, OutOfRoom
from samples import GAMES, ONE_FILE

FIELDS = LearnConfig.model_fields
COMMAND = [sys.executable, '-m', 'maou_nb']
TINY = ['--model-size', 'tiny', '--resnet-channels', '8', '--resnet-blocks', '1', '--gpu', 'cpu']

@pytest.fixture
def asked(monkeypatch, capsys):
    "What a command line asks `learn_multi_stage` for, as a valid config"
    def ask(*argv):
        got = {}
        result = LearnResult(stage='3', stages_completed=[], run_dir='.')
        monkeypatch.setattr(learn, 'learn_multi_stage', lambda **options: got.update(options) or result)
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
    text = capsys.readouterr().out
    lines, plain = text.splitlines(), ' '.join(text.split())
    for name, field in FIELDS.items():
        assert sum(l.startswith(f'  {cli.flag_of(name)} ') for l in lines) == 1, name
        assert ' '.join(f'{field.description} ('.split()) in plain, name
        assert f'{cli.usage_of(name, field)} {" ".join(config.help_of(field).split())}' in plain, name
    for group in {f.json_schema_extra.group for f in FIELDS.values()}: assert f'{group}:' in lines
    assert len([l for l in lines if l.startswith('  --')]) == len(FIELDS) + 1
    for part in ('--epoch INT', '--learning-ratio NUMBER', '--policy-target-mode move-label|win-rate|weighted',
                 '--compilation [true|false], --no-compilation', '(≥ 0, < 4294967296; default 0)',
                 '(default none; repeatable)', '(> 0; default 1.0)'):
        assert part in plain, part

def test_flags_are_the_fields():
    assert {*cli.flags().values()} == {*FIELDS, 'config'} and 'config' not in FIELDS
    switches = {n for n, f in FIELDS.items() if f.annotation in (bool, bool | None)}
    assert {*cli.noes().values()} == switches - {'no_streaming'}
    assert not {*cli.noes()} & {*cli.flags()}

@pytest.mark.parametrize('name', [n for n, f in FIELDS.items() if f.annotation in (int, float, str, int | None, float | None, str | None)])
def test_every_plain_flag_arrives(asked, name):
    least = max([1, *(m.ge for m in FIELDS[name].metadata if hasattr(m, 'ge'))])
    given = '0.5' if float in config.kinds_of(FIELDS[name].annotation) else str(least)
    assert asked(cli.flag_of(name), given).model_fields_set == {name}

@pytest.mark.parametrize('name', [n for n, f in FIELDS.items() if config.is_bool(f)])
def test_every_boolean_says_yes_and_no(asked, name):
    flag = cli.flag_of(name)
    for argv, value in (([flag], True), ([flag, 'true'], True), ([flag, 'FALSE'], False),
                        ([f'{flag}=False'], False), ([f'{flag}=true'], True)):
        assert getattr(asked(*argv), name) is value, argv
    for no in (no for no, n in cli.noes().items() if n == name): assert getattr(asked(no), name) is False

@pytest.mark.parametrize('argv, name, value', [
    (['--no-streaming'], 'no_streaming', True), (['--no-streaming', 'false'], 'no_streaming', False),
    (['--no-streaming=TRUE'], 'no_streaming', True),
    (['--compilation'], 'compilation', True), (['--no-compilation'], 'compilation', False),
    (['--compilation', 'true'], 'compilation', True), (['--compilation', 'False'], 'compilation', False),
    (['--compilation', '--no-compilation'], 'compilation', False), (['--pin-memory', '--epoch', '4'], 'pin_memory', True),
    (['--stage1-data-path', 'a,b'], 'stage1_data_path', 'a,b'),
    (['--stage1-data-path', 'x[01]*', '--stage1-data-path', 'a b'], 'stage1_data_path', ['x[01]*', 'a b']),
    (['--stage1-data-path=-odd'], 'stage1_data_path', '-odd'),
    (['--stage2-data-path', 'a=b', '--stage2-data-path=c=d,e'], 'stage2_data_path', ['a=b', 'c=d,e']),
    (['--stage3-data-path', 's3://b/{a,b}/**'], 'stage3_data_path', 's3://b/{a,b}/**'),
    (['--stage3-data-path', 'none'], 'stage3_data_path', None),
    (['--resnet-squeeze-excitation', 'none'], 'resnet_squeeze_excitation', None),
    (['--no-resnet-squeeze-excitation'], 'resnet_squeeze_excitation', False),
    (['--run-name', 'of this seed=3'], 'run_name', 'of this seed=3'), (['--gpu', 'NONE'], 'gpu', None),
    (['--tensorboard-histogram-module', '*.weight', '--tensorboard-histogram-module', 'heads.*'],
     'tensorboard_histogram_module', ('*.weight', 'heads.*')),
    (['--tensorboard-histogram-module', 'a,b'], 'tensorboard_histogram_module', ('a,b',)),
    (['--gradient-clip-norm', 'none'], 'gradient_clip_norm', None),
    (['--gradient-clip-norm', 'None'], 'gradient_clip_norm', None),
    (['--lr-scheduler', 'none'], 'lr_scheduler', 'none'),
    (['--stage', 'ALL'], 'stage', 'all'), (['--optimizer', 'AdamW'], 'optimizer', 'adamw'),
    (['--epoch', '3', '--epoch', '5'], 'epoch', 5), (['--learning-ratio', '1e-3'], 'learning_ratio', 0.001)])
def test_values(asked, argv, name, value):
    assert getattr(asked(*argv), name) == value

def test_the_environment_changes_nothing(asked, monkeypatch):
    for name, value in (('seed', '5'), ('SEED', '5'), ('STAGE', '1'), ('MAOU_NB_SEED', '5'), ('epoch', '99')):
        monkeypatch.setenv(name, value)
    assert asked() == LearnConfig()

def test_not_given_is_left_to_the_model(asked):
    "Options that were not given are not passed at all"
    assert asked('--seed', '7').model_fields_set == {'seed'}

@pytest.mark.parametrize('argv, says', [
    (['--epo', '3'], '--epo: there is no such flag; did you mean --epoch?'),
    (['--comp'], '--comp: there is no such flag; did you mean --compilation?'),
    (['--batch_size', '3'], 'did you mean --batch-size?'),
    (['--lr=3'], '--lr: there is no such flag; did you mean --learning-ratio?'),
    (['--streaming'], '--streaming: there is no such flag; did you mean --no-streaming=false?'),
    (['--no-no-streaming'], '--no-no-streaming: there is no such flag'),
    (['--no-seed'], '--no-seed: there is no such flag'), (['-h3'], '-h3: there is no such flag'),
    (['--', '3'], '--: there is no such flag'),
    (['--seed'], '--seed: a value was expected'), (['--run-dir='], '--run-dir: a value was expected'),
    (['--run-dir', ''], '--run-dir: a value was expected'),
    (['--run-dir', '-x'], 'one that begins with a dash is given as --run-dir=-x'),
    (['--config'], '--config: a value was expected'),
    (['3'], '3: a flag was expected here'), (['seed=3'], 'seed=3: a flag was expected here'),
    (['--epoch', '3', '4'], '4: a flag was expected here'),
    (['--pin-memory', 'yes'], 'yes: a flag was expected here, or true or false for --pin-memory'),
    (['--epo=3', '4'], '4: a flag was expected here'),
    (['--epoch', '0'], '--epoch=0: input should be greater than or equal to 1'), (['--epoch=0'], '--epoch=0: '),
    (['--learning-ratio', '-1e-3'], '--learning-ratio=-1e-3: input should be greater than 0'),
    (['--seed', '-1'], '--seed=-1: '), (['--seed', 'x y'], "--seed='x y': "), (['--epoch', 'none'], '--epoch=none: '),
    (['--compilation=maybe'], '--compilation=maybe: true or false was expected'),
    (['--compilation=1'], '--compilation=1: true or false was expected'),
    (['--compilation='], "--compilation='': true or false was expected"),
    (['--no-compilation=true'],
     '--no-compilation=true: takes no value; --compilation=false would be right'),
    (['--no-compilation', 'false'],
     '--no-compilation=false: takes no value; --compilation=true would be right'),
    (['--optimizer', 'adam'], "--optimizer=adam: input should be 'adamw', 'sgd' or 'muon'"),
    (['--config', 'nowhere.json'], '--config=nowhere.json: cannot be read'),
    (['--config', 'odd://x'], '--config: odd://x: there is no filesystem'),
    (['--no-streaming'], '--no-streaming=true with --input-cache-mode=file: '),
    (['--start-epoch', '10'], '--start-epoch=10 with --epoch=10: epochs are counted from 0'),
    (['--run-name', 'in run_dir x', '--vit-dropout', '0.1'],
     "--vit-dropout=0.1: acts on --model-architecture=vit only"),
    (['--stage', '1', '--stage1-data-path', 'a run_dir'], '--stage1-data-path: ')])
def test_refusals(capsys, argv, says):
    assert says in refused(capsys, *argv)

def test_a_problem_is_told_once(capsys):
    "A flag without its value, misspelt or with a bad one is not said to be missing, too"
    for flag in (['--stage1-data-path'], ['--stage1-data-pth', 'x']): assert refused(capsys, '--stage', '1', *flag).count('\n') == 1
    assert refused(capsys, '--config', 'nowhere.json').count('\n') == 1
    assert refused(capsys, '--config', 'nowhere.json', '--epoch', '0').count('--epoch=0') == 1

def test_all_problems_in_one_message(capsys, tmp_path):
    text = refused(capsys, '--stage', 'all', '--stage1-data-path', str(tmp_path/'none'), '--epoch', '0',
                   '--lerning-ratio', '0.1', '--seed', '--vit-dropout', '0.1', '--policy-loss-ratio', '0',
                   '--value-loss-ratio', '0')
    for part in ('8 problems:',
                 '--lerning-ratio: there is no such flag; did you mean --learning-ratio?',
                 '--seed: a value was expected', "--epoch=0", '--stage1-data-path: ', '--stage2-data-path: ',
                 '--stage3-data-path: ', '--vit-dropout=0.1', '--policy-loss-ratio=0.0'):
        assert part in text, (part, text)

def test_a_saved_config(asked, capsys, tmp_path):
    cfg = LearnConfig(stage='all', stage1_data_path=['a', 'b,[c]'], gradient_clip_norm=None, no_streaming=True,
                      seed=4, tensorboard_histogram_module=['*'], learning_ratio=0.123)
    (tmp_path/'config.json').write_text(cfg.model_dump_json())
    assert asked('--config', str(tmp_path/'config.json')) == cfg
    assert (asked('--config', str(tmp_path/'config.json'), '--seed', '5', '--no-streaming', 'false')
            == cfg.model_copy(update={'seed': 5, 'no_streaming': False}))
    (tmp_path/'bad.json').write_text('[1]')
    assert 'is not readable JSON' in refused(capsys, '--config', str(tmp_path/'bad.json'))
    for text in (b'{"seed": 4', b'\xff\xfe', b''):
        (tmp_path/'bad.json').write_bytes(text)
        assert 'is not readable JSON' in refused(capsys, '--config', str(tmp_path/'bad.json'))
    assert 'is a folder: a file was expected; the config.json of a run' in refused(capsys, '--config', str(tmp_path))

def test_flags_go_before_the_config(asked, tmp_path):
    "none and lists, too; the folder of the run is taken from it"
    file = tmp_path/'run.json'
    file.write_text(json.dumps({'stage1_data_path': ['a', 'b'], 'ema_decay': 0.9, 'run_dir': 'runs/x', 'seed': 3}))
    got = asked('--config', str(file), '--stage1-data-path', 'c', '--ema-decay', 'none')
    assert (got.stage1_data_path, got.ema_decay, got.run_dir, got.seed) == ('c', None, 'runs/x', 3)
    assert asked('--seed', '4', f'--config={file}').seed == 4      # wherever they stand

def test_unknown_keys_of_a_config(capsys, tmp_path):
    file = tmp_path/'odd.json'
    file.write_text('{"nonsense": 1, "epoch": "many", "optimizer": "adam", "start_epoch": 12, "seed": [1], "lerning_ratio": 1}')
    text = refused(capsys, '--config', str(file), '--optimizer', 'sgd', '--stage1-max-epochs', '0', '--epo', '3')
    for part in ('nonsense: there is no such option',
                 'lerning_ratio: there is no such option; did you mean learning_ratio?',
                 "epoch='many': ", 'seed=[1]: '):
        assert f'{file}: {part}' in text, (part, text)
    assert '--stage1-max-epochs=0: ' in text and '--epo: there is no such flag' in text and 'adam' not in text
    file.write_text('{"start_epoch": 12}')
    assert f'{file}: start_epoch=12 with --epoch=5: ' in refused(capsys, '--config', str(file), '--epoch', '5')

def test_other_commands(capsys):
    assert cli.main(['--version']) == 0 and cli.main(['--help']) == 0
    assert cli.main([]) == 1 and cli.main(['train']) == 1
    assert "'train' is no command" in capsys.readouterr().err

def ends(monkeypatch, capfd, act):
    "Exit code, standard output and error of a run in which `act` happens"
    monkeypatch.setattr(learn, 'learn_multi_stage', lambda **options: act())
    return cli.main(['learn-model']), *capfd.readouterr()

@pytest.mark.parametrize('error, says', [
    (OptionError('run_dir: /x is no folder'), '--run-dir: /x is no folder\n'),
    (OptionError("2 problems with the options:\n  epoch=0: more\n  seed='x': a number"),
     '2 problems:\n  --epoch=0: more\n  --seed=x: a number\n'),
    (CheckpointError('a.safetensors is damaged'), 'a.safetensors is damaged\n'),
    (FileError('x.feather is cut short'), 'x.feather is cut short\n'),
    (Diverged('a lower learning rate, or gradient_clip_norm, would be right, and detect_anomaly=True names it'),
     'a lower learning rate, or --gradient-clip-norm, would be right, and --detect-anomaly=true names it\n'),
    (OutOfRoom('full; resume_from="latest" goes on'), 'full; --resume-from=latest goes on\n'),
    (MemoryError(), 'memory ran out; '),
    (MemoryError('2 GB are needed'), '2 GB are needed\n'),
    (PermissionError(13, 'Permission denied', '/x'), '/x: Permission denied\n'), (OSError('lost'), 'lost\n'),
    (KeyboardInterrupt(), 'interrupted\n')])
def test_expected_errors_are_sentences(monkeypatch, capfd, error, says):
    def act(): raise error
    code, out, err = ends(monkeypatch, capfd, act)
    assert (code, out) == (130 if isinstance(error, KeyboardInterrupt) else 1, '') and err.startswith(says) and 'Traceback' not in err

def test_faults_of_ours_are_not_hidden(monkeypatch, capfd):
    def act(): raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError): ends(monkeypatch, capfd, act)

@pytest.mark.parametrize('stopped, code',
                         [('', 0), ('stage 1 was stopped by SIGINT in epoch 1', 130),
                          ('stage 1 was stopped by SIGTERM in epoch 1', 143)])
def test_only_the_result_is_on_standard_output(monkeypatch, capfd, stopped, code):
    "Not what is printed meanwhile, by Python, a child process or C"
    def act():
        print('progress'); subprocess.run(['echo', 'child']); os.write(1, b'C\n'); print('beware', file=sys.stderr)
        return LearnResult(stage='1', stages_completed=[], run_dir='r', stopped=stopped)
    got, out, err = ends(monkeypatch, capfd, act)
    assert got == code and LearnResult.model_validate_json(out).stopped == stopped and json.loads(out)['run_dir'] == 'r'
    for part in ('progress', 'child', 'C\n', 'beware'): assert part in err

def test_the_command_is_installed(tmp_path):
    done = subprocess.run([sys.executable, 'setup.py', '-q', 'egg_info', '--egg-base', str(tmp_path)],
                          cwd=Path(__file__).parents[1], capture_output=True, text=True)
    entry = importlib.metadata.PathDistribution(next(tmp_path.glob('*.egg-info'))).entry_points.select(group='console_scripts')
    assert done.returncode == 0 and [(e.name, e.value) for e in entry] == [('maou-nb', 'maou_nb.__main__:main')]
    installed = subprocess.run([Path(sys.executable).with_name('maou-nb'), '--version'], capture_output=True, text=True)
    assert installed.stdout.strip() == maou_nb.__version__

def run(*argv): return subprocess.run([*COMMAND, 'learn-model', *argv], capture_output=True, text=True)

def paths(shards): return [x for n in (1, 2, 3) for x in (f'--stage{n}-data-path', shards[f'stage{n}_data_path'])]

def test_a_whole_run(trained, tmp_path):
    "Of a process of its own: the result alone on standard output; a folder's config gives the same run again"
    done = run('--config', str(trained/'config.json'), '--run-dir', str(tmp_path/'again'))
    assert done.returncode == 0, done.stderr
    result = LearnResult.model_validate_json(done.stdout)
    assert [s.stage for s in result.stages_completed] == [1, 2, 3] and 'rows to train on' in done.stderr
    assert learn.load_run(trained)[3].metrics == result[3].metrics

def test_a_threshold_that_is_not_met(shards, tmp_path, capfd):
    argv = ['--stage', '1', *paths(shards), *TINY, '--stage1-threshold', '1', '--stage1-max-epochs', '1', '--run-dir', str(tmp_path/'run')]
    code, (out, err) = cli.main(['learn-model', *argv]), capfd.readouterr()
    assert code == 1 and 'below its threshold of 1' in err and '--stage1-max-epochs, a smaller --stage1-batch-size' in err
    assert json.loads(out)['stages_completed'][0]['threshold_met'] is False

def test_sigterm_saves_and_the_saved_config_goes_on(shards, tmp_path, capfd):
    argv = [*COMMAND, 'learn-model', '--stage', '1', *paths(shards), *TINY, '--stage1-threshold', '1',
            '--stage1-max-epochs', '100000', '--stage1-batch-size', '16', '--run-dir', str(tmp_path/'run')]
    with open(tmp_path/'err', 'w') as err, subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=err, text=True) as p:
        while not (tmp_path/'run'/'checkpoints'/'stage1'/'checkpoints.json').exists(): assert p.poll() is None; time.sleep(0.05)
        p.send_signal(signal.SIGTERM)
        out = p.communicate(timeout=60)[0]
    assert p.returncode == 143 and 'SIGTERM' in json.loads(out)['stopped']
    reached = json.loads(out)['partial']['epochs_trained']
    assert list((tmp_path/'run'/'checkpoints'/'stage1').glob('*.safetensors'))
    code = cli.main(['learn-model', '--config', str(tmp_path/'run'/'config.json'), '--resume-from', 'latest',
                     '--stage1-max-epochs', str(reached + 1)])
    seen = capfd.readouterr()
    assert code == 1 and json.loads(seen.out)['stages_completed'][0]['epochs_trained'] == reached + 1 and 'goes on in epoch' in seen.err

# --- prepare, evaluate and show

def printed(capfd, *argv):
    "What a command prints as JSON, and on standard error"
    code, seen = cli.main([*map(str, argv)]), capfd.readouterr()
    assert code == 0, seen.err
    return json.loads(seen.out), seen.err

def wrong(capfd, *argv):
    "The lines that a command is refused with"
    code, seen = cli.main([*map(str, argv)]), capfd.readouterr()
    assert code == 1 and seen.out == '' and 'Traceback' not in seen.err, seen
    return seen.err.splitlines()

def parameters(f):
    "Every parameter that a flag can stand for, those of the dataclasses among them too"
    for name, p in inspect.signature(f).parameters.items():
        if p.kind is p.VAR_KEYWORD or name == 'executor': continue           # no text can name an executor
        if is_dataclass(p.default): yield from (f'{name}_{field.name}' for field in fields(p.default))
        else: yield name

@pytest.mark.parametrize('command', cli.COMMANDS.values(), ids=cli.COMMANDS)
def test_every_parameter_is_a_flag(command, capsys):
    "And its help says what the function says of it"
    names = dict.fromkeys(n for f in command.load() for n in parameters(f))
    assert list(command.model.model_fields) == list(names)
    assert cli.main([command.name, '--help']) == 0 and cli.main([command.name, 'x', '-h']) == 0
    text = capsys.readouterr().out
    for name, field in command.model.model_fields.items():
        assert sum(l.startswith(f'  {cli.flag_of(name)} ') for l in text.splitlines()) == 2, name
        assert field.description and ' '.join(field.description.split()) in ' '.join(text.split()), name
    assert max(map(len, text.splitlines())) <= 100
    assert cli.plain_words(inspect.cleandoc(command.does.__doc__).splitlines()[0]) in text and set(command.places) <= set(names)
    python = re.search(r"\bNone\b|(?<!\w)'[^']*'(?!\w)|`|=='|\w='|\('|\b[a-z]+_[a-z]+=", text)     # nobody types so in a shell
    assert not python, python

@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    "Shards of all stages, made by the command"
    out = tmp_path_factory.mktemp('command')
    for argv in (['1', out/'stage1'], ['2', ONE_FILE, out/'stage2'],
                 ['--stage', '3', '--paths', ONE_FILE, '--folder', out/'stage3', '--filters-min-plies', '40', '--rows-per-shard=2000']):
        assert cli.main(['prepare', *map(str, argv)]) == 0
    return out

@pytest.fixture(scope='module')
def trained(prepared):
    "A run on them"
    data = [w for n in (1, 2, 3) for w in (f'--stage{n}-data-path', str(prepared/f'stage{n}'))]
    thresholds = ['--stage1-threshold', '0', '--stage2-threshold', '0', '--test-ratio', '0.2', '--epoch', '1']
    assert cli.main(['learn-model', '--stage', 'all', *data, *TINY, *thresholds, '--run-dir', str(prepared/'run')]) == 0
    return prepared/'run'

def test_prepare(capfd, tmp_path, prepared):
    for stage in (1, 2, 3): assert list((prepared/f'stage{stage}').glob('*.feather'))
    assert len(list((prepared/'stage3').glob('*.feather'))) > 1
    made, said = printed(capfd, 'prepare', 3, ONE_FILE, GAMES/'selfplay-1.csa', tmp_path/'out', '--filters-ends', '%TORYO',
                         '--filters-eval-range=-2000', '--filters-eval-range', '2000', '--on-bad', 'skip')
    assert made['stage'] == 3 and made['found']['files'] == {'csa': 2} and made['rows'] > 0 and made['folder'] == str(tmp_path/'out')
    assert 'stage 3: ' in said and 'games' in said
    by_glob, _ = printed(capfd, 'prepare', 3, f'{GAMES}/selfplay-[01].csa', tmp_path/'glob', '--filters-ends', '%TORYO',
                         '--filters-eval-range=-2000', '--filters-eval-range', '2000')
    assert by_glob['rows'] == made['rows']

def test_evaluate(capfd, prepared, trained):
    own, said = printed(capfd, 'evaluate', trained)
    assert own['stage'] == 3 and own['metrics']['top1'] >= 0 and own['by_ply'][0]['from_ply'] == 0 and 'held out' in said
    named, _ = printed(capfd, 'evaluate', '--of', trained, '--data', prepared/'stage3', '--folds', 'held out', '--device', 'cpu')
    assert named['metrics'] == own['metrics']
    some, _ = printed(capfd, 'evaluate', trained, prepared/'stage3', '--folds', 0, '--folds', 1, '--batch-size', '100')
    every, _ = printed(capfd, 'evaluate', trained, *sorted((prepared/'stage3').glob('*.feather')))
    assert 0 < some['rows'] < every['rows']
    assert printed(capfd, 'evaluate', trained, '--stage', 2)[0]['stage'] == 2

def test_show(capfd, trained):
    result, said = printed(capfd, 'show', trained)
    assert LearnResult.model_validate(result)[3].metrics and repr(learn.load_run(trained)) in said
    position = 'startpos moves 7g7f'
    one, said = printed(capfd, 'show', trained, '--position', position, '--top', 3)
    assert one['stage'] == 3 and abs(sum(one['probabilities'].values()) - 1) < 1e-3 and next(iter(one['probabilities'])) in said
    two, _ = printed(capfd, 'show', trained, '--position', position, '--position', 'startpos', '--stage', '2')
    assert [p['stage'] for p in two] == [2, 2] and two[1]['sfen'].startswith('lnsgkgsnl')

@pytest.mark.parametrize('argv, says', [
    (['prepare'], 'STAGE: a value was expected'),
    (['prepare', '3', 'nowhere', 'out'], 'nowhere does not exist: a file of game records'),
    (['prepare', '3', 'games'], 'prepare_stage(3, …): game records were expected; games is taken for the folder of the shards'),
    (['prepare', '1', 'a', 'b'], 'paths would do nothing'), (['prepare', '9', 'a', 'b'], "9"),
    (['prepare', '3', 'a', 'b', '--rows-per-shard', 'many'], '--rows-per-shard=many: a whole number was expected'),
    (['prepare', '3', 'a', 'b', '--filters-min-plies', '-3'], '--filters-min-plies=-3: a whole number from 0 up was expected'),
    (['prepare', '3', 'a', 'b', '--filter-min-plies', '3'], 'did you mean --filters-min-plies?'),
    (['prepare', '3', '--folder'], '--folder: a value was expected'),
    (['prepare', '3', 'a', 'b', '--executor', '3'], 'there is no such flag'),
    (['evaluate'], 'OF: a value was expected'), (['evaluate', 'nowhere'], 'nowhere does not exist'),
    (['evaluate', 'nowhere', '--batch-size', '0'], '--batch-size=0: a whole number from 1'),
    (['evaluate', 'nowhere', '--precision', 'fp8'], 'precision'),
    (['show'], 'RUN: a value was expected'), (['show', 'nowhere'], 'nowhere is no run folder'),
    (['show', 'a', 'b'], 'b: a flag was expected here'), (['show', 'a', '--positon', 'x'], 'did you mean --position?'),
    (['show', 'a', '--top', 'few'], '--top=few: a whole number was expected'), (['shwo'], "'shwo' is no command")])
def test_wrong_words(capfd, tmp_path, monkeypatch, argv, says):
    "One sentence, exit code 1"
    monkeypatch.chdir(tmp_path)
    found = wrong(capfd, *argv)
    assert says in found[-1] and len(found) == (len(cli.USAGE.splitlines()) + 1 if argv == ['shwo'] else 1), found

def test_wrong_position(capfd, trained):
    assert "'hello' is not a position" in wrong(capfd, 'show', trained, '--position', 'hello')[0]
    assert '--stage=1 was expected' in wrong(capfd, 'evaluate', trained/'checkpoints'/'stage1', '--stage', '3')[0]

def test_all_that_is_wrong_with_a_command(capfd):
    found = wrong(capfd, 'prepare', '3', 'a', 'b', '--rows-per-shard=x', '--filters-min-plies=-1', '--epo', '--filters-min-rating', 'x')
    assert found[0] == '4 problems:' and len(found) == 5

@pytest.mark.parametrize('error, code, says', [
    (KeyboardInterrupt(), 130, 'interrupted\n'), (FileError('x is cut short'), 1, 'x is cut short\n'),
    (OptionError('batch_size=0: more'), 1, '--batch-size=0: more\n'), (MemoryError(), 1, 'memory ran out\n'),
    (PermissionError(13, 'Permission denied', '/x'), 1, '/x: Permission denied\n'), (None, 143, 'terminated\n')])
def test_how_a_command_ends(monkeypatch, capfd, error, code, says):
    def act(of, batch_size:int=1):
        print('progress'); os.write(1, b'C\n')
        if error is None: os.kill(os.getpid(), signal.SIGTERM); time.sleep(5)
        raise error
    monkeypatch.setitem(cli.COMMANDS, 'evaluate', cli.Command('ending', ('of',), lambda: (act,)))
    before = signal.getsignal(signal.SIGTERM)
    got, seen = cli.main(['evaluate', 'x']), capfd.readouterr()
    assert (got, seen.out) == (code, '') and seen.err.endswith(says) and 'progress' in seen.err and 'Traceback' not in seen.err
    assert signal.getsignal(signal.SIGTERM) == before

def test_a_terminal_shows_the_result_once(trained):
    "In words, as the help says; JSON is for a file or a program"
    here, there = os.openpty()
    with subprocess.Popen([*COMMAND, 'show', trained, '--position', 'startpos'], stdout=there, stderr=subprocess.PIPE, text=True) as p:
        os.close(there)
        shown, progress = b'', p.stderr.read()
        try:
            while part := os.read(here, 1 << 16): shown += part
        except OSError: pass                           # the other end was closed
    os.close(here)
    assert b'win rate' in shown and b'{' not in shown and 'win rate' not in progress

@pytest.mark.slow      # as in the whole run above
def test_json_is_alone_on_standard_output(trained):
    "Of a process of its own, `python -m maou_nb`"
    done = subprocess.run([*COMMAND, 'show', trained, '--position', 'startpos'], capture_output=True, text=True)
    assert done.returncode == 0 and json.loads(done.stdout)['value'] and 'win rate' in done.stderr

def test_an_interrupt_ends_a_process_of_its_own(tmp_path):
    for n in range(40):
        for path in GAMES.glob('*.csa'):
            (tmp_path/'games').mkdir(exist_ok=True)
            shutil.copy(path, tmp_path/'games'/f'{n}-{path.name}')
    with open(tmp_path/'err', 'w') as err:
        p = subprocess.Popen([*COMMAND, 'prepare', '3', tmp_path/'games', tmp_path/'out'], stdout=subprocess.PIPE, stderr=err, text=True)
        until = time.monotonic() + 60
        while 'reading records' not in (tmp_path/'err').read_text(): assert p.poll() is None and time.monotonic() < until; time.sleep(0.05)
        time.sleep(1)            # its processes have begun: one that an interrupt meets before that may print that it ran out of input
        p.send_signal(signal.SIGINT)
        out = p.communicate(timeout=60)[0]
    said = (tmp_path/'err').read_text()
    assert (p.returncode, out) == (130, '') and said.rstrip().endswith('interrupted') and 'Traceback' not in said
