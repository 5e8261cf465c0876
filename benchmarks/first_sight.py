"""How long one waits for the first things to see: `python benchmarks/first_sight.py [--rounds 3] [--note TEXT]`

Each is timed in a kernel of its own that has just started and imported nothing, from the moment the cell is sent until what
it shows has come back: a board, the panel, a curve of a run in the kernel, and one of a run in a process of its own, from the
start of its training. A line of JSON each, the median and all rounds, and the processor's seconds of the kernel and what it
started, which a busy machine changes less; and where the time of importing goes.
"""
import argparse, datetime, json, re, statistics, subprocess, sys, tempfile, time

import psutil
from jupyter_client.manager import start_new_kernel

OPTIONS = '''stage=1, stage1_data_path='stage1', stage1_batch_size=64, stage1_max_epochs=500, stage1_threshold=1,
    model_size='tiny', resnet_channels=32, resnet_blocks=2, gpu='cpu' '''

# what is waited for → (what goes before and is not timed, the cell, whether an output is it)
SIGHTS = {
    'import': ('', 'import maou_nb', None),
    'import of learn_multi_stage': ('', 'from maou_nb import learn_multi_stage', None),
    'board': ('', "from maou_nb import show_position\nshow_position('startpos')", 'board'),
    'panel': ('', 'from maou_nb import LearnPanel\nLearnPanel()', 'widget'),
    'curve of a run in the kernel': ('from maou_nb import prepare_stage1; prepare_stage1("stage1")',
                                     f"from maou_nb import learn_multi_stage\nlearn_multi_stage(run_dir='here', {OPTIONS})", 'curve'),
    'curve of a run in another process': ('from maou_nb import prepare_stage1; prepare_stage1("stage1")\n'
                                          'import time\nfrom maou_nb import attach\nfrom maou_nb.front.options import make_config\n'
                                          'from maou_nb.front.runs import start_run, state_of, RunFolder',
                                          f"child = start_run(make_config(run_dir='run', {OPTIONS}))\n"
                                          "while state_of(RunFolder('run'))[0] != 'training': time.sleep(0.05)\nattach('run')",
                                          'curve')}
AFTER = "try: child.terminate(); child.wait(30)\nexcept NameError: pass"

def shows(message, what):
    "Whether a message of the kernel is the sight of a board, of widgets or of a curve"
    data = message['content'].get('data', {})
    if not isinstance(data, dict): return False
    html = data.get('text/html', '')
    if what == 'widget': return 'application/vnd.jupyter.widget-view+json' in data
    drawn = '<svg' in html or 'image/svg+xml' in data or 'image/png' in data
    if what == 'board': return drawn
    return 'image/png' in data or '<img' in html or any('plotly' in k or 'bokeh' in k for k in data)

def look(client, cell, what, patience=300):
    "Seconds from sending `cell` until its output shows `what`; None: until it is done"
    began = time.perf_counter()
    sent = client.execute(cell)
    while True:
        message = client.get_iopub_msg(timeout=patience)
        if message['msg_type'] == 'error': raise SystemExit(f'{cell}\n{message["content"]["ename"]}: {message["content"]["evalue"]}')
        idle = message['msg_type'] == 'status' and message['content']['execution_state'] == 'idle'
        done = idle and message['parent_header'].get('msg_id') == sent
        if what is None and done or what is not None and shows(message, what): return time.perf_counter() - began
        if time.perf_counter() - began > patience: raise SystemExit(f'{what} was not seen in {patience} seconds')

def cpu_seconds(pid):
    "What a process and those that it started have used of the processor"
    of = psutil.Process(pid)
    return sum(sum(p.cpu_times()[:2]) for p in (of, *of.children(recursive=True)))

def seen(name):
    "How long one waits for a sight, and the processor's seconds, in a fresh kernel in a folder of its own"
    before, cell, what = SIGHTS[name]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        manager, client = start_new_kernel(kernel_name='python3', cwd=folder)
        try:
            if before: client.execute_interactive(before, timeout=300, output_hook=lambda m: None)
            pid = manager.provisioner.process.pid
            began = cpu_seconds(pid)
            seconds = look(client, cell, what)
            used = cpu_seconds(pid) - began
            manager.interrupt_kernel()
            client.execute_interactive(AFTER, timeout=300, output_hook=lambda m: None)
            return round(seconds, 2), round(used, 2)
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)

def imports(statement, least=0.05):
    "Where the time of `statement` goes: package → seconds in its own modules, the largest first"
    with tempfile.TemporaryDirectory() as elsewhere:       # else what lies here would be imported
        told = subprocess.run([sys.executable, '-X', 'importtime', '-c', statement], cwd=elsewhere,
                              capture_output=True, text=True, check=True).stderr
    spent = {}
    for own, module in re.findall(r'import time:\s+(\d+) \|\s+\d+ \| +(\S+)', told):
        package = '.'.join(module.split('.')[:2]) if module.startswith('torch.') else module.split('.')[0]
        spent[package] = spent.get(package, 0) + int(own)/1e6
    return {k: round(v, 3) for k, v in sorted(spent.items(), key=lambda x: -x[1]) if v >= least}

def main():
    ask = argparse.ArgumentParser(description='How long one waits for the first things to see')
    ask.add_argument('--rounds', type=int, default=3, help='how often each is timed')
    ask.add_argument('--only', default=','.join(SIGHTS), help='of ' + ', '.join(SIGHTS))
    ask.add_argument('--note', default='', help='said in the first line')
    asked = ask.parse_args()
    if unknown := [name for name in asked.only.split(',') if name not in SIGHTS]:
        ask.error(f'{unknown[0]!r}: one of {", ".join(SIGHTS)} was expected')
    say = lambda **line: print(json.dumps(line), flush=True)
    say(kind='machine', device='cpu', date=str(datetime.date.today()), note=asked.note)
    for name in asked.only.split(','):
        rounds, cpu = zip(*(seen(name) for _ in range(asked.rounds)))
        say(kind='first sight', of=name, seconds=statistics.median(rounds), rounds=rounds, cpu_seconds=statistics.median(cpu))
    statement = 'from maou_nb import LearnPanel'
    say(kind='imports', of=statement, seconds=imports(statement))

if __name__ == '__main__': main()
