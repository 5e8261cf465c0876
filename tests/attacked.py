"A stage of one's own, as a user would write it: which squares the opponent attacks, and how often"
import numpy as np
import torch
from torch import nn

from maou_nb import Callback, Column, Columns, Figure, Part, Section, Stage, option
from maou_nb import register_backbone, register_head, register_loss, register_stage
from maou_nb.data.board import KINDS, SLIDES, STEPS
from maou_nb.model.backbones import Backbone, SquareEmbedding
from maou_nb.model.losses import bce_loss, policy_loss
from maou_nb.model.metrics import SumMetric, ratio
from maou_nb.show.boards import board_svg

def shifted(squares, rows, columns):
    "bool (N, 9, 9) moved by so many rows and columns; what leaves the board is gone"
    out = np.zeros_like(squares)
    to = lambda n: slice(max(n, 0), 9 + min(n, 0))
    out[:, to(rows), to(columns)] = squares[:, to(-rows), to(-columns)]
    return out

def attackers(positions):
    "uint8 (N, 81): how many of the opponent's pieces attack each square"
    boards = positions['boards'].reshape(-1, 9, 9)
    counts = np.zeros(boards.shape, np.uint8)
    for code, kind in enumerate(KINDS, 15):
        pieces = boards == code
        for row, column in STEPS.get(kind, ()): counts += shifted(pieces, -row, -column)
        for row, column in SLIDES.get(kind, ()):
            ray = pieces
            for _ in range(8):
                ray = shifted(ray, -row, -column)
                counts += ray
                ray = ray & (boards == 0)
    return {'attackers': counts.reshape(-1, 81), 'attackedSquares': (counts > 0).reshape(-1, 81).astype(np.uint8)}

class AttackedOptions(Section):
    "Options of the stage"
    stage_attacked_pos_weight: float = option(1.0, 'How much an attacked square counts', 'Stage attacked', 'free', 'attacked', gt=0)

@register_head('two-layer')
class TwoLayerHead(nn.Module):
    "One logit a square, by way of a hidden layer"

    def __init__(self, channels):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(channels, 8, 1), nn.ReLU(), nn.Conv2d(8, 1, 1))

    def forward(self, features): return self.layers(features).flatten(1)

@register_loss('weighted', of='attacked')
def weighted_loss(outputs, batch, cfg):
    "BCE over squares, and the share that is attacked, for the log"
    loss = bce_loss(outputs['attacked'], batch.attacked, cfg.stage_attacked_pos_weight)
    return {'loss': loss, 'attacked_share': batch.attacked.float().mean()}

@register_loss('smooth', of='policy')
def smooth_loss(outputs, batch, cfg):
    "KL divergence from the moves played, a tenth of them spread over the legal ones"
    legal = batch.legal.float()
    target = 0.9*batch.policy + 0.1*legal/legal.sum(1, keepdim=True)
    return {'loss': policy_loss(outputs['policy'], target, batch.legal)}

class AttackedMetrics(SumMetric):
    "Recall and precision of attacked squares"
    sums = dict(rows=1, hits=1, claimed=1, true=1)
    def update(self, outputs, batch):
        true, claimed = batch.attacked, outputs['attacked'] > 0
        self.add(rows=len(true), hits=(true & claimed).sum(), claimed=claimed.sum(), true=true.sum())
    def compute(self):
        return dict(f1=ratio(2*self.hits, self.claimed + self.true), recall=ratio(self.hits, self.true),
                    baseline_f1=ratio(2*self.true, self.rows*81 + self.true))

@register_stage('attacked')
class Attacked(Stage):
    "Which squares the opponent attacks"
    name = 'attacked squares'
    columns = Columns('attacked', (Column('attacked', 'attackedSquares', 'squares'), Column('attackers', 'attackers', 'levels')),
                      answers=attackers)
    parts = (Part('attacked', 81, 'two-layer', 'weighted'),)
    figures = {'f1': Figure('F1 over squares', 'claiming all'), 'recall': Figure('recall')}
    threshold, options = 0.5, AttackedOptions

    def metrics(self): return AttackedMetrics()
    def mistakes(self, row, said, letters='japanese'):
        heat = row.attackers[0].numpy() / 4
        caption = f'{int(row.attacked[0].sum())} attacked squares' + (', as the network sees it' if said else '')
        heat = heat if said is None else said['attacked'][0].sigmoid().numpy()
        return board_svg(row.board[0].numpy(), row.hands[0].numpy(), heat, caption, letters=letters), ''


@register_backbone('myopic', tiny=dict(channels=8))
class Myopic(Backbone):
    "Sees nothing but the piece on the square itself and the hands"

    def __init__(self, channels=8):
        super().__init__(channels, SquareEmbedding(channels), [nn.Sequential(nn.Linear(channels, channels), nn.ReLU())])

class Counting(Callback):
    "Counts steps, over all restarts of a stage; keeps a tensor, too"
    def __init__(self): self.n, self.total = 0, torch.zeros(1)
    def before_fit(self, loop):
        if not loop.resumed: self.n, self.total = 0, torch.zeros(1)
    def after_step(self, loop): self.n += 1; self.total += loop.losses['loss'].cpu()
    def state(self): return {'n': self.n, 'total': self.total.clone()}
    def load(self, state): self.n, self.total = state['n'], state['total'].clone()
