"""Each thing that shows a chart, under the mouse in a real JupyterLab: it is hovered and zoomed, goes on, and bears another theme"""
import nbformat
import pytest

from lab import browser, lab, open_notebook, run_cell, shot, theme
from test_cockpit import ended_run

BEGIN = '''from pathlib import Path
from IPython.display import HTML, display
from maou_nb import attach, compare, learn_multi_stage, load_run, prepare_stage1
from maou_nb.data.html import html_table
from maou_nb.front.options import make_config
from maou_nb.front.runs import start_run
from maou_nb.train.runner import StageThresholdNotMet
prepare_stage1('stage1')
options = dict(stage='1', stage1_data_path='stage1', gpu='cpu', resnet_channels=8, resnet_blocks=1,
               stage1_batch_size=64, stage1_threshold=0.9999, stage1_max_epochs=4000, learning_ratio=1e-5)
for name, epochs in (('short', 5), ('other', 6)):
    try: learn_multi_stage(**options | dict(stage1_max_epochs=epochs, run_dir=name))
    except StageThresholdNotMet: pass'''
GOES_ON = "child = start_run(make_config(**options, run_dir='run'))"
# what shows a chart → its cell, and whether it goes on
SHOWN = {'attach': ("attach('run')  # live", True), 'follow': ("compare('run', 'short').follow()  # live", True),
         'compare': ("compare('short', 'other')  # two that ended", False), 'result': ("load_run('short')  # a result", False)}
PRICES = r"display(HTML(html_table([('$5 and $6', r'\(x\)')], ('prices $1 to $2', 'formula')) + '<p>$a+b$</p>'))"

@pytest.fixture(scope='module')
def page(tmp_path_factory):
    "A notebook with all of them"
    folder = tmp_path_factory.mktemp('charts')
    kernel = dict(name='python3', display_name='python3', language='python')
    cells = [nbformat.v4.new_code_cell(c) for c in (BEGIN, GOES_ON, *(c for c, _ in SHOWN.values()), PRICES)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=dict(kernelspec=kernel)), folder/'charts.ipynb')
    with ended_run(folder/'run'), lab(folder) as url, browser(height=1300) as page:
        open_notebook(page, url, 'charts.ipynb')
        run_cell(page, 'prepare_stage1')
        yield page

@pytest.fixture(scope='module')
def living(page):
    "A run that trains beside it"
    run_cell(page, GOES_ON)

STATE = """g => ({points: g.data.map(t => t.x.length).join(), zoom: g._fullLayout.xaxis.range.map(v => v.toFixed(3)).join(),
                 lines: g.querySelectorAll('.scatterlayer path').length, said: g.querySelectorAll('.hoverlayer text').length,
                 ink: getComputedStyle(g.querySelector('.xtick text')).fill, clipped: [...g.querySelectorAll('.legend .legendtext')]
                     .filter(t => t.getBoundingClientRect().right > g.getBoundingClientRect().right).length})"""

class Chart:
    "The first chart of a cell"
    def __init__(self, cell, live):
        self.page, self.plot = cell.page, cell.locator('.js-plotly-plot').first
        if not live: cell.locator('.jp-RenderedPlotly .plot-img').first.dispatch_event('mouseenter')     # a picture until then
        self.plot.locator('.nsewdrag').first.wait_for(timeout=90_000)
        self.plot.scroll_into_view_if_needed()

    def now(self): return self.plot.evaluate(STATE)

    def place(self): return self.plot.locator('.nsewdrag').first.bounding_box()

    def zoom(self):
        "Draw a box into its first panel, and wait until it is what is seen"
        before, box = self.now()['zoom'], self.place()
        self.page.mouse.move(box['x'] + 30, box['y'] + 20); self.page.mouse.down()
        self.page.mouse.move(box['x'] + 150, box['y'] + 90, steps=5); self.page.mouse.up()
        self.until(lambda: self.now()['zoom'] != before)
        return self.now()['zoom']

    def hover(self):
        "Rest on its first panel; it says values"
        box = self.place()
        for dx in range(-80, 81, 8):                     # until a point is near
            self.page.mouse.move(box['x'] + box['width']/2 + dx, box['y'] + box['height']/2)
            self.page.wait_for_timeout(100)
            if self.now()['said']: return
        raise AssertionError(self.now())

    def until(self, holds, seconds=20):
        for _ in range(10*seconds):
            if holds(): return
            self.page.wait_for_timeout(100)
        raise AssertionError(self.now())

@pytest.mark.parametrize('first', ['light', pytest.param('dark', marks=pytest.mark.slow)])
@pytest.mark.parametrize('what', [what if what == 'compare' else pytest.param(what, marks=pytest.mark.slow) for what in SHOWN])
def test_under_the_mouse(page, what, first, request):
    source, live = SHOWN[what]
    if live: request.getfixturevalue('living')
    theme(page, first)
    chart = Chart(run_cell(page, source), live)
    if live: chart.until(lambda: chart.now()['lines'] and max(map(int, chart.now()['points'].split(','))) > 3, 60)
    chart.hover()
    zoomed = chart.zoom(); chart.hover()
    before = chart.now()
    if live:
        chart.until(lambda: chart.now()['points'] != before['points'])             # it goes on under the mouse
        then = chart.now()['points']; chart.until(lambda: chart.now()['points'] != then)
        assert chart.now()['zoom'] == zoomed and chart.now()['lines']
        chart.until(lambda: chart.now()['said'] > 0, 5)                            # and still says values, where the mouse rests
    other = 'dark' if first == 'light' else 'light'
    theme(page, other)
    assert chart.now()['zoom'] == zoomed and chart.now()['lines'] and not chart.now()['clipped']
    chart.hover()
    if live:
        then = chart.now()['points']; chart.until(lambda: chart.now()['points'] != then)
    shot(page, f'chart-{what}-{other}')

def test_a_table_keeps_its_dollars(page):
    "MathJax takes no `$` in our tables for a formula"
    cell = run_cell(page, 'html_table([')
    cell.locator('.jp-OutputArea-output p mjx-container, .jp-OutputArea-output p .MathJax').first.wait_for()       # MathJax has been here
    table = cell.locator('.jp-OutputArea-output table')
    assert '$5 and $6' in table.inner_text() and 'prices $1 to $2' in table.inner_text() and r'\(x\)' in table.inner_text()
    assert not table.locator('mjx-container, .MathJax').count()
