"""HCPE, PSV and HCPE3 that other programs wrote give the games that their CSA files give; what is damaged gives sentences

cshogi writes HCPE and PSV here, HCPE3 is laid out by hand. Damaged files are read in a process of their own,
because what is feared is that the rules library takes the process down.
"""
import gzip, io, random, struct, subprocess, sys
from pathlib import Path

import cshogi
import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import pytest
from cshogi import CSA
from rsshogi.core import Board, Move

sys.path.insert(0, str(Path(__file__).parent))
from maou_nb.data.files import open_files
from maou_nb.data.games import MATE, Game, RecordError, game_of, read_text
from maou_nb.data.packed import HCPE, PSV, packed_format, read_hcpe_table, read_packed, write_hcpe, write_hcpe3, write_psv
from samples import GAMES

def csa_games(n=2):
    "The games of `n` sample files as we read their CSA"
    out = []
    for path in sorted(GAMES.glob('*.csa'))[:n]:
        with open(path, 'rb') as f: out += read_text(f, 'csa', str(path))
    return out

def cshogi_records(n=2):
    "The same games as HCPE and PSV that cshogi packed, an eval that is missing being 0, and a board for each game's start"
    hcpe, psv = [], []
    for path in sorted(GAMES.glob('*.csa'))[:n]:
        for game in CSA.Parser.parse_file(str(path)):
            board = cshogi.Board(game.sfen)
            a, b = np.zeros(len(game.moves), cshogi.HuffmanCodedPosAndEval), np.zeros(len(game.moves), cshogi.PackedSfenValue)
            for i, (move, score) in enumerate(zip(game.moves, game.scores or [0]*len(game.moves))):
                white = board.turn == cshogi.WHITE
                eval = max(-32767, min(32767, -(score or 0) if white else score or 0))
                board.to_hcp(a[i]['hcp']); board.to_psfen(b[i]['sfen'])
                a[i]['eval'], a[i]['bestMove16'], a[i]['gameResult'] = eval, cshogi.move16(move), game.win
                b[i]['score'], b[i]['move'], b[i]['gamePly'] = eval, cshogi.move16_to_psv(cshogi.move16(move)), i + 1
                b[i]['game_result'] = {0: 0, 1: 1, 2: -1}[game.win] * (-1 if white else 1)
                board.push(move)
            hcpe.append(a); psv.append(b)
    return np.concatenate(hcpe), np.concatenate(psv)

def read(data, format, file='x'): return list(read_packed(io.BufferedReader(io.BytesIO(bytes(data))), format, file))

@pytest.fixture(scope='module')
def games(): return csa_games()

@pytest.fixture(scope='module')
def packed(): return dict(zip(('hcpe', 'psv'), cshogi_records()))

def assert_same(again, games):
    assert ([(g.key, g.fold, g.start, g.result, g.moves.tolist()) for g in again]
            == [(g.key, g.fold, g.start, g.result, g.moves.tolist()) for g in games])
    for g, h in zip(again, games): np.testing.assert_array_equal(g.evals, np.clip(np.nan_to_num(h.evals), -MATE, MATE))

@pytest.mark.parametrize('format', ['hcpe', 'psv'])
def test_what_cshogi_packed(packed, games, format):
    assert_same(read(packed[format].tobytes(), format), games)

def rows(games):
    "Position, move, eval and result of each ply, sorted"
    out = []
    for g in games:
        board = Board(g.start + ' 1')
        for m, e in zip(g.moves.tolist(), np.nan_to_num(g.evals).tolist()):
            out.append((' '.join(board.to_sfen().split()[:3]), m, e, g.result)); board.apply_move(Move(m))
    return sorted(out)

@pytest.mark.parametrize('format', ['hcpe', 'psv'])
def test_shuffled_rows_are_the_same(packed, games, format):
    "The order of a file changes how its rows are cut into games, never a row"
    pieces = read(np.random.default_rng(0).permutation(packed[format]).tobytes(), format)
    assert len(pieces) > 0.98*len(packed[format]) and not any(g.whole for g in pieces)
    assert rows(pieces) == rows(games)

@pytest.mark.parametrize('format', ['hcpe', 'psv'])
def test_block_boundaries(packed, games, format, monkeypatch):
    "Games go on across the blocks that a file is read in"
    monkeypatch.setattr('maou_nb.data.packed.BLOCK', 7)
    assert_same(read(packed[format].tobytes(), format), games)

@pytest.mark.parametrize('write,dtype,format', [(write_hcpe, HCPE, 'hcpe'), (write_psv, PSV, 'psv')])
def test_our_bytes_are_cshogis(packed, games, write, dtype, format, tmp_path):
    assert write(games, tmp_path/'ours') == len(games)
    ours, theirs = np.fromfile(tmp_path/'ours', dtype), np.frombuffer(packed[format].tobytes(), dtype)
    for name in dtype.names: assert (ours[name] == theirs[name]).all(), name

def test_handicap_games(tmp_path):
    "Positions of fewer than forty pieces, White to move first"
    start = 'lnsgkgsn1/1r5b1/ppppppppp/9/9/9/PPPPPPPPP/1B5R1/LNSGKGSNL w -'
    game = game_of(start, [Move.from_usi(m) for m in '3c3d 7g7f 2b8h+ 7i8h B*5e'.split()], [10, -20, None, 0, 32767], 0.)
    for write, format in ((write_hcpe, 'hcpe'), (write_psv, 'psv'), (write_hcpe3, 'hcpe3')):
        write([game]*2, tmp_path/'x'); assert_same(read((tmp_path/'x').read_bytes(), format), [game]*2)
        assert packed_format((tmp_path/'x').read_bytes()) == format

def hcpe3_by_hand(game, opponent=0, result=None):
    "`game` in HCPE3, with every legal move visited at every third ply; and those visits"
    board = cshogi.Board(game.start + ' 1')
    hcp = np.zeros(32, np.uint8); board.to_hcp(hcp)
    out = [struct.pack('<32sHBB', hcp.tobytes(), len(game), {1.: 1, .5: 0, 0.: 2}[game.result] if result is None else result, opponent)]
    visits = []
    for ply, (usi, eval) in enumerate(zip(game.usi, np.nan_to_num(game.evals).tolist())):
        move, white = board.move_from_usi(usi), board.turn == cshogi.WHITE
        legal = [] if ply % 3 else [(cshogi.move_to_usi(m), cshogi.move16(m), 7*i + ply) for i, m in enumerate(board.legal_moves)]
        out.append(struct.pack('<HhH', cshogi.move16(move), int(-eval if white else eval), len(legal)))
        out += [struct.pack('<HH', m, n) for _, m, n in legal]
        visits.append({u: n for u, _, n in legal}); board.push(move)
    return b''.join(out), visits

def test_hcpe3_by_hand(games):
    made = [hcpe3_by_hand(g, opponent=i % 3) for i, g in enumerate(games[:20])]
    again = read(b''.join(d for d, _ in made), 'hcpe3')
    assert_same(again, games[:20])
    for g, (_, visits) in zip(again, made):
        assert g.whole and g.visits.n.tolist() == [len(v) for v in visits]
        at = np.cumsum(g.visits.n) - g.visits.n
        for k, n, v in zip(at.tolist(), g.visits.n.tolist(), visits):
            assert {Move(m).to_usi(): c for m, c in zip(g.visits.moves[k:k+n].tolist(), g.visits.counts[k:k+n].tolist())} == v

@pytest.mark.parametrize('byte,result,end',
                         [(0, .5, ''), (1, 1., ''), (2, 0., ''), (4, .5, '%SENNICHITE'), (5, 1., '%SENNICHITE'),
                          (10, 0., '%KACHI'), (16, .5, '%MAX_MOVES'), (0x16, .5, '%MAX_MOVES'),
                          (12, .5, '%SENNICHITE'), (20, .5, '%MAX_MOVES'), (24, .5, '%MAX_MOVES'),
                          (0x15, 1., '%MAX_MOVES'), (3, 0., '%BOTH_LOST'), (7, 0., '%BOTH_LOST')])
def test_result_bytes(games, packed, byte, result, end):
    data, _ = hcpe3_by_hand(games[0], result=byte)
    records = packed['hcpe'][:3].copy(); records['gameResult'] = byte
    for got in read(data, 'hcpe3') + read(records.tobytes(), 'hcpe'): assert (got.result, got.end) == (result, end)

@pytest.mark.parametrize('byte', [32, 64, 128, 255])
def test_bad_result_bytes(games, packed, byte):
    data, _ = hcpe3_by_hand(games[0], result=byte)
    records = packed['hcpe'][:1].copy(); records.view(np.uint8)[36] = byte
    for got in read(data, 'hcpe3') + read(records.tobytes(), 'hcpe'):
        assert isinstance(got, RecordError) and f'its result {byte} is none' in str(got)

def test_a_bad_game_costs_itself_alone(games):
    "An illegal move, an illegal or repeated candidate, an impossible start: the next game is found"
    data, _ = hcpe3_by_hand(games[0])
    after, _ = hcpe3_by_hand(games[1])
    k = struct.unpack_from('<H', data, 40)[0]
    for change, sentence in (((36, bytes(2)), 'its move 1, none, is illegal'),
                             ((42, bytes(2)), 'at ply 1 its search visited none'),
                             ((42, data[46:48]), 'names a move twice'),
                             ((0, b'\xff'*32), 'its 32 bytes are no position')):
        at, value = change
        bad, good = read(data[:at] + value + data[at + len(value):] + after, 'hcpe3', 'x.hcpe3')
        assert str(bad).startswith('x.hcpe3, game 1: ') and sentence in str(bad)
        assert (good.key, good.index) == (games[1].key, 1)
    assert k > 1

def test_hcpe3_round_trip(games, tmp_path):
    first = read(b''.join(hcpe3_by_hand(g)[0] for g in games[:9]), 'hcpe3')
    write_hcpe3(first, tmp_path/'x.hcpe3')
    again = read((tmp_path/'x.hcpe3').read_bytes(), 'hcpe3')
    assert_same(again, first)
    for g, h in zip(again, first):
        for name in ('n', 'moves', 'counts'): np.testing.assert_array_equal(getattr(g.visits, name), getattr(h.visits, name))
        assert g.end == h.end

@pytest.mark.parametrize('write', [write_hcpe, write_psv, write_hcpe3])
def test_writers_refuse(games, write, tmp_path):
    "Nobody's win is not a draw, and an illegal move is written by no one; what was there stays"
    g = games[0]; (tmp_path/'x').write_bytes(b'old')
    for bad, sentence in ((Game(g.start, g.moves, g.evals, None), 'nobody knows its result'),
                          (Game(g.start, g.moves[::-1], g.evals, 1.), 'is illegal'),
                          (Game('4k4/4G4/9/9/9/9/9/9/4K4 b -', g.moves, g.evals, 1.), 'moves cannot be applied')):
        with pytest.raises(ValueError, match=sentence): write([g, bad], tmp_path/'x')
    with pytest.raises(RecordError, match='lost'): write([g, RecordError('lost')], tmp_path/'x')
    assert [p.name for p in tmp_path.iterdir()] == ['x'] and (tmp_path/'x').read_bytes() == b'old'

def test_truncated(packed):
    for format, size in (('hcpe', 38), ('psv', 40)):
        *pieces, error = read(packed[format][:50].tobytes()[:-1], format, f'x.{format}')
        assert sum(map(len, pieces)) == 49
        assert (str(error) == f'x.{format}, record 50: the file ends {size - 1} bytes into it and a record has '
                              f'{size}, after {49*size:,} bytes of whole ones; it was cut short, copy it again')

def test_long_chains_are_cut():
    "Kings that walk to and fro for ever make games of bounded length"
    board, records = cshogi.Board('4k4/9/9/9/9/9/9/9/4K4 b - 1'), np.zeros(9_000, cshogi.HuffmanCodedPosAndEval)
    for r, usi in zip(records, '5i5h 5a5b 5h5i 5b5a'.split()*2250):
        board.to_hcp(r['hcp']); move = board.move_from_usi(usi); r['bestMove16'] = cshogi.move16(move); board.push(move)
    assert [len(g) for g in read(records.tobytes(), 'hcpe')] == [4096, 4096, 808]

@pytest.mark.parametrize('format', ['hcpe', 'psv'])
def test_what_does_not_follow_is_cut(packed, games, format):
    "At a ply that is left out, where the result changes, and in PSV where the ply jumps, though the position be the one that follows"
    lengths = lambda records: [len(g) for g in read(records.tobytes(), format)][:3]
    n, records = len(games[0]), packed[format]
    assert lengths(np.delete(records, 10)) == [10, n - 11, len(games[1])]
    changed = records.copy()
    if format == 'hcpe': changed['gameResult'][20:n] = 3 - changed['gameResult'][20:n]
    else: changed['game_result'][20:n] *= -1
    again = read(changed.tobytes(), format)
    assert [len(g) for g in again][:3] == [20, n - 20, len(games[1])]
    assert [g.result for g in again][:2] == [games[0].result, 1 - games[0].result]
    if format == 'psv': changed = records.copy(); changed['gamePly'][30:n] += 1; assert lengths(changed) == [30, n - 30, len(games[1])]

# The older tool's tables

SCHEMA = pa.schema({'hcp': pa.binary(), 'eval': pa.int16(), 'bestMove16': pa.int16(), 'gameResult': pa.int8(),
                    'id': pa.string(), 'partitioningKey': pa.date32(),
                    'ratings': pa.list_(pa.uint16()), 'endgameStatus': pa.string(), 'moves': pa.int16()})

def table(records, games, hcp=pa.binary()):
    "`records` of `games` in the older tool's layout"
    at = [(i, ply, g) for i, g in enumerate(games) for ply in range(len(g))]
    rows = [{'hcp': r['hcp'].tobytes(), 'eval': r['eval'], 'bestMove16': r['bestMove16'],
             'gameResult': r['gameResult'], 'id': f'self.hcpe_g{i}_{ply}', 'ratings': [1500 + i, 0],
             'endgameStatus': g.end, 'moves': len(g)}
            for r, (i, ply, g) in zip(records, at)]
    return pa.Table.from_pylist(rows, SCHEMA).set_column(0, 'hcp', pa.array([r['hcp'] for r in rows], hcp))

def feather(table, rows=1000, compression='lz4'):
    out = io.BytesIO()
    with ipc.new_file(out, table.schema, options=ipc.IpcWriteOptions(compression=compression)) as w:
        w.write_table(table, max_chunksize=rows)
    return out.getvalue()

@pytest.mark.parametrize('hcp', [pa.binary(), pa.large_binary(), pa.binary(32)], ids=str)
def test_hcpe_table(packed, games, hcp, tmp_path):
    few = games[:10]; n = sum(map(len, few))
    data = feather(table(packed['hcpe'][:n], few, hcp))
    assert packed_format(data[:1 << 16]) == 'hcpe_table'
    (tmp_path/'plain.feather').write_bytes(data); (tmp_path/'packed.feather').write_bytes(gzip.compress(data))
    for name in ('plain', 'packed'):
        for file, stream in open_files(tmp_path/f'{name}.feather'):
            again = list(read_packed(stream, 'hcpe_table', file))
            assert_same(again, few)
            assert all(g.whole and g.ratings == (1500. + i, None) and g.end == h.end for i, (g, h) in enumerate(zip(again, few)))
    assert_same(read_hcpe_table(tmp_path/'plain.feather', 'x'), few)

def test_hcpe_table_pieces_and_faults(packed, games):
    few = games[:2]; n = sum(map(len, few))
    whole = table(packed['hcpe'][:n], few)
    def change(column, row, value):
        rows = whole.to_pylist(); rows[row][column] = value
        return read(feather(pa.Table.from_pylist(rows, SCHEMA)), 'hcpe_table', 'x.feather')
    for column, value, sentence in (('hcp', b'short', 'its position has 5 bytes and not 32'),
                                    ('hcp', None, 'its position has 0 bytes'),
                                    ('bestMove16', 0, 'it has no move'),
                                    ('bestMove16', -1, 'its move 0xffff is none'),
                                    ('gameResult', 3, 'its result 3 is none'),
                                    ('gameResult', None, 'its result None is none')):
        before, error, after, last = change(column, 5, value)
        assert str(error).startswith(f'x.feather, row 6: {sentence}'), error
        assert (len(before), len(after), before.whole, last.whole, last.key) == (5, len(few[0]) - 6, False, True, few[1].key)
    assert [len(g) for g in change('id', 5, 'odd')] == [5, 1, len(few[0]) - 6, len(few[1])]
    assert np.isnan(change('eval', 5, None)[0].evals[5])
    wrong = read(feather(whole.set_column(1, 'eval', pa.array(['x']*n))), 'hcpe_table')[0]
    assert 'its column eval holds string; integers were expected' in str(wrong)

# Recognition

@pytest.mark.parametrize('n', [1, 2, 3, 10, 1000])
def test_formats_are_told_apart(packed, games, n):
    "Whatever they are called, from the first record or game on"
    rng, hcpe3 = random.Random(n), [hcpe3_by_hand(g)[0] for g in games[:12]]
    for _ in range(30):
        at = rng.randrange(len(packed['hcpe']) - n)
        contents = {f: packed[f][at:at + n].tobytes() for f in packed} | {'hcpe3': b''.join(hcpe3[at % 9:][:n])}
        for format, data in contents.items():
            for name in ('', 'x.hcpe', 'x.hcpe3', 'x.psv', 'x.bin', 'x.csa'):
                assert packed_format(data[:1 << 16], name, len(data)) == format, (format, name)

def test_what_is_none_of_them(packed):
    rng = random.Random(0)
    others = [b'', b'\0'*5000, b'\xff'*5000, (GAMES/'selfplay-0.csa').read_bytes()[:1 << 16],
              'startpos moves 7g7f\n'.encode()*99] + [rng.randbytes(rng.randrange(5000)) for _ in range(300)]
    assert {packed_format(d) for d in others} == {packed_format(d, 'x.bin') for d in others} == {None}
    assert packed_format(others[-1], 'x.hcpe.gz') == 'hcpe'
    half = packed['psv'][:100].copy(); half['move'][:45] = 0
    assert packed_format(half.tobytes(), 'x.hcpe') == 'psv'

# Damaged files, in a process of their own

def spoil(data, rng):
    "`data` with bits flipped, bytes lost, repeated or put in, or its end cut off"
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 40))):
        how, at = rng.random(), rng.randrange(len(data) or 1)
        if not data: break
        if how < .6: data[at] ^= 1 << rng.randrange(8)
        elif how < .8: data[at:at + 2] = rng.randbytes(2)
        elif how < .87: del data[at:at + rng.randrange(1, 50)]
        elif how < .94: data[at:at] = data[at:at + rng.randrange(1, 50)]
        else: del data[max(1, at):]
    return bytes(data)

def read_spoiled(n, seed):
    "Read `n` spoiled files; prints how many plies and errors they gave"
    rng, games = random.Random(seed), csa_games(1)
    records = dict(zip(('hcpe', 'psv'), cshogi_records(1)))
    hcpe3 = [hcpe3_by_hand(g)[0] for g in games]
    tables = [feather(table(records['hcpe'][:len(games[0])], games[:1], t), rows=40, compression=c)
              for t, c in ((pa.binary(), 'lz4'), (pa.binary(32), None), (pa.large_binary(), None))]
    plies = errors = 0
    for i in range(n):
        format = rng.choice(('hcpe', 'hcpe', 'hcpe', 'psv', 'psv', 'psv', 'hcpe3', 'hcpe3', 'hcpe_table'))
        if format in records:
            at = rng.randrange(len(records[format]) - 12); data = records[format][at:at + rng.randint(1, 12)].tobytes()
        else: data = rng.choice(hcpe3 if format == 'hcpe3' else tables)
        data = rng.randbytes(rng.randrange(1, 300)) if rng.random() < .1 else spoil(data, rng)
        guess = packed_format(data, f'spoilt.{format}')
        for f in {format, guess} - {None}:
            for g in read(data, f, 'spoilt'):
                if isinstance(g, RecordError):
                    assert str(g).startswith('spoilt') and '\n' not in str(g), g
                    errors += 1; continue
                assert g.result in (0, .5, 1) and len(g.evals) == len(g) and not np.isinf(g.evals).any()
                board, at, v = cshogi.Board(g.start + ' 1'), 0, g.visits
                for ply, usi in enumerate(g.usi):                   # the oracle agrees with every move that was let through
                    move = board.move_from_usi(usi)
                    assert board.is_legal(move), (g, usi)
                    if v is not None:
                        for m in v.moves[at:at + int(v.n[ply])].tolist(): assert board.is_legal(board.move_from_usi(Move(m).to_usi()))
                        at += int(v.n[ply])
                    board.push(move)
                plies += len(g)
    print(plies, errors)

@pytest.mark.parametrize('n', [2_000, pytest.param(25_000, marks=pytest.mark.slow)])
def test_damaged_files(n):
    done = subprocess.run([sys.executable, __file__, str(n)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    plies, errors = map(int, done.stdout.split())
    assert plies > n and errors > n

if __name__ == '__main__': read_spoiled(int(sys.argv[1]), seed=int(sys.argv[1]))

@pytest.mark.parametrize('format', ['hcpe', 'psv', 'hcpe3', 'hcpe_table'])
def test_no_eval_is_more_than_a_mate(format):
    "As cshogi's tools and others write one: ±32,000, ±32,700"
    start, usi = Board().to_sfen().rsplit(' ', 1)[0], '7g7f 3c3d 2g2f 8c8d 2f2e'.split()
    board, evals, records = cshogi.Board(), [32700, -32767, 32000, -30001, 29_999], {'hcpe': b'', 'psv': b''}
    game = game_of(start, [Move.from_usi(m) for m in usi], evals, 1.)
    for move, eval in zip(usi, evals):
        seen, own = -eval if board.turn else eval, int(board.turn == 0)
        h, p = np.zeros(1, cshogi.HuffmanCodedPosAndEval), np.zeros(1, cshogi.PackedSfenValue)
        board.to_hcp(h['hcp'][0]); board.to_psfen(p['sfen'][0])
        h['eval'], h['bestMove16'], h['gameResult'] = seen, cshogi.move16(board.move_from_usi(move)), 1
        p['score'], p['move'], p['game_result'] = seen, cshogi.move16_to_psv(cshogi.move16(board.move_from_usi(move))), 2*own - 1
        records = {'hcpe': records['hcpe'] + h.tobytes(), 'psv': records['psv'] + p.tobytes()}
        board.push_usi(move)
    records['hcpe3'] = hcpe3_by_hand(game)[0]
    records['hcpe_table'] = feather(table(np.frombuffer(records['hcpe'], cshogi.HuffmanCodedPosAndEval), [game]))
    found = [e for g in read(records[format], format) for e in g.evals.tolist()]
    assert found == [MATE, -MATE, MATE, -MATE, 29_999]
