"What preparation leaves out, keeps or replaces, it says; a folder and an archive go by one rule; every option is explained"
import dataclasses, gzip, inspect, io, tarfile, zipfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.ipc as ipc
import pytest
from rsshogi.core import Board

import maou_nb
from maou_nb import prepare_stage1, prepare_stage2, prepare_stage3
from maou_nb.data import prepare
from maou_nb.data.games import RecordError, Visits
from maou_nb.data.packed import write_hcpe, write_hcpe3
from maou_nb.data.position_tables import TableColumns
from maou_nb.data.prepare import prepare_rules
from maou_nb.data.records import COPIES, Filters, read_games
from maou_nb.data.shards import find_shards, read_manifest, read_shard
from maou_nb.stages.rows import prepare_stage
from samples import ONE_FILE, said

TEXTS = ONE_FILE.read_text().split('/\n')[:3]
S = Board().to_sfen()
ROWS = [dict(sfen=S, move='7g7f', eval=30, result=1)]

@pytest.fixture(scope='module')
def games(): return list(read_games(ONE_FILE))[:3]

def searched(games):
    "The same games, each ply with visits of the move played"
    out = []
    for g in games:
        g = dataclasses.replace(g) if dataclasses.is_dataclass(g) else g
        g.visits = Visits(np.ones(len(g), np.uint16), np.array(g.moves, np.uint16), np.full(len(g), 800, np.uint32))
        out.append(g)
    return out

# --- copies

def whole_of(path): path.write_text('/\n'.join(TEXTS))

@pytest.mark.parametrize('names, crew', [('abc', None), ('cba', None), ('bca', None), ('cba', 'processes')])
def test_which_copy_stays_is_no_matter_of_names(games, names, crew, tmp_path, monkeypatch):
    "A whole game before its pieces, one with a search before one without, whatever they are called and whoever reads them"
    monkeypatch.setattr(prepare, 'BYTES_PER_TASK', 1)
    monkeypatch.setattr(prepare, 'cores', lambda: 1)      # processes are this test's own choice
    whole, pieces, search = (tmp_path/'in'/f'{n}{e}' for n, e in zip(names, ('.csa', '.hcpe', '.hcpe3')))
    whole.parent.mkdir()
    whole_of(whole); write_hcpe(games, pieces); write_hcpe3(searched(games), search)
    n, plies = len(games), sum(map(len, games))
    pool = ProcessPoolExecutor(2, mp_context=get_context('spawn')) if crew else None
    made = prepare_stage3(tmp_path/'in', tmp_path/'out', policy='summed-visits' if not crew else 'visits', executor=pool)
    if pool: pool.shutdown()
    assert (made.games, made.pieces, made.positions) == (n, 0, plies)
    rows = pl.concat([pl.from_arrow(read_shard(s)) for s in find_shards(tmp_path/'out', 3)])
    if not crew: assert rows['moveCounts'].list.sum().sum() == 800*plies
    two = prepare_stage2(tmp_path/'in', tmp_path/'two')
    assert (two.games, two.pieces) == (n, 0) and dict((w, g) for w, g, _ in two.filters.removed)[COPIES[1]] == n
    assert 'the whole one stays before pieces, one with a search before others' in two.sentence()
    assert prepare_stage2(tmp_path/'in', tmp_path/'all', filters=Filters(duplicates=True)).games == 3*n

def test_lone_positions_are_no_copies_of_a_short_game(tmp_path):
    (tmp_path/'a.csa').write_text('PI\n+\n+7776FU\n%TORYO\n')
    pl.DataFrame(ROWS*9).write_ndjson(tmp_path/'b.jsonl')
    assert prepare_stage3([tmp_path/'a.csa', tmp_path/'b.jsonl'], tmp_path/'out', tables=TableColumns(results=(1, .5, 0))).games == 10

def test_pieces_alone_are_no_copies(games, tmp_path):
    for name in 'ab': write_hcpe(games, tmp_path/f'{name}.hcpe')
    made = prepare_stage3([tmp_path/'a.hcpe', tmp_path/'b.hcpe'], tmp_path/'out')
    assert made.games == 2*len(games) and 'copies' not in made.sentence()

# --- nothing left

def test_why_nothing_is_left(tmp_path):
    (tmp_path/'in').mkdir()
    for i in range(3): (tmp_path/'in'/f'{i}.csa').write_text('PI\n+\n+7775FU\n')
    for make in (prepare_stage2, prepare_stage3):
        with pytest.raises(ValueError) as e: make(tmp_path/'in', tmp_path/'out', on_bad='skip')
        assert '3 records could not be read; the first: ' in said(e) and '0.csa, line 3' in said(e)
    (tmp_path/'in'/'good.csa').write_text(TEXTS[0])
    with pytest.raises(ValueError) as e: prepare_stage3(tmp_path/'in', tmp_path/'out', on_bad='skip', filters=Filters(min_plies=999))
    assert '1 game left out: fewer than 999 plies; 3 records could not be read; the first: ' in said(e)

# --- folders of shards

def test_shards_of_another_stage_stay(tmp_path):
    makers = {1: prepare_stage1, 2: lambda f: prepare_stage2(ONE_FILE, f), 3: lambda f: prepare_stage3(ONE_FILE, f)}
    for n, make in makers.items():
        make(tmp_path/str(n))
        before = sorted((p.name, p.stat().st_mtime_ns) for p in (tmp_path/str(n)).iterdir())
        for other in set(makers) - {n}:
            with pytest.raises(ValueError) as e: makers[other](tmp_path/str(n))
            assert f'holds shards of stage {n}; another folder was expected' in said(e)
        assert sorted((p.name, p.stat().st_mtime_ns) for p in (tmp_path/str(n)).iterdir()) == before
        rows = read_manifest(tmp_path/str(n))['rows']
        again = make(tmp_path/str(n))
        assert again.replaced == rows and f'in place of an earlier set of {rows:,} rows' in repr(again)

# --- Arrow, as others write it

def by_pyarrow(table, to, stream, how):
    new, options = ipc.new_stream if stream else ipc.new_file, ipc.IpcWriteOptions(compression=how)
    with new(to, table.schema, options=options) as w: w.write_table(table)

def by_polars(table, to, stream, how):
    frame = pl.from_arrow(table)
    (frame.write_ipc_stream if stream else frame.write_ipc)(to, compression=how or 'uncompressed')

@pytest.mark.parametrize('how', [None, 'lz4', 'zstd'])
@pytest.mark.parametrize('stream', [False, True])
@pytest.mark.parametrize('by', [by_pyarrow, by_polars])
def test_arrow_of_positions_by_anyone(by, stream, how, tmp_path):
    out = io.BytesIO()
    by(pa.Table.from_pylist(ROWS*3), out, stream, how)
    (tmp_path/'p.arrow').write_bytes(out.getvalue())
    (tmp_path/'p.arrow.gz').write_bytes(gzip.compress(out.getvalue()))       # cannot seek
    with tarfile.open(tmp_path/'p.arrow.tar.gz', 'w:gz') as t: t.add(tmp_path/'p.arrow', 'p.arrow')
    for name in ('p.arrow', 'p.arrow.gz', 'p.arrow.tar.gz'):
        found = list(read_games(tmp_path/name))
        assert [(g.usi, g.evals.tolist(), g.result) for g in found] == [(['7g7f'], [30.], 1.)]*3

# --- folders and archives

def fill(put):
    "What may lie beside records, by way of `put`"
    put('a.csa', TEXTS[0]); put('deep/b.csa.gz', gzip.compress(TEXTS[1].encode())); put('game.txt', TEXTS[2])
    put('pos.jsonl', '{"sfen": "%s"}' % S); put('pos.csv', f'sfen,move\n{S},7g7f\n'); put('pos.csv.gz', gzip.compress(b'sfen\n'))
    put('pos.parquet', b'PAR1 and more'); put('old.7z', b"7z\xbc\xaf'\x1c"); put('LICENSE', 'free'); put('.hidden.csa', 'x')

def packed(path, empties=()):
    files = {}
    fill(files.__setitem__)
    files |= dict.fromkeys(empties, b'')
    data = {n: d.encode() if isinstance(d, str) else d for n, d in files.items()}
    if path.suffix == '.zip':
        with zipfile.ZipFile(path, 'w') as z:
            for n, d in data.items(): z.writestr(n, d)
    elif path.suffix:
        with tarfile.open(path, 'w') as t:
            for n, d in data.items():
                info = tarfile.TarInfo(n); info.size = len(d); t.addfile(info, io.BytesIO(d))
    else:
        for n, d in data.items():
            (path/n).parent.mkdir(parents=True, exist_ok=True); (path/n).write_bytes(d)
    return path

@pytest.mark.parametrize('name', ['folder', 'x.zip', 'x.tar'])
def test_folders_and_archives_go_by_one_rule(name, tmp_path):
    made = prepare_stage3(packed(tmp_path/name), tmp_path/'out')
    assert made.games == 2
    assert made.passed_over == {'.7z': 1, '.csv': 1, '.csv.gz': 1, '.jsonl': 1, '.parquet': 1, '.txt': 1, 'none': 1}

@pytest.mark.parametrize('name', ['folder', 'x.zip', 'x.tar'])
def test_an_empty_record_stops_or_is_skipped(name, tmp_path):
    path = packed(tmp_path/name, ['e.csa', 'f.kif'])
    with pytest.raises(RecordError) as e: prepare_stage3(path, tmp_path/'out')
    assert f'{name}/e.csa is empty' in said(e)
    made = prepare_stage3(path, tmp_path/'out', on_bad='skip')
    expected = [f'{n} is empty: a game record was expected' for n in ('e.csa', 'f.kif')]
    assert made.games == 2 and [s.split('/')[-1] for s in made.skipped] == expected

def test_where_there_are_no_records(tmp_path):
    (tmp_path/'in').mkdir()
    for name in ('a.jsonl', 'b.txt', 'c.txt'): (tmp_path/'in'/name).write_text('x')
    with zipfile.ZipFile(tmp_path/'x.zip', 'w') as z: z.writestr('a.txt', TEXTS[0])
    for path, there in ((tmp_path/'in', '1 .jsonl, 2 .txt: name them or use a glob'), (tmp_path/'x.zip', '1 .txt: unpack and name them')):
        with pytest.raises((FileNotFoundError, RecordError)) as e: list(read_games(path))
        text = said(e)
        assert there in text and 'also packed' in text and text.count('.csa') == 1 and len(text) < 400

# --- what cannot be opened

def locked():
    "A zip that says it has a password"
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w') as z: z.writestr('a.csa', TEXTS[0])
    data = bytearray(out.getvalue())
    for sign, at in ((b'PK\x03\x04', 6), (b'PK\x01\x02', 8)): data[data.index(sign) + at] |= 1
    return bytes(data)

CLOSED = {'x.7z': (b"7z\xbc\xaf'\x1c\0\4", 'is a 7z archive: unpack it first, or pack it as zip or tar'),
          'x.rar': (b'Rar!\x1a\x07\x01\0', 'is a RAR archive: unpack it first, or pack it as zip or tar'),
          'x.lzh': (b'\x1e\x8f-lh5-zzz', 'is an LZH archive: unpack it first, or pack it as zip or tar'),
          'x.zip': (locked(), 'x.zip/a.csa has a password: pack it again, without one'),
          'x.kif': ('手合割：平手\n1 ７六歩(77)\n'.encode('utf-16'), 'is UTF-16 text: UTF-8, Shift_JIS or EUC-JP was expected'),
          'x.csv': ('sfen,move\n'.encode('utf-16'), 'is UTF-16 text: UTF-8, Shift_JIS or EUC-JP was expected')}

@pytest.mark.parametrize('name', CLOSED)
def test_what_cannot_be_opened_says_what_to_do(name, tmp_path):
    data, says = CLOSED[name]
    (tmp_path/name).write_bytes(data)
    with pytest.raises(ValueError) as e: list(read_games(tmp_path/name))
    assert says in said(e) and 'ZipInfo' not in said(e)

# --- CSV

PARTS = ',', ';', '\t'

@pytest.mark.parametrize('part', PARTS)
@pytest.mark.parametrize('encoding, names', [('utf-8', ('sfen', 'move', 'eval')), ('utf-8-sig', ('sfen', 'move', 'eval')),
                                             *((e, ('局面', '指し手', '評価値')) for e in ('utf-8', 'utf-8-sig', 'cp932', 'euc_jp'))])
@pytest.mark.parametrize('n', [1, 2, 3])
def test_csv_as_people_write_it(part, encoding, names, n, tmp_path):
    row = (S, '7g7f', '30')[:n]
    (tmp_path/'x').write_bytes('\n'.join(map(part.join, (names[:n], row, row))).encode(encoding))
    found = list(read_games(tmp_path/'x'))
    assert [g.usi for g in found] == [['7g7f'][:n - 1]]*2
    if n == 3: assert [g.evals.tolist() for g in found] == [[30.]]*2

@pytest.mark.parametrize('part', PARTS)
@pytest.mark.parametrize('row', ['{sfen}', '{sfen}{part}7g7f{part}9', 'x{part}7g7f'])
def test_a_row_of_a_csv_is_named_alone(part, row, tmp_path):
    (tmp_path/'x').write_text('\n'.join([f'sfen{part}move', row.format(sfen=S, part=part)]))
    left_out = []
    assert not list(read_games(tmp_path/'x', 'skip', left_out)) and len(left_out) == 1 and 'x, line 2: ' in left_out[0]

# --- what is said

def test_the_table_adds_up(tmp_path):
    one = tmp_path/'a.csa'
    one.write_text(TEXTS[0])
    for make in (prepare_stage2, prepare_stage3):
        made = make(one, tmp_path/make.__name__)
        lines = {kind: (n, positions) for _, kind, n, positions in made.lines()}
        assert lines['remaining'][1] + lines.get('the last positions, without a move', (0, 0))[1] == made.positions
        assert not any('unknown' in kind for kind in lines)

def test_tables_is_checked_wherever_it_is_asked_for(tmp_path):
    (tmp_path/'a.csa').write_text(TEXTS[0])
    for f in (lambda: list(read_games(tmp_path/'a.csa', tables={'sfen': 'sfen'})),
              lambda: prepare_stage2(tmp_path/'a.csa', tmp_path/'out', tables='pos')):
        with pytest.raises(ValueError) as e: f()
        assert 'a TableColumns(…) was expected' in said(e)

EXPLAINED = [f for n in maou_nb.__all__ if n.startswith('prepare') for f in [getattr(maou_nb, n)]]
EXPLAINED += [prepare.prepare, prepare_rules, prepare_stage, Filters, TableColumns]

@pytest.mark.parametrize('thing', EXPLAINED, ids=lambda f: f.__name__)
def test_every_parameter_is_explained(thing):
    "With its default, once"
    lines = [l.strip() for l in thing.__doc__.splitlines()]
    for name, p in inspect.signature(thing).parameters.items():
        [line] = [l for l in lines if l.startswith((f'{name} = ', f'{name}: '))]
        assert len(line.split(': ', 1)[1]) > 10
        plain = dataclasses.is_dataclass(p.default)
        assert p.default is p.empty or f'{name} = {type(p.default).__name__ + "()" if plain else repr(p.default)}: ' in line

def test_the_values_are_named():
    for value in 'games', 'visits', 'summed-visits', 'raise', 'skip', 'centipawns', 'win-rate':
        assert repr(value) in prepare_stage3.__doc__
