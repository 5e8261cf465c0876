"""What live plotting costs: `python benchmarks/plots.py [--rounds 3]`

The quickstart's training runs in a real kernel with pictures and without, in turns.
Prints the time of each run, the ratio of the medians, and the share that the drawing itself took by its own clock.
"""
import argparse, statistics, tempfile
from pathlib import Path

from jupyter_client.manager import start_new_kernel

ROOT = Path(__file__).resolve().parents[1]

SETUP = '''
import time
from pathlib import Path
from maou_nb import prepare_stage1, prepare_stage2, prepare_stage3
from maou_nb.front import learn
from maou_nb.front.options import make_config
from maou_nb.judge.watch import LivePlot

out = Path({out!r})
prepare_stage1(out/'stage1'); prepare_stage2({games!r}, out/'stage2'); prepare_stage3({games!r}, out/'stage3')
plots = []
class Counted(LivePlot):
    def __init__(self): super().__init__(); plots.append(self)
learn.LivePlot = Counted

def run(name, pictures):
    cfg = make_config(stage='all', run_dir=out/name, model_architecture='resnet', model_size='tiny',
                      stage1_data_path=out/'stage1', stage2_data_path=out/'stage2', stage3_data_path=out/'stage3',
                      learning_ratio=0.004, stage1_batch_size=64, batch_size=128,
                      stage2_test_ratio=0.2, test_ratio=0.2, value_loss_ratio=0.1,
                      stage1_max_epochs=30, stage2_threshold=0.9, epoch={epoch})
    plots.clear(); began = time.perf_counter()
    try: learn.train_run(cfg, say=lambda text: None, pictures=pictures)
    except RuntimeError as e: assert 'reached f1' in str(e), e
    return time.perf_counter() - began, sum(p.screen.pace.spent for p in plots), sum(p.screen.pace.count for p in plots)
'''

def main():
    ask = argparse.ArgumentParser(); ask.add_argument('--rounds', type=int, default=3); ask.add_argument('--epoch', type=int, default=4)
    asked = ask.parse_args()
    manager, client = start_new_kernel(kernel_name='python3')
    def value(code):
        reply = client.execute_interactive('pass', user_expressions={'it': code}, store_history=False,
                                           output_hook=lambda m: None)['content']['user_expressions']['it']
        assert reply['status'] == 'ok', reply
        return eval(reply['data']['text/plain'])
    try:
        setup = SETUP.format(out=tempfile.mkdtemp(), games=str(ROOT/'samples'/'games'), epoch=asked.epoch)
        done = client.execute_interactive(setup, output_hook=lambda m: None)
        assert done['content']['status'] == 'ok', done['content']
        value("run('warm', True)")
        times = {True: [], False: []}
        for i in range(asked.rounds):
            for pictures in (True, False) if i % 2 else (False, True):
                seconds, spent, count = value(f"run('r{i}{pictures}', {pictures})")
                times[pictures].append((seconds, spent))
                print(f'{"with pictures" if pictures else "without":<14} {seconds:6.1f} s'
                      + (f', {count} drawings took {spent:.2f} s, {spent/seconds:.2%}' if pictures else ''), flush=True)
        with_, without = (statistics.median(s for s, _ in times[p]) for p in (True, False))
        print(f'with / without: {with_/without:.4f}; drawing by its own clock: {statistics.median(d/s for s, d in times[True]):.2%}')
    finally: client.stop_channels(); manager.shutdown_kernel(now=True)

if __name__ == '__main__': main()
