"""Records as they are met in the field: `tests/records/` holds small files, and in `expected.json` what reading each gives

Each file is read in a process of its own, as some of them have ended it.
"""
import json, multiprocessing
from pathlib import Path

import pytest

CASES = Path(__file__).with_name('records')

def of(folder): return json.loads((folder/'expected.json').read_text())
FILES = [(f.name, name) for f in sorted(CASES.iterdir()) if (f/'expected.json').exists() for name in of(f) if name != 'same_key']
KEYS = [(f.name, *group) for f in sorted(CASES.iterdir()) if (f/'expected.json').exists() for group in of(f).get('same_key', [])]

def read(path, pipe):
    "Send what reading `path` gives: a dictionary for each game, and the sentences on what was left out"
    from maou_nb.data.games import usi_of
    from maou_nb.data.records import read_games
    left_out, games = [], []
    for g in read_games(path, 'skip', left_out):
        known = [None if e != e else e for e in g.evals.tolist()]
        games.append(dict(start=g.start, moves=g.usi, result_black=g.result, ending=g.end, evals=known,
                          visits=searched(g, usi_of), key=g.key))
    pipe.send((games, left_out))

def searched(game, usi_of):
    "Visits of each ply by move; None if there was no search"
    if game.visits is None: return None
    pairs = iter(zip(game.visits.moves.tolist(), game.visits.counts.tolist()))
    return [{usi_of(m): n for m, n in (next(pairs) for _ in range(k))} for k in game.visits.n.tolist()]

def in_a_process(path):
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context('fork').Process(target=read, args=(path, theirs))
    process.start()
    theirs.close()
    try: return ours.recv()
    except EOFError: pytest.fail(f'{path} ended the process')
    finally: process.join()

def like(evals, game, moves):
    "Whether a game's evals are those that are expected; a mate is none, or of its side and large"
    expected = evals or [None]*len(moves)
    def one(e, found):
        if not isinstance(e, dict): return e == found
        return found is None or found*(1 if e['mate'] == '+' else -1) >= 10_000
    return len(expected) == len(game['evals']) and all(map(one, expected, game['evals']))

@pytest.mark.parametrize('folder, name', FILES)
def test_a_file_is_read_as_it_was_meant(folder, name):
    expected = of(CASES/folder)[name]
    games, left_out = in_a_process(CASES/folder/name)
    if 'refused' in expected:
        assert any(word in said for said in left_out for word in expected['refused'].split('|')), left_out
        assert not any('\n' in said for said in left_out)
    else: assert not left_out
    wanted = expected.get('games', [])
    assert len(games) == len(wanted), left_out
    for e, g in zip(wanted, games):
        assert (g['start'], g['moves']) == (e['start'], e['moves'])
        listed = lambda x: x if isinstance(x, list) else [x]
        assert g['result_black'] in listed(e['result_black']) and g['ending'] in listed(e['ending'])
        if e['evals'] != 'unchecked': assert any(like(x, g, e['moves']) for x in [e['evals'], *e.get('evals_or', [])])
        assert g['visits'] == e['visits']

@pytest.mark.parametrize('names', KEYS, ids=lambda names: names[0])
def test_one_game_has_one_key(names):
    folder, *files = names
    assert len({in_a_process(CASES/folder/f)[0][0]['key'] for f in files}) == 1
