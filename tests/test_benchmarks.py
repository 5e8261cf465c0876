"Benchmarks whose figures are kept: the script that measures a GPU runs, on a CPU too, and its results can be read"
import json, os, subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GPU = ROOT/'benchmarks'/'gpu.py'
KINDS = {'speed', 'resume', 'syncs'}

def run(*words):
    "`benchmarks/gpu.py` with `words`, on the CPU, compiling nothing, which would take most of the time"
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', 'TORCH_COMPILE_DISABLE': '1'}
    return subprocess.run([sys.executable, GPU, '--tiny', *map(str, words)], env=env, capture_output=True, text=True)

def lines_of(*words):
    "The lines that it prints"
    done = run(*words)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]

def skipped(lines):
    "Jobs that were not done"
    return [(line['what'], line['words']) for line in lines if line['kind'] == 'skipped']

@pytest.mark.slow
def test_gpu_check_runs_and_goes_on(tmp_path):
    out = tmp_path/'made'/'lines.jsonl'
    asked = '--only', ','.join(sorted(KINDS))
    lines = lines_of(*asked, '--budget', 20, '--out', out)
    assert lines == [json.loads(line) for line in out.read_text().splitlines()]
    assert lines[0]['kind'] == 'machine' and lines[0]['device'] == 'cpu' and lines[0]['date']
    assert str(tmp_path.parent) not in str(lines)
    assert {line['kind'] for line in lines[1:]} - {'skipped'} <= KINDS         # none is an error
    assert {line.get('what', line['kind']) for line in lines[1:]} == KINDS
    assert all(line['pure'] > 0 and line['epoch'] > 0 for line in lines if line['kind'] == 'speed')
    resumed = [line for line in lines if line['kind'] == 'resume']
    assert resumed and all(line['resumed_equal'] is True and line['run_twice_equal'] for line in resumed)
    left = lines_of(*asked, '--budget', 0, '--skip-done', out)
    assert len(left) == 1 + len(skipped(left)) and skipped(left) == skipped(lines)

@pytest.mark.slow
def test_gpu_check_refuses_what_there_is_not():
    assert 'no job is called sped: there are speed, ' in run('--only', 'sped').stderr
    assert 'nowhere.jsonl is no file' in run('--skip-done', 'nowhere.jsonl').stderr

def test_first_sights_are_timed():
    "In a fresh kernel, of which a line says how long it took, and one where imports spend their time"
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    command = [sys.executable, ROOT/'benchmarks'/'first_sight.py', '--rounds', '1', '--only']
    done = subprocess.run([*command, 'import,board'], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    machine, first, board, imports = map(json.loads, done.stdout.splitlines())
    assert machine['kind'] == 'machine' and first['of'] == 'import' and imports['seconds']['maou_nb'] > 0
    assert 0 < first['seconds'] < board['seconds'] and board['rounds'] == [board['seconds']]
    assert "'bord': one of import, " in subprocess.run([*command, 'bord'], env=env, capture_output=True, text=True).stderr

@pytest.mark.parametrize('path', sorted((ROOT/'benchmarks'/'results').glob('*.jsonl')), ids=lambda p: p.stem)
def test_results_can_be_read(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines and all(isinstance(line['kind'], str) for line in lines)

def test_the_guide_shows_what_was_measured():
    "Its table of rates and shares of the peak is that of the kept lines"
    lines = [json.loads(line) for line in (ROOT/'benchmarks'/'results'/'gpu-h200.jsonl').read_text().splitlines()]
    newest = max(i for i, x in enumerate(lines) if x['kind'] == 'machine')
    of = lambda kind, **what: [x for x in lines[newest:] if x['kind'] == kind and what.items() <= x.items()]
    cells = json.loads((ROOT/'nbs'/'guides'/'89_measured.ipynb').read_text(encoding='utf-8'))['cells']
    guide = ''.join(line for cell in cells for line in [*cell['source'], '\n']).splitlines()
    rows = [line.split('|')[1:-1] for line in guide if line.startswith('|') and line.endswith(' % |') and line.count('|') == 6]
    assert len(rows) == 3
    for name, *shown in ([cell.strip() for cell in row] for row in rows):
        for rate, share, compiled in ((*shown[:2], False), (*shown[2:], True)):
            x = of('speed', architecture=name.lower(), precision='bf16', compiled=compiled)[0]
            assert float(rate.replace(',', '')) == pytest.approx(x['epoch'], rel=0.01)
            assert float(share[:-2])/100 == pytest.approx(x['mfu_epoch'], abs=0.005)
    for x in of('speed', precision='bf16'): assert x['epoch_of_pure'] >= 0.965 and x['loader_wait'] < 0.01
    assert f"{lines[newest]['date']};" in '\n'.join(guide)
    net, *_, rate, share = (cell.strip() for cell in rows[0])
    assert f'{net} at {rate} positions a second, {share} of' in (ROOT/'README.md').read_text()
    h100 = [json.loads(line) for line in (ROOT/'benchmarks'/'results'/'gpu-h100-80gb-hbm3.jsonl').read_text().splitlines()]
    for compiled, said in ((False, 'trains at {} of the rate'), (True, 'compiled at {} (H100)')):
        learned, relative = ([x['epoch'] for x in h100 if x['kind'] == 'speed' and x['architecture'] == 'vit' and x['precision'] == 'bf16'
                              and x['compiled'] is compiled and x.get('vit_position') == p][-1] for p in (None, 'relative'))
        assert said.format(f'{relative/learned:.2f}') in '\n'.join(guide)
    assert of('resume') and all(x['resumed_equal'] for x in lines if x['kind'] == 'resume')
