"USI engines against each other, real ones and scripts that crash, hang, cheat: a game ends whatever happens, and no process is left"
import os, shutil, signal, subprocess, sys, time

import psutil
import pytest
from rsshogi.core import Board

from maou_nb.data.files import FileError
from maou_nb.play.arena import Engine, EngineError, EngineFault, Thought, UsiClient, UsiPlayer, arena, run_match, score_of_info
from maou_nb.play.games import load_match, plan, rate_of, read_openings

def real(name):
    "The path of an engine of Debian's"
    found = shutil.which(name) or shutil.which(name, path='/usr/games')
    if not found:
        if os.environ.get('CI'): pytest.fail(f'there is no {name}: tools/packages.sh installs it')
        pytest.skip(f'there is no {name}: `sudo tools/packages.sh` installs it')
    return found

SCRIPT = '''
import os, random, signal, subprocess, sys, time
from rsshogi.core import Board
mode, mark, moved = sys.argv[1], sys.argv[2], 0
if mode == 'mute': time.sleep(1000)
if mode == 'deaf': print('usiok\\nreadyok', flush=True); time.sleep(1000)
if mode == 'parent': subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)', mark], start_new_session=True)
if mode == 'stubborn': signal.signal(signal.SIGTERM, signal.SIG_IGN)
for line in sys.stdin:
    word, *rest = line.split() or ['']
    if word == 'usi':
        if mode == 'at once': os._exit(3)
        print('id name it\\noption name A b type string default x y\\nusiok', flush=True)
    if word == 'isready': print('readyok', flush=True)
    if word == 'position':
        at = rest.index('moves') if 'moves' in rest else len(rest)
        board = Board() if rest[0] == 'startpos' else Board(' '.join(rest[1:at]))
        for usi in rest[at + 1:]: board.apply_usi(usi)
    if word == 'go':
        moved += 1
        move = random.choice(sorted(m.to_usi() for m in board.legal_moves()))
        if moved > 2:
            if mode == 'exit': print('oh no', file=sys.stderr); sys.exit(7)
            if mode == 'killed': os.kill(os.getpid(), signal.SIGKILL)
            if mode in ('hang', 'parent', 'stubborn'): time.sleep(1000)
            if mode == 'closed': os.close(1); time.sleep(1000)
            if mode == 'slow': time.sleep(.4)
            if mode == 'illegal': move = '5e5d'
            if mode == 'nonsense': move = chr(9786)*100
            if mode == 'empty': move = ''
            if mode == 'none': move = '(none)'
            if mode == 'win': move = 'win'
            if mode == 'resign': move = 'resign'
            if mode == 'flood':
                while True: print('info string and so on ' * 20)
            if mode == 'one line':
                while True: sys.stdout.write('x' * 1000)
        if mode == 'chatty':
            print('\\n\\xe9 info\\ninfo score\\ninfo score cp\\ninfo score cp x\\ninfo depth 1 score cp 99 pv\\nbestmoves 1a1b')
        if mode == 'binary': sys.stdout.buffer.write(bytes(range(256)) + b'\\n')
        print('bestmove', move, flush=True)
    if word == 'quit' and mode != 'stubborn': break
'''

@pytest.fixture
def it(tmp_path):
    "mode → the command of such an engine; no process of the test is left after it"
    (tmp_path/'it.py').write_text(SCRIPT)
    yield lambda mode: [sys.executable, str(tmp_path/'it.py'), mode, str(tmp_path)]
    time.sleep(.05)
    assert left(tmp_path) == []

def left(mark):
    "Processes whose command holds `mark`"
    found = []
    for p in psutil.process_iter(['cmdline', 'status']):
        if str(mark) in ' '.join(p.info['cmdline'] or []) and p.info['status'] != psutil.STATUS_ZOMBIE: found.append(p)
    return found

ENDS = {'exit': ('crashed', 'it ended with 7: oh no'), 'killed': ('crashed', 'it ended with -9'),
        'closed': ('crashed', 'it closed its output'),
        'hang': ('time', 'no bestmove within'), 'parent': ('time', 'no bestmove within'), 'stubborn': ('time', 'no bestmove within'),
        'slow': ('time', 'within'), 'flood': ('time', 'no bestmove within'), 'one line': ('time', 'no bestmove within'),
        'illegal': ('illegal move', '5e5d in '), 'nonsense': ('illegal move', '☺'), 'empty': ('illegal move', 'nothing in '),
        'none': ('illegal move', '(none) in'), 'win': ('illegal move', 'declared a win that it has not'), 'resign': ('resignation', '')}

@pytest.mark.parametrize('mode', ENDS)
def test_a_bad_engine_loses(it, mode):
    "With both colours, for the right reason, and the game is kept as far as it went"
    end, said = ENDS[mode]
    limit, games = dict(byoyomi=.25) if end == 'time' else dict(nodes=1), 2 if mode in ('exit', 'hang', 'illegal') else 1
    result = arena(Engine(it(mode), 'bad', **limit), Engine(it('play'), 'good', nodes=1), games=games, show=False)
    assert [g.end for g in result.games] == [end]*games and result.tally() == (0, 0, games)
    assert all(said in g.said for g in result.games)
    for game in result.games:
        board = Board(game.start)
        for usi in game.moves:
            assert usi in [m.to_usi() for m in board.legal_moves()]
            board.apply_usi(usi)
        assert game.opening + 4 <= len(game.moves) <= game.opening + 6 or game.number == 1       # it went wrong at its third move
        assert game.csa() and game.kif()

@pytest.mark.parametrize('mode, said', [('mute', 'no usiok within 0.5 s'), ('at once', 'it ended with 3')])
def test_an_engine_that_never_gets_ready_is_said_so(it, mode, said):
    with pytest.raises(EngineError, match=f'does not get ready: {said}'):
        arena(Engine(it(mode), 'bad', patience=.5), Engine(it('play'), 'good'), games=2, show=False)

def test_an_engine_that_hears_nothing_loses(it):
    result = arena(Engine(it('deaf'), 'bad', patience=1), Engine(it('play'), 'good'), games=1, show=False)
    assert result.tally() == (0, 0, 1) and result.games[0].end in ('crashed', 'time')

@pytest.mark.parametrize('mode', ['chatty', 'binary'])
def test_nonsense_between_lines_is_passed_over(it, mode):
    result = arena(Engine(it(mode), 'odd', nodes=1), Engine(it('play'), 'good', nodes=1), games=2, max_moves=60, show=False)
    assert {g.end for g in result.games} <= {'too many moves', 'mate', 'repetition'}
    odd = [e for g in result.games for ply, e in enumerate(g.evals) if g.black_moved(ply) == (g.black == 'odd') and ply >= g.opening]
    assert odd and {*odd} == ({rate_of(99)} if mode == 'chatty' else {None})

def test_a_clock_runs_down(it):
    "Time is counted over the game, and what is left is told"
    games = arena(Engine(it('slow'), 'slow', time=1.), Engine(it('play'), 'good', nodes=1), games=1, show=False).games
    spent = sum(t for ply, t in enumerate(games[0].times) if t is not None and games[0].black_moved(ply))
    assert games[0].end == 'time' and 400 < spent < 1200
    inc = arena(Engine(it('slow'), 'slow', time=1., inc=.5), Engine(it('play'), 'good', nodes=1), games=1,
                max_moves=14, openings=['startpos'], show=False)
    assert inc.games[0].end == 'too many moves' and len(inc.games[0]) == 14
    alone = arena(Engine(it('slow'), 'slow', time=.01, inc=.6), Engine(it('play'), 'good', nodes=1), games=1,
                  max_moves=14, openings=['startpos'], show=False)
    assert alone.games[0].end == 'too many moves'      # as USI has it, what a move adds is there for it

def test_whoever_crashes_all_the_time_ends_the_match(it, tmp_path):
    with pytest.raises(EngineError, match='bad crashed in 5 games, one after the other: it ended with 7: oh no'):
        arena(Engine(it('exit'), 'bad'), Engine(it('play'), 'good'), games=50, folder=tmp_path/'m', show=False, parallel=2)
    assert 5 <= len(load_match(tmp_path/'m')) < 10

def test_options_are_set_or_named(it):
    player = UsiPlayer(Engine(it('play'), 'x', options={'A b': 'c d'}))
    player.start()
    player.close()
    with pytest.raises(EngineError, match='it has no option Threads: one of A b was expected'):
        arena(Engine(it('play'), 'x', options={'Threads': 2}), Engine(it('play'), 'y'), games=1, show=False)

@pytest.mark.parametrize('command, said', [('no-such-engine', 'is not there'), ('', 'no command'), ([], 'no command'),
                                           (__file__, 'is not there'), (3, 'a command')])
def test_what_is_no_engine_is_refused(command, said):
    with pytest.raises(ValueError, match=said): arena(command, 'fairy-stockfish', games=1, show=False)

def test_a_program_that_is_no_engine_is_refused(tmp_path):
    with pytest.raises(EngineError, match='does not get ready: it ended with 0'): arena('true', 'cat', games=1, show=False, byoyomi=1)
    with pytest.raises(EngineError, match='does not get ready: no usiok'): arena(Engine('cat', patience=.3), 'cat', games=1, show=False)

def test_a_match_goes_on_where_it_was(it, tmp_path):
    def some(games, **how):
        return arena(Engine(it('resign'), 'a'), Engine(it('play'), 'b', **how), games=games, folder=tmp_path/'m', show=False)
    seen = []
    first = some(3)
    again = arena(Engine(it('resign'), 'a'), Engine(it('play'), 'b'), games=6, folder=tmp_path/'m', show=False, on_game=seen.append)
    assert again.games[:3] == first.games and [g.number for g in seen] == [3, 4, 5]
    assert [*map(len, (some(6), some(2)))] == [6, 6]
    with pytest.raises(FileError, match='with other b'): some(6, nodes=5)
    pairs = [(g.start, g.moves[:g.opening]) for g in again.games]
    assert pairs[::2] == pairs[1::2] and len({*pairs}) == 3
    assert [g.black for g in again.games] == ['a', 'b']*3

def test_games_go_on_at_once(it):
    result = arena(Engine(it('play'), 'a', nodes=1), Engine(it('resign'), 'b', nodes=1), games=9, parallel=3, show=False)
    assert sorted(g.number for g in result.games) == [*range(9)] and result.tally() == (9, 0, 0)

class Random:
    "A player that is no process"
    name = 'random'
    def settings(self): return {}
    def start(self): pass
    def close(self, wait=0): pass
    def new_game(self, number=0): self.games = getattr(self, 'games', 0) + 1
    def think(self, position, left, black):
        board = Board()
        for usi in position.split()[2:]: board.apply_usi(usi)
        if len(position.split()) > 60: raise EngineFault('time', 'fell asleep')
        return Thought(sorted(m.to_usi() for m in board.legal_moves())[0], .25, 1)

def test_whatever_can_play_can_play(it):
    player, other = Random(), UsiPlayer(Engine(it('play'), 'b', nodes=1))
    result = run_match(lambda: (player, other), 'random', 'b', plan(2, read_openings(most=1)), {}, show=False)
    assert {g.end for g in result.games} <= {'time', 'mate', 'repetition'} and player.games == 2
    for g in result.games: assert {r for _, r in g.rates(g.black == 'random')} <= {.25, .75}

STARTS = '''
import sys, time
from maou_nb.play.arena import Engine, arena
arena(Engine(sys.argv[2:], 'a', nodes=1), Engine(sys.argv[2:], 'b', nodes=1), games=1000, max_moves=60, folder=sys.argv[1], show=False,
      on_game=lambda game: print(game.number, flush=True))
'''

@pytest.mark.parametrize('how', [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGKILL])
def test_engines_end_with_the_match(it, tmp_path, how):
    "Ctrl-C and kill -9 of the match: its engines are gone, its games are not"
    child = subprocess.Popen([sys.executable, '-c', STARTS, tmp_path/'m', *it('play')], stdout=subprocess.PIPE,
                             stderr=subprocess.DEVNULL, text=True)
    assert child.stdout.readline().strip() == '0'
    assert len(left(tmp_path)) >= 2
    child.send_signal(how)
    child.wait(20)
    child.stdout.close()
    end = time.monotonic() + 10
    while left(tmp_path) and time.monotonic() < end: time.sleep(.1)
    assert left(tmp_path) == [] and len(load_match(tmp_path/'m')) >= 1

def test_scores_of_info_lines():
    for line, rate in {'info depth 5 score cp 0 pv 7g7f': .5, 'info score mate 3': 1., 'info score mate +': 1., 'info score mate -1': 0.,
                       'info multipv 2 score cp 100': None, 'info string score cp 100': None, 'bestmove 7g7f': None, 'info score cp': None,
                       'info score cp 1e999 pv': 1.}.items():
        found = score_of_info(line)
        assert found == rate or line.startswith('info string'), line

def test_fairy_stockfish_plays(tmp_path):
    "2,000 nodes a move are stronger than 200"
    fairy = real('fairy-stockfish')
    result = arena(Engine(fairy, nodes=2000), Engine(fairy, nodes=200), games=10, folder=tmp_path/'m', show=False, parallel=2)
    assert (result.a, result.b) == ('fairy-stockfish nodes 2000', 'fairy-stockfish nodes 200')
    assert result.elo.score > .5 and not {g.end for g in result.games} & {'crashed', 'time', 'illegal move'}
    assert all(sum(e is not None for e in g.evals) > .9*(len(g.moves) - g.opening) for g in result.games)
    assert load_match(tmp_path/'m').games == result.games and left(tmp_path) == []

def test_gpsshogi_plays():
    "It knows neither `go nodes` nor `go depth`, and ends if told so: which is said with its own words"
    gps = real('gpsusi')
    fairy = Engine(real('fairy-stockfish'), 'fairy', nodes=100)
    result = arena(Engine(gps, 'gps', byoyomi=2, options={'LimitDepth': 4, 'BookDepth': 0}), fairy, games=2, max_moves=40, show=False)
    assert {g.end for g in result.games} <= {'mate', 'resignation', 'too many moves'}
    assert all(len([r for _, r in g.rates(g.black == 'gps')]) > 3 for g in result.games)
    game = arena(Engine(gps, 'gps', nodes=100), fairy, games=1, show=False).games[0]
    assert game.end == 'crashed' and game.winner() == 'fairy' and 'unknown option in go nodes' in game.said

def test_fairy_stockfish_keeps_its_own_clock():
    "Version 11 takes the other side's for its own, if told as USI has it"
    player = UsiPlayer(Engine(real('fairy-stockfish'), time=1, inc=.001))
    player.start()
    player.new_game()
    took = [[player.think(f'startpos moves {moves}', left, black).ms for left in ((100, 60_000), (60_000, 100))]
            for moves, black in (('7g7f 3c3d', True), ('7g7f 3c3d 2g2f', False))]
    player.close()
    assert took[0][0] < took[0][1] and took[1][1] < took[1][0] and max(took[0][0], took[1][1]) < 200

@pytest.mark.slow
def test_nobody_loses_on_time_or_by_a_fault():
    "40 games, one side with 2 s and 20 ms a move, the other with 0.1 s a move"
    fairy = real('fairy-stockfish')
    result = arena(Engine(fairy, 'a', time=2, inc=.02), Engine(fairy, 'b', byoyomi=.1), games=40, show=False, parallel=1)
    assert not {g.end for g in result.games} & {'crashed', 'time', 'illegal move'}

def test_a_client_tells_what_went_wrong(it):
    client = UsiClient(it('play'))
    with pytest.raises(EngineFault, match='no readyok within 0.2 s'): [*client.until('readyok', .2)]
    client.process.kill()
    with pytest.raises(EngineFault, match='it ended with -9'): [*client.until('readyok', 5)]
    client.close()
