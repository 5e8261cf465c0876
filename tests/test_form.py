"""The form in a real JupyterLab: labels, languages, paths, problems, copying, keyboard, and what is left of it without its kernel"""
import ast, contextlib, re

import nbformat
import pytest

from lab import browser, button_of, command, field, lab, open_notebook, restart_kernel, run_cell, shot, theme
from maou_nb.front.panel import PAUSE
from maou_nb.front.study import load_study
from maou_nb.front.words import OPTIONS, TABS
from maou_nb.train.folder import RunFolder
from maou_nb.train.options import LearnConfig, label_of

SMALL = dict(stage='1', stage1_data_path='stage1', model_size='tiny', gpu='cpu', resnet_channels=8, resnet_blocks=1,
             stage1_threshold=1., input_features='pieces', stage1_max_epochs=100000, stage1_batch_size=64, run_dir='runs/first')
CELLS = ["from maou_nb import *\nprepare_stage1('stage1')", f'panel = LearnPanel(**{SMALL!r})\npanel',
         "from maou_nb import attach\nattach('runs/first')"]

def notebook(folder):
    kernel = dict(name='python3', display_name='python3', language='python')
    nb = nbformat.v4.new_notebook(cells=[*map(nbformat.v4.new_code_cell, CELLS)], metadata=dict(kernelspec=kernel))
    nbformat.write(nb, folder/'form.ipynb')

@contextlib.contextmanager
def opened(folder):
    "(page, address) of a notebook whose panel is shown; a run that was begun in it is ended"
    notebook(folder)
    try:
        with browser(height=1200) as page, lab(folder) as url:
            page.context.grant_permissions(['clipboard-read', 'clipboard-write'])
            open_notebook(page, url, 'form.ipynb')
            run_cell(page, 'prepare_stage1'); run_cell(page, 'panel = LearnPanel')
            page.wait_for_selector('.maou-panel')
            yield page, url
    finally:
        if (left := RunFolder(folder/'runs'/'first').at_work()): left.kill(); left.wait(10)

CUT = """() => [...document.querySelectorAll('.maou-panel label, .maou-panel .widget-label-basic span, .maou-panel .lm-TabBar-tabLabel, '
                                             + '.maou-panel button')]
    .filter(e => e.offsetParent && (e.scrollWidth > e.clientWidth + (getComputedStyle(e).display === 'inline') * 1e6
                                    || e.scrollHeight > e.clientHeight + 2 && getComputedStyle(e).display !== 'inline'))
    .map(e => [e.textContent, e.scrollWidth, e.clientWidth, e.scrollHeight, e.clientHeight])"""
LABELS = """() => [...document.querySelectorAll('.maou-panel .maou-field label')].filter(e => e.offsetParent)
    .map(e => e.textContent.replace('\u200b', '').trim()).filter(t => t)"""
NAMELESS = """() => [...document.querySelectorAll('.maou-panel input, .maou-panel select, .maou-panel textarea, .maou-panel button')]
    .filter(e => e.offsetParent && !(e.labels?.[0]?.textContent.trim() || e.textContent.trim() || e.getAttribute('aria-label')))
    .map(e => e.outerHTML.slice(0, 200))"""

def tabs(page): return page.locator('.maou-panel [role=tab]')

def look_through(page, language, seen):
    "No label is cut in any tab, at two widths, and every control has a name"
    for width in (1440, 900):
        page.set_viewport_size(dict(width=width, height=1200)); page.wait_for_timeout(300)
        for i in range(tabs(page).count()):
            tabs(page).nth(i).click(); page.wait_for_timeout(120)
            assert page.evaluate(CUT) == [], (language, width, i)
            assert page.evaluate(NAMELESS) == [], (language, width, i)
            seen |= {*page.evaluate(LABELS)}
    tabs(page).first.click(); shot(page, f'form-{language}-900', page.locator('.maou-panel'))
    page.set_viewport_size(dict(width=1280, height=1200)); page.wait_for_timeout(300)
    shot(page, f'form-{language}', page.locator('.maou-panel'))

@pytest.mark.slow
def test_the_form(tmp_path):
    (tmp_path/'records').mkdir(); (tmp_path/'records'/'second').mkdir()
    with opened(tmp_path) as (page, _):
        panel = page.locator('.maou-panel')
        # labels; the preset stands above the tabs
        seen = set(); look_through(page, 'en', seen)
        names = {n: label_of(n, f) for n, f in LearnConfig.model_fields.items()}
        shown = {re.sub('.* · ', '', text) for text in seen}
        assert shown == {*names} - {'preset'} and f'{names["learning_ratio"]} · learning_ratio' in seen
        tabs(page).nth(1).click(); page.wait_for_timeout(300)
        shot(page, 'panel', panel)                         # as in nbs/images/panel.png
        panel.get_by_role('button', name='日本語').click(); page.get_by_text('計算デバイス · gpu').wait_for()
        seen = set(); look_through(page, 'ja', seen)
        assert seen == {f'{OPTIONS[n][0]} · {n}' for n in names if n != 'preset'}
        assert [t.split()[0] for t in tabs(page).all_inner_texts()] == [*TABS.values()]
        tabs(page).nth(1).click()
        assert 'bf16 · bfloat16' in field(page, 'precision').inner_text().replace('\xa0', ' ')
        assert page.get_by_text('今は無効: model_architecture=vit').count() > 3
        theme(page, 'dark')
        shot(page, 'form-ja-dark', panel)
        panel.get_by_role('button', name='English').click(); page.get_by_text('number format · precision').wait_for()
        shot(page, 'form-en-dark', panel)
        theme(page, 'light'); tabs(page).first.click()

        # a path is as wide as the form, and completed as it is typed; a URL is not
        path = field(page, 'stage1_data_path')
        assert path.bounding_box()['width'] > 0.6*panel.bounding_box()['width']
        offered = "() => [...document.querySelectorAll('.maou-panel datalist')].flatMap(d => [...d.children].map(o => o.value))"
        path.fill(''); path.press_sequentially('records/s')
        assert path.input_value() == 'records/s', 'keys were lost'
        page.wait_for_function(f"() => ({offered})().includes('records/second/')")
        path.fill('s3://bucket/x'); page.wait_for_function(f"() => !({offered})().includes('records/second/')")
        path.fill('nowhere'); page.wait_for_timeout(1000*PAUSE); page.locator('.maou-error').wait_for()

        # problems: a button leads to each in turn
        tabs(page).filter(has_text='Optimizer').click()
        field(page, 'momentum').evaluate('e => e.disabled') or pytest.fail('momentum is of sgd alone')
        field(page, 'batch_size').fill('0'); field(page, 'batch_size').press('Tab')
        several = panel.get_by_role('button', name='2 problems'); several.wait_for()
        focused = "() => document.activeElement.closest('.maou-field.maou-here')?.querySelector('label').textContent.trim()"
        for tab, of in (('Data', 'stage1_data_path'), ('Optimizer', 'batch_size'), ('Data', 'stage1_data_path')):
            several.click()
            page.wait_for_function(f"n => (({focused})() ?? '').endsWith(n)", arg=of)
            assert panel.locator('[role=tab][aria-selected=true]').inner_text().startswith(tab)
        shot(page, 'form-problem', panel)
        field(page, 'stage1_data_path').fill('stage1'); tabs(page).filter(has_text='Optimizer').click()
        field(page, 'batch_size').fill(''); field(page, 'batch_size').press('Tab')
        panel.get_by_text('nothing stands in the way').wait_for()

        # what is copied is in the clipboard, where the browser lets, and where it has only the old way
        clipboard = "() => navigator.clipboard.readText()"
        button_of(page, 'Copy as command').click(); panel.get_by_text('copied', exact=True).wait_for()
        assert page.evaluate(clipboard).startswith('maou-nb learn-model --stage 1 ')
        page.evaluate("() => { window.kept = navigator.clipboard.writeText; navigator.clipboard.writeText = () => Promise.reject() }")
        button_of(page, 'Copy as code').click()
        page.wait_for_function("() => navigator.clipboard.readText().then(t => t.includes('learn_multi_stage('))")
        assert ast.parse(page.evaluate(clipboard)) and panel.locator('textarea.maou-code').is_visible()
        page.evaluate("() => { document.execCommand = () => false }")
        button_of(page, 'Copy as command').click(); panel.get_by_text('Ctrl+C copies it').wait_for()
        assert page.evaluate('() => getSelection().toString() || document.activeElement.value').startswith('maou-nb learn-model')

        # the keyboard reaches all of it
        tabs(page).first.click(); page.locator('.maou-panel select').first.focus()
        reached = set()
        for _ in range(60):
            reached.add(page.evaluate("() => { const e = document.activeElement; return e.closest('.maou-panel') ? "
                                      "(e.labels?.[0] ?? e).textContent.trim().split(' · ').pop() : '' }"))
            page.keyboard.press('Tab')
        missed = {'Preset', 'run_dir', 'stage', 'on_bad', 'stage1_data_path', '+', 'Preflight', 'Start', 'Copy as code',
                  'Copy as command', 'English', '日本語', 'Data', 'Log'} - reached
        assert not missed, (missed, reached)

def broken(page):
    "Pictures on the page that show nothing, and signs that a widget lost its kernel"
    return page.evaluate("""() => [...[...document.querySelectorAll('.jp-OutputArea img')].filter(i => !i.complete || !i.naturalWidth),
        ...[...document.querySelectorAll('.jupyter-widgets-disconnected')].filter(
            e => e.offsetParent && !['none', 'normal'].includes(getComputedStyle(e, '::before').content)
                 && getComputedStyle(e, '::before').display !== 'none')].map(e => e.outerHTML.slice(0, 100))""")

def kept(page):
    "The line under the panel"
    return page.locator('.jp-CodeCell').filter(has_text='panel = LearnPanel').locator('.maou-kept').text_content()

@pytest.mark.slow
def test_without_its_kernel(tmp_path):
    "A run goes on; the saved notebook says where it is, how it stood and when, and how to see it"
    with opened(tmp_path) as (page, url):
        line = page.locator('.maou-kept').first
        assert 'Nothing was begun here' in kept(page) and not line.is_visible()
        button_of(page, 'Start').click()
        page.wait_for_function("() => [...document.querySelectorAll('.maou-kept')].some(e => e.textContent.includes('training: stage 1'))")
        page.wait_for_function("() => document.querySelectorAll('.jp-OutputArea [role=img][aria-label^=\"stage 1\"]').length")
        command(page, 'docmanager:save'); page.wait_for_timeout(1500)

        restart_kernel(page)
        said = kept(page)
        assert re.search(r"run runs/first · begun [-\d]+ [\d:]+ · as of [-\d]+ [\d:]+ "
                         r"training: stage 1 .* · attach\('runs/first'\) shows", said), said
        assert broken(page) == [] and line.is_visible() and not page.locator('.maou-monitor').is_visible()
        shot(page, 'form-restarted')

        open_notebook(page, url, 'form.ipynb')
        page.wait_for_timeout(1500); shot(page, 'form-reopened')
        assert kept(page).startswith('run runs/first · begun') and line.is_visible() and broken(page) == []
        assert not any(of.is_visible() for text in ('Error displaying widget', 'Loading widget') for of in page.get_by_text(text).all())
        outputs = [o for c in nbformat.read(tmp_path/'form.ipynb', as_version=4).cells for o in c.get('outputs', ())]
        assert any("attach('runs/first')" in o.data.get('text/plain', '') for o in outputs if 'data' in o)

        cell = run_cell(page, 'from maou_nb import attach'); cell.locator('.maou-monitor').wait_for()
        steps = "() => +[...document.querySelectorAll('.maou-monitor')].pop().textContent.match(/step ([\\d,]+)/)?.[1].replaceAll(',', '')"
        page.wait_for_function(f"() => ({steps})() > 0"); first = page.evaluate(steps)
        page.wait_for_function(f"first => ({steps})() > first", arg=first)
        shot(page, 'form-attached')

@pytest.mark.slow
def test_a_narrow_window_cuts_nothing(tmp_path):
    "Labels stand above their fields, tabs in rows, and no text leaves the panel; in either language"
    beyond = """() => { const edge = document.querySelector('.maou-panel').getBoundingClientRect().right + 1;
        return [...document.querySelectorAll('.maou-panel *')].filter(e => e.offsetParent && e.getBoundingClientRect().right > edge)
            .map(e => e.className + ': ' + e.textContent.slice(0, 40)) }"""
    with opened(tmp_path) as (page, _):
        page.set_viewport_size({'width': 420, 'height': 1200}); page.wait_for_timeout(1000)
        for language in ('English', '日本語'):
            page.get_by_role('button', name=language).click(); page.wait_for_timeout(1000)
            for i in range(7):
                page.locator('.maou-panel .lm-TabBar-tab').nth(i).click(); page.wait_for_timeout(200)
                assert not page.evaluate(CUT) and not page.evaluate(beyond), (language, i)
            inputs = page.locator('.maou-panel .maou-field input[type=text]:visible, .maou-panel .maou-field select:visible')
            assert inputs.count() > 3 and min(inputs.nth(n).bounding_box()['width'] for n in range(inputs.count())) > 200
            shot(page, f'narrow-{"en" if language == "English" else "ja"}')

@pytest.mark.slow
def test_a_study_from_the_panel(tmp_path):
    "Its fields have names, its table fills while it trains, and ends with a verdict; in either language"
    with opened(tmp_path) as (page, _):
        panel = page.locator('.maou-panel')
        button_of(page, 'Study').click(); panel.get_by_label('arms').wait_for()
        assert page.evaluate(NAMELESS) == [] and page.evaluate(CUT) == []
        shot(page, 'study-form', panel)
        panel.get_by_label('arms').fill('plain: {stage1_threshold: null}\nslow: {stage1_threshold: null, stage1_learning_rate: 0.0001}')
        panel.get_by_label('seeds').fill('2'); panel.get_by_label('seeds').press('Tab')
        panel.get_by_label('budget').select_option('steps')
        panel.get_by_label('amount').fill('40'); panel.get_by_label('amount').press('Tab')
        button_of(page, 'Start the study').click()
        panel.get_by_text('maou-nb study studies/first.yaml').wait_for()
        panel.get_by_text('is worse than plain').or_(panel.get_by_text('No difference')).first.wait_for(timeout=240_000)
        shot(page, 'study-done', panel)
        page.get_by_role('button', name='日本語').click(); page.wait_for_timeout(800)
        shot(page, 'study-ja', panel)
        assert load_study(tmp_path/'studies'/'first').outcomes()
