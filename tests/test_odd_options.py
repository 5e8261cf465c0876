"Whatever is given for whichever option: a config, or one sentence about that option, soon, and nothing is written"
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from maou_nb import LearnPanel, OptionError, StageThresholdNotMet, learn_multi_stage, preflight
from maou_nb.data.options import About, Section, option
from maou_nb.front.options import make_config, option_of, try_config, valid_part
from maou_nb.stages.rows import prepare_stage1
from maou_nb.train.options import LearnConfig, set_in_vain, vain_remark, why_idle
from samples import thinned

class Unspeakable:
    "Cannot even be shown"
    def __repr__(self): raise RuntimeError('no words')

def deep(n):
    "A list in a list in a list"
    made = []
    for _ in range(n): made = [made]
    return made

ODD = {'none': None, 'yes': True, 'no': False, 'empty': '', 'blank': ' ', 'tab': '\t\n', 'nan': float('nan'),
       'inf': float('inf'), 'minus': -1, 'zero': 0, 'one': 1, 'half': 0.5, 'billion': 10**9, 'thirty millions': 3*10**7,
       'endless': 10**30, 'minus endless': -10**30, 'huge': 1e300, 'tiny': 1e-300, 'list': [], 'dict': {}, 'filled': {'a': 1},
       'set': {1, 2}, 'nested': [[1], ['a', [None]]], 'deep': deep(5000), 'nones': [None], 'mixed': ['a', 3, None],
       'function': lambda: 1, 'class': int, 'object': object(), 'unspeakable': Unspeakable(), 'bytes': b'ab', 'complex': 1j,
       'up': '../../x', 'zero character': 'a\0b', 'long': 'x'*100_000, 'long name': 'x'*300, 'surrogate': '\ud800',
       'kanji': '将棋', 'digits': '9'*5000, 'glob': '[', 'stars': '**', 'lines': 'a\nb', 'no bucket': 's3://',
       'no filesystem': 'foo://bar/x', 'int64': np.int64(3), 'float32': np.float32(.5), 'array': np.arange(3),
       'tensor': torch.ones(3), 'path': Path('x/y'), 'iterator': iter('ab'), 'range': range(3)}

@pytest.fixture(scope='module')
def here(tmp_path_factory):
    "A folder with the rows of stage 1, and the options that train on them"
    folder = tmp_path_factory.mktemp('odd')
    prepare_stage1(folder/'stage1')
    return folder, dict(stage=1, stage1_data_path=str(folder/'stage1'), model_size='tiny', resnet_channels=8, resnet_blocks=1, gpu='cpu')

@pytest.mark.parametrize('part', thinned(range(4), 4))
def test_whatever_is_given(here, monkeypatch, part):
    "In each part each option gets a fourth of the values, and each value goes to a fourth of the options"
    folder, base = here
    (folder/'at').mkdir(exist_ok=True); monkeypatch.chdir(folder/'at')
    make_config(**base)                                          # imports what it needs
    accepted, slow = {}, {}
    def timed(name, odd, f):
        "What `f` gives; remembered if it takes long"
        began = time.process_time()
        try: return f()
        finally:
            if (took := time.process_time() - began) > 2: slow[name, odd] = took
    for i, name in enumerate(LearnConfig.model_fields):
        for odd, value in [*ODD.items()][(part + i) % 4::4]:
            cfg, problems, _ = timed(name, odd, lambda: valid_part({**base, name: value}))
            if not problems: accepted.setdefault((name, repr(getattr(cfg, name))), (odd, value))
            else: assert len(problems) == 1 and option_of(problems[0]) == name and len(problems[0]) < 700, problems
    for (name, _), (odd, value) in accepted.items():
        try: timed(name, odd, lambda: make_config(**{**base, name: value}))
        except OptionError as e: assert name in str(e) or name in ('stage', 'model_architecture'), (name, odd, str(e))
    assert not slow and len(accepted) > len(LearnConfig.model_fields)/4
    assert not [*(folder/'at').rglob('*')] and {p.name for p in folder.iterdir()} == {'at', 'stage1'}

def test_all_odd_values_are_told_of_at_once(here):
    "One that cannot be hashed, or shown, does not take the others' sentences with it"
    _, base = here
    names = [n for n in LearnConfig.model_fields if n not in ('stage', 'plugins')]
    for value in ({}, Unspeakable(), {1}, b'x', 10**30, '\0'):
        problems = try_config({**base, **dict.fromkeys(names, value)})[1]
        assert len([p for p in problems if option_of(p) in names]) >= len(names)

@pytest.mark.parametrize('given, says', [
    (dict(optimizer=[]), "'adamw', 'sgd' or 'muon'"), (dict(tensorboard_histogram_module=3), 'list'),
    (dict(learning_ratio=1e300), 'learning_ratio='), (dict(epoch=10**30), 'at most'), (dict(epoch=True), 'yes or no'),
    (dict(prefetch_factor=3*10**7), 'less than or equal to'), (dict(resume_from=''), 'not blank'),
    (dict(resume_backbone_from=''), 'not blank'), (dict(output_s3=True, s3_bucket_name=' ', s3_base_path='a'), "s3_bucket_name=' '"),
    (dict(run_name='../../up'), 'run_dir takes a path'), (dict(precision='fp16', gpu=None), 'fp32 or bf16'),
    (dict(cache_transforms=True, on_bad='skip'), 'no_streaming=True would be right'), (dict(gpu=0), "'cuda:0'"),
    (dict(run_dir='memory://a/b', output_s3=True, s3_bucket_name='x', s3_base_path='y'), 'copied to one place'),
    (dict(resnet_channels=16384, resnet_blocks=256), 'are free'), (dict(stage=2, stage2_hidden_dim=10**9), 'stage2_hidden_dim=')])
def test_what_used_to_get_through(here, given, says):
    if given.get('precision') and torch.cuda.is_available(): pytest.skip('a GPU trains in fp16')
    with pytest.raises(OptionError) as e: make_config(**{**here[1], **given})
    assert says in str(e.value)

def test_a_device_in_any_case(here): assert make_config(**{**here[1], 'gpu': 'CPU'}).gpu == 'cpu'

@pytest.mark.parametrize('given, name', [
    (dict(momentum=0.5), 'momentum'), (dict(optimizer='sgd', optimizer_beta1=0.5), 'optimizer_beta1'),
    (dict(warmup_steps=5, stage12_lr_scheduler='none'), 'warmup_steps'),
    (dict(stage=3, early_stopping_metric='value', value_loss_ratio=0), 'early_stopping_metric'),
    (dict(stage=3, stage2_threshold=0.5), 'stage2_threshold'), (dict(stage=3, stage1_pos_weight=3), 'stage1_pos_weight')])
def test_set_in_vain(here, given, name):
    cfg = LearnConfig(**{**here[1], **given})
    assert [name] in [[n for n in names if n in given] for names in set_in_vain(cfg).values()] and name in vain_remark(cfg)

def test_defaults_are_not_set():
    "Whatever the stage, the defaults alone are no remark"
    for stage in ('1', '2', '3', 'all'): assert not vain_remark(LearnConfig(stage=stage))

def test_a_run_and_preflight_say_what_does_nothing(here, capsys, tmp_path):
    vain = dict(momentum=0.5, warmup_steps=10**6, tensorboard_histogram_module='nothing*', tensorboard_histogram_frequency=1,
                stage12_lr_scheduler='warmup_cosine_decay', stage1_threshold=0.5, stage1_max_epochs=1, run_dir=tmp_path/'run')
    report = repr(preflight(**{**here[1], **vain}))
    try: learn_multi_stage(**{**here[1], **vain})
    except StageThresholdNotMet: pass
    out = capsys.readouterr().out
    for text in (report, out):
        for says in ('momentum (only optimizer=sgd uses it)', 'steps are warm-up', "module='nothing*': matches no parameter",
                     'stage1_threshold=0.5: guessing scores 0.90'):
            assert says in text

def test_an_idle_function_that_fails(monkeypatch):
    "A problem of its option, and neither a raw error of the panel nor of a run's first line"
    def wrong(cfg): return cfg.no_such_option
    field = LearnConfig.model_fields['momentum']
    monkeypatch.setattr(field, 'json_schema_extra', About('Optimizer', 'free', idle=wrong))
    assert why_idle(LearnConfig(), 'momentum') == '' and not vain_remark(LearnConfig(seed=3))
    panel = LearnPanel()
    assert any(option_of(p) == 'momentum' and 'no_such_option' in p for p in panel.problems)

def test_an_option_of_a_plugin_is_held_to_the_same():
    class Mine(Section):
        "Of a plugin"
        mine_depth: int = option(3, 'Depth', 'Model', 'fixed', ge=1)
    for value in (True, {}, '', 10**30, Unspeakable()):
        with pytest.raises(ValueError, match='expected|means nothing'): Mine(mine_depth=value)
