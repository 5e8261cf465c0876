"Teaches a neural network shogi in three stages, from a notebook"
__version__ = "0.1.0"

import gc
from importlib import import_module

# Where each front name lives. They are imported when first asked for, so that `import maou_nb` stays light:
# a process that prepares data needs no torch.
_rooms = {
    'front.learn': ('learn_multi_stage', 'LearnResult', 'load_run', 'find_lr', 'overfit_one_batch'),
    'judge.ask': ('load_net', 'predict', 'summary'),
    'judge.evaluate': ('evaluate',),
    'judge.exam': ('exam',),
    'judge.watch': ('film_strip',),
    'judge.review': ('show_results', 'browse'),
    'front.export': ('export_onnx',),
    'front.panel': ('LearnPanel',),
    'front.preflight': ('preflight',),
    'front.player': ('net_player', 'random_player'),
    'front.match': ('match', 'ladder'),
    'play.arena': ('Engine',),
    'play.elo': ('Sprt',),
    'play.games': ('load_match',),
    'front.board': ('play_against',),
    'front.search': ('search',),
    'front.runs': ('attach', 'compare', 'tensorboard'),
    'front.run_table': ('runs', 'note'),
    'front.study': ('study', 'grid', 'load_study'),
    'show.boards': ('show_position',),
    'train.runner': ('StageThresholdNotMet',),
    'data.options': ('OptionError', 'Section', 'option'),
    'model.backbones': ('register_backbone', 'size_table'),
    'model.features': ('register_features',),
    'model.heads': ('register_head',),
    'model.losses': ('register_loss',),
    'stages.stage': ('register_stage', 'Stage', 'Part', 'Figure'),
    'data.columns': ('Column', 'Columns'),
    'data.records': ('Filters',),
    'data.position_tables': ('TableColumns',),
    'data.plugins': ('load_plugins',),
    'train.loop': ('Callback',),
    'stages.rows': ('prepare_stage1', 'prepare_stage2', 'prepare_stage3', 'prepare_stage', 'random_stage2')}
_front = {name: room for room, names in _rooms.items() for name in names}
__all__ = [*_front]

def __getattr__(name):
    if name not in _front: raise AttributeError(f'maou_nb has no {name!r}')
    collects = gc.isenabled()
    gc.disable()      # modules make very many objects, of which none is to go: looking for such takes a quarter of the time
    try: return getattr(import_module(f'maou_nb.{_front[name]}'), name)
    finally:
        if collects: gc.enable()

def __dir__(): return [*globals(), *_front]
