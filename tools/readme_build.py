"""Write README.md, and the pictures it shows, from index.ipynb: `python tools/readme_build.py [--check]`

Nothing but nbdev's own processing and nbconvert. With `--check` nothing is written: exit 1 where README.md is out of date.
"""
import json, os, re, sys
from pathlib import Path

import nbformat, yaml
from execnb.nbio import nb2dict, read_nb
from nbconvert import MarkdownExporter
from nbdev.config import get_config
from nbdev.process import NBProcessor
from nbdev.processors import FilterDefaults

ROOT = Path(__file__).resolve().parents[1]
PICTURES = 'index_files'

def processed(path, without=()):
    "The notebook at `path` as nbdev prepares it for readers, `without` steps of so many names, and its title and description"
    procs = [p for p in FilterDefaults().procs() if p.__name__ not in without]
    proc = NBProcessor(nb=read_nb(path), procs=procs)
    proc.process()
    nb = nbformat.reads(json.dumps(nb2dict(proc.nb)), as_version=4)
    nb.metadata['language_info'] = {'name': 'python'}  # so that code fences say so
    front = [c for c in nb.cells if c.cell_type == 'raw']
    nb.cells = [c for c in nb.cells if c.cell_type != 'raw']
    return nb, yaml.safe_load(front[0].source.strip().strip('-')) if front else {}

def close_up(text):
    "`text` with single blank lines, but for what stands in code fences"
    parts = re.split(r'(^```.*?^```$)', text, flags=re.M | re.S)
    return ''.join(o if o.startswith('```') else re.sub(r'\n(?:[ \t]*\n){2,}', '\n\n', o) for o in parts)

def readme(path):
    "All files of the README made from the notebook at `path`: name to bytes"
    nb, front = processed(path, ['add_links'])       # a README is read where the docs may not be
    body, res = MarkdownExporter(exclude_output_prompt=True).from_notebook_node(nb, {'output_files_dir': PICTURES})
    head = [f"# {front['title']}"] if 'title' in front else []
    if 'description' in front: head.append(f"> {front['description']}")
    text = '\n\n'.join([*head, close_up(body).strip()]).rstrip() + '\n'
    return {'README.md': text.encode(), **res['outputs']}

def main(check):
    "Write the README, or only `check` it; the names of the files that differed"
    os.chdir(ROOT)  # where nbdev finds its settings
    files = readme(ROOT/get_config().readme_nb)
    there = {o.relative_to(ROOT).as_posix() for o in (ROOT/PICTURES).glob('*')}
    stale = sorted(there - set(files))
    differ = [k for k, v in files.items() if not (ROOT/k).exists() or (ROOT/k).read_bytes() != v]
    if check: return differ + stale
    for k in stale: (ROOT/k).unlink()
    for k in differ:
        (ROOT/k).parent.mkdir(exist_ok=True)
        (ROOT/k).write_bytes(files[k])
    return []

if __name__ == '__main__':
    if differ := main('--check' in sys.argv[1:]): sys.exit(f"Out of date, `make export` mends it: {', '.join(differ)}")
