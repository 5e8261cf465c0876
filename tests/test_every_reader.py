"""What holds of every reader of games, of whatever format: all that went in comes out, or a sentence says what didn't

A format that is read and is written by nobody here fails the first test, so that each new reader is held to this.
"""
import bz2, csv, gzip, io, json, lzma, random, tarfile, zipfile

import cshogi
import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import numpy as np
import pytest
from rsshogi.core import Board
from rsshogi.record import Record

from maou_nb.data.files import FileError
from maou_nb.data.games import TEXT_FORMATS, read_text
from maou_nb.data.packed import PACKED_FORMATS
from maou_nb.data.position_tables import TABLE_FORMATS
from maou_nb.data.records import RECORD_SUFFIXES, TABLE_SUFFIXES, read_games
from samples import ONE_FILE
from test_formats import by_cshogi, hcpe, psv
from test_packed import feather, hcpe3_by_hand, table

N = 4                                       # games
LINES = ONE_FILE.read_text().split('/\n')[:N]
RECORDS = [Record.from_csa_str(text) for text in LINES]

def positions(start, moves):
    "(position, move in USI) of each ply: what a game of any format and a row of a table have in common"
    board, out = Board(f'{start} 1'), []
    for usi in moves:
        out.append((' '.join(board.to_sfen().split()[:3]), usi))
        board.apply_usi(usi)
    return out

WHOLE = [positions(r.init_position_sfen.rsplit(' ', 1)[0], [m.move.to_usi() for m in r.moves]) for r in RECORDS]
PLIES = [ply for game in WHOLE for ply in game]

def packed(dtype, fill):
    "A record a ply, of the games that are meant"
    size = dtype.itemsize
    data = by_cshogi(dtype, fill)[:len(PLIES)*size]
    return [data[i:i + size] for i in range(0, len(data), size)]

def rows(): return [dict(sfen=f'{sfen} 1', bestmove=move, result=1) for sfen, move in PLIES]
def csv_lines():
    out = io.StringIO()
    w = csv.DictWriter(out, ['sfen', 'bestmove', 'result'])
    w.writeheader(); w.writerows(rows())
    return [line.encode() for line in out.getvalue().splitlines(keepends=True)]
def arrow():
    out, made = io.BytesIO(), pa.Table.from_pylist(rows())
    with ipc.new_file(out, made.schema) as w: w.write_table(made)
    return out.getvalue()
def parquet():
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows()), out)
    return out.getvalue()
def read_here(): return list(read_text(io.BufferedReader(ONE_FILE.open('rb')), 'csa', 'x'))[:N]
def old_table():
    games = read_here()
    return feather(table(np.frombuffer(b''.join(packed(cshogi.HuffmanCodedPosAndEval, hcpe)), cshogi.HuffmanCodedPosAndEval), games))

# pieces that may follow each other in a file, in order; one piece where a file is one document
WRITERS = {'csa': lambda: [f'{t}/\n'.encode() for t in LINES],
           'kif': lambda: [f'{r.to_kif()}\n'.encode() for r in RECORDS],
           'ki2': lambda: [f'{r.to_ki2()}\n'.encode() for r in RECORDS],
           'usi': lambda: [f'{r.to_usi_position()}\n'.encode() for r in RECORDS],
           'jkf': lambda: [f'{json.dumps(json.loads(r.to_jkf()), ensure_ascii=False)}\n'.encode() for r in RECORDS],
           'hcpe': lambda: packed(cshogi.HuffmanCodedPosAndEval, hcpe), 'psv': lambda: packed(cshogi.PackedSfenValue, psv),
           'hcpe3': lambda: [hcpe3_by_hand(g)[0] for g in read_here()],
           'hcpe_table': lambda: [old_table()],
           'jsonl': lambda: [f'{json.dumps(row)}\n'.encode() for row in rows()], 'csv': csv_lines,
           'parquet': lambda: [parquet()], 'arrow': lambda: [arrow()]}
NAMES = {f: f'x{suffixes[0]}' for f, suffixes in (RECORD_SUFFIXES | TABLE_SUFFIXES).items()} | {'arrow': 'x.arrow'}

MADE = {format: write() for format, write in WRITERS.items()}

def found(path):
    "(plies of all games, sentences on what is none) of a file"
    plies, said = [], []
    try:
        for game in read_games(path, 'skip', said): plies += positions(game.start, game.usi)
    except FileError as e: said.append(str(e))
    assert all('\n' not in s and path.name in s for s in said), said
    return plies, said

def put(folder, format, data):
    "A file of `data` with the usual name of `format`"
    path = folder/NAMES[format]
    path.write_bytes(data)
    return path

def plies_of(format, n):
    "How many plies the first `n` pieces hold"
    if len(MADE[format]) == 1: return n*len(PLIES)
    if len(MADE[format]) == N: return sum(map(len, WHOLE[:n]))
    return n - (format == 'csv' and n > 0)

every = pytest.mark.parametrize('format', WRITERS)

def test_every_format_is_here():
    assert set(WRITERS) == {*RECORD_SUFFIXES, *TEXT_FORMATS, *TABLE_FORMATS, *PACKED_FORMATS, *TABLE_SUFFIXES}

@every
def test_all_that_went_in_comes_out(format, tmp_path):
    assert found(put(tmp_path, format, b''.join(MADE[format]))) == (PLIES, [])

@every
def test_files_put_end_to_end_are_all_there_or_named(format, tmp_path):
    data = b''.join(MADE[format])
    plies, said = found(put(tmp_path, format, data*2))
    assert plies == PLIES*2 or said and plies == PLIES[:len(plies)]

PACK = {'.gz': gzip.compress, '.bz2': bz2.compress, '.xz': lzma.compress, '.zst': lambda d: bytes(pa.compress(d, 'zstd', asbytes=True))}

def archived(kind, name, data):
    "An archive of that one file"
    out, info = io.BytesIO(), tarfile.TarInfo(name)
    if kind == '.zip':
        with zipfile.ZipFile(out, 'w', zipfile.ZIP_DEFLATED) as z: z.writestr(name, data)
    else:
        info.size = len(data)
        with tarfile.open(fileobj=out, mode='w:' + kind.removeprefix('.tar').removeprefix('.')) as t: t.addfile(info, io.BytesIO(data))
    return out.getvalue()

@every
@pytest.mark.parametrize('ending', [*PACK, '.zip', '.tar', '.tar.gz', '.tar.xz'])
def test_packed_it_is_the_same(format, ending, tmp_path):
    data, path = b''.join(MADE[format]), tmp_path/f'{NAMES[format]}{ending}'
    path.write_bytes(PACK[ending](data) if ending in PACK else archived(ending, NAMES[format], data))
    assert found(path) == (PLIES, [])

@every
def test_a_cut_file_keeps_what_is_whole(format, tmp_path):
    "Games before the cut are all there; what is lost of one that was cut through is at its end, and packed data say so"
    made, rng = MADE[format], random.Random(format)
    data = b''.join(made)
    ends = np.cumsum([len(piece) for piece in made]).tolist()
    for at in sorted(rng.sample(range(1, len(data)), 40)):
        plies, said = found(put(tmp_path, format, data[:at]))
        whole = sum(end <= at for end in ends)
        assert plies == PLIES[:len(plies)] and len(plies) >= plies_of(format, whole), (at, said)
        binary = format in PACKED_FORMATS or len(made) == 1
        assert said or not binary or at in ends, at

@every
def test_a_piece_less_is_its_own_loss(format, tmp_path):
    made, rng = MADE[format], random.Random(format)
    if len(made) == 1: pytest.skip('a document')
    for _ in range(10):
        k = rng.randrange(format == 'csv', len(made))
        plies, said = found(put(tmp_path, format, b''.join(made[:k] + made[k + 1:])))
        assert plies == PLIES[:plies_of(format, k)] + PLIES[plies_of(format, k + 1):] and not said

@every
def test_a_spoiled_piece_is_named_and_costs_itself_alone(format, tmp_path):
    "Random bytes in place of it"
    made, rng = MADE[format], random.Random(format)
    for _ in range(10):
        k = rng.randrange(format == 'csv', len(made))
        noise = bytes(rng.choice(b'\x80\xff#?@{') for _ in range(len(made[k]) - 1)) + b'\n'
        plies, said = found(put(tmp_path, format, b''.join([*made[:k], noise, *made[k + 1:]])))
        assert said and plies == [p for p in plies if p in PLIES], k
