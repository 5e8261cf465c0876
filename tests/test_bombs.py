"""Files that are made to fill memory or disk, or to be read for ever: one sentence, soon, with little memory

Each is read in one process that may have little memory, and says what became of it.
"""
import bz2, gzip, io, json, lzma, os, struct, subprocess, sys, tarfile, zipfile, zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maou_nb.data.files import FileError, Limits, open_files
from maou_nb.data.records import read_games
from samples import ONE_FILE

GAME = b'PI\n+\n+7776FU\n%TORYO\n'
ZEROS = bytes(1 << 24)      # 16 MB
pack_zstd = lambda data: pa.compress(data, 'zstd', asbytes=True)
PACKERS = {'gz': lambda d: gzip.compress(d, 9), 'bz2': bz2.compress, 'xz': lzma.compress, 'zst': pack_zstd}

def repeated(packer, first, data, times):
    "`first` and `times` the data, packed in little time: parts of a packed file may stand one after the other"
    return packer(first) + packer(data)*times

def as_zip(members, method=zipfile.ZIP_DEFLATED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w', method) as z:
        for name, data in members: z.writestr(name, data)
    return out.getvalue()

def as_tar(members):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode='w') as t:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))
    return out.getvalue()

def header(kind, size, name='a.csa', patch=None):
    "The block of a tar that says so much of a file"
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT)[:512])
    if patch: patch(block)
    block[148:156] = b'        '
    block[148:156] = b'%06o\0 ' % sum(block)
    return bytes(block)

def sparse():
    "A tar of a file of 1 TB that is nothing but a hole"
    def holes(block):
        block[386:482] = (b'%011o\0' % 0 + b'%011o\0' % 0) + bytes(72)
        block[482] = 0
        block[483:495] = b'\x80' + (1 << 40).to_bytes(11, 'big')
    return header(tarfile.GNUTYPE_SPARSE, 0, patch=holes) + bytes(1024)

def nested(data, depth, name='a.csa'):
    for _ in range(depth): data, name = as_zip([(name, data)]), 'a.zip'
    return data

def many(count):
    "A zip of `count` empty files, of which the first is written as a zip says, and the list by hand"
    one = as_zip([('a.csa', b'')], zipfile.ZIP_STORED)
    at = one.index(b'PK\1\2')
    entry = one[at:one.index(b'PK\5\6')]
    table = entry*count
    end = struct.pack('<4s4H2LH', b'PK\5\6', 0, 0, 0xffff, 0xffff, len(table), at, 0)
    return one[:at] + table + end

def table_of(text, times):
    return pa.table({'sfen': pa.array([text]*times), 'eval': pa.array([0]*times)})

def as_parquet(table):
    out = io.BytesIO()
    pq.write_table(table, out, use_dictionary=False, compression='zstd', data_page_size=1 << 16)
    return out.getvalue()

def nested_gz(depth):
    data = GAME
    for _ in range(depth): data = gzip.compress(data)
    return data

def greedy_xz():
    "An xz file whose head asks for 1.5 GB of memory"
    data = bytearray(lzma.compress(GAME))
    data[16], end = 37, 12 + 4*(data[12] + 1)
    data[end - 4:end] = zlib.crc32(data[12:end - 4]).to_bytes(4, 'little')
    return bytes(data)

COMMENTS = (b'*'*63 + b'\n')*(48 << 14)
ROW = b'{"sfen": "4k4/9/9/9/9/9/9/9/4K4 b - 1"}\n'
CSV = b'sfen,eval\n4k4/9/9/9/9/9/9/9/4K4 b - 1,5\n'
SHORT = table_of('4k4/9/9/9/9/9/9/9/4K4 b - 1' + ' '*1000, 2000)
many_headers = lambda: gzip.compress(header(tarfile.REGTYPE, 0, 'x.txt')*2000)

# name → (what makes its bytes, what the sentence says, limits that are set)
BOMBS = {
    **{f'line.csa.{k}': (lambda p=p: repeated(p, GAME, ZEROS, 4), 'a game or a line of more than', '') for k, p in PACKERS.items()},
    'comments.kif.gz': (lambda: gzip.compress('手合割：平手\n'.encode() + COMMENTS), 'a game or a line of more than', ''),
    **{f'tar.tar.{k}': (lambda p=p: repeated(p, header(tarfile.REGTYPE, 1 << 33, 'x.txt'), ZEROS, 26), 'bytes come out for each', '')
       for k, p in PACKERS.items() if k != 'xz'},
    'line.jkf.gz': (lambda: repeated(gzip.compress, b'{"header":{}}', b' '*(1 << 24), 4), 'must be read as a whole', ''),
    'deep.jkf': (lambda: b'{"header":{},"moves":' + b'['*10_000_000, 'no JSON that can be read', ''),
    'line.jsonl.gz': (lambda: repeated(gzip.compress, ROW, b' '*(1 << 24), 4), 'is of a row of more than', ''),
    'deep.jsonl': (lambda: ROW + b'{"a":'*1_000_000 + b'\n', 'is no JSON object', ''),
    'line.csv.gz': (lambda: repeated(gzip.compress, CSV, b' '*(1 << 24), 4), 'is of a row of more than', ''),
    'quoted.csv': (lambda: CSV + b'"\n",'*200_000, 'a quote is opened and not closed', 'text=200000'),
    'declared.parquet': (lambda: as_parquet(SHORT), 'bytes come out of it', 'unpacked=1000000'),
    'nested.zip': (lambda: nested(GAME, 12), 'deep in one another', ''),
    'nested.gz': (lambda: nested_gz(12), 'deep in one another', ''),
    'inside.zip': (lambda: as_zip([('a.csa', GAME + ZEROS*4)]), 'a game or a line of more than', ''),
    'inside.zip.gz': (lambda: gzip.compress(many(3)) + gzip.compress(ZEROS)*24, 'bytes come out for each', ''),
    'many.zip': (lambda: many(10_000), 'is too long', 'members=1000'),
    'many.tar.gz': (many_headers, 'files are packed in it', 'members=1000'),
    'said.tar.gz': (lambda: repeated(gzip.compress, header(tarfile.XHDTYPE, 1 << 33), ZEROS, 9), 'are said of one file', ''),
    'long.tar.gz': (lambda: repeated(gzip.compress, header(tarfile.GNUTYPE_LONGNAME, 1 << 33), ZEROS, 9), 'are said of one file', ''),
    'sparse.tar': (sparse, 'a game or a line of more than', ''),
    'greedy.csa.xz': (greedy_xz, 'Memory usage limit', ''),
}

READS = '''
import json, os, resource, sys, time
from pathlib import Path
from maou_nb.data.records import read_games
from maou_nb.data.games import Game
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
for path, limits in zip(sys.argv[1::2], sys.argv[2::2]):
    os.environ['MAOU_NB_LIMITS'] = limits
    said, began, games = [], time.monotonic(), 0
    for game in read_games(path, on_bad='skip', skipped=said): games += 1
    status = Path('/proc/self/status').read_text().split('VmHWM:')[1]     # as `ru_maxrss` begins with the parent's
    peak = int(status.split()[0])*1024
    print(json.dumps([path, games, said[:2], time.monotonic() - began, peak]), flush=True)
'''

@pytest.fixture(scope='module')
def outcome(tmp_path_factory):
    "Name → (games, sentences, seconds, peak of memory in bytes)"
    folder = tmp_path_factory.mktemp('bombs')
    for name, (make, *_) in BOMBS.items(): (folder/name).write_bytes(make())
    asked = [word for name, (_, _, most) in BOMBS.items() for word in (str(folder/name), most)]
    done = subprocess.run([sys.executable, '-c', READS, *asked], capture_output=True, text=True, timeout=300)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    found = {os.path.basename(path): rest for path, *rest in rows}
    assert found.keys() == BOMBS.keys(), (BOMBS.keys() - found.keys(), done.stderr[-2000:])
    return found

@pytest.mark.parametrize('name', BOMBS)
def test_it_is_refused_in_a_sentence(outcome, name):
    games, said, seconds, peak = outcome[name]
    assert peak < 1 << 30 and seconds < 20, (seconds, peak)
    assert said and BOMBS[name][1] in said[0], (games, said)
    assert all('\n' not in s and 'Traceback' not in s and name in s for s in said), said

def test_what_people_pack_is_read(tmp_path):
    "Real games in each packing, and an archive of many"
    data = ONE_FILE.read_bytes()
    for kind, packer in PACKERS.items(): (tmp_path/f'a.csa.{kind}').write_bytes(packer(data))
    (tmp_path/'a.zip').write_bytes(as_zip([(f'{i}.csa', data) for i in range(3)]))
    (tmp_path/'a.tar.gz').write_bytes(gzip.compress(as_tar([(f'{i}.csa', data) for i in range(3)])))
    assert [len(list(read_games(p))) for p in sorted(tmp_path.iterdir())] == [50]*len(PACKERS) + [150, 150]

@pytest.mark.parametrize('most,said', [
    (dict(unpacked=1000), 'more than 1,000 bytes come out of it'), (dict(members=2), 'more than 2 files'),
                                       (dict(depth=1), 'more than 1 deep')])
def test_limits_are_options(tmp_path, monkeypatch, most, said):
    (tmp_path/'a.zip').write_bytes(as_zip([(f'{i}.csa.gz', gzip.compress(ONE_FILE.read_bytes())) for i in range(3)]))
    def read(limits):
        for _, stream in open_files(tmp_path/'a.zip', limits):
            while stream.read(1 << 16): pass
    read(None)
    with pytest.raises(FileError, match=said): read(Limits(**most))
    (name, value), = most.items()
    monkeypatch.setenv('MAOU_NB_LIMITS', f'{name}={value}')
    with pytest.raises(FileError, match=said): read(None)

def test_a_zip_on_disk_is_not_read_into_memory(tmp_path):
    import tracemalloc
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as z:
        z.writestr('b.dat', np.random.default_rng(0).bytes(1 << 26))
        z.writestr('a.csa', GAME)
    tracemalloc.start()
    assert len(list(read_games(tmp_path/'a.zip'))) == 1
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()
