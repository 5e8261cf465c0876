"""What is seen in JupyterLab: a run of another process as it trains, and a notebook that was opened but not run"""
import json, re

import nbformat
import pytest
from nbconvert import HTMLExporter

from lab import browser, button_of, command, lab, open_notebook, run_cell, shot, theme
from samples import ROOT, thinned
from test_cockpit import ended_run, status

CELLS = ["from maou_nb import attach, film_strip, learn_multi_stage, predict, prepare_stage1, show_position\n"
         "from maou_nb.judge.inspect import shard_info\n"
         "from maou_nb.front.options import make_config\nfrom maou_nb.front.runs import start_run\n"
         "prepare_stage1('stage1')\n"
         "options = dict(stage='1', stage1_data_path='stage1', gpu='cpu', resnet_channels=16, resnet_blocks=1,\n"
         "               stage1_batch_size=64, stage1_threshold=0.9999, stage1_max_epochs=2000, learning_ratio=1e-5,\n"
         "               watched_positions=['9/9/9/9/4N4/9/9/9/9 b - 1'])\n"
         "child = start_run(make_config(**options, run_dir='run'))",
         "attach('run')",
         "show_position('startpos moves 7g7f 3c3d', moves={'8h2b+': 0.6}, value=0.5)",
         "short = options | {'stage1_max_epochs': 2, 'stage1_threshold': 0.1, 'run_dir': 'short'}\n"
         "result = learn_multi_stage(**short)\nresult",
         "film_strip(result)", "predict(result, '9/9/9/9/4N4/9/9/9/9 b - 1')", "shard_info('stage1')"]

# what the live chart shows, and how far its first axis goes
CHART = """() => {
    const g = document.querySelector('.maou-monitor').closest('.jp-OutputArea').querySelector('.js-plotly-plot');
    return g && g._fullLayout && [g.data.map(t => t.x.length).join(), g._fullLayout.xaxis.range.map(v => v.toFixed(3)).join(),
                                  g.data.length] }"""

def charts(page, seconds):
    "The different charts that are shown within so many seconds"
    seen = []
    for _ in range(5*seconds):
        now = page.evaluate(CHART)
        if now and now[0] not in seen: seen.append(now[0])
        page.wait_for_timeout(200)
    return seen

def zoom(page):
    "Draw a box into the first panel"
    box = page.locator('.js-plotly-plot .nsewdrag').first.bounding_box()
    page.mouse.move(box['x'] + 30, box['y'] + 20); page.mouse.down()
    page.mouse.move(box['x'] + 150, box['y'] + 90, steps=5); page.mouse.up()
    page.wait_for_timeout(500)

@pytest.mark.slow
def test_a_run_of_another_process_is_live(tmp_path):
    kernel = dict(name='python3', display_name='python3', language='python')
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in CELLS], metadata=dict(kernelspec=kernel))
    nbformat.write(nb, tmp_path/'live.ipynb')
    with ended_run(tmp_path/'run'), lab(tmp_path) as url, browser(height=1300) as page:
        open_notebook(page, url, 'live.ipynb')
        run_cell(page, 'start_run')
        cell = run_cell(page, "attach('run')")
        page.wait_for_selector('.js-plotly-plot .nsewdrag', timeout=90_000)
        assert len(charts(page, 10)) >= 5
        cell.scroll_into_view_if_needed()
        zoom(page)
        zoomed = page.evaluate(CHART)
        assert len(charts(page, 4)) >= 2 and page.evaluate(CHART)[1] == zoomed[1]          # new points, the reader's axis
        page.locator('.js-plotly-plot .nsewdrag').first.dblclick()                         # the whole again
        page.wait_for_function("() => document.querySelector('.js-plotly-plot')._fullLayout.xaxis.autorange", timeout=10_000)
        box = page.locator('.js-plotly-plot .nsewdrag').first.bounding_box()
        page.mouse.move(box['x'] + box['width']/2, box['y'] + box['height']/2)
        page.wait_for_selector('.js-plotly-plot .hoverlayer text')
        shot(page, 'live-1-light')
        button_of(page, 'smooth').click()
        page.wait_for_function("n => document.querySelector('.js-plotly-plot').data.length > n", arg=zoomed[2], timeout=10_000)
        button_of(page, 'log axis').click()
        page.wait_for_function("() => document.querySelector('.js-plotly-plot')._fullLayout.yaxis.type === 'log'", timeout=10_000)
        theme(page, 'dark')
        shot(page, 'live-2-dark')
        button_of(page, 'Stop').click(); status(page, 'stopped')
        cell.locator('.jp-RenderedPlotly img').first.wait_for(state='attached')                    # what has ended stays as a picture
        for text in CELLS[2:]: run_cell(page, text.splitlines()[0])
        command(page, 'docmanager:save')
        until = lambda: 'image/svg+xml' in (tmp_path/'live.ipynb').read_text()
        for _ in range(100):
            if until(): break
            page.wait_for_timeout(100)
        check_untrusted(page, url, tmp_path)

def check_untrusted(page, url, folder):
    "A copy of the notebook, which nobody signed, shows pictures in place of boards and curves, and no letters of them"
    nb = json.loads((folder/'live.ipynb').read_text())
    nb['metadata']['copied'] = True
    (folder/'copy.ipynb').write_text(json.dumps(nb))
    page.goto(f'{url}/doc/tree/copy.ipynb'); page.wait_for_selector('.jp-Notebook .jp-Cell'); page.wait_for_timeout(3000)
    assert not page.locator('.jp-mod-trusted').count()
    kinds = page.evaluate("() => [...document.querySelectorAll('.jp-OutputArea-output img')]"
                          ".map(i => [i.complete && i.naturalWidth > 0, i.src.slice(0, 20)])")
    assert len(kinds) >= 6 and all(there for there, _ in kinds), kinds                    # board, curves twice, strip, answer, shards
    assert not re.search('[歩香桂銀金角飛玉]', page.locator('.jp-Notebook').inner_text())
    shot(page, 'untrusted')
    check_bundles(nb, 5)
    check_sanitized(nb, 5)

def check_bundles(nb, least):
    "Each picture has a PNG and words beside it; no HTML holds an SVG"
    drawn = [o['data'] for c in nb['cells'] for o in c.get('outputs', ()) if 'data' in o]
    pictures = [d for d in drawn if 'image/svg+xml' in d or 'application/vnd.plotly.v1+json' in d]
    assert len(pictures) >= least
    for d in pictures: assert 'image/png' in d and ' object at 0x' not in ''.join(d['text/plain']) and 'text/html' not in d
    for d in drawn: assert '<svg' not in ''.join(d.get('text/html', ''))

def check_sanitized(nb, least):
    html, _ = HTMLExporter(sanitize_html=True).from_notebook_node(nbformat.reads(json.dumps(nb), 4))  # as a site has it that trusts nobody
    assert len(re.findall(r'src="data:image/(?:png|svg\+xml);base64,', html)) >= least
    assert '&lt;svg xmlns' not in html

NOTEBOOKS, named = sorted(ROOT.glob('nbs/*/*.ipynb')), lambda p: f'{p.parent.name}/{p.stem}'

@pytest.mark.parametrize('path', NOTEBOOKS, ids=named)
def test_kept_pictures_have_words_beside_them(path): check_bundles(json.loads(path.read_text()), 0)

@pytest.mark.parametrize('path', thinned(NOTEBOOKS, 10), ids=named)
def test_kept_outputs_are_seen_untrusted(path): check_sanitized(json.loads(path.read_text()), 0)
