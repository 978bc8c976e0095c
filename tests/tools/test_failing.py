"""A mistake that the first batch meets is a line that names the part."""

import re

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import HOOKS, Registry
from mmengine.runner import BaseLoop
from torch import nn

from evmamba_mm.cli import checks, failing, kinds, launch

from .test_train_test import run


@pytest.mark.parametrize(
    ('option', 'line'),
    [
        (
            'model.head.in_channels=64',
            r'model\.head \(LinearClsHead\) fails: mat1 and mat2 shapes .*'
            r'It has num_classes=2, in_channels=64\. Its input is 2x128$',
        ),
        (
            'model.data_preprocessor.mean=[1,2]',
            r'model\.data_preprocessor \(ClsDataPreprocessor\) fails: .*'
            r'mean=\[1, 2\], .* Its input is 3x32x32$',
        ),
        (
            'val_evaluator.thrs=x',
            r"val_evaluator \(Accuracy\) fails: .*thrs='x'$",
        ),
        (
            'optim_wrapper.clip_grad.max_nrm=5',
            r"optim_wrapper \(OptimWrapper\) fails: .* argument 'max_nrm'",
        ),
        (
            'default_hooks.checkpoint.filename_tmpl=5',
            r'default_hooks\.checkpoint \(CheckpointHook\) fails: .* .format. '
            r'\(\w+\.py, line \d+; .*\)\. It has .*filename_tmpl=5',
        ),
        (
            'default_hooks.checkpoint.out_dir=5',
            'default_hooks.checkpoint.out_dir must be a path, got 5',
        ),
        (
            'train_dataloader.sampler.shuffle=x',
            "DefaultSampler of .*: shuffle must be True or False, got 'x'$",
        ),
        (
            'optim_wrapper.optimizer.betas=[0.9]',
            'AdamW of the config cannot be built: list index out of range$',
        ),
        (
            'train_dataloader.persistent_workers=True',
            'the Runner refuses the config: persistent_workers option needs',
        ),
        (
            'default_hooks.checkpont.interval=2',
            'the Runner refuses the config: a part has no type, or its name',
        ),
    ],
)
def test_mistake_is_a_line(option, line, toy, warm_python):
    arguments = ['toy.py', '--work-dir', 'work_failing', '--cfg-options']
    status, output = run(
        *(toy, 'train.py', *arguments, option), python=warm_python.path
    )
    assert (status, 'Traceback' in output) == (1, False), output
    assert re.match(f'error: {line}', output.splitlines()[-1]), output


OWN = """
from mmengine.registry import MODELS
from mmpretrain.models import LinearClsHead

@MODELS.register_module()
class OwnHead(LinearClsHead):
    def pre_logits(self, feats):
        return super().pre_logits(feats)[:, :5]
    def forward(self, feats):
        return self.fc(self.pre_logits(feats))
"""


def test_call_of_a_users_file_keeps_its_traceback(toy, warm_python):
    (toy / 'own_head.py').write_text(OWN)
    (toy / 'own.py').write_text(
        "_base_ = 'toy.py'\n"
        "custom_imports = dict(imports=['evmamba_mm', 'own_head'])\n"
        "model = dict(head=dict(type='OwnHead'))\n"
    )
    status, output = run(
        *(toy, 'train.py', 'own.py', '--work-dir', 'work_failing'),
        python=warm_python.path,
        PYTHONPATH=str(toy),
    )
    assert status == 1
    assert 'own_head.py", line 10, in forward' in output


class Toy(BaseModel):
    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleList([nn.Linear(2, 1), nn.Linear(3, 1)])

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.heads[1](inputs)


class Loop(BaseLoop):
    def __init__(self, model):
        self.model = model

    def run(self):
        pass

    def run_iter(self, idx, batch):
        return self.model(batch)


@pytest.mark.parametrize(('idx', 'late'), [(0, False), (1, True)])
def test_part_of_the_first_batch(idx, late):
    heads = [dict(type='Linear', bias=value) for value in (1, 2)]
    cfg = Config(dict(model=dict(type='Toy', heads=heads)))
    with pytest.raises(RuntimeError) as caught:
        Loop(Toy()).run_iter(idx, torch.zeros(1, 2))
    said = failing.failed_part(caught.value, cfg, 'said')
    if late:
        assert said is None
        return
    assert re.fullmatch(
        r'model\.heads\.1 \(Linear\) fails: said \(linear\.py, line \d+; .*'
        r'\)\. It has bias=2\. Its input is 1x2',
        said,
    )


def test_words_in_the_place_of_numbers():
    class Base:
        def __init__(self, size: int = 1, mode: bool = 'auto'):
            pass

    class Part(Base):
        def __init__(self, ratio: 'float' = 1.0, name='a', size: int = 1):
            pass

    class Own:
        def __init__(self, width: int = 1, flag: bool = False):
            self.width = int(width)

    # As a library's.
    code = Part.__init__.__code__.replace(co_filename=failing.__file__)
    Part.__init__.__code__ = code
    registry = Registry('parts')
    registry.register_module(module=Part)
    with kinds.kinds_checked():
        for legal in (dict(ratio=1), dict(name='b'), dict(size=2.0)):
            registry.build(dict(type='Part', **legal))
        registry.build(cfg=dict(type=Base, mode='manual'))
        assert registry.build(dict(type=Own, width='3')).width == 3
        with pytest.raises(ValueError, match='flag must be True or False'):
            registry.build(dict(type=Own, flag='no'))
        for name in ('ratio', 'size'):
            with pytest.raises(
                ValueError, match=f"{name} must be a number.*'x"
            ):
                registry.build({'type': 'Part', name: 'x'})
    assert Registry.build.__module__ == 'mmengine.registry.registry'


def test_unknown_type_is_told_the_near_one():
    with pytest.raises(SystemExit) as stopped:
        with launch.building.mistakes_in_lines():
            HOOKS.build(dict(type='LoggerHok'))
    assert stopped.value.code.startswith(
        'error: LoggerHok of the config cannot be built: LoggerHok is not in '
        "the mmengine::hook registry; did you mean 'LoggerHook'?"
    )


def test_the_traceback_is_shown_where_it_is_wanted(monkeypatch, capsys):
    monkeypatch.setenv(checks.TRACEBACK, '1')
    with pytest.raises(SystemExit):
        with launch.building.mistakes_in_lines():
            HOOKS.build(dict(type='LoggerHok'))
    assert 'in build_from_cfg' in capsys.readouterr().err
    with pytest.raises(SystemExit, match='error: of an image'):
        with launch.run_in_lines(Config(dict(work_dir='none'))):
            raise launch.samples.SampleError('of an image')
    assert 'in run_in_lines' in capsys.readouterr().err


def test_option_that_cannot_be_merged(tmp_path):
    (tmp_path / 'a.py').write_text('model = dict(init_cfg=None)\n')
    with pytest.raises(ValueError, match='--cfg-options: '):
        launch.load_config(tmp_path / 'a.py', ['model.init_cfg.type=X'])


def test_memory_of_the_gpu():
    with pytest.raises(SystemExit, match='error: the GPU has too little memo'):
        with launch.run_in_lines(Config(dict(work_dir='none'))):
            raise torch.OutOfMemoryError('CUDA out of memory.\nTried')


def checked_size(size):
    # pytest would give the assertion a message.
    if not size > 0:
        raise AssertionError


def test_an_error_without_a_message_is_told_by_its_code():
    with pytest.raises(AssertionError) as caught:
        checked_size(-1)
    assert failing.said_of(caught.value) == 'raise AssertionError'
