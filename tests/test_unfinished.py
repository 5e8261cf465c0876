"""A run that has not come to its end says so at every door that tells figures of it, in the same sentence"""
import json

import pytest

from maou_nb import compare, evaluate, learn_multi_stage, load_net, load_run, predict
from maou_nb.data.files import as_path
from maou_nb.front.cli import as_json
from maou_nb.train.loop import Callback
from maou_nb.train.mirror import unfinished

KNIGHT = '9/9/9/9/4N4/9/9/9/9 b - 1'
ROW = {'stage': 3, 'step': 106, 'epoch': 1.5, 'positions_per_second': 9., 'loader_wait': 0.}

@pytest.fixture
def options(shards, tmp_path):
    return dict(stage='1', stage1_data_path=shards['stage1_data_path'], run_dir=tmp_path/'run', gpu='cpu', resnet_channels=8,
                resnet_blocks=1, stage1_max_epochs=1, stage1_threshold=0.1)

def said_by(run):
    "What each door says of a run, as text and as a page"
    judged, one, two = evaluate(run, device='cpu'), predict(run, KNIGHT), predict(run, [KNIGHT, KNIGHT])
    return {'load_run': (repr(load_run(run)), load_run(run)._repr_html_()), 'evaluate': (repr(judged), judged._repr_html_()),
            'predict': (repr(one), one.drawing()), 'predict several': (repr(two), two.drawing())}

def words(page):
    "The words of a page or picture, whose lines are broken"
    import re
    return ' '.join(re.sub('<[^>]+>', ' ', page).replace('&quot;', '"').split())

def check(run, sentence):
    for door, (text, page) in said_by(run).items():
        assert text.count(sentence) == 1, door
        assert sentence in words(page), door

def test_a_run_that_was_left(options, tmp_path):
    learn_multi_stage(**options)
    run, other = tmp_path/'run', tmp_path/'other'
    assert unfinished(run) == load_net(run).unfinished == '' and 'finished' not in ''.join(a + b for a, b in said_by(run).values())
    learn_multi_stage(**options | {'run_dir': other})
    with open(run/'steps.jsonl', 'a') as f: f.write(json.dumps(ROW) + '\n')
    sentence = 'stage 3 is not finished: it was at step 106; resume_from="latest" goes on from its last checkpoint'
    check(run, sentence); check(load_run(run).checkpoint(), sentence)
    side = compare(run, other)
    assert f'run: {sentence}' in repr(side) and sentence in words(side._repr_html_()) and 'other: ' not in repr(side).split('reached:')[1]
    assert as_json(evaluate(run, device='cpu'))['unfinished'] == as_json(predict(run, KNIGHT))['note'] == sentence

def test_a_run_that_was_stopped(options, tmp_path):
    class Ends(Callback):
        def after_epoch(self, loop): loop.stop.why = 'the test'
    result = learn_multi_stage(**options | {'stage1_max_epochs': 3, 'stage1_threshold': 1.}, callbacks=[Ends()])
    assert result.stopped.startswith('stage 1 was stopped by the test in epoch ')
    check(tmp_path/'run', result.stopped)

def test_of_a_run_far_away(options, tmp_path):
    learn_multi_stage(**options)
    with open(tmp_path/'run'/'steps.jsonl', 'a') as f: f.write(json.dumps(ROW) + '\n')
    far = as_path('memory://unfinished/run')
    for p in filter(lambda p: p.is_file(), (tmp_path/'run').rglob('*')):
        (to := far/p.relative_to(tmp_path/'run').as_posix()).parent.mkdir(parents=True, exist_ok=True); to.write_bytes(p.read_bytes())
    assert 'stage 3 is not finished: it was at step 106' in repr(evaluate(str(far), device='cpu'))

@pytest.mark.parametrize('text', ['', '{"stopped": 3, "stages_completed": 7}', '[]', '{"stages_completed": [1, {"stage": {}}]}'])
def test_what_cannot_be_read_says_nothing_wrong(options, tmp_path, text):
    learn_multi_stage(**options)
    (tmp_path/'run'/'result.json').write_text(text)
    assert unfinished(tmp_path/'run').startswith('stage 1 is not finished') and unfinished('nowhere') == unfinished('\0') == ''
