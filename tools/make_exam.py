"""Make the exam's positions: `python tools/make_exam.py FOLDER … --version 1 [--out FILE]`

FOLDERs hold CSA games whose licence allows it: ours are self-play, made for this project and under its licence.
Games that are in samples/, or copies of such, are left out, and so is every game but those of folds 0 to 9: a run
that was trained on the same archive and held out a tenth or more of it has not seen them.

Three kinds of positions are taken, no position twice and none that occurs in samples/:
  ordinary  a position of each fifth of each game: for moves, value and rules
  rules     those in which rules are at stake that are rare in games: a mate by a dropped pawn, pins, checks. The first is
            so rare that positions one move off the games are looked at, too: nothing was played in these
  mate      mates by checks in 1, 3 and 5 plies: df-pn (nshogi) finds candidates, a search of all checks says how
            long the shortest mate is and with which first moves
The same folders give the same file.
"""
import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
from rsshogi.core import Board

from maou_nb.data.board import position_ids, to_sfen, view_of
from maou_nb.data.columns import FOLDS
from maou_nb.data.labels import move_labels
from maou_nb.data.positions import positions
from maou_nb.data.records import read_games
from maou_nb.data.shards import fixed_lists
from maou_nb.data.trained import DEEP, copied_games, marks_of_rows
from maou_nb.judge.broken import CODES, WALL, attackers, broken
from maou_nb.judge.exam_set import KINDS_OF_ROWS, write_exam
from maou_nb.play.search import MateSolver

ROOT = Path(__file__).resolve().parents[1]
FOLDS_TAKEN, PARTS, LATE, PER_GAME = 10, 5, 30, 6
MOST = {'pawn mate': 150, 'must promote': 100, 'pin': 200, 'check': 200, 'king': 100}      # positions of kind `rules`
MATES = {1: 120, 3: 120, 5: 120}

def all_games(folders, wanted=lambda key: True):
    "Games with a result of the files below `folders`, each once, in order of their keys"
    found = {}
    for folder in folders:
        for path in sorted(Path(folder).rglob('*.csa')):
            for game in read_games(path):
                if game.result is not None and len(game) > 20 and wanted(game.key): found[game.key] = game
    return [found[key] for key in sorted(found)]

def marks_in(cols):
    "The marks of games, of all their positions"
    late = cols['ply'] >= DEEP
    return marks_of_rows(cols['game'][late], cols['id'][late])

# --- mates
def mating(board, plies):
    "The moves that mate by checks within `plies`"
    found = []
    for move in board.legal_moves():
        board.apply_move(move)
        if board.is_in_check() and mated(board, plies - 1): found.append(move)
        board.undo_move(move)
    return found

def mated(board, plies):
    "Whether the side to move, in check, is mated within `plies` whatever it does"
    replies = board.legal_moves()
    if not replies: return True
    if plies < 2: return False
    for reply in replies:
        board.apply_move(reply)
        escapes = not any_mating(board, plies - 1)
        board.undo_move(reply)
        if escapes: return False
    return True

def any_mating(board, plies):
    "Whether there is a mate by checks within `plies`"
    if board.solve_mate_in_one(): return True
    if plies < 3: return False
    for move in board.legal_moves():
        board.apply_move(move)
        good = board.is_in_check() and mated(board, plies - 1)
        board.undo_move(move)
        if good: return True
    return False

def mates_of(game, solver):
    "(ply, length, labels of its first moves) of the shortest mates at the end of `game`, the last of each length"
    board, found = Board(f'{" ".join(game.start.split()[:3])} 1'), {}      # nshogi wants a ply above 0
    for ply, value in enumerate(game.moves.tolist()):
        if ply >= len(game) - LATE and (line := solver(board, 2000)) and len(line) < 12:
            for plies in MATES:
                if moves := mating(board, plies):
                    found[plies] = (ply, plies, sorted(move_labels([int(m) for m in moves], board.turn.value).tolist()))
                    break
        board.apply_move(next(m for m in board.legal_moves() if int(m) == value))
    return [*found.values()]

def one_move_off(cols, places):
    "(boards, hands, place) after each legal move from `places` where a pawn before the mover's king could then mate"
    boards, hands = (cols[k][places] for k in ('boards', 'hands'))
    king = (boards == 8).argmax(1)
    front, walled = np.maximum(king - 9, 0), np.concatenate([boards, np.full((len(boards), 1), WALL, np.uint8)], 1)
    pawns = (boards.reshape(-1, 9, 9) == 15).any(1)[np.arange(len(king)), king % 9]
    likely = (hands[:, 7] > 0) & ~pawns & (king > 8) & (boards[np.arange(len(king)), front] == 0)
    likely &= (attackers(walled, front) < 81).any(1)
    made = []
    for i in np.flatnonzero(likely).tolist():
        board = Board(to_sfen(boards[i], hands[i]))
        for move in board.legal_moves():
            board.apply_move(move)
            made.append((*view_of(board.to_position_state()), int(places[i])))
            board.undo_move(move)
    return tuple(map(np.stack, zip(*made)))

def broken_in_parts(boards, hands):
    "`broken` of many positions"
    return np.concatenate([broken(boards[i:i + 256], hands[i:i + 256]) for i in range(0, len(boards), 256)])

def more_pawn_mates(cols, places, known, most):
    "Columns of `most` positions off the games in which a dropped pawn would mate"
    boards, hands, origin = one_move_off(cols, places)
    ids = position_ids(boards, hands)
    new = np.zeros(len(ids), bool)
    new[np.unique(ids, return_index=True)[1]] = True
    keep = np.flatnonzero(new & ~np.isin(ids, known))
    keep = keep[(broken_in_parts(boards[keep], hands[keep]) == CODES['pawn mate']).any(1)]
    its_game = cols['game'][origin[keep]]
    keep = np.concatenate([spread(keep[its_game == game], PER_GAME) for game in np.unique(its_game)])     # of one game they are alike
    keep = np.array(spread(keep, most))
    print(f'positions one move off the games: {len(ids):,}; with pawn mate, taken: {len(keep):,}')
    return {'boards': boards[keep], 'hands': hands[keep], 'game': cols['game'][origin[keep]], 'ply': cols['ply'][origin[keep]] + 1}

def spread(numbers, most):
    "`most` of `numbers`, evenly"
    return [numbers[i*len(numbers)//most] for i in range(most)] if len(numbers) > most else list(numbers)

def refuse(folders, why): raise SystemExit(f'{", ".join(map(str, folders))}: {why}')

def make(folders, out, version):
    if lost := [f for f in folders if not Path(f).is_dir()]: refuse(lost, 'this is no folder; one with CSA games was expected')
    known = positions(all_games([ROOT/'samples']), ends=False, legal=False)
    games = all_games(folders, lambda key: key % FOLDS < FOLDS_TAKEN)
    if not games: refuse(folders, f'no game of folds 0 to {FOLDS_TAKEN - 1} is there; CSA games with results were expected')
    cols = positions(games, ends=False, legal=False)
    own, theirs = marks_in(cols), marks_in(known)
    left = np.isin(cols['game'], np.concatenate([np.unique(known['game']), copied_games(theirs, own)]))
    left |= np.isin(cols['id'], known['id'])
    first = np.zeros(len(left), bool)
    first[np.unique(cols['id'], return_index=True)[1]] = True      # of a position in several games the first
    free = first & ~left
    if not free.any(): refuse(folders, f'all {len(games):,} games are in samples/, or copies of such; others were expected')
    starts = np.cumsum([0, *map(len, games)])
    print(f'{len(games):,} games of these folds, {int(free.sum()):,} of {len(free):,} positions free')

    kind, mate = np.zeros(len(free), np.uint8), np.zeros(len(free), np.uint8)
    firsts, solver = {}, MateSolver()
    by_length = {n: [] for n in MATES}
    for game, start in zip(games, starts):
        for ply, plies, labels in mates_of(game, solver):
            if free[start + ply]: by_length[plies].append((start + ply, labels))
    for plies, places in by_length.items():
        print(f'mates in {plies}: {len(places):,} found')
        for at, labels in spread(places, MATES[plies]): kind[at], mate[at], firsts[at] = KINDS_OF_ROWS.index('mate'), plies, labels

    codes = broken_in_parts(cols['boards'], cols['hands'])
    rng = np.random.default_rng(version)
    for name, most in MOST.items():
        places = np.flatnonzero((codes == CODES[name]).any(1) & free & (kind == 0))
        print(f'positions with {name}: {len(places):,}')
        kind[rng.permutation(places)[:most]] = KINDS_OF_ROWS.index('rules')
    for start, end in zip(starts, starts[1:]):
        for a, b in zip(*(np.linspace(start, end, PARTS + 1).astype(int)[s] for s in (slice(None, -1), slice(1, None)))):
            places = np.arange(a, b)[(free & (kind == 0))[a:b]]
            if len(places): kind[rng.choice(places)] = KINDS_OF_ROWS.index('ordinary')

    ratings = {g.key: g.ratings for g in games}
    turn = np.concatenate([np.array([Board(g.start).turn.value + i for i in range(len(g))]) % 2 for g in games])
    rating = np.array([ratings[int(k)][t] or np.nan for k, t in zip(cols['game'], turn)], np.float32)
    off = more_pawn_mates(cols, np.flatnonzero(free), np.concatenate([cols['id'], known['id']]), MOST['pawn mate'])
    n = len(off['game'])
    nothing = {'label': np.full(n, -1), 'result': np.full(n, np.nan), 'eval': np.full(n, np.nan)}
    cols = {k: np.concatenate([cols[k], (off | nothing)[k]]) for k in ('boards', 'hands', 'game', 'ply', *nothing)}
    more = (kind, KINDS_OF_ROWS.index('rules')), (mate, 0), (rating, np.nan)
    kind, mate, rating = (np.concatenate([a, np.full(n, v, a.dtype)]) for a, v in more)
    rows = np.flatnonzero(kind)
    rows = rows[np.lexsort((rows, kind[rows]))]
    table = pa.table({
        'kind': kind[rows], 'boardIdPositions': fixed_lists(cols['boards'][rows]), 'piecesInHand': fixed_lists(cols['hands'][rows]),
        'played': cols['label'][rows].astype(np.int16), 'result': pa.array(cols['result'][rows].astype(np.float32), from_pandas=True),
        'eval': pa.array(cols['eval'][rows].astype(np.float32), from_pandas=True), 'rating': pa.array(rating[rows], from_pandas=True),
        'ply': cols['ply'][rows].astype(np.uint16), 'game': cols['game'][rows].astype(np.uint64), 'mate': mate[rows],
        'mating': pa.array([firsts.get(int(i), []) for i in rows], pa.list_(pa.int16()))})
    kept = np.isin(own.games, table['game'].to_numpy())
    write_exam(out, table, type(own)(own.games[kept], own.numbers[kept]), version)
    print(f'{out}: {len(table):,} positions, {out.stat().st_size:,} bytes,', dict(zip(KINDS_OF_ROWS, np.bincount(kind[rows]).tolist())))

if __name__ == '__main__':
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument('folders', nargs='+')
    asked.add_argument('--version', type=int, required=True)
    asked.add_argument('--out', type=Path)
    given = asked.parse_args()
    make(given.folders, given.out or ROOT/'maou_nb'/'judge'/f'exam-{given.version}.feather', given.version)
