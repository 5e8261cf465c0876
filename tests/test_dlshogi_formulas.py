"""Targets of prepared and batched rows are those that dlshogi's loader gives, written out here from its sources

They are in github.com/TadaoYamaoka/DeepLearningShogi, at 4caf57c of May 2026. Its loader walks the games with cshogi's rules, and so does
this file; HCPE3 is laid out with `struct`, moves get dlshogi's labels from cshogi. One thing is left out on both sides: dlshogi skips
positions whose move repeats one (`moveIsDraw` in `__load_hcpe3`), so such plies are written as not searched.
"""
import struct
from collections import defaultdict

import cshogi
import numpy as np
import pytest
import torch
from cshogi.dlshogi import make_move_label

from maou_nb import prepare_stage3
from maou_nb.data.batches import BatchStream
from maou_nb.data.labels import TO_DLSHOGI
from maou_nb.data.packed import write_hcpe
from maou_nb.data.records import read_games
from maou_nb.data.shards import EVAL_SCALE, find_shards, read_shard
from maou_nb.data.sources import FileSource
from maou_nb.model.losses import value_target
from samples import GAMES, thinned

# cppshogi/cppshogi.h: `score_to_value` is 1 / (1 + expf(-score * 0.0013226f)); selfplay/self_play.cpp: `value_to_score` is
# -logf(1 / value - 1) * 756.0864962951762f
SLOPE, SELFPLAY = 0.0013226, 756.0864962951762
def score_to_value(score): return 1 / (1 + np.exp(-score*SLOPE))

def make_result(byte, turn):
    "cppshogi/python_module.cpp, `make_result`: the low two bits; Draw, BlackWin, WhiteWin = 0, 1, 2 (cppshogi/position.hpp)"
    if byte & 3 == 0: return 0.5
    return float((turn, byte & 3) in ((cshogi.BLACK, 1), (cshogi.WHITE, 2)))

def visits_to_probability(visits, temperature):
    "cppshogi/python_module.cpp, `visits_to_proberbility`"
    if len(visits) == 1: return [1.]
    powers = [n**(1/temperature) for n in visits]
    return [p/sum(powers) for p in powers]

BYTES = 0, 1, 2, 3, 4, 9, 10, 12, 20, 24, 16    # results, ends in the higher bits

@pytest.fixture(scope='module')
def files(tmp_path_factory):
    "150 games as HCPE3, some plies not searched, one game without plies; and of each searched ply what the loader reads"
    rng, out, data, plies = np.random.default_rng(0), tmp_path_factory.mktemp('hcpe3'), b'', []
    for i, g in enumerate(read_games(sorted(GAMES.glob('*.csa'))[:3])):
        board, byte, body = cshogi.Board(g.start + ' 1'), BYTES[i % len(BYTES)], b''
        hcp = np.zeros(32, np.uint8); board.to_hcp(hcp)
        for ply, (usi, eval) in enumerate(zip(g.usi, np.nan_to_num(g.evals).tolist())):
            move, turn, legal = board.move_from_usi(usi), board.turn, list(board.legal_moves)
            eval = int(eval if turn == cshogi.BLACK else -eval)
            others = [m for m in rng.permutation(legal).tolist() if m != move]
            n = 0 if ply % 5 == 4 else 1 + int(rng.integers(6))
            board.push(move); repeats = board.is_draw(16) != cshogi.NOT_REPETITION; board.pop()
            moves = [] if repeats else [move, *others][:n]
            visits = rng.integers(0, 800, len(moves)); visits[:1] += 1
            body += struct.pack('<HhH', cshogi.move16(move), eval, len(moves))
            body += b''.join(struct.pack('<HH', cshogi.move16(m), v) for m, v in zip(moves, visits.tolist()))
            if moves: plies.append((g.fold, position(board), turn, byte, eval, [make_move_label(m, turn) for m in moves], visits.tolist()))
            board.push(move)
        data += struct.pack('<32sHBB', hcp.tobytes(), len(g), byte, 0) + body
        if i == 20: data += struct.pack('<32sHBB', hcp.tobytes(), 0, 0, 0)
    (out/'a.hcpe3').write_bytes(data)
    return out/'a.hcpe3', plies

def position(board):
    "Board and hands as whoever moves sees them"
    pieces, (black, white) = list(board.pieces), board.pieces_in_hand
    if board.turn == cshogi.BLACK: return tuple(pieces), tuple(black), tuple(white)
    return tuple(p ^ 16 if p else 0 for p in pieces[::-1]), tuple(white), tuple(black)

def averaged(plies, temperature):
    """(fold, position) → (policy over 2187 labels, value, result, how many), as `__load_hcpe3` with `use_average` sums and
    `__hcpe3_decode_with_value` divides; our rows are those of a fold"""
    sums = defaultdict(lambda: [np.zeros(2187), 0., 0., 0])
    for fold, key, turn, byte, eval, labels, visits in plies:
        s = sums[fold, key]
        np.add.at(s[0], labels, visits_to_probability(visits, temperature))
        s[1] += score_to_value(eval); s[2] += make_result(byte, turn); s[3] += 1
    return {k: (p/n, v/n, r/n, n) for k, (p, v, r, n) in sums.items()}

def batched(folder):
    "(fold, position, dense row) of each prepared row, through the loader"
    source = FileSource(folder, 3)
    ids = np.concatenate([read_shard(s)['fold'].to_numpy() for s in find_shards(folder, 3)])
    batch, = (b.decode() for b in BatchStream(source, source.plan(1 << 20, shuffle=False)))
    return ids, batch

# our piece codes are P L N S G B R K …, cshogi's P L N S B R G K …, + 16 for White; our squares go rank by rank, its file by file
PIECE = np.array([0, 1, 2, 3, 4, 7, 5, 6, 8, 9, 10, 11, 12, 13, 14])

def key_of(board, hands):
    code = np.where(board > 14, PIECE[np.where(board > 14, board - 14, 0)] + 16, PIECE[np.minimum(board, 14)])
    by_file = np.concatenate([code.reshape(9, 9)[:, f] for f in range(9)])
    return tuple(by_file.tolist()), tuple(hands[:7].tolist()), tuple(hands[7:].tolist())

def compared(folder, expected, lam):
    "Compare every row; how many there are"
    folds, batch = batched(folder)
    policy = torch.zeros(len(folds), 2187).index_copy(1, torch.from_numpy(np.asarray(TO_DLSHOGI, np.int64)), batch.policy).numpy()
    target = value_target(batch.value, batch.eval, 1 - lam).numpy()
    for i, (fold, board, hands) in enumerate(zip(folds.tolist(), batch.board.numpy().astype(int), batch.hands.numpy().astype(int))):
        p, value, result, _ = expected[fold, key_of(board, hands)]
        assert np.abs(policy[i] - p).max() < 1e-6 and abs(float(batch.value[i]) - result) < 1e-6
        # dlshogi/train.py: (1 - val_lambda)·BCE(result) + val_lambda·BCE(value), which is the BCE of their mixture
        assert abs(target[i] - ((1 - lam)*result + lam*value)) < 1e-6
    return len(folds)

def test_the_constant_is_dlshogis():
    assert EVAL_SCALE == SELFPLAY == pytest.approx(1/SLOPE, rel=1e-12)

@pytest.mark.parametrize('temperature', thinned([2, 1, 0.5], 3))
def test_targets_are_those_of_dlshogi(files, tmp_path, temperature):
    "Each row, those of several positions too: policy, result, evaluation, and a mixture of the two"
    path, plies = files
    made = prepare_stage3(path, tmp_path/'out', policy_temperature=temperature, eval_average='win-rate')
    expected = averaged(plies, temperature)
    assert made.rows == len(expected) and made.positions == len(plies)
    assert sum(n > 1 for *_, n in expected.values()) > 20 and max(abs(p[4]) for p in plies) > 20_000
    for lam in (0., 0.333, 1.): assert compared(tmp_path/'out', expected, lam) == len(expected)

def test_hcpe_beside_hcpe3(files, tmp_path):
    "An HCPE record is a distribution with all on its move, as `load_hcpe` has it"
    path, plies = files
    others = [g for g in read_games(sorted(GAMES.glob('*.csa'))[3]) if g.result is not None]
    write_hcpe(others, tmp_path/'b.hcpe')
    records = np.fromfile(tmp_path/'b.hcpe', cshogi.HuffmanCodedPosAndEval)
    rows, board, folds = iter(records), cshogi.Board(), [g.fold for g in others for _ in g.usi]
    more = []
    for fold, r in zip(folds, rows):
        board.set_hcp(np.ascontiguousarray(r['hcp']))
        label = make_move_label(board.move_from_move16(int(r['bestMove16'])), board.turn)
        more.append((fold, position(board), board.turn, int(r['gameResult']), int(r['eval']), [label], [1]))
    made = prepare_stage3([path, tmp_path/'b.hcpe'], tmp_path/'out', policy='visits', eval_average='win-rate')
    expected = averaged(plies + more, 1)
    assert made.rows == len(expected) == compared(tmp_path/'out', expected, 1.)

def test_evals_in_centipawns(files, tmp_path):
    "As evals are averaged by default, those of single positions are the same up to ±3000"
    path, plies = files
    prepare_stage3(path, tmp_path/'out')
    once = {(f, k): e for f, k, _, _, e, *_ in plies}
    counts = {k: n for k, (*_, n) in averaged(plies, 1).items()}
    folds, batch = batched(tmp_path/'out')
    single = 0
    rows = zip(folds.tolist(), batch.board.numpy().astype(int), batch.hands.numpy().astype(int), batch.eval.tolist())
    for fold, board, hands, eval in rows:
        key = fold, key_of(board, hands)
        if counts[key] > 1: continue
        single += 1
        assert eval == max(-3000, min(3000, once[key]))
    assert single > 5000
