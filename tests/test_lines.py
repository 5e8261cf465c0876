"""Rules of text records: a line is read to its end, an eval is of the position its writer meant, a log of an engine is its games,
and time grows with a file no faster than its length
"""
import io, random, time

import pytest

from maou_nb.data.games import MATE, TEXT_FORMATS, Game, RecordError, parse_csa, parse_kif, read_text
from maou_nb.data.jkf import parse_jkf, read_jkf
from maou_nb.data.records import read_file
from samples import ONE_FILE
from test_dialects import is_move
from test_every_reader import MADE
from writers import WRITERS, play, starts

def read(text, format):
    stream = io.BufferedReader(io.BytesIO(text if isinstance(text, bytes) else text.encode()))
    return list(read_jkf(stream, 'x') if format == 'jkf' else read_text(stream, format, 'x'))

def known(games): return [(g.start, g.usi, g.end, g.result) if isinstance(g, Game) else str(g) for g in games]

# --- to the end of the line

HEADS = {'csa': 'V2.2', 'kif': '手合割：平手', 'ki2': '手合割：平手', 'usi': 'startpos'}
MOVE = {'csa': '+7776FU', 'kif': '3 ２六歩(27)', 'ki2': '▲２六歩', 'usi': '7g7f'}

def lines_of(format, rng, all_starts):
    "A game as it is written, without variations"
    if format == 'ki2': return [l for l in rng.choice(MADE['ki2']).decode().splitlines() if l]
    lines = WRITERS[format](play(rng, rng.choice(all_starts)), rng)
    return lines[:next((i for i, line in enumerate(lines) if line.startswith('変化')), len(lines))]

def tells(format, line):
    "Whether `line` is of moves or an ending alone"
    if any(sign in line for sign in "*',"): return False
    if format in ('csa', 'kif') and is_move(format, line): return True
    return format == 'usi' or line.startswith(('まで', '%', *'▲△☗☖▼▽'))

@pytest.mark.parametrize('format', ['csa', 'kif', 'ki2', 'usi'])
def test_what_stands_behind_a_move_or_an_ending_is_not_lost(format):
    "Another move, a header, a comment or words behind it: the file is refused there, or read otherwise"
    rng, asked = random.Random(format), 0
    all_starts = starts(rng, 20)
    for _ in range(40):
        lines = lines_of(format, rng, all_starts)
        before = known(read('\n'.join(lines) + '\n', format))
        for at in [i for i, line in enumerate(lines) if tells(format, line)][-3:]:
            for more in (MOVE[format], HEADS[format], 'hello*', '投了 *', 'x#'):
                for blank in ('', ' '):
                    asked += 1
                    spoiled = '\n'.join([*lines[:at], lines[at] + blank + more, *lines[at + 1:]]) + '\n'
                    assert known(read(spoiled, format)) != before, lines[at] + blank + more
    assert asked > 200

TOO_LONG = ('   1 ７六歩(77) 2 ３四歩(33)', '   1 ７六歩(77)   ( 0:01/00:00:01) 2 ３四歩(33)', '   1 ７六歩(77) まで1手で中断',
            '1 ７六歩(77)\nまで1手で先手の勝ち 2 ３四歩(33)', '1 ７六歩(77)\nまで1手で先手の勝ち手合割：平手',
            '1 ７六歩(77)\nまで1手で中断▲２六歩')
TIMES = ('', '  ', '   ( 0:01/00:00:01)', '(0:01/00:00:01)+', ' （0:01/00:00:01）', '　+', '\t(00:01 / 00:00:01) (x)', ' ( 1:00/) ')

@pytest.mark.parametrize('line', TOO_LONG)
def test_a_line_of_kif_ends_where_it_ends(line):
    with pytest.raises(RecordError, match=f'a.kif, line {1 + line.count(chr(10))}: '): parse_kif(f'{line}\n', 'a.kif')

@pytest.mark.parametrize('behind', TIMES)
def test_times_may_stand_behind_a_move(behind):
    assert parse_kif(f'1 ７六歩(77){behind}\n2 投了{behind}\n').usi == ['7g7f']

NO_GAMES = {'kif': '手合割：平手\nまで\n', 'ki2': '先手：A\nまで\n', 'csa': 'PI\n+\n'}

@pytest.mark.parametrize('format', NO_GAMES)
def test_a_text_without_moves_and_ending_is_no_game(format):
    [said] = read(NO_GAMES[format], format)
    assert 'no ' in str(said) and 'game starts here' in str(said)

@pytest.mark.parametrize('format', ['csa', 'kif', 'ki2', 'usi', 'jkf'])
def test_the_end_mark_of_dos_is_passed_over(format):
    whole = b''.join(MADE[format])
    for data in (whole, whole.rstrip()): assert known(read(data + b'\x1a', format)) == known(read(data, format))

# --- evals

THOUGHT = ['* {}', '* {} -3334FU', '*評価値={}', '*対局 時間 00:03.1 深さ 18/24 ノード数 120345 評価値 {} 読み筋 △８四歩(83)']
ANALYSED = ['#評価値={}', '*解析 0 ○ 候補1 時間 00:01.0 深さ 20/28 ノード数 1234567 評価値 {} 読み筋 △３四歩(33)',
            '*解析 深さ 20 評価値 {} 読み筋', '* 0 候補1 深さ 12/20 評価値 {} 読み筋 ▲２六歩', '#形勢[{}] ▲２六歩', '#指し手[{}]']
KIF, CSA = ('７六歩(77)', '３四歩(33)', '２六歩(27)', '８四歩(83)'), ('+7776FU', '-3334FU', '+2726FU', '-8384FU')

def in_kif(said): return parse_kif('\n'.join(l for i, m in enumerate(KIF) for l in (f'{i + 1} {m}', *(f'*{c}' for c in said[i]))))
def in_csa(said): return parse_csa('\n'.join(['PI', '+', *(l for m, of in zip(CSA, said) for l in (m, *(f"'*{c}" for c in of)))]))
def in_jkf(said):
    place = lambda digits: dict(zip('xy', map(int, digits)))
    moves = [{'from': place(m[1:3]), 'to': place(m[3:5]), 'piece': m[5:]} for m in CSA]
    return parse_jkf({'moves': [{}, *({'move': m, 'comments': of} for m, of in zip(moves, said))]})

def evals(format, said):
    "Evals of ７六歩 ３四歩 ２六歩 ８四歩, with the comments `said` (less the star that begins one) behind each"
    found = {'kif': in_kif, 'csa': in_csa, 'jkf': in_jkf}[format](said).evals
    return [None if e != e else e for e in found.tolist()]

@pytest.mark.parametrize('format', ['kif', 'csa', 'jkf'])
def test_an_eval_is_of_the_position_that_its_writer_meant(format):
    for way in THOUGHT: assert evals(format, [[way.format(v)] for v in (1, -22, 333, 0)]) == [1, -22, 333, 0], way
    for way in ANALYSED: assert evals(format, [[way.format(v)] for v in (1, -22, 333, 0)]) == [None, 1, -22, 333], way
    for one in THOUGHT:      # beside one another, in either order: the player's own counts, and an analysis where there is none
        for other in ANALYSED:
            both = [[one.format(30), other.format(-48)], [other.format(60)], [other.format(7), one.format(5)], []]
            assert evals(format, both) == [30, -48, 5, 7], (one, other)

@pytest.mark.parametrize('format', ['kif', 'csa', 'jkf'])
def test_mates_and_remarks(format):
    mates = {'*詰み=先手勝ち:5手': MATE, '*詰み=後手勝ち': -MATE, '*対局 評価値 +詰 5 読み筋': MATE, '*評価値=-30001': -MATE,
             '* mate 5': MATE, '* -mate 5': -MATE}
    for words, value in mates.items(): assert evals(format, [[words], [], [], []])[0] == value, words
    for words in ('評価は互角', '*30手目', '*読み筋=△３四歩', '*評価値は後で'): assert evals(format, [[words]]*4) == [None]*4, words
    assert evals(format, [['#詰み=後手勝ち'], [], [], []]) == [None, -MATE, None, None]

@pytest.mark.parametrize('remark', ['3,2726FU が本線', '好手。2726FU, も有力', '7776FU, 2726FU', '10,7776FUより', '2726FU,(笑)'])
def test_a_remark_is_no_search(remark):
    game = parse_csa(f"PI\n+\n+7776FU\n'{remark}\n-3334FU\n%TORYO\n")
    assert game.usi == ['7g7f', '3c3d'] and game.visits is None

# --- logs of engines

CHATTER = """go btime 0 wtime 0 byoyomi 1000
info depth 1 score cp 3 pv 2g2f
info string position startpos
bestmove 2g2f
isready
readyok
setoption name Threads value 4
usi
id name X
option name Y type spin default 1 min 1 max 9
usiok
stop""".split('\n')
GAMES = [g.usi for g in read(ONE_FILE.read_text(), 'csa')[:6]]

def log_of(moves, rng, step):
    "What a GUI and an engine say to each other in a game"
    lines, k = ['usinewgame'], rng.choice((0, 1))
    while k <= len(moves):
        lines.append(f'position startpos{" moves " if k else ""}{" ".join(moves[:k])}')
        lines += rng.choices(CHATTER, k=rng.randint(0, 3))
        k += step
    return [*lines, 'gameover win'] if rng.random() < .7 else lines, k - step

@pytest.mark.parametrize('seed', range(8))
def test_a_log_of_an_engine_is_its_games(seed, tmp_path):
    rng, expected = random.Random(seed), []
    lines = rng.choices(CHATTER, k=seed)
    for moves in rng.sample(GAMES, 4):
        log, plies = log_of(moves, rng, rng.choice((1, 2)))
        lines, expected = lines + log, [*expected, moves[:plies]]
    path = tmp_path/'x.usi'
    path.write_text('\n'.join(lines) + '\n')
    assert [g.usi for g in read_file(path)] == expected

def test_a_guess_of_a_move_is_no_game():
    at = 'position startpos moves '
    log = [f'{at}7g7f', 'go ponder', 'stop', 'bestmove 2g2f', f'{at}2g2f 3c3d', 'go ponder', 'info depth 2', 'stop', 'bestmove 2f2e',
           f'{at}2g2f 8c8d', 'go', 'bestmove 2f2e', f'{at}2g2f 8c8d 2f2e 8d8e', 'go ponder', 'ponderhit']
    assert [g.usi for g in read('\n'.join(log), 'usi')] == [['2g2f', '8c8d', '2f2e', '8d8e']]

def test_a_game_that_is_the_beginning_of_another_stays():
    "In a list of games; in a log, where the next goes on with more than two moves, or after another line"
    moves = GAMES[0]
    for words in ('startpos moves', 'sfen lnsgkgsnl/1r5b1/ppppppppp/9/9/9/PPPPPPPPP/1B5R1/LNSGKGSNL b - 1 moves'):
        lines = [f'{words} {" ".join(moves[:n])}' for n in (1, 2, 3, 5, 9, 9, 20)]
        assert [len(g) for g in read('\n'.join(lines), 'usi')] == [1, 2, 3, 5, 9, 9, 20]
    told = [f'position startpos moves {" ".join(moves[:n])}' for n in (4, 8, 9, 11, 20)]
    assert [len(g) for g in read('\n'.join(told), 'usi')] == [4, 11, 20]
    for between in ('', '# another', 'usinewgame', 'gameover draw'):
        assert [len(g) for g in read(f'{told[1]}\n{between}\n{told[2]}\n', 'usi')] == [8, 9]

def test_what_is_no_word_of_the_protocol_is_named():
    [game, said] = read('position startpos moves 7g7f\ngold\n', 'usi')
    assert len(game) == 1 and 'x, line 2: ' in str(said)

# --- time

BOARD = ('後手の持駒：飛\n  ９ ８ ７ ６ ５ ４ ３ ２ １\n+---------------------------+\n' + ('|' + ' ・'*9 + '|一\n')*9
         + '+---------------------------+\n先手の持駒：角　銀　\n手数＝0    まで\n')
CSA_BOARD = 'P1-KY-KE-GI-KI-OU-KI-GI-KE-KY\n' + ''.join(f'P{i} * \n' for i in range(2, 10))
GROWING = {      # what is repeated, before a game or after it
    'csa': ["N+A\n'c\n", 'V2.2\n', "'c\n", '$X:1\n', 'PI\n+\n', CSA_BOARD, "'** 1\n", "'v=0.5,1\n", '/\n', '%TORYO\n', 'T1\n',
            'N+A,PI,\n'],
    'kif': ['手合割：平手\n', '先手：A\n*c\n', '# KIF\n', '*c\n', BOARD, '変化：2手\n', 'まで\n', '   1 投了\n', '先手番\n',
            '後手の持駒：歩\n', '&b\n', '\n'],
    'ki2': ['手合割：平手\n', '先手：A\n*c\n', '# KI2\n', '*c\n', BOARD, '変化：2手\n', 'まで\n', '投了\n', '▲７六歩\n', '\n'],
    'usi': ['startpos\n', '# c\n', '\n', 'position startpos\n', 'usinewgame\n', 'info x\n', 'go ponder\n',
            'position startpos moves 7g7f\n'],
    'jkf': ['{"header"\n', '{"moves":[]}\n', '[\n', '{"header":{"a":"b"},\n', '{}\n', '"a"\n']}
LONG = {         # how a line begins
    'csa': ["'** ", "'summary:a:", 'N+', '$', "'v=0.5,", "'", '+', 'T', '%'],
    'kif': ['*評価値', '**対局 ', '先手：', 'まで', '1 ', '手合割：', '|', '* '],
    'ki2': ['*評価値', 'まで', '▲', '先手：', '|', '変化：', '* '],
    'usi': ['startpos moves ', 'position ', 'sfen ', 'info ', '#'], 'jkf': ['{"', '[', '{"moves": [']}
REPEATED = '1', ' ', ' win:', '先手', ',', '7g7f ', '(', '評価値', ' 評価値', '+7776FU,', '詰', '/', '候補 ', '９'
ONE = {'csa': 'PI\n+\n+7776FU\n%TORYO\n', 'kif': '手合割：平手\n1 ７六歩(77)\n2 投了\n', 'ki2': '手合割：平手\n▲７六歩\n投了\n',
       'usi': 'startpos moves 7g7f\n', 'jkf': '{"moves":[{},{"special":"TORYO"}]}\n'}
assert set(GROWING) == {*TEXT_FORMATS, 'jkf'}

def seconds(path):
    begin = time.process_time()
    for _ in read_file(path): pass
    return time.process_time() - begin

def takes(path, make, n):
    path.write_text(make(n))
    return min(seconds(path) for _ in range(2))

def grows_too_fast(path, make, n):
    "Whether four times the length takes more than nine times as long, which is asked again at a slow moment"
    base = .004
    for _ in range(3):
        short, long = (max(takes(path, make, k), base) for k in (n, 4*n))
        if long <= 9*short: return False
    return short, long

@pytest.mark.parametrize('format', GROWING)
def test_time_grows_with_length(format, tmp_path):
    "Whatever headers, comments, boards and starts a file repeats, and however long a line is"
    path, one, slow = tmp_path/f'x.{format}', ONE[format], {}
    def ask(name, part, size, make):
        if found := grows_too_fast(path, make, size//len(part.encode())): slow[name] = found
    for part in GROWING[format]:
        ask(part, part, 12_000, lambda n: part*n + one)
        ask(part, part, 12_000, lambda n: one + part*n)
    for begin in LONG[format]:
        for part in REPEATED: ask(begin + part, part, 6_000, lambda n: f'{one}{begin}{part*n}\n{one}')
    assert not slow, slow

def test_what_was_joined_is_counted(tmp_path):
    from maou_nb import prepare_stage2
    (tmp_path/'a.usi').write_text('\n'.join(f'position startpos moves {" ".join(GAMES[0][:n])}\ngo\nbestmove x' for n in range(1, 40, 2)))
    made = prepare_stage2(tmp_path/'a.usi', tmp_path/'out')
    assert (made.games, made.found.joined) == (1, 19)
    assert ('lines', 'of logs that a later line goes on with', 19, None) in made.lines()
