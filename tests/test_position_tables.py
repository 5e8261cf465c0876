"""Tables of positions, prepared as games are: columns found or named, results by their values, nothing lost in silence"""
import csv, json, random

import pyarrow as pa
import pyarrow.csv, pyarrow.ipc as ipc, pyarrow.parquet as pq
import pytest

from maou_nb import prepare_stage2, prepare_stage3
from maou_nb.data.position_tables import TableColumns
from maou_nb.data.records import read_games
from samples import ONE_FILE

@pytest.fixture(scope='module')
def rows():
    "Positions of real games, as an engine of one's own would label them"
    from rsshogi.core import Board, Move
    out = []
    for game in list(read_games(ONE_FILE))[:6]:
        board = Board(game.start + ' 1')
        for m, e in zip(game.moves.tolist(), game.evals.tolist()):
            sign = 1 if board.turn.value == 0 else -1
            out.append(dict(sfen=board.to_sfen(), bestmove=Move(m).to_usi(), eval=None if e != e else int(sign*e),
                            result=int(sign*(2*game.result - 1))))
            board.apply_move(Move(m))
    return out

def as_jsonl(rows, path): path.write_text('\n'.join(map(json.dumps, rows)))
def as_parquet(rows, path): pq.write_table(pa.Table.from_pylist(rows), path)
def as_arrow(rows, path):
    table = pa.Table.from_pylist(rows)
    with ipc.new_file(path, table.schema) as w: w.write_table(table)
def as_stream(rows, path):
    table = pa.Table.from_pylist(rows)
    with ipc.new_stream(path, table.schema) as w: w.write_table(table)
def as_csv(rows, path):
    with open(path, 'w', newline='') as f:
        w = csv.DictWriter(f, list(rows[0]))
        w.writeheader()
        w.writerows(rows)
def as_arrows_csv(rows, path): pyarrow.csv.write_csv(pa.Table.from_pylist(rows), path)
def as_tsv(rows, path):
    line = lambda values: '\t'.join('' if v is None else str(v) for v in values)
    path.write_text('\n'.join([line(rows[0]), *(line(r.values()) for r in rows)]))

WAYS = {'x.jsonl': as_jsonl, 'x.parquet': as_parquet, 'x.feather': as_arrow, 'y.feather': as_stream,
        'x.csv': as_csv, 'y.csv': as_arrows_csv, 'x.tsv': as_tsv, 'x.dat': as_csv}

@pytest.mark.parametrize('name', WAYS)
def test_each_way_of_writing_gives_the_same_games(rows, name, tmp_path):
    WAYS[name](rows, tmp_path/name)
    as_jsonl(rows, tmp_path/'same.jsonl')
    told = lambda g: (g.start, g.usi, g.evals.tolist()[0] if g.evals[0] == g.evals[0] else None, g.result, g.whole, g.ply)
    found, same = (list(map(told, read_games(tmp_path/n))) for n in (name, 'same.jsonl'))
    assert found == same and len(found) == len(rows)
    assert [g[0] for g in found] == [' '.join(r['sfen'].split()[:3]) for r in rows]
    black = [r['sfen'].split()[1] == 'b' for r in rows]
    assert [g[3] for g in found] == [(1 + (r['result'] if b else -r['result']))/2 for r, b in zip(rows, black)]
    assert [g[5] for g in found] == [int(r['sfen'].split()[3]) - 1 for r in rows]

def test_a_table_is_prepared_as_its_games_are(rows, tmp_path):
    as_csv([{'pos': r['sfen'], 'played': r['bestmove'], 'cp': r['eval'], 'z': (r['result'] + 1)/2} for r in rows], tmp_path/'x.csv')
    named = TableColumns(move='played', result='z', results=(1, .5, 0))
    made = prepare_stage3(tmp_path/'x.csv', tmp_path/'out', tables=named)
    assert made.filters.games == len(rows) and 'csv' in repr(made) and made.pieces == made.games
    assert prepare_stage2(tmp_path/'x.csv', tmp_path/'two', tables=named).rows
    with pytest.raises(ValueError, match="tables='pos': a TableColumns"): prepare_stage3(tmp_path/'x.csv', tmp_path/'out', tables='pos')

@pytest.mark.parametrize('spoil, says', [
    (lambda r: r | {'bestmove': '1a9i'}, 'its move 1a9i is illegal'), (lambda r: r | {'sfen': 'startpos!'}, "'startpos!' is no SFEN"),
    (lambda r: r | {'eval': 'good'}, "its eval 'good' is none"), (lambda r: r | {'result': 'x'}, "its result 'x' is none"),
    (lambda r: r | {'sfen': '4k4/4G4/9/9/9/9/9/9/4K4 b - 1'}, 'leaves one to be taken'), (lambda r: [1], 'is no JSON object')])
def test_one_bad_row_is_named_and_the_others_stay(rows, spoil, says, tmp_path):
    at = random.Random(says).randrange(1, len(rows))
    as_jsonl([spoil(r) if i == at else r for i, r in enumerate(rows)], tmp_path/'x.jsonl')
    skipped = []
    games = list(read_games(tmp_path/'x.jsonl', 'skip', skipped))
    assert len(games) == len(rows) - 1 and len(skipped) == 1
    assert f'x.jsonl, line {at + 1}' in skipped[0] and says in skipped[0] and '\n' not in skipped[0]

@pytest.mark.parametrize('results, says', [([1, 0], '1 and 0 alone'), ([1, .5, -1], 'both 0.5 and -1'), ([1, 7], 'result 7 is none')])
def test_results_that_leave_it_open_are_asked_for(rows, results, says, tmp_path):
    as_parquet([r | {'result': float(results[i % len(results)])} for i, r in enumerate(rows)], tmp_path/'x.parquet')
    skipped = []
    assert not list(read_games(tmp_path/'x.parquet', 'skip', skipped)) and says in skipped[0]

def test_a_folder_of_other_tables_is_left_alone(rows, tmp_path, tmp_path_factory):
    as_csv(rows, tmp_path/'x.csv')
    (tmp_path/'a.csa').write_bytes(ONE_FILE.read_bytes())
    made = prepare_stage3(tmp_path, tmp_path_factory.mktemp('out'))
    assert made.games == 50 and made.passed_over == {'.csv': 1}
