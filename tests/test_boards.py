"A thousand positions of real and random games, drawn and read back from the picture"
import random, re

import pytest
from rsshogi.core import Board, PositionState

from maou_nb import show_position
from maou_nb.show.boards import LETTERS
from maou_nb.show.boards import START
from maou_nb.show.pictures import alternative

def random_positions(n, seed=0):
    "SFEN of positions of games that are played at random, either side to move"
    draw, made = random.Random(seed), []
    while len(made) < n:
        board = Board(START)
        for _ in range(draw.randint(1, 300)):
            moves = board.legal_moves()
            if not moves: break
            board.push_move(draw.choice(moves))
        made.append(board.to_sfen())
    return made

def drawn_pieces(svg, letters):
    "What stands where in the picture, as the board part of an SFEN"
    kinds, board = {l: k for k, l in zip(LETTERS['western'], LETTERS[letters])}, {}
    piece = r'<g transform="translate\((\d+) ([\d.]+)\) scale\((-?)[\d.]+\)" (?:fill="#b5121b" )?data-piece="([^"]+)">'
    for x, y, turned, letter in re.findall(piece, svg):
        board[(float(y) - 20)//30, 8 - (int(x) - 55)//30] = kinds[letter].lower() if turned else kinds[letter]
    rows = (''.join(board.get((r, f), '1') for f in reversed(range(9))) for r in range(9))
    return '/'.join(re.sub('1+', lambda m: str(len(m[0])), row) for row in rows)

@pytest.mark.parametrize('letters', LETTERS)
def test_pictures_say_what_they_show(letters):
    for sfen in random_positions(1000):
        svg = show_position(sfen, letters=letters).svgs[0]
        assert alternative(svg) == sfen == PositionState.from_sfen(alternative(svg)).to_sfen()
        assert drawn_pieces(svg, letters) == sfen.split()[0]
        signs = re.findall(r'(<circle class="to-move"[^>]*>)?<g [^>]*><use href="#letter-(2616|2617)"', svg)
        assert [s for disc, s in signs if disc] == ['2617' if sfen.split()[1] == 'b' else '2616']
