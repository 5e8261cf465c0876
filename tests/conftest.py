"Shards of the sample games, made once a test run"
import pytest

from maou_nb.stages.rows import prepare_stage1, prepare_stage2, prepare_stage3
from buckets import bucket, gcs, s3      # fixtures
from samples import ONE_FILE

@pytest.fixture(scope='session')
def shards(tmp_path_factory):
    "Data paths of all three stages, made of 50 games, in several shards"
    out = tmp_path_factory.mktemp('shards')
    prepare_stage1(out/'stage1')
    prepare_stage2(ONE_FILE, out/'stage2', rows_per_shard=1_500)
    prepare_stage3(ONE_FILE, out/'stage3', rows_per_shard=1_500)
    return {f'stage{n}_data_path': str(out/f'stage{n}') for n in (1, 2, 3)}
