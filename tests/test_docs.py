"The docs site: built from the notebooks, read at two widths in two themes, searched; no link broken, no export without a docstring"
import functools, http.server, json, re, subprocess, sys, threading, types

import pytest
import yaml
from nbdev.showdoc import show_doc

from lab import browser, shot
from maou_nb.train.options import LearnConfig
from public import public
from samples import ROOT

sys.path.insert(0, str(ROOT/'tools'))
import docs_build

@pytest.mark.filterwarnings('ignore::UserWarning')
def test_the_page_of_every_export_can_be_made():
    "Of classes that have their parts from another library, too"
    unmade = {}
    for name, found in public():
        try: assert str(show_doc(found))
        except Exception as e: unmade[name] = repr(e)
    assert not unmade

@pytest.fixture(scope='module')
def site():
    "The site, built as `make docs` does"
    done = subprocess.run([sys.executable, ROOT/'tools'/'docs_build.py'], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert ' 0 broken links, 0 undocumented exports' in done.stdout
    print(done.stdout)
    return ROOT/'_docs'

@pytest.mark.slow
def test_a_page_for_every_notebook(site):
    pages = {p.stem for p in site.rglob('*.html')}
    assert {p.stem.lstrip('0123456789_') for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts} <= pages

@pytest.mark.slow
def test_every_option_is_in_the_table(site):
    text = (site/'guides'/'options.html').read_text()
    shown = set(re.findall(r'<code [^>]*><span class="pre">(\w+)</span></code>', text))
    assert set(LearnConfig.model_fields) <= shown

@pytest.mark.slow
def test_every_export_is_in_the_api(site):
    text = ''.join(p.read_text() for p in (site/'api').glob('*.html'))
    missing = [f'{m.__name__}.{n}' for m in docs_build.modules()
               for n in getattr(m, '__all__', ()) if callable(getattr(m, n))
               and getattr(getattr(m, n), '__module__', None) == m.__name__ and f'<span class="pre">{n}</span>' not in text]
    assert not missing
    assert len({p.stem for p in (site/'api').glob('*.html')}) == len(docs_build.INSIDE) + 1      # a page a floor, and the list

@pytest.mark.slow
def test_shapes_and_pictures_are_there(site):
    text = (site/'show'/'boards.html').read_text()
    assert '(81,): a value for each square' in text and text.count('role="img"') >= 4 and 'aria-label="lnsgkgsnl' in text
    assert 'alt="stage 3 after' in (site/'show'/'plots.html').read_text()

@pytest.mark.slow
def test_a_type_of_several_stays_in_its_column(site):
    row = (site/'stages'/'rows.html').read_text().split('<span class="pre">paths</span>', 1)[1].split('</tr>')[0]
    assert '>str</span> <span class="pre">|</span> <span class="pre">Path</span>' in row and row.count('</td>') == 4

# --- In a browser

WIDTHS, THEMES = (1440, 390), ('light', 'dark')
# elements of the text that stand out of it, or are cut off, where nothing scrolls
CLIPPED = '''() => {
    const over = (e, ...ways) => ways.includes(getComputedStyle(e).overflowX)
    const text = document.querySelector('.bd-article') ?? document.querySelector('main'), found = []
    if (document.documentElement.scrollWidth > innerWidth) found.push('the page itself')
    for (const e of text.querySelectorAll('pre, code, table, img, svg, p, li')) {
        const at = e.getBoundingClientRect(), wide = e.clientWidth && e.scrollWidth > e.clientWidth + 1
        const right = wide && over(e, 'visible') ? at.left + e.scrollWidth : at.right
        let box = e.parentElement
        while (box !== text && over(box, 'visible')) box = box.parentElement
        const out = at.width && right > box.getBoundingClientRect().right + 1 && !over(box, 'auto', 'scroll')
        if (out || wide && over(e, 'hidden', 'clip')) found.push(`${e.tagName}: ${e.textContent.trim().slice(0, 60)}`)
    }
    return found }'''
STILL = '*, *::before, *::after { transition: none !important; animation: none !important }'

class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass

@pytest.fixture
def reader(site):
    "A browser on the site, which asks nothing of other machines: the page, and the address of the site"
    handler = functools.partial(Quiet, directory=site)
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server, browser(height=1000) as page:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url, elsewhere = f'http://127.0.0.1:{server.server_address[1]}', []
        page.on('request', lambda r: None if r.url.startswith((url, 'data:')) else elsewhere.append(r.url))
        yield page, url
        server.shutdown()
        assert not elsewhere

def look(page, url, name, width, theme):
    "Open the page `name` of the site at `url`"
    page.set_viewport_size(dict(width=width, height=1000))
    page.emulate_media(color_scheme=theme, reduced_motion='reduce')
    page.goto(f'{url}/{name}.html')
    page.add_style_tag(content=STILL)
    page.wait_for_function('() => document.documentElement.dataset.theme')

def faults(page, url, name):
    "What a reader of the page `name` stumbles on: at each width what is cut off, in each theme what axe calls serious"
    from axe_playwright_python.sync_playwright import Axe
    for width, theme in zip(WIDTHS, THEMES):
        look(page, url, name, width, theme)
        yield from (f'{name} at {width}: {what}' for what in page.evaluate(CLIPPED))
        answer = Axe().run(page, options={'resultTypes': ['violations']}).response
        yield from (f"{name} at {width}, {theme}: {v['id']}, {v['nodes'][0]['html'][:120]}"
                    for v in answer['violations'] if v['impact'] in ('serious', 'critical'))

SAMPLE = ['index', 'ja', 'guides/options', 'guides/promises', 'tutorials/quickstart', 'front/runs', 'api/index']

@pytest.mark.slow
def test_pages_can_be_read(reader):
    "Front page, options, a tutorial, a module and the API; `make test-all` takes all pages"
    assert [f for name in SAMPLE for f in faults(*reader, name)] == []

@pytest.mark.slow
def test_all_pages_can_be_read(site, reader):
    names = sorted(p.relative_to(site).with_suffix('').as_posix() for p in docs_build.html(site))
    assert len(names) > 80 and [f for name in names for f in faults(*reader, name)] == []

@pytest.mark.slow
def test_what_is_cut_off_is_found(reader):
    page, url = reader
    look(page, url, 'index', 1440, 'light')
    assert page.evaluate(CLIPPED) == []
    for css in ('white-space: pre; overflow: hidden', 'width: 3000px', 'white-space: pre; overflow: visible'):
        page.evaluate("""css => { document.querySelector('.bd-article').insertAdjacentHTML('beforeend',
            `<pre id="long" style="${css}">${'long '.repeat(80)}</pre>`) }""", css)
        assert page.evaluate(CLIPPED), css
        page.evaluate("() => document.querySelector('#long').remove()")

@pytest.mark.slow
def test_the_theme_can_be_chosen(reader):
    page, url = reader
    look(page, url, 'index', 1440, 'light')
    ground = lambda: page.evaluate('() => getComputedStyle(document.body).backgroundColor')
    before = ground()
    page.locator('.theme-switch-button:visible').click()
    page.locator('[data-mode=dark]:visible, button:visible:has-text("Dark")').first.click()
    assert page.evaluate('() => document.documentElement.dataset.theme') == 'dark' and ground() != before
    shot(page, 'docs-dark')

@pytest.mark.slow
def test_ways_about(reader):
    "Users' pages before the inside, next and previous, version, repository, copying code, from the API to a module"
    page, url = reader
    look(page, url, 'index', 1440, 'light')
    assert page.locator('.bd-header .nav-link').all_inner_texts()[:4] == ['Tutorials', 'Guides', 'API', 'Inside']
    assert 'three stages' in page.inner_text('article') and f'maou_nb {docs_build.get_config().version}' in page.inner_text('.bd-header')
    assert page.locator('.bd-header a[href="https://github.com/maou-nb/maou_nb"]').count()
    assert page.locator('button.copybtn').count()
    page.locator('a.right-next').click(); page.wait_for_url('**/tutorials/index.html')
    page.locator('a.right-next').click(); page.wait_for_url('**/tutorials/quickstart.html')
    page.locator('a.left-prev').click(); page.wait_for_url('**/tutorials/index.html')
    page.goto(f'{url}/api/front.html')
    page.locator('article a', has_text='learn_multi_stage').first.click(); page.wait_for_url('**/front/learn.html#learn_multi_stage')

def found(page, url, words):
    "The pages that a search for `words` brings, best first"
    page.goto(f'{url}/search.html?q={words}')
    page.wait_for_function("() => document.querySelector('.search-summary')?.textContent.match(/found|did not/)")
    return [link.get_attribute('href').split('?')[0].split('#')[0] for link in page.locator('ul.search li > a').all()]

@pytest.mark.slow
@pytest.mark.parametrize('words, first', [('batch_size', 'guides/options.html'), ('early_stopping_metric', 'guides/options.html'),
                                          ('resume', 'tutorials/'), ('backbone', 'tutorials/'), ('film_strip', ('tutorials/', 'guides/'))])
def test_a_search_brings_users_pages_first(reader, words, first):
    names = found(*reader, words)
    assert names[0].startswith(first), names[:5]
    inside = [i for i, n in enumerate(names) if n.split('/')[0] in docs_build.INSIDE]
    users = [i for i, n in enumerate(names) if n.split('/')[0] in ('tutorials', 'guides')]
    assert users and (not inside or max(users) < min(inside)), names

def test_a_broken_link_is_found(tmp_path):
    (tmp_path/'a').mkdir()
    (tmp_path/'index.html').write_text('<a href="a/b.html#here">x</a><a href="https://elsewhere/none">x</a>'
                                       '<a href="a/gone.html">x</a><img src="a/none.png"><p id="top">'
                                       '<a href="#top">x</a><a href="#bottom">x</a>')
    (tmp_path/'a'/'b.html').write_text('<h1 id="here">x</h1><a href="../index.html#top">x</a>'
                                       '<a href="../index.html#nowhere">x</a>')
    assert sorted(docs_build.broken_links(tmp_path)) == [
        ('a/b.html', '../index.html#nowhere'), ('index.html', '#bottom'),
        ('index.html', 'a/gone.html'), ('index.html', 'a/none.png')]

def test_a_missing_docstring_is_found():
    module = types.ModuleType('room')
    exec('''
from dataclasses import dataclass
def said(): "What it does"
def silent(): pass
class Thing:
    "A thing"
    def shown(self): "What it does"
    def hidden(self): pass
    def _private(self): pass
class Child(Thing):
    "One more"
    def shown(self): pass
@dataclass
class Data:
    x: int
''', module.__dict__)
    module.__all__ = ['said', 'silent', 'Thing', 'Child', 'Data']
    for name in module.__all__: getattr(module, name).__module__ = 'room'
    assert [*docs_build.undocumented([module])] == ['room.silent', 'room.Thing.hidden', 'room.Data']

def blocks(language):
    "Each block of `language` in the prose of README and guides, with where it stands"
    for path in [*ROOT.glob('README*.md'), *sorted((ROOT/'nbs').rglob('*.ipynb'))]:
        text = path.read_text(encoding='utf-8')
        if path.suffix == '.ipynb':
            text = '\n'.join(''.join(c['source']) for c in json.loads(text)['cells'] if c['cell_type'] == 'markdown')
        for block in re.findall(rf'```{language}\n(.*?)```', text, re.S): yield path.name, block

def test_scripts_are_scripts():
    scripts = [*blocks('bash')]
    for name, script in scripts:
        read = subprocess.run(['bash', '-n'], input=script, capture_output=True, text=True)
        assert read.returncode == 0, (name, read.stderr)
        assert '#SBATCH' not in script or script.startswith('#!/bin/bash\n'), f'{name}: sbatch takes no script without a shebang'
        assert not re.search(r'^!', script, re.M), f'{name}: a line begins with !'
    assert any('#SBATCH' in s for _, s in scripts)

def test_settings_are_yaml():
    found = [*blocks('yaml')]
    for name, text in found: assert isinstance(yaml.safe_load(text), dict), name
    assert found
