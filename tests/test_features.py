"What a net is shown beside the pieces, against cshogi's planes for dlshogi"
import cshogi
import numpy as np
import pytest
import torch
from cshogi import CSA
from cshogi.dlshogi import make_input_features
from torch import nn

from maou_nb import OptionError, StageThresholdNotMet, learn_multi_stage, load_net, register_backbone, register_features
from maou_nb.data.board import KINDS
from maou_nb.data.random import random_positions
from maou_nb.model.backbones import (BACKBONES, Backbone, SquareEmbedding, backbone_of, flops_per_position, make_backbone,
                                     parameter_count, show_features)
from maou_nb.model.features import ATTACK_PLANES, FEATURES, AttackMaps
from maou_nb.model.heads import Net, make_heads
from maou_nb.model.onnx import onnx_bytes, onnx_differences
from maou_nb.show.boards import Position, square_name
from maou_nb.stages.rows import prepare_stage1
from maou_nb.train.checkpoints import CheckpointError, load_tensors, save_tensors
from maou_nb.train.options import LearnConfig
from options import variants
from samples import GAMES, thinned

@pytest.fixture(scope='module')
def shards(tmp_path_factory):
    out = tmp_path_factory.mktemp('stage1'); prepare_stage1(out)
    return str(out)

THEIRS = ('P', 'L', 'N', 'S', 'B', 'R', 'G', 'K', '+P', '+L', '+N', '+S', '+B', '+R')   # dlshogi's order of kinds
ATTACKS = [14 + THEIRS.index(k) for k in KINDS]          # planes of its first input

def planes_of_dlshogi(board):
    "bool (81, 35) in the order of `ATTACK_PLANES` and of our squares"
    one, two = np.zeros((1, 62, 9, 9), np.float32), np.zeros((1, 57, 9, 9), np.float32)
    make_input_features(board, one[0], two[0])
    chosen = [*ATTACKS, *(31 + p for p in ATTACKS), 28, 29, 30, 31 + 28, 31 + 29, 31 + 30]
    planes = np.concatenate([one[0, chosen], two[0, 56:]])
    return planes.transpose(2, 1, 0).reshape(81, -1) > 0      # theirs lie file by file

def differing(sfens):
    "How many positions differ in each plane"
    both = [Position.from_sfen(s) for s in sfens]
    ours = AttackMaps()(*(torch.tensor(np.stack([getattr(p, n) for p in both])) for n in ('board', 'hands'))).numpy()
    theirs = np.stack([planes_of_dlshogi(cshogi.Board(s)) for s in sfens])
    assert theirs.any((0, 1)).sum() >= 34      # some plane may never be set in few positions
    return dict(zip(ATTACK_PLANES, (ours != theirs).any(1).sum(0).tolist()))

def sfens_of_games(most):
    "Positions of real games in the order they were played, both colours, up to `most`"
    found = []
    for path in sorted(GAMES.glob('*.csa')):
        for g in CSA.Parser.parse_file(str(path)):
            board = cshogi.Board(g.sfen)
            for move in g.moves:
                found.append(board.sfen()); board.push(move)
            if len(found) >= most: return found[:most]
    return found

def test_maps_are_those_of_dlshogi():
    assert not any(differing(sfens_of_games(2000)).values())

@pytest.mark.slow
def test_maps_are_those_of_dlshogi_on_all_games():
    sfens = sfens_of_games(10**9); assert len(sfens) >= 20_000
    for i in range(0, len(sfens), 5000): assert not any(differing(sfens[i:i + 5000]).values())

CORNERS = [    # (board, plane, squares in USI)
    ('4k4/9/4+L4/9/9/9/9/9/4K4 b - 1', '+L', '5b 4b 6b 4c 6c 5d'),
    ('4k4/9/4+p4/9/9/9/9/9/4K4 b - 1', '+p', '5d 4d 6d 4c 6c 5b'),
    ('4k4/9/9/9/4P4/9/4R4/9/4K4 b - 1', 'R', '5e 5f 5h 5i 1g 2g 3g 4g 6g 7g 8g 9g'),       # stops at its own pawn and king
    ('4k4/9/9/9/9/9/4p4/4L4/4K4 b - 1', 'L', '5g'),
    ('4k4/9/9/9/9/9/9/4L4/4K4 b - 1', 'L', '5a 5b 5c 5d 5e 5f 5g'),
    ('4k4/9/N7N/9/9/9/9/9/4K4 b - 1', 'N', '8a 2a'),                                        # at the edge
    ('4k4/9/9/9/9/9/n7n/9/4K4 b - 1', 'n', '8i 2i'),
    ('4k4/9/9/9/4+B4/9/9/9/4K4 b - 1', '+B', '5d 5f 4e 6e 4d 3c 2b 1a 6d 7c 8b 9a 4f 3g 2h 1i 6f 7g 8h 9i'),
    ('4k4/9/9/9/4+r4/9/9/9/3K5 b - 1', '+r', '5a 5b 5c 5d 5f 5g 5h 5i 1e 2e 3e 4e 6e 7e 8e 9e 4d 6d 4f 6f'),
    ('4k4/9/4r4/4R4/9/9/9/9/4K4 b - 1', 'r', '5a 5b 5d 1c 2c 3c 4c 6c 7c 8c 9c'),            # no x-rays
    ('4k4/9/9/9/9/9/4R4/4R4/4K4 b - 1', 'own ≥ 2', '4h 5h 6h'),
    ('9/9/9/9/9/9/9/9/9 b - 1', 'own ≥ 1', '')]

@pytest.mark.parametrize('sfen, plane, squares', CORNERS)
def test_corner_cases(sfen, plane, squares):
    p = Position.from_sfen(sfen)
    shown = AttackMaps()(torch.tensor(p.board[None]), torch.tensor(p.hands[None]))[0, :, ATTACK_PLANES.index(plane)]
    assert {square_name(i) for i in shown.nonzero().flatten().tolist()} == {*squares.split()}

@pytest.mark.parametrize('sfen, check', [('4k4/9/9/9/9/9/9/4l4/4K4 b - 1', True), ('4k4/9/9/9/9/9/4l4/4P4/4K4 b - 1', False),
                                         ('4k4/4G4/9/9/9/9/9/9/4K4 w - 1', True), ('9/9/9/9/9/9/9/4l4/9 b - 1', False)])
def test_check_is_that_of_the_side_to_move(sfen, check):
    p = Position.from_sfen(sfen)
    shown = AttackMaps()(torch.tensor(p.board[None]), torch.tensor(p.hands[None]))[0, :, -1]
    assert shown.tolist() == [check]*81

@pytest.mark.parametrize('dtype', [torch.uint8, torch.int32, torch.int64])
def test_boards_of_any_integers(dtype):
    boards, hands = map(torch.tensor, random_positions(20))
    assert torch.equal(AttackMaps()(boards.to(dtype), hands), AttackMaps()(boards, hands))

# --- In nets and runs

def net_of(architecture, **options):
    cfg = LearnConfig(model_architecture=architecture, model_size='tiny', **options)
    backbone = backbone_of(cfg)
    return Net(backbone, make_heads(backbone.channels, ['policy', 'value'])).eval()

def variant(given):
    "In `make test` the one with most in its graph; a ResNet with the same planes is exported in test_onnx.py and test_dlshogi.py"
    return given if given.get('vit_position') == 'smolgen' else pytest.param(given, marks=pytest.mark.slow)

@pytest.mark.parametrize('given', map(variant, variants()), ids=lambda given: ' '.join(map(str, given.values())))
@pytest.mark.parametrize('precision, near', thinned([('fp32', 1e-5), ('fp16', 0.005)], 2))
def test_onnx(given, precision, near):
    net = net_of(given['model_architecture'], **{k: v for k, v in given.items() if k != 'model_architecture'})
    assert 'attacks' == LearnConfig().input_features
    assert max(onnx_differences(onnx_bytes(net, precision), net, precision).values()) < near

def test_pieces_alone_are_what_they_were():
    "The same weights in the same order, so that older checkpoints and seeds stand for the same nets"
    torch.manual_seed(1); plain = net_of('resnet', input_features='pieces').backbone
    torch.manual_seed(1); old = make_backbone('resnet', 'tiny')
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), old.state_dict().values(), strict=True))
    shown = net_of('resnet').backbone
    assert parameter_count(shown) - parameter_count(plain) == 35*48
    assert flops_per_position(shown) - flops_per_position(plain) == 2*81*35*48
    assert [p for p in shown.state_dict() if 'plane' in p] == ['stem.embedding.plane.weight']     # no table is saved

def test_own_features_and_own_backbones(shards, tmp_path):
    options = dict(stage=1, stage1_data_path=shards, gpu='cpu', stage1_threshold=0., stage1_max_epochs=1, model_size='tiny',
                   resnet_channels=8, resnet_blocks=1)
    @register_features('rows')
    class Rows(nn.Module):
        planes = 9
        def forward(self, board, hands): return torch.eye(9, device=board.device).repeat_interleave(9, 0).expand(len(board), 81, 9)
    @register_backbone('plain')
    class Plain(Backbone):
        def __init__(self, channels=8): super().__init__(channels, SquareEmbedding(channels), [nn.Identity()])
    @register_backbone('blind')
    class Blind(Backbone):
        def __init__(self, channels=8):
            super().__init__(channels, Codes(channels), [nn.Identity()])
    class Codes(nn.Module):
        def __init__(self, channels): super().__init__(); self.piece = nn.Embedding(29, channels)
        def forward(self, board, hands): return self.piece(board.int())
    try:
        learn_multi_stage(**options, input_features='rows', run_dir=tmp_path/'rows')
        assert load_net(tmp_path/'rows').backbone.stem.embedding.plane.weight.shape == (8, 9)
        own = {**options, 'resnet_channels': None, 'resnet_blocks': None}
        learn_multi_stage(**own, model_architecture='plain', run_dir=tmp_path/'plain')
        assert load_net(tmp_path/'plain').backbone.stem.plane.weight.shape == (8, 35)
        words = "input_features='attacks': a backbone is shown them by its SquareEmbedding, and Blind has none"
        with pytest.raises(OptionError, match=words):
            learn_multi_stage(**own, model_architecture='blind', run_dir=tmp_path/'blind')
        learn_multi_stage(**own, model_architecture='blind', input_features='pieces', run_dir=tmp_path/'blind')
        @register_features('odd')
        class Odd(nn.Module):
            planes = 3
            def forward(self, board, hands): return board[:, :, None]
        odd = r"input_features='odd': Odd gives \(2, 81, 1\) for two positions; .* \(2, 81, 3\), was expected"
        with pytest.raises(OptionError, match=odd): learn_multi_stage(**options, input_features='odd', run_dir=tmp_path/'odd')
        @register_features('learnt')
        class Learnt(Rows):
            def __init__(self): super().__init__(); self.scale = nn.Parameter(torch.ones(9))
            def forward(self, board, hands): return super().forward(board, hands)*self.scale
        @register_backbone('twice')
        class Twice(Backbone):
            def __init__(self, channels=8): super().__init__(channels, Both(channels), [nn.Identity()])
        class Both(nn.Module):
            def __init__(self, channels): super().__init__(); self.a, self.b = SquareEmbedding(channels), SquareEmbedding(channels)
            def forward(self, board, hands): return self.a(board, hands) + self.b(board, hands)
        learn_multi_stage(**own, model_architecture='twice', input_features='learnt', run_dir=tmp_path/'twice')
        stem = load_net(tmp_path/'twice').backbone.stem
        assert not torch.equal(stem.a.features.scale, stem.b.features.scale)      # each was trained
    finally:
        for registry, names in ((FEATURES, ('rows', 'odd', 'learnt')), (BACKBONES, ('plain', 'blind', 'twice'))):
            for name in names: registry.pop(name, None); registry.homes.pop(name, None)
    with pytest.raises(CheckpointError, match="input_features 'rows' is not known"): load_net(tmp_path/'rows')
    with pytest.raises(OptionError, match="input_features='atacks': one of pieces, attacks was expected"):
        learn_multi_stage(**options, input_features='atacks', run_dir=tmp_path/'x')

@pytest.mark.parametrize('planes', [True, -1, None, 1.])
def test_planes_that_are_no_number(planes):
    with pytest.raises(TypeError, match='planes, how many numbers a square gets, was expected'):
        register_features('none')(type('Wrong', (nn.Module,), {'planes': planes}))
    with pytest.raises(ValueError, match="' none ': a name without spaces around it was expected"):
        register_features(' none ')(type('Wrong', (nn.Module,), {'planes': 1}))

def test_shown_otherwise_afterwards():
    backbone = make_backbone('resnet', 'tiny').half()
    shown = show_features(backbone, 'attacks').stem.embedding
    assert shown.plane.weight.dtype == torch.float16
    show_features(backbone, 'pieces')
    assert shown.features is None and shown.plane is None and 'stem.embedding.plane.weight' not in backbone.state_dict()

def test_a_warm_start_of_a_run_before_this_option(shards, tmp_path):
    "It says which option differs where the tensors are another net's, and only there"
    options = dict(stage=1, stage1_data_path=shards, gpu='cpu', stage1_threshold=0., stage1_max_epochs=1, model_size='tiny',
                   resnet_channels=8, resnet_blocks=1)
    run = learn_multi_stage(**options, input_features='pieces', run_dir=tmp_path/'first').checkpoint(1)
    tensors, about = load_tensors(run)
    del about['config']['input_features']
    old = tmp_path/'old.safetensors'
    save_tensors(old, tensors, about)
    with pytest.raises(OptionError, match=r"other options \(input_features='pieces' there and 'attacks' here\), and the same would"):
        learn_multi_stage(**options, resume_backbone_from=str(old), run_dir=tmp_path/'a')
    learn_multi_stage(**options, input_features='pieces', resume_backbone_from=str(old), run_dir=tmp_path/'b')
    spoilt = bytearray(run.read_bytes()); spoilt[-1] ^= 1
    run.write_bytes(spoilt)
    with pytest.raises(OptionError, match='SHA-256') as e:
        learn_multi_stage(**options, resume_backbone_from=str(run), run_dir=tmp_path/'c')
    assert 'other options' not in str(e.value)

def test_a_run_goes_on_with_what_it_began_with(shards, tmp_path):
    options = dict(stage=1, stage1_data_path=shards, gpu='cpu', stage1_threshold=1., model_size='tiny', resnet_channels=8,
                   resnet_blocks=1, ema_decay=0.9)
    def go(folder, epochs, **more):
        try: return learn_multi_stage(**options, **more, run_dir=folder, stage1_max_epochs=epochs)
        except StageThresholdNotMet as e: return e.result
    whole = go(tmp_path/'whole', 2)
    go(tmp_path/'parts', 1); parts = go(tmp_path/'parts', 2, resume_from='latest')
    for a, b in zip(whole[1].history, parts[1].history, strict=True):
        assert a['train/loss'] == b['train/loss'] and a['train_eval/accuracy'] == b['train_eval/accuracy']
    with pytest.raises(OptionError, match='input_features: attacks → pieces'):
        go(tmp_path/'parts', 3, resume_from='latest', input_features='pieces')
