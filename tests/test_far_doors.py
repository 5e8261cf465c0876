"""Every public function and option that takes a path, given a URL that nobody may read, or of a server that does not answer

They are found by their signatures, so that a new one is asked, too. A result or one of our sentences, and nothing on this disk.
"""
import contextlib, importlib, inspect, io, os, pkgutil, socket, time, types, warnings

import numpy as np
import pyarrow as pa
import pytest
import torch

import maou_nb
from maou_nb.data import files
from maou_nb.data.games import Game
from maou_nb.data.files import FarError, FileError
from maou_nb.data.options import OptionError
from maou_nb.train.checkpoints import CheckpointError
from maou_nb.train.options import config_class

pytest.importorskip('s3fs')
URL = 's3://nobodys-bucket/here'
SENTENCES = FileError, OptionError, CheckpointError, FileNotFoundError, PermissionError

def takes_a_path(p):
    "Whether a parameter is a path that may be given as text"
    said = str(p.annotation)
    bare = p.annotation is p.empty and p.name in ('of', 'data', 'run', 'runs', 'path', 'paths', 'folder', 'url')
    return 'str | pathlib.Path' in said or 'UPath' in said or bare or p.name == 'url'

def public():
    "(name, function or class) of everything public in the library"
    for m in pkgutil.walk_packages(maou_nb.__path__, 'maou_nb.'):
        if m.name.endswith('__main__'): continue
        room = importlib.import_module(m.name)
        for name in getattr(room, '__all__', ()):
            found = getattr(room, name)
            if callable(found) and getattr(found, '__module__', None) == m.name: yield f'{m.name.removeprefix("maou_nb.")}.{name}', found

def doors():
    "(function, parameter) of every path of everything public"
    for name, f in public():
        try: parameters = inspect.signature(f).parameters.values()
        except ValueError: continue
        for p in parameters:
            if takes_a_path(p): yield pytest.param(f, p.name, id=f'{name}-{p.name}')

def filled(f, given, tmp_path, shards):
    "Something for each parameter that must be given"
    fill = {'stage': 2, 'sfen': 'startpos', 'what': 'files', 'name': 'backbone', 'head': 'policy_head', 'local': tmp_path/'local.txt', 'working': True,
            'said_by': 'a test', 'endings': '.csa', 'there': {}, 'advice': 'look', 'suffixes': ('.csa',), 'games': [], 'path': tmp_path/'x',
            'folder': tmp_path/'f', 'to': tmp_path/'to', 'source': io.BytesIO(b'x'), 'file': 'x', 'table': pa.table({'id': [1]}), 'tables': [],
            'prepared_from': 'x', 'entries': [], 'make': lambda *a, **k: None, 'ratio': 0.1, 'error': OSError(5, 'Input/output error'),
            'positions': ('startpos',), 'tensors': {'a': torch.zeros(1)}, 'weights': {'backbone.a': torch.zeros(1)}, 'about': {},
            'architecture': 'resnet', 'sign': 'x', 'paths': shards['stage2_data_path'], 'checkpoint_or_net': tmp_path/'x', 'net': tmp_path/'x',
            'folder_or_path': tmp_path/'x', 'of': tmp_path/'x', 'url': 'memory://x', 'then': tmp_path, 'now': tmp_path, 'run': tmp_path}
    parameters = inspect.signature(f).parameters.values()
    needed = [p for p in parameters if p.default is p.empty and p.name != given and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    return {p.name: fill[p.name] for p in needed}

def opened(f, given, url, more):
    "Call `f`, and use up what it gives"
    kind = inspect.signature(f).parameters[given].kind
    made = f(url, url, **more) if kind is inspect.Parameter.VAR_POSITIONAL else f(**{given: url, **more})
    if isinstance(made, types.GeneratorType): list(made)
    elif isinstance(made, contextlib.AbstractContextManager) and not isinstance(made, type):
        with made: pass

def asked(door, within):
    "Use a door; a sentence at most, in time"
    began, error = time.monotonic(), None
    try: door()
    except SENTENCES as e: error = e
    assert time.monotonic() - began < within
    if error is not None: assert '\n' not in str(error) and len(str(error)) > 30 and 'expected' in str(error) or isinstance(error, FarError), repr(error)
    return error

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
    asked(lambda: opened(f, given, URL, filled(f, given, tmp_path, shards)), 10)
