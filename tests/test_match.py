"Nets that play each other: strength in the right order, A against A, killed and gone on, many at once as one at a time"
import shutil, subprocess, sys, time

import cshogi
import numpy as np
import pytest

from maou_nb import Engine, ladder, learn_multi_stage, match, net_player, random_player
from maou_nb.play.games import load_match, plan, read_openings
from maou_nb.play.lockstep import play_games
from maou_nb.play.search import NetPlayer, Thinking
from samples import GAMES, said

class Fickle:
    "A net that knows nothing, always the same of the same position"
    def __call__(self, boards, hands, labels, temperature=1.):
        rngs = [np.random.default_rng([int(b[i]) for i in range(0, 81, 4)] + [int(h.sum())]) for b, h in zip(boards, hands)]
        priors = [r.dirichlet(np.ones(len(l))).astype(np.float32) for r, l in zip(rngs, labels)]
        return priors, np.array([r.random() for r in rngs], np.float32)

def fickle(name, **thinking): return NetPlayer(name, Fickle(), Thinking(**{'nodes': 8, 'max_moves': 60, 'mate_nodes': 0} | thinking))

def test_games_are_legal_and_end_as_they_say():
    result = match(fickle('a', max_moves=120), fickle('b', max_moves=120), games=10, show=False)
    assert len(result) == 10 and sum(result.tally()) == 10
    for game in result.games:
        board = cshogi.Board(game.start)
        for usi in game.moves:
            assert board.is_legal(board.move_from_usi(usi)), (usi, game)
            board.push_usi(usi)
        if game.end == 'mate': assert not list(board.legal_moves)
        if game.end == 'repetition': assert board.is_draw() == cshogi.REPETITION_DRAW
        if game.end == 'too many moves': assert len(game.moves) >= 120
        if game.end == 'declaration': assert board.is_nyugyoku()

def test_many_at_once_play_as_one_at_a_time():
    planned = plan(6, read_openings())
    a, b = fickle('a', batch=1), fickle('b', nodes=5, batch=1)
    went = {n: {g.number: (g.moves, g.result, g.end) for g in play_games(a, b, planned, at_once=n)} for n in (1, 6)}
    assert went[1] == went[6]

def test_both_sides_of_an_opening_are_played():
    result = match(fickle('a'), fickle('b'), games=8, show=False)
    for n in range(0, 8, 2):
        one, other = (next(g for g in result.games if g.number == k) for k in (n, n + 1))
        assert (one.black, other.black) == ('a', 'b') and one.moves[:one.opening] == other.moves[:other.opening]

def test_a_match_that_is_killed_goes_on(tmp_path):
    code = f'''import sys; sys.path.insert(0, {str(GAMES.parents[1]/"tests")!r})
from test_match import *
match(fickle('a'), fickle('b'), games=400, folder={str(tmp_path/'m')!r}, at_once=4, show=False)'''
    process = subprocess.Popen([sys.executable, '-c', code])
    end = time.monotonic() + 120
    while not (tmp_path/'m'/'games.jsonl').exists() or (tmp_path/'m'/'games.jsonl').read_text().count('\n') < 6:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    process.kill(), process.wait()
    kept = [g.number for g in load_match(tmp_path/'m').games]
    assert 6 <= len(kept) < 400
    whole = match(fickle('a'), fickle('b'), games=len(kept) + 8, folder=tmp_path/'m', show=False, at_once=4)
    numbers = [g.number for g in whole.games]
    assert numbers[:len(kept)] == kept and len({*numbers}) == len(numbers) and {*range(len(kept) + 8)} <= {*numbers}

@pytest.mark.parametrize('wrong, why', [
    (dict(games=0), 'games=0'), (dict(nodes=0), 'nodes=0'), (dict(temprature=1), 'temprature'), (dict(openings=[]), 'opening'),
    (dict(openings=['startpos moves 7g7e']), '7g7e'), (dict(openings='none.usi'), 'none.usi'), (dict(at_once=0), 'at_once=0'),
    (dict(names=('x', 'y\nz')), 'name'), (dict(device='cpu'), 'device'), (dict(temperature=1.), 'temperature'),
    (dict(names=('x',)), 'names'), (dict(folder=__file__), 'test_match.py')])
def test_what_is_asked_wrongly_is_said_in_a_sentence(wrong, why, tmp_path):
    with pytest.raises((ValueError, OSError)) as e: match(fickle('a'), fickle('b'), show=False, **dict(games=2) | wrong)
    assert why in said(e)

@pytest.mark.parametrize('wrong', ['nowhere', 7, None, 'hello world', ['x']])
def test_what_cannot_play_is_said_in_a_sentence(wrong):
    with pytest.raises((ValueError, OSError, TypeError)) as e: match(wrong, fickle('b'), games=2, show=False)
    said(e)

def test_a_run_plays_and_a_ladder_has_all_its_checkpoints(small_run, tmp_path):
    result = match(small_run, random_player(), games=2, nodes=8, show=False, max_moves=60)
    assert result.a == 'small step 17' or result.a.startswith('small step')
    how = dict(games=2, nodes=4, references=[random_player()], folder=tmp_path/'ladder', show=False, max_moves=40)
    found = ladder(small_run, **how)
    assert {r['player'] for r in found.ladder.rows} >= {'random'} and any(r.step for r in found.rungs) and any(r.top1 for r in found.rungs)
    assert found.chart().png()[:4] == b'\x89PNG'
    assert 'top-1, held out' in repr(found) and 'step' in repr(found).splitlines()[0]
    for note in found.ladder.notes: assert note in repr(found) and note in found._repr_mimebundle_()['text/html']
    again = ladder(small_run, **how)
    assert again.ladder.rows == found.ladder.rows

@pytest.mark.parametrize('how', ['result', 'folder', 'checkpoint', 'URL'])
def test_every_way_to_name_a_run_plays(how, small_run):
    from maou_nb import load_run, play_against
    from maou_nb.data.files import as_path
    of = {'result': load_run(small_run), 'folder': str(small_run), 'checkpoint': load_run(small_run).checkpoint()}.get(how)
    if of is None:
        of = 'memory://players/small'
        for p in small_run.rglob('*'):
            if p.is_file():
                at = as_path(f'{of}/{p.relative_to(small_run).as_posix()}')
                at.parent.mkdir(parents=True, exist_ok=True)
                at.write_bytes(p.read_bytes())
    assert len(match(of, random_player(), games=2, nodes=2, show=False, max_moves=30)) == 2
    assert net_player(of).name.endswith('step 17')
    board = play_against(of, nodes=2)
    board.obey({'move': '7g7f'})
    assert len(board.game.moves) == 2
    assert len(ladder([of, random_player()], games=2, nodes=2, show=False, max_moves=30).ladder.rows) == 2

# --- the long ones

@pytest.fixture(scope='session')
def trained(tmp_path_factory):
    "A net as the quickstart trains it, stage 3 alone: about a minute"
    from maou_nb import prepare_stage3
    at = tmp_path_factory.mktemp('trained')
    prepare_stage3(GAMES, at/'stage3')
    learn_multi_stage(stage='3', stage3_data_path=str(at/'stage3'), run_dir=at/'run', epoch=4, gpu='cpu', model_size='tiny', seed=0)
    return at/'run'

@pytest.mark.slow
def test_searching_is_stronger_than_the_policy_which_is_stronger_than_chance(trained):
    search, policy = net_player(trained, 'search', nodes=100), net_player(trained, 'policy', nodes=1)
    for a, b, least in ((search, policy, 100), (policy, random_player(), 100), (search, random_player(), 200)):
        result = match(a, b, games=60, show=False)
        print(result)
        assert result.elo.low > least, result

@pytest.mark.slow
def test_a_against_itself_holds_zero(trained):
    holds, thinking = 0, dict(nodes=8, temperature=1., temperature_plies=40, max_moves=200, mate_nodes=0, resign=0.05)
    a, b = (net_player(trained, n, **thinking) for n in 'ab')
    for seed in range(40):
        e = match(a, b, games=16, seed=seed, show=False).elo
        holds += e.low <= 0 <= e.high
    print(holds, 'of 40 intervals hold 0')
    assert holds >= 34

# --- against engines

FAIRY = shutil.which('fairy-stockfish', path='/usr/games:/usr/bin:/usr/local/bin')
with_fairy = pytest.mark.skipif(FAIRY is None, reason='no fairy-stockfish here: tools/packages.sh installs it')

@with_fairy
def test_a_net_plays_an_engine_and_both_stand_on_a_ladder(small_run, tmp_path):
    fairy = Engine(FAIRY, 'fairy 50', nodes=50)
    result = match(small_run, fairy, games=2, nodes=8, folder=tmp_path/'m', show=False, max_moves=60)
    assert result.b == 'fairy 50' and len(result) == 2 and not any(result.lost_by('illegal move').values())
    assert all({*g.evals[g.opening + side::2]} - {None} for g in result.games for side in (0, 1))
    assert len(match(small_run, fairy, games=4, nodes=8, folder=tmp_path/'m', show=False, max_moves=60)) == 4      # goes on
    found = ladder([net_player(small_run, nodes=4, max_moves=60), random_player()], games=2, references=[fairy], show=False, max_moves=60)
    assert {r['player'] for r in found.ladder.rows} >= {'random', 'fairy 50'}

@with_fairy
def test_an_engine_that_is_none_is_said(small_run):
    with pytest.raises((ValueError, OSError)) as e: match(small_run, Engine('no-such-program'), games=2, nodes=2, show=False)
    assert 'no-such-program' in said(e)

# --- what a day of trying found

@with_fairy
def test_what_is_drawn_against_an_engine_hangs_on_the_seed():
    fairy = Engine(FAIRY, nodes=1)
    how = dict(games=2, openings=['startpos'], show=False, max_moves=20)
    first, again, other = (match(random_player(), fairy, seed=s, **how) for s in (1, 1, 2))
    moves = lambda m: [g.moves[::2] if g.black == 'random' else g.moves[1::2] for g in m.games]
    assert moves(first) == moves(again) != moves(other)

def test_a_game_that_is_played_again_is_counted_once():
    m = match(fickle('a', batch=1), fickle('b', nodes=5, batch=1), games=6, openings=['startpos'], at_once=1, show=False)
    assert len({g.moves for g in m.games}) == 2 and m.elo.games == 2 and 'played before' in repr(m)

def test_another_net_does_not_go_on_with_a_match(tmp_path, small_run):
    from maou_nb import load_net
    net = load_net(small_run)
    def play(of): return match(net_player(of, 'a', nodes=2), random_player(), games=2, folder=tmp_path/'m', show=False, max_moves=30)
    play(net)
    assert len(play(net)) == 2
    next(net.heads['policy'].parameters()).data.add_(1)
    with pytest.raises((ValueError, OSError)) as e: play(net)
    assert 'holds a match with other' in said(e)

def test_two_matches_in_one_folder_at_once(tmp_path):
    from maou_nb.data.alone import alone_in
    with alone_in(tmp_path/'m', 'it is held'), pytest.raises(ValueError) as e:
        match(fickle('a'), fickle('b'), games=2, folder=tmp_path/'m', show=False)
    assert 'by another process' in said(e)

def test_a_ladder_that_grows_goes_on(tmp_path):
    floor = random_player()
    ladder([fickle('a'), fickle('c')], games=2, references=[floor], folder=tmp_path/'l', show=False)
    grown = ladder([fickle('a'), fickle('b'), fickle('c')], games=2, references=[floor], folder=tmp_path/'l', show=False)
    assert len(grown.ladder.rows) == 4

def test_players_of_one_name_are_told_apart():
    found = ladder([fickle('a'), fickle('a')], games=2, references=fickle('a', nodes=3), show=False)
    assert {r['player'] for r in found.table()} == {'a (1)', 'a (2)', 'a (3)'}

def test_an_interrupt_ends_a_ladder_with_what_there_is(monkeypatch):
    from maou_nb.front import match as room
    played = iter(range(100))
    def stop(*args, **more):
        for went in play_games(*args, **more):
            yield went
            if next(played) == 4: raise KeyboardInterrupt
    monkeypatch.setattr(room, 'play_games', stop)
    found = ladder([fickle('a'), fickle('b'), fickle('c')], games=4, show=False)
    assert len(found.matches) == 2 and found.matches[-1].interrupted and len(found.matches[-1]) == 1
