"""What a text says of a game is read alike in every format, or is a sentence: endings, counts, pieces, evals, where a game begins

Words, spellings and damage are written here by hand or made by rule; the readers' own tables are looked at in one test alone.
"""
import io, random, re, sys, warnings
from pathlib import Path

import pytest
from rsshogi.core import Board
from rsshogi.record import Record

sys.path.insert(0, str(Path(__file__).parent))
from samples import ONE_FILE
from writers import KIF, WRITERS, play, starts

from maou_nb.data.games import (
    ENDINGS, WORDS_OF_ENDINGS, RecordError, csa_result, game_of, parse_csa, parse_kif, parse_usi, read_text)
from maou_nb.data.jkf import parse_jkf
from maou_nb.data.ki2 import parse_ki2
from maou_nb.data.records import read_games

KIF2 = '手合割：平手\n   1 ７六歩(77)\n   2 ３四歩(33)\n'
KI22 = '手合割：平手\n▲７六歩 △３四歩\n'
CSA2 = 'PI\n+\n+7776FU\n-3334FU\n'

def told(game): return game.end, game.result
def sentence(parse, text):
    with pytest.raises(RecordError) as e: parse(text, 'a.txt')
    assert '\n' not in str(e.value) and 'a.txt' in str(e.value)
    return str(e.value)

# --- words of endings: Black is to move after two moves

WORDS = {'投了': ('%TORYO', 0), '中断': ('%CHUDAN', None), '封じ手': ('%CHUDAN', None), '千日手': ('%SENNICHITE', .5),
         '持将棋': ('%JISHOGI', .5),
         '引き分け': ('%HIKIWAKE', .5), '引分': ('%HIKIWAKE', .5), '詰み': ('%TSUMI', 0), '詰': ('%TSUMI', 0), '不詰': ('%FUZUMI', None),
         '切れ負け': ('%TIME_UP', 0), '時間切れ': ('%TIME_UP', 0), '時間切れ負け': ('%TIME_UP', 0), '時間切れ勝ち': ('%TIME_UP', 1),
         'タイムアップ': ('%TIME_UP', 0), '反則勝ち': ('%ILLEGAL_MOVE', 1), '反則負け': ('%ILLEGAL_MOVE', 0), '入玉勝ち': ('%KACHI', 1),
         '入玉宣言': ('%KACHI', 1), '宣言勝ち': ('%KACHI', 1), '勝ち宣言': ('%KACHI', 1), '不戦勝': ('%FUSEN', 1), '不戦敗': ('%FUSEN', 0),
         '最大手数': ('%MAX_MOVES', .5), '最大手数により引き分け': ('%MAX_MOVES', .5), '王手千日手': ('%OUTE_SENNICHITE', None),
         '待った': ('%MATTA', None)}
SAID_OF = {'後手の勝ち': ('%TORYO', 0), '先手の勝ち': ('', 1), '先手勝ち': ('', 1), '後手勝ち': ('%TORYO', 0),
           '先手の宣言勝ち': ('%KACHI', 1),
           '時間切れにより後手の勝ち': ('%TIME_UP', 0), '先手の時間切れ': ('%TIME_UP', 0), '後手の反則負け': ('%ILLEGAL_MOVE', 1),
           '連続王手の千日手により先手の勝ち': ('%OUTE_SENNICHITE', 1), '▲投了': ('%TORYO', 0)}

@pytest.mark.parametrize('words', [*WORDS, *SAID_OF])
def test_kif_and_ki2_share_their_words(words):
    expected = (WORDS | SAID_OF)[words]
    until, ways = f'まで2手で{words}\n', []
    for text in (until, f'まで2手{words}\n', f'{until}\n*a\n'): ways += [parse_kif(KIF2 + text), parse_ki2(KI22 + text)]
    if words in WORDS:
        for text in ('', until, 'まで2手\n'):
            ways += [parse_kif(f'{KIF2}   3 {words}   ( 0:01/00:00:01)\n{text}'),
                     parse_ki2(f'{KI22}{words}\n{text}'), parse_ki2(f'{KI22[:-1]} ▲{words}\n{text}'),
                     parse_kif(f'{KIF2}   3 {words}\n{text}変化：2手\n   2 ８四歩(83)\n   3 中断\nまで9手で中断\n')]
    assert {told(g) for g in ways} == {expected} and all(len(g) == 2 for g in ways)

def test_every_word_is_tried_here():
    assert {word for word in WORDS_OF_ENDINGS if not any(word in w for w in [*WORDS, *SAID_OF])} <= {'手数制限', 'エラー'}
    assert {*WORDS_OF_ENDINGS.values()} <= {*ENDINGS}

@pytest.mark.parametrize('words', ['優勢', '休み', '後手優勢', '以下略', '２六', 'hello'])
def test_words_that_nobody_knows_are_named(words):
    assert 'line 4' in sentence(parse_kif, f'{KIF2}まで2手で{words}\n') and 'line 3' in sentence(parse_ki2, f'{KI22}まで2手で{words}\n')
    for text in (f'   3 {words}\n', f'   3 {words}\nまで2手で後手の勝ち\n'): assert 'line 4' in sentence(parse_kif, KIF2 + text)

@pytest.mark.parametrize('words, said', [
    ('まで114手で後手の勝ち', 'counts 114 moves, and the game has 2'), ('まで1手で中断', 'counts 1 moves, and the game has 2'),
    ('まで３手で投了', 'counts 3 moves')])
def test_the_count_is_held_against_the_moves(words, said):
    for text in ('', '   3 投了\n'): assert said in sentence(parse_kif, f'{KIF2}{text}{words}\n')
    assert said in sentence(parse_ki2, f'{KI22}{words}\n')

@pytest.mark.parametrize('first, second', [('投了', '先手の勝ち'), ('千日手', '後手の勝ち'), ('反則勝ち', '後手の勝ち')])
def test_two_results_are_one_too_many(first, second):
    until = f'{first}\nまで2手で{second}\n'
    for said in (sentence(parse_kif, f'{KIF2}   3 {until}'), sentence(parse_ki2, KI22 + until)): assert 'gives two results' in said

def test_no_moves_and_an_ending_is_a_game_of_none(tmp_path):
    texts = (('a', 'まで0手で中断\n'), ('b', '手合割：平手\n   1 中断\n'), ('c.ki2', 'まで0手で中断\n'), ('d', 'PI\n+\n%CHUDAN\n'))
    for name, text in texts:
        (tmp_path/name).write_text(text)
        game, = read_games(tmp_path/name)
        assert (len(game), told(game)) == (0, ('%CHUDAN', None))

# --- CSA's words

HEADERS = 'V2', 'V2.2', 'V3.0', 'N+A', 'N-', 'PI', 'P1-KY', 'P+', "'x", '$EVENT:a', '+', '/'

@pytest.mark.parametrize('end', ENDINGS)
def test_files_joined_without_a_line_end(end):
    "The first game is there or is named, and the second is there"
    for header in HEADERS:
        data = f'{CSA2}{end}{header}\nPI\n+\n+2726FU\n-8384FU\n%TORYO\n'
        found = list(read_text(io.BufferedReader(io.BytesIO(data.encode())), 'csa', 'a.csa'))
        assert len(found) == 2 and isinstance(found[0], RecordError) and 'line 5' in str(found[0]), (header, found)
        assert told(found[1]) == ('%TORYO', 0)
    assert told(parse_csa(CSA2 + end)) == (end, csa_result(end, True))

def test_words_that_csa_has_not():
    for word in ('%HOLIDAY', '%TORYO+', '%', '%toryo'): assert 'line 5' in sentence(parse_csa, f'{CSA2}{word}\n')
    assert 'special is "HOLIDAY"' in sentence(parse_jkf, {'moves': [{'special': 'HOLIDAY'}]})
    assert 'is no summary' in sentence(parse_csa, f"{CSA2}%TORYO\n'summary:toryo:A win:B loseV2.2\n")

# --- damage

def main_line(game, rng): return '\n'.join(WRITERS['kif'](game, rng)).split('\n変化')[0].split('\n')

def cut_of(word, rng):
    "A word with a letter lost, doubled, or a blank put into it"
    at = rng.randrange(len(word))
    return word[:at] + rng.choice(['', word[at]*2, f'{word[at]} ', f' {word[at]}', '？']) + word[at + 1:]

@pytest.mark.parametrize('seed', range(4))
def test_a_damaged_move_of_kif_is_that_move_or_named(seed):
    "Never an ending, and never another game than that was written"
    rng, refused = random.Random(seed), 0
    all_starts = starts(rng, 10)
    for _ in range(150):
        game = play(rng, rng.choice(all_starts), 12)
        lines = main_line(game, rng)
        moves = [i for i, l in enumerate(lines) if re.match(r' *[0-9]+ [^\x00-\x7f]', l)][:len(game.moves)]
        at = rng.choice(moves)
        number, word = re.match(r'( *[0-9]+ )(.*?)(?= {2,}|$| \( )', lines[at]).groups()
        lines[at] = number + cut_of(word, rng) + lines[at][len(number + word):]
        try: found = parse_kif('\n'.join(lines), 'a.kif')
        except RecordError as e: refused += 'line ' in str(e)
        else: assert found.usi == game.moves, (lines[at], word)
    assert refused > 100

@pytest.mark.parametrize('seed', range(3))
def test_the_piece_must_be_the_one_that_stands_there(seed):
    "Any other piece's name on any move: a sentence with the line; whatever is written by the rules is read"
    rng = random.Random(seed)
    all_starts = starts(rng, 12)
    for _ in range(40):
        game = play(rng, rng.choice(all_starts), 60, ends=[''])
        lines = [l for l in main_line(game, rng) if not l.startswith(('まで', '*'))]
        moves = [i for i, l in enumerate(lines) if re.match(r' *[0-9]+ [^\x00-\x7f]', l)][:len(game.moves)]
        assert parse_kif('\n'.join(lines), 'a.kif').usi == game.moves
        ply = rng.choice([i for i, m in enumerate(game.moves) if m[1] != '*'] or [None])
        if ply is None: continue
        name = KIF[game.words[ply][0]]
        for other in {*KIF.values(), '王', '竜', '杏'} - {name, {'玉': '王', '龍': '竜', '成香': '杏'}.get(name)}:
            hurt = lines[:]
            hurt[moves[ply]] = re.sub(rf'{name}(?=(成|不成)?\()', other, hurt[moves[ply]])
            said = sentence(parse_kif, '\n'.join(hurt))
            assert f'line {moves[ply] + 1}: move {ply + 1} ' in said, (said, hurt[moves[ply]])

def test_what_stands_behind_a_move_is_not_lost():
    "成 behind the square, as some write it, would be another move"
    for word in ('２二角(88)成', '２二角成(88)成', '２二角成(88)?!x'): assert 'line 4' in sentence(parse_kif, f'{KIF2}   3 {word}\n')
    for word in ('２二角成(88)+', '２二角成(88)   ( 0:01/)+', '２２角成(88)', '２二角成（88）', '２二角成 (88)'):
        assert parse_kif(f'{KIF2}   3 {word}\n').usi[2] == '8h2b+'

def test_visited_moves_name_the_piece_that_stands_there():
    searched = lambda word: f"PI\n+\n+7776FU,'v=0.5,400,7776FU,300,{word},100\n%TORYO\n"
    for word in ('9998FU', '8822UM', '2858RY', '7775FU', '0055FU'): assert 'visited' in sentence(parse_csa, searched(word))
    assert parse_csa(searched('2858HI')).visits.n.tolist() == [2]
    promotes = "P1-OU\nP+59OU82GI33TO\n+\n+8271{},'v=0.5,9,8271NG,5,8271GI,4,3322TO,1\n%TORYO\n".replace('P1-OU', 'P-51OU')
    for kind in ('NG', 'GI'): assert len(set(parse_csa(promotes.format(kind)).visits.moves.tolist())) == 3

@pytest.mark.parametrize('cut', ['v=0.5,400,7776FU', 'v=0.5,400,7', '400,7776FU', "v=0.5,400,7776FU,300,2726FU"])
def test_a_search_that_was_cut_short_is_named(cut):
    assert 'what a search visited' in sentence(parse_csa, f"PI\n+\n+7776FU,'{cut}\n%TORYO\n")

# --- whose turn it is, and which number

def test_a_missing_move_is_called_so():
    assert "is Black's, who is not to move (is a move missing?)" in sentence(parse_csa, 'PI\n+\n+7776FU\n+2726FU\n+2625FU\n')
    assert "is White's, who is not to move (is a move missing?)" in sentence(parse_ki2, '△３四歩\n')
    assert 'is illegal in its position' in sentence(parse_csa, 'PI\n+\n+7776FU\n-3335FU\n+2625FU\n')

def test_a_number_says_what_may_be_wrong():
    assert 'move 4 stands where move 3 was expected; is one missing?' in sentence(parse_kif, f'{KIF2}   4 ８四歩(83)\n')
    for more in ('   2 ３四歩(33)\n', '   1 ７六歩(77)\n'):
        assert 'does it stand twice, or does another game' in sentence(parse_kif, KIF2 + more)

def test_lines_are_quoted_as_they_stand():
    assert "' -3334FU' begins with a blank" in sentence(parse_csa, 'PI\n+\n+7776FU\n -3334FU\n')

# --- a mate that nobody tells of

MATED = Board('4k4/9/4P4/9/9/9/9/9/4K4 b G 1')

@pytest.mark.parametrize('more', ['', 'said'])
def test_a_mate_on_the_board_is_an_ending(more):
    start = MATED.to_sfen()
    jkf = {'initial': {'preset': 'OTHER', 'data': {'color': 0, 'board': [[{}]*9 for _ in range(9)], 'hands': [{'KI': 1}, {}]}},
           'moves': [{}, {'move': {'to': {'x': 5, 'y': 2}, 'piece': 'KI'}}] + [{'special': 'CHUDAN'}]*bool(more)}
    jkf['initial']['data']['board'][4] = [{'color': 1, 'kind': 'OU'}, {}, {'color': 0, 'kind': 'FU'}, *[{}]*5, {'color': 0, 'kind': 'OU'}]
    csa = 'P-51OU\nP+59OU53FU00KI\n+\n+0052KI\n' + '%CHUDAN\n'*bool(more)
    bod = MATED.to_bod() + '\n'
    games = [parse_csa(csa), parse_jkf(jkf), parse_kif(f'{bod}1 ５二金打\n' + '2 中断\n'*bool(more)),
             parse_ki2(f'{bod}▲５二金\n' + '中断\n'*bool(more)), parse_usi(f'sfen {start} moves G*5b' + ' interrupt'*bool(more))]
    assert {g.key for g in games} == {games[0].key}
    assert {told(g) for g in games} == {('%CHUDAN', None) if more else ('%TSUMI', 1.)}

# --- evals

@pytest.mark.parametrize('number', ['40000', '-40000', '9'*60, '-' + '9'*400])
def test_no_eval_is_more_than_a_mate(number, tmp_path):
    wanted = 30_000. if number[0] != '-' else -30_000.
    jkf = {'moves': [{}, {'move': {'from': {'x': 7, 'y': 7}, 'to': {'x': 7, 'y': 6}, 'piece': 'FU'}, 'comments': [f'** {number}']}]}
    (tmp_path/'a.csv').write_text(f'sfen,move,eval\n{Board().to_sfen()},7g7f,{number[:60]}\n')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        games = [parse_csa(f"PI\n+\n+7776FU\n'** {number}\n"), parse_csa(f"PI\n+\n+7776FU\n'**評価値={number}\n"), parse_jkf(jkf),
                 parse_kif(f'1 ７六歩(77)\n**評価値={number}\n'), parse_kif(f'1 ７六歩(77)\n*評価値={number}\n'),
                 parse_ki2(f'▲７六歩\n**評価値={number}\n')]
        named = []
        games += read_games(tmp_path/'a.csv', 'skip', named)      # a table has numbers of a size, or names the row
    assert [g.evals.tolist() for g in games] == [[wanted]]*(7 - len(named)) and all('line 2' in said for said in named)

def test_an_analysis_in_csa_is_of_the_next_move():
    game = parse_csa("PI\n+\n+7776FU\n'*#評価値=45\n-3334FU\n'** 7\n'*#評価値=-3\n+2726FU\n'*#評価値=9\n")
    assert str(game.evals.tolist()) == '[nan, 7.0, -3.0]'
    assert str(parse_csa("PI\n+\n+7776FU\n'*#評価値=45\n-3334FU\n").evals.tolist()) == '[nan, 45.0]'

# --- where a game begins

def test_kif_that_is_numbered_on_is_a_piece():
    kif = parse_kif(Board().to_bod() + '\n手数＝123  ▲５二金  まで\n 124 ７六歩(77)\n 125 ３四歩(33)\n')
    usi = parse_usi(f'sfen {Board().to_sfen()[:-1]}124 moves 7g7f 3c3d')
    assert (kif.key, kif.ply, kif.whole) == (usi.key, usi.ply, usi.whole) == (kif.key, 123, False)
    assert (parse_kif(KIF2).ply, parse_kif(KIF2).whole) == (0, True)

def test_statements_behind_a_name():
    game = parse_csa('N+A,PI82HI,-\n-3334FU\n')
    assert game.start.split()[0] == 'lnsgkgsnl/7b1/ppppppppp/9/9/9/PPPPPPPPP/1B5R1/LNSGKGSNL'
    assert parse_csa('N+A, Jr.\n$EVENT:1,2,+\nPI\n+\n+7776FU\n').usi == parse_csa('N+A,B,PI,+,+7776FU\n').usi == ['7g7f']

def test_a_growing_log_is_its_games():
    logs = [[m.move.to_usi() for m in Record.from_csa_str(t).moves] for t in ONE_FILE.read_text().split('/\n')[:3]]
    lines = [f'position startpos moves {" ".join(moves[:n])}' for moves in logs for n in range(1, len(moves) + 1, 2)]
    lines += ['position startpos moves 7g7f resign', 'position startpos moves 7g7f', 'position startpos moves 7g7f+']
    found = list(read_text(io.BufferedReader(io.BytesIO('\n'.join(lines).encode())), 'usi', 'a.log'))
    assert [g.usi for g in found[:3]] == [moves[:len(moves) - (len(moves) % 2 == 0)] for moves in logs]
    assert [len(g) for g in found[3:5]] == [1, 1] and f'line {len(lines)}' in str(found[5]) and len(found) == 6

# --- what was found

def test_a_game_that_both_lost_is_counted_so(tmp_path):
    from maou_nb.data.packed import BOTH_LOST, write_hcpe3
    from maou_nb.stages.rows import prepare_stage2
    one = parse_csa(ONE_FILE.read_text().split('/\n')[0])
    lost, won = (game_of(one.start, one.moves, one.evals, 0., end=end) for end in (BOTH_LOST, '%TORYO'))
    write_hcpe3([lost, won], tmp_path/'a.hcpe3')
    found = prepare_stage2(tmp_path/'a.hcpe3', tmp_path/'out').found
    assert found.results == {'White won': 1, 'both lost': 1}
