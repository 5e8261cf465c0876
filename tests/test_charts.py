"Charts of whatever a run may have written: valid JSON that Plotly takes, a PNG, names that stay text"
import json, math
from types import SimpleNamespace

import plotly.graph_objects as go
import pytest
from hypothesis import given, settings, strategies as st

from maou_nb import load_run
from maou_nb.front.runs import best_so_far, comparison_chart
from maou_nb.judge.watch import LivePlot
from maou_nb.show.plots import Screen, stage_chart
from maou_nb.stages.stage import STAGES

ODD = st.one_of(st.none(), st.floats(), st.floats(0, 1), st.just(0.))
FIGURES = ('train/loss', 'valid/loss', 'valid/accuracy', 'valid/baseline_accuracy', 'lr', 'grad_norm', 'positions_per_second',
           'loader_wait')

def rows(values, **more):
    "A line of history for each of `values`, which has a number for each of `FIGURES`"
    return [{'stage': 1, 'epoch': i + 1, 'step': 10*i + 1, **dict(zip(FIGURES, v)), **more} for i, v in enumerate(values)]

def check(chart):
    "JSON as other programs read it, accepted by Plotly, and drawn by Matplotlib"
    drawn = json.loads(json.dumps(chart.plotly(), allow_nan=False))
    go.Figure(dict(data=drawn['data'], layout=drawn['layout']))
    assert chart.png()[:4] == b'\x89PNG'
    return drawn

@settings(max_examples=12, deadline=None)
@given(st.lists(st.tuples(*[ODD]*len(FIGURES)), max_size=4), st.lists(st.tuples(*[ODD]*len(FIGURES)), max_size=4), ODD, st.booleans())
def test_any_numbers_are_drawn(history, steps, threshold, log):
    check(stage_chart(rows(history), threshold, 5, rows(steps), 'mine', log=log, smooth=0.5))

@settings(max_examples=12, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=60), min_size=1, max_size=12, unique=True), st.integers(1, 3))
def test_names_stay_text(names, epochs):
    "Neither HTML nor a formula, in a legend that has each name once"
    runs = {name: (None, {1: rows([(1., 1., .5, .1, .1, 1., 1., 0.)]*epochs)}) for name in names}
    drawn = check(comparison_chart(runs))
    said = [t.get('name') or '' for t in drawn['data']] + [a['text'] for a in drawn['layout']['annotations']]
    assert not any(sign in text for text in said for sign in '<>$')
    shown = [t['name'] for t in drawn['data'] if t['showlegend']]
    assert len(shown) == len({*shown}) <= len(names)

def test_a_long_run_is_thinned():
    steps = [{**row, 'epoch': i/1000} for i, row in enumerate(rows([(1., 1., .5, .1, .1, 1., 1., 0.)]*50_000))]
    assert max(len(t['x']) for t in stage_chart([], steps=steps).plotly()['data']) <= 602

def test_a_picture_is_no_reason_to_end_a_run():
    class Torn(Screen):
        def draw(self, *args, **how): raise ValueError('torn')
    loop = SimpleNamespace(stage=STAGES['1'], history=[], steps=[], split='', settings=SimpleNamespace(threshold=None, epochs=1))
    plot = LivePlot(Torn())
    with pytest.warns(UserWarning, match='torn.*training goes on') as told:
        for _ in range(3): plot.draw(loop)
    assert len(told) == 1

def test_the_best_is_a_number():
    found = best_so_far(STAGES['1'], [{'epoch': 1, 'valid/accuracy': math.nan}, {'epoch': 2, 'valid/accuracy': .9}])
    assert found.endswith('0.900 in epoch 2')

def test_a_stage_that_was_begun(tmp_path, shards):
    "A result is not taken for whole while a stage after it lacks its end"
    from maou_nb import learn_multi_stage
    run = tmp_path/'run'
    learn_multi_stage(stage='1', stage1_data_path=shards['stage1_data_path'], run_dir=run, gpu='cpu', resnet_channels=8, resnet_blocks=1,
                      stage1_max_epochs=1, stage1_threshold=0.1)
    assert load_run(run).stopped == ''
    with open(run/'steps.jsonl', 'a') as f: f.write(json.dumps(rows([(1., 1., .5, .1, .1, 1., 1., 0.)], stage=3)[0] | {'step': 106}) + '\n')
    found = load_run(run).stopped
    assert 'stage 3 is not finished: it was at step 106' in found and 'resume_from' in found and found in repr(load_run(run))
