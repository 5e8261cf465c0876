"""Game records as other programs write them, in every way that the formats allow; they share nothing with the readers

A `Told` is what a file says of a game; `csa`, `kif` and `usi` write it. Moves are found with rsshogi, letters are our own.
"""
from dataclasses import dataclass, field

from rsshogi.core import Board

KANJI, FULL = '〇一二三四五六七八九', '０１２３４５６７８９'
CSA = {'P': 'FU', 'L': 'KY', 'N': 'KE', 'S': 'GI', 'G': 'KI', 'B': 'KA', 'R': 'HI', 'K': 'OU',
       '+P': 'TO', '+L': 'NY', '+N': 'NK', '+S': 'NG', '+B': 'UM', '+R': 'RY'}
KIF = {'P': '歩', 'L': '香', 'N': '桂', 'S': '銀', 'G': '金', 'B': '角', 'R': '飛', 'K': '玉',
       '+P': 'と', '+L': '成香', '+N': '成桂', '+S': '成銀', '+B': '馬', '+R': '龍'}
BOARD = {**KIF, '+L': '杏', '+N': '圭', '+S': '全'}
HANDICAPS = {'平手': 'lnsgkgsnl/1r5b1/ppppppppp/9/9/9/PPPPPPPPP/1B5R1/LNSGKGSNL b -',
             '香落ち': 'lnsgkgsn1/1r5b1/ppppppppp/9/9/9/PPPPPPPPP/1B5R1/LNSGKGSNL w -',
             '二枚落ち': 'lnsgkgsnl/9/ppppppppp/9/9/9/PPPPPPPPP/1B5R1/LNSGKGSNL w -',
             '左七枚落ち': '2sgkg3/9/ppppppppp/9/9/9/PPPPPPPPP/1B5R1/LNSGKGSNL w -'}
NOISE = '開始日時', '手合割：平手', '先手：A', '7六歩 ▲７六歩', 'sfen startpos moves', '%TORYO', "{'moves': []}", '評価値は後で'

@dataclass
class Told:
    "One game, as a file tells it"
    start: str                              # SFEN without its ply
    moves: list                             # USI
    evals: list                             # Of Black, None where nothing is said
    end: str                                # CSA's word, '' for a game that was cut off
    result: float | None
    words: list = field(default_factory=list)   # Per ply (piece that moves, the one that stands there after)

def kinds(board):
    "Piece of each square, such as +P or k, by USI's name"
    out, rows = {}, board.to_sfen().split()[0].split('/')
    for row, letters in zip('abcdefghi', rows):
        file, plus = 9, ''
        for c in letters:
            if c == '+': plus = '+'
            elif c.isdigit(): file -= int(c)
            else: out[f'{file}{row}'], file, plus = plus + c, file - 1, ''
    return out

# word of CSA: (Black's result where Black, and where White, is to move)
ENDS = {'%TORYO': (0., 1.), '%CHUDAN': (None, None), '%SENNICHITE': (.5, .5), '%TSUMI': (0., 1.), '%TIME_UP': (0., 1.), '': (None, None),
        '%JISHOGI': (.5, .5), '%KACHI': (1., 0.)}
KIF_ENDS = {'%TORYO': '投了', '%CHUDAN': '中断', '%SENNICHITE': '千日手', '%TSUMI': '詰み', '%TIME_UP': '切れ負け',
            '%JISHOGI': '持将棋', '%KACHI': '入玉勝ち'}

def play(rng, start, most=30, ends=tuple(ENDS)):
    "A random game from `start`"
    board, moves, words, evals = Board(f'{start} 1'), [], [], []
    for _ in range(rng.randint(1, most)):
        legal = board.legal_moves()
        if not legal: break
        move, there = rng.choice(list(legal)).to_usi(), kinds(board)
        moved = move[0] if move[1] == '*' else there[move[:2]].upper()
        words.append((moved, f'+{moved}' if move.endswith('+') else moved))
        moves.append(move)
        evals.append(rng.choice([None, rng.randint(-3000, 3000)]))
        board.apply_usi(move)
    end = rng.choice(ends)
    if not end and not board.legal_moves(): end = '%TSUMI'      # which readers see on the board
    return Told(start, moves, evals, end, ENDS[end][board.turn.value], words)

def starts(rng, n):
    "Handicaps, and positions out of random games, with pieces in hand"
    out = list(HANDICAPS.values())
    while len(out) < n:
        board = Board(f'{rng.choice(out[:4])} 1')
        for _ in range(rng.randint(1, 90)):
            if not (legal := list(board.legal_moves())): break
            board.apply_usi(rng.choice(legal).to_usi())
        if board.legal_moves(): out.append(' '.join(board.to_sfen().split()[:3]))
    return out

def black_moves(told, ply): return (told.start.split()[1] == 'b') == (ply % 2 == 0)
def at(square): return f'{square[0]}{"abcdefghi".index(square[1]) + 1}'
def hands(told):
    "(piece of White or Black as SFEN has it, how many)"
    count = ''
    for c in told.start.split()[2].replace('-', ''):
        if c.isdigit(): count += c
        else: yield c, int(count or 1); count = ''

# --- CSA

def csa_start(told, rng):
    pieces = kinds(Board(f'{told.start} 1'))
    if told.start == HANDICAPS['平手'] and rng.random() < .6: return ['PI']
    csa = lambda p: ('+' if p.replace('+', '')[0].isupper() else '-') + CSA[p.upper()]
    if rng.random() < .3:       # piece by piece
        rows = [f'P{csa(p)[0]}{at(sq)}{csa(p)[1:]}' for sq, p in pieces.items()]
        rng.shuffle(rows)
    else: rows = [f'P{n}' + ''.join(csa(pieces[f'{f}{row}']) if f'{f}{row}' in pieces else ' * ' for f in range(9, 0, -1))
                  for n, row in enumerate('abcdefghi', 1)]
    held = [f'{"+" if p.isupper() else "-"}00{CSA[p.upper()]}' for p, n in hands(told) for _ in range(n)]
    rng.shuffle(held)           # in any order, one a line or side by side
    for side in '+-':
        mine = [h[1:] for h in held if h[0] == side]
        if mine: rows += [f'P{side}{"".join(mine)}'] if rng.random() < .5 else [f'P{side}{h}' for h in mine]
    return rows

def csa_move(told, ply):
    move, (_, after) = told.moves[ply], told.words[ply]
    begin = '00' if move[1] == '*' else at(move[:2])
    return f'{"+" if black_moves(told, ply) else "-"}{begin}{at(move[2:4])}{CSA[after]}'

def csa(told, rng):
    lines = rng.sample(["V2.2", "V3.0", 'V2'], 1)
    about = [f"'{rng.choice(NOISE)}", f'$EVENT:{rng.choice(NOISE)}', f'N+{rng.choice(NOISE)}', 'N-B', '$START_TIME:2020/01/01']
    lines += rng.sample(about, rng.randint(0, 5))
    lines += [*csa_start(told, rng), '+' if told.start.split()[1] == 'b' else '-']
    commas, timed = rng.random() < .2, rng.random() < .5
    for ply in range(len(told.moves)):
        lines.append(csa_move(told, ply))
        if timed: lines.append(lines.pop() + ',T1' if commas else 'T1')
        if rng.random() < .2: lines.append(f"'{rng.choice(NOISE[:-1])}")
        e = told.evals[ply]
        if e is not None: lines.append(rng.choice([f"'** {e}", f"'** {e} {csa_move(told, ply)}", f"'**評価値={e}"]))
    if told.end: lines.append(told.end)
    if rng.random() < .1: lines.append('')
    return lines

# --- KIF

def kif_hands(told, side):
    name = lambda n: '' if n == 1 else '十' + KANJI[n - 10]*(n > 10) if n >= 10 else KANJI[n]
    mine = [KIF[p.upper()] + name(n) for p, n in hands(told) if p.isupper() == side]
    return '　'.join(mine) or 'なし'

def kif_start(told, rng):
    word = next((w for w, s in HANDICAPS.items() if s == told.start), None)
    if word and rng.random() < .7: return [f'手合割：{word}'] if word != '平手' or rng.random() < .7 else []
    pieces = kinds(Board(f'{told.start} 1'))
    cell = lambda p: ' ・' if p is None else (' ' if p[-1].isupper() else 'v') + BOARD[p.upper()]
    rank = lambda row: ''.join(cell(pieces.get(f'{f}{row}')) for f in range(9, 0, -1))
    rows = [f'|{rank(row)}|{KANJI[n]}' for n, row in enumerate('abcdefghi', 1)]
    frame, over = '+---------------------------+', rng.choice(['  ９ ８ ７ ６ ５ ４ ３ ２ １', '  9 8 7 6 5 4 3 2 1'])
    lines = [f'後手の持駒：{kif_hands(told, False)}', over, frame, *rows, frame, f'先手の持駒：{kif_hands(told, True)}']
    return lines + ['後手番']*(told.start.split()[1] == 'w')

def kif(told, rng):
    lines = rng.sample(['# KIF形式', '#KIF version=2.0'], rng.randint(0, 1))
    lines += ['開始日時：2020/01/01 10:00', f'棋戦：{rng.choice(NOISE)}'][:rng.randint(1, 2)]
    lines += [*kif_start(told, rng), '先手：A', '後手：B', '手数----指手---------消費時間--']
    before = None
    for ply, move in enumerate(told.moves):
        to, (moved, _) = move[2:4], told.words[ply]
        where = '同　' if to == before and rng.random() < .9 else FULL[int(to[0])] + KANJI[int(at(to)[1])]
        how = '打' if move[1] == '*' else '成' if move.endswith('+') else ''
        origin = '' if move[1] == '*' else f'({at(move[:2])})'
        text = f'{ply + 1:>4} {where}{KIF[moved]}{how}{origin}'
        lines.append(rng.choice([text, f'{text}   ( 0:01/00:00:01)', f'{text} ( 0:01/00:00:01)+']))
        before, e = to, told.evals[ply]
        if rng.random() < .1: lines.append(rng.choice([f'*{rng.choice(NOISE[:-1])}', '&しおり']))
        if e is not None: lines.append(f'**評価値={e}')
    if told.end: lines.append(f'{len(told.moves) + 1:>4} {KIF_ENDS[told.end]}')
    if rng.random() < .3: lines.append(f'まで{len(told.moves)}手')
    if told.moves and rng.random() < .2: lines += ['', '変化：1手', next(l for l in lines if l.lstrip().startswith('1 '))]
    return lines

# --- USI

def usi(told, rng):
    start = 'startpos' if told.start == HANDICAPS['平手'] and rng.random() < .5 else f'sfen {told.start} 1'
    return [f'{rng.choice(["position ", ""])}{start} moves {" ".join(told.moves)}']

WRITERS = {'csa': csa, 'kif': kif, 'usi': usi}
