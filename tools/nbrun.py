"""Run notebooks in a real kernel and keep their outputs, the same ones on every run: `python tools/nbrun.py [NB ...]`

Without names: all notebooks but the tutorials. Cells flagged `slow`, `gpu` or `eval: false` are left out and keep the outputs
they have. Nothing is written where a cell fails.
"""
import os, re, sys, tempfile
from pathlib import Path

import nbformat
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

ROOT = Path(__file__).resolve().parents[1]
WIDGET_VIEW = 'application/vnd.jupyter.widget-view+json'

class ThisPython(AsyncKernelManager):
    "A kernel of the running interpreter, whatever kernels are registered on the machine as `python3`"
    @property
    def kernel_spec(self):
        return KernelSpec(**get_kernel_dict())

class Runner(NotebookClient):
    "Runs notebook `nb` in its `folder`, leaving cells with one of `flags`, and their saved outputs, as they are"
    def __init__(self, nb, folder, flags=(), timeout=None):
        super().__init__(nb, kernel_manager_class=ThisPython, kernel_name='python3', timeout=timeout, record_timing=False,
            store_widget_state=False,  # it would fill the notebook with model ids that change on every run
            resources={'metadata': {'path': str(folder)}})
        names = '|'.join([r'eval:\s*false', *map(re.escape, flags)])
        self.left_out = re.compile(rf'^\s*#\s*\|\s*(?:{names})\s*$|nbdev_export\(', re.M)
        self.at = None  # index of the cell that is running

    def runs(self, cell):
        "Is `cell` code that is to be run?"
        return cell.cell_type == 'code' and cell.source.strip() != '' and not self.left_out.search(cell.source)

    async def async_execute_cell(self, cell, cell_index, *args, **kwargs):
        if not self.runs(cell): return cell
        self.at = cell_index
        return await super().async_execute_cell(cell, cell_index, *args, **kwargs)

    def go(self):
        "Run the notebook; None if all went well, else a sentence on what did not, and in which cell"
        with tempfile.TemporaryFile('w+') as log:  # what the kernel says past its notebook: matters only if it dies
            try: self.execute(stderr=log)
            except KeyboardInterrupt: return 'stopped.'
            except Exception as e:
                # nbclient turns Ctrl-C into a shutdown of the kernel, and the run ends in whatever error that causes
                if hasattr(self, '_async_cleanup_kernel_future'): return 'stopped.'
                log.seek(0)
                return self.describe(e) + (f'\n{log.read()[-2000:]}' if isinstance(e, DeadKernelError) else '')

    def describe(self, err):
        "One sentence on how `err` ended the run"
        what = f'{err.ename}: {err.evalue}' if isinstance(err, CellExecutionError) else f'{type(err).__name__}: {err}'
        if self.at is None: return f'the kernel did not start: {what}'
        return f'cell {self.at + 1} (`{first_line(self.nb.cells[self.at])}`) failed: {what}'

def first_line(cell):
    "The first line of `cell` that says something: no directive, no comment"
    lines = [o.strip() for o in cell.source.splitlines() if o.strip() and not o.lstrip().startswith('#|')]
    return next((o for o in lines if not o.startswith('#')), lines[0] if lines else '')

def tidy_output(out):
    "`out` without what is noise to a reader, or None if nothing else is in it"
    if out.output_type == 'stream': return None if out.name == 'stderr' else out
    if WIDGET_VIEW not in out.get('data', {}): return out
    # a widget has nobody to talk to once its kernel is gone; what it shows without one may stay
    del out.data[WIDGET_VIEW]
    return out if set(out.data) - {'text/plain'} else None

def overwrite(text):
    "`text` with each line as a terminal leaves it: what follows the last carriage return"
    return re.sub(r'[^\n]*\r(?=[^\n])', '', text.replace('\r\n', '\n'))

# a folder that a notebook made for its own run, and the one that it lies in
PASSING = re.compile(re.escape(tempfile.gettempdir()) + r'/tmp\w{8}/|' + re.escape(str(ROOT)) + r'/(?:nbs/\w+/)?')

def without_passing(out):
    "`out` with paths as they are within a folder that is gone after the run, and is called otherwise in the next"
    if out.output_type == 'stream': out.text = PASSING.sub('', out.text)
    for kind, text in out.get('data', {}).items():
        if kind.startswith('text/'): out.data[kind] = PASSING.sub('', text)

def tidy(nb):
    "Take warnings, progress bars, widgets and passing folders out of the outputs of `nb`, and join text that came in pieces"
    nb.metadata.pop('widgets', None)
    for cell in nb.cells:
        if cell.cell_type != 'code': continue
        outs = []
        for out in filter(None, map(tidy_output, cell.outputs)):
            if outs and out.output_type == outs[-1].output_type == 'stream': outs[-1].text += out.text
            else: outs.append(out)
        for out in outs:
            if out.output_type == 'stream': out.text = overwrite(out.text)
            without_passing(out)
        cell.outputs = outs
    return nb

def run(path, flags):
    "Run the notebook at `path` and write it back with its outputs; the sentence on what failed, if something did"
    from nbdev.clean import nbdev_clean
    nb = nbformat.read(path, as_version=4)
    if problem := Runner(nb, path.parent, flags, timeout=600).go(): return f'{os.path.relpath(path)}: {problem}'
    nbformat.write(tidy(nb), path)
    nbdev_clean.__wrapped__(str(path))

def main(names):
    "Run the notebooks `names`, one after the other; the number of those that failed"
    from nbdev.config import get_config
    paths = [Path(o).resolve() for o in names]
    os.chdir(ROOT)  # where nbdev finds its settings
    cfg = get_config()
    if not paths:
        from nbdev.doclinks import nbglob
        paths = [p for p in sorted(nbglob(cfg.nbs_path, as_path=True)) if 'tutorials' not in p.parts]
    failed = 0
    for path in paths:
        print(os.path.relpath(path), flush=True)
        if problem := run(path, cfg.tst_flags.split()):
            failed += 1
            print(problem, file=sys.stderr)
            if problem.endswith('stopped.'): break
    return failed

if __name__ == '__main__': sys.exit(bool(main(sys.argv[1:])))
