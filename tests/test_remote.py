"""Buckets for real: an S3 and a GCS server on loopback

They are written to and read from, with connections that break half-way; and the cache of what was fetched.
"""
import os, subprocess, sys, threading, time
from pathlib import Path

import fsspec.config
import pytest

from maou_nb.data import files
from maou_nb.data.files import FileError, as_path, atomic_file, cached_file, find_files, local_file
from maou_nb.stages.rows import prepare_stage3
from maou_nb.data.records import read_games
from maou_nb.data.shards import find_shards, read_shard
from maou_nb.data.sources import StreamingFileSource
from buckets import free_port
from samples import GAMES, ONE_FILE, said, thinned

@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch): monkeypatch.setenv('MAOU_NB_CACHE', str(tmp_path/'cache'))

def shas(folder): return {s.path.name: s.sha256 for s in find_shards(folder, 3)}

def test_from_bucket_to_bucket(bucket, tmp_path):
    "Records read from it, shards written to it and streamed from it: the same as on disk"
    url, _ = bucket
    for f in sorted(GAMES.glob('*.csa'))[:2]:
        with atomic_file(as_path(url)/'games'/f.name) as out: out.write(f.read_bytes())
    assert [g.key for g in read_games(f'{url}/games')] == [g.key for f in sorted(GAMES.glob('*.csa'))[:2] for g in read_games(f)]
    there = prepare_stage3(f'{url}/games', f'{url}/stage3', rows_per_shard=4_000)
    here = prepare_stage3(sorted(GAMES.glob('*.csa'))[:2], tmp_path/'stage3', rows_per_shard=4_000)
    assert shas(f'{url}/stage3') == shas(tmp_path/'stage3') and there.rows == here.rows
    far, near = StreamingFileSource(f'{url}/stage3', 3), StreamingFileSource(tmp_path/'stage3', 3)
    assert far.row_counts == near.row_counts
    plan = near.plan(500, seed=1)
    assert all(far.take(plan, k).fixed.tobytes() == near.take(plan, k).fixed.tobytes() for k in range(len(plan)))

@pytest.mark.parametrize('bucket', thinned(['s3', 'gcs'], 2), indirect=True)
def test_a_line_that_breaks_half_way(bucket, tmp_path):
    "Sending and fetching are tried again; what arrives is whole"
    url, line = bucket
    data = os.urandom(3_000_000)
    (tmp_path/'a').write_bytes(data)
    line.breaks = [1_000_000, 700_000]
    with atomic_file(f'{url}/a.bin') as f: f.write(data)
    assert line.broken == 2
    line.breaks = [1_500_000, 400_000]
    copy = local_file(f'{url}/a.bin', files.file_sha256(tmp_path/'a'))
    assert line.broken == 4 and copy.read_bytes() == data
    assert [p.name for p in copy.parent.iterdir()] == [copy.name]
    assert [p.name for p in find_files(url, ('',), 'files')] == ['a.bin']

@pytest.mark.parametrize('bucket', thinned(['gcs', 's3'], 2), indirect=True)
def test_preparing_over_a_line_that_breaks(bucket, tmp_path):
    url, line = bucket
    line.breaks = [100_000, 60_000, 150_000]
    with atomic_file(f'{url}/games/a.csa') as out: out.write(ONE_FILE.read_bytes())
    prepare_stage3(f'{url}/games', f'{url}/stage3', rows_per_shard=2_000)
    prepare_stage3(ONE_FILE, tmp_path/'stage3', rows_per_shard=2_000)
    assert line.broken == 3 and shas(f'{url}/stage3') == shas(tmp_path/'stage3')
    assert (sum(len(read_shard(s)) for s in find_shards(f'{url}/stage3', 3))
            == sum(len(read_shard(s)) for s in find_shards(tmp_path/'stage3', 3)))

def test_what_is_not_there(bucket):
    url, _ = bucket
    with pytest.raises(FileNotFoundError) as e: find_shards(f'{url}/nothing', 3)
    assert 'nothing does not exist' in said(e)

def test_nobody_answers(monkeypatch):
    pytest.importorskip('s3fs')
    monkeypatch.setattr(files, 'TRIES', 2)
    for name in ('AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY'): monkeypatch.setenv(name, 'any')
    monkeypatch.setitem(fsspec.config.conf, 's3',
                        {'endpoint_url': f'http://127.0.0.1:{free_port()}',
                         'config_kwargs': {'retries': {'max_attempts': 0}}})
    with pytest.raises(ValueError) as e: find_shards('s3://nowhere/x', 3)
    assert 'listing s3://nowhere/x failed 2 times' in said(e)

# --- what does not need a server

@pytest.fixture
def memory():
    "A bucket in memory"
    return as_path(f'memory://remote-{time.time_ns()}')

def test_a_failing_upload_is_retried_then_reported(memory, monkeypatch):
    monkeypatch.setattr(files.time, 'sleep', lambda s: None)
    real, calls = type(memory.fs).put_file, []
    def put(self, *a, **k):
        calls.append(1)
        if len(calls) < 4: raise ConnectionResetError('the line broke')
        return real(self, *a, **k)
    monkeypatch.setattr(type(memory.fs), 'put_file', put)
    with atomic_file(memory/'a') as f: f.write(b'whole')
    assert len(calls) == 4 and (memory/'a').read_bytes() == b'whole'
    calls[:] = [0]*-100
    monkeypatch.setattr(type(memory.fs), 'put_file', lambda *a, **k: 1/0)
    with pytest.raises(FileError) as e:
        with atomic_file(memory/'a') as f: f.write(b'newer')
    assert f'sending {memory}/a failed 5 times' in said(e) and (memory/'a').read_bytes() == b'whole'

def test_a_short_transfer_is_noticed(memory, monkeypatch, tmp_path):
    "A copy with bytes missing is not taken, even without a checksum"
    monkeypatch.setattr(files.time, 'sleep', lambda s: None)
    (memory/'a').parent.mkdir(exist_ok=True, parents=True); (memory/'a').write_bytes(b'0123456789')
    calls = []
    def get(self, rpath, lpath, **k): calls.append(1); Path(lpath).write_bytes(b'01234' if len(calls) == 1 else b'0123456789')
    monkeypatch.setattr(type(memory.fs), 'get_file', get)
    assert local_file(memory/'a').read_bytes() == b'0123456789' and len(calls) == 2

def test_a_download_that_was_interrupted_is_never_used(memory, monkeypatch, tmp_path):
    (memory/'a').parent.mkdir(exist_ok=True, parents=True); (memory/'a').write_bytes(b'0123456789')
    def half(self, rpath, lpath, **k): Path(lpath).write_bytes(b'01234'); raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(type(memory.fs), 'get_file', half)
        with pytest.raises(KeyboardInterrupt): local_file(memory/'a')
    assert local_file(memory/'a').read_bytes() == b'0123456789'
    assert len(list((tmp_path/'cache').iterdir())) == 1

def test_remote_shards_are_fetched_once_and_checked(memory, tmp_path, monkeypatch):
    prepare_stage3(ONE_FILE, memory/'stage3', rows_per_shard=2_000)
    fetched = []
    real = type(memory.fs).get_file
    monkeypatch.setattr(type(memory.fs), 'get_file', lambda self, r, l, **k: (fetched.append(r), real(self, r, l, **k)))
    source = StreamingFileSource(memory/'stage3', 3)
    assert source.total_rows > 4_000 and not fetched                     # counted from the manifest
    for _ in range(2): assert sum(map(len, source.iter_files_columnar())) == source.total_rows
    assert len(fetched) == len(source.file_paths) == 3
    shard = source.file_paths[1]
    raw = bytearray(shard.read_bytes()); raw[500] ^= 255; shard.write_bytes(bytes(raw))
    for p in (tmp_path/'cache').glob('*.feather'): p.unlink()
    with pytest.raises(ValueError) as e: list(StreamingFileSource(memory/'stage3', 3).iter_files_columnar())
    assert shard.name in said(e) and 'SHA-256' in said(e)

def test_the_cache_keeps_to_its_limit(memory, tmp_path, monkeypatch):
    prepare_stage3(GAMES, memory/'stage3', rows_per_shard=3_000)
    sizes = [p.stat().st_size for p in find_files(memory/'stage3', ('.feather',), 'shards')]
    monkeypatch.setenv('MAOU_NB_CACHE_GB', str(2.5*max(sizes)/1e9))
    source = StreamingFileSource(memory/'stage3', 3)
    rows = 0
    for part in source.iter_files_columnar():
        rows += len(part)
        assert sum(p.stat().st_size for p in (tmp_path/'cache').iterdir()) <= 2.5*max(sizes)
    assert rows == source.total_rows and len(sizes) > 5

def test_two_at_once_fetch_the_same(memory, tmp_path):
    (memory/'a').parent.mkdir(exist_ok=True, parents=True); (memory/'a').write_bytes(os.urandom(100_000))
    got = []
    threads = [threading.Thread(target=lambda: got.append(local_file(memory/'a').read_bytes())) for _ in range(8)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert len(got) == 8 and set(got) == {(memory/'a').read_bytes()}

def test_a_copy_that_another_process_takes_away(tmp_path, monkeypatch):
    "It is seen in the cache, and gone when it is looked at: no error"
    monkeypatch.setenv('MAOU_NB_CACHE', str(tmp_path))
    real = Path.iterdir
    monkeypatch.setattr(Path, 'iterdir', lambda self: [*real(self), self/'gone.part'])
    monkeypatch.setattr(Path, 'is_file', lambda self: True)          # as it was a moment ago
    assert cached_file('a', lambda part: part.write_bytes(b'x')).read_bytes() == b'x'

def test_a_missing_filesystem_says_what_brings_it():
    lacks = "import sys; sys.modules['s3fs'] = None; from maou_nb.data.files import as_path; as_path('s3://bucket/x')"
    done = subprocess.run([sys.executable, '-c', lacks], capture_output=True, text=True)
    assert ('FileError: s3://bucket/x: there is no filesystem for s3:// here; pip install "maou_nb[s3]" brings it'
            in done.stderr.splitlines()[-1])
