"""Every public function and option that takes a path, given a URL that nobody may read, or of a server that does not answer

They are found by their signatures, so that a new one is asked, too. A result or one of our sentences, and nothing on this disk.
"""
import contextlib, inspect, os, socket, threading, time, types, warnings

import pyarrow as pa
import pytest
import torch
import torch._dynamo     # an export imports it, and takes its time for that, not for a place far away

import maou_nb
from maou_nb import Callback, find_lr, learn_multi_stage, preflight
from maou_nb.data import files
from maou_nb.data.files import FileError, as_path
from maou_nb.data.options import OptionError
from maou_nb.data.sources import FileSource
from maou_nb.train.checkpoints import CheckpointError
from maou_nb.model.backbones import make_backbone
from maou_nb.model.heads import Net
from maou_nb.stages.stage import STAGES
from maou_nb.train.options import config_class
from public import public

pytest.importorskip('s3fs')
URL = 's3://nobodys-bucket/here'

def takes_a_path(p):
    "Whether a parameter is a path that may be given as text"
    said = str(p.annotation)
    bare = p.annotation is p.empty and p.name in ('of', 'data', 'run', 'runs', 'path', 'paths', 'folder', 'url')
    return 'str | pathlib.Path' in said or 'UPath' in said or bare or p.name == 'url'

def doors():
    "(function, parameter) of every path of everything public"
    for name, f in public():
        try: parameters = inspect.signature(f).parameters.values()
        except ValueError: continue
        for p in parameters:
            if takes_a_path(p): yield pytest.param(f, p.name, id=f'{name}-{p.name}')

def filled(f, given, here, shards):
    "Something for each parameter that must be given, and for those without which a path is not looked at"
    stage, backbone = STAGES['2'], make_backbone('resnet', 'tiny', channels=4, blocks=1)
    cfg = config_class()()
    fill = {'stage': 2, 'sfen': 'startpos', 'what': 'files', 'name': 'backbone', 'head': 'policy_head', 'local': here/'local.txt',
            'working': True, 'said_by': 'a test', 'endings': '.csa', 'there': {}, 'advice': 'look', 'suffixes': ('.csa',),
            'games': [], 'path': here/'x',
            'folder': here/'f', 'to': here/'to', 'source': here/'local.txt', 'file': 'x', 'table': pa.table({'id': [1]}), 'tables': [],
            'prepared_from': 'x', 'entries': [], 'make': FileSource, 'ratio': 0.1, 'error': OSError(5, 'Input/output error'),
            'positions': ('startpos',), 'tensors': {'a': torch.zeros(1)}, 'weights': {'backbone.a': torch.zeros(1)}, 'about': {},
            'architecture': 'resnet', 'sign': 'x', 'paths': shards['stage2_data_path'], 'net': Net(backbone, stage.heads(cfg, 4)),
            'of': Net(backbone, stage.heads(cfg, 4)), 'folder_or_path': here/'x', 'url': 'memory://x',
            'a': 'cat', 'b': 'true', 'settings': {}, 'planned': [],
            'then': here, 'now': here, 'run': here, 'cfg': cfg, 'data': shards['stage2_data_path'],
            'streams': [], 'made_from': 'nothing', 'base': {}, 'arms': {'a': {}}, 'asked': {'arms': {}, 'seeds': []}}
    asked = lambda p: p.default is p.empty or p.name in ('paths', 'folder', 'data') and p.default is None
    every = [p for p in inspect.signature(f).parameters.values() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    return {p.name: fill[p.name] for p in every if p.name != given and asked(p)}

def use(f, given, url, more):
    "Call `f`, and use up what it gives"
    p = inspect.signature(f).parameters[given]
    if 'str' not in str(p.annotation) and 'UPath' in str(p.annotation): url = as_path(url)
    made = f(url, url, **more) if p.kind is p.VAR_POSITIONAL else f(**{given: url, **more})
    if isinstance(made, types.GeneratorType): list(made)
    elif isinstance(made, contextlib.AbstractContextManager) and not isinstance(made, type):
        with made: pass

def is_a_sentence(e):
    "Whether it is one of ours"
    own = isinstance(e, (FileError, OptionError, CheckpointError))
    ours = own or ('expected' in str(e) if isinstance(e, ValueError) else e.errno is None)
    return ours and len(str(e)) > 30 and '\n' not in str(e)

def asked(door, within):
    "Use a door: a result, or one sentence in time"
    began = time.monotonic()
    try: door()
    except (ValueError, OSError) as e: assert is_a_sentence(e), repr(e)
    assert time.monotonic() - began < within

@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    "Work in a folder of its own, in which nothing may be called as a URL begins"
    monkeypatch.chdir(tmp_path)
    (tmp_path/'local.txt').write_text('x')
    yield
    assert not (tmp_path/'s3:').exists()

@pytest.fixture
def no_account(monkeypatch, tmp_path):
    "No credentials, as on a new machine"
    for name in [n for n in os.environ if n.startswith('AWS_')]: monkeypatch.delenv(name)
    for name in ('AWS_SHARED_CREDENTIALS_FILE', 'AWS_CONFIG_FILE'): monkeypatch.setenv(name, str(tmp_path/'none'))
    monkeypatch.setenv('AWS_EC2_METADATA_DISABLED', 'true')
    monkeypatch.setitem(files.conf, 's3', {'use_listings_cache': False})     # another filesystem than other tests'

@pytest.mark.parametrize('f, given', doors())
def test_no_account(f, given, no_account, tmp_path, shards):
    asked(lambda: use(f, given, URL, filled(f, given, tmp_path, shards)), 10)

OPTIONS = [n for n, f in config_class().model_fields.items() if 'a path' in f.metadata]
SMALL = dict(gpu='cpu', model_size='tiny', resnet_channels=4, resnet_blocks=1, stage1_max_epochs=1, stage1_threshold=0.)

def with_option(name, url, shards):
    "Options of a small run, one of which is a URL"
    stage = next((n for n in '123' if f'stage{n}' in name), '1')
    stage = {'legal_moves': '2', 'policy': '3', 'value': '3'}.get(name.removeprefix('resume_').removesuffix('_head_from'), stage)
    return {**SMALL, 'stage': stage, f'stage{stage}_data_path': shards[f'stage{stage}_data_path'], name: url}

def train(**options): return learn_multi_stage(**options, callbacks=[Ends()])

class Ends(Callback):
    "Ends training after a step, as these tests are of its beginning"
    def after_step(self, loop): loop.stop.why = 'a test'

@pytest.mark.parametrize('door', [train, preflight, find_lr])
@pytest.mark.parametrize('name', OPTIONS)
def test_options_without_an_account(door, name, no_account, shards):
    more = {'steps': 3} if door is find_lr else {}
    asked(lambda: door(**with_option(name, URL, shards), **more), 10)

# --- a server that takes the connection and says nothing

def listen(server, reached, held):
    "Take every connection, and say nothing"
    while True:
        try: connection, _ = server.accept()
        except OSError: return                # closed
        reached.append(time.monotonic())
        held.append(connection)

@pytest.fixture
def silent(monkeypatch):
    "Its bucket, and when each connection to it came; nobody waits long for it here"
    reached, held = [], []
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        server.listen(512)
        threading.Thread(target=listen, args=(server, reached, held), daemon=True).start()
        once = {'connect_timeout': 1, 'read_timeout': 1, 'retries': {'total_max_attempts': 1}}
        monkeypatch.setitem(files.conf, 's3', {'endpoint_url': f'http://127.0.0.1:{server.getsockname()[1]}', 'key': 'a', 'secret': 'b',
                                               'config_kwargs': once})
        for name, value in (('PATIENCE', 0.3), ('LIMIT', 0.1)): monkeypatch.setattr(files, name, value)
        yield URL, reached
        server.shutdown(socket.SHUT_RDWR)
    for c in held: c.close()

def heard(door, reached, monkeypatch, within=10):
    "Use a door; if the server is long silent, a word is said soon after it was reached, as an export works before that"
    said, began = [], time.monotonic()
    monkeypatch.setattr(warnings, 'warn', lambda text, *rest, **more: said.append((time.monotonic(), str(text))))
    asked(door, within)
    since = min(reached, default=began)
    if time.monotonic() - since < 1: return
    words = [at for at, text in said if 'no answer for' in text]
    assert words and words[0] - since < 2 + files.PATIENCE, said      # as it is 8 s, within 10

FRONT = [d for d in doors() if d.values[0] in [getattr(maou_nb, n) for n in maou_nb.__all__]]
FEW = {d.id for d in FRONT[::10]}       # each waits for its patience to end: the rest in `make test-all`

@pytest.mark.parametrize('f, given', [d if d.id in FEW else pytest.param(*d.values, id=d.id, marks=pytest.mark.slow) for d in doors()])
def test_a_silent_server(f, given, silent, tmp_path, shards, monkeypatch):
    more = filled(f, given, tmp_path, shards)
    url, reached = silent
    heard(lambda: use(f, given, url, more), reached, monkeypatch)

@pytest.mark.slow
@pytest.mark.parametrize('name', [n for n in OPTIONS if n not in ('run_dir', 'log_dir', 'model_dir')])      # those are a mirror's
def test_options_of_a_silent_server(name, silent, shards, monkeypatch):
    url, reached = silent
    heard(lambda: train(**with_option(name, url, shards)), reached, monkeypatch, 30)

def test_a_dead_url_is_not_asked_once_a_stage(monkeypatch):
    "A place that does not answer for the shards of one stage would not for those of another"
    asked, real, dead = [], files._asked_again, 'http://127.0.0.1:1/run'
    monkeypatch.setattr(files, 'TRIES', 1)
    monkeypatch.setattr(files, '_asked_again', lambda f, what: asked.append(what) or real(f, what))
    with pytest.raises(CheckpointError, match='is the network up'): maou_nb.show_results(dead)
    assert asked.count(f'listing {dead}') == 1
