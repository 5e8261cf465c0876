"""What of the set-up can be tried in a moment and without a network"""
import os, re, subprocess, tomllib
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

def sh(*cmd, **env):
    "Run `cmd` in the project's folder, with variables `env` set"
    return subprocess.run(cmd, cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, timeout=60)

def setup(venv, python):
    "Run the set-up into `venv` with a script in place of Python; its one sentence"
    script = venv.with_name('python')
    script.write_text(f'#!/bin/sh\n{python}\n')
    script.chmod(0o755)
    done = sh('tools/setup.sh', str(venv), PYTHON=str(script))
    assert done.returncode == 1 and done.stdout == ''
    assert done.stderr.startswith('setup: ') and done.stderr.count('\n') == 1
    return done.stderr

@pytest.mark.parametrize('script', ['tools/setup.sh', '.ci/run'])
def test_scripts_parse(script):
    assert sh('bash', '-n', script).returncode == 0
    assert os.access(ROOT/script, os.X_OK)

def test_old_python_is_refused(tmp_path):
    err = setup(tmp_path/'venv', 'echo 3.9')
    assert 'Python 3.9' in err and '3.11 or newer' in err
    assert not (tmp_path/'venv').exists()

def test_newer_python_is_newer(tmp_path):
    # 3.100 is no 3.10: it is refused for its missing venv only
    assert 'virtual environments' in setup(tmp_path/'venv', 'case "$2" in *ensurepip*) exit 1;; esac; echo 3.100')

def test_missing_venv_names_the_package(tmp_path):
    assert 'apt install python3.12-venv' in setup(tmp_path/'venv', 'case "$2" in *ensurepip*) exit 1;; esac; echo 3.12')

def test_missing_python_is_named(tmp_path):
    done = sh('tools/setup.sh', str(tmp_path/'venv'), PYTHON='/nowhere/python')
    assert done.returncode == 1 and '/nowhere/python' in done.stderr and done.stderr.count('\n') == 1

def test_foreign_folder_is_left_alone(tmp_path):
    mine = tmp_path/'venv'/'mine.txt'
    mine.parent.mkdir()
    mine.write_text('dear')
    assert 'no virtual environment' in setup(mine.parent, 'echo 3.12')
    assert mine.read_text() == 'dear'

def test_make_knows_its_targets():
    dry = sh('make', '-n', 'demo', 'test')
    assert dry.returncode == 0, dry.stderr
    assert 'tools/demo.py' in dry.stdout and 'not slow' in dry.stdout
    for target in ('demo', 'test', 'test-all', 'gpu-check', 'notebooks', 'export', 'clean'): assert f'make {target} ' in sh('make').stdout

def test_pyproject_says_what_the_settings_say():
    "Where nbdev 3 and setuptools want a value in pyproject.toml itself, it is that of settings.ini"
    toml = tomllib.loads((ROOT/'pyproject.toml').read_text(encoding='utf-8'))
    ini = ConfigParser(delimiters=['='], interpolation=None)
    ini.read(ROOT/'settings.ini', encoding='utf-8')
    cfg, project, nbdev = ini['DEFAULT'], toml['project'], toml['tool']['nbdev']
    assert project['name'] == cfg['lib_name']
    assert project['requires-python'] == '>=' + cfg['min_python']
    assert project['urls'] == {'Repository': cfg['git_url'],
                               'Documentation': cfg['doc_host'] + cfg['doc_baseurl']}
    assert (ROOT/nbdev.pop('nbs_path')).resolve() == ROOT/cfg['nbs_path']
    for k, v in nbdev.items(): assert str(v) == cfg[k], k

def test_versions_agree():
    "CITATION.cff has the version of settings.ini, the Dockerfile the torch of the set-up"
    found = lambda name, pattern: re.search(pattern, (ROOT/name).read_text(), re.M)[1]
    assert found('CITATION.cff', '^version: (.+)$') == found('settings.ini', '^version = (.+)$')
    assert found('Dockerfile', '^ARG TORCH=(.+)$') == found('tools/setup.sh', '^TORCH=(.+)$')
