"The search is right: mates against a plain search of all moves, repetition, proofs, what one node plays, endgames to their depth"
from functools import lru_cache

import cshogi
from cshogi import CSA
import numpy as np
import pytest
from rsshogi.core import Board

from maou_nb.play.evaluator import Anything
from maou_nb.play.rules import Track, can_declare
from maou_nb.play.search import HAS_SOLVER, MateSolver, Search, Thinking, mates, think
from samples import GAMES

class Noise(Anything):
    "A net that knows nothing and is sure of it"
    def __call__(self, boards, hands, labels, temperature=1.):
        rng = np.random.default_rng(int(boards.sum()))
        priors = [rng.dirichlet(np.full(len(l), 0.3)).astype(np.float32) for l in labels]
        return priors, rng.random(len(boards))

@lru_cache(1)
def game_positions():
    "cshogi's positions of the sample games, each as SFEN"
    found = []
    for path in sorted(GAMES.glob('*.csa'))[:2]:
        for game in CSA.Parser.parse_file(str(path)):
            board = cshogi.Board(game.sfen)
            for move in game.moves:
                board.push(move)
                found.append(board.sfen())
    return found

def mate_plies(board, most):
    "Plies of the shortest mate by checks within `most`, by trying all moves with cshogi; None if there is none"
    def attack(left):
        for move in list(board.legal_moves):
            board.push(move)
            if not board.is_check(): board.pop(); continue
            replies = list(board.legal_moves)
            if not replies: board.pop(); return 1
            worst = 1 if left >= 3 else None
            for reply in replies if left >= 3 else ():
                board.push(reply)
                deeper = attack(left - 2)
                board.pop()
                if deeper is None: worst = None; break
                worst = max(worst, 2 + deeper)
            board.pop()
            if worst: return worst
        return None
    return next((n for n in range(1, most + 1, 2) if attack(n)), None)

@lru_cache(1)
def mated_in():
    "{1: positions, 3: positions, None: positions without either}, of real games, by trying all moves"
    rng, found = np.random.default_rng(0), {1: [], 3: [], None: []}
    sfens = game_positions()
    for i in rng.permutation(len(sfens)):
        board = cshogi.Board(sfens[i])
        if board.move_number < 70 or not list(board.legal_moves): continue
        found[mate_plies(board, 3)].append(sfens[i])
        if len(found[1]) >= 25 and len(found[3]) >= 12: return found
    return found

def test_a_mate_in_one_is_found_where_there_is_one():
    for plies, sfens in mated_in().items():
        for sfen in sfens:
            one = Board(sfen).solve_mate_in_one()
            assert plies == 1 if one else plies != 1, sfen
            if one: assert mates(Board(sfen), [one.to_usi()])

def finds_mates(evaluator, solver, thinking):
    assert len(mated_in()[1]) >= 20 and len(mated_in()[3]) >= 10
    for plies in (1, 3):
        for sfen in mated_in()[plies]:
            search = Search(Track(sfen), thinking, solver)
            think(search, evaluator)
            line = search.lines(1)[0]
            assert search.root.proof == 1 and line.mate >= plies and line.win_rate == 1, (plies, sfen, line)
            assert plies > 1 or line.mate == 1

def test_mates_in_one_and_three_are_proved_by_the_tree_alone(): finds_mates(Anything(), None, Thinking(nodes=30_000, mate_nodes=0))

@pytest.mark.skipif(not HAS_SOLVER, reason='nshogi is not installed')
def test_a_net_that_sees_no_mate_has_the_solver(): finds_mates(Noise(), MateSolver(), Thinking(nodes=100, mate_nodes=20_000))

@pytest.mark.skipif(not HAS_SOLVER, reason='nshogi is not installed')
def test_df_pn_agrees_with_trying_all_moves():
    solver = MateSolver()
    for plies, sfens in mated_in().items():
        for sfen in sfens[:60]:
            line = solver(Board(sfen), 20_000)
            if plies: assert mates(Board(sfen), line), sfen
            if line: assert mates(Board(sfen), line) and len(line) >= (plies or 5), (sfen, line)

def test_a_mated_side_knows_it():
    for sfen in mated_in()[3][:8]:
        line = MateSolver()(Board(sfen), 20_000)
        track = Track(sfen, line[:1])      # the defender is to move, and mated in two
        search = Search(track, Thinking(nodes=30_000, mate_nodes=0))
        think(search, Anything())
        assert search.root.proof == -1 and search.lines(1)[0].win_rate == 0 and search.lines(1)[0].mate < 0

# --- endgames that can be searched to their end

def value_by_all_moves(track, max_moves):
    "1, ½ or 0 for who is to move, by trying every move to the end; the game is a draw after `max_moves` plies"
    board = track.board
    if can_declare(board): return 1.
    moves = board.legal_moves()
    if not moves: return 0.
    if len(track.moves) >= max_moves: return 0.5
    best = 0.
    for move in moves:
        track.play(move)
        best = max(best, 1 - value_by_all_moves(track, max_moves))
        track.take_back()
        if best == 1: break
    return best

ENDGAMES = [('8k/9/8P/9/9/9/9/9/K8 b G 1', 3), ('8k/9/7+P1/9/9/9/9/9/K8 b - 1', 3), ('7nk/8l/6+P2/9/9/9/9/9/K8 b N 1', 3),
            ('k8/9/K8/9/9/9/9/9/9 b R 1', 3), ('9/9/9/9/9/9/2k6/9/K8 w g 1', 3), ('k8/9/1K7/9/9/9/9/9/9 b L 1', 4)]

@pytest.mark.parametrize('sfen, plies', ENDGAMES)
def test_small_endgames_have_the_value_of_trying_all_moves(sfen, plies):
    want = value_by_all_moves(Track(sfen), plies)
    search = Search(Track(sfen), Thinking(nodes=60_000, max_moves=plies, mate_nodes=0, batch=8))
    think(search, Anything())
    line = search.lines(1)[0]
    if want == 1: assert search.root.proof == 1
    elif want == 0: assert search.root.proof == -1
    else: assert search.root.proof == 0 and abs(line.win_rate - 0.5) < 0.02
    if want:      # the move that is chosen keeps the value
        track = Track(sfen, line.moves[:1])
        assert 1 - value_by_all_moves(track, plies) == want

# --- repetition

DANCE = '5i5h 5a5b 5h5i 5b5a'.split()

def test_a_repetition_is_a_draw_to_the_search():
    track = Track(moves=(DANCE*3)[:-1])      # White may complete the fourth occurrence, a draw, by 5b5a
    class Losing(Anything):      # wherever White has moved, Black is thought to win
        def __call__(self, boards, hands, labels, temperature=1.):
            return super().__call__(boards, hands, labels)[0], np.full(len(boards), 0.95)
    search = Search(track, Thinking(nodes=400, mate_nodes=0, batch=1))
    think(search, Losing())
    assert search.move().to_usi() == '5b5a' and abs(search.lines(1)[0].win_rate - 0.5) < 1e-6

CHASE = 'k8/9/9/9/9/9/9/9/K6R1 b r2b4g4s4n4l18p 1'
CYCLE = ['2i2a', '9a9b', '2a2b', '9b9a', '2b2a', '9a9b', '2a2b', '9b9a', '2b2a', '9a9b', '2a2b', '9b9a', '2b2a']

def test_perpetual_check_loses_for_who_checks():
    track = Track(CHASE, CYCLE[:12])         # Black may check a fourth time, and lose by it
    search = Search(track, Thinking(nodes=2000, mate_nodes=0))
    think(search, Anything())
    at = search.root.usi().index('2b2a')
    assert search.root.lost is not None and search.root.lost[at]
    assert search.move().to_usi() != '2b2a'

# --- one node, drawn moves, kept trees

def test_one_node_plays_the_policy():
    for seed, sfen in enumerate(game_positions()[5::291]):
        if not Board(sfen).legal_moves(): continue
        search = Search(Track(sfen), Thinking(nodes=1), MateSolver())
        evaluator = Noise()
        think(search, evaluator)
        assert search.root.n == 1 and search.move() == search.root.move(int(search.root.priors.argmax()))

def test_moves_are_drawn_by_visits():
    search = Search(Track(), Thinking(nodes=200, temperature=1., temperature_plies=10, mate_nodes=0))
    think(search, Noise())
    rng, n = np.random.default_rng(0), 4000
    drawn = np.bincount([search.root.usi().index(search.move(rng).to_usi()) for _ in range(n)], minlength=30)/n
    want = search.root.visits/search.root.visits.sum()
    assert np.abs(drawn - want).max() < 4*np.sqrt(0.25/n)
    assert search.move() == search.root.move(int(search.root.visits.argmax()))      # without a generator: the best

def checked(node):
    "Visits and wins of a tree add up"
    if node.priors is None: return
    assert node.n == 1 + node.visits.sum() and (node.visits >= 0).all()
    assert (node.wins >= -1e-4).all() and (node.wins <= node.visits + 1e-3).all()
    assert node.seen == pytest.approx(float(node.priors[node.visits > 0].sum()), abs=1e-4)
    for i, child in node.children.items():
        assert child.priors is None or child.n == node.visits[i] or child.proof
        checked(child)

@pytest.mark.parametrize('batch', [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 64)), 16])
def test_no_visit_is_left_open(batch):
    for sfen in game_positions()[7::900]:
        if not Board(sfen).legal_moves(): continue
        search = Search(Track(sfen), Thinking(nodes=500, batch=batch, mate_nodes=0))
        think(search, Noise())
        assert search.root.proof or search.root.n == 500
        checked(search.root)
        assert search.track.board.to_sfen() == Board(sfen).to_sfen()

def test_a_kept_tree_is_walked_on_in():
    search = Search(Track(), Thinking(nodes=300, mate_nodes=0))
    for _ in range(12):
        think(search, Noise())
        kept = search.root.children[search.root.usi().index(search.move().to_usi())]
        move = search.move()
        search.advance(move)
        assert search.root is kept or kept.priors is None
        checked(search.root)

def test_declarations_agree_with_cshogi():
    rng, n = np.random.default_rng(3), 0
    for _ in range(3000):      # random positions with a king that came through
        squares = rng.permutation(27)[:rng.integers(8, 16)]
        rows = [['1']*9 for _ in range(9)]
        for k, s in enumerate(squares):
            often = [.3, .1, .1, .1, .05, .1, .1, .05, .05, .05]
            piece = 'K' if k == 0 else rng.choice(['+P', '+L', 'G', 'S', '+S', 'B', 'R', '+R', '+B', 'g'], p=often)
            rows[s//9][s % 9] = piece
        rows[8][4] = 'k'
        sfen = '/'.join(''.join(r) for r in rows) + f' b {rng.integers(2, 9)}P 1'
        try: board = Board(sfen)
        except ValueError: continue
        if not board.is_valid(): continue
        n += 1
        assert can_declare(board) == cshogi.Board(sfen).is_nyugyoku(), sfen
    assert n > 300
