"""Strict checks for ``init_cfg=dict(type='Pretrained')``.

mmengine does not load such weights strictly: with a checkpoint of another
size it logs a line and trains from random weights.
"""

import re

from mmengine.model import PretrainedInit
from mmengine.runner.checkpoint import CheckpointLoader
from torch import nn

# A dense backbone norms more stages than a classifier: fresh norms are right.
_MAY_BE_FRESH = re.compile(r'norm\d+\.')
# Stages beyond the last output are not built, so their weights have no place.
_MAY_BE_LEFT = re.compile(
    r'(norm\d+|stages\.\d+|downsamples\.\d+|layers\.\d+)\.'
)


def _stored_shapes(
    checkpoint: str, prefix: str | None, map_location: str
) -> dict[str, tuple[int, ...]]:
    stored = CheckpointLoader.load_checkpoint(checkpoint, map_location)
    state_dict = stored.get('state_dict', stored)
    prefix = '' if prefix is None else prefix.rstrip('.') + '.'
    plain = {re.sub(r'^module\.', '', k): v for k, v in state_dict.items()}
    return {
        key[len(prefix) :]: tuple(value.shape)
        for key, value in plain.items()
        if key.startswith(prefix)
    }


def check_pretrained(module: nn.Module, init_cfg: dict) -> None:
    """Refuse a checkpoint that does not fill the module.

    Args:
        module: The backbone, built.
        init_cfg: A config of type 'Pretrained'.

    Raises:
        ValueError: If the checkpoint lacks a weight of the module (other than
            an output norm), holds one in another shape, or holds one that the
            module does not know.
    """
    checkpoint = init_cfg['checkpoint']
    stored = _stored_shapes(
        checkpoint,
        init_cfg.get('prefix'),
        init_cfg.get('map_location', 'cpu'),
    )
    own = {k: tuple(v.shape) for k, v in module.state_dict().items()}
    missing = [
        k for k in own if k not in stored and not _MAY_BE_FRESH.match(k)
    ]
    unknown = [k for k in stored if k not in own and not _MAY_BE_LEFT.match(k)]
    reshaped = [
        f'{k} {stored[k]} instead of {own[k]}'
        for k in own
        if k in stored and stored[k] != own[k]
    ]
    if not (missing or unknown or reshaped):
        return
    raise ValueError(
        f'{checkpoint} does not hold the weights of this '
        f'{type(module).__name__}: {len(missing)} missing {missing[:3]}, '
        f'{len(unknown)} unknown {unknown[:3]}, {len(reshaped)} of another '
        f"shape {reshaped[:3]}. Check arch, prefix ('backbone.' for a "
        'classifier or detector) and whether a released checkpoint went '
        'through tools/model_converters/convert_checkpoint.py'
    )


def pretrained_configs(init_cfg: dict | list | None) -> list[dict]:
    """The configs of type 'Pretrained' among ``init_cfg``."""
    configs = [init_cfg] if isinstance(init_cfg, dict) else init_cfg or []
    return [c for c in configs if c['type'] in ('Pretrained', PretrainedInit)]
