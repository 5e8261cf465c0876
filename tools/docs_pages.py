"""The pages of the docs, as Sphinx reads them: notebooks as nbdev prepares them, their Markdown as MyST's"""
import os, re, sys
from collections import ChainMap
from functools import cache
from html import escape
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import nbformat
from nbdev.config import get_config
from nbdev.doclinks import NbdevLookup
from readme_build import processed
from show_table import TableRenderer

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT/'build'/'pages'                                     # what Sphinx reads

TOP = ['tutorials/index', 'guides/index', 'api/index', 'inside/index', '日本語 </ja>']

def toctree(names, caption=''):
    "The pages `names` in the sidebar, and in the order of previous and next"
    options = [':hidden:', *([f':caption: {caption}'] if caption else [])]
    return '\n'.join(['```{toctree}', *options, '', *(n if '<' in n else f'/{n}' for n in names), '```', ''])

def page_name(path):
    "Where the notebook at `path` is published, without a suffix: `data/board` for nbs/data/00_board.ipynb"
    return 'index' if path.stem == 'index' else f"{path.parent.name}/{path.stem.lstrip('0123456789_')}"

@cache
def notebooks():
    "The notebooks that become pages, the index first"
    rooms = sorted(p for p in (ROOT/'nbs').rglob('[0-9]*.ipynb') if '.ipynb_checkpoints' not in p.parts)
    return [ROOT/'index.ipynb', *rooms]

def relink(text, up):
    "Links of `text` to notebooks, pictures and the site itself, as links from a page that stands `up` of the root"
    cfg = get_config()
    source = f'{cfg.git_url}/blob/{cfg.branch}'
    for there, page in (('README.ja.md', 'ja.html'), ('README.md', 'index.html'), ('nbs/tutorials', 'tutorials/index.html'),
                        ('CONTRIBUTING.md', f'{source}/CONTRIBUTING.md')): text = text.replace(f']({there})', f']({page})')
    text = re.sub(rf'{cfg.doc_host}{cfg.doc_baseurl}(?:/|(?=\)))', up or './', text)
    names = {p.name: page_name(p) for p in notebooks()}
    there = lambda m: f"]({up}{names[m[1]]}.html{m[2] or ''})" if m[1] in names else m[0]
    text = re.sub(r'\]\((?:[\w./-]*/)?([\w-]+\.ipynb)(#[^)\s]*)?\)', there, text)
    return re.sub(r'\]\((?:nbs/|\.\./)images/', f']({up}images/', text)

def outside_fences(change, text):
    "`text` after `change` of what stands in no code fence"
    return ''.join(o if o.startswith('```') else change(o) for o in re.split(r'(^```.*?^```$)', text, flags=re.M | re.S))

def as_myst(text):
    "nbdev's Markdown as MyST's: no rule before a name, and its link to the source after it"
    text = re.sub(r'^---$|^<!-- WARNING: .*-->$', '', text, flags=re.M)
    named = lambda m: '\n\n'.join([m[2].replace('__', r'\_\_'), f'{{.source}}\n[source]({m[1]})'])
    return re.sub(r'^\[source\]\((\S+?)\)\{.*?\}\s+(#+ .*)$', named, text, flags=re.M)

def reference(names, module):
    "What a page says of the exported `names`, which `module` or one beside it defines"
    beside = [m for n, m in sys.modules.items() if n.startswith(module.__package__ + '.')]
    rooms = ChainMap(*map(vars, [module, *beside]))
    text = '\n\n'.join(TableRenderer(eval(n, {}, rooms))._repr_markdown_() for n in names)
    parts = re.split(r'(```.*?```|`[^`\n]*`)', text, flags=re.S)            # a tag that a docstring names is no tag
    return NbdevLookup().linkify(''.join(o if o.startswith('`') else re.sub(r'<(?=[a-z])', '&lt;', o) for o in parts))

def stacked(text):
    "Markdown `text` whose tables stand row below row on a narrow screen"
    return re.sub(r'(?<!\|\n)^(?=\|.*\|\n\|[-|: ]+\|$)', '{.stack}\n', text, flags=re.M)

def says_something(out):
    "Whether a reader of the output `out` would see anything"
    html = out.get('data', {}).get('text/html')
    return html is None or bool(re.search(r'<(?:svg|img)\b', html) or re.sub(r'<style.*?</style>|<[^>]*>', '', html, flags=re.S).strip())

def picture(out, title):
    "The output `out` with a picture as HTML that says what it shows; what scrolls is reached by keyboard"
    data = out.get('data', {})
    if 'text/html' in data:
        data['text/html'] = re.sub(r'<div(?= style="[^"]*overflow(?:-x)?: ?auto)', '<div tabindex="0"', data['text/html'])
        data['text/html'] = re.sub(r'<img\b(?![^>]*\balt=)', f'<img alt="{escape(title)}"', data['text/html'])
        return out
    if svg := data.get('image/svg+xml'): data = {'text/html': svg}
    elif png := data.get('image/png'):
        said = ''.join(data.get('text/plain', ''))
        alt = f'{title}, a plot' if not said or said.startswith('<') else said
        data = {'text/html': f'<img alt="{escape(alt)}" src="data:image/png;base64,{png.strip()}">'}
    return nbformat.v4.new_output(out.output_type, data) if 'text/html' in data else out

def page_cells(nb, module, up):
    "The cells of a page: what is shown in Markdown is Markdown"
    title = nb.metadata.title
    for cell in nb.cells:
        if names := re.findall(r'^show_doc\((.*)\)$', cell.source, re.M):
            cell = nbformat.v4.new_markdown_cell(stacked(reference(names, module)))
        if cell.cell_type == 'markdown':
            found = re.findall(r'^#+ (.+)$', cell.source, re.M)
            title = found[-1] if found else title
            yield nbformat.v4.new_markdown_cell(relink(outside_fences(as_myst, cell.source), up))
            continue
        texts = [''.join(o.data['text/markdown']) for o in cell.outputs if 'text/markdown' in o.get('data', {})]
        outputs = [picture(o, title) for o in cell.outputs if 'text/markdown' not in o.get('data', {}) and says_something(o)]
        source = re.sub(r'^#\|.*\n?', '', cell.source, flags=re.M).strip()
        hidden = '#| echo: false' in cell.source
        if outputs or not hidden:
            tags = ['remove-input'] if hidden else []
            yield nbformat.v4.new_code_cell(source, outputs=outputs, metadata={'tags': tags})
        for text in texts: yield nbformat.v4.new_markdown_cell(stacked(relink(outside_fences(as_myst, text), up)))

def write_page(path):
    "The page of the notebook at `path`; its name, title and description"
    os.chdir(ROOT)                                               # where nbdev finds its settings
    nb, front = processed(path, ['exec_show_docs'])              # modules say the same as cells that define them, and at once
    name = page_name(path)
    room = 'maou_nb.' + name.replace('/', '.')
    module = import_module(room) if find_spec(room.rpartition('.')[0]) and find_spec(room) else None
    nb.metadata.title, says = front['title'], front.get('description', '')
    head = nbformat.v4.new_markdown_cell(f"# {front['title']}\n\n{{.lead}}\n{says}")
    nb.cells = [head, *page_cells(nb, module, '' if name == 'index' else '../')]
    if name == 'index': nb.cells.append(nbformat.v4.new_markdown_cell(toctree(TOP)))
    (PAGES/name).parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, PAGES/f'{name}.ipynb')
    return name, front['title'], says
