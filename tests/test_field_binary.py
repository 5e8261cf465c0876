"""Packed files as they are met in the field

`tests/records/binary/make_binary.py` writes them with cshogi and `struct`, and says what reading each should give.
"""
import json, subprocess, sys
from pathlib import Path

import pytest

from maou_nb import prepare_stage3
from maou_nb.data.games import usi_of
from maou_nb.data.records import read_games
from maou_nb.data.shards import find_shards, read_shard
from samples import said

MAKER = Path(__file__).with_name('records')/'binary'/'make_binary.py'
NAMES = ('no_ply_searched.hcpe3', 'one_game_searched_one_not.hcpe3', 'a_move_of_zero_visits.hcpe3', 'searched.hcpe3', 'plain.hcpe',
         'plain.hcpe with searched.hcpe3', 'shuffled.psv', 'repeating_floats.npy', 'sine.npy')

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "The folder of the files, and what each should give"
    folder = tmp_path_factory.mktemp('binary')
    out = subprocess.run([sys.executable, MAKER, folder], capture_output=True, text=True, check=True).stdout
    return folder, json.loads(out)

def searched(game):
    "Visits of each ply by move; None if there was no search"
    if game.visits is None: return None
    pairs = iter(zip(game.visits.moves.tolist(), game.visits.counts.tolist()))
    return [{usi_of(m): n for m, n in (next(pairs) for _ in range(k))} for k in game.visits.n.tolist()]

def positions_of(games):
    "[start of its game, move, eval from Black's side, Black's result] of each ply"
    return [[g.start, usi, eval, g.result] for g in games for usi, eval in zip(g.usi, g.evals.tolist())]

def rows_of(paths, out, **options):
    "The rows that are prepared of `paths`"
    prepare_stage3(paths, out, **options)
    return [row for s in find_shards(out, 3) for row in read_shard(s).to_pylist()]

def test_every_file_is_checked(made): assert {*NAMES} == {*made[1]}

@pytest.mark.parametrize('name', NAMES)
def test_a_file_is_read_as_it_was_meant(made, name, tmp_path):
    folder, expected = made[0], made[1][name]
    files = [folder/n for n in expected.get('files', [name])]
    if 'refused' in expected:
        with pytest.raises(ValueError) as e: list(read_games(files[0]))
        assert any(word in said(e) for word in expected['refused'].split('|'))
        return
    games = [g for f in files for g in read_games(f)]
    for e, g in zip(wanted := expected.get('games', [None]*len(games)), games, strict=True):
        if e is None: continue
        assert (g.start, g.usi, g.result, g.end, searched(g)) == (e['start'], e['moves'], e['result_black'], e['ending'], e['visits'])
    if 'positions' in expected: assert sorted(positions_of(games)) == sorted(expected['positions'])
    if 'plies' in expected:
        assert sorted(r['ply'] for r in rows_of(files, tmp_path/'plies')) == sorted(expected['plies'])
    if (wants := expected.get('prepare')) is not None:
        rows = rows_of(files, tmp_path/'out')
        if 'count' in wants: assert sum(r['count'] for r in rows) == wants['count']
        assert sum(not sum(r['moveCounts']) for r in rows) == wants.get('no_policy', 0)
        assert wanted is not None and rows
    if (wants := expected.get('prepare_by_games')) is not None:
        with pytest.raises(ValueError) as e: prepare_stage3(files, tmp_path/'refused')
        assert "policy='games'" in said(e) and "policy='visits'" in said(e)
        assert sum(r['count'] for r in rows_of(files, tmp_path/'games', policy='games')) == wants['count']

def test_a_game_without_search_weighs_1_on_its_moves(made, tmp_path):
    "Beside searched ones of HCPE3 by itself, of HCPE where `policy` says so"
    folder = made[0]
    pairs = ([folder/'one_game_searched_one_not.hcpe3'], {}, 7), ([folder/'plain.hcpe', folder/'searched.hcpe3'], dict(policy='visits'), 7)
    for files, options, n in pairs:
        rows = rows_of(files, tmp_path/str(len(files)), **options)
        assert sum(r['count'] for r in rows) == n
        for r in rows: assert sum(r['moveCounts']) == pytest.approx(r['count'], abs=1e-6)
        lone = [r for r in rows if len(r['moveLabels']) == 1]
        assert all(r['moveCounts'] == [r['count']] for r in lone) and len(lone) > 3

def test_visits_of_0_stay_0(made, tmp_path):
    rows = rows_of(made[0]/'a_move_of_zero_visits.hcpe3', tmp_path/'out')
    assert sorted(sorted(r['moveCounts']) for r in rows) == [[0, 1], pytest.approx([0.4, 0.6])]
