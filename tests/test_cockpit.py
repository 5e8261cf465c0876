"""The cockpit in a real JupyterLab

The quickstart's panel is filled; a run is started, watched, stopped, gone on with, and found again by a new kernel.
"""
import contextlib, json, time
from urllib.parse import unquote

import nbformat
import pytest

from lab import browser, button_of, command, field, lab, open_notebook, restart_kernel, run_cell, shot, theme
from maou_nb.train.folder import RunFolder
from samples import ONE_FILE, ROOT

def quickstart(folder):
    "The quickstart up to its panel, on 50 games, and two cells more"
    nb = nbformat.read(ROOT/'nbs'/'tutorials'/'70_quickstart.ipynb', as_version=4)
    last = next(i for i, c in enumerate(nb.cells) if c.source.startswith('panel = LearnPanel('))
    nb.cells = [c for c in nb.cells[:last + 1] if c.cell_type == 'code' and not c.source.startswith(('first', 'show_', 'Gallery'))]
    for c in nb.cells:
        c.outputs, c.execution_count = [], None
        if c.source.startswith('games = Path('):
            c.source = (f"games, shards, run_dir = Path({str(ONE_FILE)!r}), Path('shards'), Path('runs/quickstart')\n"
                        "options = dict(stage1_threshold=0.9, stage2_threshold=0.01, epoch=500, gpu='cpu', "
                        "resnet_channels=16, resnet_blocks=1)")
    nb.cells += [nbformat.v4.new_code_cell(s)
                 for s in ("import time\nprint('ticks', len([time.sleep(0.1) for _ in range(10)]))",
                           "from maou_nb import attach\nattach('runs/quickstart-panel')")]
    nbformat.write(nb, folder/'quickstart.ipynb')
    return [c.source for c in nb.cells]

@contextlib.contextmanager
def ended_run(folder):
    "No process trains in `folder` afterwards, whatever happened"
    try: yield
    finally:
        if (left := RunFolder(folder).at_work()): left.kill(); left.wait(10)

def status(page, word, timeout=90):
    "Wait until the newest monitor says `word`"
    page.wait_for_function("w => [...document.querySelectorAll('.maou-monitor b')].pop()?.textContent === w",
                           arg=word, timeout=timeout*1000)

LIVE = '.jp-OutputArea [role=img][aria-label^="stage 3"]'       # the chart of the stage that trains

def points(page):
    "How many points each line of the live chart has"
    return page.evaluate("s => [...document.querySelectorAll(s)].pop().data.map(t => t.x.length).join()", LIVE)

# the charts of the two stages before, and the watched positions of the third: what comes when it begins has come
STAND = """() => [...document.querySelectorAll('.jp-RenderedPlotly')].filter(e => e.offsetHeight > 400).length >= 2
    && [...document.querySelectorAll('.jp-RenderedSVG img')].some(i => decodeURIComponent(i.src).includes('stage 3, ')
                                                                       && i.complete && i.offsetHeight)"""

LOOK = """() => {
    const last = () => [...document.querySelectorAll('.jp-OutputArea [role=img][aria-label^="stage 3"]')].pop();
    const area = last().closest('.jp-OutputArea');
    const seen = window.seen = {frames: 0, blank: 0, heights: new Set(), parts: {}};
    const parts = () => [...area.querySelectorAll('.jp-OutputArea-child, .maou-monitor > *')].entries();
    const look = () => {
        const i = last();
        seen.frames++;
        seen.blank += !(i && i.querySelector('.main-svg .scatterlayer path'));
        seen.heights.add(area.offsetHeight);
        for (const [i, e] of parts()) (seen.parts[`${i} ${e.className}`.slice(0, 90)] ??= new Set()).add(e.offsetHeight);
        requestAnimationFrame(look) };
    look() }"""

# and which parts had more than one height
SEEN = """() => ({...seen, heights: [...seen.heights],
    parts: Object.entries(seen.parts).filter(([k, v]) => v.size > 1).map(([k, v]) => [k, ...v])})"""

def steps(folder): return [json.loads(l) for l in (folder/'runs'/'quickstart-panel'/'steps.jsonl').read_text().splitlines()]

@pytest.mark.slow
@pytest.mark.parametrize('whole', [False, True], ids=['one pass', 'every step'])
def test_the_way_through(tmp_path, whole):
    """One pass: a wrong field, start, other cells meanwhile, stop

    Every step: preflight, resume, a new kernel that attaches, and the dark theme too.
    """
    sources = quickstart(tmp_path)
    with ended_run(tmp_path/'runs'/'quickstart-panel'), lab(tmp_path) as url, browser() as page:
        open_notebook(page, url, 'quickstart.ipynb')
        for source in sources[:-2]: run_cell(page, source.splitlines()[0])
        page.wait_for_selector('.maou-panel'); shot(page, '1-panel')

        page.get_by_role('tab', name='Stage 3').click()
        field(page, 'epoch').fill('many'); field(page, 'epoch').press('Tab')
        wrong = page.locator('.maou-error'); wrong.wait_for()
        assert 'valid integer' in wrong.inner_text()
        assert page.get_by_role('tab', name='Stage 3 ✗1').count() == 1
        page.wait_for_function("b => b.disabled", arg=button_of(page, 'Start').element_handle())
        shot(page, '2-error-beside-the-field')
        field(page, 'epoch').fill('400'); field(page, 'epoch').press('Tab'); wrong.wait_for(state='detached')
        page.get_by_role('tab', name='Model').click()
        assert field(page, 'vit_num_heads').is_disabled() and page.get_by_text('no effect: only model_architecture=vit uses it').count() > 3
        shot(page, '3-greyed-with-the-reason')

        if whole:
            button_of(page, 'Preflight').click(); page.wait_for_selector('.maou-preflight', state='attached', timeout=120_000)
            assert 'No game is on both sides' in page.locator('.maou-preflight').text_content()         # folded
            assert 'ready to start' in page.locator('.maou-panel').inner_text()
            shot(page, '4-preflight')

        button_of(page, 'Start').click(); status(page, 'training')
        page.wait_for_function("s => [...document.querySelectorAll(s)].pop()?.querySelector('.main-svg .scatterlayer path')",
                               arg=LIVE, timeout=120_000)
        page.wait_for_function(STAND)
        before = points(page)
        page.evaluate(LOOK)                                                # at every frame that the browser draws
        ticking = run_cell(page, 'ticks')                                  # another cell runs while it trains
        assert 'ticks 10' in ticking.locator('.jp-OutputArea').inner_text()
        page.wait_for_function("([s, old]) => [...document.querySelectorAll(s)].pop().data.map(t => t.x.length).join() !== old",
                               arg=[LIVE, before], timeout=120_000)
        seen = page.evaluate(SEEN)
        # no flicker: never blank, and nothing jumps
        assert seen['frames'] > 20 and seen['blank'] == 0 and len(seen['heights']) == 1, seen
        shot(page, '5-training')

        button_of(page, 'Stop').click(); status(page, 'stopped')
        page.wait_for_function("() => document.querySelectorAll('.jp-RenderedPlotly').length >= 3")     # the last charts stay
        done = steps(tmp_path)
        shot(page, '6-stopped')
        if whole: on_again(page, url, tmp_path, done)
        command(page, 'docmanager:save'); page.wait_for_timeout(2000)
    kept = [o for c in nbformat.read(tmp_path/'quickstart.ipynb', as_version=4).cells if c.cell_type == 'code' for o in c.outputs]
    # the saved notebook keeps the curves of all stages, with pictures of them, and the form as a table
    assert sum({'application/vnd.plotly.v1+json', 'image/png'} <= o.get('data', {}).keys() for o in kept) >= 3
    assert any('<table class' in o.get('data', {}).get('text/html', '') for o in kept)
    cfg = json.loads((tmp_path/'runs'/'quickstart-panel'/'config.json').read_text())
    assert cfg['epoch'] == 400 and cfg['resume_from'] == ('latest' if whole else None)

def on_again(page, url, folder, done):
    "Go on with the run, close the browser's tab, and find it from a new kernel"
    button_of(page, 'Resume').click(); status(page, 'training')
    until = time.monotonic() + 120
    while steps(folder)[-1]['step'] <= done[-1]['step'] + 20: assert time.monotonic() < until; time.sleep(0.5)
    shot(page, '7-resumed')

    command(page, 'docmanager:save'); page.wait_for_timeout(2000)
    page.goto('about:blank'); gone = steps(folder)[-1]['step']
    page.wait_for_timeout(3000)
    assert steps(folder)[-1]['step'] > gone                            # it goes on without a page that shows it
    open_notebook(page, url, 'quickstart.ipynb'); restart_kernel(page)
    cell = run_cell(page, 'from maou_nb import attach'); cell.locator('.maou-monitor').wait_for()
    status(page, 'training')                                           # it goes on without the kernel that began it
    page.wait_for_function("s => document.querySelectorAll(s).length", arg=LIVE)                       # the third trains
    assert cell.locator('.jp-RenderedPlotly').count() == 2                                             # and two have ended
    shot(page, '8-attached-by-a-new-kernel')
    button_of(page, 'Stop').click(); status(page, 'stopped')
    theme(page, 'dark')
    shot(page, '9-dark')

CELLS = ['''from pathlib import Path
from maou_nb import prepare_stage1, prepare_stage2, prepare_stage3, learn_multi_stage
from maou_nb import browse, compare, film_strip, show_position, show_results, tensorboard
out = Path('.')
prepare_stage1(out/'stage1'); prepare_stage2(GAMES, out/'stage2'); prepare_stage3(GAMES, out/'stage3')
result = learn_multi_stage(stage='all', model_size='tiny', resnet_channels=16, resnet_blocks=1,
                           stage1_threshold=0.9, stage2_threshold=0.05, stage2_test_ratio=0.2, epoch=2,
                           gpu='cpu', run_dir='runs/one', watched_positions='startpos moves 7g7f 3c3d',
                           stage1_data_path='stage1', stage2_data_path='stage2', stage3_data_path='stage3')''',
         "show_position('startpos moves 7g7f 3c3d 8h2b+', moves={'3a2b': 0.9}, value=0.5, caption='a board')",
         'browse(result)', 'show_results(result, stage=2, n=2)', 'film_strip(result, stage=3)', 'tensorboard(result)']

@pytest.mark.slow
def test_boards_browser_and_tensorboard(tmp_path):
    "Boards in both themes, rows stepped through, TensorBoard with its board pictures in a frame"
    cells = [nbformat.v4.new_code_cell(c.replace('GAMES', repr(str(ONE_FILE)))) for c in CELLS]
    kernel = dict(name='python3', display_name='python3', language='python')
    nb = nbformat.v4.new_notebook(cells=cells, metadata=dict(kernelspec=kernel))
    nbformat.write(nb, tmp_path/'boards.ipynb')
    with lab(tmp_path) as url, browser(height=1300) as page:
        open_notebook(page, url, 'boards.ipynb')
        run_cell(page, 'from pathlib import Path')
        board = run_cell(page, 'show_position(\'startpos').locator('img').get_attribute('src')
        assert 'lnsgkgsnl/1r5+B1/pppppp1pp/6p2/9/2P6/PP1PPPPPP/7R1/LNSGKGSNL w B 4' in unquote(board)
        rows = run_cell(page, 'browse(result)')
        first = rows.locator('img').get_attribute('alt')
        rows.locator('.jupyter-button').last.click()
        page.wait_for_function("old => document.querySelector('.maou-browser img').alt !== old", arg=first)
        rows.locator('select').first.select_option('worst policy')
        page.wait_for_function("() => /policy/.test(atob(document.querySelector('.maou-browser img').src.split(',')[1]))")
        rows.locator('select').nth(1).select_option('western'); page.wait_for_timeout(500)
        rows.scroll_into_view_if_needed(); shot(page, '10-browse')
        run_cell(page, 'show_results(result').scroll_into_view_if_needed(); shot(page, '11-missed-and-invented')
        strip = run_cell(page, 'film_strip(result'); strip.scroll_into_view_if_needed()
        drawn = unquote(strip.locator('img').get_attribute('src'))
        assert drawn.count('aria-label=') == 4                     # three boards in one picture
        shot(page, '12-film-strip')
        theme(page, 'dark')
        rows.scroll_into_view_if_needed(); shot(page, '13-boards-dark')
        frame_cell = run_cell(page, 'tensorboard(result)'); frame = frame_cell.frame_locator('iframe')
        frame.get_by_text('stage3').first.wait_for(timeout=60_000)
        frame.get_by_role('tab', name='Images').or_(frame.get_by_text('Images', exact=True)).first.click(); page.wait_for_timeout(4000)
        frame_cell.scroll_into_view_if_needed(); shot(page, '14-tensorboard')
