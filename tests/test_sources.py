"Sources and loaders: one order, whoever builds the batches and wherever the rows are; bounded memory; the mirror"
import errno
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
import tracemalloc
from itertools import accumulate

import numpy as np
import pyarrow as pa
import pytest
import torch
from rsshogi.core import Board
from safetensors.numpy import load_file

from maou_nb.data import rows as rows_room, sources
from maou_nb.data.batches import Batch, BatchStream, batch_loader
from maou_nb.data.board import to_sfen
from maou_nb.data.labels import LABEL_MIRROR, SQUARE_MIRROR, legal_labels
from maou_nb.data.shards import ShardError, find_shards, read_shard, write_manifest, write_shard
from maou_nb.data.columns import INLINE
from maou_nb.data.columns import columns_of
from maou_nb.data.sources import FileSource, StreamingFileSource
from maou_nb.data.order import Plan
from maou_nb.data.rows import load_rows
from samples import said

RESIDENT = ('memory', 'mmap', 'device')

def with_visits(table, seed):
    "`table` as a search would leave it: many positions with more moves than a record holds"
    random = np.random.default_rng(seed)
    legal = [np.flatnonzero(np.unpackbits(np.frombuffer(b, np.uint8), bitorder='little')) for b in table['legalMoves'].to_pylist()]
    labels = [np.sort(random.permutation(l)[:random.choice([1, 2, 4, 5, 40])]) for l in legal]
    counts = [random.integers(1, 800, len(l)) for l in labels]
    wins = [c * random.random() for c in counts]
    new = {'moveLabels': labels, 'moveCounts': counts, 'moveWins': wins, 'count': [int(c.sum()) for c in counts],
           'wins': [w.sum() for w in wins]}
    for name, values in new.items():
        plain = [v.tolist() if isinstance(v, np.ndarray) else v for v in values]
        column = pa.array(plain, table.schema.field(name).type)
        table = table.set_column(table.schema.get_field_index(name), name, column)
    return table

@pytest.fixture(scope='module')
def visits(shards, tmp_path_factory):
    "A folder of 8 small shards whose policy comes from visits"
    folder = tmp_path_factory.mktemp('visits')
    found = find_shards(shards['stage3_data_path'], 3)
    table = with_visits(pa.concat_tables([read_shard(s) for s in found[:2]]).combine_chunks().slice(0, 1_200), 0)
    entries = [write_shard(folder/f'{i}.feather', table.slice(150*i, 150 - 7*i).combine_chunks(), 3, 'a test',
                           policy='visits') for i in range(8)]
    write_manifest(folder, entries, stage=3)
    return folder

@pytest.fixture(autouse=True)
def copies(tmp_path, monkeypatch):
    "A folder for copies of its own for each test"
    monkeypatch.setenv('MAOU_NB_CACHE', str(tmp_path/'copies'))
    return tmp_path/'copies'

def in_windows(path, cache='file', **kw):
    device = {'device': 'cpu'} if cache == 'device' else {}
    options = {'window': 2, 'window_rows': 0, 'cache': cache, 'say': lambda s: None, **device, **kw}
    return StreamingFileSource(path, 3, **options)

def batches(source, plan, **kw):
    place = {k: kw.pop(k) for k in ('start', 'rank', 'world') if k in kw}
    return list(batch_loader(BatchStream(source, plan, **place), **kw))

def equal(a, b):
    same = lambda x, y: len(x) == len(y) and all(map(torch.equal, x, y))
    return len(a) == len(b) and all(same(x.tensors(), y.tensors()) for x, y in zip(a, b))

def test_rows_are_those_of_the_table(visits):
    shard = find_shards(visits, 3)[0]
    table, rows = read_shard(shard), load_rows(shard)
    offsets, labels, counts = rows.moves()
    assert (rows.fixed['n'] > INLINE).sum() > 20
    for i, (l, c) in enumerate(zip(table['moveLabels'].to_pylist(), table['moveCounts'].to_pylist())):
        mine = labels[offsets[i]:offsets[i + 1]].tolist()
        assert dict(zip(mine, counts[offsets[i]:offsets[i + 1]].tolist())) == dict(zip(l, c)) and len(mine) == len(l)
        assert mine[0] == min(x for x, n in zip(l, c) if n == max(c))                # the most played one first
    assert np.allclose(rows.fixed['value'], table['wins'].to_numpy() / table['count'].to_numpy())
    evals = table['evalMean'].to_numpy()
    assert np.array_equal(rows.fixed['eval'], evals.astype(np.float32), equal_nan=True) and not np.isnan(evals).all()

@pytest.mark.parametrize('folds', [None, range(40)])
@pytest.mark.parametrize('cache', RESIDENT)
def test_every_mode_gives_the_same_batches(visits, cache, folds):
    "And all of them every row once"
    file, other = in_windows(visits, folds=folds), in_windows(visits, cache, folds=folds)
    for epoch, mirror in ((0, False), (1, True)):
        plan = file.plan(64, 3, epoch, mirror=mirror)
        assert plan == other.plan(64, 3, epoch, mirror=mirror) and len(plan.windows) > 2
        assert equal(batches(file, plan), batches(other, plan))
    seen = np.sort(np.concatenate([plan.numbers(k) for k in range(len(plan))]))
    assert np.array_equal(seen, np.arange(file.total_rows))

@pytest.mark.parametrize('cache', RESIDENT)
def test_map_style_rows_by_number(visits, cache):
    source = FileSource(visits, 3, cache=cache, device='cpu', say=lambda s: None)
    rows = rows_room.join_rows([load_rows(s) for s in find_shards(visits, 3)])
    for idx in (0, -1, slice(100, 120), [5, 700, 5], np.arange(len(source)) % 97 == 0):
        a, b = source[idx], rows[idx]
        assert a.fixed.tobytes() == b.fixed.tobytes() and all(np.array_equal(x, y) for x, y in zip(a.moves(), b.moves()))
    with pytest.raises(IndexError): source[len(source)]

@pytest.mark.parametrize('cache, workers',
                         [('file', 1), ('memory', 2),
                          pytest.param('mmap', 1, marks=pytest.mark.slow),
                          pytest.param('file', 4, marks=pytest.mark.slow),
                          pytest.param('memory', 4, marks=pytest.mark.slow)])
def test_order_is_the_same_with_workers(visits, cache, workers):
    "Also for rows that are mirrored, and from the middle"
    alone, source = in_windows(visits), in_windows(visits, cache)
    plan = alone.plan(64, 5, 2, mirror=True)
    assert equal(batches(alone, plan, start=2, prefetch=0), batches(source, plan, start=2, workers=workers))

@pytest.mark.parametrize('world', [2, 3])
def test_processes_share_every_batch(visits, world):
    "Row i of a batch, and whether it is mirrored, is with process i mod world"
    source = in_windows(visits)
    plan = source.plan(50, 1, mirror=True)
    alone, shares = batches(source, plan), [batches(source, plan, rank=r, world=world) for r in range(world)]
    for k, whole in enumerate(alone):
        for r in range(world):
            assert torch.equal(shares[r][k].record, whole.record[r::world]) and torch.equal(shares[r][k].mirror, whole.mirror[r::world])
            assert torch.equal(shares[r][k].decode().policy, whole.decode().policy[r::world])

def test_gathering_together_changes_nothing(visits, monkeypatch):
    source = in_windows(visits, 'memory')
    plan = source.plan(30, mirror=True)
    together = batches(source, plan)
    monkeypatch.setattr('maou_nb.data.batches.TOGETHER', 1)
    assert equal(together, batches(source, plan))

@pytest.fixture
def reads(monkeypatch):
    "Which shards are read, in order"
    names, real = [], rows_room.read_shard
    monkeypatch.setattr(rows_room, 'read_shard', lambda s, *args: (names.append(int(s.path.stem)), real(s, *args))[1])
    return names

def test_a_start_in_the_middle_reads_nothing_before_it(visits, reads):
    source = in_windows(visits)
    plan = source.plan(40)
    whole = batches(source, plan)
    k = plan._starts[-2] // 40 + 1                     # a batch inside the last window
    reads.clear()
    fresh = in_windows(visits)
    assert equal(whole[k:], batches(fresh, plan, start=k))
    assert sorted(reads) == sorted(plan.windows[-1])

def test_each_window_is_read_once_and_ahead(visits, reads):
    source = in_windows(visits)
    plan = source.plan(40)
    source.take(plan, 0)
    for _ in range(100):
        if len(reads) == 4: break
        time.sleep(0.05)
    assert sorted(reads) == sorted(plan.windows[0] + plan.windows[1])    # the second while the first is used
    for k in range(len(plan)): source.take(plan, k); assert len(source._open) <= 2
    assert sorted(reads) == list(range(8))

def test_nothing_is_read_before_it_is_needed(visits, monkeypatch):
    def refuse(*a): raise AssertionError('a file was touched')
    with monkeypatch.context() as m:
        m.setattr(sources, 'find_shards', refuse)
        made = [StreamingFileSource('s3://nowhere/at/all', 3), in_windows(visits), FileSource(visits, 3)]
    monkeypatch.setattr(rows_room, 'read_shard', refuse)
    for source in made[1:]:
        assert source.row_counts == tuple(150 - 7*i for i in range(8)) and source.total_rows == sum(source.row_counts)
        assert [p.name for p in source.file_paths] == [f'{i}.feather' for i in range(8)]
        assert len(source.plan(64)) == -(-source.total_rows // 64)
    with pytest.raises(AssertionError): made[1].take(made[1].plan(64), 0)

def test_windows_of_small_files_are_large_enough():
    plan = Plan(counts=(1_000,)*64 + (300_000,)*8, batch_size=1024, seed=3)
    rows = [sum(plan.counts[s] for s in w) for w in plan.windows]
    assert min(rows) >= plan.window_rows and min(map(len, plan.windows)) >= plan.window
    assert sorted(s for w in plan.windows for s in w) == list(range(72))
    assert plan.windows != Plan(plan.counts, 1024, seed=3, epoch=1).windows

def test_memory_stays_flat_when_the_shards_grow(visits, tmp_path):
    table = read_shard(find_shards(visits, 3)[0])
    def peak(n):
        folder = tmp_path/f'{n}'; folder.mkdir()
        write_manifest(folder, [write_shard(folder/f'{i:03}.feather', table, 3, 'a test', policy='visits') for i in range(n)], stage=3)
        source = in_windows(folder)
        tracemalloc.start()
        for batch in batch_loader(BatchStream(source, source.plan(64))): pass
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size
    peak(4)                                            # what is loaded once
    assert peak(64) < 1.5 * peak(8)

def test_a_mirrored_row_is_the_mirrored_position(visits):
    "Its legal moves are those that the rules library finds there, and what was played is among them"
    rows = FileSource(visits, 3)[::9]
    flags = np.arange(len(rows)) % 2 == 0
    plain, mirrored = Batch.from_rows(rows, 3).decode(), Batch.from_rows(rows, 3, flags).decode()
    assert len(Batch.from_rows(rows, 3).labels) > 100
    for i in range(len(rows)):
        board = Board(to_sfen(mirrored.board[i].numpy(), mirrored.hands[i].numpy()))
        assert np.flatnonzero(mirrored.legal[i].numpy()).tolist() == sorted(legal_labels(board).tolist())
        assert not mirrored.policy[i][~mirrored.legal[i]].any() and abs(float(mirrored.policy[i].sum()) - 1) < 1e-5
        squares, labels = (SQUARE_MIRROR, LABEL_MIRROR) if flags[i] else (slice(None), slice(None))
        assert torch.equal(mirrored.board[i][squares], plain.board[i]) and torch.equal(mirrored.policy[i][labels], plain.policy[i])
    assert torch.equal(mirrored.value, plain.value)

def test_mirrored_twice_is_not_mirrored():
    "Of records whose mirror image is written out by hand"
    random, once = np.random.default_rng(0), np.zeros(40, columns_of(3).record)
    once['board'] = random.integers(0, 29, (40, 81)); once['legal'] = random.integers(0, 256, (40, 187))
    once['n'], once['labels'], once['counts'] = 4, random.integers(0, 1496, (40, 4)), random.integers(1, 9, (40, 4))
    twice = once.copy()
    twice['board'] = once['board'][:, SQUARE_MIRROR]; twice['labels'] = LABEL_MIRROR[once['labels']]
    bits = np.unpackbits(once['legal'], axis=1, bitorder='little')
    twice['legal'] = np.packbits(bits[:, LABEL_MIRROR], axis=1, bitorder='little')
    a, b = Batch.from_rows(rows_room.Rows(once), 3).decode(), Batch.from_rows(rows_room.Rows(twice), 3, np.ones(40, bool)).decode()
    assert all(torch.equal(getattr(a, f), getattr(b, f)) for f in ('board', 'hands', 'legal', 'policy'))

@pytest.mark.parametrize('stage', [1, 2])
def test_stages_1_and_2_decode_mirrored(shards, stage):
    rows = FileSource(shards[f'stage{stage}_data_path'], stage)[::7]
    name, table = ('reachable', SQUARE_MIRROR) if stage == 1 else ('legal', LABEL_MIRROR)
    plain, mirrored = Batch.from_rows(rows, stage).decode(), Batch.from_rows(rows, stage, np.ones(len(rows), bool)).decode()
    (board, hands), (target,) = mirrored.as_tuple()
    assert torch.equal(target[:, table], getattr(plain, name))
    assert torch.equal(board[:, SQUARE_MIRROR], plain.board) and torch.equal(hands, plain.hands)

def test_half_of_the_rows_are_mirrored_anew_each_epoch():
    one, two = (np.concatenate([p.mirrored(k) for k in range(len(p))]) for p in (Plan((100_000,), 999, 7, e, mirror=True) for e in (0, 1)))
    assert 0.49 < one.mean() < 0.51 and 0.49 < (one == two).mean() < 0.51 and Plan((9,), 3).mirrored(0) is None

def test_decoding_into_used_memory_leaves_nothing_behind(visits, shards):
    "Whatever was there: other rows, more rows, another stage"
    random, dense = np.random.default_rng(0), None
    sets = [(FileSource(visits, 3), 3), (FileSource(shards['stage3_data_path'], 3), 3),
            (FileSource(shards['stage2_data_path'], 2), 2), (FileSource(shards['stage1_data_path'], 1), 1)]
    for _ in range(60):
        source, stage = sets[random.choice(4, p=[0.5, 0.3, 0.1, 0.1])]
        n = random.integers(1, 90)
        batch = Batch.from_rows(source[random.integers(0, len(source), n)], stage, random.random(n) < 0.5)
        dense, fresh = batch.decode(dense), batch.decode()
        for name in ('board', 'hands', 'reachable', 'legal', 'policy', 'value'):
            a, b = getattr(dense, name, None), getattr(fresh, name, None)
            assert (a is None and b is None) or torch.equal(a, b), name
    with torch.inference_mode(): dense = batch.decode(dense)
    assert torch.equal(batch.decode(dense).board, fresh.board)      # memory of inference mode is of no use outside it

@pytest.mark.parametrize('cache, what', [('memory', 'memory'), ('device', 'memory of cpu'), ('mmap', 'disk in')])
def test_what_cannot_fit_is_refused_with_the_figures(visits, cache, what):
    source = in_windows(visits, cache, limit=50_000)
    with pytest.raises(MemoryError,
                       match=rf"cache='{cache}' needs 0\.\d MB of {what}.* for 1,004 rows of stage 3, and 0\.1 "
                             rf"MB are free: .*cache='file' would take") as e:
        source.take(source.plan(64), 0)
    said(e)
    assert source._held is None

def test_needs_are_told_from_the_counts(visits, monkeypatch):
    monkeypatch.setattr(sources, 'read_shard', None)
    need = {c: in_windows(visits, c).memory_needed() for c in sources.CACHES}
    assert need['memory']['host'] > 1_004 * columns_of(3).record.itemsize == need['device']['device'] < need['mmap']['disk']
    assert need['file']['host'] < need['memory']['host'] and need['mmap']['host'] < 30*1_004

def test_rows_on_a_device_take_no_workers(visits):
    source = in_windows(visits, 'device')
    for kw in (dict(workers=1), dict(pin_memory=True)):
        with pytest.raises(ValueError, match='takes no workers and no pinned memory') as e:
            batch_loader(BatchStream(source, source.plan(64)), **kw)
        said(e)
    for make, match in ((lambda: in_windows(visits, 'device', device=None), "such as device='cuda'"),
                        (lambda: in_windows(visits, 'ram'), 'one of file'),
                        (lambda: FileSource(visits, 3, cache='file'), 'StreamingFileSource')):
        with pytest.raises(ValueError, match=match) as e: make()
        said(e)

def test_a_copy_is_made_once_and_said(visits, copies):
    heard = []
    for folds in (None, range(20), None):
        source = in_windows(visits, 'mmap', folds=folds, say=heard.append)
        batches(source, source.plan(64))
    assert len(heard) == 1 and '8 shards unpacked once' in heard[0] and str(copies) in heard[0] and '\n' not in heard[0]
    (copy,) = copies.iterdir()
    assert load_file(copy)['records'].shape == (1_004, columns_of(3).record.itemsize)

def test_a_source_in_use_is_sent_without_its_rows(visits):
    source = in_windows(visits)
    plan = source.plan(64)
    source.take(plan, 0)
    assert len(pickle.dumps(source)) < 20_000 and len(pickle.dumps(plan)) < 1_000
    assert pickle.loads(pickle.dumps(source)).take(plan, 3).fixed.tobytes() == source.take(plan, 3).fixed.tobytes()

EARLIER = []      # threads that a test of another file left

@pytest.fixture(autouse=True)
def earlier(): EARLIER[:] = [t for t in threading.enumerate() if t.name == 'batches-ahead']

def ahead(): return [t for t in threading.enumerate() if t.name == 'batches-ahead' and t not in EARLIER]

def test_the_thread_ends_with_its_loop(visits):
    source = in_windows(visits)
    plan = source.plan(8)
    for batch in batch_loader(BatchStream(source, plan)): break
    assert not ahead()
    left = iter(batch_loader(BatchStream(source, plan))); next(left); assert ahead()
    left.close(); assert not ahead()
    with pytest.raises(KeyboardInterrupt):
        for batch in batch_loader(BatchStream(source, plan)): raise KeyboardInterrupt
    assert not ahead()

def test_the_thread_keeps_to_its_distance(visits, monkeypatch):
    monkeypatch.setattr('maou_nb.data.batches.TOGETHER', 1)
    source, taken = in_windows(visits, 'memory'), []
    real = source.take
    source.take = lambda plan, k, *a: (taken.append(k), real(plan, k, *a))[1]
    loop = iter(batch_loader(BatchStream(source, source.plan(8)), prefetch=3))
    for n in range(20): next(loop); time.sleep(0.01); assert len(taken) <= n + 1 + 3 + 1
    loop.close()

def test_a_damaged_shard_is_raised_where_its_batch_would_be(visits, tmp_path):
    folder = tmp_path/'damaged'; folder.mkdir()
    for f in visits.iterdir(): (folder/f.name).write_bytes(f.read_bytes())
    raw = bytearray((folder/'5.feather').read_bytes()); raw[len(raw)//2] ^= 255
    (folder/'5.feather').write_bytes(raw)
    source = in_windows(folder)
    plan, seen = source.plan(30), 0
    with pytest.raises(ShardError, match='5.feather') as e:
        for batch in batch_loader(BatchStream(source, plan)): seen += len(batch)
    said(e)
    assert not ahead() and seen >= (plan._starts[next(i for i, w in enumerate(plan.windows) if 5 in w)] // 8192) * 8192

# --- windows that several processes fill
DIES = """
import os, sys
from maou_nb.data import sources
def load(*given):
    real(*given)
    if len(done) == 2: os._exit(9)
    return done.append(1) or real(*given)
real, sources.load_rows, done = sources.load_rows, load, []
source = sources.StreamingFileSource(sys.argv[1], 3)
source.read_together(sys.argv[2], 3)
source._load_window(tuple(range(8)))
"""

def same_rows(a, b):
    "Whether both have the same rows and moves, wherever further moves lie"
    names = [n for n in a.fixed.dtype.names if n != 'tail']
    alike = all(np.array_equal(a.fixed[n], b.fixed[n], equal_nan=a.fixed[n].dtype.kind == 'f') for n in names)
    return alike and all(map(np.array_equal, a.moves(), b.moves()))

def beside(path, folder, processes=2):
    "A source that shares windows in `folder`"
    source = StreamingFileSource(path, 3)
    source.read_together(folder, processes)
    return source

def test_a_window_is_filled_in_any_order(visits, tmp_path):
    files, source = tuple(range(8)), beside(visits, tmp_path)
    alone = source._load(files)
    assert len(alone.labels) > 100
    with open(source._window_file(files), 'w+b') as f:
        window = sources.SharedWindow(f.fileno(), [0, *accumulate(source.row_counts)], source.columns)
        load = lambda i, room: load_rows(source.shards[i], out=room)
        for i in (5, 2): window._put(i, load)
        assert same_rows(window.fill(load), alone) and same_rows(source._load_window(files), alone)
    assert not [*tmp_path.iterdir()]                     # all have opened it

def test_nobody_waits_for_a_process_that_died_over_a_shard(visits, tmp_path, monkeypatch):
    gone = subprocess.run([sys.executable, '-c', DIES, visits, tmp_path], capture_output=True, text=True)
    assert gone.returncode == 9, gone.stderr
    files, source, loaded = tuple(range(8)), beside(visits, tmp_path), []
    alone = source._load(files)
    monkeypatch.setattr(sources, 'load_rows', lambda shard, *given: loaded.append(1) or load_rows(shard, *given))
    assert same_rows(source._load_window(files), alone) and len(loaded) == 6       # it had done two

def test_a_process_reads_by_itself_where_nothing_can_be_shared(visits, tmp_path, monkeypatch):
    files, source = tuple(range(8)), beside(visits, tmp_path)
    alone = source._load(files)
    def full(*given): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(os, 'posix_fallocate', full)
    assert same_rows(source._load_window(files), alone)
    source.read_together(tmp_path/'gone', 2)
    assert same_rows(source._load_window(files), alone)

def test_a_damaged_shard_is_told_to_all_who_share_it(visits, tmp_path):
    path = tmp_path/'set'
    shutil.copytree(visits, path)
    bad = path/'3.feather'
    bad.write_bytes(bad.read_bytes()[:-50] + b'x'*50)
    for _ in range(2):
        with pytest.raises(ShardError, match='3.feather'): beside(path, tmp_path)._load_window(tuple(range(8)))
