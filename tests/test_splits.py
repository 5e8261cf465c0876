"What is held out depends on the rows alone; what is damaged is left out or named; what the policy is taught; rows decoded once"
import random, shutil

import numpy as np
import pyarrow as pa
import pytest
import torch

from maou_nb import OptionError, learn_multi_stage
from maou_nb.data.batches import Batch, BatchStream, DenseCache, batch_loader
from maou_nb.data.board import position_ids
from maou_nb.data.old import write_old
from maou_nb.data.labels import LABEL_MIRROR
from maou_nb.data.shards import ShardError, find_shards, read_shard, write_shard
from maou_nb.data.rows import TARGETS, load_rows
from maou_nb.data.sources import FileSource, StreamingFileSource
from maou_nb.data.splits import clamp_workers, packed_problem, split_problem, split_sources
from samples import said

def positions(source):
    "The identities of all rows of `source`"
    return np.sort(np.concatenate([position_ids(r.fixed['board'], r.fixed['hands']) for r in source.iter_files_columnar()]))

@pytest.fixture(scope='module')
def old(shards, tmp_path_factory):
    "The old tool's tables of the same rows: four files, and one of them alone; both stages"
    out = tmp_path_factory.mktemp('old')
    for n in (2, 3):
        for i, s in enumerate(find_shards(shards[f'stage{n}_data_path'], n)):
            (out/f'many{n}').mkdir(exist_ok=True); write_old(read_shard(s), out/f'many{n}'/f'{i}.feather', n)
        (out/f'one{n}').mkdir(); shutil.copy(out/f'many{n}'/'1.feather', out/f'one{n}'/'one.feather')
    return out

KINDS = {'by game': lambda shards, old, n: shards[f'stage{n}_data_path'],
         'by file': lambda shards, old, n: old/f'many{n}',
         'by row': lambda shards, old, n: old/f'one{n}'}

@pytest.mark.parametrize('n', [2, 3])
@pytest.mark.parametrize('kind', KINDS)
def test_the_split(shards, old, tmp_path, kind, n):
    "Every row on one side, the share kept, the same from every place, in every order of files and every way of holding rows"
    path = KINDS[kind](shards, old, n)
    train, valid, how = split_sources(StreamingFileSource, path, n, 0.25)
    everything = positions(StreamingFileSource(path, n))
    sides = positions(train), positions(valid)
    assert how.startswith(kind) and np.array_equal(np.sort(np.concatenate(sides)), everything)
    assert (train.total_rows, valid.total_rows) == tuple(map(len, sides)) and 0.1 < valid.total_rows / len(everything) < 0.4
    if kind == 'by row': assert not set(sides[0]) & set(sides[1])
    shutil.copytree(path, tmp_path/'moved')
    files = sorted((tmp_path/'moved').glob('*.feather')); random.Random(0).shuffle(files)
    caches = [lambda p, s, c=c, f=f, **kw: f(p, s, cache=c, **({'device': 'cpu'} if c == 'device' else {}), **kw)
              for f, c in ((FileSource, 'memory'), (FileSource, 'mmap'), (StreamingFileSource, 'memory'),
                           (FileSource, 'device'))]
    for make in (StreamingFileSource, *caches):
        t, v, _ = split_sources(make, files, n, 0.25)
        assert np.array_equal(positions(t), sides[0]) and np.array_equal(positions(v), sides[1])
        rows = t.take(t.plan(10**6, shuffle=False), 0)
        rows = rows if hasattr(rows, 'fixed') else rows.rows(n)
        assert np.array_equal(np.sort(position_ids(rows.fixed['board'], rows.fixed['hands'])), sides[0])

@pytest.mark.parametrize('kind', KINDS)
def test_runs_say_how_they_split(shards, old, tmp_path, kind, capsys):
    tiny = dict(stage=3, gpu='cpu', model_size='tiny', resnet_channels=8, resnet_blocks=1, epoch=1)
    result = learn_multi_stage(stage3_data_path=KINDS[kind](shards, old, 3), run_dir=tmp_path/'run', **tiny)
    text = capsys.readouterr().out
    assert kind in result[3].split and kind in text and (kind == 'by game') == (result[3].judged_on == 'held-out games')
    assert (kind == 'by row') == ('shuffled globally' in text)            # one file that knows no games

def test_files_of_one_name_in_several_folders(shards, tmp_path):
    "As monthly folders have them: what is held out is the same in every order of folders, and in others"
    table = read_shard(find_shards(shards['stage3_data_path'], 3)[0])
    for i in range(4):
        (tmp_path/f'{i}').mkdir(); write_old(table.slice(i*100, 100), tmp_path/f'{i}'/'x.feather', 3)
    for a, b in zip('0123', 'dbca'): shutil.copytree(tmp_path/a, tmp_path/'other'/b)
    held = [positions(split_sources(StreamingFileSource, p, 3, 0.3)[1])
            for p in ([tmp_path/i for i in '0123'], [tmp_path/i for i in '3120'], tmp_path/'other')]
    assert all(np.array_equal(h, held[0]) for h in held)

def test_sides_that_would_be_empty(shards, tmp_path):
    table = read_shard(find_shards(shards['stage3_data_path'], 3)[0])
    write_old(table.slice(0, 50), tmp_path/'a.feather', 3)
    write_old(table.slice(0, 0), tmp_path/'b.feather', 3)
    write_old(table.slice(0, 2), tmp_path/'two.feather', 3)
    assert 'all rows are in one of 2 files' in split_problem(find_shards([tmp_path/'a.feather', tmp_path/'b.feather'], 3), 0.2)
    assert 'too few rows' in split_problem(find_shards(tmp_path/'two.feather', 3), 0.01)

def test_mixed_kinds_are_refused(shards, old):
    with pytest.raises(ShardError) as e: split_sources(StreamingFileSource, [shards['stage3_data_path'], old/'one3'], 3, 0.2)
    assert 'one.feather knows no games and' in said(e)

def test_what_cannot_be_split(shards, old):
    found = find_shards(shards['stage3_data_path'], 3)
    assert split_problem(found, 0.2) is None and split_problem(find_shards(old/'one3', 3), 0.2) is None
    one = [type(s)(s.path, 3, 10, tuple(10*(f == 50) for f in range(100))) for s in found]
    assert 'no game falls to validation' in split_problem(one, 0.2) and 'no game falls to training' in split_problem(one, 0.9)

@pytest.fixture(scope='module')
def several(shards, tmp_path_factory):
    "A shard whose rows have up to seven moves each, ties among them"
    rng, table = np.random.default_rng(0), read_shard(find_shards(shards['stage3_data_path'], 3)[0]).slice(0, 300)
    n = rng.integers(1, 8, len(table))
    labels = [rng.choice(1496, k, replace=False).astype(np.uint16) for k in n]
    counts = [rng.integers(1, 4, k).astype(np.uint32) for k in n]
    made = {'moveLabels': labels, 'moveCounts': counts, 'moveWins': [(c*rng.random(len(c))).astype(np.float32) for c in counts]}
    made |= {'count': [c.sum() for c in counts], 'wins': [w.sum() for w in made['moveWins']]}
    for name, column in made.items():
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name),
                                 pa.array(column, table.schema.field(name).type))
    folder = tmp_path_factory.mktemp('several')
    write_shard(folder/'x.feather', table, 3, 'random moves')
    return find_shards(folder, 3)[0]

@pytest.mark.parametrize('mode', TARGETS)
def test_policy_targets(several, mode):
    "Against the formula on the table's own columns; what is judged stays the most played move, mirrored or not"
    table, rows = read_shard(several), load_rows(several, policy=mode)
    dense = Batch.from_rows(rows, 3).decode()
    for i, (labels, counts, wins) in enumerate(zip(*(table[c].to_pylist() for c in ('moveLabels', 'moveCounts', 'moveWins')))):
        c, w = np.array(counts, float), np.array(wins, float)
        weight = {'move-label': c, 'win-rate': (w + .5)/(c + 1), 'weighted': c*(w + .5)/(c + 1)}[mode]
        assert np.allclose(dense.policy[i, labels], weight / weight.sum(), atol=1e-6)
        assert dense.policy[i].sum().item() == pytest.approx(1, abs=1e-5)
        assert dense.played[i] == min(l for l, n in zip(labels, counts) if n == max(counts))
    turned = Batch.from_rows(rows, 3, np.ones(len(rows), bool)).decode()
    assert torch.equal(turned.played, torch.from_numpy(LABEL_MIRROR.astype(np.int64))[dense.played])
    # copies of other targets are not mistaken for this one
    sources = [FileSource(several.path, 3, cache=c, policy=mode) for c in ('memory', 'mmap')]
    for s in sources: assert torch.equal(Batch.from_rows(s[np.arange(len(rows))], 3).decode().policy, dense.policy)

def test_targets_that_a_table_does_not_know(old, shards, tmp_path):
    write_old(read_shard(find_shards(shards['stage3_data_path'], 3)[0]), tmp_path/'x.npy', 3, 'npy-newer')
    options = dict(stage=3, stage3_data_path=tmp_path/'x.npy', gpu='cpu', model_size='tiny', run_dir=tmp_path/'run')
    with pytest.raises(OptionError) as e: learn_multi_stage(policy_target_mode='win-rate', **options)
    assert 'x.npy does not know how often each move won' in said(e) and said(e).startswith("policy_target_mode='win-rate'")
    StreamingFileSource(old/'one3', 3, policy='win-rate').shards                        # newer tables do

def test_bit_packed_arrays_are_meant_or_not(shards, tmp_path):
    table = read_shard(find_shards(shards['stage3_data_path'], 3)[0])
    for kind in ('npy-packed', 'npy-plain'): write_old(table, tmp_path/f'{kind}.npy', 3, kind)
    packed, plain = (find_shards(tmp_path/f'{k}.npy', 3) for k in ('npy-packed', 'npy-plain'))
    assert packed_problem(packed, True) is None and packed_problem(plain, False) is None
    assert 'input_file_packed=True reads it' in packed_problem(packed, False)
    assert 'input_file_packed=False reads it' in packed_problem(plain, True)

def test_damaged_shards_are_left_out_and_listed(shards, tmp_path):
    folder = tmp_path/'set'; shutil.copytree(shards['stage3_data_path'], folder)
    files = sorted(folder.glob('*.feather'))
    raw = bytearray(files[0].read_bytes()); raw[len(raw)//2] ^= 255; files[0].write_bytes(raw)          # a bit too many
    files[1].write_bytes(files[1].read_bytes()[:-500])                                                  # cut
    files[2].unlink()                                                                                   # lost
    told = []
    source = StreamingFileSource(folder, 3, on_bad='skip', say=told.append)
    assert len(source.shards) == len(files) - 3 and len(source.skipped) == 3 and '3 left out' in told[-1]
    for f in files[:3]: assert any(f.name in s for s in source.skipped)
    assert source.total_rows == sum(s.rows for s in source.shards) == sum(len(r) for r in source.iter_files_columnar())
    with pytest.raises(ShardError): StreamingFileSource(folder, 3).shards
    for f in files[3:]: f.write_bytes(b'x')
    with pytest.raises(ShardError) as e: StreamingFileSource(folder, 3, on_bad='skip', say=told.append).shards
    assert 'not one of' in said(e) and 'of the first:' in said(e)

def test_bad_rows_of_old_tables_are_left_out(shards, tmp_path):
    table = read_shard(find_shards(shards['stage3_data_path'], 3)[0]).slice(0, 200)
    write_old(table, tmp_path/'x.npy', 3, 'npy-newer')
    rows = np.load(tmp_path/'x.npy'); rows['boardIdPositions'][7] = 77; np.save(tmp_path/'x.npy', rows)
    source = StreamingFileSource(tmp_path/'x.npy', 3, on_bad='skip', say=lambda text: None)
    assert source.total_rows == 199 == len(next(source.iter_files_columnar())) and 'row 8 of 200' in source.skipped[0]
    with pytest.raises(ShardError, match='row 8 of 200'): list(StreamingFileSource(tmp_path/'x.npy', 3).iter_files_columnar())

def same(a, b):
    tensors = lambda batch: {'board': batch.board, 'hands': batch.hands, **batch.targets}
    a, b = tensors(a), tensors(b)
    return a.keys() == b.keys() and all(torch.equal(a[k].nan_to_num(), b[k].nan_to_num()) for k in a)

@pytest.mark.parametrize('n', [1, 2, 3])
def test_decoded_rows_are_the_same(shards, n, monkeypatch):
    "Batch by batch, mirrored ones too, from two workers that fill one cache; afterwards every row is there"
    source = FileSource(shards[f'stage{n}_data_path'], n)
    plan, cache = source.plan(300, 5, mirror=True), DenseCache(source)
    plain = [b.decode() for b in BatchStream(source, plan)]
    for workers in ((0, 2) if n == 3 else (0,)):
        if workers: cache = DenseCache(source)
        made = [b.decode() for b in batch_loader(BatchStream(source, plan, dense=cache), workers)]
        assert len(made) == len(plain) and all(map(same, made, plain)) and cache.done.all()
    with monkeypatch.context() as m:
        m.setattr(Batch, 'decode', None)                    # nothing is decoded again
        assert all(map(same, [b.decode() for b in BatchStream(source, plan, 1, dense=cache)], plain[1:]))

def test_decoded_rows_that_do_not_fit(shards, monkeypatch):
    monkeypatch.setattr('maou_nb.data.batches.free_memory', lambda: 1_000_000)
    with pytest.raises(MemoryError) as e: DenseCache(FileSource(shards['stage3_data_path'], 3))
    assert 'cache_transforms=True needs 0.0' in said(e) and '0.00 GB of memory are free' in said(e)

def test_workers_are_clamped(shards, monkeypatch):
    source = StreamingFileSource(shards['stage3_data_path'], 3)
    assert clamp_workers(source, 2, 64) == (2, None)
    n, why = clamp_workers(source, 99, 1000)
    assert n == -(-source.total_rows // 1000) and 'dataloader_workers=99' in why
    monkeypatch.setattr(StreamingFileSource, 'memory_free', lambda self: {'host': 3*self.memory_needed()['host'] + 1})
    assert clamp_workers(source, 99, 64)[0] == 3
