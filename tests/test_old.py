"The old tool's tables and arrays: our rows in their layout and back, cshogi's planes, and files that are wrong in every way"
import random, re, subprocess, sys

import cshogi
import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import polars as pl
import pytest

from maou_nb.data import old
from maou_nb.data.board import to_sfen
from maou_nb.data.labels import LABEL_COUNT
from maou_nb.data.old import OLD_LAYOUTS, from_planes, old_file, old_kind, read_old, to_planes, write_old
from maou_nb.data.columns import columns_of
from maou_nb.data.shards import ShardError, find_shards, read_shard
from samples import said

NPY = ['npy-plain', 'npy-newer', 'npy-packed']

@pytest.fixture(scope='module')
def ours(shards):
    "Our own rows of each stage"
    return {n: pa.concat_tables(read_shard(s) for s in find_shards(shards[f'stage{n}_data_path'], n)).combine_chunks() for n in (1, 2, 3)}

@pytest.fixture
def few(ours): return ours[3].slice(0, 40)

def array(column, width): return column.combine_chunks().flatten().to_numpy().reshape(-1, width)

def shares(table, what='moveCounts'):
    "A policy column divided by its sum, flat, and the sums"
    counts = table[what].combine_chunks()
    row = np.repeat(np.arange(len(table)), counts.value_lengths())
    flat = counts.flatten().to_numpy()
    return flat / np.bincount(row, table['moveCounts'].combine_chunks().flatten(), len(table))[row], row

# ---- there and back

@pytest.mark.parametrize('stage', [1, 2])
def test_stages_1_and_2_come_back_equal(ours, tmp_path, stage):
    assert write_old(ours[stage], tmp_path/'x.bin', stage) == len(ours[stage])
    back = pa.concat_tables(read_old(tmp_path/'x.bin', rows=1000))
    assert back.schema == pa.schema([f for f in columns_of(stage).schema if f.name not in ('fold', 'game', 'ply')])
    assert back.combine_chunks() == ours[stage].select(back.schema.names).cast(back.schema)

@pytest.fixture
def kind(request, monkeypatch):
    "A layout of stage 3; `streamed`: a feather file whose record batches are all taken for large ones"
    if request.param == 'streamed': monkeypatch.setattr(old, 'LARGE_BATCH', 0)
    return 'feather' if request.param == 'streamed' else request.param

KINDS = pytest.mark.parametrize('kind', ['feather', 'streamed', *NPY], indirect=True)

@KINDS
def test_stage_3_comes_back_equal(ours, tmp_path, kind):
    rows = ours[3]
    assert len(rows) > 4096 and write_old((rows.slice(i, 700) for i in range(0, len(rows), 700)), tmp_path/'x', 3, kind) == len(rows)
    found = old_file(tmp_path/'x')
    assert (found.kind, found.stage, found.rows) == ('stage3' if kind == 'feather' else kind, 3, len(rows))
    blocks = list(read_old(tmp_path/'x', rows=999))
    assert [len(b) for b in blocks] == [999]*(len(rows)//999) + [len(rows) % 999]
    back = pa.concat_tables(blocks)
    for name in ('id', 'boardIdPositions', 'piecesInHand', 'legalMoves', 'moveLabels'):
        assert back[name].combine_chunks() == rows[name].combine_chunks(), name
    close = dict(rtol=0, atol=2**-22) if kind == 'feather' else dict(rtol=2**-10, atol=2**-24)
    np.testing.assert_allclose(shares(back)[0], shares(rows)[0], **close)
    value = rows['wins'].to_numpy()/rows['count'].to_numpy()
    np.testing.assert_allclose(back['wins'].to_numpy()/back['count'].to_numpy(), value, **close)
    rate = lambda t: t['moveWins'].combine_chunks().flatten().to_numpy()/t['moveCounts'].combine_chunks().flatten().to_numpy()
    np.testing.assert_allclose(rate(back), rate(rows) if kind == 'feather' else value[shares(rows)[1]], **close)
    assert back['evalMean'].null_count == len(back) and set(back['count'].to_pylist()) == {1}

def test_layout_on_disk(ours, tmp_path):
    "The columns, types and bits that `old_formats.md` prescribes, told without our own constants"
    row = ours[3].slice(7, 1)
    write_old(row, tmp_path/'f', 3)
    with pa.memory_map(str(tmp_path/'f')) as f: table = ipc.open_file(f).read_all()
    types = {f.name: str(f.type) for f in table.schema}
    assert types == {'id': 'uint64', 'boardIdPositions': 'list<item: list<item: uint8>>',
                     'piecesInHand': 'list<item: uint8>', 'moveLabel': 'list<item: float>',
                     'moveWinRate': 'list<item: float>', 'bestMoveWinRate': 'float', 'resultValue': 'float'}
    told, was = table.to_pylist()[0], row.to_pylist()[0]
    assert sum(told['boardIdPositions'], []) == was['boardIdPositions']
    assert len(told['moveLabel']) == 1496 and abs(sum(told['moveLabel']) - 1) < 1e-6
    assert np.flatnonzero(told['moveLabel']).tolist() == was['moveLabels'] and told['bestMoveWinRate'] == max(told['moveWinRate'])
    for kind in NPY: write_old(row, tmp_path/kind, 3, kind)
    plain, newer, packed = (np.load(tmp_path/k, allow_pickle=False) for k in NPY)
    assert plain['features'].shape == (1, 104, 9, 9) and plain['moveLabel'].dtype == np.float16
    assert packed['features_packed'].shape == (1, 1053) and packed['legalMoveMask_packed'].shape == (1, 187)
    assert (np.packbits(plain['features'].reshape(1, -1), axis=1) == packed['features_packed']).all()
    bits = np.unpackbits(np.frombuffer(was['legalMoves'], np.uint8), bitorder='little')
    assert (plain['legalMoveMask'][0] == bits).all() and (np.unpackbits(packed['legalMoveMask_packed'][0]) == bits).all()
    assert newer['boardIdPositions'].shape == (1, 9, 9) and newer['piecesInHand'].tolist()[0] == was['piecesInHand']

def test_stage_1_ids(ours, tmp_path):
    write_old(ours[1], tmp_path/'x', 1)
    with pa.memory_map(str(tmp_path/'x')) as f: rows = ipc.open_file(f).read_all().to_pylist()
    for r in rows:
        placed = [(code, y, x) for y, line in enumerate(r['boardIdPositions']) for x, code in enumerate(line) if code]
        assert r['id'] == (placed[0][0]*100 + placed[0][1]*10 + placed[0][2] if placed else 10_000 + r['piecesInHand'].index(1))
    assert len({r['id'] for r in rows}) == 1105

@pytest.mark.parametrize('cast', [pl.List(pl.Float32), pl.Array(pl.Float32, LABEL_COUNT), pl.List(pl.Float64)])
def test_polars_lists_of_every_sort(few, tmp_path, cast):
    "As Polars writes them: large lists, arrays; win rates left out, rows in several batches"
    write_old(few, tmp_path/'a', 3)
    table = pl.read_ipc(tmp_path/'a').drop('moveWinRate', 'bestMoveWinRate')
    table = table.with_columns(pl.col('moveLabel').cast(cast), pl.lit(None).alias('partitioningKey'))
    table.write_ipc(tmp_path/'b', compression='lz4', compat_level=pl.CompatLevel.oldest())
    a, b = next(read_old(tmp_path/'a')), next(read_old(tmp_path/'b'))
    assert a.drop_columns('moveWins') == b.drop_columns('moveWins')
    wins = b['moveWins'].combine_chunks().flatten().to_numpy() / b['moveCounts'].combine_chunks().flatten().to_numpy()
    np.testing.assert_allclose(wins, b['wins'].to_numpy()[shares(b)[1]], rtol=1e-6)

@pytest.mark.parametrize('compression', ['lz4', 'zstd', 'uncompressed'])
@pytest.mark.parametrize('cast', [pl.List(pl.Float32), pl.Array(pl.Float32, LABEL_COUNT)])
def test_large_batches_are_unpacked_bit_by_bit(ours, tmp_path, monkeypatch, compression, cast):
    "One record batch as Polars writes it, other columns in between: the same rows without Arrow reading one whole column"
    write_old(ours[3].slice(0, 2500), tmp_path/'a', 3)
    others = (pl.col('id').is_null().alias('bits'), pl.lit(None).alias('none'),
              pl.col('id').cast(pl.String).alias('text'), pl.col('piecesInHand').alias('lists'))
    table = feather(tmp_path/'a').select(*others, pl.all()).with_columns(pl.col('moveLabel').cast(cast)).rechunk()
    table.write_ipc(tmp_path/'b', compression=compression, compat_level=pl.CompatLevel.oldest(), record_batch_size=10_000)
    expected = pa.concat_tables(read_old(tmp_path/'a'))
    monkeypatch.setattr(old, 'LARGE_BATCH', 0); monkeypatch.setattr(old, '_dense', None)
    assert pa.concat_tables(read_old(tmp_path/'b')) == expected

def test_large_batches_with_bad_lists_are_left_to_arrow(few, tmp_path, monkeypatch):
    monkeypatch.setattr(old, 'LARGE_BATCH', 0)
    for cell in (None, [0.]*1495, [0.]*1495 + [None]):
        path, skipped = spoilt(few, tmp_path, 'stage3', 'moveLabel', 5, lambda c: cell), []
        assert len(next(read_old(path, on_bad='skip', on_skip=skipped.append))) == len(few) - 1
        assert len(skipped) == 1 and 'row 6 of 40: its moveLabel is not 1496 numbers' in skipped[0]

def test_half_floats_and_nan_win_rates(few, tmp_path):
    write_old(few, tmp_path/'a', 3)
    with pa.memory_map(str(tmp_path/'a')) as f: table = ipc.open_file(f).read_all().combine_chunks()
    half = lambda n: pa.ListArray.from_arrays(table[n].chunk(0).offsets,
                                              pa.array(table[n].chunk(0).flatten().to_numpy().astype(np.float16)))
    nan = pa.ListArray.from_arrays(table['moveWinRate'].chunk(0).offsets, pa.array(np.full(len(few)*LABEL_COUNT, np.nan, np.float32)))
    table = table.set_column(3, 'moveLabel', half('moveLabel')).set_column(4, 'moveWinRate', nan)
    with ipc.new_file(str(tmp_path/'b'), table.schema) as w: w.write_table(table, max_chunksize=7)
    back = pa.concat_tables(read_old(tmp_path/'b'))
    np.testing.assert_allclose(shares(back)[0], shares(few)[0], rtol=2**-10)
    np.testing.assert_allclose(shares(back, 'moveWins')[0] / shares(back)[0], back['wins'].to_numpy()[shares(back)[1]], rtol=1e-6)

def test_by_url(few, tmp_path, monkeypatch):
    monkeypatch.setenv('MAOU_NB_CACHE', str(tmp_path/'cache'))
    write_old(few, 'memory://old/x.npy', 3, 'npy-packed'); write_old(few, tmp_path/'x.npy', 3, 'npy-packed')
    assert old_file('memory://old/x.npy').rows == len(few)
    assert next(read_old('memory://old/x.npy')) == next(read_old(tmp_path/'x.npy'))

def test_stand_where_shards_stand(ours, tmp_path):
    "Both sorts of files in a folder, found by content, read whole"
    write_old(ours[3].slice(0, 30), tmp_path/'in'/'transformed_chunk0000.feather', 3)
    write_old(ours[3].slice(30, 20), tmp_path/'in'/'b.npy', 3, 'npy-plain')
    found = find_shards(tmp_path/'in', 3)
    assert [(s.path.name, s.stage, s.rows) for s in found] == [('b.npy', 3, 20), ('transformed_chunk0000.feather', 3, 30)]
    assert [read_shard(s)['id'].to_pylist() for s in found] == [ours[3]['id'].to_pylist()[30:50], ours[3]['id'].to_pylist()[:30]]
    with pytest.raises(ShardError) as e: find_shards(tmp_path/'in', 2)
    assert 'holds rows of stage 3' in said(e)

# ---- the oracle

def seen_by_white(sfen):
    "The same view with White to move: the board turned, colours swapped"
    place, _, hands, ply = sfen.split()
    ranks = '/'.join(''.join(reversed(re.findall(r'\+?.', rank))) for rank in reversed(place.split('/')))
    return f'{ranks.swapcase()} w {hands.swapcase()} {ply}'

def cshogi_planes(sfen, name):
    "cshogi's piece planes of `sfen`, and hand planes by its counts"
    board, planes, at = cshogi.Board(sfen), np.zeros((104, 9, 9), np.float32), 28
    getattr(board, name)(planes)
    own, other = board.pieces_in_hand[::-1] if board.turn else board.pieces_in_hand
    for n, most in zip([*own, *other], [18, 4, 4, 4, 4, 2, 2]*2):
        planes[at:at + n] = 1; at += most
    assert at == 104
    return planes

def test_planes_are_cshogis(ours):
    rows = ours[3].slice(0, 1500)
    boards, hands = array(rows['boardIdPositions'], 81), array(rows['piecesInHand'], 14)
    planes = to_planes(boards, hands)
    assert hands.any(0).sum() >= 10 and set(np.unique(boards)) >= set(range(1, 9)) | set(range(15, 23))
    for board, held, mine in zip(boards, hands, planes):
        sfen = to_sfen(board, held)
        assert (cshogi_planes(sfen, 'piece_planes') == mine).all(), sfen
        assert (cshogi_planes(seen_by_white(sfen), 'piece_planes_rotate') == mine).all(), sfen
    back, held, right = from_planes(planes)
    assert (back == boards).all() and (held == hands).all() and right.all()

# ---- what is wrong with a row

def feather(path): return pl.read_ipc(path)

def spoilt(few, folder, kind, column, row, change):
    "A file of `few` whose `column` was changed in `row`"
    path = folder/'bad'
    write_old(few, path, 3 if column != 'reachableSquares' and column != 'legalMovesLabel' else int(kind[-1]),
              'feather' if kind.startswith('stage') else kind)
    if kind.startswith('stage'):
        table = feather(path)
        cells = table[column].to_list(); cells[row] = change(cells[row])
        table.with_columns(pl.Series(column, cells, dtype=table[column].dtype)).write_ipc(path, compression='lz4')
    else:
        rows = np.load(path); rows[column][row] = change(rows[column][row].copy())
        with open(path, 'wb') as f: np.save(f, rows)
    return path

def put(at, value):
    "A change of one cell of a row"
    def change(cell):
        inside = cell
        for i in at[:-1]: inside = inside[i]
        inside[at[-1]] = value
        return cell
    return change

WRONG = [
    ('stage3', 'moveLabel', lambda c: [x/2 for x in c], 'its moveLabel sums to 0.5, and shares sum to 1'),
    ('stage3', 'moveLabel', put([1495], float('nan')), 'its moveLabel has nan at label 1495, and a share is 0 or more'),
    ('stage3', 'moveLabel', lambda c: [0.]*800 + [1.] + [0.]*695,
     'its moveLabel gives a share to label 800, which is no legal move of its position'),
    ('stage3', 'moveLabel', lambda c: [-1., 2.] + [0.]*1494, 'its moveLabel has -1.0 at label 0'),
    ('stage3', 'moveLabel', lambda c: c[1:], 'its moveLabel is not 1496 numbers'),
    ('stage3', 'moveLabel', lambda c: None, 'its moveLabel is not 1496 numbers'),
    ('stage3', 'moveLabel', put([3], None), 'its moveLabel is not 1496 numbers'),
    ('stage3', 'moveWinRate', lambda c: [1.5 if x else 0. for x in c] if any(c) else [-1.]*1496, 'its moveWinRate is '),
    ('stage3', 'resultValue', lambda c: 1.25, 'its resultValue is 1.25, and a win rate is from 0 to 1'),
    ('stage3', 'resultValue', lambda c: None, 'its resultValue is not a number'),
    ('stage3', 'boardIdPositions', put([0, 0], 29), 'its board has the piece code 29'),
    ('stage3', 'boardIdPositions', lambda c: c[:8], 'its boardIdPositions is not 9 × 9 numbers'),
    ('stage3', 'boardIdPositions', put([4], [0]*8), 'its boardIdPositions is not 9 × 9 numbers'),
    ('stage3', 'boardIdPositions', lambda c: [[0]*9]*9, 'cannot be: two kings'),
    ('stage3', 'piecesInHand', lambda c: [0, 5] + [0]*12, 'hold more than there are of a piece'),
    ('stage3', 'piecesInHand', lambda c: [18] + [0]*13, 'of P L N S G B R K, and'),
    ('npy-plain', 'features', put([27, 4, 4], 1), 'its 104 planes show no position'),
    ('npy-plain', 'features', put([28 + 17, 0, 0], 1), 'its 104 planes show no position'),
    ('npy-plain', 'features', put([0, 0, 0], 2), 'its 104 planes show no position'),
    ('npy-plain', 'legalMoveMask', lambda c: 1 - c, 'its legal moves are not those of its position, label 0 for one'),
    ('npy-plain', 'resultValue', lambda c: np.inf, 'its resultValue is inf'),
    ('npy-newer', 'moveLabel', lambda c: c*0, 'its moveLabel sums to 0, and shares sum to 1'),
    ('npy-newer', 'boardIdPositions', put([8, 8], 200), 'its board has the piece code 200'),
    ('npy-packed', 'features_packed', lambda c: c ^ 1, 'its 104 planes show no position'),
    ('npy-packed', 'legalMoveMask_packed', put([186], 255), 'its legal moves are not those of its position'),
    ('stage2', 'legalMovesLabel', put([0], 7), 'its legal moves are not those of its position, label 0 for one'),
    ('stage1', 'reachableSquares', put([0, 0], 9), 'its reachableSquares have a 9, and they are 0 or 1'),
]

@pytest.mark.parametrize('kind, column, change, says', WRONG)
def test_a_wrong_row_is_named_or_skipped(ours, tmp_path, kind, column, change, says):
    few = ours[int(kind[-1]) if kind.startswith('stage') else 3].slice(0, 12)
    path = spoilt(few, tmp_path, kind, column, 10, change)
    with pytest.raises(ShardError) as e: list(read_old(path))
    assert said(e).startswith(f'{path}, row 11 of 12: ') and says in said(e)
    skipped = []
    kept = pa.concat_tables(read_old(path, on_bad='skip', on_skip=skipped.append))
    assert skipped == [said(e)] and kept['id'].to_pylist() == [id for i, id in enumerate(few['id'].to_pylist()) if i != 10]

def test_row_numbers_go_on_through_parts_and_batches(ours, tmp_path):
    "Bad rows far apart, one of them alone in its kind of badness, in a file of several parts"
    write_old(ours[3], tmp_path/'a', 3, 'npy-newer')
    rows = np.load(tmp_path/'a'); bad = [0, 2047, 2048, 4300]
    rows['resultValue'][bad[:3]] = 2; rows['boardIdPositions'][bad[3]] = 0
    with open(tmp_path/'a', 'wb') as f: np.save(f, rows)
    skipped = []
    kept = pa.concat_tables(read_old(tmp_path/'a', on_bad='skip', on_skip=skipped.append))
    assert [s.split(':')[0].split(', ')[1] for s in skipped] == [f'row {b + 1:,} of {len(rows):,}' for b in bad]
    good = np.delete(np.arange(len(rows)), bad)
    assert kept['moveLabels'].combine_chunks() == ours[3]['moveLabels'].combine_chunks().take(pa.array(good))

def test_all_rows_bad(few, tmp_path):
    write_old(few, tmp_path/'a', 3, 'npy-newer')
    rows = np.load(tmp_path/'a'); rows['resultValue'] = -1
    with open(tmp_path/'a', 'wb') as f: np.save(f, rows)
    skipped = []
    assert list(read_old(tmp_path/'a', on_bad='skip', on_skip=skipped.append)) == [] and len(skipped) == len(few)
    with pytest.raises(ValueError, match="on_bad='ignore'"): list(read_old(tmp_path/'a', on_bad='ignore'))

# ---- what is wrong with a file

def resave(path, rows):
    with open(path, 'wb') as f: np.save(f, rows, allow_pickle=True)

@pytest.mark.parametrize('make, says', [
    (lambda p, rows: p.write_bytes(b''), "is none of the old tool's files"),
    (lambda p, rows: p.write_bytes(bytes(range(256))*99), "is none of the old tool's files"),
    (lambda p, rows: p.write_bytes(b'ARROW1\0\0' + bytes(500)), 'is not a whole Arrow IPC file'),
    (lambda p, rows: p.write_bytes(b'\x93NUMPY' + bytes(range(200))), 'has no readable NumPy header'),
    (lambda p, rows: resave(p, rows.astype(object)), 'holds pickled Python objects, which could run code'),
    (lambda p, rows: resave(p, np.zeros(3, [('id', 'u8'), ('moveLabel', 'O')])), 'holds pickled Python objects'),
    (lambda p, rows: resave(p, rows.reshape(4, 10)), 'is an array of shape (4, 10)'),
    (lambda p, rows: resave(p, np.zeros(9)), "is none of the old tool's files"),
    (lambda p, rows: resave(p, rows.astype([(n, d.base if n != 'moveLabel' else 'i4', d.shape)
                                            for n, (d, *_) in rows.dtype.fields.items()])),
     'has a column moveLabel of'),
    (lambda p, rows: resave(p, rows[['id', 'boardIdPositions']]), "is none of the old tool's files"),
    (lambda p, rows: p.write_bytes(p.read_bytes()[:-1]), 'it is cut off or damaged'),
    (lambda p, rows: p.write_bytes(p.read_bytes()*2), 'it is cut off or damaged'),
    (lambda p, rows: pl.DataFrame({'a': [1]}).write_ipc(p), "is none of the old tool's files"),
])
def test_a_wrong_file_is_one_sentence(few, tmp_path, make, says):
    path = tmp_path/'x'
    write_old(few, path, 3, 'npy-newer')
    make(path, np.load(path))
    with pytest.raises(ShardError) as e: list(read_old(path, on_bad='skip'))
    assert str(path) in said(e) and says in said(e)

@pytest.mark.parametrize('share', [0.02, 0.3, 0.6, 0.97, 0.9999])
@pytest.mark.parametrize('kind', ['feather', 'npy-packed'])
def test_cut_off_anywhere(few, tmp_path, kind, share):
    write_old(few, tmp_path/'x', 3, kind)
    data = (tmp_path/'x').read_bytes()
    (tmp_path/'x').write_bytes(data[:int(len(data)*share)])
    with pytest.raises(ShardError) as e: list(read_old(tmp_path/'x'))
    assert str(tmp_path/'x') in said(e)

def test_a_wrong_column_is_one_sentence(few, tmp_path):
    write_old(few, tmp_path/'a', 3)
    floats = pl.col('piecesInHand').cast(pl.List(pl.Float32))
    for column, cells in (('moveLabel', pl.lit('7g7f')), ('boardIdPositions', pl.lit(1, pl.UInt8)), ('piecesInHand', floats)):
        feather(tmp_path/'a').with_columns(cells.alias(column)).write_ipc(tmp_path/'b')
        with pytest.raises(ShardError) as e: list(read_old(tmp_path/'b'))
        assert f'{tmp_path/"b"} has a column {column} of ' in said(e) and "old tool's stage3 layout" in said(e)

def test_ours_and_hcpe_tables_are_not_theirs(shards):
    ours = find_shards(shards['stage1_data_path'], 1)[0]
    assert old_file(ours.path) is None
    assert old_kind(pa.schema([('hcp', pa.binary(32)), ('eval', pa.int16()), ('bestMove16', pa.int16()),
                               ('gameResult', pa.int8()), ('id', pa.string())])) is None
    assert all(old_kind(layout) == kind for kind, layout in OLD_LAYOUTS.items())

def test_written_wrongly(few, tmp_path):
    with pytest.raises(ValueError, match="kind='npy-plain' of stage 1"): write_old(few, tmp_path/'x', 1, 'npy-plain')
    with pytest.raises(ValueError, match="kind='csv' of stage 3"): write_old(few, tmp_path/'x', 3, 'csv')
    with pytest.raises(ShardError, match='legalMoves, .* is missing|moveLabels'):
        write_old(few.drop_columns(['moveLabels']), tmp_path/'x', 3)
    assert not list(tmp_path.iterdir())

# ---- mutated files

def mutations(data, n, seed):
    "`n` damaged copies of `data`: bytes flipped, set, cut out, doubled"
    draw = random.Random(seed)
    for _ in range(n):
        out = bytearray(data)
        for _ in range(draw.choice([1, 1, 2, 8])):
            # anywhere, or where headers are
            places = draw.randrange(len(out)), draw.randrange(700), len(out) - 1 - draw.randrange(1500)
            at = min(len(out) - 1, max(0, draw.choice(places)))
            how = draw.randrange(4)
            if how == 0: out[at] ^= 1 << draw.randrange(8)
            elif how == 1: out[at] = draw.choice([0, 1, 127, 128, 255])
            elif how == 2: del out[at:at + draw.choice([1, 8, 64])]
            else: out[at:at] = out[at:at + draw.choice([1, 8, 64])]
        yield bytes(out)

@KINDS
def test_mutated_files(ours, tmp_path, kind, n=60):
    "No crash, no other error, and never a position or a set of legal moves that is not right"
    few, path = ours[3].slice(0, 4), tmp_path/'x'
    write_old(few, path, 3, kind)
    known, outcomes = {r['id']: (r['boardIdPositions'], r['piecesInHand'], r['legalMoves']) for r in few.to_pylist()}, [0, 0]
    for data in mutations(path.read_bytes(), n, kind):
        path.write_bytes(data)
        try: rows = [r for t in read_old(path, on_bad='skip') for r in t.to_pylist()]
        except ShardError as e:
            assert '\n' not in str(e) and str(path) in str(e)
            outcomes[1] += 1; continue
        outcomes[0] += 1
        for r in rows:
            legal = np.unpackbits(np.frombuffer(r['legalMoves'], np.uint8), bitorder='little')
            assert legal[r['moveLabels']].all() and 0 <= r['wins'] <= 1 and abs(sum(r['moveCounts'])/2**24 - 1) < 2e-3
            if kind in ('npy-plain', 'npy-packed'): assert known.get(r['id']) == (r['boardIdPositions'], r['piecesInHand'], r['legalMoves'])
    assert min(outcomes) > 0

@pytest.mark.slow
@KINDS
def test_many_mutated_files(ours, tmp_path, kind): test_mutated_files(ours, tmp_path, kind, 2_000)

# ---- memory

PEAK = """
import sys
from maou_nb.data.old import read_old
rows = sum(len(t) for t in read_old(sys.argv[1], rows=2048))
print(rows, *(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))
"""

ONE_BATCH = """
import sys
import polars as pl
pl.read_ipc(sys.argv[1]).rechunk().write_ipc(sys.argv[1] + '1', compression='lz4', record_batch_size=1_000_000)
import os; os.replace(sys.argv[1] + '1', sys.argv[1])
"""

@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='the peak is asked of /proc')
@pytest.mark.parametrize('kind', ['feather', 'one batch', 'npy-plain'])
def test_memory_stays_flat(ours, tmp_path, kind):
    "Reading 2.5 times the rows, or twice a single large record batch, takes no more memory"
    rows, peaks = ours[3].slice(0, 2048), []
    for times in (2, 5) if kind != 'one batch' else (6, 12):
        write_old((rows for _ in range(times)), tmp_path/'x', 3, 'feather' if kind == 'one batch' else kind)
        if kind == 'one batch': subprocess.run([sys.executable, '-c', ONE_BATCH, str(tmp_path/'x')], check=True)
        out = subprocess.run([sys.executable, '-c', PEAK, str(tmp_path/'x')], capture_output=True, text=True, check=True).stdout.split()
        assert int(out[0]) == 2048*times
        peaks.append(int(out[1])/1024)
    print(f'peak {peaks[0]:.0f} MB, {kind}, of the larger file {peaks[1]:.0f} MB')
    assert peaks[1] < peaks[0] + 40      # dense, the added rows are 75 MB or, in one batch, 150 MB
