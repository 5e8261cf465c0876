"""Run the quickstart notebook top to bottom, show how it goes, and say where its results are: `python tools/demo.py [NB]`"""
import asyncio, os, sys, time
from pathlib import Path

import nbformat
from nbrun import ROOT, Runner, first_line, overwrite, tidy

QUICKSTART = ROOT/'nbs/tutorials/70_quickstart.ipynb'

class Demo(Runner):
    "A run that shows each cell as it starts, and the lines it prints"
    def __init__(self, nb, folder, flags):
        super().__init__(nb, folder, flags)
        self.total, self.done, self.line = sum(map(self.runs, nb.cells)), 0, ''
        for cell in filter(self.runs, nb.cells): cell.outputs = []  # after a failure, none of an earlier run may be left

    async def async_execute_cell(self, cell, cell_index, *args, **kwargs):
        if cell.cell_type == 'markdown' and cell.source.startswith('#'):
            print('\n' + cell.source.splitlines()[0].lstrip('# '), flush=True)
        if self.runs(cell):
            self.done += 1
            print(f'[{self.done}/{self.total}] {first_line(cell)}', flush=True)
        waiting = asyncio.create_task(self.say_that_it_runs())
        try: return await super().async_execute_cell(cell, cell_index, *args, **kwargs)
        finally:
            waiting.cancel()
            if self.line: self.show('\n')

    async def say_that_it_runs(self, every=20):
        "While a cell takes long: for how long it has been running"
        began = time.time()
        while True:
            await asyncio.sleep(every)
            print(f'    … {spoken(time.time() - began)}', flush=True)

    def output(self, outs, msg, display_id, cell_index):
        content = msg['content']
        if msg['msg_type'] == 'stream' and content['name'] == 'stdout': self.show(content['text'])
        return super().output(outs, msg, display_id, cell_index)

    def show(self, text):
        "Print the lines that `text` completes; what comes after the last line end waits"
        *lines, self.line = overwrite(self.line + text).split('\n')
        for line in lines: print('    ' + line.rstrip('\r'), flush=True)

def spoken(seconds):
    "`seconds` as people say it"
    m, s = divmod(round(seconds), 60)
    return f'{m} min {s} s' if m else f'{s} s'

def shown(path):
    "`path` as a user can paste it: from the working directory where that is shorter"
    return min(os.path.relpath(path), str(path), key=len) + ('/' if path.is_dir() else '')

def places(folder):
    "What the run left in `folder`: pairs of name and place"
    # not of runs that were here before
    there = [o for o in folder.rglob('*') if not any(part.startswith('earlier-') for part in o.relative_to(folder).parts)]
    yield 'run folder', shown(folder)
    for p in sorted(o for o in there if o.name == 'result.json'): yield 'result', shown(p)
    for p in sorted({o.parent for o in there if o.is_dir() and o.name.startswith('checkpoint') and o.name != 'checkpoints'}
                    | {o for o in there if o.is_dir() and o.name == 'checkpoints'}): yield 'checkpoints', shown(p)
    logs = sorted({o.parent for o in there if o.name.startswith('events.out.tfevents.')})
    if logs:
        logdir = Path(os.path.commonpath(logs))
        yield 'TensorBoard', f'{shown(Path(sys.prefix)/"bin/tensorboard")} --logdir {shown(logdir)}'

def demo(path):
    "Run the notebook at `path`; the exit code"
    start = time.time()
    if not path.exists():
        print(f'demo: there is no notebook {shown(path)}.', file=sys.stderr)
        return 1
    name = path.stem.lstrip('0123456789_')
    folder = path.parents[2]/'runs'/name  # where the notebook itself puts its run: ../../runs/
    nb = nbformat.read(path, as_version=4)
    flags = () if Path('/dev/nvidiactl').exists() else ('gpu',)
    problem = Demo(nb, path.parent, flags).go()
    folder.mkdir(parents=True, exist_ok=True)
    saved = folder/f'{name}.ipynb'
    nbformat.write(tidy(nb), saved)
    print()
    if problem:
        print(f'demo: {problem}', file=sys.stderr)
        print(f'The notebook as far as it came: {shown(saved)}', file=sys.stderr)
        return 1
    print(f'Done in {spoken(time.time() - start)}.')
    for what, where in [('notebook', shown(saved)), *places(folder)]: print(f'  {what:<12} {where}')
    return 0

if __name__ == '__main__': sys.exit(demo(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else QUICKSTART))
