"Servers of buckets on loopback, S3 and GCS, each reached over a line that can be told to break; one of each a test run"
import os, socket, subprocess, sys, threading, time

import fsspec.config
import pytest

from maou_nb.data.files import as_path

# gcsfs reads this when it is imported, which any test may do; else it would ask the server for its kind
# of bucket over gRPC, which this one does not speak
os.environ['GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT'] = 'false'

def free_port():
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); return s.getsockname()[1]

def serve(command, port):
    "A server process on `port` of loopback, once it answers"
    server = subprocess.Popen([sys.executable, '-m', *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(300):
        assert server.poll() is None, f'{command} ended at once'
        with socket.socket() as s:
            if not s.connect_ex(('127.0.0.1', port)): return server
        time.sleep(0.1)
    raise AssertionError(f'{command} does not answer')

class Line:
    "A line to a server that can be told to break after so many bytes, both ways counted"
    def __init__(self, port):
        self.target, self.breaks, self.broken, self.carried = port, [], 0, 0
        self.listener = socket.create_server(('127.0.0.1', 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try: near, _ = self.listener.accept()
            except OSError: return
            try: far = socket.create_connection(('127.0.0.1', self.target))
            except OSError: near.close(); continue
            for a, b in ((near, far), (far, near)): threading.Thread(target=self._carry, args=(a, b), daemon=True).start()

    def _carry(self, a, b):
        while True:
            try: data = a.recv(1 << 14)
            except OSError: data = b''
            self.carried += len(data)
            if self.breaks and data:
                self.breaks[0] -= len(data)
                if self.breaks[0] <= 0:
                    self.breaks.pop(0); self.broken += 1
                    data = b''
            try: b.sendall(data) if data else None
            except OSError: data = b''
            if not data:
                for s in (a, b):
                    try: s.shutdown(socket.SHUT_RDWR)
                    except OSError: pass
                return

@pytest.fixture(scope='session')
def s3():
    "A line to an S3 server; `s3://here/…` goes over it"
    pytest.importorskip('s3fs'); pytest.importorskip('moto')
    port = free_port()
    server = serve(['moto.server', '-H', '127.0.0.1', '-p', str(port)], port)
    line = Line(port)
    os.environ.update(AWS_ACCESS_KEY_ID='testing', AWS_SECRET_ACCESS_KEY='testing', AWS_DEFAULT_REGION='us-east-1')
    fsspec.config.conf['s3'] = {'endpoint_url': f'http://127.0.0.1:{line.port}'}
    as_path('s3://here').fs.mkdir('here')
    yield line
    server.kill(); server.wait(); line.listener.close(); del fsspec.config.conf['s3']

@pytest.fixture(scope='session')
def gcs():
    "A line to a GCS server; `gs://here/…` goes over it"
    pytest.importorskip('gcsfs'); pytest.importorskip('gcp_storage_emulator')
    port = free_port()
    server = serve(['gcp_storage_emulator', 'start', '--host=127.0.0.1', f'--port={port}', '--in-memory', '--default-bucket=here'], port)
    line = Line(port)
    fsspec.config.conf['gs'] = fsspec.config.conf['gcs'] = {'endpoint_url': f'http://127.0.0.1:{line.port}', 'token': 'anon'}
    yield line
    server.kill(); server.wait(); line.listener.close(); del fsspec.config.conf['gs'], fsspec.config.conf['gcs']

@pytest.fixture(params=['s3', 'gcs'])
def bucket(request):
    "A bucket and the line to it"
    line = request.getfixturevalue(request.param)
    line.breaks.clear(); line.broken = 0
    return f'{ {"s3": "s3", "gcs": "gs"}[request.param]}://here/{time.time_ns()}', line
