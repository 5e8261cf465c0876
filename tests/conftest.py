"Shards of the sample games, made once a test run"
import contextlib, os, sys
from collections import Counter

import pytest

from maou_nb.stages.rows import prepare_stage1, prepare_stage2, prepare_stage3
from buckets import bucket, gcs, s3      # fixtures
from samples import ONE_FILE

# tests edit a plugin within one second, and bytecode is known by a file's second and size; as in processes they start
sys.dont_write_bytecode = True
os.environ['PYTHONDONTWRITEBYTECODE'] = '1'

LONG = {'test_notebooks', 'test_tutorials', 'test_study', 'test_resume', 'test_readme', 'test_quickstart', 'test_docs'}

@pytest.fixture(scope='session')
def shards(tmp_path_factory):
    "Data paths of all three stages, made of 50 games, in several shards"
    out = tmp_path_factory.mktemp('shards')
    prepare_stage1(out/'stage1')
    prepare_stage2(ONE_FILE, out/'stage2', rows_per_shard=1_500)
    prepare_stage3(ONE_FILE, out/'stage3', rows_per_shard=1_500)
    return {f'stage{n}_data_path': str(out/f'stage{n}') for n in (1, 2, 3)}

@pytest.fixture(scope='session')
def small_run(shards, tmp_path_factory):
    "The folder of a run of stage 3 that has learnt next to nothing: a player, to try what plays"
    from maou_nb import learn_multi_stage
    folder = tmp_path_factory.mktemp('runs')/'small'
    learn_multi_stage(stage='3', run_dir=folder, epoch=1, resnet_channels=16, resnet_blocks=1, gpu='cpu', seed=1,
                      **{k: v for k, v in shards.items() if '3' in k})
    return folder

def pytest_collection_modifyitems(items):
    "Files that drive a browser or notebooks are long: they come first, so that no process waits for another's last one"
    count = Counter(item.path for item in items)
    long = lambda item: hasattr(item.module, 'browser') or item.path.stem in LONG
    items.sort(key=lambda item: (not long(item), -count[item.path]))

@contextlib.contextmanager
def kept_registries():
    "What is registered meanwhile is forgotten afterwards: a plugin of one test is not another's"
    from maou_nb.data import plugins
    import maou_nb.train.options      # with it everything of the library is registered
    kept = [pair for registry in plugins.Registry.every for pair in registry.kept()]
    kept.append((plugins.PLUGINS, dict(plugins.PLUGINS)))
    try: yield
    finally:
        for registry, before in kept:
            registry.clear()
            registry.update(before)

@pytest.fixture(scope='module', autouse=True)
def registries():
    "Those of a test file are its own"
    with kept_registries(): yield
