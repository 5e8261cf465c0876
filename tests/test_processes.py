"Several processes train as one does: the same gradients, one that writes and speaks, and all end together"
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from maou_nb import Callback, OptionError, learn_multi_stage, study
from maou_nb.front.cli import as_words
from maou_nb.front.learn import load_run
from maou_nb.front import learn
from maou_nb.front import options as rules
from maou_nb.front.options import make_config, process_problems
from maou_nb.front.preflight import preflight
from maou_nb.model.backbones import BACKBONES, SIZES, ResNet
from maou_nb.model.losses import LOSSES, register_loss
from maou_nb.train.checkpoints import Checkpoints, load_tensors, part
from maou_nb.train.folder import RunFolder
from maou_nb.train.options import LearnConfig
from maou_nb.train import processes
from maou_nb.train.processes import Together, _as_seen, check_alone, share_norms
from maou_nb.train.row_results import row_results
from lab import free_port
from options import TINY, few      # noqa: F401, a fixture
from pair import Pair, done
from samples import thinned

@pytest.fixture(scope='module')
def pair(tmp_path_factory):
    "Two warm processes"
    pair = Pair(tmp_path_factory.mktemp('pair'))
    yield pair
    pair.close()

def options(few, stage, architecture='resnet', **more):
    "Of a tiny run"
    return dict(stage=stage, model_architecture=architecture, model_size='tiny', gpu='cpu', learning_ratio=0.01, epoch=1,
                stage1_threshold=0., stage2_threshold=0., test_ratio=0.3, stage1_data_path=few/'stage1',
                stage2_data_path=few/'twelve'/'stage2', stage3_data_path=few/'twelve'/'stage3', **TINY[architecture]) | more

def apart(a, b):
    "The largest difference of two sets of tensors, in parts of the largest number of each"
    assert a.keys() == b.keys()
    far = lambda x, y: float((x - y).abs().max() / y.abs().max().clamp(min=1e-12))
    # a gradient that is 0 but for rounding, as of what comes before a norm, is compared with the others
    largest = max(float(v.abs().max()) for v in b.values())
    return max(far(a[k], v) if v.abs().max() > 1e-9*largest else float((a[k] - v).abs().max())/largest for k, v in b.items())

def timeless(history): return [{k: v for k, v in h.items() if k not in ('positions_per_second', 'loader_wait', 'seconds')} for h in history]

def near(a, b, eps):
    "Whether two histories are equal but for rounding"
    a, b = timeless(a), timeless(b)
    assert [h.keys() for h in a] == [h.keys() for h in b]
    for x, y in zip(a, b):
        for k in x: assert x[k] == y[k] or x[k] == pytest.approx(y[k], rel=eps, abs=eps), (k, x[k], y[k])

# 1105 rows in batches of 69: shares of 35 and 34, at last of 1 and 0
@pytest.mark.parametrize('stage, architecture, more', [
    (1, 'resnet', dict(stage1_batch_size=69, ema_decay=0.9)),
    pytest.param(1, 'vit', dict(stage1_batch_size=69, gradient_accumulation_steps=3), marks=pytest.mark.slow),
    (2, 'resnet', dict(stage2_batch_size=37, gradient_checkpointing=True)),
    (3, 'resnet', dict(stage3_batch_size=37, gradient_accumulation_steps=2, ema_decay=0.9)),
    pytest.param(3, 'mlp-mixer', dict(stage3_batch_size=37), marks=pytest.mark.slow),
    (3, 'vit', dict(stage3_batch_size=37))])
def test_gradients_and_weights_are_those_of_one_process(pair, few, tmp_path, stage, architecture, more):
    given = options(few, stage, architecture, **more)
    answers = pair('epoch', options=given, out=tmp_path/'two') + [done('epoch', dict(options=given, out=tmp_path/'one'))]
    for a in answers: assert 'broken' not in a, a['broken']
    first, second, one = (load_tensors(tmp_path/n)[0] for n in ('two-0', 'two-1', 'one-0'))
    assert len(part(one, 'grad.')) > 3
    for kind in ('grad.', 'net.', 'ema.'):
        floats = [{k: v for k, v in part(t, kind).items() if v.is_floating_point()} for t in (first, second, one)]
        if not floats[0]: continue
        assert apart(floats[0], floats[2]) < 1e-6, kind
        assert all(torch.equal(v, floats[1][k]) for k, v in floats[0].items()), kind       # gradients, weights and statistics
    near(answers[0]['history'], answers[2]['history'], 1e-6)
    assert timeless(answers[0]['history'])[0] == timeless(answers[1]['history'])[0]

def test_compiled_norms_count_each_batch_once(pair, few, tmp_path):
    "Blocks that run again in the backward pass, too; each process has one compiled graph and its gradients"
    given = options(few, 1, stage1_batch_size=70, gradient_checkpointing=True, ema_decay=0.9)
    two = pair('epoch', options=given | dict(stage12_compilation=True), out=tmp_path/'two')
    for a in two + [done('epoch', dict(options=given, out=tmp_path/'one'))]: assert 'broken' not in a, a['broken']
    first, second, one = (load_tensors(tmp_path/n)[0] for n in ('two-0', 'two-1', 'one-0'))
    assert all(torch.equal(v, second[k]) for k, v in first.items())
    counters = {k: v for k, v in one.items() if k.endswith('num_batches_tracked')}
    assert counters and all(torch.equal(v, first[k]) for k, v in counters.items())
    for kind in ('grad.', 'net.', 'ema.'):
        floats = [{k: v for k, v in part(t, kind).items() if v.is_floating_point()} for t in (first, one)]
        assert apart(*floats) < 1e-6, kind

def test_weights_that_each_drew_for_itself_are_averaged_as_the_main_ones(pair, few, tmp_path):
    (tmp_path/'drawn.py').write_text(DRAWN)
    given = {k: v for k, v in options(few, 1, ema_decay=0.99).items() if k not in TINY['resnet']}
    for a in pair('epoch', options=given | dict(plugins=str(tmp_path/'drawn.py'), model_architecture='drawn'), out=tmp_path/'two'):
        assert 'broken' not in a, a['broken']
    first, second = (load_tensors(tmp_path/n)[0] for n in ('two-0', 'two-1'))
    assert part(first, 'ema.') and all(torch.equal(v, second[k]) for k, v in first.items())

def test_each_normalises_by_itself_where_that_is_wanted(pair, few, tmp_path):
    given = options(few, 1, stage1_batch_size=69, ema_decay=0.9, sync_batchnorm=False)
    for a in pair('epoch', options=given, out=tmp_path/'two') + [done('epoch', dict(options=given, out=tmp_path/'one'))]:
        assert 'broken' not in a, a['broken']
    first, second, one = (load_tensors(tmp_path/n)[0] for n in ('two-0', 'two-1', 'one-0'))
    assert all(torch.equal(v, second[k]) for k, v in first.items())                  # statistics too, and their averages
    assert apart(part(first, 'net.'), part(one, 'net.')) > 1e-3

def files(folder): return sorted(str(p.relative_to(folder)) for p in Path(folder).rglob('*') if p.is_file() and 'events' not in p.name)

def test_one_process_writes_and_speaks(pair, few, tmp_path, monkeypatch):
    given = options(few, 'all', run_name=None, output_s3=True, s3_bucket_name='b', s3_base_path='p')
    for n in ('two', 'one'): (tmp_path/n).mkdir()
    two = pair('learn', options=given, cwd=tmp_path/'two')
    monkeypatch.chdir(tmp_path/'one')
    one = done('learn', dict(options=given))
    for a in (*two, one): assert 'result' in a, a
    assert [a['mirrors'] for a in two] == [1, 0] and two[1]['said'] == ''
    lines = lambda a: [l for l in a['said'].splitlines() if ' rows to train on' in l]
    assert lines(two[0]) == lines(one) and len(lines(one)) == 3
    assert two[0]['result'] == two[1]['result']
    name = {n: [p.name for p in (tmp_path/n/'runs').iterdir()] for n in ('two', 'one')}      # one folder, no earlier run
    assert len(name['two']) == len(name['one']) == 1
    found, meant = (files(tmp_path/n/'runs'/name[n][0]) for n in ('two', 'one'))
    assert found == meant
    for a, b in zip(two[0]['result']['stages_completed'], one['result']['stages_completed'], strict=True):
        # 32 bits: sums in another order, and weights that come of them
        near(a['history'][:1], b['history'][:1], 1e-3) if a['stage'] == 1 else None
        assert [h['train/loss'] for h in a['history']] == pytest.approx([h['train/loss'] for h in b['history']], rel=0.02)

# each way once in `make test`, half of them in either process
@pytest.mark.parametrize('how, rank', thinned([('SIGTERM', 0), ('SIGTERM', 1), ('odd', 1), ('odd', 0), ('full', 0), ('full', 1),
                                               ('interrupt', 1), ('interrupt', 0)], 2))
def test_an_early_end_of_one_ends_all(pair, few, tmp_path, how, rank):
    begun = time.monotonic()
    told = pair('learn', options=options(few, 1, run_dir=tmp_path/'r'), act=dict(rank=rank, at=5, how=how))
    assert time.monotonic() - begun < 30
    saved = [*Checkpoints(tmp_path/'r'/'checkpoints'/'stage1').manifest['files']]
    if how == 'SIGTERM':
        for a in told: assert 'stopped by SIGTERM in epoch 1 after step 5' in a['result']['stopped'], a
    else:
        own, other = told[rank], told[1 - rank]
        kind, text = {'odd': ('ValueError', 'odd'), 'full': ('OutOfRoom', 'could not go on'), 'interrupt': ('KeyboardInterrupt', '')}[how]
        assert own['kind'] == kind and text in own['error'], own
        assert other['kind'] == 'Ended' and f'process {rank} on' in other['error'] and text in other['error'], other
    assert saved == ([] if how == 'full' else ['epoch-0000-step-00000005.safetensors'])

@pytest.mark.parametrize('rank', [0, 1])
def test_one_that_fails_before_the_first_step_ends_all(pair, few, tmp_path, rank):
    "The others would wait for its weights"
    told = pair('learn', options=options(few, 1, run_dir=tmp_path/'r'), act=dict(rank=rank, how='early'))
    assert told[rank]['kind'] == 'ValueError' and told[rank]['seconds'] < 20, told
    assert told[1 - rank]['kind'] == 'Ended' and f'process {rank} on' in told[1 - rank]['error'], told

DRAWN = """
import os, torch
from maou_nb import register_backbone
from maou_nb.model.backbones import ResNet

@register_backbone('drawn')
class Drawn(ResNet):
    "Its weights are drawn by each process for itself"
    def __init__(self):
        super().__init__(channels=8, blocks=1)
        own = torch.Generator().manual_seed(int(os.environ['RANK']))
        with torch.no_grad():
            for p in self.parameters(): p.normal_(0, 0.1, generator=own)
"""

SPARE = """
import torch
from maou_nb import register_backbone
from maou_nb.model.backbones import ResNet

@register_backbone('spare')
class Spare(ResNet):
    "Its weights are not all used, and not the same in each process"
    def __init__(self):
        super().__init__(channels=8, blocks=1)
        self.spare, self.chance = torch.nn.Linear(3, 3), torch.nn.Linear(8, 8)
    def forward(self, *given):
        x = super().forward(*given)
        return x + self.chance(x.transpose(1, -1)).transpose(1, -1) if self.training and torch.rand(()) < 0.5 else x
"""

def test_a_norm_with_a_forward_pass_of_its_own_is_refused_at_each_door(pair, few, tmp_path, monkeypatch):
    class Halved(torch.nn.BatchNorm2d):
        def forward(self, x): return super().forward(x)/2
    class Own(ResNet):
        def __init__(self): super().__init__(8, 1); self.last = Halved(8)
    monkeypatch.setitem(BACKBONES, 'own', Own); monkeypatch.setitem(SIZES, 'own', {})
    monkeypatch.setattr(rules, '_cell_parts', lambda cfg: [])        # as if a plugin had it
    given = {k: v for k, v in options(few, 1, run_dir=tmp_path/'r').items() if k not in TINY['resnet']} | dict(model_architecture='own')
    said = 'Halved is a batch norm with a forward pass of its own'
    marks = lambda **more: {mark for _, _, finding, mark in preflight(**given, **more).lines if said in finding}
    assert marks(gpus=2) == {'bad'} and marks(gpus=2, sync_batchnorm=False) == marks() == set()
    with pytest.raises(OptionError, match=said): share_norms(Own(), torch.device('cpu'))

@pytest.mark.parametrize('several, why, error, seconds', [(True, 'SIGTERM', None, 20), (True, '', ValueError, 20), (True, '', None, 60),
                                                          (False, 'SIGTERM', None, 60)])
def test_a_mirror_is_waited_for_as_long_as_a_launcher_waits(monkeypatch, several, why, error, seconds):
    "torch's kills processes 30 seconds after it has told them to end"
    waited = []
    monkeypatch.setattr(learn, 'Mirror', lambda copies, say: SimpleNamespace(close=waited.append))
    monkeypatch.setattr(learn, 'mirror_folders', lambda cfg, run: {'run': 's3://bucket/run'})
    monkeypatch.setattr(learn, 'launched', lambda: several)
    with suppress(ValueError), learn._mirrored(LearnConfig(), None, print, SimpleNamespace(why=why)):
        if error: raise error
    assert waited == [seconds]

def test_a_run_in_the_memory_of_one_process_is_refused(few):
    given = options(few, 1, run_dir='memory://bucket/run')
    make_config(**given)
    with pytest.raises(OptionError, match='each process has a memory of its own'): make_config(**given, gpus=2)
    assert not [*process_problems(LearnConfig(gpu='cpu:0', gpus=2))]

def test_preflight_knows_of_processes_without_rows(few, tmp_path):
    told = preflight(**options(few, 1, run_dir=tmp_path/'r', stage1_batch_size=2, stage12_compilation=True), gpus=3).lines
    for said in ('1 of 3 processes have no row in any', 'nothing is compiled, as it is no multiple of 3, the number of processes'):
        assert ('1', 'option', f'batch 2: {said}', 'look') in [(str(s), *line) for s, *line in told], told

def test_weights_may_be_left_out(pair, few, tmp_path):
    (tmp_path/'spare.py').write_text(SPARE)
    given = {k: v for k, v in options(few, 1, run_dir=tmp_path/'r').items() if k not in TINY['resnet']}
    told = pair('learn', options=given | dict(plugins=str(tmp_path/'spare.py'), model_architecture='spare'))
    for a in told: assert 'result' in a, a

@pytest.mark.parametrize('rank, asked', [(0, 'evaluate'), (1, 'evaluate'), (0, 'state'), (1, 'look')])
def test_what_takes_all_and_is_asked_of_one_ends_in_a_sentence(pair, few, tmp_path, rank, asked):
    "As by a callback that says something in the main process alone; they would wait for each other for ever"
    told = pair('learn', options=options(few, 1, run_dir=tmp_path/'r', stage1_max_epochs=2), act=dict(rank=rank, at=asked, how='lone'))
    for a in told:
        assert a['kind'] == 'OutOfStep' and a['seconds'] < 30 and 'a callback has to make them in each' in a['error'], a
        assert f'process {rank} is in' in a['error'] and {'look': 'check_loss'}.get(asked, asked) in a['error'], a

def test_a_loss_that_is_no_number_ends_all(pair, few, tmp_path):
    told = pair('learn', options=options(few, 1, run_dir=tmp_path/'r', checkpoint_every=2), act=dict(how='nan'))
    for a in told: assert a['kind'] == 'Diverged' and 'stage 1 diverged' in a['error'], a
    assert not Checkpoints(tmp_path/'r'/'checkpoints'/'stage1').manifest['files']

def test_norms_of_gpus_are_torchs_and_can_be_copied(pair):
    "Averaged weights are a copy, made when the norms are shared already"
    for told in pair('gpu_norms'):
        assert 'broken' not in told, told['broken']
        assert told['shared'] == told['copied'] == [True]*3 and told['held']

def test_a_process_may_see_its_own_gpu_alone(pair, few):
    "Which is number 0 there, whatever number the process has"
    for told in pair('gpu_wrap', options=options(few, 1)):
        assert 'broken' not in told, told['broken']
        assert (told['kind'], told['devices']) == ('DistributedDataParallel', None)

def test_options_are_refused_once(pair, few, tmp_path):
    told = pair('learn', options=options(few, 1, run_dir=tmp_path/'r', epochs=0))
    assert [a['kind'] for a in told] == ['OptionError']*2 and not (tmp_path/'r').exists()

def vit(few, folder, **more):
    return options(few, 3, 'vit', stage3_batch_size=69, gradient_accumulation_steps=2, ema_decay=0.9, run_dir=folder) | {'epoch': 2, **more}

def saved(folder, stage='stage3'): return load_tensors(Checkpoints(folder/'checkpoints'/stage).path('last'))

def history(told): return told['result']['stages_completed'][0]['history'] if 'result' in told else told

def test_resume_is_exact_and_dropout_differs_by_process(pair, few, tmp_path):
    given = lambda name, **o: vit(few, tmp_path/name, vit_dropout=0.2, **o)
    whole = pair('learn', options=given('a'))
    pair('learn', options=given('b'), act=dict(rank=1, at=5))
    tensors, about = saved(tmp_path/'b')
    assert about['processes'] == 2 and about['step'] == 5
    assert not torch.equal(tensors['random.cpu'], tensors['process.1.random.cpu'])
    again = pair('learn', options=given('b', resume_from='latest'))
    assert timeless(history(again[0])) == timeless(history(whole[0]))
    for a, b in zip(saved(tmp_path/'a')[0].items(), saved(tmp_path/'b')[0].items()): assert a[0] == b[0] and torch.equal(a[1], b[1]), a[0]

def test_each_row_has_its_own_score(pair, few, tmp_path):
    "Processes have every other row of a batch, and one writes the table"
    given = options(few, 3, row_results=True, stage3_batch_size=37, learning_ratio=1e-9)
    for a in pair('learn', options=given | dict(run_dir=tmp_path/'two')): assert 'result' in a, a
    assert 'result' in done('learn', dict(options=given | dict(run_dir=tmp_path/'one')))
    two, one = row_results(tmp_path/'two'), row_results(tmp_path/'one')
    assert two['id'].equals(one['id']) and one['policy_loss'].n_unique() > len(one) // 2
    for name in ('policy_loss', 'brier'):
        assert two[name].to_list() == pytest.approx(one[name].to_list(), abs=1e-3), name

def test_another_number_of_processes_goes_on(pair, few, tmp_path):
    given = lambda name, **o: vit(few, tmp_path/name, **o)
    whole = pair('learn', options=given('a'))
    pair('learn', options=given('b'), act=dict(at=3))
    on = given('b', resume_from='latest')
    one = done('learn', dict(options=on, act=dict(at=11)))
    assert 'after step 11' in one['result']['stopped'] and 'processes' not in saved(tmp_path/'b')[1]
    again = pair('learn', options=on)
    near(history(again[0]), history(whole[0]), 1e-3)

def test_the_noise_scale_is_that_of_one_process(pair, few, tmp_path):
    "In 64 bits: two processes are the halves that one process measures; their shares of the last batch are 1 row and none"
    given = options(few, 1, 'vit', stage1_batch_size=69, noise_scale=True, adaptive_batch_measurement_interval=1)
    answers = pair('epoch', options=given, out=tmp_path/'two') + [done('epoch', dict(options=given, out=tmp_path/'one'))]
    for a in answers: assert 'broken' not in a, a['broken']
    near(answers[0]['history'], answers[2]['history'], 1e-3)
    assert answers[0]['history'][0]['noise_scale'] == answers[1]['history'][0]['noise_scale'] > 0
    plain = {k: v for k, v in given.items() if k != 'noise_scale'}
    for a in pair('epoch', options=plain, out=tmp_path/'plain'): assert 'broken' not in a, a['broken']
    a, b = (load_tensors(tmp_path/n)[0] for n in ('two-1', 'plain-1'))
    assert apart(a, b) < 1e-9                                          # to be measured changes nothing but rounding

def test_processes_steer_alike_and_go_on(pair, few, tmp_path):
    "Both have the same number of batches in each step, and a run that was stopped goes on to the bit"
    given = lambda name, **o: options(few, 3, 'vit', stage3_data_path=few/'six'/'stage3', stage3_batch_size=12, vit_dropout=0.2,
                                      run_dir=tmp_path/name, adaptive_batch=True, adaptive_batch_interval=3,
                                      adaptive_batch_measurement_interval=1) | {'epoch': 2, **o}
    whole = pair('learn', options=given('a'))
    assert whole[0]['result'] == whole[1]['result']
    tensors, about = saved(tmp_path/'a')
    numbers = {json.loads(l)['effective_batch'] for l in (tmp_path/'a'/'steps.jsonl').read_text().splitlines()}
    assert max(numbers) > 24 and about['batches_a_step'] in range(2, 9)
    pair('learn', options=given('b'), act=dict(rank=1, at=7))
    assert saved(tmp_path/'b')[1]['step'] == 7
    again = pair('learn', options=given('b', resume_from='latest'))
    assert timeless(history(again[0])) == timeless(history(whole[0]))
    for k, v in saved(tmp_path/'b')[0].items(): assert torch.equal(v, tensors[k]), k

@pytest.mark.parametrize('steps', [1, pytest.param(3, marks=pytest.mark.slow)])
def test_the_same_rate_is_found_by_all(pair, few, steps):
    asked = options(few, 1, stage1_batch_size=69, gradient_accumulation_steps=steps)
    first, second = pair('rates', options=asked)
    assert 'rates' in first, first
    assert (first['rates'], first['losses']) == (second['rates'], second['losses'])
    one = done('rates', dict(options=asked))
    assert first['losses'] == pytest.approx(one['losses'], rel=1e-3)

# of files for a look at the first rows, and in two epochs; of a map once, the held-out rows with them
@pytest.mark.parametrize('more, times, apart', [
    (dict(), 3, 6), (dict(input_cache_mode='memory'), 1, 2), (dict(input_cache_mode='mmap', no_streaming=True), 1, 1)])
def test_processes_of_a_machine_unpack_a_shard_once(pair, few, tmp_path, more, times, apart):
    given = options(few, 3, **more)
    one = [done('rows', dict(options=given, cache=tmp_path/'one', share=[r, 2])) for r in (0, 1)]
    two = pair('rows', options=given, cache=tmp_path/'two')
    for a in (*one, *two): assert 'broken' not in a, a['broken']
    assert [a['rows'] for a in two] == [a['rows'] for a in one] and len(set(one[0]['rows'] + one[1]['rows'])) > 20
    assert [a['cache'] for a in two] == ['mmap' if more else 'file']*2
    assert [sum(a['unpacked'] for a in both) / one[0]['shards'] for both in (two, one)] == [times, apart]
    if more.get('input_cache_mode') == 'memory': assert '2 processes of this machine hold their rows once' in two[0]['heard'][0]
    assert not any(a['folder'] and Path(a['folder']).exists() for a in two) and bool(two[0]['folder']) == (not more)

@pytest.mark.slow
def test_srun_starts_processes_as_well(few, tmp_path):
    node = dict(MASTER_ADDR='', MASTER_PORT='', SLURM_JOB_ID=str(os.getpid()), SLURM_STEP_ID='0', SLURM_NTASKS='8',
                SLURM_STEP_NODELIST='localhost')
    pair = Pair(tmp_path, names=('SLURM_PROCID', 'SLURM_LOCALID', 'SLURM_STEP_NUM_TASKS'), **node)
    try: two = pair('learn', options=options(few, 1, run_dir=tmp_path/'r', stage1_batch_size=69))
    finally: pair.close()
    assert two[0]['result'] == two[1]['result'] and two[1]['said'] == '' != two[0]['said'], two
    assert saved(tmp_path/'r', 'stage1')[1]['processes'] == 2

# --- processes that a run starts by itself
def test_gpus_starts_processes_and_returns_their_result(few, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('statistics.py').write_text('raise SystemExit("not the one of Python")')      # this process does not find it, so they don't
    monkeypatch.setattr(sys, 'path', [p for p in sys.path if p])
    given = options(few, 1, run_dir=tmp_path/'r', stage1_batch_size=69)
    result = learn_multi_stage(gpus=2, **given)
    assert capfd.readouterr().out.count('rows to train on') == 1
    assert result == load_run(tmp_path/'r') and result[1].epochs_trained == 1 and RunFolder(tmp_path/'r').read_config()['gpus'] == '2'
    assert load_tensors(result.checkpoint(1))[1]['processes'] == 2
    assert learn_multi_stage(**given | dict(run_dir=tmp_path/'one'))[1].final_loss == pytest.approx(result[1].final_loss, rel=1e-3)

def trains(few, folder):
    "A command with two processes that has trained an epoch of many"
    words = as_words(make_config(**options(few, 1, run_dir=folder, stage1_max_epochs=5000, stage1_threshold=0.9999, gpus=2)))
    run = subprocess.Popen([sys.executable, '-m', 'maou_nb.front.cli', 'learn-model', *words], stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not (folder/'history.jsonl').exists() and time.monotonic() < until: time.sleep(0.2)
    return run

@pytest.mark.slow
def test_a_command_with_gpus_is_ended_by_a_signal_and_prints_one_document(few, tmp_path):
    run = trains(few, tmp_path/'r')
    begun = time.monotonic()
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=40)
    assert time.monotonic() - begun < 30 and run.returncode == 130, err[-2000:]
    assert 'stopped by SIGINT' in json.loads(out)['stopped'] and 'Traceback' not in err

@pytest.mark.slow
def test_no_process_trains_on_whose_launcher_was_killed(few, tmp_path):
    run = trains(few, tmp_path/'r')
    launcher, = psutil.Process(run.pid).children()
    processes = launcher.children(recursive=True)
    launcher.kill()
    assert 'ended with exit code -9' in run.communicate(timeout=40)[1]
    assert len(processes) >= 2 and not psutil.wait_procs(processes, 30)[1]
    assert saved(tmp_path/'r', 'stage1')[1]['step'] > 0

def test_what_is_of_one_process_is_refused(few, monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2'); monkeypatch.setenv('RANK', '0')
    for name in ('study', 'search'):
        with pytest.raises(OptionError, match=f'{name}: one process was expected'): check_alone(name)
    with pytest.raises(OptionError, match='study: one process was expected'): study('s', options(few, 1), {'a': {}})
    monkeypatch.setattr(processes, '_at_home', 0)
    said, = process_problems(LearnConfig())
    assert said.startswith('notebook_launcher forks this kernel')

def test_what_other_processes_cannot_know_is_refused(few, monkeypatch):
    def refused(said, **more):
        with pytest.raises(OptionError, match=said): learn_multi_stage(**options(few, 1) | more)
    refused("gpus='2' with gpu='cuda:1'", gpus=2, gpu='cuda:1')
    refused("gpus='all': there is no GPU", gpus='all')
    refused('gpus=0: a number from 1 to 999', gpus=0)
    with pytest.raises(OptionError, match="callbacks: with gpus='2' other processes train"):
        learn_multi_stage(callbacks=[Callback()], **options(few, 1, gpus=2))
    with pytest.raises(OptionError, match="gpus='2': loss cell was registered in a cell"):
        register_loss('cell', of='policy')(lambda outputs, batch, cfg: {'loss': outputs['policy'].sum()})
        LOSSES.homes['cell'] = '__main__'
        learn_multi_stage(**options(few, 3, gpus=2, policy_loss='cell'))
    monkeypatch.setenv('WORLD_SIZE', '2'); monkeypatch.setenv('RANK', '0')
    assert [*process_problems(LearnConfig(gpus=2))] == ["gpus='2': a launcher has started several processes already; leave it out"]

def ends(pair, few, folder, how, said):
    "What is left of a run of which a process went in the midst of a step, or was killed"
    first, second = pair('learn', may_go=True, options=options(few, 1, run_dir=folder, checkpoint_every=3), act=dict(rank=1, at=5, how=how))
    assert first['kind'] == 'Ended' and re.search(said, first['error']) and first['seconds'] < 30, first
    for p in pair.all: p.wait(20)
    assert [*Checkpoints(folder/'checkpoints'/'stage1').manifest['files']] == ['epoch-0000-step-00000003.safetensors']
    return second

@pytest.mark.slow
def test_no_process_waits_for_one_that_was_killed(few, tmp_path):
    pair = Pair(tmp_path)
    try: assert ends(pair, few, tmp_path/'r', 'killed', 'gone without a word') == {'gone': True}
    finally: pair.close()

def test_a_python_that_sees_no_other_process_trains_as_well(monkeypatch):
    monkeypatch.delattr(os, 'pidfd_open', raising=False)
    together = Together(0, 2)
    together._see([_as_seen(), ('another machine', 'pid:[4026531836]', 1)])
    assert _as_seen() is None and not together.beside and together.one_gone() == ''

@pytest.mark.skipif(_as_seen() is None, reason='no process can be seen here')
def test_a_process_of_another_machine_is_not_looked_for():
    "Its number may be that of any process here; first namespaces are called alike everywhere"
    together, own = Together(0, 2), _as_seen()
    together._see([own, ('another boot', *own[1:])])
    assert not together.beside
    together._see([own, own])
    assert [*together.beside] == [1]
    os.close(together.beside[1])

@pytest.mark.slow
@pytest.mark.skipif(_as_seen() is None, reason='no process can be seen here')
def test_no_process_waits_in_a_step_for_one_that_was_killed(few, tmp_path):
    # NCCL does not notice it as gloo does
    pair, begun = Pair(tmp_path), time.monotonic()
    try: told = pair('learn', may_go=True, options=options(few, 1, run_dir=tmp_path/'r'), act=dict(rank=1, at=5, how='waits'))
    finally: pair.close()
    assert told == [{'gone': True}]*2 and time.monotonic() - begun < 60
    assert pair.all[0].returncode == 1 and 'process 1 on' in (said := pair.logs[0].read_text()) and 'gone without a word' in said

@pytest.mark.slow      # a process that was aborted would have failed the run that `gpus` starts, too
def test_nobody_watches_when_the_interpreter_ends(tmp_path):
    "A thread inside torch would abort it, whatever the run had come to; NCCL may wait in groups that were left open"
    look = ('import atexit, threading, torch.distributed as dist\n'
            'atexit.register(lambda: print([t.name for t in threading.enumerate()], "open" if dist.is_initialized() else "closed"))\n'
            'from maou_nb.train.processes import join; print(join().world, [t.name for t in threading.enumerate()])')
    env = {**os.environ, 'WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(free_port())}
    both = [subprocess.Popen([sys.executable, '-c', look], stdout=subprocess.PIPE, text=True,
                             env={**env, 'RANK': str(r), 'LOCAL_RANK': str(r)}) for r in range(2)]
    for p in both:
        joined, left = p.communicate(timeout=120)[0].splitlines()
        assert p.returncode == 0 and 'watch-over' in joined and 'watch-over' not in left and 'closed' in left, (joined, left)

WAITS = """
import os, signal, subprocess, sys, threading, time
from datetime import timedelta
import torch.distributed as dist
from maou_nb.train import processes
case, patience = sys.argv[1], timedelta(seconds=60)
keeper = subprocess.Popen([sys.executable, '-c', 'import torch.distributed as dist; s = dist.TCPStore("127.0.0.1", 0, 1, True);'
                           'print(s.port, flush=True); input()'], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
store = dist.TCPStore('127.0.0.1', int(keeper.stdout.readline()), timeout=patience)
dist.init_process_group('gloo', store=store, rank=0, world_size=1)
processes._PATIENCE, processes._SILENCE = 0.5, 3
together = processes.Together(0, 2)
if case == 'seen': processes.Together.one_gone = lambda self: 'process 1 is gone'
elif case == 'alive': threading.Thread(target=lambda s: [(processes.Together(1, 2)._silent(s, {}), time.sleep(1)) for _ in range(12)],
                                       args=(dist.distributed_c10d._get_default_store().clone(),), daemon=True).start()
if case == 'met': together.meeting = True
else: together.amid = case != 'idle'
if case == 'keeper':
    together.running = True
    signal.signal(signal.SIGTERM, lambda *about: print('asked to end', file=sys.stderr, flush=True))
together.watch()
if case in ('alive', 'idle'): time.sleep(7)
elif case == 'keeper': keeper.kill()
if case == 'seen': dist.distributed_c10d._get_default_store().get('what process 1 would have said')
elif case in ('silent', 'met', 'keeper'): [time.sleep(1) for _ in range(60)]
if case == 'alive': os._exit(0)       # its thread is inside torch
keeper.kill()
"""

@pytest.mark.parametrize('case, said', [
    ('seen', 'process 1 is gone'),        # it waits in the store, as NCCL does there for all before the first tensor is sent
    ('silent', 'process 1 is gone'), *(pytest.param(*p, marks=pytest.mark.slow) for p in (
        ('met', 'process 1 is gone'), ('keeper', 'resume_from="latest" goes on\nasked to end'), ('alive', ''), ('idle', '')))])
def test_who_waits_for_one_that_is_gone_ends(case, said):
    "Also where its whole machine is, or the one that keeps the store; not where it counts, or nobody waits"
    begun = time.monotonic()
    done = subprocess.run([sys.executable, '-c', WAITS, case], capture_output=True, text=True, timeout=120)
    assert done.returncode == bool(said) and said in done.stderr and time.monotonic() - begun < 30, done

@pytest.mark.slow
def test_four_processes_are_one(few, tmp_path):
    four = Pair(tmp_path, 4)
    try: answers = four('epoch', options=(given := options(few, 3, stage3_batch_size=37)), out=tmp_path/'four')
    finally: four.close()
    for a in answers: assert 'broken' not in a, a['broken']
    assert 'broken' not in done('epoch', dict(options=given, out=tmp_path/'one'))
    many, one = (part(load_tensors(tmp_path/n)[0], 'net.') for n in ('four-3', 'one-0'))
    assert apart(many, one) < 1e-6

def test_no_process_waits_for_one_that_failed_in_a_step(pair, few, tmp_path):
    # the last one: afterwards the pair is gone
    assert ends(pair, few, tmp_path/'r', 'amid', 'process 1 on .* ended the run: ValueError: odd in a step')['kind'] == 'ValueError'
