"Our rules against cshogi's, on every position of the sample games: cshogi is the oracle, and the package never imports it"
import re

import cshogi
import numpy as np
import pytest
from cshogi.dlshogi import make_move_label
from rsshogi.core import Board, Move

from maou_nb.data.board import KINDS, position_ids
from maou_nb.show.boards import Position
from maou_nb.data.games import usi_of
from maou_nb.data.labels import FROM_DLSHOGI, LABEL_COUNT, legal_labels, move_of_label
from maou_nb.data.positions import positions
from maou_nb.data.records import read_games
from samples import GAMES, ROOT

def perft(board, depth):
    "How many lines of `depth` moves there are"
    moves = board.legal_moves()
    if depth == 1: return len(moves)
    total = 0
    for m in moves:
        board.apply_move(m); total += perft(board, depth - 1); board.undo_move(m)
    return total

def test_perft():
    assert perft(Board(), 4) == 719_731

@pytest.fixture(scope='module')
def walked():
    "All positions of the sample games: (game, rsshogi's board, cshogi's board) before each move, and the built columns"
    games = list(read_games(GAMES))
    return games, positions(games)

def boards(games):
    "Each position of `games` on both libraries' boards"
    for g in games:
        ours, theirs = Board(g.start + ' 1'), cshogi.Board(g.start + ' 1')
        yield ours, theirs
        for m in g.moves.tolist():
            ours.apply_move(Move(m)); theirs.push_usi(usi_of(m))
            yield ours, theirs

def test_legal_labels_equal_on_every_position(walked):
    games, cols = walked
    bits = np.unpackbits(cols['legal'], axis=1, bitorder='little').astype(bool)
    assert len(bits) >= 10_000
    turns = [0, 0]
    for row, (_, theirs) in zip(bits, boards(games), strict=True):
        labels = FROM_DLSHOGI[[make_move_label(m, theirs.turn) for m in theirs.legal_moves]]
        assert set(labels.tolist()) == set(np.flatnonzero(row).tolist()), theirs.sfen()
        turns[theirs.turn] += 1
    assert min(turns) > 10_000     # both colours

def test_label_to_move_and_back(walked):
    "label → move → label for every legal move of every position, both colours; no two moves share a label"
    games, _ = walked
    checked = 0
    for ours, _ in boards(games):
        moves, labels = ours.legal_moves(), legal_labels(ours).tolist()
        assert min(labels, default=0) >= 0 and len(set(labels)) == len(labels)
        by_label = dict(zip(labels, moves))
        assert [by_label[l] for l in labels] == moves
        if checked % 50 == 0: assert [move_of_label(l, ours) for l in labels] == moves
        checked += 1
    assert checked >= 10_000

def test_labels_are_a_bijection():
    known = FROM_DLSHOGI[FROM_DLSHOGI >= 0]
    assert sorted(known.tolist()) == list(range(LABEL_COUNT))

def test_boards_equal(walked):
    "The side-to-move view of every position, from cshogi's own pieces"
    games, cols = walked
    kinds = dict(zip([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14],
                     ['P', 'L', 'N', 'S', 'B', 'R', 'G', 'K', '+P', '+L', '+N', '+S', '+B', '+R']))
    codes = np.zeros((2, 32), np.uint8)
    for piece, kind in kinds.items():
        own = KINDS.index(kind) + 1
        codes[0, piece], codes[0, piece + 16], codes[1, piece + 16], codes[1, piece] = own, own + 14, own, own + 14

    for board, hands, (_, theirs) in zip(cols['boards'], cols['hands'], boards(games), strict=True):
        by_file = np.array(theirs.pieces).reshape(9, 9)                    # [file][rank]
        view = by_file.T if theirs.turn == 0 else by_file.T[::-1, ::-1]
        assert (codes[theirs.turn, view.reshape(81)] == board).all()
        held = [theirs.pieces_in_hand[theirs.turn], theirs.pieces_in_hand[1 - theirs.turn]]
        assert [h[i] for h in held for i in range(7)] == hands.tolist()

def test_mate_by_pawn_drop_is_no_move():
    "A pawn drop that mates is left out of the labels, one that only checks is in"
    mate = Board('lnsgkgsnl/9/4G4/9/9/9/9/9/4K4 b P 1')          # P*5b would be met by capture, so it is legal
    assert any(m.to_usi() == 'P*5b' for m in mate.legal_moves())
    forbidden = Board('3lkl3/3p1p3/4G4/9/9/9/9/9/4K4 b P 1')      # P*5b mates
    theirs = cshogi.Board('3lkl3/3p1p3/4G4/9/9/9/9/9/4K4 b P 1')
    assert not any(m.to_usi() == 'P*5b' for m in forbidden.legal_moves())
    assert sorted(m.to_usi() for m in forbidden.legal_moves()) == sorted(map(cshogi.move_to_usi, theirs.legal_moves))

def test_ids_are_distinct(walked):
    "No two positions of the sample games share an id"
    _, cols = walked
    rows = np.concatenate([cols['boards'], cols['hands']], axis=1)
    assert len(np.unique(rows, axis=0)) == len(np.unique(cols['id']))
    assert (position_ids(cols['boards'][:5], cols['hands'][:5]) == cols['id'][:5]).all()

def test_position_round_trip(walked):
    _, cols = walked
    for i in range(0, len(cols['id']), 97):
        p = Position(cols['boards'][i], cols['hands'][i])
        assert Position.from_sfen(p.sfen) == p

def test_the_package_does_not_import_the_oracle():
    modules = [*(ROOT/'maou_nb').rglob('*.py')]
    assert len(modules) > 90 and not [p for p in modules if re.search(r'^\s*(import|from)\s+cshogi', p.read_text(encoding='utf-8'), re.M)]
