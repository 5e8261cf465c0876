"""What is damaged costs itself alone and is named: a file in an archive, a row of a table, and whatever a library raises meanwhile

Every format, whole and in an archive, has bytes changed, lost and doubled; only sentences of ours, which name the file, may come of it.
"""
import bz2, gzip, io, lzma, random, tarfile, zipfile

import pytest

from maou_nb.data.games import Game
from maou_nb.data.records import read_file, read_games
from test_every_reader import LINES, MADE, NAMES, PACK, put

TEXTS = [text.encode() for text in LINES[:3]]
CUTS = {ending: (lambda data, pack=pack: pack(data)[:-7]) for ending, pack in PACK.items()}
BAD = {**{f'x.csa{ending}': cut for ending, cut in CUTS.items()},
       'x.zip': lambda data: b'PK\3\4broken', 'x.tar': lambda data: tar_of({'a.csa': data})[:700],
       'x.csa': lambda data: data.decode().encode('utf-16'), 'x.bin': lambda data: b'\x89PNG\r\n\x1a\n' + data,
       'y.csa': lambda data: b'', 'x.hcpe': lambda data: b'7z\xbc\xaf\x27\x1c' + data}

def tar_of(files):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode='w') as t:
        for name, data in files.items():
            info = tarfile.TarInfo(name); info.size = len(data)
            t.addfile(info, io.BytesIO(data))
    return out.getvalue()

def zip_of(files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w') as z:
        for name, data in files.items(): z.writestr(name, data)
    return out.getvalue()

ARCHIVES = {'.tar': tar_of, '.tar.gz': lambda files: gzip.compress(tar_of(files)), '.zip': zip_of,
            '.zip.xz': lambda files: lzma.compress(zip_of(files)), '.tar.zip': lambda files: zip_of({'in.tar': tar_of(files)})}

def read(path):
    "(games, sentences) of a file; each sentence is one, and names the file"
    games, said = [], []
    for game in read_file(path): (games if isinstance(game, Game) else said).append(game)
    said = list(map(str, said))
    assert all('\n' not in s and path.name in s for s in said), said
    return games, said

# --- archives

@pytest.mark.parametrize('archive', ARCHIVES)
@pytest.mark.parametrize('bad', BAD)
@pytest.mark.parametrize('at', [0, 1, 3])
def test_a_damaged_file_in_an_archive_costs_itself_alone(archive, bad, at, tmp_path):
    files = [(f'{i}.csa', text) for i, text in enumerate(TEXTS)]
    files.insert(at, (bad, BAD[bad](TEXTS[0])))
    path = tmp_path/f'all{archive}'
    path.write_bytes(ARCHIVES[archive](dict(files)))
    games, said = read(path)
    assert [g.file.split('/')[-1] for g in games] == ['0.csa', '1.csa', '2.csa']
    assert said and all(bad in s for s in said) and len(said) <= 2
    with pytest.raises(ValueError, match=bad): list(read_games(path))

def spoiled_zip(data, of, part):
    "A zip of which the entry `of` has other bytes in `part` of it, or says it has a password"
    data = bytearray(data)
    at = data.index(of) + len(of) + 40
    if part == 'bytes': data[at] ^= 1
    else:
        for sign, flag in ((b'PK\3\4', 6), (b'PK\1\2', 8)):
            at = -1
            while (at := data.find(sign, at + 1)) >= 0:
                if data[at:at + 90].find(of) > 0: data[at + flag] |= 1; break
    return bytes(data)

@pytest.mark.parametrize('part', ['bytes', 'password'])
@pytest.mark.parametrize('of', [b'0.csa', b'1.csa', b'2.csa'])
def test_a_closed_file_in_a_zip_costs_itself_alone(of, part, tmp_path):
    path = tmp_path/'all.zip'
    path.write_bytes(spoiled_zip(zip_of({f'{i}.csa': text for i, text in enumerate(TEXTS)}), of, part))
    games, said = read(path)
    assert {g.file.split('/')[-1].encode() for g in games} == {b'0.csa', b'1.csa', b'2.csa'} - {of}
    assert len(said) == 1 and of.decode() in said[0]

@pytest.mark.parametrize('name, data', [('all.tar', lambda d: d), ('all.tar.gz', gzip.compress)])
def test_of_a_cut_tar_it_is_said_how_far_it_was_read(name, data, tmp_path):
    long = lambda text, i: b"'%b\n%b" % (random.Random(i).randbytes(20_000).hex().encode(), text)      # more than is read at once
    whole = data(tar_of({f'{i}.csa': long(text, i) for i, text in enumerate(TEXTS*9)}))
    path = tmp_path/name
    path.write_bytes(whole[:len(whole)*2//3])
    games, said = read(path)
    assert len(games) > 3 and any(f'it was read as far as its file {len(games) + k}' in said[-1] for k in (0, 1))

# --- whatever a library raises

def mutated(data, rng):
    "`data` with some bytes changed, lost or doubled"
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 3, 20))):
        at, n = rng.randrange(len(data)), rng.choice((1, 1, 2, 8, 60))
        way = rng.randrange(4)
        if way == 0: data[at:at + n] = bytes(rng.randrange(256) for _ in range(n))
        if way == 1: data[at] ^= 1 << rng.randrange(8)
        if way == 2 and len(data) > n + 1: del data[at:at + n]
        if way == 3: data[at:at] = rng.choice((data[at:at + n], b'"', b'\xff', b'{', b'\0', b'\n', b'\x80'))
    return bytes(data)

FILES = {**{NAMES[f]: b''.join(made) for f, made in MADE.items()}}
SMALL = {name: data[:20_000] if name.endswith(('.csa', '.kif', '.ki2', '.usi', '.jsonl', '.csv', '.hcpe', '.psv')) else data
         for name, data in FILES.items()}
PACKED = {'a.csa.gz': gzip.compress(TEXTS[0]), 'a.csa.bz2': bz2.compress(TEXTS[0]), 'a.csa.xz': lzma.compress(TEXTS[0]),
          'a.csa.zst': PACK['.zst'](TEXTS[0]), 'a.zip': zip_of({'a.csa': TEXTS[0], 'é.csa': TEXTS[1]}),
          'a.tar': tar_of({'a.csa': TEXTS[0], 'b.csa': TEXTS[1]})}

def only_sentences(n, seed, folder):
    rng = random.Random(seed)
    for name, data in {**SMALL, **PACKED}.items():
        path = folder/name
        for _ in range(n):
            path.write_bytes(bad := mutated(data, rng))
            said = []
            try:
                for _ in read_games(path, 'skip', said): pass
            except Exception as e:
                (folder/f'{name}.bad').write_bytes(bad)
                raise AssertionError(f'{type(e).__name__} of {folder}/{name}.bad') from e
            assert all('\n' not in s and name in s for s in said), said

def test_only_our_sentences_come_of_mutated_files(tmp_path): only_sentences(6, 1, tmp_path)

@pytest.mark.slow
def test_only_our_sentences_come_of_many_mutated_files(tmp_path): only_sentences(400, 2, tmp_path)

def test_any_error_of_a_library_is_a_sentence(tmp_path, monkeypatch):
    "Of whatever kind, and wherever in reading"
    from maou_nb.data import records
    path = put(tmp_path, 'csa', TEXTS[0])
    for error in (NotImplementedError('zip 18'), MemoryError(), KeyError('x'), UnicodeDecodeError('utf-8', b'\xff', 0, 1, 'bad')):
        def fails(*a): raise error
        monkeypatch.setattr(records, 'read_text', fails)
        games, said = read(path)
        assert not games and len(said) == 1 and 'is damaged or packed in a way that is not known here' in said[0]
