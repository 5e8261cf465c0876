"""Files that are almost right, or nothing at all: each is games, rows or one sentence

Never another exception, a wrong row or an abort of the process. They are read in a process of their own, because
what is feared is that the rules library takes the process down. Packed records have a fuzz of their own in
test_packed, the old tool's tables in test_old.
"""
import io, json, random, subprocess, sys, tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from samples import ONE_FILE

SIGNS = {'csa': '0123456789+-*PFUKYOU \t%/',
         'kif': '０１２３７６歩香桂銀金成打同()0123456789 　\t&変化：',
         'usi': 'abcdefghi0123456789+*PLNSGBRK /bw-'}

def spoil(game, rng, signs):
    "`game` with a few of its lines lost, repeated, or changed in a letter"
    lines = game.split('\n')
    for _ in range(rng.randint(1, 4)):
        k, how = rng.randrange(len(lines)), rng.random()
        if how < 0.3 and len(lines) > 1: del lines[k]
        elif how < 0.6: lines.insert(k, rng.choice(lines))
        elif lines[k]:
            at = rng.randrange(len(lines[k]))
            lines[k] = lines[k][:at] + rng.choice(signs) + lines[k][at+1:]
    return '\n'.join(lines)

def texts(format):
    "The games of a sample file in a text format"
    from rsshogi.record import Record
    games = ONE_FILE.read_text().split('/\n')
    if format == 'csa': return games
    records = [Record.from_csa_str(g) for g in games]
    return [r.to_kif() if format == 'kif' else r.to_usi_position() for r in records]

def is_played_by_the_rules(game):
    "Whether another library calls every move of `game` legal"
    import cshogi
    board = cshogi.Board(game.start + ' 1')
    for usi in game.usi:
        move = board.move_from_usi(usi)
        if not board.is_legal(move): return False
        board.push(move)
    return True

def read_spoiled(format, n, seed):
    "Read and walk `n` spoiled games; prints how many were games all the same, and how many were refused"
    from maou_nb.data.games import Game, RecordError, read_text
    from maou_nb.data.positions import positions
    good, rng, fine, refused = texts(format), random.Random(seed), 0, 0
    for i in range(n):
        data = spoil(rng.choice(good), rng, SIGNS[format]).encode('cp932' if i % 2 else 'utf-8', errors='replace')
        for game in read_text(io.BufferedReader(io.BytesIO(data)), format, 'spoiled'):
            if isinstance(game, Game):
                fine += 1; positions([game])
                if i % 10 == 0: assert is_played_by_the_rules(game), game
            else:
                assert type(game) is RecordError and '\n' not in str(game) and 'spoiled' in str(game), repr(game)
                refused += 1
    print(json.dumps([fine, refused]))

def damaged_shards(n, seed):
    "Look for, and read, `n` shards with bytes changed, lost or added, beside a manifest and without one"
    from maou_nb.data.files import FileError
    from maou_nb.data.labels import LABEL_COUNT
    from maou_nb.stages.rows import prepare_stage3
    from maou_nb.data.sources import StreamingFileSource
    with tempfile.TemporaryDirectory() as tmp:
        one = Path(tmp)/'one.csa'; one.write_text(ONE_FILE.read_text().split('/\n')[0])
        prepare_stage3(one, Path(tmp)/'set')
        whole, rng, fine, refused = next(Path(tmp).glob('set/*.feather')), random.Random(seed), 0, 0
        raw, alone = whole.read_bytes(), Path(tmp)/'alone.feather'
        right = next(StreamingFileSource(whole, 3).iter_files_columnar()).fixed.tobytes()
        for i in range(n):
            data, how = bytearray(raw), rng.random()
            if how < 0.2: data = data[:rng.randrange(len(data))]
            elif how < 0.3: data += bytes(rng.randrange(256) for _ in range(rng.randrange(1, 50)))
            else:
                for _ in range(rng.choice([1, 1, 2, 8])): data[rng.randrange(len(data))] = rng.randrange(256)
            listed = i % 2 == 0
            path = whole if listed else alone
            path.write_bytes(data)
            try:
                rows = next(StreamingFileSource(path, 3).iter_files_columnar())
                if listed: assert rows.fixed.tobytes() == right      # against the manifest nothing wrong gets through
                else: assert rows.fixed['board'].max(initial=0) <= 28 and rows.labels.max(initial=0) < LABEL_COUNT
                fine += 1
            except FileError as e:
                assert '\n' not in str(e) and path.name in str(e), repr(e)
                refused += 1
    print(json.dumps([fine, refused]))

def in_a_process(what, n, seed=1):
    "What a fuzz of this file prints, run in a process of its own"
    done = subprocess.run([sys.executable, __file__, what, str(n), str(seed)], capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    return json.loads(done.stdout)

LONG = pytest.mark.slow

@pytest.mark.parametrize('format', SIGNS)
@pytest.mark.parametrize('n', [300, pytest.param(10_000, marks=LONG)])
def test_spoiled_records(format, n):
    fine, refused = in_a_process(format, n)
    assert fine + refused >= n*0.9 and fine > n/20 and refused > n/20

@pytest.mark.parametrize('n', [300, pytest.param(10_000, marks=LONG)])
def test_damaged_shards(n):
    fine, refused = in_a_process('shards', n)
    assert fine + refused == n and refused > n/2

# --- bytes of any kind under any name

SUFFIXES = '.csa', '.kif', '.usi', '.sfen', '.hcpe', '.hcpe3', '.psv', '.bin', '.feather', '.npy', '', '.txt'
NAMES = [f'x{s}{p}' for s in SUFFIXES for p in ('', '.gz', '.zst', '.zip')]
BEGINNINGS = [b'', b'V2.2\n', b'PI\n+\n', '手合割：平手\n'.encode(), b'position startpos moves ', b'ARROW1\0\0',
              b'\x93NUMPY\x01\0', b'\x1f\x8b\x08\0', b'\x28\xb5\x2f\xfd', b'PK\x03\x04', b'\xef\xbb\xbf']

def no_other_error(name, data, folder):
    "Read `data` as records and as shards of each stage: rows, games or one sentence"
    from maou_nb.data.files import FileError
    from maou_nb.data.records import read_games
    from maou_nb.data.shards import find_shards, read_shard
    path = folder/name
    path.write_bytes(data)
    for read in (lambda: list(read_games(path)), *(lambda s=s: [read_shard(x) for x in find_shards(path, s)] for s in (1, 2, 3))):
        try: read()
        except (FileError, FileNotFoundError) as e: assert '\n' not in str(e) and name in str(e), repr(e)

def any_bytes(n, seed):
    "`n` inputs that hypothesis thinks up"
    with tempfile.TemporaryDirectory() as tmp:
        count = [0]
        @settings(max_examples=n, database=None, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(st.sampled_from(NAMES), st.sampled_from(BEGINNINGS), st.binary(max_size=400))
        def run(name, begin, rest): count[0] += 1; no_other_error(name, begin + rest, Path(tmp))
        run()
    print(json.dumps([count[0], 0]))

@pytest.mark.parametrize('n', [300, pytest.param(10_000, marks=LONG)])
def test_any_bytes_under_any_name(n):
    assert in_a_process('bytes', n)[0] >= n*0.9

if __name__ == '__main__':
    what, n, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    if what in SIGNS: read_spoiled(what, n, seed)
    else: {'shards': damaged_shards, 'bytes': any_bytes}[what](n, seed)
