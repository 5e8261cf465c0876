"Heads and losses of one's own, for the rows of the option table"
from torch import nn

from maou_nb import register_head, register_loss
from maou_nb.model.heads import MoveHead, SquareHead, ValueHead
from maou_nb.model.losses import bce_loss, policy_loss

@register_head('wide-squares')
class WideSquares(SquareHead):
    "Squares by a 3 × 3 convolution"
    def __init__(self, channels):
        super().__init__(channels)
        self.logit = nn.Conv2d(channels, 1, 3, padding=1)

@register_head('wide-moves')
def wide_moves(channels, **keywords):
    "Moves by way of a hidden layer of 5"
    return MoveHead(channels, hidden_dim=5)

@register_head('narrow-value')
def narrow_value(channels):
    "A value from 3 channels"
    return ValueHead(channels, hidden=3)

@register_loss('half-squares', of='reachable')
def half_squares(outputs, batch, cfg): return {'loss': bce_loss(outputs['reachable'], batch.reachable)/2}

@register_loss('half-moves', of='legal_moves')
def half_moves(outputs, batch, cfg): return {'loss': bce_loss(outputs['legal_moves'], batch.legal)/2}

@register_loss('half-policy', of='policy')
def half_policy(outputs, batch, cfg): return {'loss': policy_loss(outputs['policy'], batch.policy, batch.legal)/2}

@register_loss('square', of='value')
def square_error(outputs, batch, cfg): return {'loss': ((outputs['value'].sigmoid() - batch.value)**2).mean()}
