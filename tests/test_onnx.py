"ONNX files: what they answer, in every architecture and precision, what they say of themselves, and when none is written"
import json, os, re, subprocess, sys

import numpy as np
import pytest
import torch

onnx, onnxruntime = pytest.importorskip('onnx'), pytest.importorskip('onnxruntime')

from maou_nb import load_run
from maou_nb.data.random import random_positions
from maou_nb.data.shards import find_shards, fixed_array, read_shard
from maou_nb.front.export import export_onnx
from maou_nb.judge.ask import load_net
from maou_nb.model.backbones import make_backbone
from maou_nb.model.heads import Net, make_heads
from maou_nb.model.onnx import OnnxError, TOLERANCES, onnx_problem, write_onnx
from samples import ROOT, said, thinned

KINDS = {'gated': ('resnet', dict(channels=16, blocks=2, squeeze_excitation=True)),
         'mixer': ('mlp-mixer', dict(embed_dim=24, num_layers=2, dropout=0.1)),
         'nested': ('resnet', dict(channels=16, blocks=2, block='nested', squeeze_excitation=True)),
         'vit': ('vit', dict(embed_dim=24, num_layers=2, num_heads=2, dropout=0.1)),
         'relative': ('vit', dict(embed_dim=24, num_layers=2, num_heads=2, position='relative')),
         'smolgen': ('vit', dict(embed_dim=24, num_layers=2, num_heads=2, dropout=0.1, position='smolgen'))}

def net_of(kind, heads=('policy', 'value')):
    "A net with weights far from where they began, its batch norms used to real positions"
    torch.manual_seed(1)
    name, sizes = KINDS[kind]
    backbone = make_backbone(name, 'tiny', **sizes)
    net = Net(backbone, make_heads(backbone.channels, heads))
    with torch.no_grad():
        for p in net.parameters(): p.add_(0.1*torch.randn_like(p))
        for seed in range(3): net.train()(*map(torch.from_numpy, random_positions(64, seed)))
    return net.eval()

@pytest.fixture(scope='module')
def positions(shards):
    "Boards and hands of games"
    table = read_shard(find_shards(shards['stage3_data_path'], 3)[0])
    return fixed_array(table['boardIdPositions'], 81)[:300], fixed_array(table['piecesInHand'], 14)[:300]

def answers(path, boards, hands):
    "What onnxruntime makes of the file at `path`"
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    return dict(zip([o.name for o in session.get_outputs()],
                    session.run(None, {'board': boards.astype(np.int64), 'hand': hands.astype(np.int64)})))

@pytest.fixture(scope='module')
def exported(tmp_path_factory, positions):
    "kind → (net, its files), made once"
    made = {}
    def get(kind):
        if kind not in made:
            net = net_of(kind).train()
            before = {k: v.clone() for k, v in net.state_dict().items()}
            files = export_onnx(net, tmp_path_factory.mktemp(kind), positions=positions)
            # left as it was
            assert net.training
            assert all(v.dtype == before[k].dtype and torch.equal(v, before[k]) for k, v in net.state_dict().items())
            made[kind] = net.eval(), files
        return made[kind]
    return get

@pytest.mark.parametrize('kind', thinned(KINDS, 6))      # two exports each
def test_files_answer_as_the_net(kind, positions, exported):
    (net, files), (boards, hands) = exported(kind), positions
    with torch.no_grad(): want = net(torch.tensor(boards), torch.tensor(hands))
    assert {p.name for p in files.paths['fp32'].parent.iterdir()} == {'model_fp32.onnx', 'model_fp16.onnx'}
    for precision, path in files.paths.items():
        onnx.checker.check_model(str(path), full_check=True)
        for n in (1, 2, 7, 300):
            got = answers(path, boards[:n], hands[:n])
            assert {k: (v.shape, v.dtype) for k, v in got.items()} == {'policy': ((n, 1496), np.float32), 'value': ((n,), np.float32)}
            for name, make in (('policy', lambda x: x.softmax(1)), ('value', torch.sigmoid)):
                w, g = want[name][:n], torch.tensor(got[name])
                if precision == 'fp32': assert float((w - g).abs().max()) < 1e-4 * max(1., float(w.abs().max()))
                else: assert float((make(w) - make(g)).abs().max()) < TOLERANCES['fp16']
        assert all(d <= TOLERANCES[precision] for d in files.differences[precision].values()) and str(path) in repr(files)

def test_half_precision_is_half(exported):
    "Weights and computation in 16 bits: no 32-bit matrix is left, and the file is smaller"
    files = exported('gated')[1]
    model = onnx.load(str(files.paths['fp16']))
    large = {w.data_type for w in model.graph.initializer if np.prod(w.dims) > 50 and w.data_type != onnx.TensorProto.INT64}
    assert large == {onnx.TensorProto.FLOAT16}
    types = {i.name: i.type.tensor_type for i in (*model.graph.input, *model.graph.output)}
    assert [(name, t.elem_type, t.shape.dim[0].dim_param != '') for name, t in types.items()] == [
        ('board', 7, True), ('hand', 7, True), ('policy', 1, True), ('value', 1, True)]
    assert files.paths['fp16'].stat().st_size < 0.75*files.paths['fp32'].stat().st_size

def test_a_net_of_an_earlier_stage_and_not_a_word(tmp_path):
    "In a process of its own, where the exporter would say all that it says the first time"
    code = f"""
from maou_nb.model.onnx import write_onnx
from maou_nb.model.backbones import make_backbone
from maou_nb.model.heads import Net, make_heads
write_onnx(Net(make_backbone('vit', 'tiny', num_layers=1), make_heads(64, ('legal_moves',))), {str(tmp_path/'model.onnx')!r})"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': str(ROOT), 'PYTHONWARNINGS': 'default::UserWarning'})
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')
    assert {k: v.shape for k, v in answers(tmp_path/'model.onnx', *random_positions(3)).items()} == {'legal_moves': (3, 1496)}

def test_a_file_says_what_it_is(small_run, tmp_path):
    run = load_run(small_run)
    path = export_onnx(small_run, tmp_path/'engine'/'mine.onnx', 'fp32').paths['fp32']
    assert path == tmp_path/'engine'/'mine_fp32.onnx'
    about = json.loads({m.key: m.value for m in onnx.load(str(path)).metadata_props}['maou_nb'])
    assert (about['labels'], about['stage'], about['precision'], about['architecture'], about['epoch'],
            about['outputs']) == ('1496-GBR', 3, 'fp32', 'resnet', 1, ['policy', 'value'])
    assert {k.removeprefix('valid/'): v for k, v in about['figures'].items() if 'baseline' not in k} == run[3].metrics
    assert not any(str(word).encode() in path.read_bytes() for word in (tmp_path, small_run, 'backbones.py'))
    with torch.no_grad(): want = load_net(small_run)(*map(torch.from_numpy, random_positions(5)))
    np.testing.assert_allclose(answers(path, *random_positions(5))['value'], want['value'], atol=1e-4)

def test_a_file_that_answers_otherwise_is_never_seen(exported, tmp_path, monkeypatch):
    net, other = net_of('mixer'), exported('gated')[1].paths['fp32'].read_bytes()
    monkeypatch.setattr('maou_nb.model.onnx.onnx_bytes', lambda *a: other)
    with pytest.raises(OnnxError, match='answers otherwise than the network: policy is off by') as e: write_onnx(net, tmp_path/'a.onnx')
    said(e)
    assert not list(tmp_path.iterdir())

def test_too_large_for_sixteen_bits(tmp_path):
    net = net_of('gated')
    with torch.no_grad(): net.heads['policy'].classes[0].weight.mul_(1e6)
    with pytest.raises(OnnxError, match='too large for 16 bits, and the fp32 file would be right') as e:
        export_onnx(net, tmp_path, ('fp16',))
    said(e)
    assert not list(tmp_path.iterdir())

def test_a_backbone_that_onnx_cannot_hold(tmp_path):
    net = net_of('gated')
    class Odd(torch.nn.Module):
        def forward(self, x): return x if float(x.sum()) > 0 else x*2
    net.backbone.blocks.append(Odd())
    with pytest.raises(OnnxError, match='ResNet cannot be written as ONNX') as e: write_onnx(net, tmp_path/'a.onnx')
    said(e)
    assert not list(tmp_path.iterdir())

@pytest.mark.parametrize('wrong', [('int8',), (), ('fp32', 'bf16')])
def test_precisions_that_are_none(wrong, tmp_path):
    with pytest.raises(OnnxError, match='fp32, fp16, or one of them, was expected') as e: export_onnx(net_of('gated'), tmp_path, wrong)
    said(e)

def test_without_the_packages(monkeypatch, tmp_path):
    assert onnx_problem() is None
    for name in ('onnx', 'onnxruntime'): monkeypatch.setitem(sys.modules, name, None)
    assert onnx_problem() == 'an ONNX file needs onnx, onnxruntime, not installed here: pip install "maou_nb[onnx]" would be right'
    with pytest.raises(OnnxError, match='needs onnx, onnxruntime'): export_onnx('nowhere', tmp_path)

def test_the_package_works_without_them():
    "Nothing imports them but the functions that need them"
    sources = {p: p.read_text(encoding='utf-8') for p in (ROOT/'maou_nb').rglob('*.py')}
    assert len(sources) > 20 and not [p for p, text in sources.items() if re.search(r'^(import|from) onnx', text, re.M)]
