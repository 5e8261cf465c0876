"Teaches a neural network shogi in three stages, from a notebook"
__version__ = "0.1.0"

from importlib import import_module

# Where each front name lives. They are imported when first asked for, so that `import maou_nb` stays light: a process that prepares data needs no torch.
_front = {'learn_multi_stage': 'front.learn', 'LearnResult': 'front.learn', 'load_run': 'front.learn', 'find_lr': 'front.learn', 'overfit_one_batch': 'front.learn', 'load_net': 'judge.ask', 'predict': 'judge.ask', 'evaluate': 'judge.ask', 'export_onnx': 'front.export', 'LearnPanel': 'front.panel', 'preflight': 'front.preflight', 'attach': 'front.runs', 'compare': 'front.runs', 'tensorboard': 'front.runs', 'film_strip': 'judge.ask', 'show_position': 'show.boards', 'show_results': 'judge.review', 'browse': 'judge.review', 'StageThresholdNotMet': 'train.runner', 'OptionError': 'train.options',
          'register_backbone': 'model.backbones', 'summary': 'model.backbones', 'size_table': 'model.backbones', 'prepare_stage1': 'data.prepare', 'prepare_stage2': 'data.prepare', 'prepare_stage3': 'data.prepare'}
__all__ = [*_front]

def __getattr__(name):
    if name not in _front: raise AttributeError(f'maou_nb has no {name!r}')
    return getattr(import_module(f'maou_nb.{_front[name]}'), name)

def __dir__(): return [*globals(), *_front]
