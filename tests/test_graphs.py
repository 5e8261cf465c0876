"What torch.compile makes of each net of each stage: one graph without a break, to train and to judge"
import pytest
import torch

from maou_nb.model.backbones import BACKBONES, backbone_of
from maou_nb.stages.stage import STAGES
from maou_nb.train.options import LearnConfig
from maou_nb.train.runner import net_of

BATCH = torch.zeros(4, 81, dtype=torch.uint8), torch.zeros(4, 14, dtype=torch.uint8)

def net(architecture, stage, **more):
    cfg = LearnConfig(stage=stage, model_architecture=architecture, model_size='tiny', **more)
    return net_of(cfg, STAGES[stage], backbone_of(cfg))

@pytest.mark.parametrize('stage', [s if s == '3' else pytest.param(s, marks=pytest.mark.slow) for s in STAGES])
@pytest.mark.parametrize('architecture', BACKBONES)
@pytest.mark.parametrize('training', [True, False], ids=['training', 'judging'])
def test_one_graph(architecture, stage, training):
    torch._dynamo.reset()
    seen = torch._dynamo.explain(net(architecture, stage).train(training))(*BATCH)
    assert (seen.graph_count, seen.graph_break_count) == (1, 0), seen.break_reasons

def test_a_break_would_be_seen():
    torch._dynamo.reset()
    whole = net('resnet', '2')
    def stopping(board, hands):
        features = whole.backbone.forward_features(board, hands)
        torch._dynamo.graph_break()
        return features*2
    assert torch._dynamo.explain(stopping)(*BATCH).graph_break_count == 1
