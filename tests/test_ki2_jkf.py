"""KI2 and JKF: what other programs write, and a writer of this file's own, comes back as it was; what is damaged is named

The writer follows the rules of the notation that the Japan Shogi Association publishes, on cshogi's boards. Fuzzed
inputs are read in a process of their own, because what is feared is that the rules library takes the process down.
"""
import io, json, random, re, subprocess, sys
from pathlib import Path

import cshogi, pytest
from cshogi import KI2 as cshogi_ki2
from rsshogi.core import Board
from rsshogi.record import Record

sys.path.insert(0, str(Path(__file__).parent))
from samples import ONE_FILE
from test_fuzz import is_played_by_the_rules

from maou_nb.data.board import playable
from maou_nb.data.games import Game, RecordError, parse_csa, read_text
from maou_nb.data.jkf import parse_jkf, read_jkf
from maou_nb.data.ki2 import parse_ki2
from maou_nb.data.records import read_games

# --- positions and games at random

HANDICAPS = {'平手': 'lnsgkgsnl/1r5b1', '右香落ち': '1nsgkgsnl/1r5b1', '角落ち': 'lnsgkgsnl/1r7', '飛香落ち': 'lnsgkgsn1/7b1',
             '二枚落ち': 'lnsgkgsnl/9', '四枚落ち': '1nsgkgsn1/9', '左七枚落ち': '2sgkg3/9', '右七枚落ち': '3gkgs2/9', '十枚落ち': '4k4/9'}
SHORT = dict(zip(HANDICAPS, 'HIRATE KY_R KA HIKY 2 4 7_L 7_R 10'.split()))

def start_of(word): return f'{HANDICAPS[word]}/ppppppppp/9/9/9/PPPPPPPPP/1B5R1/LNSGKGSNL {"b" if word == "平手" else "w"} - 1'

def crowded(rng):
    "A position in which many pieces of a kind can go to one square"
    while True:
        squares = rng.sample(range(81), 20)
        pieces = ['K', 'k', *rng.choices(['G', '+S', 'S', '+P', '+N', '+L', 'g', 's', '+p'], k=12),
                  *rng.choices(['+B', '+R', 'R', 'B', '+b', '+r'], k=4)]
        if any(sum(p.upper() in kinds for p in pieces) > most for kinds, most in
               ((('G',), 4), (('S', '+S'), 4), (('+N',), 4), (('+L',), 4), (('B', '+B'), 2), (('R', '+R'), 2))): continue
        at = dict(zip(squares, pieces))
        rows = [''.join(at.get(9*r + c, '1') for c in range(9)) for r in range(9)]
        sfen = '/'.join(re.sub('1+', lambda e: str(len(e[0])), row) for row in rows) + f' {rng.choice("bw")} 2Pp 1'
        if playable(Board(sfen)) and not Board(sfen).is_mated(): return Board(sfen).to_sfen()

def played(start, plies, rng):
    "Moves at random, promotions and drops more often"
    board, moves = cshogi.Board(start), []
    while len(moves) < plies and (legal := list(board.legal_moves)):
        good = [m for m in legal if cshogi.move_is_promotion(m) or cshogi.move_is_drop(m)]
        moves.append(rng.choice(good if good and rng.random() < 0.2 else legal))
        board.push(moves[-1])
    return moves, board.turn

def mated(start, moves):
    board = cshogi.Board(start)
    for m in moves: board.push(m)
    return board.is_game_over()

# --- the writer

KINDS = {cshogi.PAWN: '歩', cshogi.LANCE: '香', cshogi.KNIGHT: '桂', cshogi.SILVER: '銀', cshogi.GOLD: '金',
         cshogi.BISHOP: '角', cshogi.ROOK: '飛', cshogi.KING: '玉', cshogi.PROM_PAWN: 'と', cshogi.PROM_LANCE: '成香',
         cshogi.PROM_KNIGHT: '成桂', cshogi.PROM_SILVER: '成銀', cshogi.PROM_BISHOP: '馬', cshogi.PROM_ROOK: '龍'}
OTHER_WORDS = {'玉': '王', '龍': '竜', '成香': '杏', '成桂': '圭', '成銀': '全'}
HAND = dict(zip(range(7), (cshogi.PAWN, cshogi.LANCE, cshogi.KNIGHT, cshogi.SILVER, cshogi.GOLD, cshogi.BISHOP, cshogi.ROOK)))

def way(square, to, turn):
    "Where a piece comes from as its owner sees it: -1 the left, 1 the right; -1 below, 1 above"
    df, dr = square//9 - to//9, square % 9 - to % 9
    if turn: df, dr = -df, -dr
    return (df < 0) - (df > 0), (dr < 0) - (dr > 0)

def relative(square, others, to, kind, turn, side_first):
    "The words that tell a piece from `others` of its kind that can go there, too"
    x, y = way(square, to, turn)
    ways = [way(s, to, turn) for s in others]
    across, along = {-1: '左', 0: '直', 1: '右'}[x], {-1: '上', 0: '寄', 1: '引'}[y]
    if kind in ('馬', '龍') and x == 0: across = '右' if ways[0][0] < 0 else '左'
    only_along = all(b != y for _, b in ways)
    only_across = across == '直' and y == -1 or across != '直' and all(a != x for a, _ in ways)
    if side_first and only_across: return across
    return along if only_along else across if only_across else across + along

def written(board, move, last, rng, pseudo):
    "A move in KI2; `pseudo`: pieces that are pinned count among those that could go there"
    turn, to, drop = board.turn, cshogi.move_to(move), cshogi.move_is_drop(move)
    kind = KINDS[HAND[cshogi.move_drop_hand_piece(move)] if drop else board.piece_type(cshogi.move_from(move))]
    others = {cshogi.move_from(m) for m in (board.pseudo_legal_moves if pseudo else board.legal_moves) if not cshogi.move_is_drop(m)
              and cshogi.move_to(m) == to and KINDS[board.piece_type(cshogi.move_from(m))] == kind}
    words, end = '', ''
    if drop: end = '打' if others or rng.random() < 0.3 else ''
    else:
        others -= {cshogi.move_from(move)}
        if others: words = relative(cshogi.move_from(move), sorted(others), to, kind, turn, rng.random() < 0.5)
        zone = [s % 9 <= 2 if not turn else s % 9 >= 6 for s in (to, cshogi.move_from(move))]
        if cshogi.move_is_promotion(move): end = '成'
        elif any(zone) and kind in '歩香桂銀角飛': end = rng.choice(['不成', '不成', '生'])
    place = ('１２３４５６７８９' if rng.random() < 0.8 else '123456789')[to//9] + '一二三四五六七八九'[to % 9]
    if to == last and rng.random() < 0.9: place = rng.choice(['同　', '同', '同 '])
    if words == '上' and rng.random() < 0.2: words = rng.choice('行入')
    return rng.choice(['▲▼☗', '△▽☖'][turn]) + place + (OTHER_WORDS.get(kind, kind) if rng.random() < 0.2 else kind) + words + end

def ki2_moves(start, moves, rng):
    board, last, out = cshogi.Board(start), None, []
    pseudo = rng.random() < 0.5
    for move in moves:
        out.append(written(board, move, last, rng, pseudo))
        last = cshogi.move_to(move)
        board.push(move)
    return out

def ended(n, turn, rng):
    "(an ending, Black's result, CSA's word)"
    last, to_move = ('後手', '先手')[::-1 if turn else 1]
    wins = lambda side: float(side == '先手')
    words, result, csa = rng.choice([
        ('', None, ''), (f'{last}の勝ち', wins(last), '%TORYO'), ('中断', None, '%CHUDAN'), ('千日手', .5, '%SENNICHITE'),
        ('持将棋', .5, '%JISHOGI'), ('投了', wins(last), '%TORYO'), (f'時間切れにより{last}の勝ち', wins(last), '%TIME_UP'),
        ('詰み', wins(last), '%TSUMI'), (f'{to_move}の入玉勝ち', wins(to_move), '%KACHI'),
        (f'{to_move}の反則負け', wins(last), '%ILLEGAL_MOVE'), (f'{to_move}の反則勝ち', wins(to_move), '%ILLEGAL_MOVE')])
    return f'{"▲△"[turn]}投了' if words == '投了' else words and f'まで{n}手で{words}', result, csa

def layout(moves, rng):
    "Moves on lines, with or without blanks, comments between"
    out, gap = '', rng.choice(['', ' ', '    ', '　'])
    for i, move in enumerate(moves):
        out += move + (rng.choice(['\n', '\n*solid\n', '\n**評価値=12\n']) if rng.random() < 0.2 else gap)
    return out.rstrip(' 　') + '\n'

def a_game(rng, plies=40):
    "(KI2 of a game, what reading it gives)"
    word = rng.choice([None, *HANDICAPS])
    start = start_of(word) if word else crowded(rng)
    moves, turn = played(start, rng.randint(1, plies), rng)
    head = f'手合割：{word}\n先手：A\n' if word else drawn(start)
    end, result, csa = ended(len(moves), turn, rng)
    if not csa and mated(start, moves): result, csa = float(turn), '%TSUMI'      # it is seen on the board
    usi = [cshogi.move_to_usi(m) for m in moves]
    return f'{head}{layout(ki2_moves(start, moves, rng), rng)}{end}\n', (' '.join(start.split()[:3]), usi, result, csa)

def drawn(start):
    "A board as programs draw it; more than ten pawns in kanji"
    return re.sub('1([1-8])', lambda n: '十' + '一二三四五六七八'[int(n[1]) - 1], Board(start).to_bod()) + '\n後手：B\n'

def told(game): return game.start, game.usi, game.result, game.end

def read_ki2(data): return list(read_text(io.BufferedReader(io.BytesIO(data)), 'ki2', 'a.ki2'))

# --- comes back as it was

@pytest.mark.parametrize('seed', range(8))
def test_written_games_come_back(seed):
    rng = random.Random(seed)
    for _ in range(60):
        text, expected = a_game(rng)
        assert told(parse_ki2(text, 'a.ki2')) == expected, text

@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'cp932', 'euc_jp'])
@pytest.mark.parametrize('newline', ['\n', '\r\n'])
def test_several_games_in_a_file(encoding, newline, tmp_path):
    rng = random.Random(encoding + newline)
    for _ in range(20):
        texts, expected = zip(*(a_game(rng) for _ in range(rng.randint(2, 5))))
        text = rng.choice(['', '\n', '\n\n# ---- Kifu\n']).join(texts).replace('\n', newline)
        if 'utf' not in encoding: text = re.sub('[☗▼]', '▲', re.sub('[☖▽]', '△', text))
        (tmp_path/'games.kif').write_bytes(text.encode(encoding))
        assert [told(g) for g in read_games(tmp_path/'games.kif')] == list(expected), text

def test_moves_after_an_ending_are_another_game():
    rng = random.Random(3)
    for _ in range(40):
        moves, turn = played(cshogi.STARTING_SFEN, 10, rng)
        text = layout(ki2_moves(cshogi.STARTING_SFEN, moves, rng), rng) + rng.choice(['まで10手で中断', '投了']) + '\n'
        assert [len(g) for g in read_ki2((text + '\n*a\n'*rng.randint(0, 1) + text).encode())] == [10, 10]

@pytest.mark.parametrize('encodings', [('utf-8-sig',), ('utf-8-sig', 'cp932', 'euc_jp')])
def test_files_put_end_to_end(encodings):
    rng = random.Random(17)
    for _ in range(30):
        texts, expected = zip(*(a_game(rng) for _ in range(4)))
        plain = [re.sub('[☗▼]', '▲', re.sub('[☖▽]', '△', text)) for text in texts]
        assert [told(g) for g in read_ki2(b''.join(t.encode(rng.choice(encodings)) for t in plain))] == list(expected)

def test_what_other_programs_write_of_the_sample_games():
    for one in ONE_FILE.read_text().split('/\n'):
        game, record = parse_csa(one), Record.from_csa_str(one)
        found = parse_ki2(record.to_ki2())
        assert (found.key, found.end, found.result) == (game.key, game.end, game.result)
        assert [e for e in found.evals.tolist() if e == e] == [e for e in game.evals.tolist() if e == e]
        jkf = parse_jkf(json.loads(record.to_jkf()))
        assert (jkf.key, jkf.end, jkf.result) == (game.key, game.end, game.result)

def test_what_cshogi_writes(tmp_path):
    rng = random.Random(5)
    for i in range(60):
        moves, turn = played(cshogi.STARTING_SFEN, 120, rng)
        out = cshogi_ki2.Exporter(str(tmp_path/f'{i}.ki2'))
        end = rng.choice(['%TORYO', '%SENNICHITE', '%JISHOGI', '%KACHI', '%ILLEGAL_MOVE'])
        out.header(['A', 'B'])
        for m in moves: out.move(m)
        out.end(end)
        out.close()
        game, = read_games(tmp_path/f'{i}.ki2')
        assert (game.usi, game.end) == ([cshogi.move_to_usi(m) for m in moves], end)

def plain(text):
    "A move as cshogi's reader knows it: one spelling for each word"
    for old, new in (('[☗▼]', '▲'), ('[☖▽]', '△'), ('生$', '不成'), ('[行入]', '上'), ('同 ', '同　')): text = re.sub(old, new, text)
    return text[0] + re.sub('[1-9]', lambda d: '１２３４５６７８９'[int(d[0]) - 1], text[1:])

def test_cshogi_reads_the_writer_alike():
    rng, read = random.Random(7), 0
    for _ in range(40):
        board = cshogi.Board()
        board.set_sfen(crowded(rng))
        moves, _ = played(board.sfen(), 30, rng)
        for text, move in zip(ki2_moves(board.sfen(), moves, rng), moves):
            if '同' in text and not board.history: break
            found = cshogi_ki2.Parser.parse_move_str(plain(text), board)
            assert list(map(cshogi.move_to_usi, found)) == [cshogi.move_to_usi(move)], (text, board)
            read += 1
    assert read > 1_000

# --- what is gone is named

def test_a_move_less_gives_a_sentence_or_a_shorter_game():
    rng, named, shorter = random.Random(11), 0, 0
    for _ in range(120):
        texts, expected = zip(*(a_game(rng, 16) for _ in range(3)))
        places = list(re.finditer('[▲▼☗△▽☖][^▲▼☗△▽☖\n投]+', texts[1]))
        gone = rng.choice(places)
        found = read_ki2((texts[0] + texts[1][:gone.start()] + texts[1][gone.end():] + texts[2]).encode())
        assert len(found) >= 2 and told(found[0]) == expected[0] and told(found[-1]) == expected[2]
        if len(found) == 2: assert len(places) == 1 and not expected[1][3]; continue      # nothing of it was left
        assert len(found) == 3
        if isinstance(found[1], RecordError): named += 1; continue
        shorter += 1
        n = len(found[1])
        assert n < len(expected[1][1]) and found[1].usi == expected[1][1][:n]
    assert named > 60 and shorter

@pytest.mark.parametrize('line', ['hello', '   1 ７六歩(77)', '+7776FU', '▲７六', 'ｱ', '7g7f', '{"moves": []}', '%TORYO', '先手'])
def test_a_line_that_is_none_is_named(line):
    rng = random.Random(line)
    for _ in range(10):
        text, _ = a_game(rng)
        lines = text.split('\n')
        at = rng.randrange(len(lines))
        found = read_ki2('\n'.join([*lines[:at], line, *lines[at:]]).encode())
        assert any(isinstance(g, RecordError) and 'a.ki2, line ' in str(g) for g in found), (line, text)

@pytest.mark.parametrize('text, words', [
    ('▲５八金', 'line 1: move 1 of the game, ▲５八金, may be any of 4i5h, 6i5h: a word such as 右'),
    ('▲５八金上', 'may be any of'), ('▲５八金寄', 'is illegal in its position or no move'), ('▲同歩', 'is illegal'),
    ('△３四歩', "is White's, who is not to move"), ('▲７六歩▲３四歩', "is Black's, who is not to move"),
    ('▲７六歩△３四歩▲２二角不成成', "'成' is no move of KI2"), ('▲７六歩打', 'is illegal'), ('▲７六歩(67)', 'is illegal'),
    ('手合割：三歩\n▲７六歩', 'handicap not known: 三歩'), ('手合割：その他\n▲７六歩', 'handicap not known'),
    ('▲７六歩\nまで7手で中断', 'the ending counts 7 moves, and the game has 1'),
    ('▲７六歩\n変化：9手\n▲２六歩', 'a variation of move 9, where there are 1'),
    ('後手の持駒：菌\n|\n▲７六歩', 'the board ends with rank 1'),
    ('先手：A\n', 'no KI2 game starts here')])
def test_what_cannot_be_played_is_one_sentence(text, words):
    with pytest.raises(RecordError) as e: parse_ki2(text, 'a.ki2')
    assert words in str(e.value) and '\n' not in str(e.value) and 'a.ki2' in str(e.value)

# --- JKF

CSA = dict(zip(KINDS, 'FU KY KE GI KI KA HI OU TO NY NK NG UM RY'.split()))
RELATIVE = dict(zip('左直右上寄引打', 'LCRUMDH'))

def jkf_board(start):
    "A start as JKF draws it"
    board = cshogi.Board(start)
    square = lambda s: {} if not board.piece(s) else {'color': int(board.piece(s) > 16), 'kind': CSA[board.piece(s) & 15]}
    hands = [{CSA[HAND[i]]: n for i, n in enumerate(hand)} for hand in board.pieces_in_hand]
    files = [[square(9*x + y) for y in range(9)] for x in range(9)]
    return {'preset': 'OTHER', 'data': {'color': board.turn, 'board': files, 'hands': hands}}

def jkf_of(rng, full, plies=40):
    "(JKF of a game, what reading it gives); `full`: with all that follows from the rest, else the least there can be"
    word = rng.choice([None, *HANDICAPS])
    start = start_of(word) if word else crowded(rng)
    moves, turn = played(start, rng.randint(1, plies), rng)
    board, last, entries = cshogi.Board(start), None, [{'comments': ['a', 'b']} if full else {}]
    for m in moves:
        to, drop, frm = cshogi.move_to(m), cshogi.move_is_drop(m), cshogi.move_from(m)
        place = lambda s: {'x': s//9 + 1, 'y': s % 9 + 1}
        kind = HAND[cshogi.move_drop_hand_piece(m)] if drop else board.piece_type(frm)
        one = {'color': board.turn, 'to': place(to), 'piece': CSA[kind]}
        others = {cshogi.move_from(o) for o in board.legal_moves if not cshogi.move_is_drop(o)
                  and cshogi.move_to(o) == to and board.piece_type(cshogi.move_from(o)) == kind}
        if not drop: others -= {frm}
        if drop and others: one['relative'] = 'H'
        if not drop:
            one['from'] = place(frm)
            if cshogi.move_is_promotion(m): one['promote'] = True
        if full:
            if not drop and others:
                words = relative(frm, sorted(others), to, KINDS[kind], board.turn, False)
                one['relative'] = ''.join(RELATIVE[w] for w in words)
                if rng.random() < 0.2: del one['from']      # as from KI2
            if there := board.piece_type(to): one['capture'] = CSA[rng.choice([there, there & 7 or there])]
            if to == last: one['same'] = True
            if not drop and 'promote' not in one: one['promote'] = rng.choice([False, None])
        elif not drop and rng.random() < 0.3: del one['piece']
        if not full and rng.random() < 0.3: del one['color']
        if not full and to == last and rng.random() < 0.5: one['same'] = True; del one['to']
        entries.append({'move': one} | ({'comments': ['*評価値=7'], 'time': {'now': {'m': 0, 's': 1}}} if full else {}))
        last = to
        board.push(m)
    black = board.turn == 0
    lost, won = float(not black), float(black)
    special, result = rng.choice([
        (None, None), ('TORYO', lost), ('CHUDAN', None), ('SENNICHITE', .5), ('TIME_UP', lost), ('KACHI', won), ('+ILLEGAL_ACTION', 0.),
        ('-ILLEGAL_ACTION', 1.), ('JISHOGI', .5), ('HIKIWAKE', .5), ('TSUMI', lost), ('MATTA', None)])
    if special: entries.append({'special': special})
    initial = {'initial': {'preset': SHORT[word]} if word else jkf_board(start)} if word != '平手' or full else {}
    usi = [cshogi.move_to_usi(m) for m in moves]
    expected = ' '.join(start.split()[:3]), usi, result, f'%{special}' if special else ''
    if not special and mated(start, moves): expected = *expected[:2], lost, '%TSUMI'
    return {'header': {'先手': 'A'}, **initial, 'moves': entries}, expected

@pytest.mark.parametrize('full', [False, True])
@pytest.mark.parametrize('seed', range(3))
def test_jkf_comes_back(full, seed):
    rng = random.Random(seed)
    for _ in range(60):
        jkf, expected = jkf_of(rng, full)
        game = parse_jkf(jkf, 'a.jkf')
        assert told(game) == expected, jkf
        assert (game.evals == 7).all() if full else (game.evals != game.evals).all()

@pytest.mark.parametrize('name', ['a.jkf', 'a.json', 'a.kif', 'a.txt'])
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'cp932'])
def test_jkf_files_of_several_games(name, encoding, tmp_path):
    rng = random.Random(name)
    for _ in range(10):
        games, expected = zip(*(jkf_of(rng, rng.random() < 0.5) for _ in range(rng.randint(1, 4))))
        one = lambda g, **more: json.dumps(g, ensure_ascii=rng.random() < 0.5, **more)
        text = rng.choice([one(games), one(games, indent=2), '\n'.join(map(one, games)), '\n\n'.join(one(g, indent=1) for g in games)])
        (tmp_path/name).write_bytes(text.replace('\n', rng.choice(['\n', '\r\n'])).encode(encoding))
        assert [told(g) for g in read_games(tmp_path/name)] == list(expected)

def test_a_jkf_move_less_gives_a_sentence_or_a_shorter_game():
    rng, named = random.Random(13), 0
    for _ in range(100):
        games, expected = zip(*(jkf_of(rng, True, 12) for _ in range(3)))
        del games[1]['moves'][rng.randrange(1, 1 + len(expected[1][1]))]
        found = list(read_jkf(io.BytesIO(json.dumps(games).encode()), 'a.jkf'))
        assert len(found) == 3 and told(found[0]) == expected[0] and told(found[2]) == expected[2]
        named += isinstance(found[1], RecordError)
        if not isinstance(found[1], RecordError): assert found[1].usi == expected[1][1][:len(found[1])]
    assert named > 50

def test_other_json_beside_shards_is_no_record(shards, tmp_path):
    folder = Path(shards['stage3_data_path'])
    with pytest.raises(FileNotFoundError): list(read_games(folder))
    (tmp_path/'a.ki2').write_text('▲７六歩\n')
    (tmp_path/'manifest.json').write_text('{"rows": 7}')
    (tmp_path/'b.jkf').write_text('{"moves": [{"special": "CHUDAN"}]}')
    assert [len(g) for g in read_games(tmp_path)] == [1, 0]
    with pytest.raises(RecordError, match='manifest.json is in no format known here'): list(read_games(tmp_path/'manifest.json'))

# --- damage

SIGNS = '０１２３７６歩香桂銀金成打同左右直上寄引不0123456789 　\t&*#変化：まで手で勝ち投了▲△▼▽☗☖|+-v・|なし'

def spoil(text, rng):
    "`text` with a few of its lines lost, repeated, or changed in a letter"
    lines = text.split('\n')
    for _ in range(rng.randint(1, 4)):
        k, how = rng.randrange(len(lines)), rng.random()
        if how < 0.2 and len(lines) > 1: del lines[k]
        elif how < 0.4: lines.insert(k, rng.choice(lines))
        elif lines[k]:
            at = rng.randrange(len(lines[k]))
            lines[k] = lines[k][:at] + rng.choice(['', rng.choice(SIGNS), rng.choice(SIGNS) + lines[k][at]]) + lines[k][at + 1:]
    return '\n'.join(lines)

ODD = [None, 0, 1, -1, 7, 10, 2.5, 1e400, True, False,
       '', 'FU', 'OU', 'H', 'L', '投了', 'TORYO', [], {}, [[]], [{}], {'x': 1}, 10**30, '\ud800', '\n']

def spoil_json(value, rng):
    "`value` with one thing in it lost, repeated or made into something else"
    inner = [v for v in (value.values() if isinstance(value, dict) else value) if isinstance(v, (dict, list)) and v]
    if inner and rng.random() < 0.85: spoil_json(rng.choice(inner), rng); return
    if isinstance(value, list):
        k, how = rng.randrange(len(value)), rng.random()
        if how < 0.3: del value[k]
        elif how < 0.6: value.insert(k, rng.choice(value))
        else: value[k] = rng.choice(ODD)
    else:
        k, how = rng.choice(list(value)), rng.random()
        if how < 0.3: del value[k]
        elif how < 0.5: value[rng.choice(['x', 'to', 'odd', 'kind', 'special', 'data'])] = value[k]
        else: value[k] = rng.choice(ODD)

def read_spoiled(format, n, seed):
    "Read `n` spoiled files; prints how many games there were all the same, and how many were refused"
    rng, fine, refused = random.Random(seed), 0, 0
    for i in range(n):
        if format == 'ki2':
            text = spoil(''.join(a_game(rng, 12)[0] for _ in range(rng.randint(1, 2))), rng)
            found = read_ki2(text.encode(['utf-8', 'cp932', 'euc_jp'][i % 3], 'replace'))
        else:
            jkf, _ = jkf_of(rng, i % 2 == 0, 8)
            spoil_json(jkf, rng)
            text = json.dumps(jkf)
            at = rng.randrange(len(text))
            if i % 5 == 0: text = text[:at] + rng.choice('{}[]",:0é') + text[at + rng.randint(0, 1):]
            found = list(read_jkf(io.BytesIO(text.encode()), 'a.ki2'))
        for game in found:
            if isinstance(game, Game):
                fine += 1
                assert is_played_by_the_rules(game), text
            else:
                assert type(game) is RecordError and '\n' not in str(game) and 'a.ki2' in str(game), repr(game)
                str(game).encode()
                refused += 1
    print(json.dumps([fine, refused]))

@pytest.mark.parametrize('format', ['ki2', 'jkf'])
@pytest.mark.parametrize('n', [2_000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_spoiled_records(format, n):
    done = subprocess.run([sys.executable, __file__, format, str(n), '1'], capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    fine, refused = json.loads(done.stdout)
    assert fine + refused >= n*0.9 and fine > n/20 and refused > n/10

if __name__ == '__main__': read_spoiled(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
