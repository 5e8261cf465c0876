"What is no game record is refused in a sentence, however its bytes repeat; what is one is recognised though a record in a hundred is bad"
import io, random, struct

import numpy as np
import pytest

from maou_nb.data.games import RecordError
from maou_nb.data.packed import HCPE, MAGIC, PSV, packed_format, write_hcpe, write_hcpe3, write_psv
from maou_nb.data.records import read_games, record_format
from samples import ONE_FILE, said

@pytest.fixture(scope='module')
def records(tmp_path_factory):
    "Fifty games as HCPE and PSV records, in order, and as HCPE3"
    out, games = tmp_path_factory.mktemp('packed'), list(read_games(ONE_FILE))
    for write, name in ((write_hcpe, 'a.hcpe'), (write_psv, 'a.psv'), (write_hcpe3, 'a.hcpe3')): write(games, out/name)
    three = []
    for i, g in enumerate(games): write_hcpe3([g], out/f'{i}.hcpe3'); three.append((out/f'{i}.hcpe3').read_bytes())
    return {'hcpe': np.fromfile(out/'a.hcpe', HCPE), 'psv': np.fromfile(out/'a.psv', PSV), 'hcpe3': three}

def beginning(data): return data[:1 << 16]

# --- no records

def patterns(rng, dice):
    "Bytes that mean something else: numbers, text, pictures, of every period"
    n = rng.choice((200, 2_000, 20_000))
    for period in range(1, 77): yield (rng.randbytes(period)*(n//period + 1))[:n]
    for dtype in ('<i2', '<i4', '<f2', '<f4', '<f8', '>f4'):
        for step in (1, 3, 19, 38, 40): yield (np.arange(n//8) % step).astype(dtype).tobytes()
        yield np.sin(np.arange(n//8)*2*np.pi/dice.integers(2, 60)).astype(dtype).tobytes()
        yield dice.normal(size=n//8).astype(dtype).tobytes()
    for value in (0, 1, 255): yield bytes([value])*n
    yield np.add.outer(np.arange(64), np.arange(n//64)).astype(np.uint8).tobytes()          # a picture of a slope
    yield ' '.join(str(x) for x in range(n//4)).encode()
    yield 'いろはにほへと ちりぬるを\n'.encode('cp932')*(n//26)

@pytest.mark.parametrize('seed', range(3))
def test_patterns_are_no_records(seed, tmp_path):
    rng, dice, n = random.Random(seed), np.random.default_rng(seed), 0
    for n, data in enumerate(patterns(rng, dice), 1):
        assert packed_format(beginning(data)) is None and packed_format(beginning(data), 'x.bin') is None, data[:80]
    assert n > 100

@pytest.mark.parametrize('format', ['hcpe', 'psv'])
def test_a_record_that_repeats_is_a_pattern(records, format):
    "Of any phase, behind any head, alone or a few in turn: the bytes are of real positions, the file is not"
    size, rng = records[format].dtype.itemsize, random.Random(0)
    for k in (1, 2, 3, 5):
        for _ in range(20):
            at = rng.sample(range(len(records[format])), k)
            one, phase, head = records[format][at].tobytes(), rng.randrange(size), rng.randbytes(rng.choice((0, 80, 128, 1024)))
            for times in (5*k + 12, 1700//k):
                data = head + one[phase:] + one*times
                assert packed_format(beginning(data)) is None, (k, phase, len(head), times)

def test_half_a_file_of_records_is_not_one(records):
    "Legal throughout, not here and there: numbers behind some records are no positions"
    rng = random.Random(0)
    for share in (2, 3, 4):
        data = records['hcpe'][:1000].tobytes()
        kept = len(data)*(share - 1)//share
        assert packed_format(beginning(data[:kept] + rng.randbytes(len(data) - kept))[:38*1000]) is None
    assert packed_format(beginning(records['hcpe'][:1000].tobytes())) == 'hcpe'

@pytest.mark.parametrize('made', [lambda r: np.frombuffer(r['hcpe'][:1].tobytes()*60, '<f2'), lambda r: r['hcpe'],
                                  lambda r: np.sin(np.arange(760)*2*np.pi/19).astype('<f4'), lambda r: np.zeros((9, 9))])
def test_arrays_are_refused_by_name(records, tmp_path, made):
    "`.npy` is a NumPy array, whatever is in it, and whatever it is called"
    data = io.BytesIO(); np.save(data, made(records))
    for name in ('x.npy', 'x.hcpe', 'x'):
        (tmp_path/name).write_bytes(data.getvalue())
        with pytest.raises(RecordError) as e: list(read_games(tmp_path/name))
        assert f'{name} is a NumPy array, no game record' in said(e)

def test_what_says_what_it_is(records):
    "A magic number outranks records behind it; the first bytes of real records are none"
    for magic, what in MAGIC.items():
        with pytest.raises(RecordError) as e: record_format(magic + records['hcpe'].tobytes()[len(magic):1 << 16], 'x.hcpe')
        assert f'x.hcpe is {what}' in said(e)
    for format in ('hcpe', 'psv'):
        for i in range(0, 4000, 100): assert packed_format(records[format][i:i + 400].tobytes()) == format

def test_patterns_in_a_file_are_refused_in_a_sentence(tmp_path):
    for i, data in enumerate(list(patterns(random.Random(9), np.random.default_rng(9)))[::7]):
        (tmp_path/f'{i}.dat').write_bytes(data)
        left_out = []
        assert list(read_games(tmp_path/f'{i}.dat', 'skip', left_out)) == [], data[:80]
        assert len(left_out) == 1 and '\n' not in left_out[0] and f'{i}.dat' in left_out[0]

# --- records

WRONG = {'a position that cannot be': lambda r, at: r.view(np.uint8).reshape(len(r), -1).__setitem__((at, slice(0, 32)), 255),
         'no move': lambda r, at: r[r.dtype.names[2]].__setitem__(at, 0),
         'no result': lambda r, at: r[r.dtype.names[3 if 'gameResult' in r.dtype.names else 4]].__setitem__(at, 77)}

@pytest.mark.parametrize('shuffled', [False, True])
@pytest.mark.parametrize('wrong', WRONG)
@pytest.mark.parametrize('format', ['hcpe', 'psv'])
def test_one_bad_record_in_a_hundred(records, format, wrong, shuffled, tmp_path):
    rng = np.random.default_rng(1)
    for seed in range(20):
        n = int(rng.choice((100, 300, 2000)))
        some = records[format][:n].copy()
        if shuffled: some = rng.permutation(records[format])[:n].copy()
        WRONG[wrong](some, rng.choice(n, n//100, replace=False))
        for name in ('', 'x.bin', 'x.dat'): assert packed_format(beginning(some.tobytes()), name, some.nbytes) == format, seed
    (tmp_path/'x.dat').write_bytes(some.tobytes())
    left_out = []
    games = list(read_games(tmp_path/'x.dat', 'skip', left_out))
    assert sum(map(len, games)) == n - n//100 and len(left_out) == n//100

@pytest.mark.parametrize('n', [1, 2, 3, 5, 9, 30, 64, 65])
def test_small_files(records, n):
    rng = random.Random(n)
    for _ in range(30):
        at = rng.randrange(4000)
        for format in ('hcpe', 'psv'): assert packed_format(records[format][at:at + n].tobytes()) == format

def test_hcpe3_with_a_bad_game(records):
    "One in a hundred, wherever it stands but first, where it is all there is"
    rng = random.Random(0)
    for at in range(1, 50, 7):
        games = rng.sample(records['hcpe3'], 50)
        start, plies, result, opponent = struct.unpack_from('<32sHBB', games[at])
        games[at] = struct.pack('<32sHBB', b'\xff'*32, plies, result, opponent) + games[at][36:]
        assert packed_format(beginning(b''.join(games))) == 'hcpe3'

def test_a_damaged_file_is_believed_by_name(tmp_path):
    "A name is believed where the content says nothing, so that what is damaged is named"
    (tmp_path/'x.hcpe').write_bytes(random.Random(0).randbytes(38*5))
    left_out = []
    assert not list(read_games(tmp_path/'x.hcpe', 'skip', left_out)) and len(left_out) == 5
    assert all(f'x.hcpe, record {i}: ' in s for i, s in enumerate(left_out, 1))
