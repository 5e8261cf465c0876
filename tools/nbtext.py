"""A notebook as text, for an editor, and back: `python tools/nbtext.py nbs/data/05_files.ipynb`

The text of `nbs/data/05_files.ipynb` is `.nbtext/data/05_files.py`; either may be named. The newer side is written over the
older one. Cell ids and the outputs of cells that did not change survive. The pairing stands here, and not in a file of settings
that jupytext's extension of JupyterLab would find: saving a notebook there would fail, as it may write no hidden folder.
"""
import os, subprocess, sys
from itertools import zip_longest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS, TEXTS = ROOT/'nbs', ROOT/'.nbtext'
# prose stands between quotes: behind a # of its own a line such as #!/bin/bash would lose its first character
KEPT = 'notebook_metadata_filter=kernelspec,-all', 'cell_metadata_filter=-all', 'cell_markers="""'
PLAIN = [word for one in KEPT for word in ('--opt', one)]

def pair(path):
    "(notebook, text) of either; a `ValueError` if `path` is neither"
    for folder in (NOTEBOOKS, TEXTS):
        if path.is_relative_to(folder) and path.suffix in ('.ipynb', '.py'):
            name = path.relative_to(folder).with_suffix('')
            return (NOTEBOOKS/name).with_suffix('.ipynb'), (TEXTS/name).with_suffix('.py')
    raise ValueError(f'{path}: a notebook below nbs/, or its text below .nbtext/, was expected')

def jupytext(*words): subprocess.run([sys.executable, '-m', 'jupytext', '--quiet', *PLAIN, *map(str, words)], check=True, cwd=ROOT)

def check_whole(nb, text):
    "Remove a text of which another notebook would be made, and say so in a `ValueError`"
    from jupytext import read
    for n, cells in enumerate(zip_longest(read(nb).cells, read(text).cells), 1):
        if cells[0] and cells[1] and cells[0].source == cells[1].source: continue
        text.unlink()
        raise ValueError(f'{nb.relative_to(ROOT)}: cell {n} would come back changed from a text, as by three double quotes '
                         'in the midst of a line of prose: edit it in Jupyter, or write it otherwise')

def sync(path):
    "Write the older side of a pair anew; which that was, None if both are of the same time"
    nb, text = pair(path)
    when = lambda p: p.stat().st_mtime_ns if p.exists() else -1
    if when(nb) == when(text): return None if nb.exists() else exit(f'{nb.relative_to(ROOT)} does not exist.')
    if when(nb) > when(text):
        text.parent.mkdir(parents=True, exist_ok=True)
        jupytext('--to', 'py:percent', '-o', text, nb)
        check_whole(nb, text)
        newer, older = nb, text
    else:
        jupytext(*['--update']*nb.exists(), '--to', 'ipynb', '-o', nb, text)
        newer, older = text, nb
    os.utime(older, ns=(newer.stat().st_atime_ns, newer.stat().st_mtime_ns))      # until one of them is edited
    return older

def main(names):
    if not names or {'-h', '--help'} & {*names}:
        print(__doc__)
        return not names
    for name in names:
        try: written = sync(Path(name).resolve())
        except ValueError as e:
            print(e, file=sys.stderr)
            return 1
        if written: print(f'wrote {written.relative_to(ROOT)}')
    return 0

if __name__ == '__main__': sys.exit(main(sys.argv[1:]))
