"The USI engine as a process: what GUIs say, oddly or rightly, clocks, ends; it never dies, and never plays what is not legal"
import shutil, signal, subprocess, sys, time
from collections import Counter

import cshogi
import cshogi.usi
import numpy as np
import psutil
import pytest
from hypothesis import given, strategies as st

from maou_nb.front import cli
from maou_nb.play.search import Thinking
from maou_nb.play.usi import FIELDS, OPTIONS, UsiEngine, seconds_for
from talk import Talk, our_engine

@pytest.fixture(scope='module')
def engine(small_run):
    with our_engine(small_run) as e: yield e

def random_games(n, seed, most=150):
    "`n` positions as a GUI says them, with cshogi's board of each: random games, cut anywhere"
    rng = np.random.default_rng(seed)
    for _ in range(n):
        board, moves = cshogi.Board(), []
        for _ in range(rng.integers(0, most)):
            legal = list(board.legal_moves)
            if not legal: break
            move = legal[rng.integers(len(legal))]
            moves.append(cshogi.move_to_usi(move))
            board.push(move)
        yield 'position startpos' + ' moves ' * bool(moves) + ' '.join(moves), board

def answers(engine, n, seed):
    for said, board in random_games(n, seed):
        engine.tell(said, 'go nodes 20')
        move = engine.hear('bestmove')[0].split()[1]
        legal = [cshogi.move_to_usi(m) for m in board.legal_moves]
        assert move in legal or (move == 'resign' and not legal) or (move == 'win' and board.is_nyugyoku()), (said, move)

def test_it_plays_legal_moves_in_random_positions(engine): answers(engine, 20, 1)

@pytest.mark.slow
def test_it_plays_legal_moves_in_a_thousand_random_positions(engine): answers(engine, 1000, 2)

def test_a_real_client_plays_a_game_with_it(small_run):
    assert cli.main(['usi', '--run', str(small_run), '--script', str(small_run/'engine.sh')]) == 0
    client, board, moves = cshogi.usi.Engine(str(small_run/'engine.sh')), cshogi.Board(), []
    for name, value in [('MultiPV', 2), ('Batch', 4)]: client.setoption(name, value)
    client.isready()
    client.usinewgame()
    for _ in range(16):
        client.position(moves=moves, sfen='startpos')
        move, ponder = client.go(nodes=30)
        board.push_usi(move)
        moves.append(move)
        assert ponder is None or board.is_legal(board.move_from_usi(ponder))
    client.quit()
    assert len(moves) == 16

ODD = [
    '', ' ', 'hello', 'go go go', 'position', 'position sfen', 'position startpos moves', 'position startpos moves 7g7e',
    'position startpos moves 7g7f 7g7f', 'position sfen 9/9/9/9/9/9/9/9/9 b - 1',
    'position sfen k8/9/9/9/9/9/9/9/8K b - 1 moves 1i1h 9a9b', 'setoption', 'setoption name', 'setoption name X value 3',
    'setoption name Batch value', 'setoption name Batch value 1e9', 'setoption name Temperature value nan',
    'setoption name Weights value best', 'go nodes 5 nodes x', 'go byoyomi', 'go nodes 0', 'go btime -5 wtime -5 byoyomi 1',
    'go movetime 1', 'go depth 3 nodes 9', 'go mate', 'go mate 1', 'go ponder nodes 3', 'stop', 'ponderhit', 'gameover win',
    'gameover', 'usinewgame', 'isready', 'usi', 'debug on', 'register', '\x00\x01', '位置', 'go infinite',
    'position startpos moves ' + '7g7f 3c3d ' * 300, 'go nodes 99999999999999999999', 'setoption name MultiPV value 600',
    'position sfen lnsgkgsnl/1r5b1/ppppppppp/9/9/9/PPPPPPPPP/1B5R1/LNSGKGSNL b - 1']

def caught_up(engine):
    "Everything that was said before is done"
    engine.tell('stop', 'setoption name Marker')
    while 'Marker' not in engine.hear('info')[0]: pass

def storm(engine, seed, n):
    rng = np.random.default_rng(seed)
    engine.tell(*[ODD[i] for i in rng.integers(0, len(ODD), n)])
    engine.tell('setoption name MultiPV value 1', 'setoption name Batch value 16')
    caught_up(engine)
    engine.tell('position startpos moves 7g7f', 'go nodes 5')
    move = engine.hear('bestmove')[0].split()[1]
    board = cshogi.Board()
    board.push_usi('7g7f')
    assert board.is_legal(board.move_from_usi(move)), move

def test_odd_commands_do_it_no_harm(engine):
    for seed in range(4): storm(engine, seed, 40)

@pytest.mark.slow
def test_many_odd_commands_do_it_no_harm(engine):
    for seed in range(100, 160): storm(engine, seed, 80)

def test_every_go_has_one_answer(engine):
    caught_up(engine)
    for go in ('go nodes 3', 'go byoyomi 1', 'go movetime 1', 'go btime 0 wtime 0', 'go infinite', 'go ponder btime 100', 'go mate 1'):
        engine.said.clear()
        engine.tell('position startpos', go)
        caught_up(engine)
        answers = [line for line in engine.said if line.split(' ')[0] in ('bestmove', 'checkmate')]
        assert len(answers) == 1, (go, engine.said)

def test_infinite_and_ponder_wait(engine):
    engine.tell('position startpos', 'go infinite')
    time.sleep(0.4)
    engine.said.clear()
    told = engine.tell('stop')
    assert engine.hear('bestmove')[1] - told < 0.5
    engine.tell('position startpos', 'go ponder btime 0 wtime 0 byoyomi 600')
    time.sleep(1)
    assert not [line for _, line in list(engine.lines.queue) if line.startswith('bestmove')]
    told = engine.tell('ponderhit')
    came = engine.hear('bestmove')[1] - told
    assert 0.1 < came < 0.6, came

@pytest.mark.parametrize('clock, allowed', [('byoyomi 300', 0.3), ('btime 900 wtime 900 byoyomi 0', 0.9), ('movetime 400', 0.4),
                                            ('btime 0 wtime 0 byoyomi 0', 0.25), ('btime 400 wtime 400 binc 100 winc 100', 0.4)])
def test_the_clock_is_kept(engine, clock, allowed):
    for moves in ('', ' moves 7g7f', ' moves 7g7f 3c3d 2g2f'):
        told = engine.tell(f'position startpos{moves}', f'go {clock}')
        took = engine.hear('bestmove')[1] - told
        assert took < allowed, (clock, took)

@given(st.floats(0, 1e5), st.floats(0, 600), st.floats(0, 600), st.integers(0, 400), st.floats(0, 5))
def test_never_more_time_than_there_is(left, byoyomi, increment, ply, overhead):
    seconds = seconds_for(left, byoyomi, increment, ply, overhead)
    assert 0 <= seconds <= max(left + byoyomi + increment*(left < increment) - overhead, 0)

@given(st.floats(0, 1e3), st.floats(0.1, 60), st.integers(20, 400))
def test_a_game_with_increments_is_never_lost_on_time(clock, increment, plies):
    "As USI counts them, before a move, and as programs do that come from chess, after it"
    for before in (True, False):
        left = clock if before else clock + increment
        for ply in range(plies):
            took = seconds_for(left, 0, increment, ply)
            there = left + increment if before else left
            assert took <= max(there - 0.2, 0) and took >= min(increment, there) - 0.2 - 1e-6
            left += increment - took

def test_what_it_says_while_it_thinks(engine):
    engine.tell('setoption name MultiPV value 3', 'position startpos', 'go byoyomi 1500')
    engine.said.clear()
    engine.hear('bestmove')
    infos = [dict(zip(line.split()[1::2], line.split()[2::2])) for line in engine.said if line.startswith('info multipv')]
    assert {i['multipv'] for i in infos} == {'1', '2', '3'} and all(i['score'] == 'cp' and int(i['nodes']) > 0 for i in infos)
    assert max(int(i['nodes']) for i in infos) > min(int(i['nodes']) for i in infos)      # it speaks more than once
    engine.tell('setoption name MultiPV value 1')

def test_a_declaration_and_a_mate(engine):
    engine.tell('position sfen 3K5/1+P+P+P+PGG2/+P+P+P+P5/9/9/9/9/9/4k4 b R2B3P 1', 'go byoyomi 500')
    assert engine.hear('bestmove')[0] == 'bestmove win'
    engine.tell('position sfen 4k4/4G4/4P4/9/9/9/9/9/4K4 w - 1', 'go byoyomi 500')
    assert engine.hear('bestmove')[0] == 'bestmove resign'

def test_it_resigns_by_its_setting(engine):
    lost = 'position sfen 4k4/9/9/9/9/9/9/9/4K4 w 2R2B4G4S4N4L18P 1'
    engine.tell('setoption name Resign value 0', 'setoption name MateNodes value 0', lost, 'go nodes 30')
    assert engine.hear('bestmove')[0] != 'bestmove resign'
    engine.tell('setoption name Resign value 0.5', lost, 'go nodes 30')
    said = engine.hear('bestmove')[0]
    last = [line for line in engine.said if line.startswith('info')][-1]
    assert said == 'bestmove resign' or float(last.split('score cp ')[1].split()[0]) >= 0, said
    engine.tell('setoption name Resign value 0', 'setoption name MateNodes value 1000')

@pytest.mark.parametrize('name', OPTIONS)
def test_every_option_takes_its_default_and_no_nonsense(name):
    said = []
    engine, option = UsiEngine(None, write=said.append), OPTIONS[name]
    engine.set_option(name, option.default)
    assert not said and engine.values[name] == option.default
    if option.kind in ('spin', 'check', 'combo') or name in FIELDS:
        engine.set_option(name, 'no such value')
        assert len(said) == 1 and engine.values[name] == option.default

def test_every_way_to_think_is_an_option():
    assert {'nodes', *FIELDS.values()} == {*Thinking.model_fields}
    assert Thinking() == UsiEngine(None).thinking()

@pytest.mark.parametrize('how', [pytest.param('end of input', marks=pytest.mark.slow), 'killed parent'])
def test_it_ends_when_who_started_it_is_gone(small_run, how):
    words = [sys.executable, '-m', 'maou_nb', 'usi', '--run', str(small_run)]
    code = f'''import subprocess, time
p = subprocess.Popen({words!r}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
p.stdin.write("usi\\nisready\\nposition startpos\\ngo infinite\\n"); p.stdin.flush()
while p.stdout.readline() != "readyok\\n": pass
print(p.pid, flush=True)
{'p.stdin.close(); p.wait(20); print("ended", flush=True)' if how == 'end of input' else ''}
time.sleep(60)'''
    parent = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(parent.stdout.readline()))
    if how == 'killed parent': parent.send_signal(signal.SIGKILL)
    else: assert parent.stdout.readline() == 'ended\n'
    psutil.wait_procs([child], timeout=20)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    parent.kill()

def test_a_run_that_is_none_is_said(tmp_path):
    words = [sys.executable, '-m', 'maou_nb', 'usi', '--run', tmp_path/'none']
    done = subprocess.run(words, input='usi\nisready\n', capture_output=True, text=True)
    assert done.returncode == 1 and 'usiok' in done.stdout and 'readyok' not in done.stdout
    assert 'Traceback' not in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr

# --- against another engine

FAIRY = shutil.which('fairy-stockfish', path='/usr/games:/usr/bin:/usr/local/bin')

def game(ours, theirs, ours_black, clock, inc):
    "A game on a clock of `clock` and `inc` seconds: (who won: ours, theirs or none, why, plies)"
    board, moves, left = cshogi.Board(), [], {True: clock, False: clock}
    # Fairy-Stockfish 11 takes White's clock for Black's
    swapped = theirs.name.startswith('Fairy-Stockfish 11')
    for e in (ours, theirs): e.tell('usinewgame', 'isready')
    for e in (ours, theirs): e.hear('readyok')
    while True:
        black = board.turn == cshogi.BLACK
        mine = black == ours_black
        e = ours if mine else theirs
        first, second = (left[not turned] for turned in ((swapped and not mine), not (swapped and not mine)))
        times = f'btime {int(1000*first)} wtime {int(1000*second)} binc {int(1000*inc)} winc {int(1000*inc)}'
        told = e.tell('position startpos' + ' moves ' * bool(moves) + ' '.join(moves), f'go {times}')
        line, came = e.hear('bestmove')
        left[black] -= came - told
        who, other = ('ours', 'theirs') if mine else ('theirs', 'ours')
        if left[black] < 0: return other, f'{who}: time', len(moves)
        left[black] += inc
        move = line.split()[1]
        if move == 'resign': return other, 'resign', len(moves)
        if move == 'win' and board.is_nyugyoku(): return who, 'declaration', len(moves)
        if move == 'win': return other, f'{who}: wrong declaration', len(moves)
        if not board.is_legal(board.move_from_usi(move)): return other, f'{who}: illegal {move} after {moves}', len(moves)
        board.push_usi(move)
        moves.append(move)
        if board.is_draw() == cshogi.REPETITION_DRAW: return None, 'repetition', len(moves)
        if len(moves) >= 200: return None, 'long', len(moves)

def games_against_fairy(run, n, clock=1.5, inc=0.05):
    ends = []
    with our_engine(run, '--MoveOverhead', '40') as ours, Talk(FAIRY) as theirs:
        theirs.tell('usi', 'setoption name Threads value 1', 'setoption name Skill_Level value -10', 'isready')
        theirs.name = theirs.hear('id')[0].removeprefix('id name ')
        theirs.hear('readyok')
        for i in range(n): ends.append(game(ours, theirs, i % 2 == 0, clock, inc))
    return ends

def clean(ends):
    print(len(ends), 'games', Counter(why for _, why, _ in ends), Counter(who for who, _, _ in ends))
    assert not [why for _, why, _ in ends if why.startswith('ours:')], ends

@pytest.mark.skipif(FAIRY is None, reason='no fairy-stockfish here: tools/packages.sh installs it')
@pytest.mark.slow
def test_games_on_a_short_clock_against_fairy_stockfish(small_run): clean(games_against_fairy(small_run, 3))

@pytest.mark.slow
@pytest.mark.skipif(FAIRY is None, reason='no fairy-stockfish here: tools/packages.sh installs it')
def test_two_hundred_games_on_a_short_clock_against_fairy_stockfish(small_run): clean(games_against_fairy(small_run, 200))

def test_a_mate_that_is_looked_for_has_its_time(engine):
    told = engine.tell('position startpos', 'go mate 600')
    line, came = engine.hear('checkmate')
    assert line == 'checkmate timeout' and 0.4 < came - told < 1.5
    engine.tell('position sfen 4k4/9/4P4/9/9/9/9/9/9 b G 1', 'go mate 600')
    assert engine.hear('checkmate')[0] == 'checkmate notimplemented'      # without a king of its own: not said to be no mate

def test_moves_that_are_asked_about_are_the_only_ones(engine):
    caught_up(engine)
    for moves in (['1g1f'], ['9g9f', '1g1f', '7g7e'], ['1g1f', '9g9f']):
        engine.tell('position startpos moves 7g7f 3c3d', 'setoption name MultiPV value 9', f'go nodes 60 searchmoves {" ".join(moves)}')
        engine.said.clear()
        assert engine.hear('bestmove')[0].split()[1] in moves
        lines = {line.split(' pv ')[1].split()[0] for line in engine.said if ' pv ' in line}
        assert lines == {*moves} - {'7g7e'}
        assert [line for line in engine.said if '7g7e cannot be played' in line] or '7g7e' not in moves
    engine.tell('go nodes 60')       # what was grown for some moves is not taken for all
    engine.said.clear()
    engine.hear('bestmove')
    assert len({line.split(' pv ')[1].split()[0] for line in engine.said if ' pv ' in line}) == 9
    engine.tell('setoption name MultiPV value 1')

def test_a_mate_is_not_played_where_it_was_not_asked_about(engine):
    engine.tell('position sfen 4k4/9/4P4/9/9/9/9/9/4K4 b G2r2b3g4s4n4l17p 1', 'go nodes 40 searchmoves 5i5h 5c5b+')
    assert engine.hear('bestmove')[0].split()[1] in ('5i5h', '5c5b+')

def test_a_depth_is_said_not_to_be_obeyed(engine):
    caught_up(engine)
    engine.said.clear()
    engine.tell('position startpos', 'go depth 3')
    engine.hear('bestmove')
    assert len([line for line in engine.said if 'depth is not obeyed' in line]) == 1

def test_whatever_it_says_is_one_line():
    said = []
    engine = UsiEngine(None, write=said.append)
    engine.say('info string one\ntwo\r\nthree')
    engine.set_option('x\ny', 'z')
    engine.set_option('Weights', 'a\nb')
    assert said[0] == 'info string one two three' and len(said) == 3 and not [s for s in said if len(s.splitlines()) != 1]

def test_one_node_is_the_policy_and_what_is_no_command_ends_nothing(engine, small_run):
    from maou_nb import predict
    sfen = 'ln3k2l/3+Ng4/3p+R4/p3p3p/3P5/PPnnSp2P/2K1P4/4G1b2/L7L b RBG8Pg3s 89'
    engine.tell(f'position sfen {sfen}', 'go nodes 1')
    assert engine.hear('bestmove')[0].split()[1] == next(iter(predict(small_run, sfen).probabilities))
    engine.tell('position startpos', 'go infinite', 'hello', 'debug on')
    time.sleep(0.5)
    assert not [line for _, line in list(engine.lines.queue) if line.startswith('bestmove')]
    engine.tell('stop')
    engine.hear('bestmove')

def test_it_ends_with_its_input(engine):
    "The last one: afterwards the engine is gone"
    engine.tell('position startpos', 'go infinite')
    engine.process.stdin.close()
    assert engine.process.wait(20) == 0
