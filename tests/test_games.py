"Games of a match as JSON, KIF and CSA, read back by our readers, by rsshogi and by cshogi; matches that are kept; openings"
import json, os, random, re, signal, subprocess, sys, time
from dataclasses import replace
from html.parser import HTMLParser

import cshogi
import pytest
from cshogi import CSA, KIF
from rsshogi.core import Board
from rsshogi.record import Record

from maou_nb.data.files import FileError
from maou_nb.data.games import RecordError, parse_csa, parse_kif
from maou_nb.data.records import read_games
from maou_nb.play.elo import elo_of
from maou_nb.play.games import (BOOK, ENDS, Game, GameBrowser, MatchResult, MatchView, Opening, centipawns_of, game_from, load_match,
                                open_match, plan, rate_of, read_openings)
from maou_nb.show.boards import START

HANDICAP = 'lnsgkgsnl/7b1/ppppppppp/9/9/9/PPPPPPPPP/1B5R1/LNSGKGSNL w - 1'
RNG = random.Random(5)

def middle():
    "A position with White to move and pieces in both hands"
    while True:
        board = Board(START)
        for _ in range(81): board.apply_usi(RNG.choice(list(board.legal_moves())).to_usi())
        hands = board.to_sfen().split()[2]
        if board.turn.value and len(board.legal_moves()) > 5 and hands.lower() != hands != hands.upper(): return board.to_sfen()

HANDS = middle()

def end_of(end, black):
    "A result for Black that fits an ending with that side to move"
    fixed = {'resignation': not black, 'mate': not black, 'time': not black, 'declaration': black, 'repetition': .5, 'interrupted': .5}
    return float(fixed.get(end, .5 if end == 'too many moves' else RNG.choice([0, 1])))

def random_game(start=START, end='resignation', plies=40, **about):
    board, moves = Board(start), []
    for _ in range(plies + RNG.randint(0, 1)):
        if not (legal := list(board.legal_moves())): break
        moves.append(RNG.choice(legal).to_usi())
        board.apply_usi(moves[-1])
    black = board.turn.value == 0
    evals = [RNG.choice([None, RNG.uniform(.02, .98), 1, 0]) for _ in moves]
    times = [RNG.choice([None, RNG.randint(0, 90_000)]) for _ in moves]
    return Game('one', 'two', moves, end_of(end, black), end, start, RNG.randint(0, 4), evals, times, **about)

GAMES = [random_game(start, end, plies) for start in (START, HANDICAP, HANDS) for end in ENDS for plies in (1, 40, 120)]

def from_black(game):
    "Centipawns from Black's side of each move, None where nothing was said"
    told = map(centipawns_of, game.evals)
    return [e if e is None or game.black_moved(ply) else -e for ply, e in enumerate(told)]

@pytest.mark.parametrize('name, parse', [('csa', parse_csa), ('kif', parse_kif)])
def test_our_readers_read_what_is_written(name, parse):
    for game in GAMES:
        found = parse(getattr(game, name)(), name)
        result = None if game.end == 'interrupted' else game.result      # which nobody has won or drawn
        assert found.usi == [*game.moves] and found.result == result, (game, found)
        assert found.start == ' '.join(game.start.split()[:3])
        assert [None if e != e else round(e) for e in found.evals.tolist()] == from_black(game)

def test_rsshogi_reads_what_is_written():
    for game in GAMES:
        for record in (Record.from_csa_str(game.csa()), Record.from_kif_str(game.kif())):
            assert [m.move.to_usi() for m in record.moves] == [*game.moves]
            assert record.init_position_sfen.split()[:3] == game.start.split()[:3]
        times = [(t or 0)//1000 for t in game.times]
        assert [m.time_ms//1000 for m in Record.from_csa_str(game.csa()).moves] == times
        assert [m.time_ms//1000 for m in Record.from_kif_str(game.kif()).moves] == times

def squares_told(game):
    "KIF with the square in place of 同, which cshogi takes for another one after some promotions"
    def square(found):
        usi = game.moves[int(found[1]) - 1]
        return found[0].replace('同　', '０１２３４５６７８９'[int(usi[2])] + '一二三四五六七八九'['abcdefghi'.index(usi[3])])
    return re.sub(r'(?m)^ *(\d+) 同　', square, game.kif())

def test_cshogi_reads_what_is_written():
    for game in GAMES:
        found = CSA.Parser.parse_str(game.csa())[0]
        assert [cshogi.move_to_usi(m) for m in found.moves] == [*game.moves] and found.names == ['one', 'two']
        # a foul is written with the side that made it; cshogi knows the result of these endings
        if game.end in ('resignation', 'time', 'declaration', 'repetition', 'mate'):
            assert found.win == {1: cshogi.BLACK_WIN, 0: cshogi.WHITE_WIN, .5: cshogi.DRAW}[game.result] or game.end == 'mate'
        assert found.scores == [e or 0 for e in from_black(game)]
        kif = KIF.Parser.parse_str(squares_told(game))
        assert [cshogi.move_to_usi(m) for m in kif.moves] == [*game.moves] and kif.names == ['one', 'two']

def test_json_is_all_of_it():
    for game in GAMES: assert game_from(json.loads(json.dumps(game.to_json(), allow_nan=False))) == game

def test_files_are_read_by_name(tmp_path):
    for game, name in ((GAMES[1], 'a.kif'), (GAMES[2], 'b.csa')):
        game.save(tmp_path/name)
        assert [next(read_games(tmp_path/name)).usi] == [[*game.moves]]
    with pytest.raises(ValueError, match='ends with .kif or .csa'): GAMES[0].save(tmp_path/'c.txt')

def test_evaluations_survive_as_centipawns():
    for cp in (*range(-3000, 3001, 37), 30_000, -30_000):
        assert abs(centipawns_of(rate_of(cp)) - cp) <= max(1, .003*abs(cp))
    assert centipawns_of(None) is rate_of(None) is None

def test_names_do_not_break_records():
    game = replace(GAMES[1], black="x\n%TORYO\n'", white='後手：\r\n1 ７六歩(77)', said='a\n+7776FU')
    assert parse_csa(game.csa()).usi == parse_kif(game.kif()).usi == [*game.moves]

def a_game(n, points, a='a', b='b'):
    "Game `n` of a match in which `a` gets `points`"
    black, white = (a, b) if n % 2 == 0 else (b, a)
    won = points if n % 2 == 0 else 1 - points
    moves = ('7g7f', '3c3d')[:1 if won == 1 else 2]
    end, start = 'repetition' if won == .5 else 'resignation', START.replace(' 1', f' {n//2 + 1}')     # no two pairs are alike
    return Game(black, white, moves, won, end, start, number=n)

def test_a_result_counts_as_by_hand():
    points = [RNG.choice([0, .5, 1]) for _ in range(101)]
    result = MatchResult('a', 'b', [a_game(n, p) for n, p in enumerate(points)])
    pairs = [points[k] + points[k + 1] for k in range(0, 100, 2)]
    assert result.counts() == ([pairs.count(k/2) for k in range(5)], [int(points[100] == k/2) for k in range(3)])
    assert result.elo == elo_of(*result.counts()) and result.elo.score == pytest.approx(sum(points)/101)
    assert result.tally() == tuple(points.count(k) for k in (1, .5, 0))
    assert result.tally(True) == tuple(points[::2].count(k) for k in (1, .5, 0))
    assert sum(result.lost_by('resignation').values()) == points.count(0) + points.count(1)
    shuffled = MatchResult('a', 'b', RNG.sample(result.games, 101))
    assert shuffled.counts() == result.counts()

class Tags(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.tags = []
        self.feed(html)
    def handle_starttag(self, tag, attrs): self.tags.append(tag)

def test_names_stay_text():
    odd = '<img src=x onerror=alert(1)>'
    result = MatchResult(odd, '<script>', [a_game(0, 1, odd, '<script>'), a_game(1, 0, odd, '<script>')])
    assert {*Tags(result._repr_html_()).tags} <= {'style', 'table', 'tbody', 'tr', 'td', 'img'}
    assert '<script>' not in result.games[0].at(1)
    json.dumps(result.chart().plotly(), allow_nan=False)

def test_a_game_shows_itself():
    for game in GAMES[::9]:
        for ply in {0, 1, len(game)}:
            svg = game.at(ply)
            assert game.board(ply).to_sfen() in svg
            assert f'{ply} of {len(game)}' in svg
    made = GAMES[1]._repr_mimebundle_()[0]
    assert {'image/svg+xml', 'image/png', 'text/plain'} <= {*made}

def test_games_are_stepped_through():
    browser = GameBrowser(GAMES[:3])
    assert browser.ply.value == len(GAMES[0])
    browser.which.value = 1
    assert browser.game is GAMES[1] and browser.ply.value == browser.ply.max == len(GAMES[1])
    seen = {browser.picture.value}
    for ply in (0, 1, 20):
        browser.ply.value = ply
        seen.add(browser.picture.value)
    assert len(seen) == 4
    assert 'text/html' in browser._repr_mimebundle_()

KILLED = '''
import sys, time
sys.path.insert(0, {here!r})
from test_games import a_game
from maou_nb.play.games import open_match
result = open_match('a', 'b', dict(nodes=1), sys.argv[1])
for n in range(len(result), 10_000):
    result.add(a_game(n, n % 3/2))
    print(n, flush=True)
'''

def test_a_killed_match_goes_on(tmp_path):
    "kill -9 while it writes: no game that was told is lost, and none is there twice"
    code, folder = KILLED.format(here=os.path.dirname(__file__)), tmp_path/'m'
    told = -1
    for k in range(3):
        child = subprocess.Popen([sys.executable, '-c', code, folder], stdout=subprocess.PIPE, text=True)
        child.stdout.readline()
        time.sleep(.03*k)
        child.send_signal(signal.SIGKILL)
        told = max([told, *map(int, child.stdout.read().split())])
        child.wait()
        with open(folder/'games.jsonl', 'a') as f: f.write('{"black": "a"')
        assert [g.number for g in open_match('a', 'b', dict(nodes=1), folder).games][:told + 1] == [*range(told + 1)]
    numbers = [g.number for g in load_match(folder).games]
    assert numbers == [*range(len(numbers))] and len(numbers) >= told + 1 > 0

def test_other_matches_are_refused(tmp_path):
    open_match('a', 'b', {'nodes': 10, 'openings': 'x'}, tmp_path).add(a_game(0, 1))
    same = {'nodes': 10, 'openings': 'x'}
    for args, said in ((('a', 'c', same), 'a match of a and b'), (('a', 'b', same | {'nodes': 20}), 'other nodes'),
                       (('a', 'b', {'nodes': 10}), 'other openings')):
        with pytest.raises(FileError, match=said): open_match(*args, tmp_path)
    assert len(load_match(tmp_path)) == 1
    for damage in ('', '[]', '{"a": "a"}', '{"a": "a", "b": "a", "settings": {}}'):
        (tmp_path/'match.json').write_text(damage)
        with pytest.raises(FileError, match='no match that can be read'): load_match(tmp_path)

def test_what_is_left_is_played_once(tmp_path):
    planned = plan(7, read_openings(most=2))
    result = open_match('a', 'b', {}, tmp_path)
    for n in (0, 3, 4): result.add(a_game(n, .5))
    assert [p.number for p in result.left(planned)] == [1, 2, 5, 6]
    assert [p.opening for p in planned][0] == planned[1].opening == planned[4].opening != planned[2].opening
    assert [p.a_black for p in planned] == [True, False]*3 + [True]

def test_the_books_openings_are_even_and_distinct():
    found = read_openings()
    assert len(found) == len({' '.join(o.board().to_sfen().split()[:3]) for o in found}) == 100
    assert all(8 <= len(o.moves) <= 24 and not o.board().is_in_check() for o in found)
    assert read_openings() == found != read_openings(seed=1) and read_openings(most=5) == found[:5]
    assert BOOK.is_file()

@pytest.mark.parametrize('line, said', [
    ('startpos moves 7g7f 7g7f', 'mine.txt, line 2: move 2'), ('7g7f', 'mine.txt, line 2'), ('startpos moves hello', 'line 2: move 1'),
    ('4k4/9/4P4/9/9/9/9/9/4K4 b G 1 moves G*5b', 'line 2: no move can be played'), ('9/9/9/9/9/9/9/9/9 b - 1', 'line 2')])
def test_openings_that_cannot_be_played_are_named(tmp_path, line, said):
    (tmp_path/'mine.txt').write_text(f'startpos moves 2g2f\n{line}\n')
    with pytest.raises(RecordError, match=said): read_openings(tmp_path/'mine.txt')

def test_openings_come_in_any_form(tmp_path):
    sfens = ['startpos', f'sfen {HANDS} moves', HANDS, 'position startpos moves 2g2f 8c8d', Opening(START, ('7g7f',))]
    found = read_openings(sfens)
    assert {o.board().to_sfen().split()[0] for o in found} == {Board(s).to_sfen().split()[0] for s in (START, HANDS)} | {
        'lnsgkgsnl/1r5b1/p1ppppppp/1p7/9/7P1/PPPPPPP1P/1B5R1/LNSGKGSNL', 'lnsgkgsnl/1r5b1/ppppppppp/9/9/2P6/PP1PPPPPP/1B5R1/LNSGKGSNL'}
    GAMES[1].save(tmp_path/'a.kif')
    assert read_openings(tmp_path/'a.kif')[0].moves == GAMES[1].moves[:len(read_openings(tmp_path/'a.kif')[0].moves)]

def test_a_view_says_where_a_match_stands(capsys):
    result = MatchResult('a', 'b')
    view = MatchView(result, 4)
    for n in range(4):
        result.games.append(a_game(n, 1))
        view.update(last=n == 3)
    said = capsys.readouterr().err
    assert 'a against b: 4 won' in said and 'left' not in said.splitlines()[-1]

def test_a_view_changes_in_place(monkeypatch):
    "One output in a notebook, given another table each time"
    import IPython.display
    from maou_nb.play import games
    shown = []
    class Place:
        def update(self, bundle, raw): shown.append(bundle)
    monkeypatch.setattr(games, 'in_notebook', lambda: True)
    monkeypatch.setattr(IPython.display, 'display', lambda bundle, raw, display_id: [shown.append(bundle), Place()][1])
    result = MatchResult('<b>', 'b')
    view = MatchView(result, 2)
    for n in range(2):
        result.games.append(a_game(n, 1, '<b>', 'b'))
        view.update(last=True)
    assert len(shown) == 2 and '2 won' in shown[1]['text/html'] and '1 game left' in shown[0]['text/plain']
    assert '<b>' not in shown[1]['text/html']
