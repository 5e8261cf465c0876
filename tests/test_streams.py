"The command where its lines cannot be written: a full disk, a reader that has gone, streams that are closed"
import json, shlex, subprocess, sys

import pytest

from samples import thinned

RUN = ('learn-model --stage 1 --gpu cpu --model-size tiny --resnet-channels 4 --resnet-blocks 1 --stage1-max-epochs 1 '
       '--stage1-threshold 0 --run-dir run --stage1-data-path ')

def shell(words, ends, here):
    "Run the command with its streams led to `ends`; (exit code, standard error)"
    line = f'{shlex.quote(sys.executable)} -m maou_nb {words} {ends}'
    done = subprocess.run(['bash', '-o', 'pipefail', '-c', line], cwd=here, capture_output=True, text=True, timeout=100)
    return done.returncode, done.stderr

@pytest.mark.parametrize('words, ends', thinned([
    (words, ends) for ends in ('2> /dev/full', '<&- >&- 2>&-', '> /dev/full') for words in ('nonsense', '--version')], 3))
def test_words(words, ends, tmp_path):
    code, said = shell(words, ends, tmp_path)
    assert code == (1 if words == 'nonsense' else 0) and 'Traceback' not in said and 'Exception' not in said, said

@pytest.mark.parametrize('ends, right', thinned([('> /dev/full', 1), ('<&- >&- 2>&-', 0)], 2))
def test_no_run_is_lost(ends, right, tmp_path, shards):
    code, said = shell(RUN + shards['stage1_data_path'], ends, tmp_path)
    assert code == right and 'Traceback' not in said and 'Exception' not in said, said
    assert json.loads((tmp_path/'run/result.json').read_text())['stages_completed'][0]['stage'] == 1
    assert right == 0 or f'it is kept in {tmp_path}' in said.splitlines()[-1]

def test_a_reader_that_has_gone(tmp_path):
    code, said = shell('--help', '| true', tmp_path)
    assert code == 0 and not said
