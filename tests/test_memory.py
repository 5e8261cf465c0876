"A stage's data is opened when the stage starts and let go before the next one; a stage that is not run is never opened"
import json, os, subprocess, sys

import pyarrow as pa
import pytest

from maou_nb import learn_multi_stage
from maou_nb.data import sources
from maou_nb.data.columns import columns_of
from maou_nb.data.shards import find_shards, read_shard, write_shard
from maou_nb.train import runner as stages
from maou_nb.model.backbones import backbone_of
from maou_nb.front.options import make_config
from maou_nb.stages.stage import STAGES
from maou_nb.train.folder import RunFolder
from maou_nb.train.loop import Callback, Stopped, StopWish, make_accelerator

def resident():
    "Bytes of memory that this process holds"
    with open('/proc/self/statm') as f: return int(f.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')

@pytest.fixture(scope='module')
def large(shards, tmp_path_factory):
    "Stage 2 rows, so many copies of the sample's that they take 150 MB in memory"
    folder = tmp_path_factory.mktemp('large')/'stage2'
    rows = pa.concat_tables([read_shard(s) for s in find_shards(shards['stage2_data_path'], 2)])
    many = pa.concat_tables([rows]*(150_000_000 // columns_of(2).record.itemsize // len(rows) + 1)).combine_chunks()
    write_shard(folder/'many.feather', many, 2, 'copies')
    return folder

class Weigh(Callback):
    "Loads all rows, weighs the process and wants the run to end"
    def before_fit(self, loop):
        len(loop.train.resident)
        self.during = resident()
        loop.stop.why = 'SIGTERM'

def measure(data, folder):
    "Bytes resident before a stage, with all its rows in memory, and after it"
    cfg = make_config(stage=2, gpu='cpu', model_size='tiny', resnet_channels=8, resnet_blocks=1, batch_size=64,
                      input_cache_mode='memory', run_dir=folder, stage2_data_path=data)
    weigh, run = Weigh(), RunFolder(folder)
    def once():
        with pytest.raises(Stopped):
            stages.run_stage(cfg, STAGES['2'], backbone_of(cfg), make_accelerator('cpu'), run, [weigh],
                             lambda text: None, StopWish())
    once(); once()                       # libraries load what they load, and pools grow to what they need
    before = resident(); once()
    return before, weigh.during, resident()

def test_memory_goes_back(large, tmp_path):
    "In a process of its own, whose memory nothing else has used"
    done = subprocess.run([sys.executable, __file__, str(large), str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, during, after = json.loads(done.stdout.splitlines()[-1])
    print(f'resident: {before / 1e6:.0f} MB before, {during / 1e6:.0f} MB with all rows in memory, {after / 1e6:.0f} MB after')
    assert during - before > 120e6 and during - after > 0.7*(during - before)

def test_a_stage_that_is_not_run_is_never_opened(shards, tmp_path, monkeypatch):
    opened = []
    real = sources.load_rows
    monkeypatch.setattr(sources, 'load_rows', lambda shard, *args: opened.append(shard.stage) or real(shard, *args))
    tiny = dict(gpu='cpu', model_size='tiny', resnet_channels=8, resnet_blocks=1, stage1_threshold=0., stage2_threshold=0., epoch=1)
    for stage in (1, 2):
        learn_multi_stage(stage=stage, run_dir=tmp_path/str(stage), **tiny, **{**shards, 'stage3_data_path': 'nowhere'})
        assert set(opened) == {stage}
        opened.clear()
    learn_multi_stage(stage='all', run_dir=tmp_path/'all', **tiny, **shards)
    assert list(dict.fromkeys(opened)) == [1, 2, 3] and opened == sorted(opened)     # one after the other, none beforehand

if __name__ == '__main__': print(json.dumps(measure(*sys.argv[1:])))
