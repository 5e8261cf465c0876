"The docs site: built from the notebooks, no link broken, no export without a docstring, and it can be searched"
import functools, http.server, subprocess, sys, threading, types

import pytest

from lab import browser, shot
from maou_nb.train.options import LearnConfig
from samples import ROOT

sys.path.insert(0, str(ROOT/'tools'))
import docs_build

@pytest.fixture(scope='module')
def site():
    "The site, built as `make docs` does"
    done = subprocess.run([sys.executable, ROOT/'tools'/'docs_build.py'], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert ' 0 broken links, 0 undocumented exports' in done.stdout and int(done.stdout.split('docs: ')[1].split()[0]) >= 41
    print(done.stdout)
    return ROOT/'_docs'

def test_a_page_for_every_notebook(site):
    pages = {p.stem for p in site.rglob('*.html')}
    assert {p.stem.lstrip('0123456789_') for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts} <= pages

def test_every_option_is_in_the_table(site):
    text = (site/'guides'/'options.html').read_text()
    assert all(f'<code>{name}</code>' in text for name in LearnConfig.model_fields)

def test_every_export_is_in_the_api(site):
    "The page is a kept output, so an export that came or went since must be noticed"
    text = (site/'guides'/'api.html').read_text()
    missing = [f'{m.__name__}.{n}' for m in docs_build.modules()
               for n in getattr(m, '__all__', ()) if callable(getattr(m, n))
               and getattr(getattr(m, n), '__module__', None) == m.__name__ and f'>{n}</a>' not in text]
    assert not missing, f'{missing}: run tools/nbrun.py nbs/guides/81_api.ipynb'

def test_shapes_and_pictures_are_there(site):
    text = (site/'show'/'boards.html').read_text()
    assert '(81,): a value for each square' in text and text.count('role="img"') >= 4 and 'aria-label="lnsgkgsnl' in text
    assert 'alt="stage 3 after' in (site/'show'/'plots.html').read_text()

def test_in_a_browser(site):
    "Front page, a module's page with boards, the API, and a search"
    handler = functools.partial(Quiet, directory=site)
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server, browser(height=1000) as page:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f'http://127.0.0.1:{server.server_address[1]}'
        page.goto(f'{url}/index.html'); assert 'three stages' in page.inner_text('main'); shot(page, 'docs-1-front')
        page.goto(f'{url}/show/boards.html'); page.locator('svg[role=img]').first.scroll_into_view_if_needed(); shot(page, 'docs-2-boards')
        page.goto(f'{url}/guides/api.html'); page.locator('main a', has_text='learn_multi_stage').first.wait_for(); shot(page, 'docs-3-api')
        page.locator('main a', has_text='learn_multi_stage').first.click(); page.wait_for_url('**/front/learn.html#learn_multi_stage')
        box = page.get_by_placeholder('Search').first
        box.click(); page.keyboard.type('film_strip'); page.wait_for_timeout(1500); shot(page, 'docs-4-search')
        assert page.get_by_text('Judge').count() > 1 or page.get_by_text('film_strip').count() > 1
        server.shutdown()

class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass

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
