"What acts otherwise on a GPU, looked at without one: torch is told that there is a card, and asked for nothing there"
import os
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import nn

from maou_nb.data import batches
from maou_nb.data.machine import give_back
from maou_nb.front import options as rules
from maou_nb.judge.evaluate import _computing
from maou_nb.train import loop as training
from maou_nb.train.callbacks import gpu_load
from maou_nb.train.loop import make_accelerator
from maou_nb.train.options import LearnConfig
from maou_nb.train.processes import share_norms

GIB = 1 << 30

@pytest.fixture
def card(monkeypatch):
    "A GPU as far as torch tells; what is asked of it is noted"
    asked = []
    for name, value in dict(is_available=True, device_count=2, current_device=1, memory_reserved=GIB, memory_allocated=GIB//4,
                            get_device_capability=(7, 5)).items():
        monkeypatch.setattr(torch.cuda, name, lambda *a, value=value, **k: value)
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda device: SimpleNamespace(total_memory=16*GIB))
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda device=None: (asked.append(str(device)), (8*GIB, 16*GIB))[1])
    monkeypatch.setattr(torch.cuda, 'set_device', lambda device: asked.append(f'set {device}'))
    return asked

class NotSupported(Exception): "As pynvml.NVMLError_NotSupported is one"

def test_a_card_that_does_not_tell_its_load_ends_no_run(card, monkeypatch):
    "As a share of one does not"
    def refuse(device): raise NotSupported('Not Supported')
    monkeypatch.setattr(torch.cuda, 'utilization', refuse)
    assert gpu_load(torch.device('cuda:0')) == {'gpu_memory': 1/16}

def test_who_starts_processes_takes_nothing_of_their_cards(card, monkeypatch):
    monkeypatch.setattr(rules, 'device_problems', lambda cfg: ())
    assert rules._room(LearnConfig(gpus=2)) == 16*GIB and card == []
    assert rules._room(LearnConfig()) == 8*GIB + 3*GIB//4 and card == ['cuda:1']
    monkeypatch.setenv('WORLD_SIZE', '2'); monkeypatch.setenv('RANK', '0'); monkeypatch.setenv('LOCAL_RANK', '0')
    for gpu in ('cuda', None): assert rules._room(LearnConfig(gpu=gpu)) > 8*GIB and card.pop() == 'cuda:0'

@pytest.mark.parametrize('gpu, there, said', [
    ('cpu', {'gcc'}, ['a C++ compiler on a CPU']), ('cpu', {'g++'}, []), (None, {'g++', 'triton'}, ['a C compiler on a GPU']),
    ('cuda:0', {'cc', 'triton'}, []), ('cuda:0', {'cc'}, ['Triton']), ('cuda:0', set(), ['Triton', 'a C compiler on a GPU'])])
def test_what_compiling_needs_is_missed_before_a_run(card, monkeypatch, gpu, there, said):
    monkeypatch.setattr(rules.shutil, 'which', lambda name: name if name in there else None)
    monkeypatch.setattr(rules, 'find_spec', lambda name: name if name in there else None)
    monkeypatch.setattr(rules, 'device_problems', lambda cfg: ())
    for name in ('CC', 'CXX'): monkeypatch.delenv(name, raising=False)
    found = [*rules.compiler_problems(LearnConfig(gpu=gpu, compilation=True))]
    assert len(found) == len(said) and all(a in b for a, b in zip(said, found)), found
    assert not [*rules.compiler_problems(LearnConfig(gpu=gpu))]

def test_a_named_compiler_will_do(monkeypatch):
    monkeypatch.setattr(rules.shutil, 'which', lambda name: name if name == '/opt/c++14' else None)
    monkeypatch.setenv('CXX', '/opt/c++14')
    assert not [*rules.compiler_problems(LearnConfig(gpu='cpu', compilation=True))]

@pytest.mark.parametrize('gpu, device', [('cuda:0', 'cuda:0'), ('cuda', 'cuda:1'), (None, 'cuda:1')])
def test_a_device_has_its_number(card, monkeypatch, gpu, device):
    "Each thread has a current GPU of its own: one without a number would be another there"
    monkeypatch.setattr(training, 'Accelerator', lambda **given: os.environ.get('ACCELERATE_TORCH_DEVICE'))
    assert make_accelerator(gpu, 'fp32') == device and card == [f'set {device}'] and 'ACCELERATE_TORCH_DEVICE' not in os.environ

def test_processes_compute_in_one_precision(card, monkeypatch):
    "Of cards that differ, what the main process's can"
    monkeypatch.setattr(training, 'join', lambda: SimpleNamespace(tell=lambda make: 'bf16'))
    monkeypatch.setattr(training, 'Accelerator', lambda **given: given)
    assert make_accelerator('cuda:0', 'auto')['mixed_precision'] == 'bf16'

def test_what_is_judged_in_fp32_is():
    "Whatever a run in the same kernel had; that is so again afterwards"
    for precision, was in (('tf32', True), ('fp32', False)):
        make_accelerator('cpu', precision)
        with pytest.raises(ZeroDivisionError), _computing(torch.device('cpu'), 'fp32'):
            assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
            1/0
        assert torch.backends.cudnn.allow_tf32 is torch.backends.cuda.matmul.allow_tf32 is was

def test_a_share_of_no_rows_sends_what_the_others_send():
    "torch would send its sums in the 16 bits of its rows, where the others send 32"
    net = nn.Sequential(nn.BatchNorm2d(4))
    share_norms(net, torch.device('cuda'))
    seen = []
    with patch.object(nn.SyncBatchNorm, 'forward', lambda self, x: (seen.append(x.dtype), x)[1]):
        for rows in (0, 3): net(torch.zeros(rows, 4, 9, 9, dtype=torch.bfloat16))
    assert seen == [torch.float32, torch.bfloat16]

def test_flags_are_read_without_floats_of_64_bits():
    "Which Apple's GPUs do not have"
    packed = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 187), dtype=np.uint8))
    plain, table = batches.unpack_bits(packed), batches._on('flags', torch.device('cpu'))
    with patch.object(batches, '_on', lambda name, device: table.view(torch.int64)):
        assert torch.equal(batches.unpack_bits(packed), plain)
    with patch.object(torch.Tensor, 'to', lambda self, device: self):
        assert batches._on.__wrapped__('flags', torch.device('mps')).dtype == torch.int64

def test_what_torch_holds_is_given_back_before_others_start(monkeypatch):
    done = []
    monkeypatch.setattr(torch.cuda, 'is_initialized', lambda: True)
    monkeypatch.setattr(torch.cuda, 'empty_cache', lambda: done.append(True))
    give_back()
    assert done == [True]
