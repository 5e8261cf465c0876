"""Do stages 1 and 2 help stage 3? Five arms, five seeds, two small nets

python studies/curriculum/run.py GAMES [--work FOLDER] [--hours 2] [--nets resnet vit] [--seeds 5] [--at-once 2]
GAMES is a folder of game records. What is prepared from them, and the weights, go to FOLDER; the records of the runs stay beside
this script. It ends after so many hours, and the same call goes on. nbs/guides/89_curriculum.ipynb is the report.
"""
import argparse
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa

from maou_nb.data.columns import columns_of
from maou_nb.data.shards import find_shards, read_shard, write_manifest, write_shard
from maou_nb.front.options import make_config
from maou_nb.front.study import plan_of, study
from maou_nb.stages.rows import placebo_stage2, prepare_stage1, prepare_stage2, prepare_stage3

HOME = Path(__file__).absolute().parent
POSITIONS = 512_000                  # Of stage 3, of an arm that has nothing else
STAGE1_EPOCHS, STAGE2_ROWS = 20, 131_072
HELD_OUT_EVERY, ROWS_A_GAME = 10, 12 # Each tenth game is judged on, by so many of its positions
RATES = {'resnet': 0.01, 'vit': 0.008}      # of three each, the best of scratch on one seed

def thin(folder, to, stage, pick):
    "Write the rows of `folder` that `pick` chooses from the column of games"
    columns = columns_of(stage)
    table = pa.concat_tables([read_shard(s) for s in find_shards(folder, columns)]).combine_chunks()
    kept = table.take(pa.array(np.sort(pick(table['game'].to_numpy()))))
    to.mkdir(parents=True, exist_ok=True)
    written = [write_shard(to/'rows.feather', kept, columns, 'thinned')]
    write_manifest(to, written, stage=int(stage), prepared_from='thinned')

def some_a_game(games):
    "So many rows of each game, at random"
    rng = np.random.default_rng(0)
    order = rng.permutation(len(games))
    grouped = order[np.argsort(games[order], kind='stable')]
    starts = np.r_[True, games[grouped][1:] != games[grouped][:-1]]
    place = np.arange(len(games)) - np.maximum.accumulate(np.where(starts, np.arange(len(games)), 0))
    return grouped[place < ROWS_A_GAME]

def some_rows(games):
    "`STAGE2_ROWS` rows at random"
    return np.random.default_rng(0).permutation(len(games))[:STAGE2_ROWS]

def prepared(games):
    "Folders of shards, made once where one works"
    data = Path('shards')
    if (data/'done').exists(): return data
    files = sorted(Path(games).rglob('*.csa'))
    held, taught = files[::HELD_OUT_EVERY], [f for i, f in enumerate(files) if i % HELD_OUT_EVERY]
    prepare_stage1(data/'1')
    prepare_stage3(taught, data/'3')
    prepare_stage3(held, data/'held-all')
    thin(data/'held-all', data/'held', '3', some_a_game)
    prepare_stage2(taught, data/'2-all')
    thin(data/'2-all', data/'2', '2', some_rows)
    placebo_stage2(data/'2', data/'2-placebo')
    (data/'done').touch()
    return data

def arms(data, steps):
    "What is compared; `steps` of stage 3 are all that the first arm has"
    first = dict(stage=(1, 2, 3), stage1_data_path=str(data/'1'), stage2_data_path=str(data/'2'), stage1_threshold=None,
                 stage2_threshold=None, stage1_max_epochs=STAGE1_EPOCHS, stage2_max_epochs=1)
    return {'scratch': {}, '1-2-3, equal compute': first, '1-2-3, equal stage 3': first | dict(max_steps=steps),
            'joint': dict(auxiliary=('2',)),
            'placebo, equal stage 3': first | dict(stage2_data_path=str(data/'2-placebo'), max_steps=steps)}

def budget_of(base):
    "What `POSITIONS` of stage 3 alone cost, in FLOPs"
    return {'flops': plan_of(make_config(**base))[-1].flops*(POSITIONS//256)}

def run(args):
    "Train what is left, for so long"
    games = Path(args.games).absolute()
    args.work.mkdir(parents=True, exist_ok=True)
    os.chdir(args.work)                  # so study.json names places that every machine has
    data = prepared(games)
    for net in args.nets:
        base = dict(stage=3, stage3_data_path=str(data/'3'), stage3_validation_data_path=str(data/'held'), model_architecture=net,
                    model_size='tiny', batch_size=256, learning_ratio=RATES[net], input_cache_mode='memory', gpu='cpu',
                    checkpoint_every=500, warmup_steps=200)
        study(net, base, arms(data, POSITIONS//256), args.seeds, budget_of(base), at_once=args.at_once, folder=HOME)

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('games')
    parser.add_argument('--work', type=Path, default=HOME/'scratch')
    parser.add_argument('--hours', type=float, default=2.)
    parser.add_argument('--nets', nargs='+', default=['resnet', 'vit'])
    parser.add_argument('--seeds', type=int, default=5)
    parser.add_argument('--at-once', type=int, default=2)
    args = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)      # a shell that starts it in the background ignores it
    ends = threading.Timer(args.hours*3600, lambda: os.kill(os.getpid(), signal.SIGINT))
    ends.daemon = True                   # it waits for no hour that isn't needed
    ends.start()
    run(args)
