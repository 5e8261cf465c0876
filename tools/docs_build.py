"""Build the docs site into _docs/: `python tools/docs_build.py`

With Quarto where it is installed, else with smalldocs, from the same notebooks.
Then check it: no link within the site leads nowhere, and no exported name is without a docstring.
"""
import importlib, inspect, json, os, re, shutil, subprocess, sys, time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml
from nbdev.config import get_config
from nbdev.doclinks import nbdev_export
from nbdev.quarto import nbdev_docs, nbdev_sidebar, refresh_quarto_yml
from nbdev.serve import proc_nbs

ROOT = Path(__file__).resolve().parents[1]

# --- Building

def front_matter(nb):
    "The YAML that nbdev writes into a notebook's first, raw cell"
    cell = nb['cells'][0]
    return yaml.safe_load(''.join(cell['source']).strip().strip('-')) if cell['cell_type'] == 'raw' else {}

def published(cache, base):
    "Give each page of `cache` its published name, `00_board` becomes `board`, and make links between our pages relative"
    names = {}
    for f in sorted(cache.rglob('*.ipynb')):
        nb = json.loads(f.read_text(encoding='utf-8'))
        out = front_matter(nb).get('output-file')
        new, up = f.with_name(Path(out).stem + '.ipynb') if out else f, os.path.relpath(cache, f.parent)
        names[f.relative_to(cache).as_posix()] = new.relative_to(cache).as_posix()
        text = json.dumps(nb, ensure_ascii=False).replace(base, '' if up == '.' else f'{up}/')
        f.unlink()
        new.write_text(re.sub(r'output-file: [^\\]*\\n', '', text), encoding='utf-8')
    for f in cache.rglob('*.ipynb'):                            # links that notebooks write themselves
        text = f.read_text(encoding='utf-8')
        if f.name == 'index.ipynb': text = text.replace('](nbs/', '](')     # the README's stand one folder higher
        for old, new in names.items():
            text = re.sub(rf'\]\((?:[\w./-]*/)?{re.escape(Path(old).name)}\)',
                          lambda m: f']({os.path.relpath(cache/new, f.parent).removesuffix(".ipynb")}.html)', text)
        f.write_text(text, encoding='utf-8')
    order_sidebar(cache/'sidebar.yml', names)

# what a reader wants first, then the house as data flows through it
ORDER = ('tutorials', 'guides', 'data', 'show', 'model', 'stages', 'train', 'judge', 'front')

def order_sidebar(path, names):
    "Published names in the sidebar, its sections in `ORDER`"
    site = yaml.safe_load(path.read_text(encoding='utf-8'))
    contents = site['website']['sidebar']['contents']
    for section in contents:
        if isinstance(section, dict): section['contents'] = [names[n] for n in section['contents']]
    contents.sort(key=lambda s: -1 if isinstance(s, str) else ORDER.index(s['section']))
    path.write_text(yaml.safe_dump(site, sort_keys=False), encoding='utf-8')

def build():
    "The site, in the folder that is returned"
    cfg = get_config()
    nbdev_export.__wrapped__()
    if shutil.which('quarto'): nbdev_docs.__wrapped__(); return cfg.doc_path
    refresh_quarto_yml()
    nbdev_sidebar.__wrapped__(path=cfg.nbs_path, file_re=r'\.(?:ipynb|qmd|html)$')
    # where the renderer of settings.ini is
    os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, [str(ROOT/'tools'), os.environ.get('PYTHONPATH')]))
    cache = proc_nbs(cfg.nbs_path, force=True)
    published(cache, f'{cfg.doc_host}{cfg.doc_baseurl}/')
    subprocess.run([Path(sys.executable).with_name('smalldocs'), 'render'], cwd=cache, check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(cfg.doc_path, ignore_errors=True)
    shutil.move(cache/cfg.doc_path.name, cfg.config_path)
    return cfg.doc_path

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

def broken_links(site):
    "(page, target) of every link that leads nowhere within `site`"
    pages = {p: Page(p.read_text(encoding='utf-8')) for p in sorted(site.rglob('*.html'))}
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

def modules():
    "The modules that notebooks export"
    return [importlib.import_module('.'.join(p.relative_to(ROOT).with_suffix('').parts))
            for p in sorted((ROOT/'maou_nb').rglob('*.py')) if p.name[0] != '_']

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
    pages, broken, silent = len([*site.rglob('*.html')]), [*broken_links(site)], [*undocumented(modules())]
    for page, link in broken: print(f'{page}: the link {link} leads nowhere', file=sys.stderr)
    for name in silent: print(f'{name} is exported and has no docstring', file=sys.stderr)
    print(f'docs: {pages} pages in {os.path.relpath(site)}/, {len(broken)} broken links, {len(silent)} '
          f'undocumented exports, {time.time() - began:.0f} s')
    return 1 if broken or silent else 0

if __name__ == '__main__': sys.exit(main())        # the guard is needed: `proc_nbs` spawns processes
