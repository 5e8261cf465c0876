"Each architecture learns each stage, and what a run promises whatever the architecture"
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from maou_nb import learn_multi_stage
from maou_nb.front.options import make_config
from maou_nb.train.checkpoints import load_tensors, part
from samples import thinned

SIZES = {'resnet': dict(resnet_channels=16, resnet_blocks=1),
         'mlp-mixer': dict(mixer_embed_dim=24, mixer_num_layers=2, mixer_token_dim=24, mixer_channel_dim=48, mixer_dropout=0.),
         'vit': dict(vit_embed_dim=24, vit_num_layers=2, vit_num_heads=2, vit_mlp_ratio=2., vit_dropout=0.)}

@pytest.fixture(scope='module', params=thinned(SIZES, 3))
def run(request, shards, tmp_path_factory):
    "A short run of all stages with one of the architectures"
    return learn_multi_stage(stage='all', model_architecture=request.param, model_size='tiny', gpu='cpu',
                             learning_ratio=0.005, epoch=2, stage2_max_epochs=3, stage1_max_epochs=6,
                             stage1_threshold=0., stage2_threshold=0., stage1_batch_size=64, stage2_batch_size=64,
                             stage3_batch_size=128, stage2_test_ratio=0.2, lr_scheduler='none',
                             run_dir=tmp_path_factory.mktemp(request.param)/'run', **SIZES[request.param], **shards)

def test_loss_falls_in_every_stage(run, shards, tmp_path):
    "Thresholds of 0 end stages 1 and 2 with their first epoch, so those are trained on once more, alone"
    assert [s.stage for s in run.stages_completed] == [1, 2, 3]
    config = json.loads(Path(run.run_dir, 'config.json').read_text())
    for n in (1, 2):
        more = {**config, 'stage': str(n), f'stage{n}_threshold': 1., f'stage{n}_max_epochs': 2, 'run_dir': str(tmp_path/f'{n}')}
        with pytest.raises(RuntimeError, match='below its threshold') as e: learn_multi_stage(**more)
        history = e.value.result[n].history
        assert history[-1]['train/loss'] < 0.9 * history[0]['train/loss'], (n, [h['train/loss'] for h in history])
    history = run[3].history
    assert history[-1]['train/loss'] < history[0]['train/loss']
    assert history[-1]['train/policy_loss'] < history[0]['train/policy_loss']

def test_figures_are_there_with_their_baselines(run):
    assert {'accuracy', 'exact_board'} <= set(run[1].metrics) and round(run[1].baselines['accuracy'], 3) == 0.902
    assert {'f1', 'micro_f1'} <= set(run[2].metrics) and run[2].judged_on == 'held-out games'
    assert {'top1', 'top5', 'value_accuracy', 'brier', 'calibration_error'} <= set(run[3].metrics)
    assert {'top1', 'value_accuracy'} <= set(run[3].baselines)
    assert all(0 <= v <= 1 for s in run.stages_completed for k, v in s.metrics.items() if 'loss' not in k)

def test_checkpoints_load_and_hold_no_pickle(run):
    for s in run.stages_completed:
        for which in ('best', 'last'):
            tensors, about = load_tensors(run.checkpoint(s.stage, which))
            assert about['config']['model_architecture'] == json.loads(Path(run.run_dir, 'config.json').read_text())['model_architecture']
            assert about['stage'] == s.stage and all(isinstance(t, torch.Tensor) for t in tensors.values())
    assert not [p for p in Path(run.run_dir).rglob('*') if p.suffix in ('.pt', '.pth', '.pkl', '.bin')]

def test_result_json_has_the_old_tools_fields(run):
    saved = json.loads(Path(run.run_dir, 'result.json').read_text())
    assert saved['stage'] == 'all'
    for s in saved['stages_completed']:
        assert {'stage', 'stage_name', 'achieved_accuracy', 'final_loss', 'epochs_trained', 'threshold_met'} <= set(s)
    assert saved['stages_completed'][2]['achieved_accuracy'] == run[3].metrics['top1']

def test_result_shows_itself(run):
    html = run._repr_html_()
    assert '0.9021' in html and html.count('<img') == 3 and 'alt="stage 3' in html

def test_options_that_are_tried_meanwhile_draw_nothing_of_a_run(shards):
    "As where a run trains in the kernel and the form is changed: weights are those of a run that trained alone"
    def weights(meanwhile):
        with ThreadPoolExecutor(1) as pool:
            run = pool.submit(learn_multi_stage, stage='1', model_architecture='vit', model_size='tiny', vit_embed_dim=32, vit_num_layers=1,
                              vit_num_heads=2, vit_dropout=0.2, gpu='cpu', stage1_max_epochs=2, stage1_threshold=0., stage1_batch_size=128,
                              stage1_data_path=shards['stage1_data_path'], run_dir=f'{shards["stage1_data_path"]}-{meanwhile}')
            while meanwhile and not run.done(): make_config(stage='1', stage1_data_path=shards['stage1_data_path'], model_size='tiny')
            tensors, _ = load_tensors(run.result().checkpoint(1, 'last'))
        return part(tensors, 'net.')
    alone, beside = weights(False), weights(True)
    assert all(torch.equal(alone[k], beside[k]) for k in alone)
