"Files for dlshogi's engines: planes and labels are cshogi's, answers the network's, and games are played through them"
import json

import numpy as np
import pytest
import torch

onnx, onnxruntime = pytest.importorskip('onnx'), pytest.importorskip('onnxruntime')
cshogi = pytest.importorskip('cshogi')

import cshogi.dlshogi as theirs
from cshogi import CSA
from rsshogi.core import Board, Move

from maou_nb import learn_multi_stage, prepare_stage3
from maou_nb.data.labels import FROM_DLSHOGI, TO_DLSHOGI, move_labels
from maou_nb.data.random import random_positions
from maou_nb.front import cli
from maou_nb.front.export import export_onnx
from maou_nb.judge.ask import load_net
from maou_nb.model.backbones import make_backbone, show_features
from maou_nb.model.dlshogi import dlshogi_bytes, dlshogi_differences, dlshogi_planes
from maou_nb.model.features import FEATURES, register_features
from maou_nb.model.heads import Net, make_heads
from maou_nb.model.onnx import OnnxError
from maou_nb.show.boards import Position
from samples import GAMES, ONE_FILE, said, thinned

SHAPES = [('input1', 'tensor(float)', (62, 9, 9)), ('input2', 'tensor(float)', (None, 9, 9)),
          ('output_policy', 'tensor(float)', (2187,)), ('output_value', 'tensor(float)', (1,))]
KINDS = {'resnet': dict(channels=24, blocks=3, squeeze_excitation=True), 'mlp-mixer': dict(embed_dim=32, num_layers=2),
         'vit': dict(embed_dim=32, num_layers=2, num_heads=4)}
KINDS |= {'nested': dict(channels=24, blocks=3, block='nested'),
          'smolgen': dict(embed_dim=32, num_layers=2, num_heads=4, position='smolgen')}
SIZES = {'resnet': dict(resnet_channels=32, resnet_blocks=3), 'mlp-mixer': dict(mixer_embed_dim=32, mixer_num_layers=3),
         'vit': dict(vit_embed_dim=32, vit_num_layers=3, vit_position='relative')}
SIZES |= {'nested': dict(resnet_channels=32, resnet_blocks=3, resnet_block='nested'),
          'smolgen': dict(vit_embed_dim=32, vit_num_layers=3, vit_position='smolgen')}
OF = {'nested': 'resnet', 'smolgen': 'vit'}      # the architecture that these are of

@pytest.fixture(autouse=True)
def as_it_was():
    "cshogi's number of planes is a switch for the whole process"
    yield
    theirs.use_nyugyoku_features(False)

def shown(board, planes):
    "What cshogi shows of its board"
    theirs.use_nyugyoku_features(planes == 119)
    first, second = np.zeros((62, 9, 9), np.float32), np.zeros((planes, 9, 9), np.float32)
    theirs.make_input_features(board, first, second)
    return first, second

def played(paths):
    "cshogi's board before each move of games, and that move"
    for path in paths:
        for game in CSA.Parser.parse_file(str(path)):
            board = cshogi.Board(game.sfen)
            for move in game.moves:
                yield board, move
                board.push(move)

def ours(boards):
    "Boards, hands and turns of SFENs"
    views = [Position.from_sfen(s) for s in boards]
    return (np.stack([v.board for v in views]), np.stack([v.hands for v in views]), np.array([s.split()[1] == 'w' for s in boards], int))

def differ(games, every=1):
    "Positions compared, labels compared, and how many of each colour"
    sfens, want, colours, labels = [], {57: [], 119: []}, [0, 0], 0
    def compare():
        boards, hands, turns = ours(sfens)
        for planes, found in want.items():
            for mine, other in zip(dlshogi_planes(boards, hands, turns, planes), map(np.stack, zip(*found))):
                np.testing.assert_array_equal(mine, other)
            found.clear()
        sfens.clear()
    for n, (board, _) in enumerate(played(games)):
        if n % every: continue
        sfens.append(board.sfen())
        colours[board.turn] += 1
        for planes, found in want.items(): found.append(shown(board, planes))
        legal = list(board.legal_moves)
        mine = move_labels([int(Move.from_usi(cshogi.move_to_usi(m))) for m in legal], board.turn)
        assert TO_DLSHOGI[mine].tolist() == [theirs.make_move_label(m, board.turn) for m in legal]
        labels += len(legal)
        if len(sfens) == 500: compare()
    if sfens: compare()
    return sum(colours), labels, colours

def test_planes_and_labels_are_cshogis():
    "Both variants, both colours, on positions of real games"
    positions, labels, colours = differ(sorted(GAMES.glob('*.csa'))[:1], every=3)
    assert positions > 1000 and labels > 40_000 and min(colours) > 400

@pytest.mark.slow
def test_planes_and_labels_of_all_games():
    positions, labels, colours = differ(sorted(GAMES.glob('*.csa')))
    assert positions >= 20_000 and labels > 500_000 and min(colours) > 9000

ENTERED = ['K+R+R+P+P+P+P+P+P/+P+P+P6/9/9/9/9/9/9/k8 b 2B4G4S4N2L6P4p2l 1',
           'k8/9/9/9/9/9/6+l+l+l/1+p+p+p+p+p+p+p+p/K+r+r+b+b4 w 4g4s4nl9p 1',
           'K+R+R+P+P+P+P+P+P/+P+P7/9/9/9/9/9/9/k8 b 4G2B4S4N4L10p 1',
           'K+R+P+P+P+P+P+P+P/+P+P7/9/9/9/9/9/9/k8 b BGS8Prb3g3s4n4l 1',
           '1K1+P5/4G4/2+B+R5/9/9/9/3+p+p+p3/1+s2k2+b1/+r8 w 2G3S4N4L10P2pg 1', '4k4/9/9/9/9/9/9/9/4K4 w R2B3G10Prg4s4n4l8p 1',
           '4k4/9/9/9/4R4/9/9/9/4K4 w - 1', '4k4/4G4/4P4/9/9/9/9/9/4K4 w - 1']

@pytest.mark.parametrize('sfen', [f'{place} {turn} {rest}' for e in ENTERED for place, _, rest in [e.split(' ', 2)] for turn in 'bw'])
def test_entered_kings_full_hands_and_checks(sfen):
    "What games seldom reach: declarations of both sides, more than 8 pawns in hand"
    board = cshogi.Board(sfen)
    for planes in (57, 119):
        for mine, other in zip(dlshogi_planes(*ours([sfen]), planes), shown(board, planes)): np.testing.assert_array_equal(mine[0], other)

@pytest.fixture(scope='module')
def stage3(tmp_path_factory):
    "Shards of 50 games"
    prepare_stage3(ONE_FILE, out := tmp_path_factory.mktemp('games')/'stage3')
    return out

def far_from_new(name, features):
    "A network whose weights are far from where they began, and which prefers moves clearly"
    torch.manual_seed(1)
    backbone = show_features(make_backbone(OF.get(name, name), 'tiny', **KINDS[name]), features)
    net = Net(backbone, make_heads(backbone.channels, ('policy', 'value')))
    with torch.no_grad():
        for p in net.parameters(): p.add_(0.1*torch.randn_like(p))
        net.heads['policy'].classes[0].weight.mul_(4)
        for seed in range(2): net.train()(*map(torch.from_numpy, random_positions(64, seed)))
    return net.eval()

@pytest.fixture(scope='module')
def files(tmp_path_factory):
    "(architecture, features, planes) → (the network, its files), made once"
    made = {}
    def get(*key, precisions=('fp32', 'fp16')):
        if key not in made:
            net = far_from_new(*key[:2])
            made[key] = net, export_onnx(net, tmp_path_factory.mktemp('nets'), precisions, target='dlshogi', planes=key[2])
        return made[key]
    return get

@pytest.fixture(scope='module')
def trained(stage3, tmp_path_factory):
    "(architecture, features, planes) → (a network that was trained on games, its files)"
    runs = {}
    def get(name, features, planes):
        if (name, features) not in runs:
            runs[name, features] = learn_multi_stage(
                stage=3, model_architecture=OF.get(name, name), model_size='tiny', **SIZES[name], gpu='cpu', epoch=3, seed=1,
                input_features=features, learning_ratio=0.01, stage3_batch_size=256,
                run_dir=tmp_path_factory.mktemp('run')/'run', stage3_data_path=stage3)
        run = runs[name, features]
        return load_net(run.run_dir), export_onnx(run, tmp_path_factory.mktemp('nets'), target='dlshogi', planes=planes)
    return get

@pytest.fixture(scope='module')
def positions():
    "SFENs of games that no network was trained on, with cshogi's planes and labels of legal moves"
    boards = [cshogi.Board(board.sfen()) for n, (board, _) in enumerate(played([GAMES/'selfplay-1.csa'])) if n % 11 == 0][:300]
    return boards, {planes: [np.stack(a) for a in zip(*(shown(b, planes) for b in boards))] for planes in (57, 119)}

def session(path): return onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])

def softmax(x): return np.exp(x - x.max())/np.exp(x - x.max()).sum()

def fukauraou(logits, temperature=1.):
    "The softmax as engines take it: the search for the largest begins at 0 (`softmax_temperature_with_normalize`)"
    x = (logits/np.float32(temperature)).astype(np.float32)
    e = np.exp(x - max(np.float32(0), x.max()))
    return e/e.sum()

def answers_alike(net, made, planes, positions):
    "Largest difference of probabilities in fp32 and fp16: onnxruntime on cshogi's planes, torch on our boards"
    boards, inputs = positions
    codes, hands, _ = ours([b.sfen() for b in boards])
    held = hands.clip(max=[8] + [18]*6 + [8] + [18]*6).astype(np.uint8)
    with torch.no_grad(): want = net(torch.from_numpy(codes), torch.from_numpy(held))
    assert set(made.paths) == {'fp32', 'fp16'} and made.opset == 13 and 'probabilities, opset 13' in repr(made)
    worst, top = [], []
    for precision, path in made.paths.items():
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(str(path))
        assert model.ir_version == 7 and [(o.domain, o.version) for o in model.opset_import] == [('', 13)]
        run = session(path)
        assert [(e.name, e.type, (e.shape[0], *e.shape[1:])) for e in (*run.get_inputs(), *run.get_outputs())] == [
            (n, t, ('batch', *(planes if d is None else d for d in s))) for n, t, s in SHAPES]
        policy, value = run.run(['output_policy', 'output_value'], dict(zip(('input1', 'input2'), inputs[planes])))
        assert (policy.dtype, value.dtype, policy.shape, value.shape) == (np.float32, np.float32, (len(boards), 2187), (len(boards), 1))
        assert (policy[:, FROM_DLSHOGI < 0] == -1e4).all() and policy[:, TO_DLSHOGI].min() >= -40.001
        off = [np.abs(value[:, 0] - want['value'].sigmoid().numpy()).max()]
        for board, logits, own in zip(boards, policy, want['policy'].numpy()):
            labels = [theirs.make_move_label(m, board.turn) for m in board.legal_moves]
            expected = softmax(own[FROM_DLSHOGI[labels]])
            off.append(np.abs(fukauraou(logits[labels]) - expected).max())
            top.append(expected.max())
            assert np.isfinite(fukauraou(logits[labels], 0.5)).all()
        assert max(made.differences[precision].values()) < 1e-2
        worst.append(float(max(off)))
    assert max(top) > 0.2      # moves are told apart
    return worst

@pytest.mark.parametrize('name, features, planes', thinned([
    ('resnet', 'attacks', 57), ('mlp-mixer', 'pieces', 119), ('vit', 'attacks', 119),
    ('nested', 'attacks', 57), ('smolgen', 'attacks', 119)], 5))
def test_answers_on_cshogis_planes(name, features, planes, files, positions):
    fp32, fp16 = answers_alike(*files(name, features, planes), planes, positions)
    assert fp32 <= 1e-5 and fp16 <= 5e-3

@pytest.mark.slow
@pytest.mark.parametrize('planes', [57, 119])
@pytest.mark.parametrize('features', ['pieces', 'attacks'])
@pytest.mark.parametrize('name', KINDS)
def test_answers_of_trained_networks(name, features, planes, trained, positions):
    fp32, fp16 = answers_alike(*trained(name, features, planes), planes, positions)
    print(f'{name}, {features}, {planes} planes: {fp32:.1e} in fp32, {fp16:.1e} in fp16')
    assert fp32 <= 1e-5 and fp16 <= 5e-3

def test_one_position_at_a_time_is_the_same(files, positions):
    run, inputs = session(files('resnet', 'attacks', 57)[1].paths['fp32']), positions[1][57]
    all_at_once = run.run(None, dict(zip(('input1', 'input2'), inputs)))
    for n in (1, 2, 33):
        for some, every in zip(run.run(None, dict(zip(('input1', 'input2'), (a[:n] for a in inputs)))), all_at_once):
            np.testing.assert_allclose(some, every[:n], atol=1e-4)

def play(run, planes, games, temperature=1., most=320):
    "`games` played side by side by an engine that knows cshogi and dlshogi's interface alone; USI moves of each"
    rng, boards, moves = np.random.default_rng(7), [cshogi.Board() for _ in range(games)], [[] for _ in range(games)]
    def over(b): return b.is_game_over() or b.is_nyugyoku() or b.is_draw() != cshogi.NOT_REPETITION
    while going := [i for i, b in enumerate(boards) if len(moves[i]) < most and not over(b)]:
        inputs = [np.stack(a) for a in zip(*(shown(boards[i], planes) for i in going))]
        policy, value = run.run(['output_policy', 'output_value'], {'input1': inputs[0], 'input2': inputs[1]})
        assert np.isfinite(policy).all() and ((value >= 0) & (value <= 1)).all()
        for i, logits in zip(going, policy):
            legal = list(boards[i].legal_moves)
            odds = fukauraou(logits[[theirs.make_move_label(m, boards[i].turn) for m in legal]], temperature)
            move = legal[int(rng.choice(len(legal), p=odds.astype(float)/odds.astype(float).sum()))]
            moves[i].append(cshogi.move_to_usi(move))
            boards[i].push(move)
    return moves

def judged(games):
    "Games replayed by another library, which refuses what is not legal; how many plies, and how many labels of moves"
    labels = set()
    for moves in games:
        board = Board()
        for usi in moves:
            legal = {str(m): m for m in board.legal_moves()}
            assert usi in legal, (board.to_sfen(), usi)
            labels.add(int(move_labels(int(legal[usi]), board.turn.value)))
            board.apply_move(legal[usi])
    return sum(map(len, games)), len(labels)

def test_a_few_games_through_the_file(files):
    games = play(session(files('resnet', 'attacks', 57)[1].paths['fp16']), 57, 4)
    plies, labels = judged(games)
    assert plies > 100 and labels > 80 and len({*map(tuple, games)}) == 4

@pytest.mark.slow
def test_a_hundred_games_through_the_file(trained):
    plies, labels = judged(play(session(trained('vit', 'attacks', 119)[1].paths['fp32']), 119, 100))
    assert plies > 5000 and labels > 600

def test_half_precision_is_half(files):
    "Weights are in 16 bits, what goes in and out in 32"
    model = onnx.load(str(files('resnet', 'attacks', 57)[1].paths['fp16']))
    large = {w.data_type for w in model.graph.initializer if len(w.dims) > 1 and np.prod(w.dims) > 100}
    assert large == {onnx.TensorProto.FLOAT16}
    assert {e.type.tensor_type.elem_type for e in (*model.graph.input, *model.graph.output)} == {onnx.TensorProto.FLOAT}

def test_the_pawns_that_are_not_shown(files):
    "A ninth pawn in hand changes nothing: no plane tells of it; an eighth does"
    run = session(files('mlp-mixer', 'pieces', 119, precisions='fp32')[1].paths['fp32'])
    def asked(pawns):
        board = cshogi.Board(f'4k4/9/9/9/9/9/9/9/4K4 b {pawns}P 1')
        return run.run(['output_value'], {f'input{i}': a[None] for i, a in enumerate(shown(board, 57 + 62), 1)} )[0]
    values = [float(asked(n)[0, 0]) for n in (7, 8, 9)]
    assert values[1] == values[2] != values[0]

def test_from_the_command_line(stage3, tmp_path, capfd):
    run = learn_multi_stage(stage=3, model_size='tiny', resnet_channels=8, resnet_blocks=1, gpu='cpu', epoch=1,
                            run_dir=tmp_path/'run', stage3_data_path=stage3)
    capfd.readouterr()
    asked = ['--target', 'dlshogi', '--planes', '119', '--precisions', 'fp16']
    assert cli.main(['export', str(run.run_dir), str(tmp_path/'nets'), *asked]) == 0
    made = json.loads(capfd.readouterr().out)
    model = onnx.load(made['paths']['fp16'])
    about = json.loads({m.key: m.value for m in model.metadata_props}['maou_nb'])
    assert (about['target'], about['planes'], about['precision'], about['architecture'], about['outputs']) == (
        'dlshogi', 119, 'fp16', 'resnet', ['output_policy', 'output_value'])
    assert 'input2 float32 (N, 119, 9, 9)' in model.doc_string and about['figures']
    assert (made['target'], made['opset'], list(made['paths'])) == ('dlshogi', 13, ['fp16'])
    assert session(made['paths']['fp16']).get_inputs()[1].shape[1:] == [119, 9, 9]
    for argv, says in ((['--target', 'gps'], '--target=gps: maou_nb or dlshogi was expected'),
                       (['--target', 'dlshogi', '--planes', '58'], '--planes=58: 57 or 119 was expected'),
                       (['--planes', '57'], "--planes=57: none, as --target=maou_nb takes board and hand, was expected")):
        assert cli.main(['export', str(run.run_dir), str(tmp_path/'none'), *argv]) == 1
        assert says in capfd.readouterr().err
    assert not (tmp_path/'none').exists()

@pytest.fixture
def small():
    "A new network with these heads"
    def make(heads=('policy', 'value')): return Net(make_backbone('resnet', 'tiny', channels=8, blocks=1), make_heads(8, heads)).eval()
    return make

def test_what_cannot_be_such_a_file(small, tmp_path):
    @register_features('far')
    class Far(torch.nn.Module):
        "Whether a square lies in the three far rows"
        planes = 1
        def forward(self, board, hands): return (torch.arange(81) < 27).expand_as(board)[:, :, None]
    try:
        camp = small()
        show_features(camp.backbone, 'far')
    finally: FEATURES.pop('far'), FEATURES.homes.pop('far')
    bare, beside = small(), small()
    class Own(torch.nn.Module):
        "Codes as numbers"
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(8))
        def forward(self, board, hands): return (board[:, :, None]*self.weight).transpose(1, 2).unflatten(2, (9, 9))
    bare.backbone.stem = Own()
    class Twice(torch.nn.Module):
        def __init__(self, stem):
            super().__init__()
            self.stem = stem
        def forward(self, board, hands): return self.stem(board, hands) + board[:, :8, None, None]
    beside.backbone.stem = Twice(beside.backbone.stem)
    for net, says in ((camp, 'not Far, which this network is shown'), (bare, 'ResNet has none'),
                      (beside, 'otherwise than by a SquareEmbedding'),
                      (small(['legal_moves']), 'no policy and no value; a network of stage 3'), (small(['policy']), 'has no value')):
        with pytest.raises(OnnxError, match=says) as e: export_onnx(net, tmp_path/'out', target='dlshogi')
        said(e)
    assert not (tmp_path/'out').exists()

def test_younger_operations_stay_as_they_are(small):
    "A backbone of one's own whose operations are younger than opset 13 (of bits) is written in the exporter's, and said to be"
    net = small()
    class Odd(torch.nn.Module):
        def forward(self, x): return x + (x.int() & 1)
    net.backbone.blocks.append(Odd())
    model = dlshogi_bytes(net)
    assert onnx.load_from_string(model).opset_import[0].version == 18
    assert max(dlshogi_differences(model, net).values()) < 1e-5

def test_positions_of_ones_own(small, tmp_path):
    made = export_onnx(small(), tmp_path, 'fp32', random_positions(100, seed=3), target='dlshogi')
    assert made.differences['fp32']['policy'] < 1e-5
    with pytest.raises(ValueError, match='boards') as e: export_onnx(small(), tmp_path, 'fp32', (1, 2), target='dlshogi')
    said(e)

def test_a_file_that_answers_otherwise_is_never_seen(files, small, tmp_path, monkeypatch):
    model = files('resnet', 'attacks', 57)[1].paths['fp32'].read_bytes()
    monkeypatch.setattr('maou_nb.model.dlshogi.dlshogi_bytes', lambda *a: model)
    with pytest.raises(OnnxError, match='answers otherwise than the network') as e: export_onnx(small(), tmp_path/'out', target='dlshogi')
    said(e)
    assert not (tmp_path/'out').exists()
