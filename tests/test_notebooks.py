"""Every notebook is a test, run by nbdev itself; cells flagged `slow` come in with `make test-all`, `gpu` only where there is one"""
import random, re
from pathlib import Path

import numpy as np
import pytest, torch
from fastcore.xtras import working_directory
from nbdev.config import get_config
from nbdev.test import test_nb as run_nb

from conftest import kept_registries

ROOT = Path(__file__).resolve().parents[1]
with working_directory(ROOT): FLAGS = set(get_config().tst_flags.split())
NBS = sorted(o for o in (ROOT/'nbs').rglob('*.ipynb') if not {'tutorials', '.ipynb_checkpoints'} & set(o.parts))
SLOW = [o for o in NBS if re.search(r'"\s*#\s*\|\s*slow', o.read_text(encoding='utf-8'))]

def name(path):
    "`path` as pytest lists it"
    return path.relative_to(ROOT/'nbs').with_suffix('').as_posix()

@pytest.fixture(autouse=True)
def fresh():
    "The notebooks share a process: each starts with the same seeds, and leaves torch and the environment as they were"
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    dtype, threads, deterministic = torch.get_default_dtype(), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with pytest.MonkeyPatch.context() as mp, kept_registries():
        mp.setenv('IN_TEST', '1')  # nbdev sets it and leaves it set
        mp.syspath_prepend(ROOT)
        yield
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)

def check(nb, skip, capfd):
    "Run notebook `nb` but for cells with a flag of `skip`; fail with nbdev's account of the cell that failed"
    ok, _ = run_nb(nb, skip_flags=skip)
    if not ok: pytest.fail(capfd.readouterr().err, pytrace=False)

@pytest.mark.parametrize('nb', NBS, ids=name)
def test_notebook(nb, capfd):
    check(nb, FLAGS, capfd)

@pytest.mark.slow
@pytest.mark.parametrize('nb', SLOW, ids=name)
def test_notebook_with_slow_cells(nb, capfd):
    check(nb, FLAGS - {'slow'} - ({'gpu'} if torch.cuda.is_available() else set()), capfd)
