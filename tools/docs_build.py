"""Build the docs site into _docs/: `python tools/docs_build.py`

nbdev prepares the notebooks, Sphinx with myst-nb makes the site of them (docs/conf.py). Then it is checked: no link
within the site leads nowhere, and no exported name is without a docstring.
"""
import importlib, inspect, os, shutil, subprocess, sys, time
from concurrent.futures import ProcessPoolExecutor
from html.parser import HTMLParser
from multiprocessing import get_context
from urllib.parse import unquote, urlsplit

from docs_pages import PAGES, ROOT, notebooks, relink, toctree, write_page
from nbdev.config import get_config

# what a reader wants first, then the house as data flows through it
INSIDE = dict(data='Data', show='Boards and plots', model='Model', stages='Stages', train='Training', judge='Judging', play='Playing',
              front='Front')
PARTS = dict(tutorials=('Tutorials', 'To run and change: each is a notebook of `nbs/tutorials/`, and `make lab` opens copies of them.'),
             guides=('Guides', 'To look up.'),
             inside=('Inside', 'How it is made: each page is the notebook that a module is exported from, as data flows.'))

# --- Lists of pages

def listed(pages): return '\n'.join(f'- [{title}](../{name}.html): {says}' for name, title, says in pages) + '\n'

def write_indexes(pages):
    "A page for each part that lists its pages, and says a line on each"
    of = lambda folder: [p for p in pages if p[0].startswith(f'{folder}/')]
    for part, (title, says) in PARTS.items():
        rooms = INSIDE if part == 'inside' else {part: ''}
        body = [f'## {caption}\n\n{listed(of(room))}' if caption else listed(of(room)) for room, caption in rooms.items()]
        trees = [toctree([n for n, *_ in of(room)], caption) for room, caption in rooms.items()]
        (PAGES/part).mkdir(exist_ok=True)
        (PAGES/part/'index.md').write_text('\n'.join([f'# {title}\n\n{says}\n', *body, *trees]), encoding='utf-8')

# --- API

def modules():
    "The modules that notebooks export, as data flows"
    rooms = [f'maou_nb.{p.parent.name}.{p.stem.lstrip("0123456789_")}' for p in notebooks()[1:]]
    there = [r for r in rooms if (ROOT/r.replace('.', '/')).with_suffix('.py').exists()]
    return [importlib.import_module(r) for r in there]

def entry(module, name):
    "A line of the API on `name`, which leads to its page; nothing for what another module or none defines"
    thing, symbols = getattr(module, name), importlib.import_module('maou_nb._modidx').d['syms']
    page = symbols.get(module.__name__, {}).get(f'{module.__name__}.{name}', (None,))[0]
    if not callable(thing) or getattr(thing, '__module__', None) != module.__name__ or page is None: return ''
    said = ((inspect.getdoc(thing) or '').strip().splitlines() or [''])[0].replace('|', r'\|')
    return f'| [`{name}`](../{page}) | {said} |\n'

def table(entries):
    rows = ''.join(entries)
    return f'{{.stack}}\n| name | what it does |\n|---|---|\n{rows}' if rows else ''

def write_api():
    "Every name that the package exports, a page a folder, with a line on each; the names that most people need before"
    import maou_nb
    (PAGES/'api').mkdir()
    for room, title in INSIDE.items():
        parts = [(m, table(entry(m, n) for n in getattr(m, '__all__', ()))) for m in modules() if m.__name__.split('.')[1] == room]
        body = [f"## {m.__name__}\n\n{inspect.getdoc(m) or ''}\n\n{rows}" for m, rows in parts if rows]
        (PAGES/'api'/f'{room}.md').write_text('\n'.join([f'# API: {title.lower()}\n', *body]), encoding='utf-8')
    front = table(entry(importlib.import_module(getattr(maou_nb, n).__module__), n) for n in maou_nb.__all__)
    says = '# API\n\nWhat most people need is importable from `maou_nb` itself. A name leads to its page, with shapes, units and examples.'
    rest = '\n'.join(f'- [{title}]({room}.html)' for room, title in INSIDE.items())
    tree = toctree([f'api/{room}' for room in INSIDE])
    (PAGES/'api'/'index.md').write_text(f'{says}\n\n{front}\n## All names, by room\n\n{rest}\n\n{tree}', encoding='utf-8')

def build():
    "The site, in the folder that is returned"
    shutil.rmtree(PAGES, ignore_errors=True)
    PAGES.mkdir(parents=True)
    with ProcessPoolExecutor(mp_context=get_context('spawn')) as pool: pages = [*pool.map(write_page, notebooks())]
    write_indexes(pages)
    write_api()
    shutil.copytree(ROOT/'nbs'/'images', PAGES/'images')
    (PAGES/'ja.md').write_text(relink((ROOT/'README.ja.md').read_text(encoding='utf-8'), ''), encoding='utf-8')
    made, site = ROOT/'build'/'site'/'html', get_config().doc_path       # myst-nb leaves files beside what it makes
    sphinx = [sys.executable, '-m', 'sphinx', '-q', '-W', '--keep-going', '-E', '-j', 'auto', '-c', ROOT/'docs']
    shutil.rmtree(made, ignore_errors=True)
    subprocess.run([*sphinx, '-d', ROOT/'build'/'doctrees', PAGES, made], check=True)
    shutil.rmtree(site, ignore_errors=True)
    shutil.move(made, site)
    return site

# --- Checking

class Page(HTMLParser):
    "Links and anchors of a page"
    def __init__(self, text):
        super().__init__()
        self.links, self.anchors = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors |= {attrs[k] for k in ('id', 'name') if attrs.get(k)}
        self.links += [attrs[k] for k in ('href', 'src') if attrs.get(k)]

def html(site):
    "The pages of `site`, without what the theme keeps for itself"
    return sorted(p for p in site.rglob('*.html') if '_static' not in p.parts)

def broken_links(site):
    "(page, target) of every link that leads nowhere within `site`"
    pages = {p: Page(p.read_text(encoding='utf-8')) for p in html(site)}
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or link.startswith('data:'): continue
            from_root = parts.path.startswith('/')
            there = site/unquote(parts.path).lstrip('/') if from_root else path.parent/unquote(parts.path)
            target = there.resolve() if parts.path else path
            if target.is_dir(): target = target/'index.html'
            anchor = unquote(parts.fragment)
            if not target.exists() or anchor and target in pages and anchor not in pages[target].anchors:
                yield path.relative_to(site).as_posix(), link

def undocumented(modules):
    "Exported functions and classes, and public methods of these, without a docstring"
    for module in modules:
        for name in getattr(module, '__all__', ()):
            thing = getattr(module, name)
            if getattr(thing, '__module__', None) != module.__name__ or not callable(thing): continue
            if not own_doc(thing): yield f'{module.__name__}.{name}'
            if inspect.isclass(thing):
                for n, method in vars(thing).items():
                    kinds = property, classmethod, staticmethod
                    if n.startswith('_') or not (inspect.isfunction(method) or isinstance(method, kinds)): continue
                    if not method.__doc__ and not overrides(thing, n): yield f'{module.__name__}.{name}.{n}'

def own_doc(thing):
    "The docstring of `thing`, but not one that a dataclass or a base wrote"
    doc = thing.__dict__.get('__doc__') if inspect.isclass(thing) else thing.__doc__
    return doc and not doc.startswith(f'{thing.__name__}(')

def overrides(cls, name):
    "Whether a base already says what the method `name` does"
    return any(getattr(b.__dict__.get(name), '__doc__', None) for b in cls.__mro__[1:])

def main():
    "Build, check, and say in one line how it is; the exit code"
    began = time.time()
    site = build()
    pages, broken, silent = len(html(site)), [*broken_links(site)], [*undocumented(modules())]
    for page, link in broken: print(f'{page}: the link {link} leads nowhere', file=sys.stderr)
    for name in silent: print(f'{name} is exported and has no docstring', file=sys.stderr)
    print(f'docs: {pages} pages in {os.path.relpath(site)}/, {len(broken)} broken links, {len(silent)} '
          f'undocumented exports, {time.time() - began:.0f} s')
    return 1 if broken or silent else 0

if __name__ == '__main__': sys.exit(main())        # the guard is needed: pages are made in processes
