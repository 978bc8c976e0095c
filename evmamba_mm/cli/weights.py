"""Reports missing checkpoints and checkpoints of another model."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn

from ..backbones import ARCHS, EfficientVMamba
from ..backbones.pretrained import check_pretrained
from ..hub import RELEASED
from ..weight_files import BrokenWeightsError, mismatch
from .checks import children
from .stored_state import garbage_of


def check_weight_files(cfg: Config) -> None:
    """Raises if a checkpoint file is missing."""
    load_from = cfg.get('load_from')
    if is_missing(load_from):
        raise FileNotFoundError(
            f'load_from is {load_from!r}, and there is no such file in '
            f'{os.getcwd()}; give another: --cfg-options load_from=FILE'
        )
    for key, init_cfg in pretrained_configs(cfg.get('model'), 'model'):
        if is_missing(init_cfg.get('checkpoint')):
            owner = key.rpartition('.init_cfg')[0]
            raise FileNotFoundError(
                missing_message(cfg, key, owner, init_cfg['checkpoint'])
            )


def is_missing(path: str | None) -> bool:
    """Return whether `path` names a local path that is not there."""
    return bool(path) and '://' not in path and not Path(path).exists()


def pretrained_configs(node: object, path: str) -> Iterator[tuple[str, dict]]:
    """Yields (key, init_cfg) of each that takes weights from a file."""
    if isinstance(node, dict) and node.get('type') == 'Pretrained':
        yield path, node
        return
    for key, child in children(node):
        yield from pretrained_configs(child, f'{path}.{key}')


def missing_message(cfg: Config, key: str, owner: str, checkpoint: str) -> str:
    """Say what to do about an init_cfg whose checkpoint is not there."""
    module = cfg
    for name in owner.split('.'):
        module = module[int(name) if name.isdecimal() else name]
    # Without pretrained statistics BatchNorm has to learn its own.
    learn = f' {owner}.norm_eval=False' if module.get('norm_eval') else ''
    make = ''
    if module.get('type') in ('EfficientVMamba', 'VMamba', 'Vim'):
        arch = module.get('arch', 'tiny')
        option = f' --arch {arch}' if isinstance(arch, str) else ''
        if module.type == 'EfficientVMamba' and option and arch in RELEASED:
            make = (
                f'\nFetch the released weights from {RELEASED[arch].page}:\n'
                f'  python tools/model_converters/fetch_weights.py {arch} '
                f'{checkpoint}'
            )
        make += (
            '\nConvert a released file that you have:\n  python '
            f'tools/model_converters/convert_checkpoint.py RELEASED '
            f'{checkpoint}{option}\n(from a wheel: mim run evmamba_mm '
            'fetch_weights ... or convert_checkpoint ...)'
        )
    return (
        f'{key}.checkpoint is {checkpoint!r}, and there is no such file in '
        f'{os.getcwd()}{make}\nTo use another:\n  --cfg-options '
        f'{key}.checkpoint=FILE\nTo start from random weights:\n  '
        f'--cfg-options {owner}.init_cfg=None{learn}'
    )


def check_backbone(
    runner: Runner, key: str, checkpoint: str, prefix: str | None = 'backbone.'
) -> None:
    """Refuses a checkpoint of another arch, where the backbone is ours.

    A head may differ: a detector can start from another data set's.
    """
    backbone = backbone_of(runner.model)
    if not isinstance(backbone, EfficientVMamba):
        return
    settings = dict(checkpoint=checkpoint, prefix=prefix)
    try:
        check_pretrained(backbone, settings)
    except BrokenWeightsError as error:
        raise BrokenWeightsError(f'{key}: {error}') from error
    except ValueError as error:
        stored, built = stored_arch(checkpoint), arch_of(backbone.state_dict())
        if stored is None or stored == built:
            raise ValueError(f'{key}: {error}') from error
        raise ValueError(
            f'{key}: {checkpoint} holds weights of arch {stored}, and the '
            f'backbone of the config has arch {built}; take a checkpoint of '
            f'arch {built} or a config of arch {stored}'
        ) from error


def backbone_of(model: nn.Module) -> nn.Module | None:
    """Finds the backbone inside of the wrappers of a model."""
    while hasattr(model, 'module'):
        model = model.module
    return getattr(model, 'backbone', None)


def stored_arch(checkpoint: str) -> str | None:
    """Return the arch of the weights in a file, or None."""
    stored = CheckpointLoader.load_checkpoint(checkpoint, 'cpu')
    return arch_of(stored.get('state_dict', stored))


def arch_of(state_dict: Mapping[str, Tensor]) -> str | None:
    """Reads the variant off the width of the stem, which is all their own."""
    stem = 'patch_embed.conv.weight'
    widths = [len(v) for k, v in state_dict.items() if k.endswith(stem)]
    names = {arch.channels[0]: name for name, arch in ARCHS.items()}
    if not widths:
        return None
    return repr(names.get(widths[0], f'with a stem of {widths[0]} channels'))


def starting_weights(cfg: Config) -> Iterator[tuple[str, str, str | None]]:
    """Yields (key, checkpoint, prefix) of what the backbone starts from."""
    if cfg.get('load_from'):
        key = 'resume' if cfg.get('resume') else 'load_from'
        yield key, cfg.load_from, 'backbone.'
    for key, init_cfg in pretrained_configs(cfg.get('model'), 'model'):
        if key.startswith('model.backbone.'):
            yield key, init_cfg['checkpoint'], init_cfg.get('prefix')


def load_strictly(runner: Runner) -> None:
    """Makes the runner refuse a checkpoint with other keys than the model's.

    A model with weights left at random would still print a score.
    """
    load = runner.load_checkpoint

    def load_checkpoint(
        filename: str,
        map_location: str | Callable = 'cpu',
        strict: bool = True,
        revise_keys: list = [(r'^module.', '')],  # noqa: B006  mmengine's
    ) -> dict:
        try:
            return load(filename, map_location, True, revise_keys)
        except (KeyError, RuntimeError) as error:
            # A KeyError is of an average that has other weights.
            known = isinstance(error, KeyError)
            if not known and 'do not match exactly' not in str(error):
                raise
            raise BrokenWeightsError(
                f'{filename} does not fit the model of the config: '
                f'{mismatch(str(error))}; the config is of another model, or '
                'the file is'
            ) from error

    runner.load_checkpoint = load_checkpoint


def resume_strictly(runner: Runner) -> None:
    """Makes the runner say which file's state does not fit the training.

    Such as that of an optimiser with other groups of parameters.
    """
    load_strictly(runner)
    stock, load = runner.resume, runner.load_checkpoint

    def load_checkpoint(
        filename: str, map_location: str | Callable = 'cpu'
    ) -> dict:
        checkpoint = load(filename, map_location)
        garbage = garbage_of(runner, checkpoint)
        if garbage:
            raise BrokenWeightsError(
                f'{filename} cannot be resumed: {"; ".join(garbage[:3])}. '
                'Resume from another file, or start from its weights by '
                f'--cfg-options load_from={filename}'
            )
        return checkpoint

    def resume(
        filename: str,
        resume_optimizer: bool = True,
        resume_param_scheduler: bool = True,
        map_location: str | Callable = 'default',
    ) -> None:
        settings = (resume_optimizer, resume_param_scheduler, map_location)
        try:
            stock(filename, *settings)
        except BrokenWeightsError:
            raise
        except (
            *(AssertionError, AttributeError),
            *(KeyError, TypeError, ValueError),
        ) as error:
            raise BrokenWeightsError(
                f'{filename} cannot be resumed with this config: '
                f'{type(error).__name__}: {" ".join(str(error).split())}. '
                'Take the config that it was trained with, or start from its '
                f'weights by --cfg-options load_from={filename}'
            ) from error

    runner.load_checkpoint = load_checkpoint
    runner.resume = resume
