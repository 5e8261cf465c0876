"What torch.compile makes of each net of each stage: one graph without a break, to train and to judge"
import pytest
import torch

from maou_nb.model.backbones import backbone_of
from maou_nb.stages.stage import STAGES
from maou_nb.train.options import LearnConfig
from maou_nb.train.processes import share_norms
from maou_nb.train.runner import net_of
from options import variants

BATCH = torch.zeros(4, 81, dtype=torch.uint8), torch.zeros(4, 14, dtype=torch.uint8)

VARIANTS = {' '.join(map(str, given.values())): given for given in variants()}

def case(variant, training):
    "In `make test` each variant trains, if no other is the same net, and each architecture judges"
    given = VARIANTS[variant]
    slow = 'plain' in variant or 'learned' in variant or not training and len(given) > 1
    return pytest.param(variant, training, marks=pytest.mark.slow if slow else (), id=f'{"training" if training else "judging"}-{variant}')

CASES = [case(variant, training) for training in (True, False) for variant in VARIANTS]

def net(stage, **given):
    cfg = LearnConfig(stage=stage, model_size='tiny', **given)
    return net_of(cfg, STAGES[stage], backbone_of(cfg))

@pytest.mark.parametrize('stage', [s if s == '3' else pytest.param(s, marks=pytest.mark.slow) for s in STAGES])
@pytest.mark.parametrize('variant, training', CASES)
def test_one_graph(variant, stage, training):
    torch._dynamo.reset()
    seen = torch._dynamo.explain(net(stage, **VARIANTS[variant]).train(training))(*BATCH)
    assert (seen.graph_count, seen.graph_break_count) == (1, 0), seen.break_reasons

@pytest.mark.parametrize('again', [False, True])
def test_one_graph_where_norms_go_over_processes(again):
    torch._dynamo.reset()
    whole = net('3', gradient_checkpointing=again)
    share_norms(whole, torch.device('cpu'), compiled=True)
    seen = torch._dynamo.explain(whole.train())(*BATCH)
    assert (seen.graph_count, seen.graph_break_count) == (1, 0), seen.break_reasons

def test_a_break_would_be_seen():
    torch._dynamo.reset()
    whole = net('2')
    def stopping(board, hands):
        features = whole.backbone.forward_features(board, hands)
        torch._dynamo.graph_break()
        return features*2
    assert torch._dynamo.explain(stopping)(*BATCH).graph_break_count == 1
