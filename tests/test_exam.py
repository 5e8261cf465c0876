"The exam: rules against two libraries, figures against loops, the file's version and hash, and what is said to whom"
import json, math, re, runpy, subprocess, sys, time
from dataclasses import replace

import cshogi
import numpy as np
import pyarrow as pa
import pytest
import torch
from rsshogi.core import Board

import maou_nb
from maou_nb import exam, learn_multi_stage
from maou_nb.data.board import to_sfen
from maou_nb.data.columns import FOLDS, NO_PLY
from maou_nb.data.labels import CLASSES, LABEL_CLASS, LABEL_MIRROR, LABEL_SQUARE, TO_DLSHOGI, legal_labels, move_labels
from maou_nb.data.positions import positions
from maou_nb.data.files import FileError
from maou_nb.data.records import read_games
from maou_nb.data.shards import fixed_bytes, fixed_lists, write_manifest, write_shard
from maou_nb.data.board import position_ids
from maou_nb.data.sources import FileSource
from maou_nb.data.trained import copied_games
from maou_nb.front import cli
from maou_nb.front.study import record_of
from maou_nb.judge import exam as exam_room
from maou_nb.judge.ask import load_net
from maou_nb.judge.broken import CODES, RULES, turned_round
from maou_nb.judge.exam import (BINS, Drawn, _difference, calibration, check_page, examine_mates, examine_mirror, examine_moves,
                                examine_rules, examine_value, figure_better, fitted_temperature, kept_exam, kept_sentence, log_loss, phases)
from maou_nb.judge.exam_set import EXAM, VERSION, read_exam
from maou_nb.model.heads import Net
from maou_nb.show.boards import origin_of
from maou_nb.stages.legal_moves import broken_rule
from maou_nb.stages.stage import STAGES
from samples import GAMES, ROOT, said

SHA256 = 'ff3be61e3bd5245f085628f6251dd2a6f6c15dd39993a4a22bcf9627deee6795'
LABELS = range(len(LABEL_CLASS))

@pytest.fixture(scope='module')
def asked(): return read_exam()

@pytest.fixture(scope='module')
def thousand(asked):
    "A thousand positions of all kinds, each kind with many"
    rng = np.random.default_rng(0)
    at = np.sort(np.concatenate([rng.permutation(asked.rows(k))[:n] for k, n in (('ordinary', 500), ('rules', 350), ('mate', 150))]))
    arrays = {k: v[at] for k, v in vars(asked).items() if isinstance(v, np.ndarray)}
    return replace(asked, **arrays, mating=[asked.mating[i] for i in at])

# --- the rules
def test_legal_moves_are_those_of_two_libraries(thousand):
    for board, hands, codes in zip(thousand.boards, thousand.hands, thousand.broken):
        sfen, found = to_sfen(board, hands), np.flatnonzero(codes == 0).tolist()
        assert found == sorted(legal_labels(Board(sfen)).tolist()), sfen
        theirs = [usi_label(cshogi.move_to_usi(m)) for m in cshogi.Board(sfen).legal_moves]
        assert found == sorted(theirs), sfen

def usi_label(usi):
    from rsshogi.core import Move
    return int(move_labels(int(Move.from_usi(usi)), 0))

SAYS = {'the piece is not in hand': {'other'}, 'a drop on a piece': {'occupied'}, 'two pawns in a file': {'double pawn'},
        'no piece of its own that could move so': {'other', 'blocked'}, 'the piece does not move so': {'other', 'blocked'},
        'onto a piece of its own': {'own piece'}, 'a piece that cannot promote': {'promotion'},
        'promotion outside of the zone': {'promotion'}, 'it would have to promote': {'must promote'},
        'check is not answered': {'check', 'king', 'pin', 'pawn mate'}, 'the king could be taken': {'pin', 'king'},
        'mate by a dropped pawn': {'pawn mate'}, '': {'legal'}}

def test_rules_are_those_that_stage_2_tells_one_label_at_a_time(thousand):
    names, counted = [*RULES], dict.fromkeys(RULES, 0)
    for i in range(0, len(thousand), 8):
        board, hands = thousand.boards[i], thousand.hands[i]
        for label in LABELS:
            name = names[thousand.broken[i, label]]
            counted[name] += 1
            assert name in SAYS[broken_rule(label, board, hands)], (to_sfen(board, hands), label)
    assert {name for name, n in counted.items() if not n} == {'dead drop'}

def test_each_rule_has_its_property(thousand):
    "Of pins, checks, kings, blocked sliders and pawn mates, in a thousand positions, by rsshogi's boards"
    seen = dict.fromkeys(('pin', 'check', 'king', 'blocked', 'pawn mate'), 0)
    for board, hands, codes in zip(thousand.boards, thousand.hands, thousand.broken):
        where = {name: np.flatnonzero(codes == CODES[name]) for name in seen}
        in_check = Board(to_sfen(board, hands)).is_in_check()
        assert in_check or not len(where['check'])
        for name, labels in where.items():
            for label in labels[:5].tolist():
                seen[name] += 1
                PROPERTIES[name](board, hands, label, in_check)
    assert min(seen.values()) > 20

def attacked(board, hands):
    "Whether the king of the side to move is attacked, by rsshogi"
    return Board(to_sfen(board, hands)).is_in_check()

def after(board, label, origin):
    made = board.copy()
    made[LABEL_SQUARE[label]] = board[origin] if origin is not None else 1
    if origin is not None: made[origin] = 0
    return made

def pinned(board, hands, label, in_check):
    origin = origin_of(label, board)
    assert board[origin] != 8 and attacked(after(board, label, origin), hands)
    without = board.copy()
    without[origin] = 0
    if not in_check: assert attacked(without, hands)

def unanswered(board, hands, label, in_check):
    origin = None if LABEL_CLASS[label] > 19 else origin_of(label, board)
    assert in_check and (origin is None or board[origin] != 8) and attacked(after(board, label, origin), hands)

def walks_into(board, hands, label, in_check):
    origin = origin_of(label, board)
    assert board[origin] == 8 and attacked(after(board, label, origin), hands)

def stands_in_the_way(board, hands, label, in_check):
    "With the piece in the way gone, and the next, a slider comes through"
    made = board.copy()
    for _ in range(8):
        made[origin_of(label, made)] = 0
        origin = origin_of(label, made)
        if origin is None: break
        if made[origin] in (2, 6, 7, 13, 14): return
    raise AssertionError(to_sfen(board, hands))

def pawn_mates(board, hands, label, in_check):
    made, held = after(board, label, None), hands.copy()
    held[0] -= 1
    assert CLASSES[LABEL_CLASS[label]] == 'P*' and not attacked(made, held)
    boards, hands = turned_round(made[None], held[None])
    other = Board(to_sfen(boards[0], hands[0]))
    assert other.is_in_check() and not other.legal_moves()

PROPERTIES = {'pin': pinned, 'check': unanswered, 'king': walks_into, 'blocked': stands_in_the_way, 'pawn mate': pawn_mates}

# --- the file
def test_the_file_is_what_its_version_says(asked):
    "Another file is another version: whoever makes one raises the number"
    assert (asked.version, asked.sha256) == (1, SHA256) and VERSION == 1 and EXAM.stat().st_size < 1_500_000
    assert np.isin(asked.mate[asked.rows('mate')], [1, 3, 5]).all() and min(map(len, (asked.mating[i] for i in asked.rows('mate')))) > 0
    assert len(np.unique(position_ids(asked.boards, asked.hands))) == len(asked)

def test_its_games_are_not_in_samples(asked):
    known = [g for path in sorted(GAMES.glob('*.csa')) for g in read_games(path)]
    cols = positions(known, ends=False, legal=False)
    assert not np.isin(asked.game, [g.key for g in known]).any()
    assert not np.isin(position_ids(asked.boards, asked.hands), cols['id']).any()
    assert (asked.game % FOLDS < 10).all()

def mate_in(board, plies):
    "First moves that mate by checks in at most so many plies, every move tried"
    found = []
    for move in board.legal_moves():
        board.apply_move(move)
        if board.is_in_check() and is_lost(board, plies - 1): found.append(move)
        board.undo_move(move)
    return found

def is_lost(board, plies):
    replies = board.legal_moves()
    if not replies or plies < 1: return not replies
    lost = True
    for reply in replies:
        board.apply_move(reply)
        lost = bool(mate_in(board, plies - 1))
        board.undo_move(reply)
        if not lost: return False
    return True

@pytest.mark.parametrize('plies, many', [(1, 40), (3, 25), (5, 3)])
def test_mates_are_mates_and_shortest(asked, plies, many):
    for i in np.flatnonzero(asked.mate == plies)[:many]:
        board = Board(to_sfen(asked.boards[i], asked.hands[i]))
        first = sorted(move_labels([int(m) for m in mate_in(board, plies)], 0).tolist())
        assert first == asked.mating[i].tolist()
        assert plies == 1 or not mate_in(board, plies - 2)

def test_a_wheel_has_the_file(tmp_path):
    words = [sys.executable, 'setup.py', '-q', 'build_py', '-d', str(tmp_path/'lib')]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path/'lib'/'maou_nb'/'judge'/EXAM.name).read_bytes() == EXAM.read_bytes()

# --- figures, against loops over a thousand positions
@pytest.fixture(scope='module')
def answers(thousand):
    "What a network might say: the moves played are a bit likelier, legal ones too"
    rng = np.random.default_rng(1)
    policy, legal_moves = (rng.normal(size=(len(thousand), len(LABELS))).astype(np.float32) for _ in range(2))
    policy += 2*thousand.legal()
    at = np.flatnonzero(thousand.played >= 0)
    policy[at, thousand.played[at]] += 2
    legal_moves += np.where(thousand.legal(), 2, -2)
    value = (np.nan_to_num(thousand.result, nan=0.5) - 0.5)*2 + rng.normal(size=len(thousand))*2
    value[::50] = 0
    return {'policy': policy, 'legal_moves': legal_moves, 'value': value.astype(np.float32)}

def softmax(logits):
    e = [math.exp(x) for x in logits]
    whole = sum(e)
    return [x/whole for x in e]

def test_rules_are_counted_right(thousand, answers):
    part = examine_rules(thousand, answers)
    rows = [(thousand.broken[i].tolist(), answers['legal_moves'][i].tolist(), softmax(answers['policy'][i].tolist()))
            for i in thousand.rows('ordinary', 'rules')]
    for rule in ('pin', 'check', 'double pawn', 'other', 'must promote', 'pawn mate', 'king', 'blocked'):
        claimed, cases, masses = 0, 0, []
        for codes, scores, p in rows:
            labels = [l for l in LABELS if codes[l] == CODES[rule]]
            cases += len(labels)
            claimed += sum(scores[l] > 0 for l in labels)
            if labels: masses.append(sum(p[l] for l in labels))
        assert part.figures[f'cases/{rule}'] == cases > 0
        assert part.figures[f'legal_moves/{rule}'] == pytest.approx(claimed/cases)
        assert part.figures[f'policy/{rule}'] == pytest.approx(sum(masses)/len(masses), rel=1e-4)
    assert part.figures['cases/dead drop'] == 0 and not np.isfinite(part.figures['policy/dead drop'])
    assert 0 < part.figures['legal_moves/missed'] < 0.1

def test_the_worst_board_is_the_worst(thousand, answers):
    made = {**answers, 'legal_moves': answers['legal_moves'].copy()}
    i = next(i for i in thousand.rows('rules') if (thousand.broken[i] == CODES['pin']).any())
    made['legal_moves'][i, np.flatnonzero(thousand.broken[i] == CODES['pin'])[0]] = 50
    words = [words for svg, words in examine_rules(thousand, made).boards]
    svg = next(svg for svg, words in examine_rules(thousand, made).boards if words.startswith(RULES['pin']))
    assert to_sfen(thousand.boards[i], thousand.hands[i]).split()[0] in svg and any('gives it 100.0%' in w for w in words)

def best_legal(logits, legal): return max((l for l in LABELS if legal[l]), key=lambda l: logits[l])

def test_mates_are_counted_right(thousand, answers):
    part = examine_mates(thousand, answers)
    for plies in (1, 3, 5):
        at = [i for i in range(len(thousand)) if thousand.mate[i] == plies]
        legal = thousand.legal()
        found = [best_legal(answers['policy'][i], legal[i]) in thousand.mating[i] for i in at]
        mass = []
        for i in at:
            inside = np.flatnonzero(legal[i]).tolist()
            mass.append(sum(p for l, p in zip(inside, softmax(answers['policy'][i, inside].tolist())) if l in thousand.mating[i]))
        assert part.figures[f'found/{plies}'] == pytest.approx(np.mean(found))
        assert part.figures[f'mass/{plies}'] == pytest.approx(np.mean(mass), rel=1e-4)

def test_moves_are_counted_right(thousand, answers):
    part, legal = examine_moves(thousand, answers), thousand.legal()
    at = thousand.rows('ordinary')
    order = {i: sorted((l for l in LABELS if legal[i, l]), key=lambda l: -answers['policy'][i, l]) for i in at}
    top = lambda n, rows: np.mean([thousand.played[i] in order[i][:n] for i in rows])
    assert part.figures['top1'] == pytest.approx(top(1, at)) and part.figures['top5'] == pytest.approx(top(5, at))
    some = [i for i in at if 40 <= thousand.ply[i] < 60]
    assert part.figures['top1/ply/40–59'] == pytest.approx(top(1, some))
    phase = phases(thousand.boards, thousand.hands)
    assert part.figures['top5/phase/endgame'] == pytest.approx(top(5, [i for i in at if phase[i] == 'endgame']))
    strong = [i for i in at if thousand.rating[i] >= 2500]
    assert part.figures['top1/rating/2500 and more'] == pytest.approx(top(1, strong))
    assert part.figures['top1'] > part.figures['top1_guess'] > 0.01

def test_dlshogis_way_of_counting(thousand, answers):
    "`accuracy` and `binary_accuracy` of its train.py, on a vector of its 2187 labels"
    at = thousand.rows('ordinary')
    y1 = torch.full((len(at), 2187), -torch.inf)
    y1[:, torch.from_numpy(TO_DLSHOGI)] = torch.from_numpy(answers['policy'][at])
    t1 = torch.from_numpy(TO_DLSHOGI[thousand.played[at]])
    accuracy = (torch.max(y1, 1)[1] == t1).sum().item()/len(t1)
    y2, t2 = torch.from_numpy(answers['value'][at]), torch.from_numpy(thousand.result[at])
    binary_accuracy = (y2 >= 0).eq(t2 >= 0.5).sum().item()/len(t2)
    assert examine_moves(thousand, answers).figures['top1_dlshogi'] == pytest.approx(accuracy)
    value = examine_value(thousand, answers).figures
    assert value['accuracy_dlshogi'] == pytest.approx(binary_accuracy)
    decided = [(x > 0) == (r > 0.5) for x, r in zip(answers['value'][at], thousand.result[at]) if r != 0.5]
    assert value['accuracy'] == pytest.approx(np.mean(decided)) and value['accuracy'] != value['accuracy_dlshogi']

def test_values_are_counted_right(thousand, answers):
    part, at = examine_value(thousand, answers), thousand.rows('ordinary')
    p = [1/(1 + math.exp(-x)) for x in answers['value'][at].tolist()]
    r = thousand.result[at].tolist()
    assert part.figures['brier'] == pytest.approx(np.mean([(a - b)**2 for a, b in zip(p, r)]))
    loss = [-(b*math.log(a) + (1 - b)*math.log(1 - a)) for a, b in zip(p, r)]
    assert part.figures['log_loss'] == pytest.approx(np.mean(loss))
    error = 0
    for k in range(BINS):
        inside = [(a, b) for a, b in zip(p, r) if k/BINS <= a < (k + 1)/BINS]
        error += abs(sum(a - b for a, b in inside))/len(p)
    assert part.figures['calibration_error'] == pytest.approx(error, rel=1e-5)
    games = np.unique(thousand.game[at])
    first = np.isin(thousand.game[at], games[::2])
    x, y = answers['value'][at].astype(float), thousand.result[at].astype(float)
    grid = np.exp(np.linspace(-3, 3, 6001))
    best = grid[np.argmin([log_loss(x[first]/t, y[first]).mean() for t in grid])]
    assert part.figures['temperature'] == pytest.approx(best, rel=2e-3)
    cooled = 1/(1 + np.exp(-x[~first]/part.figures['temperature']))
    assert part.figures['brier_after_temperature'] == pytest.approx(((cooled - y[~first])**2).mean())

def test_mirrored_boards_are_compared_right(thousand, answers):
    at = thousand.rows('ordinary')[:200]
    rng = np.random.default_rng(2)
    turned = {k: v[at][:, LABEL_MIRROR] if v.ndim > 1 else v[at] for k, v in answers.items()}
    turned = {k: (v + rng.normal(size=v.shape)/2).astype(np.float32) for k, v in turned.items()}
    part, legal, kl = examine_mirror(thousand, answers, turned, at), thousand.legal(), []
    for row, i in enumerate(at):
        inside = np.flatnonzero(legal[i]).tolist()
        a, b = softmax(answers['policy'][i, inside].tolist()), softmax([float(turned['policy'][row, LABEL_MIRROR[l]]) for l in inside])
        kl.append(sum(x*math.log(x/y) for x, y in zip(a, b)))
    assert part.figures['policy_kl'] == pytest.approx(np.mean(kl), rel=1e-3) and 0 < part.figures['same_top1'] < 1

def test_intervals_cover():
    "Of games of four alike rows, the truth lies in 95 of 100 intervals"
    rng, hits = np.random.default_rng(0), 0
    games = np.repeat(np.arange(200), 4)
    for seed in range(400):
        rows = np.repeat(rng.random(200) < 0.3, 4)
        _, low, high = Drawn(games, seed % 8).mean(rows)
        hits += low <= 0.3 <= high
    assert 0.92 <= hits/400 <= 0.98

def test_bins_hold_all_rows():
    p, y = np.array([0., 0.05, 0.5, 1.]), np.array([0., 1., 0.5, 1.])
    bins = calibration(p, y, np.arange(4))
    assert [(b['from'], b['rows'], b['happened']) for b in bins] == [(0., 2, 0.5), (0.5, 1, 0.5), (0.9, 1, 1.)]
    assert fitted_temperature(np.zeros(4), y) > 0

# --- networks
TINY = dict(model_size='tiny', resnet_channels=8, resnet_blocks=1, gpu='cpu', epoch=1, stage1_threshold=0., stage2_threshold=0.,
            test_ratio=0.2, stage2_test_ratio=0.2, stage1_max_epochs=1, stage2_max_epochs=1)

@pytest.fixture(scope='module')
def run(shards, tmp_path_factory):
    "A run of all stages that was examined at its end"
    return learn_multi_stage(stage='all', run_dir=tmp_path_factory.mktemp('exam')/'run', exam_after=True, **TINY, **shards)

@pytest.fixture(scope='module')
def examined(run): return exam(run, device='cpu')

def test_a_run_keeps_its_exam(run, examined):
    folder = run.run_dir
    kept = kept_exam(folder)
    assert kept['exam'] == {'version': 1, 'sha256': SHA256} and kept['figures'] == pytest.approx(examined.figures)
    assert '95 % over games' in open(f'{folder}/exam.html', encoding='utf-8').read()
    assert kept['known'] == {'2': 'none of its games', '3': 'none of its games'}
    assert 'Exam 1 (ff3be61e3bd5)' in repr(run) and 'exam.html' in run._repr_html_()
    assert 'Exam 1' in repr(maou_nb.load_run(folder))

def test_a_study_keeps_the_exams_of_its_runs(run, examined):
    "And knows of each figure which way is better, if either is"
    assert record_of(run, 'plain', 0)['exam'] == pytest.approx(examined.figures)
    ways = {n: figure_better(n) for n in examined.figures}
    assert {ways[n] for n in ('rules/policy/illegal', 'rules/legal_moves/missed', 'value/brier')} == {'lower'}
    assert {ways[n] for n in ('rules/legal_moves/exact', 'mates/found/1', 'moves/top1', 'value/accuracy', 'reach/exact')} == {'higher'}
    # one that says the same of every board is perfectly consistent, and no better for it
    assert {w for n, w in ways.items() if n.startswith('mirror/')} == {None}
    assert {w for n, w in ways.items() if 'guess' in n or 'cases' in n or 'temperature' == n.split('/')[1]} == {None}

def test_an_exam_is_held_once(asked, shards, tmp_path, capsys, monkeypatch):
    "Of the same checkpoints; here of an eighth of its positions"
    few = part_of(asked, np.arange(0, len(asked), 8))
    monkeypatch.setattr('maou_nb.judge.exam.read_exam', lambda path: few)
    kept = tmp_path/'run'/'exam.json'
    options = dict(stage=3, run_dir=tmp_path/'run', resume_from='latest', exam_after=True, **TINY, **shards)
    learn_multi_stage(**options)
    assert 'The page' in capsys.readouterr().out
    before = kept.read_text()
    learn_multi_stage(**options)
    assert 'The page' not in capsys.readouterr().out and kept.read_text() == before
    learn_multi_stage(**{**options, 'epoch': 2})
    assert 'The page' in capsys.readouterr().out and kept.read_text() != before

def test_the_page_names_the_exam(examined, tmp_path):
    page = examined.save(tmp_path/'page.html').read_text(encoding='utf-8')
    assert SHA256[:12] in page and page.startswith('<!DOCTYPE html>') and '<script' not in page
    assert [*examined.parts] == ['rules', 'mates', 'moves', 'value', 'mirror', 'reach', 'own']
    table = examined.table()
    assert table.columns == ['part', 'figure', 'value', 'low', 'high'] and len(table) == len(examined.figures)
    assert all(low <= examined.figures[k] <= high for k, (low, high) in examined.intervals.items() if 'temperature' not in k)
    json.loads(json.dumps(examined.as_json(), allow_nan=False))

def test_one_exam_against_another(examined):
    "Draw by draw: known differences are covered, none is found where there is none, exams of other positions are refused"
    rng, games, covered, sides, runs = np.random.default_rng(1), np.repeat(np.arange(200), 4), 0, set(), 600
    for _ in range(runs):
        hard = rng.normal(size=200)[games] + rng.normal(size=800)
        mine, theirs = (Drawn(games).mean(x) for x in (hard + 0.1 + rng.normal(size=800)*0.3, hard))
        *_, low, high, better = _difference('moves/top1', mine[0], theirs[0], mine.draws - theirs.draws)
        covered += low <= 0.1 <= high
        sides.add(better)
        assert high - low < 0.5*(mine[2] - mine[1])
    assert abs(covered/runs - 0.95) < 0.025 and sides == {'this'}
    table = examined.against(examined)
    assert {f'{p}/{f}' for p, f in table['part', 'figure'].rows()} == examined.intervals.keys()
    assert table['part', 'figure'].row(0) == ('rules', 'policy/illegal') and not table['low', 'high', 'difference'].to_numpy().any()
    with pytest.raises(ValueError, match=r'exam ff3be61e3bd5 against 000000000000: two of the same positions were expected'):
        examined.against(replace(examined, sha256='0'*64))
    with pytest.raises(ValueError, match=r"other='runs/a': an Exam was expected, as exam\(...\) gives it"): examined.against('runs/a')

def test_what_cannot_be_compared(run, examined):
    "Exams without a common figure, and what illegal labels get after training with a mask"
    first = exam(run, stage=1, own_rows=False)
    words = 'an exam of the parts rules, mates, moves, value, mirror, reach, own against one of the parts reach: no figure'
    with pytest.raises(ValueError, match=words) as e: examined.against(first)
    said(e)
    examined = replace(examined, masked=False)
    worse = replace(examined, parts={k: replace(p, draws={n: d*0.9 - 0.01 for n, d in p.draws.items()}) for k, p in examined.parts.items()})
    better = lambda a, b: {f'{p}/{f}': w for p, f, w in a.against(b)['part', 'figure', 'better'].rows()}
    plain, masked = better(examined, worse), better(replace(examined, masked=True), worse)
    assert better(examined, replace(worse, masked=True)) == masked
    names = {n for n in plain if n.startswith('rules/policy/') or n == 'moves/top1_dlshogi'}
    assert len(names) > 5 and {masked[n] for n in names} == {None} != {plain[n] for n in names}
    assert {n: w for n, w in plain.items() if n not in names} == {n: w for n, w in masked.items() if n not in names}

def shown(found): return re.sub('data:[^"]*', '', found._repr_html_())      # without its pictures

def test_few_games_give_no_interval(asked, run, monkeypatch):
    "Nor is either network better by them"
    from maou_nb.judge.exam import FEWEST_GAMES
    games, net = np.unique(asked.game[asked.rows('ordinary')]), load_net(run.run_dir)
    for n in (1, FEWEST_GAMES - 1, FEWEST_GAMES):
        few = part_of(asked, np.flatnonzero(np.isin(asked.game, games[:n])))
        monkeypatch.setattr('maou_nb.judge.exam.read_exam', lambda path: few)
        found = exam(net, device='cpu', own_rows=False)
        assert ('moves/top1' in found.intervals) == (n == FEWEST_GAMES) and 'nan' not in repr(found) + shown(found), n
        assert ('–' in found.headline()[0][1].split(',')[0]) == (n == FEWEST_GAMES)
        if n == FEWEST_GAMES: assert len(found.against(found))
        else:
            assert not found.intervals
            with pytest.raises(ValueError, match='no figure with an interval is in both'): found.against(found)

@pytest.mark.parametrize('lost, parts', [('value', ['rules', 'mates', 'moves', 'mirror', 'own']), ('policy', ['value', 'mirror', 'own'])])
def test_a_network_without_one_of_its_heads(run, examined, lost, parts):
    net = load_net(run.run_dir)
    del net.heads[lost]
    found = exam(net, device='cpu')
    assert [*found.parts] == parts and 'is of no stage' in found.parts['own'].said[0] and found.known == {3: examined.known[3]}
    assert all(found.figures[k] == examined.figures[k] for k in ('moves/top1', 'value/brier') if k in found.figures)
    bare = exam(Net(net.backbone, dict(net.heads)), device='cpu', own_rows=False)
    assert 'not known' in repr(bare) and found.against(bare)['better'].null_count() == len(found.against(bare))

def test_an_exam_that_was_edited_is_none(examined, tmp_path):
    examined.keep(tmp_path)
    kept = json.loads((tmp_path/'exam.json').read_text())
    assert kept_exam(tmp_path) == kept
    told = kept_sentence(tmp_path)
    (tmp_path/'exam.json').write_text(json.dumps(kept | {'weights': {'3': 'a'}}))
    assert told and kept_sentence(tmp_path, {'3': 'a'}) == told and 'of earlier weights' in kept_sentence(tmp_path, {'3': 'b'})
    (tmp_path/'exam.json').write_text(json.dumps(kept))
    exam_of, top1 = kept['exam'], lambda v: {'figures': kept['figures'] | {'moves/top1': v}}
    for odd in (top1(7.5), top1(True), top1('0.4'), top1(-0.1), top1(None), {'figures': {}}, {'exam': exam_of | {'version': [1]}},
                {'exam': exam_of | {'sha256': ''}}, {'exam': exam_of | {'version': True}}, {'exam': 3}, {'left_out': {'value': ['x']}}):
        (tmp_path/'exam.json').write_text(json.dumps(kept | odd))
        assert kept_exam(tmp_path) is None, odd
    (tmp_path/'exam.json').write_text('[1]')
    assert kept_exam(tmp_path) is None

def test_every_door_is_the_same_exam(run, examined):
    for of in (run.run_dir, run.checkpoint(3), load_net(run.run_dir)):
        found = exam(of, device='cpu', own_rows=False)
        assert found.figures['moves/top1'] == examined.figures['moves/top1'] and ('reach' in found.parts) == (of == run.run_dir)

def test_networks_are_examined_in_what_they_have(run):
    assert [*exam(run, stage=1, own_rows=False).parts] == ['reach']
    second = exam(run, stage=2, own_rows=False)
    assert [*second.parts] == ['rules', 'mirror'] and 'taken for a move' in second.parts['rules'].rows[0]
    net = load_net(run.run_dir)
    policy = exam(Net(net.backbone, {'policy': net.heads['policy'], 'value': net.heads['value']}), own_rows=False)
    assert [*policy.known.values()] == ['not known, as a network without its checkpoint does not tell']
    assert policy.of == 'ResNet' and 'reach' not in policy.parts

def test_what_a_run_held_out_stands_apart(examined):
    own = examined.parts['own']
    assert own.figures['brier_ratio'] > 0 and 'not of the exam' in own.said[0] and own.rows

def exam_shard(asked, folder):
    "Shards of stage 3 whose rows are the exam's ordinary positions"
    at = asked.rows('ordinary')
    one = lambda values, of: pa.array([[v] for v in values], pa.list_(of))
    result, n = asked.result[at], len(at)
    table = pa.table({
        'id': position_ids(asked.boards[at], asked.hands[at]), 'boardIdPositions': fixed_lists(asked.boards[at]),
        'piecesInHand': fixed_lists(asked.hands[at]), 'legalMoves': fixed_bytes(np.packbits(asked.legal()[at], axis=1, bitorder='little')),
        'moveLabels': one(asked.played[at].tolist(), pa.uint16()), 'moveCounts': one([1.]*n, pa.float32()),
        'moveWins': one(result.tolist(), pa.float32()), 'count': np.ones(n, np.uint32), 'wins': result.astype(np.float32),
        'evalMean': pa.array(asked.eval[at].astype(np.float32), from_pandas=True), 'fold': (asked.game[at] % FOLDS).astype(np.uint8),
        'game': asked.game[at], 'ply': asked.ply[at].astype(np.uint16)})
    folder.mkdir()
    write_manifest(folder, [write_shard(folder/'rows.feather', table, 3, 'the exam')], stage=3, prepared_from='the exam')
    return str(folder)

def test_who_was_trained_on_the_exam_is_told(asked, shards, tmp_path):
    data = exam_shard(asked, tmp_path/'stage3')
    cheat = learn_multi_stage(stage=3, run_dir=tmp_path/'run', stage3_data_path=data, **TINY,
                              stage3_validation_data_path=shards['stage3_data_path'])
    found = exam(cheat, device='cpu')
    assert 'trained on' in found.known[3] and 'none' not in found.known[3], found.known
    assert found.known[3] in found._repr_html_()

def test_copies_of_its_games_would_be_known(asked):
    assert len(copied_games(asked.marks, asked.marks)) == len(asked.marks.games) > 500

def test_it_is_quick(run):
    read_exam()
    began = time.process_time()
    exam(run, device='cpu')
    assert time.process_time() - began < 20

# --- what is said of what cannot be
def test_odd_inputs_are_answered_in_a_sentence(run, tmp_path):
    (tmp_path/'no.feather').write_bytes(b'nothing')
    pa.ipc.new_file(tmp_path/'other.feather', pa.schema([('a', pa.int8())])).close()
    for call, words in ((lambda: exam('nowhere'), 'nowhere does not exist'), (lambda: exam(run, stage=4), '4'),
                        (lambda: exam(run, device='quantum'), "device='quantum' cannot be used"), (lambda: exam(7), '7'),
                        (lambda: exam(run, positions='nowhere'), 'nowhere does not exist'),
                        (lambda: exam(run, positions=tmp_path/'no.feather'), 'cannot be read'),
                        (lambda: exam(run, positions=tmp_path/'other.feather'), 'holds no positions of an exam'),
                        (lambda: check_page('a.pdf'), 'ends in .html')):
        with pytest.raises((ValueError, OSError)) as e: call()
        assert words in said(e)
    with pytest.raises(TypeError) as e: exam()
    said(e)

def exam_file(path, **changed):
    "The exam with other columns, or, `about`, another note"
    table = pa.ipc.open_file(EXAM).read_all()
    note, some = json.loads(table.schema.metadata[b'maou_nb_exam']), np.flatnonzero(np.array(table['kind']) > 0)[::300]
    note, table = note | changed.pop('about', {}), table.take(some)
    for name, values in changed.items(): table = table.set_column(table.column_names.index(name), name, values)
    with pa.ipc.new_file(path, table.schema.with_metadata({b'maou_nb_exam': json.dumps(note)})) as out: out.write(table)
    return path

def hostile(table):
    "What is changed in an exam, and what is said of it"
    n, at = len(table), lambda name, value, kind=None: pa.array([value, *table[name].to_pylist()[1:]], kind or table[name].type)
    first = lambda name, value, place=0: [v if i != place else value for i, v in enumerate(table[name].to_pylist()[0])]
    yield dict(about={'version': '<b>'}), 'has the version'
    yield dict(about={'labels': 'theirs'}), 'has labels'
    for marks in (None, {}, {'games': '!', 'numbers': 3}, {'games': 'AAAAAAAAAAA=', 'numbers': ''}):
        yield dict(about={'marks': marks}), 'its marks are no games'
    yield dict(kind=pa.array(['x']*n)), 'has a column kind of string, and uint8 was expected'
    yield dict(ply=pa.array([None]*n, pa.uint16())), 'ply in which values are missing'
    yield dict(kind=at('kind', 9)), 'position 0: its kind is 9'
    for label in (1496, -5, 0): yield dict(played=at('played', label)), f'its move has the label {label}, which is not legal there'
    yield dict(played=at('played', -1)), 'no move was played in it'
    yield dict(result=at('result', 7.)), 'its result is 7'
    yield dict(eval=at('eval', math.inf)), 'has no end'
    yield dict(mate=at('mate', 2), mating=at('mating', [int(table['played'][0].as_py())])), 'mates in an odd number'
    yield dict(mate=at('mate', 1)), 'it is a mate in 1 by 0 moves'
    yield dict(mate=at('mate', 1), mating=at('mating', [-1])), 'a move that mates in it is not legal'
    for code in (29, 200, 8): yield dict(boardIdPositions=at('boardIdPositions', first('boardIdPositions', code, 40))), 'it cannot be'
    yield dict(piecesInHand=at('piecesInHand', first('piecesInHand', 200))), 'it cannot be'

def test_an_exam_is_looked_at_before_it_is_believed(tmp_path):
    table = pa.ipc.open_file(exam_file(tmp_path/'plain.feather')).read_all()
    assert len(read_exam(tmp_path/'plain.feather')) == 15
    for i, (changed, words) in enumerate(hostile(table)):
        with pytest.raises(FileError) as e: read_exam(exam_file(tmp_path/f'{i}.feather', **changed))
        assert words in said(e) and 'tools/make_exam.py wrote was expected' in said(e), (changed, said(e))

def part_of(asked, at):
    arrays = {k: v[at] for k, v in vars(asked).items() if isinstance(v, np.ndarray)}
    return replace(asked, **arrays, mating=[asked.mating[i] for i in at])

def test_an_exam_of_one_kind_alone_or_of_one_game(asked, run, monkeypatch):
    net = load_net(run.run_dir)
    for kind, parts in (('rules', ['rules']), ('mate', ['mates']), ('ordinary', ['rules', 'moves', 'value', 'mirror'])):
        few = part_of(asked, asked.rows(kind)[:3] if kind != 'ordinary' else asked.rows(kind)[:1])
        monkeypatch.setattr('maou_nb.judge.exam.read_exam', lambda path: few)
        found = exam(net, device='cpu', own_rows=False)
        assert [*found.parts] == parts and 'nan' not in shown(found), kind

def test_answers_that_are_no_numbers_are_no_answers(run):
    "A network that diverged would have every move right: nothing is greater than what is no number"
    for head in ('policy', 'value'):
        net = load_net(run.run_dir)
        torch.nn.init.constant_([*net.heads[head].parameters()][-1], math.nan)
        with pytest.raises(ValueError, match=f'its head {head} gives no numbers for 4,310 of 4,310 positions') as e: exam(net, device='cpu')
        said(e)

def test_whether_a_network_knew_the_games_is_never_left_out(run):
    net = load_net(run.run_dir)
    bare = exam(Net(net.backbone, dict(net.heads)), device='cpu')
    assert 'not known' in bare.known[3] and 'Seen in training: not known' in repr(bare)

def test_a_temperature_at_its_end_is_no_temperature():
    from maou_nb.judge.exam import ExamPart, _halves
    rng = np.random.default_rng(0)
    part, games = ExamPart('value', []), np.arange(400).astype(np.uint64)
    _halves(part, rng.normal(0, 3, 400), (rng.random(400) > 0.5).astype(float), games)
    assert 'no better than one that always says a half' in part.said[0]
    alone = ExamPart('value', [])
    _halves(alone, np.zeros(3), np.ones(3), np.zeros(3, np.uint64))
    assert not alone.said and not alone.figures

def test_a_network_without_any_of_the_heads(run, tmp_path):
    net = load_net(run.run_dir)
    with pytest.raises(ValueError) as e: exam(Net(net.backbone, {'other': net.heads['value']}))
    assert 'other' in said(e)

def test_a_head_that_is_only_called_alike_is_left_out_and_said(run):
    net = load_net(run.run_dir)
    width = net.heads['value'](net.backbone(torch.zeros(1, 81, dtype=torch.uint8), torch.zeros(1, 14, dtype=torch.uint8))).shape
    assert width == (1,)
    class Classes(torch.nn.Module):
        def __init__(self, wide): super().__init__(); self.of, self.wide = net.heads['value'], wide
        def forward(self, x): return self.of(x)[:, None].expand(-1, self.wide)
    one = exam(Net(net.backbone, {'policy': net.heads['policy'], 'value': Classes(1)}), own_rows=False, device='cpu')
    assert 'value/brier' in one.figures and not one.left_out
    many = exam(Net(net.backbone, {'policy': net.heads['policy'], 'value': Classes(51)}), own_rows=False, device='cpu')
    assert 'value' not in many.parts and 'value' not in many.heads and 'Its head value was not examined: it gives (51,)' in repr(many)
    assert many.as_json()['left_out'] == {'value': [51]} and json.dumps(many.as_json())
    with pytest.raises(ValueError, match=re.escape('the heads policy (7,), value (51,): one of')) as e:
        exam(Net(net.backbone, {'policy': Classes(7), 'value': Classes(51)}), own_rows=False, device='cpu')
    said(e)

def test_an_exam_that_fails_loses_no_run(shards, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr('maou_nb.front.learn.exam', lambda result: (_ for _ in ()).throw(ValueError('it is out of paper')))
    done = learn_multi_stage(stage=1, run_dir=tmp_path/'run', exam_after=True, **TINY, stage1_data_path=shards['stage1_data_path'])
    assert done.stages_completed and 'no exam was held: it is out of paper' in capsys.readouterr().out
    assert not (tmp_path/'run'/'exam.json').exists()

def test_a_stage_that_is_not_there_names_those_that_are(run, tmp_path, capfd):
    for of in (run, run.run_dir):
        with pytest.raises(ValueError, match='1, 2, 3') as e: exam(of, stage=7)
        assert '7' in said(e)
    with pytest.raises(ValueError, match='is of stage 3, so stage=3 was expected'): exam(run.checkpoint(3), stage=7)
    assert cli.main(['exam', run.run_dir, '--stage', '7', '--page', str(tmp_path/'e.html')]) == 1
    assert 'has the stages 1, 2, 3, one of which was expected' in capfd.readouterr().err

def test_the_maker_of_an_exam_wants_games(tmp_path):
    words = [sys.executable, 'tools/make_exam.py', str(tmp_path/'nowhere'), '--version', '9', '--out', str(tmp_path/'x.feather')]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count('\n') == 1 and 'this is no folder' in done.stderr and 'expected' in done.stderr
    make = runpy.run_path(str(ROOT/'tools'/'make_exam.py'))['make']      # a process each would cost its imports
    for folder, why in ((tmp_path, 'no game of folds 0 to 9 is there'), (GAMES, 'in samples/')):
        with pytest.raises(SystemExit) as e: make([folder], tmp_path/'x.feather', 9)
        assert why in said(e) and 'expected' in said(e) and not (tmp_path/'x.feather').exists()

# --- the command
def test_the_command(run, tmp_path, capfd):
    assert cli.main(['exam', run.run_dir, '--page', str(tmp_path/'e.html'), '--device', 'cpu', '--own-rows=false']) == 0
    told = json.loads(capfd.readouterr().out)
    assert told['exam']['sha256'] == SHA256 and 'moves/top1' in told['figures'] and (tmp_path/'e.html').exists()
    assert cli.main(['exam', 'nowhere', '--page', 'x.pdf']) == 1
    assert 'ends in .html' in capfd.readouterr().err

def test_rows_of_no_known_ply_are_of_no_range(run, shards, monkeypatch):
    "Of loose positions some formats know no plies"
    net, source = load_net(run.run_dir), FileSource(shards['stage3_data_path'], STAGES['3'].columns)
    real = exam_room.plies_of(source)
    every = exam_room._sums_by_ply(net, STAGES['3'], source, None)
    monkeypatch.setattr(exam_room, 'plies_of', lambda source: np.where(np.arange(len(real)) % 2, real, NO_PLY).astype(real.dtype))
    half = exam_room._sums_by_ply(net, STAGES['3'], source, None)
    assert 0 < half['rows'].sum() < 0.6*every['rows'].sum() and (half['rows'] <= every['rows'][:len(half['rows'])]).all()
