"""What goes into a text file comes out of it: every game, each equal, or a sentence that names the line

Files are written by `writers`, which shares nothing with the readers, in every concatenation, packing and encoding; then a line,
a move, a comment or a header is spoiled or lost. They are read in a process of their own, as the rules library may end it.
"""
import bz2, gzip, io, json, lzma, random, re, subprocess, sys, tarfile, tempfile, zipfile
from functools import partial
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from writers import KIF_ENDS, WRITERS, play, starts

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
    ways = {'': lambda: data, '.gz': lambda: gzip.compress(data, 1), '.bz2': lambda: bz2.compress(data), '.xz': lambda: lzma.compress(data, preset=0),
            '.zip': zipped, '.tar': lambda: tarred('w'), '.tar.gz': lambda: tarred('w:gz')}
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
    if format == 'kif' and any(l.startswith('変化') for l in lines[:at]): at = 1     # what follows a variation is not read
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
    remarks = [i for i, l in enumerate(lines) if l[:1] in tuple("'*&NT$#") or l[:2] in ('先手', '後手') and l[2:3] == '：' or l[:2] in ('まで', '手数')]
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

def in_a_process(*args):
    done = subprocess.run([sys.executable, __file__, *map(str, args)], capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr[-3000:])

@pytest.mark.parametrize('format', WRITERS)
@pytest.mark.parametrize('n', [300, pytest.param(8_000, marks=pytest.mark.slow)])
def test_every_game_comes_out(format, n): in_a_process(format, n, 1)

if __name__ == '__main__': run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
