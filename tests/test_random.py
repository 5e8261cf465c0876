"Random positions of the rules: that they can occur, as two other libraries see it, and that a run learns from them"
import json
from collections import Counter
from itertools import islice

import cshogi
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from rsshogi.core import Board

from maou_nb import random_stage2
from maou_nb.data.board import HAND_KINDS, HAND_MAX, KINDS, playable, position_ids, to_sfen
from maou_nb.data.columns import NO_PLY
from maou_nb.data.labels import legal_labels, move_labels
from maou_nb.data.random import random_games, scattered, scattered_games
from maou_nb.data.shards import doubt_of_games, find_shards, fixed_array, read_manifest, read_shard
from maou_nb.front.cli import main
from options import few, run

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A set of 2,000 rows in three shards, and what was said of it"
    folder = tmp_path_factory.mktemp('random')
    return folder, random_stage2(folder, rows=2_000, seed=7, rows_per_shard=700)

def rows(folder): return pa.concat_tables([read_shard(s) for s in find_shards(folder, 2)])
def views(table): return fixed_array(table['boardIdPositions'], 81), fixed_array(table['piecesInHand'], 14)

def test_its_shape(made):
    folder, said = made
    table, shards = rows(folder), find_shards(folder, 2)
    assert (said.stage, said.rows, said.shards, [s.rows for s in shards]) == (2, 2_000, 3, [666, 666, 668])
    loose = table['ply'].to_numpy() == NO_PLY
    assert loose.sum() == 1_000 and len(set(table['id'].to_pylist())) == 2_000 <= said.positions
    assert (position_ids(*views(table)) == table['id'].to_numpy()).all()
    each = [np.mean(read_shard(s)['ply'].to_numpy() == NO_PLY) for s in shards]
    assert max(each) - min(each) < 0.01             # each shard is the mixture
    assert 'random positions, seed 7' in read_manifest(folder)['prepared_from'] and '2,000 rows in 3 shards' in said.sentence()

def as_cshogi(board, hands):
    "cshogi's legal moves of a view, as labels"
    other = cshogi.Board(to_sfen(board, hands))
    assert other.is_ok()
    named = {str(m): int(m) for m in Board(to_sfen(board, hands)).legal_moves()}
    theirs = {cshogi.move_to_usi(m) for m in other.legal_moves}
    assert theirs == named.keys()
    return np.sort(move_labels(np.array([*named.values()], np.int64), np.zeros(len(named), int)))

def test_positions_can_occur_and_moves_are_legal(made):
    "By rsshogi and by cshogi; drops, evasions and promotions all occur"
    table = rows(made[0])
    boards, hands = views(table)
    legal = np.unpackbits(fixed_array(table['legalMoves'], 187), axis=1, bitorder='little')
    checks = 0
    for board, hand, bits in zip(boards, hands, legal):
        b = Board(to_sfen(board, hand))
        assert playable(b) and b.validate_all().is_valid
        assert np.flatnonzero(bits).tolist() == np.sort(legal_labels(b)).tolist() == as_cshogi(board, hand).tolist()
        checks += b.is_in_check()
    assert 200 < checks < 1_000 and (legal.sum(0) > 0).sum() > 1_400

def test_pieces_are_those_of_one_set(made):
    "Two kings, and no more of any kind than there are; no piece that could never move, no two pawns in a file"
    table = rows(made[0])
    boards, hands = views(table)
    full = dict(zip(HAND_KINDS, HAND_MAX.tolist())) | {'K': 2}
    for board, hand in zip(boards, hands):
        names = [KINDS[(c - 1) % 14] for c in board if c]
        counts = Counter(n.removeprefix('+') for n in names)
        for kind, n in zip(HAND_KINDS*2, hand.tolist()): counts[kind] += n
        assert counts == full and (board == 8).sum() == (board == 22).sum() == 1 and (board > 0).sum() <= 40
        squares = board.reshape(9, 9)
        for mine, far in ((0, squares), (14, squares[::-1])):
            assert not np.isin(far[0], [1 + mine, 2 + mine, 3 + mine]).any() and not (far[1] == 3 + mine).any()
            assert ((squares == 1 + mine).sum(0) <= 1).all()

def test_scattered_pieces_are_everywhere():
    "Every code stands on every square that it may stand on; hands, boards and sides are as full as chance makes them"
    boards, hands = scattered(np.random.default_rng(1), 40_000)
    counts = np.stack([(boards == code).sum(0) for code in range(29)])
    never = {1: range(9), 2: range(9), 3: range(18), 15: range(72, 81), 16: range(72, 81), 17: range(63, 81)}
    for code in range(1, 29): assert np.flatnonzero(counts[code] == 0).tolist() == [*never.get(code, ())], code
    on = (boards > 0).sum(1)
    assert on.min() <= 4 and on.max() >= 35 and np.corrcoef(on, hands.sum(1))[0, 1] < -0.99
    assert abs(counts[1:15].sum()/counts[15:].sum() - 1) < 0.01

def test_the_mix(tmp_path):
    for share, loose in ((0, 0), (1, 300), (0.25, 75)):
        random_stage2(tmp_path, rows=300, scattered=share)
        assert (rows(tmp_path)['ply'].to_numpy() == NO_PLY).sum() == loose
    random_stage2(tmp_path, rows=300, scattered=0, plies=5)
    assert rows(tmp_path)['ply'].to_numpy().max() == 5
    lengths = [len(g) for g in islice(random_games(3, 10), 2_000)]
    assert all(150 < n < 250 for n in Counter(lengths).values()) and {*lengths} == {*range(1, 11)}

def test_the_seed_says_all(made, tmp_path):
    hashes = lambda folder: [s.sha256 for s in find_shards(folder, 2)]
    random_stage2(tmp_path/'again', rows=2_000, seed=7, rows_per_shard=700)
    random_stage2(tmp_path/'other', rows=2_000, seed=8, rows_per_shard=700)
    assert hashes(tmp_path/'again') == hashes(made[0])
    ids = [{*rows(f)['id'].to_pylist()} for f in (made[0], tmp_path/'other')]
    assert len(ids[0] & ids[1]) < 20                # near the start, where games are alike

def test_games_can_be_held_out(made):
    "Each row is of one game, a game is of one fold, and the table of games knows both"
    table = pl.from_arrow(rows(made[0]))
    games = pl.read_parquet(made[0]/'games.parquet')
    assert {*table['game']} == {*games['game']} and len(games) == made[1].games and games['whole'].all()
    known = dict(zip(games['game'], games['fold']))
    assert all(known[g] == f for g, f in zip(table['game'], table['fold'])) and doubt_of_games(find_shards(made[0], 2)) == ''
    assert table['fold'].n_unique() == 100 and (games['game'] % 100 == games['fold']).all()
    scattered_rows = table.filter(pl.col('ply') == NO_PLY)
    assert scattered_rows['game'].n_unique() == len(scattered_rows)
    first = {g.key: g for g in islice(random_games(7, 200), len(games))}
    assert {*table.filter(pl.col('ply') < NO_PLY)['game']} <= first.keys()
    assert {*scattered_rows['game']} <= {g.key for g in islice(scattered_games(7), 2_000)}

def test_a_run_learns_the_rules_from_them(made, run):
    "Judged on games that were held out, and on positions of real games too"
    r = run(stage=2, stage2_data_path=made[0], stage2_test_ratio=0.2, stage2_max_epochs=6, stage2_threshold=1., stage2_batch_size=32)
    first, last = r.history[0], r.history[-1]
    assert r.stage.judged_on.startswith('held-out games')
    assert last['valid/f1'] > first['valid/f1'] + 0.1 and last['valid/loss'] < first['valid/loss']

@pytest.mark.parametrize('given, said', [
    (dict(rows=0), 'rows=0: a whole number from 1 to 1,000,000,000 was expected'),
    (dict(rows=10.5), 'rows=10.5: a whole number'), (dict(seed=-1), 'seed=-1: a whole number from 0'),
    (dict(scattered=2), 'scattered=2: a number from 0 to 1 was expected'),
    (dict(scattered=float('nan')), 'scattered=nan: a number from 0 to 1'), (dict(scattered='half'), "scattered='half': a number"),
    (dict(plies=0), 'plies=0: a whole number from 1 to 10,000'), (dict(rows_per_shard=0), 'rows_per_shard=0: a whole number'),
    (dict(rows=100, scattered=0, plies=1), 'were there before, after 31 different ones: fewer rows, or longer games, were expected')])
def test_errors_are_a_sentence(given, said, tmp_path):
    with pytest.raises(ValueError) as e: random_stage2(tmp_path/'out', **given)
    assert said in str(e.value) and '\n' not in str(e.value) and not find_there(tmp_path/'out')

def find_there(folder): return [*folder.glob('*.feather'), *folder.glob('*.json'), *folder.glob('*.parquet')]

def test_another_set_stays(tmp_path, few):
    with pytest.raises(ValueError, match='holds shards of stage 1; another folder was expected'): random_stage2(few/'stage1', rows=10)
    random_stage2(tmp_path, rows=200, rows_per_shard=50)
    assert random_stage2(tmp_path, rows=100).replaced == 200
    assert [s.rows for s in find_shards(tmp_path, 2)] == [100] and len([*tmp_path.glob('*.feather')]) == 1

def test_from_the_command_line(tmp_path, capfd):
    assert main(['random-stage2', str(tmp_path/'out'), '--rows', '120', '--scattered', '0.5', '--seed', '4']) == 0
    said = json.loads(capfd.readouterr().out)
    assert (said['rows'], said['stage']) == (120, 2) and len(rows(tmp_path/'out')) == 120
    assert main(['random-stage2', str(tmp_path/'none'), '--rows', 'many']) == 1
    assert '--rows=many: a whole number was expected' in capfd.readouterr().err
    assert main(['random-stage2', str(tmp_path/'none'), '--scattered', '3']) == 1 and not (tmp_path/'none').exists()
