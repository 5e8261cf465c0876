"The table of runs stands whatever lies in the folder, and says what is wrong with a call"
import json, math, os, shutil

import polars as pl
import pytest

from maou_nb import learn_multi_stage, note, runs
from maou_nb.front.cli import main
from maou_nb.front.run_table import Runs
from maou_nb.stages.rows import prepare_stage1

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A run of a step"
    at = tmp_path_factory.mktemp('run')
    prepare_stage1(at/'stage1')
    learn_multi_stage(stage=1, stage1_data_path=at/'stage1', model_size='tiny', resnet_channels=16, resnet_blocks=1, gpu='cpu',
                      stage1_threshold=0., max_steps=1, run_dir=at/'run')
    return at/'run'

@pytest.fixture
def home(run, tmp_path):
    "A folder that time and others have been at"
    for name in ('a', 'no number', 'noted', 'earlier-a', 'odd result', 'odd notes'): shutil.copytree(run, tmp_path/'runs'/name)
    home = tmp_path/'runs'
    shutil.copytree(run, home/'a'/'earlier-1')                                # which a run has set aside
    row = json.loads((run/'history.jsonl').read_text().splitlines()[-1])
    (home/'no number'/'history.jsonl').write_text(json.dumps(row | {k: math.nan for k in row if '/' in k or k == 'seconds'}) + '\n')
    shutil.rmtree(home/'no number'/'checkpoints')
    (home/'noted'/'notes.jsonl').write_text('{"text": 5}\n{"text": "x\\u001b[31m\\ny", "tags": [{"a": 1}, null, "p,q"]}\nnot json\n'
                                            '{"text": "\\ud800<b>"}\n')
    (home/'odd result'/'result.json').write_text('{"a": 1}')
    (home/'odd notes'/'notes.jsonl').mkdir()
    for name, data in (('bytes', b'\xff\xfe'), ('list', b'[]')):
        (home/name).mkdir()
        (home/name/'config.json').write_bytes(data)
    (home/'pipe').mkdir()
    os.mkfifo(home/'pipe'/'config.json')
    (home/'linked').symlink_to(run)
    (home/'0').symlink_to(home/'a')
    (home/'a'/'back').symlink_to(home)
    (home/'dead').symlink_to(tmp_path/'none')
    return home

@pytest.mark.filterwarnings('ignore:.*damaged and left out')
def test_whatever_lies_there_the_table_stands(home):
    every = runs(home)
    told = {r['run']: r for r in every.frame.to_dicts()}
    assert [*told] == ['a', 'bytes', 'earlier-a', 'linked', 'list', 'no number', 'noted', 'odd notes', 'odd result', 'pipe']
    assert [n for n in told if told[n]['state'].startswith('not readable: ')] == ['bytes', 'list', 'odd notes', 'pipe']
    assert [*every.filter(state='not readable').frame['run']] == ['bytes', 'list', 'odd notes', 'pipe']
    assert [*every.filter(tag='p').frame['run']] == ['noted'] and math.isnan(told['no number']['1/accuracy'])
    assert '\x1b' not in repr(every) and repr(every).count('\n') == len(every) and '<b>' not in every._repr_html_()
    for down in (True, False):
        last = every.sort('accuracy', down).frame['1/accuracy'].to_list()[-5:]
        assert all(v is None or math.isnan(v) for v in last)

@pytest.mark.filterwarnings('ignore:.*damaged and left out')
def test_the_command_tells_the_same(home, capsys, tmp_path):
    assert main(['runs', str(home)]) == 0
    told = capsys.readouterr()
    rows = {r['run']: r for r in json.loads(told.out, parse_constant=pytest.fail)}
    frame = runs(home).frame
    assert [*rows] == [*frame['run']] and 'noted' in told.err and '\x1b' not in told.err
    for r in frame.to_dicts(): assert rows[r['run']] == {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in r.items()}
    assert main(['runs', str(tmp_path/'none')]) == 1 and 'is no folder' in capsys.readouterr().err

def test_a_run_by_itself_has_its_name(run):
    assert [*runs(run).frame['run']] == ['run']

def test_a_figure_without_its_stage_is_the_last_stages():
    "Whatever stage a run of the table had first"
    frame = pl.DataFrame({'run': ['a', 'b'], '3/loss': [4.4, 4.5], '1/loss': [None, .1]})
    assert Runs(frame, {}).column('loss') == '3/loss' and Runs(frame, {}).sort('loss').frame['run'].to_list() == ['b', 'a']

def test_calls_that_cannot_be_are_a_sentence(home, run):
    every = runs(run.parent)
    for call, what in ((lambda: every.filter(pl.col('none') > 3), 'expressions of Polars over run'),
                       (lambda: every.filter('x'), 'expressions of Polars'),
                       (lambda: every.filter(pl.col('run') > 3), 'expressions of Polars'), (lambda: every.filter(tag=3), 'tag=3'),
                       (lambda: every.filter(text=3), 'text=3'), (lambda: every.filter(state='done'), 'one of finished'),
                       (lambda: every.sort(None), 'column=None'), (lambda: runs(None), 'folder=None'), (lambda: runs(''), 'folder='),
                       (lambda: runs('s3://a/b'), 'of this machine'), (lambda: note(run, 'x', tags=[None]), 'tags='),
                       (lambda: note(home/'list', 'x'), 'copy it again'), (lambda: note(home/'odd notes', 'x'), 'is a folder')):
        with pytest.raises(ValueError) as e: call()
        assert what in str(e.value) and '\n' not in str(e.value), str(e.value)

def test_notes_of_any_text_are_kept(run):
    note(run, 'one\ntwo \ud800', tags=' spaced ')
    told = runs(run.parent).filter(tag='spaced')
    assert told.frame['note'][0] == 'one\ntwo \\ud800' and 'one two' in repr(told)
