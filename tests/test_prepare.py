"Sets of shards: the same bytes whoever does the work, taken up again where it was killed, filtered with honest counts"
import json, os, shutil, signal, subprocess, sys, time, zipfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.ipc
import pytest
from rsshogi.core import Board, Move

from maou_nb import learn_multi_stage
from maou_nb.data import prepare
from maou_nb.data.games import game_of
from maou_nb.data.packed import write_hcpe, write_hcpe3
from maou_nb.data.positions import add_up, positions, tally, tally_table
from maou_nb.stages.rows import prepare_stage2, prepare_stage3
from maou_nb.data.records import Filters, read_games
from maou_nb.data.shards import find_shards, read_manifest, read_shard
from maou_nb.front.options import try_config
from maou_nb.judge.inspect import shard_info
from samples import GAMES, ONE_FILE, said

SMALL = dict(rows_per_shard=7_000)
START = 'lnsgkgsnl/1r5b1/ppppppppp/9/9/9/PPPPPPPPP/1B5R1/LNSGKGSNL b -'

def shas(folder, stage=3): return {s.path.name: s.sha256 for s in find_shards(folder, stage)}

@pytest.fixture(autouse=True)
def small_tasks(monkeypatch):
    "Many small tasks in place of one; they are cut here, in the process that hands them out"
    monkeypatch.setattr(prepare, 'BYTES_PER_TASK', 150_000)
    monkeypatch.setattr(prepare, 'PLIES_PER_RUN', 6_000)
    monkeypatch.setattr(prepare, 'cores', lambda: 1)      # processes are a test's own choice

@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    "The set that one thread makes of all sample games"
    out = tmp_path_factory.mktemp('alone')
    return prepare_stage3(GAMES, out, **SMALL)

@pytest.mark.parametrize('workers', [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(4, marks=pytest.mark.slow)])
def test_same_bytes_with_any_number_of_processes(tmp_path, alone, workers):
    with ProcessPoolExecutor(workers, mp_context=get_context('spawn')) as pool:
        made = prepare_stage3(GAMES, tmp_path, executor=pool, **SMALL)
    assert shas(tmp_path) == shas(alone.folder) and made.rows == alone.rows and len(shas(tmp_path)) == made.shards == 4

def test_same_bytes_with_threads_and_large_tasks(tmp_path, alone, monkeypatch):
    monkeypatch.undo()
    with ThreadPoolExecutor(2) as pool: prepare_stage3(GAMES, tmp_path, executor=pool, **SMALL)
    assert shas(tmp_path) == shas(alone.folder)

def test_same_bytes_on_a_dask_cluster(tmp_path, alone):
    distributed = pytest.importorskip('distributed')
    with (distributed.LocalCluster(2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
          distributed.Client(cluster) as client):
        prepare_stage3(GAMES, tmp_path, executor=client.get_executor(), **SMALL)
    assert shas(tmp_path) == shas(alone.folder)

DIES = """
import sys, time, maou_nb.data.prepare as p
from maou_nb.stages.rows import prepare_stage3
p.BYTES_PER_TASK, p.PLIES_PER_RUN, p.cores = 150_000, 6_000, lambda: 1
expand = p._expand_task
def slowly(task): made = expand(task); time.sleep(0.2); return made
p._expand_task = slowly
prepare_stage3(sys.argv[1], sys.argv[2], rows_per_shard=7_000)
"""

def test_killed_and_called_again_it_goes_on(tmp_path, alone):
    "After kill -9 nothing that was done is done again, nothing lies about in the end, and the bytes are the same"
    child = subprocess.Popen([sys.executable, '-c', DIES, str(GAMES), str(tmp_path)], stderr=subprocess.DEVNULL)
    done = lambda: sorted((tmp_path/'.preparing').glob('*.arrow.json')) if (tmp_path/'.preparing').exists() else []
    began = time.time()
    while len(done()) < 7 and child.poll() is None and time.time() - began < 60: time.sleep(0.02)
    child.kill(); child.wait()
    assert child.returncode == -signal.SIGKILL, 'it was to be killed in the middle'
    kept = {p: (p.stat().st_mtime_ns, p.with_suffix('').stat().st_mtime_ns) for p in done()}
    assert len(kept) >= 7 and not list(tmp_path.glob('*.feather'))

    touched = {}
    real = prepare._merge_task
    def watch(task):
        touched.update({p: (p.stat().st_mtime_ns, p.with_suffix('').stat().st_mtime_ns) for p in kept})
        return real(task)
    prepare._merge_task = watch
    try: made = prepare_stage3(GAMES, tmp_path, **SMALL)
    finally: prepare._merge_task = real
    assert touched == kept and made.resumed == len(kept)
    assert shas(tmp_path) == shas(alone.folder) and not (tmp_path/'.preparing').exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in alone.folder.iterdir())

def test_a_spoiled_part_is_made_anew(tmp_path, alone, monkeypatch):
    real = prepare._merge_task
    def stop(task): raise KeyboardInterrupt
    monkeypatch.setattr(prepare, '_merge_task', stop)
    with pytest.raises(KeyboardInterrupt, match='what is done is kept'): prepare_stage3(GAMES, tmp_path, **SMALL)
    runs = sorted((tmp_path/'.preparing').glob('run-*.arrow'))
    raw = bytearray(runs[0].read_bytes()); raw[len(raw)//2] ^= 255; runs[0].write_bytes(raw)
    runs[1].unlink()
    tasks = len(list((tmp_path/'.preparing').glob('*.arrow')))
    monkeypatch.setattr(prepare, '_merge_task', real)
    made = prepare_stage3(GAMES, tmp_path, **SMALL)
    assert made.resumed == tasks - 1 and shas(tmp_path) == shas(alone.folder)      # one of the counted was spoiled, another gone

def test_one_more_file_reads_only_that(tmp_path):
    "A record that is mended after a failure does not cost the others"
    (tmp_path/'in').mkdir()
    for f in sorted(GAMES.glob('*.csa'))[:3]: (tmp_path/'in'/f.name).write_bytes(f.read_bytes())
    text = ONE_FILE.read_text()
    (tmp_path/'in'/'z.csa').write_text(text.replace('+2726FU', '+2725FU', 1))
    with pytest.raises(ValueError): prepare_stage3(tmp_path/'in', tmp_path/'out')
    (tmp_path/'in'/'z.csa').write_text(text)
    assert prepare_stage3(tmp_path/'in', tmp_path/'out').resumed == 3

def test_the_set_before_stays_until_the_new_one_is_whole(tmp_path, monkeypatch):
    made = prepare_stage3(ONE_FILE, tmp_path, rows_per_shard=2_000)
    before = {s.path: read_shard(s) for s in find_shards(tmp_path, 3)}
    def stop(*a, **k): raise KeyboardInterrupt
    monkeypatch.setattr(prepare, 'write_manifest', stop)
    with pytest.raises(KeyboardInterrupt): prepare_stage3(GAMES, tmp_path, rows_per_shard=2_000)
    assert {p: p.exists() for p in before} == dict.fromkeys(before, True)
    assert read_manifest(tmp_path)['rows'] == made.rows

def test_shards_that_a_killed_call_left_are_taken_away(tmp_path, alone):
    "They lie beside the set that is made instead, which another number of rows a shard calls otherwise; files of others stay"
    left = tmp_path/'stage3-00000-of-00009-77a7e7ec.feather'
    others = [tmp_path/'stage2-00000-of-00009-77a7e7ec.feather', tmp_path/'mine.feather', tmp_path/'stage3-00000-of-00009.feather']
    for p in (left, *others): shutil.copy(next(alone.folder.glob('*.feather')), p)
    prepare_stage3(GAMES, tmp_path, **SMALL)
    assert not left.exists() and all(p.exists() for p in others)
    for p in others: p.unlink()
    assert shas(tmp_path) == shas(alone.folder)

def test_a_worker_that_dies_is_one_sentence(tmp_path):
    "As when memory runs out, or a script without a main guard starts itself again"
    script = tmp_path/'script.py'
    script.write_text(f"""
import maou_nb.data.prepare as p
from maou_nb.stages.rows import prepare_stage3
p.BYTES_PER_TASK, p.PLIES_PER_RUN, p.cores = 100_000, 6_000, lambda: 2
prepare_stage3({str(GAMES)!r}, {str(tmp_path/'out')!r})
""")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 1 and "lacks `if __name__ == '__main__':`" in done.stderr.strip().splitlines()[-1]

# a shell's background jobs, such as these tests may be, are deaf to interrupts, and so is what they start
INTERRUPTED = """
import signal, sys, maou_nb.data.prepare as p
signal.signal(signal.SIGINT, signal.default_int_handler)
from maou_nb.stages.rows import prepare_stage3
p.BYTES_PER_TASK, p.PLIES_PER_RUN, p.cores = 100_000, 3_000, lambda: 2
if __name__ == '__main__': prepare_stage3(sys.argv[1], sys.argv[2], rows_per_shard=7_000)
"""

@pytest.mark.parametrize('times', [pytest.param(1, marks=pytest.mark.slow), 2])      # once: tests/test_cli.py
def test_an_interrupt_ends_it_and_its_processes(tmp_path, alone, times):
    "Ctrl-C goes to the whole group of processes; an impatient reader presses it again"
    (tmp_path/'script.py').write_text(INTERRUPTED)
    child = subprocess.Popen([sys.executable, tmp_path/'script.py', GAMES, tmp_path/'out'],
                             stderr=subprocess.PIPE, text=True, start_new_session=True)
    began = time.time()
    while not list((tmp_path/'out'/'.preparing').glob('run-*.json')) and child.poll() is None and time.time() - began < 60: time.sleep(0.02)
    for _ in range(times): os.killpg(child.pid, signal.SIGINT); time.sleep(0.1)
    said = child.communicate(timeout=20)[1]
    assert child.returncode and 'KeyboardInterrupt' in said
    for _ in range(50):
        try: os.killpg(child.pid, 0)
        except ProcessLookupError: break
        time.sleep(0.1)
    else: raise AssertionError('a process of its group lives on')
    assert prepare_stage3(GAMES, tmp_path/'out', **SMALL).rows == alone.rows and shas(tmp_path/'out') == shas(alone.folder)

def test_what_is_not_looked_at_is_said(tmp_path):
    (tmp_path/'in').mkdir()
    for name in ('a.csa', 'b.dat', 'c.txt', 'd'): (tmp_path/'in'/name).write_bytes(ONE_FILE.read_bytes())
    with zipfile.ZipFile(tmp_path/'in'/'e.zip', 'w') as z: z.writestr('readme.txt', 'hello'); z.writestr('e.csa', ONE_FILE.read_text())
    made = prepare_stage3(tmp_path/'in', tmp_path/'out', filters=Filters(duplicates=True))
    assert made.games == 100 and made.passed_over == {'.dat': 1, '.txt': 2, 'none': 1}      # one of them in the zip
    assert '4 files of other endings not looked at: .dat .txt none' in repr(made)

# --- filters

@pytest.fixture(scope='module')
def mixed(tmp_path_factory):
    "The sample games, 50 of them ended by the clock"
    folder = tmp_path_factory.mktemp('mixed')
    for f in GAMES.glob('*.csa'):
        text = f.read_text()
        if f == ONE_FILE: text = text.replace('%TORYO', '%TIME_UP').replace("'summary:toryo", "'summary:time up")
        (folder/f.name).write_text(text)
    return folder

def positions_of(folder): return pl.concat([pl.from_arrow(read_shard(s)) for s in find_shards(folder, 3)])

@pytest.mark.parametrize('filters, stays', [
    (Filters(min_rating=1900), lambda g: min(g.ratings) >= 1900), (Filters(min_plies=80), lambda g: len(g) >= 80),
    (Filters(max_plies=80), lambda g: len(g) <= 80),
    (Filters(ends='%TORYO'), lambda g: g.end == '%TORYO')], ids=['rating', 'min plies', 'max plies', 'end'])
def test_a_filter_on_games_acts_and_counts(tmp_path, mixed, filters, stays):
    games = list(read_games(mixed))
    wanted = [g for g in games if stays(g)]
    made = prepare_stage3(mixed, tmp_path, filters=filters)
    assert 0 < len(wanted) < 300 and made.games == len(wanted) and made.positions == sum(map(len, wanted))
    assert (made.filters.games, made.filters.positions) == (300, sum(map(len, games)))
    removed = [sum(r[i] for r in made.filters.removed) for i in (1, 2)]
    assert removed == [300 - len(wanted), sum(map(len, games)) - sum(map(len, wanted))]
    rows = positions_of(tmp_path)
    assert set(rows['game'].to_list()) <= {g.key for g in wanted} and rows['count'].sum() == made.positions
    assert pl.read_parquet(tmp_path/'games.parquet')['game'].to_list() == [g.key for g in wanted]

def test_filters_on_plies_act_and_count(tmp_path):
    games = list(read_games(ONE_FILE))
    made = prepare_stage3(ONE_FILE, tmp_path, filters=Filters(skip_plies=20, eval_range=(-300, 300)))
    late = [(g, i) for g in games for i in range(20, len(g))]
    side = lambda g, i: 1 if (g.start.split()[1] == 'b') == (i % 2 == 0) else -1
    near = [(g, i) for g, i in late if not abs(g.evals[i]*side(g, i)) > 300]
    assert made.filters.removed[-2:] == [('before ply 21', 0, sum(map(len, games)) - len(late)),
                                         ('eval outside -300 … 300', 0, len(late) - len(near))]
    rows = positions_of(tmp_path)
    assert made.positions == rows['count'].sum() == len(near) and rows['ply'].min() >= 20
    assert rows['evalMean'].drop_nulls().abs().max() <= 300

def test_second_copies_go_whatever_they_are_called(tmp_path):
    (tmp_path/'in').mkdir()
    for name in 'ab': (tmp_path/'in'/f'{name}.csa').write_text(ONE_FILE.read_text().replace('SuishoPetite', name))
    one, kept = (prepare_stage3(tmp_path/'in', tmp_path/'out'),
                 prepare_stage3(tmp_path/'in', tmp_path/'both', filters=Filters(duplicates=True)))
    assert one.games == 50 and kept.games == 100 and kept.positions == 2*one.positions
    assert positions_of(tmp_path/'both')['count'].sum() == 2*positions_of(tmp_path/'out')['count'].sum()
    assert ('second copy of a game', 50, one.positions) in one.filters.removed

# --- visits of a search

@pytest.fixture
def searched(tmp_path):
    "HCPE3 of 20 games, each position's played move visited 90 times and another legal one 10 times"
    from maou_nb.data.games import Visits
    games = []
    for g in list(read_games(ONE_FILE))[:20]:
        board, moves = Board(g.start + ' 1'), []
        for m in g.moves.tolist():
            other = next((int(o) for o in board.legal_moves() if int(o) != m), None)
            moves.append([m] + [other]*(other is not None))
            board.apply_move(Move(m))
        n = np.array([len(m) for m in moves], np.uint16); n[0] = 0       # the first ply was played without a search
        flat = np.array([x for m in moves[1:] for x in m], np.uint16)
        counts = np.concatenate([[90, 10][:k] for k in n[1:]]).astype(np.uint32)
        made = game_of(g.start, g.moves, g.evals, g.result); made.visits = Visits(n, flat, counts)
        games.append(made)
    write_hcpe3(games, tmp_path/'a.hcpe3')
    return games, tmp_path/'a.hcpe3'

def test_visits_become_policy_targets(tmp_path, searched):
    games, path = searched
    prepare_stage3(path, tmp_path/'out')
    assert read_manifest(tmp_path/'out')['policy'] == 'visits'
    rows = positions_of(tmp_path/'out')
    assert rows['count'].sum() == sum(len(g) - 1 for g in games)        # positions without a search have no target
    single = rows.filter((pl.col('count') == 1) & (pl.col('moveLabels').list.len() == 2))
    assert len(single) > 500 and set(map(tuple, single['moveCounts'].list.sort().to_list())) == {(f32(0.1), f32(0.9))}
    by_games = prepare_stage3(path, tmp_path/'games', policy='games')
    assert positions_of(tmp_path/'games')['moveCounts'].list.sum().sum() == by_games.positions == sum(map(len, games))

def f32(x): return float(np.float32(x))

def test_positions_that_were_not_searched_are_counted(tmp_path, searched):
    games, path = searched
    made = prepare_stage3(path, tmp_path/'out')
    assert ('not searched', 0, 20) in made.filters.removed and made.positions == sum(len(g) - 1 for g in games)

def test_policy_says_how_visits_and_games_are_mixed(tmp_path, searched):
    both = [searched[1], ONE_FILE]
    with pytest.raises(ValueError) as e: prepare_stage3(both, tmp_path/'out')
    assert '20 of 70 games carry the visits' in said(e) and "policy='games'" in said(e) and "policy='visits'" in said(e)
    assert not (tmp_path/'out'/'manifest.json').exists()
    made = {p: prepare_stage3(both, tmp_path/p, policy=p, filters=Filters(duplicates=True)) for p in ('games', 'visits', 'summed-visits')}
    rows = {p: positions_of(tmp_path/p) for p in made}
    n = sum(len(g) for g in read_games(ONE_FILE))
    assert [m.games for m in made.values()] == [70, 70, 20] and made['visits'].positions == n + sum(len(g) - 1 for g in searched[0])
    weights = rows['visits'].select(pl.col('moveCounts').list.sum(), 'count')
    assert (weights['moveCounts'] - weights['count']).abs().max() < 1e-4          # each position weighs 1
    single = rows['summed-visits'].filter(pl.col('count') == 1)['moveCounts'].list.sum()
    assert set(single.to_list()) <= {90, 100}
    assert [read_manifest(tmp_path/p).get('policy_temperature') for p in made] == [None, 1, None]

@pytest.mark.parametrize('temperature', [0.5, 2.])
def test_the_temperature_of_visits(tmp_path, searched, temperature):
    prepare_stage3(searched[1], tmp_path/'out', policy_temperature=temperature)
    power = np.array([10., 90.])**(1/temperature)
    single = positions_of(tmp_path/'out').filter((pl.col('count') == 1) & (pl.col('moveLabels').list.len() == 2))
    assert np.allclose(np.sort(np.array(single['moveCounts'].to_list())), power/power.sum(), atol=1e-6)
    shard = find_shards(tmp_path/'out', 3)[0]
    about = json.loads(pa.ipc.open_file(str(shard.path)).schema.metadata[b'maou_nb'])
    for said_of_it in (about, read_manifest(tmp_path/'out')):
        assert (said_of_it['policy'], said_of_it['policy_temperature']) == ('visits', temperature)

@pytest.mark.parametrize('options,sentence', [
    (dict(policy_temperature=0), 'policy_temperature=0: a finite number above 0'),
    (dict(policy_temperature=float('nan')), 'policy_temperature=nan: a finite number above 0'),
    (dict(policy_temperature=2, policy='games'), "policy_temperature=2: it is of policy='visits'"),
    (dict(policy_temperature=2), "policy_temperature=2: it is of policy='visits'"),         # nothing was searched
    (dict(eval_average='mean'), "eval_average='mean': 'centipawns' or 'win-rate'"),
    (dict(eval_scale=600), "eval_scale=600 with eval_average='centipawns'"),
    (dict(eval_average='win-rate', eval_scale=-1), 'eval_scale=-1: a finite number above 0'),
    (dict(policy='raw'), "policy='raw': 'games', 'visits', 'summed-visits' or none")])
def test_what_counting_cannot_be(tmp_path, options, sentence):
    with pytest.raises(ValueError) as e: prepare_stage3(ONE_FILE, tmp_path/'out', **options)
    assert sentence in said(e)

def test_evals_averaged_as_win_rates_carry_their_scale(tmp_path):
    "The mean of the sigmoids; training at another scale is refused, a set without a scale trains at any"
    prepare_stage3(ONE_FILE, tmp_path/'cp')
    prepare_stage3(ONE_FILE, tmp_path/'rate', eval_average='win-rate', eval_scale=400)
    assert [s.eval_scale for f in ('cp', 'rate') for s in find_shards(tmp_path/f, 3)] == [None, 400]
    (tmp_path/'rate'/'manifest.json').rename(tmp_path/'kept.json')
    assert find_shards(tmp_path/'rate', 3)[0].eval_scale == 400         # the file says it, too
    (tmp_path/'kept.json').rename(tmp_path/'rate'/'manifest.json')
    kept = [positions_of(tmp_path/f).sort('id', 'fold') for f in ('cp', 'rate')]
    once = kept[0]['count'] == 1
    cp, rate = (t.filter(once)['evalMean'].to_numpy() for t in kept)
    known = ~np.isnan(cp) & (np.abs(cp) < 3000)
    assert known.sum() > 3000 and np.abs(cp - rate)[known].max() < 0.1
    small = dict(model_size='tiny', epoch=1, gpu='cpu', stage3_batch_size=512, value_result_weight=0.5)
    for stage, scale in (('rate', 756.0864962951762), ('rate', 600), ('cp', 600)):
        problems = try_config(dict(small, stage3_data_path=tmp_path/stage, eval_scale=scale))[1]
        if stage == 'cp': assert not problems
        else: assert any(p.startswith(f'eval_scale={scale:g}: evals of ') and 'at eval_scale=400;' in p for p in problems)
    assert not try_config(dict(small, stage3_data_path=tmp_path/'rate', eval_scale=400))[1]
    assert 'eval_scale 400' in repr(shard_info(tmp_path/'rate'))

def test_many_equal_positions_have_the_mean_of_their_win_rates(tmp_path):
    "One mate among small evals: in centipawns it is clipped, as a win rate it is one vote"
    evals, first = [30000, 100, -50, 20], Move.from_usi('7g7f')
    answers = map(Move.from_usi, ('3c3d', '8c8d', '1c1d', '9c9d'))
    games = [game_of(START, [first, m], [e, None], 1.) for e, m in zip(evals, answers)]
    for g in games: g.key = 7
    write_hcpe3(games, tmp_path/'a.hcpe3')
    again = list(read_games(tmp_path/'a.hcpe3'))
    for g in again: g.key = 7
    rows = {s: add_up(tally(positions(again, ends=False), 3, eval_scale=s)) for s in (None, 500.)}
    mean = {s: tally_table(r, 3, s).slice(int(np.argmax(r['count'])), 1)['evalMean'][0].as_py() for s, r in rows.items()}
    assert mean[None] == pytest.approx((3000 + 100 - 50 + 20)/4)
    p = np.mean(1/(1 + np.exp(-np.array(evals, float)/500)))
    assert mean[500.] == pytest.approx(500*np.log(p/(1 - p)), abs=0.01)

def test_same_bytes_of_visits_whoever_does_the_work(tmp_path, searched, monkeypatch):
    "Shares are added up exactly, in any order"
    options = dict(policy='visits', policy_temperature=1.7, eval_average='win-rate', filters=Filters(duplicates=True))
    prepare_stage3([searched[1], ONE_FILE], tmp_path/'one', **options)
    for name, n in (('PLIES_PER_BLOCK', 700), ('PLIES_PER_RUN', 1_500)): monkeypatch.setattr(prepare, name, n)
    with ThreadPoolExecutor(3) as threads: prepare_stage3([ONE_FILE, searched[1]], tmp_path/'other', executor=threads, **options)
    assert [*shas(tmp_path/'one').values()] == [*shas(tmp_path/'other').values()]

def test_a_game_that_both_lost(tmp_path):
    "dlshogi's result 3 is a loss for whoever moves"
    game = game_of(START, [Move.from_usi(m) for m in ('7g7f', '3c3d', '2g2f')], [None]*3, 0., end='%BOTH_LOST')
    for write, name in ((write_hcpe3, 'a.hcpe3'), (write_hcpe, 'a.hcpe')):
        write([game], tmp_path/name)
        prepare_stage3(tmp_path/name, tmp_path/'out')
        rows = positions_of(tmp_path/'out')
        assert rows['wins'].to_list() == [0, 0, 0] and rows['count'].to_list() == [1]*3

def test_shards_with_whole_counts_are_read(tmp_path):
    "As earlier versions wrote them: found, read, trained and browsed, with a manifest and without"
    prepare_stage3(ONE_FILE, tmp_path/'new')
    shard, = find_shards(tmp_path/'new', 3)
    table = read_shard(shard)
    at = table.column_names.index('moveCounts')
    old = table.set_column(at, 'moveCounts', table['moveCounts'].cast(pa.list_(pa.uint32())))
    about = json.loads(pa.ipc.open_file(str(shard.path)).schema.metadata[b'maou_nb'])
    (tmp_path/'old').mkdir()
    schema = old.schema.with_metadata({'maou_nb': json.dumps(about)})
    with pa.ipc.new_file(str(tmp_path/'old'/'a.feather'), schema) as w: w.write_table(old.cast(schema))
    again, = find_shards(tmp_path/'old', 3)
    assert read_shard(again).equals(table)
    assert shard_info(tmp_path/'old').rows == len(table) and shard_info(tmp_path/'old').boards.svgs
    a, b = (train(tmp_path/f, tmp_path/f'run-{f}') for f in ('new', 'old'))
    assert a[3].history[0]['train/loss'] == b[3].history[0]['train/loss']

def train(data, folder):
    return learn_multi_stage(stage3_data_path=data, run_dir=folder, model_size='tiny', resnet_channels=8, resnet_blocks=1,
                             epoch=1, gpu='cpu', stage3_batch_size=512)

def test_stage2_has_the_last_position_of_whole_games_only(tmp_path):
    games = list(read_games(ONE_FILE))
    write_hcpe(games, tmp_path/'a.hcpe')
    prepare_stage2(ONE_FILE, tmp_path/'csa'), prepare_stage2(tmp_path/'a.hcpe', tmp_path/'hcpe')
    ids = lambda p: {(r, f) for s in find_shards(p, 2) for r, f in zip(read_shard(s)['id'].to_pylist(), read_shard(s)['fold'].to_pylist())}
    assert ids(tmp_path/'hcpe') < ids(tmp_path/'csa') and len(ids(tmp_path/'csa') - ids(tmp_path/'hcpe')) <= 50

def test_a_working_folder_that_is_a_link(tmp_path):
    "What it leads to is neither written nor taken away"
    (tmp_path/'elsewhere').mkdir()
    (tmp_path/'out').mkdir()
    (tmp_path/'out'/'.preparing').symlink_to(tmp_path/'elsewhere')
    with pytest.raises(ValueError, match='.preparing is a link'): prepare_stage2(ONE_FILE, tmp_path/'out')
    assert (tmp_path/'elsewhere').is_dir() and not list((tmp_path/'elsewhere').iterdir())
