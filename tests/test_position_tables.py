"""Tables of positions, prepared as games are: columns found or named, results by their values, nothing lost in silence"""
import csv, io, json, random

import pyarrow as pa
import pyarrow.csv, pyarrow.ipc as ipc, pyarrow.parquet as pq
import pytest
from rsshogi.core import Board

from maou_nb import prepare_stage2, prepare_stage3
from maou_nb.data.games import RecordError
from maou_nb.data.position_tables import TableColumns, read_position_table
from maou_nb.data.records import read_games
from samples import ONE_FILE

S = Board().to_sfen()

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

# --- a row is a line, a name stands once, and a result is what was declared

def lines_read(text, name='x.csv', **how):
    "(games, sentences) of a table"
    games, said = [], []
    for game in read_position_table(io.BytesIO(text.encode()), name.split('.')[1], name, TableColumns(**how)):
        (said.append(str(game)) if isinstance(game, RecordError) else games.append(game))
    return games, said

ROWS = [f'{S},{move},{eval}' for move, eval in (('7g7f', 1), ('2g2f', 2), ('5g5f', 3), ('6i7h', 4))]

@pytest.mark.parametrize('part', ',;\t')
@pytest.mark.parametrize('at', [0, 1, 2, 3])
@pytest.mark.parametrize('field', [0, 1, 2])
@pytest.mark.parametrize('newline', ['\n', '\r\n', '\r'])
def test_an_open_quote_costs_its_own_line_and_names_it(part, at, field, newline):
    rows = [row.split(',') for row in ROWS]
    rows[at][field] = '"' + rows[at][field]
    games, said = lines_read(newline.join(map(part.join, [['sfen', 'move', 'eval'], *rows])))
    assert len(games) == 3 and [g.evals.tolist() for g in games] == [[e] for e in (1., 2., 3., 4.) if e != at + 1]
    assert len(said) == 1 and f'x.csv, line {at + 2}: ' in said[0] and 'a quote is opened and not closed' in said[0]

NO_HEADS = ('"sfen,move,eval', 'sfen,"move,eval', 'sfen,move,"eval', 'sfen,move,"ev"al', 'sfen,move,"eval\n(cp)"',
            'sfen,move,move')

@pytest.mark.parametrize('head', NO_HEADS)
def test_a_first_line_that_is_none_is_a_sentence(head):
    games, said = lines_read('\n'.join([head, *ROWS]))
    assert not games and len(said) == 1 and said[0].startswith('x.csv, line 1: ')

def test_a_doubled_column_is_refused_in_every_format():
    [said] = lines_read(f'{{"sfen":"{S}","move":"7g7f","move":"2g2f"}}\n', 'x.jsonl')[1]
    assert "x.jsonl, line 1: its key 'move' stands twice" in said
    table, out = pa.Table.from_arrays([pa.array([S]), pa.array(['7g7f']), pa.array(['2g2f'])], names=['sfen', 'move', 'move']), io.BytesIO()
    pq.write_table(table, out)
    streamed = io.BytesIO()
    with ipc.new_stream(streamed, table.schema) as w: w.write_table(table)
    for data, format in ((out, 'parquet'), (streamed, 'arrow')):
        [said] = list(read_position_table(io.BytesIO(data.getvalue()), format, 'x', TableColumns()))
        assert "x: two of its columns have one name, 'move'" in str(said)

def results(values, **how): return lines_read('\n'.join(['sfen,move,result', *(f'{S},7g7f,{v}' for v in values)]), **how)

@pytest.mark.parametrize('three, odd', [((1, .5, 0), '-1'), ((1, 0, -1), '0.5'), (('win', 'draw', 'loss'), '1'),
                                        (('勝', '分', '負'), 'draw'), ((2, 1, 0), '-1')])
def test_what_was_not_declared_is_named_by_its_line(three, odd):
    games, said = results([*three, odd], results=three)
    assert [g.result for g in games] == [1., .5, 0.] and len(said) == 1 and 'x.csv, line 5: its result ' in said[0]

CLEAR = {'wdl': [1., .5, 0.], 'wl': [1., 0.], 'WL': [1., 0.]}
MAY_NAME_THE_WINNER = 'w', 'wd', 'bw', 'b', ('black', 'white'), ('先手', '後手'), ('win', 'loss', 'b')

@pytest.mark.parametrize('values, meant', [*CLEAR.items(), *((values, None) for values in MAY_NAME_THE_WINNER)])
def test_letters_that_may_name_the_winner_are_refused(values, meant):
    games, said = results(values)
    if meant: assert [g.result for g in games] == meant and not said
    else: assert not games and len(said) == 1 and said[0].startswith('x.csv: its results ')

def test_letters_may_be_declared():
    assert [g.result for g in results('wd', results=('w', 'd', 'l'))[0]] == [1., .5]
    for three in (('b', 'd', 'w'), ('black', 'draw', 'white'), ('先手', '引分', '後手')):
        with pytest.raises(ValueError, match='these name the winner'): TableColumns(results=three)
