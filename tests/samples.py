"The sample games, and shards made of them once a test run"
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GAMES = ROOT/'samples'/'games'
ONE_FILE = GAMES/'selfplay-0.csa'   # 50 games

def thinned(cases, every):
    "`cases` for `parametrize`: each so many-th in `make test`, all in `make test-all`"
    of = lambda case: case if isinstance(case, tuple) else (case,)
    return [case if not i % every else pytest.param(*of(case), marks=pytest.mark.slow) for i, case in enumerate(cases)]

def said(error):
    "The message of `error`, checked to be one sentence on one line"
    text = str(error.value)
    assert '\n' not in text and 'Traceback' not in text, text
    return text
