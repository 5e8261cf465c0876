"Presets at every door: what is said beside one counts more, an arm's counts more than the base, and a run gives back its own options"
from concurrent.futures import ThreadPoolExecutor

import pytest

from maou_nb import LearnPanel, OptionError, compare, learn_multi_stage, study
from maou_nb.front.cli import chosen
from maou_nb.front.options import PRESETS, make_config
from maou_nb.front.study import base_of
from maou_nb.train.options import LearnConfig

DEFAULTS = LearnConfig()

@pytest.fixture
def small(shards):
    return dict(stage='3', stage3_data_path=shards['stage3_data_path'], gpu='cpu', max_steps=2, stage3_batch_size=32)

@pytest.mark.parametrize('preset', PRESETS)
def test_a_config_is_what_its_own_words_make(small, preset):
    "Each option of a preset, at its default beside the preset"
    given = {n: v for n, v in small.items() if n != 'stage3_batch_size'} | {'preset': preset}
    for name in PRESETS[preset]:
        if name == 'model_architecture' or name.startswith('stage1') or name.startswith('stage2'): continue
        cfg = make_config(**given, **{name: getattr(DEFAULTS, name)})
        assert getattr(cfg, name) == getattr(DEFAULTS, name) and make_config(**chosen(cfg)) == cfg, name

@pytest.mark.parametrize('preset, net', [('tuned-resnet', 'vit'), ('vit', 'resnet'), ('tuned-vit', 'mlp-mixer')])
def test_a_preset_of_another_net_is_refused(small, preset, net):
    with pytest.raises(OptionError, match=f'preset=\'{preset}\': it is of .*, and model_architecture=\'{net}\''):
        make_config(**small, preset=preset, model_architecture=net)

def test_the_panel_takes_one_preset_at_a_time():
    panel = LearnPanel()
    for preset in ('tuned-vit', 'tuned-resnet', 'tuned-vit'):
        found = panel.set(preset=preset).options
        assert found == LearnPanel(preset=preset).options == LearnPanel(**PRESETS[preset]).options
    for odd in ('nope', 3, ['vit']):
        with pytest.raises(OptionError, match='preset=.*: one of quick, .* was expected'): panel.set(preset=odd)

def test_a_run_gives_back_its_options(small, tmp_path):
    run = learn_multi_stage(**small, preset='tuned-resnet', learning_ratio=0.01, optimizer='adamw', resnet_channels=8, resnet_blocks=1,
                            run_dir=tmp_path/'run')
    base = make_config(**base_of(run.run_dir), run_dir=tmp_path/'other', max_steps=2)
    assert (base.learning_ratio, base.optimizer, base.weight_decay) == (0.01, 'adamw', 0.3)

def test_an_arm_s_preset_counts_more_than_the_base(small, tmp_path):
    base = {**{n: v for n, v in small.items() if n not in ('max_steps', 'stage3_batch_size')}, 'model_size': 'tiny', 'resnet_channels': 8,
            'resnet_blocks': 1, 'learning_ratio': 0.004, 'batch_size': 64}
    with ThreadPoolExecutor(1) as pool:
        made = study('arms', base, {'plain': {}, 'tuned': {'preset': 'tuned-resnet', 'batch_size': 32}}, 1, budget={'steps': 2},
                     folder=tmp_path, executor=pool, show=False)
    told = make_config(**made.record('tuned', 0)['options'], stage3_data_path=small['stage3_data_path'])
    assert (told.learning_ratio, told.optimizer, told.weight_decay, told.batch_size) == (0.03, 'muon', 0.3, 32)

def test_a_finished_run_keeps_what_it_was_trained_with(small, tmp_path):
    "Called again with other options it trains no step, and is compared by its own"
    options = dict(small, model_size='tiny', resnet_channels=8, resnet_blocks=1)
    learn_multi_stage(**options, learning_ratio=0.08, run_dir=tmp_path/'a')
    learn_multi_stage(**options, learning_ratio=0.001, run_dir=tmp_path/'a', resume_from='latest')
    learn_multi_stage(**options, learning_ratio=0.001, run_dir=tmp_path/'b')
    both = compare(tmp_path/'a', tmp_path/'b')
    assert both.differences() == [('learning_ratio', 0.08, 0.001)] and 'One seed of a setting' in repr(both)
