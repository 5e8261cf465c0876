"""What goes into a text file comes out of it: every game, each equal, or a sentence that names the line

Files are written by `writers`, which shares nothing with the readers, in every concatenation, packing and encoding; then a line,
a move, a comment or a header is spoiled or lost. They are read in a process of their own, as the rules library may end it.
"""
import bz2, gzip, io, json, lzma, random, re, subprocess, sys, tarfile, tempfile, zipfile
from functools import partial
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from writers import WRITERS, play, starts

def knows(format, told):
    "What a format cannot say is not asked of it"
    if format != 'usi': return told.start, told.moves, told.evals, told.end, told.result
    return told.start, told.moves

def found(format, game):
    evals = [None if e != e else e for e in game.evals.tolist()]
    if format != 'usi': return game.start, game.usi, evals, game.end, game.result
    return game.start, game.usi

def pieces_of(format, rng, all_starts):
    "Some games of one file: what is told of each, and its lines"
    told = [play(rng, rng.choice(all_starts)) for _ in range(rng.randint(1, 4))]
    return told, [WRITERS[format](t, rng) for t in told]

def joined(format, lines, rng, newline):
    "The games end to end, in CSA with or without a line that parts them"
    text = ''
    for game in lines:
        if text and format == 'csa' and rng.random() < .5: text += f'/{newline}'
        text += ''.join(line + newline for line in game)
    return text if rng.random() < .8 or not text.strip() else text.rstrip('\r\n')

def packed(data, name, rng, folder):
    "`data` under `name`, as it is or packed in one of the ways that are opened"
    def tarred(mode):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode=mode) as t:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))
        return out.getvalue()
    def zipped():
        out = io.BytesIO()
        with zipfile.ZipFile(out, 'w') as z: z.writestr(name, data)
        return out.getvalue()
    ways = {'': lambda: data, '.gz': lambda: gzip.compress(data, 1), '.bz2': lambda: bz2.compress(data),
            '.xz': lambda: lzma.compress(data, preset=0), '.zip': zipped, '.tar': lambda: tarred('w'), '.tar.gz': lambda: tarred('w:gz')}
    way = rng.choice(['']*12 + list(ways))
    path = folder/f'{name}{way}'
    path.write_bytes(ways[way]())
    return path

def read(path, strict=False):
    from maou_nb.data.games import Game
    from maou_nb.data.records import read_file
    games = list(read_file(path))
    if strict: assert all(isinstance(g, Game) for g in games), games
    assert all(isinstance(g, Game) or '\n' not in str(g) and path.name in str(g) for g in games), games
    return games

def encoded(text, format, rng):
    codes = ['utf-8', 'utf-8-sig', 'cp932', 'euc_jp'] if format != 'usi' else ['utf-8', 'utf-8-sig']
    return text.encode(rng.choice(codes))

def all_come_out(format, rng, all_starts, folder):
    told, lines = pieces_of(format, rng, all_starts)
    text = joined(format, lines, rng, rng.choice(['\n', '\r\n']))
    name = rng.choice([f'x.{format}', 'x.csa', 'x.kif', 'x.usi'])
    assert [found(format, g) for g in read(packed(encoded(text, format, rng), name, rng, folder), True)] == [knows(format, t) for t in told]

def is_move(format, line):
    return bool(re.match({'csa': r'[+-]\d{4}', 'kif': r' *[0-9]+ [^\x00-\x7f]'}[format], line))

GARBAGE = 'hello', '<html>', '+77x6FU', '7g7f', 'PLAY', '）（', '= 3', '0x1f', '---'

def one_game_is_hurt(format, rng, all_starts, folder, hurt):
    "`hurt` one game of a file: the others come out as before, and the number of games and sentences is as before"
    from maou_nb.data.games import Game
    told, lines = pieces_of(format, rng, all_starts)
    at = rng.randrange(len(told))
    line, check = hurt(format, rng, told[at], lines[at])
    text = joined(format, lines, rng, '\n')
    (folder/f'x.{format}').write_text(text)
    games = read(folder/f'x.{format}')
    assert len(games) == len(told), (len(told), games, text)
    for i, (game, t) in enumerate(zip(games, told)):
        if i != at: assert isinstance(game, Game) and found(format, game) == knows(format, t), (game, text)
    number = None if line is None else sum(len(l) for l in lines[:at]) + text.count('\n/\n', 0, len(text)) + line + 1
    assert check(games[at], number), (games[at], told[at], text)

def a_strange_line(format, rng, told, lines):
    at, odd = rng.randrange(1, len(lines) + 1), rng.choice(GARBAGE)
    lines.insert(at, odd)
    return at, lambda game, number: isinstance(game, Exception) and odd[:4] in str(game) and 'line ' in str(game)

def a_lost_move(format, rng, told, lines):
    moves = [i for i, l in enumerate(lines) if is_move(format, l)]
    if format == 'kif' and any(l.startswith('変化') for l in lines): moves = moves[:len(told.moves)]
    k = rng.randrange(len(told.moves))
    del lines[moves[k]]
    def check(game, number):
        if isinstance(game, Exception): return 'line ' in str(game)
        return game.usi == told.moves[:k] and k == len(told.moves) - 1 and (format == 'csa' or not told.end)
    return None, check

def a_lost_remark(format, rng, told, lines):
    "A comment, a time or a name: start and moves stay"
    names = lambda l: l[:3] in ('先手：', '後手：') or l[:2] in ('まで', '手数')
    remarks = [i for i, l in enumerate(lines) if l[:1] in tuple("'*&NT$#") or names(l)]
    if remarks: del lines[rng.choice(remarks)]
    return None, lambda game, number: (game.start, game.usi, game.result) == (told.start, told.moves, told.result)

HURTS = a_strange_line, a_lost_move, a_lost_remark

def run(format, n, seed):
    rng = random.Random(f'{format}{seed}')
    ways = [all_come_out, *(partial(one_game_is_hurt, hurt=h) for h in HURTS if format != 'usi')]
    all_starts = starts(rng, 40)
    with tempfile.TemporaryDirectory() as tmp:
        for i in range(n):
            folder = Path(tmp)/str(i % 50)
            folder.mkdir(exist_ok=True)
            ways[i % len(ways)](format, rng, all_starts, folder)
    print(json.dumps(n))

def spoiled(format, n, seed):
    "Drawn boards, pieces in hand, statements between commas, several games: letters changed, lines lost and repeated"
    from test_fuzz import SIGNS, is_played_by_the_rules, spoil
    from maou_nb.data.games import Game
    rng, fine, refused = random.Random(f'{format}{seed}'), 0, 0
    all_starts = starts(rng, 60)[4:]       # none of which has a name
    with tempfile.TemporaryDirectory() as tmp:
        path = Path(tmp)/f'x.{format}'
        for i in range(n):
            _, lines = pieces_of(format, rng, all_starts)
            text = spoil('\n'.join(line for game in lines for line in game), rng, SIGNS[format] + 'v|・,\'\n')
            path.write_bytes(text.encode(rng.choice(['utf-8', 'cp932', 'euc_jp']), errors='replace'))
            for game in read(path):
                if not isinstance(game, Game): refused += 1; continue
                fine += 1
                if i % 10 == 0: assert is_played_by_the_rules(game), (game, text)
    assert fine > n/4 and refused > n/10, (fine, refused)

def in_a_process(*args):
    done = subprocess.run([sys.executable, __file__, *map(str, args)], capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr[-3000:])

@pytest.mark.parametrize('format', WRITERS)
@pytest.mark.parametrize('n', [300, pytest.param(8_000, marks=pytest.mark.slow)])
def test_every_game_comes_out(format, n): in_a_process(format, n, 1)

@pytest.mark.parametrize('format', ['csa', 'kif'])
@pytest.mark.parametrize('n', [200, pytest.param(20_000, marks=pytest.mark.slow)])
def test_spoiled_starts_never_end_the_process(format, n): in_a_process(f'spoiled {format}', n, 1)

# --- what others wrote, or might: (name, text, what comes out), each game as (plies, ending, result) or words of a sentence

SFEN = 'lnsgkgsnl/1r5b1/ppppppppp/9/9/9/PPPPPPPPP/1B5R1/LNSGKGSNL b - 1'
WON, FULL_GAME = (1, '%TORYO', 1.), '\n+7776FU\n%TORYO\n'
to_and_fro = '\n'.join(['+2858HI', '-8252HI', '+5828HI', '-5282HI'][i % 4] for i in range(65_535))

MET = {
    'too_long.csa': (f'V2\nPI\n+\n{to_and_fro}\n%SENNICHITE\nV2\nPI\n+{FULL_GAME}', ['65,535 moves', WON]),
    'many_digits.kif': (f'手合割：平手\n{"9"*5000} ７六歩(77)\n手合割：平手\n1 ７六歩(77)\n2 投了\n', ['no line of KIF', WON]),
    'many_visits.csa': ("PI\n+\n+7776FU,'v=0.5,99999999999,7776FU,99999999999\n%TORYO\n", ['what a search visited']),
    'all_left.csa': ('P-51OU\nP+59OU28HI\nP+00KI\nP-00AL\n+\n%CHUDAN\n', [(0, '%CHUDAN', None)]),
    'no_moves_then_a_game.csa': (f'N+A\nN-B\nPI82HI\n-\nN+C\nN-D\nPI\n+{FULL_GAME}', ['no CSA game starts here', WON]),
    'two_starts.csa': (f'PI82HI\nPI\n+{FULL_GAME}', ['two starts']),
    'marks_between.csa': (f'V2.2\nPI\n+{FULL_GAME}\ufeffV2.2\nPI\n+{FULL_GAME}', [WON, WON]),
    'marks_between.kif': ('\ufeff手合割：平手\n1 ７六歩(77)\n2 投了\n'*2, [WON, WON]),
    'commas_in_the_head.csa': ('V2.2,PI82HI,-\n-5142OU\n', [(1, '', None)]),
    'resigned.usi': ('position startpos moves 7g7f resign\n', [WON]),
    'old_line_ends.csa': (f'V2.2\nPI\n+{FULL_GAME}'.replace('\n', '\r'), [WON]),
    'old_line_ends.kif': ('手合割：平手\r1 ７六歩(77)\r2 投了\r', [WON]),
    'moved_twice.csa': ('PI\n+\n+7776FU\n+2726FU\n%ILLEGAL_MOVE\n', [(1, '%ILLEGAL_MOVE', 0.)]),
    'damaged_last_line.kif': ('手合割：平手\n1 ７六歩(77)\n2 ３四歩(33)\n3 六歩(87)\n', ['move 3 of the game, 六歩(87)']),
    'columns_left_out.jsonl': ('{"sfen":"%s"}\n{"sfen":"%s","move":"2g2f","result":-1}\n' % (SFEN, SFEN), [(0, '', None), (1, '', 0.)]),
    'moves_in_a_position.csv': (f'position,move,result\nposition sfen {SFEN} moves 7g7f 3c3d,2g2f,1\n', ['goes on with']),
    'a_remark_with_a_comma.usi': (f'# games of A, B\nsfen {SFEN} moves 7g7f\n', [(1, '', None)])}

@pytest.mark.parametrize('name', MET)
def test_what_others_write(name, tmp_path):
    text, expected = MET[name]
    (tmp_path/name).write_bytes(text.encode())
    games = read(tmp_path/name)
    assert len(games) == len(expected), games
    for game, e in zip(games, expected):
        if isinstance(e, str): assert e in str(game)
        else: assert (len(game), game.end, game.result) == e

def test_all_left_is_all():
    from maou_nb.data.games import parse_csa
    assert parse_csa(MET['all_left.csa'][0]).start == '4k4/9/9/9/9/9/9/7R1/4K4 b Gr2b3g4s4n4l18p'

def test_words_of_people_are_no_evals():
    from maou_nb.data.games import parse_csa, parse_kif
    none = lambda game: all(e != e for e in game.evals.tolist())
    assert none(parse_csa("PI\n+\n+7776FU\n'** 10分考えた\n-3334FU\n'**2手目の検討\n%TORYO\n"))
    remarks = parse_kif('手合割：平手\n1 ７六歩(77)\n*この手で評価値100点下落\n**対局 評価値 -30\n2 投了\n')
    assert remarks.evals.tolist() == [-30.]

JOINED = {'.tar': lambda d: packed_as('.tar', d)*2, '.tar.gz': lambda d: packed_as('.tar.gz', d)*2,
          '.zip': lambda d: packed_as('.zip', d)*2,
          '.bz2': lambda d: bz2.compress(d) + d, '.xz': lambda d: lzma.compress(d) + d}

def packed_as(way, data):
    out = io.BytesIO()
    if way == '.zip':
        with zipfile.ZipFile(out, 'w') as z: z.writestr('x.csa', data)
        return out.getvalue()
    with tarfile.open(fileobj=out, mode='w:gz' if way == '.tar.gz' else 'w') as t:
        info = tarfile.TarInfo('x.csa')
        info.size = len(data)
        t.addfile(info, io.BytesIO(data))
    return out.getvalue()

@pytest.mark.parametrize('way', JOINED)
def test_archives_put_end_to_end_are_named(way, tmp_path):
    (tmp_path/f'x.csa{way}').write_bytes(JOINED[way](f'PI\n+{FULL_GAME}'.encode()))
    assert any(isinstance(g, Exception) for g in read(tmp_path/f'x.csa{way}'))

@pytest.mark.parametrize('form', ['file', 'stream', 'parquet'])
def test_tables_put_end_to_end_are_named(form, tmp_path):
    import pyarrow as pa, pyarrow.ipc as ipc, pyarrow.parquet as pq
    table, out = pa.table({'sfen': [SFEN], 'move': ['7g7f']}), io.BytesIO()
    if form == 'parquet': pq.write_table(table, out)
    else:
        with (ipc.new_file if form == 'file' else ipc.new_stream)(out, table.schema) as w: w.write_table(table)
    (tmp_path/'x.feather').write_bytes(out.getvalue()*2)
    assert any('end to end' in str(g) for g in read(tmp_path/'x.feather'))

if __name__ == '__main__':
    what, format = sys.argv[1].split() if ' ' in sys.argv[1] else ('run', sys.argv[1])
    {'run': run, 'spoiled': spoiled}[what](format, int(sys.argv[2]), int(sys.argv[3]))
