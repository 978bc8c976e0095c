"""Weights from files: released layouts translated, wrong files refused.

mmengine does not load weights strictly: with a checkpoint of another size it
logs a line and trains from random weights.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmengine.model import BaseModule, PretrainedInit
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn

from ..checkpoint import convert_released, is_released

# A dense backbone norms more stages than a classifier: fresh norms are right.
_MAY_BE_FRESH = re.compile(r'norm\d+\.')
# Stages beyond the last output are not built, so their weights have no place.
_MAY_BE_LEFT = re.compile(
    r'(norm\d+|stages\.\d+|downsamples\.\d+|layers\.\d+)\.'
)
_ADVICE = (
    "Check arch, and prefix ('backbone.' for a classifier, detector or "
    'released file)'
)

_logger = logging.getLogger('evmamba_mm')


def _stored_weights(
    checkpoint: str, prefix: str | None, map_location: str
) -> dict[str, Tensor]:
    # mmengine's own loading says the same afterwards.
    stored = CheckpointLoader.load_checkpoint(
        checkpoint, map_location, logger='silent'
    )
    state_dict = stored.get('state_dict', stored)
    prefix = '' if prefix is None else prefix.rstrip('.') + '.'
    plain = {re.sub(r'^module\.', '', k): v for k, v in state_dict.items()}
    return {
        key[len(prefix) :]: value
        for key, value in plain.items()
        if key.startswith(prefix)
    }


@dataclass(frozen=True)
class _Differences:
    """What keeps weights from filling a module."""

    missing: list[str]
    unknown: list[str]
    reshaped: list[str]
    no_floats: list[str]

    def __str__(self) -> str:
        return (
            f'{len(self.missing)} missing {self.missing[:3]}, '
            f'{len(self.unknown)} unknown {self.unknown[:3]}, '
            f'{len(self.reshaped)} of another shape {self.reshaped[:3]}, '
            f'{len(self.no_floats)} of no real floating dtype '
            f'{self.no_floats[:3]}'
        )


def _is_fresh(module: nn.Module, key: str) -> bool:
    """Whether a checkpoint need not fill this weight."""
    pattern = getattr(module, 'fresh_keys', None)
    return pattern is not None and re.match(pattern, key) is not None


def _shape(value: object) -> tuple[int, ...] | str:
    """A tensor's shape, or what stands in the place of one."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    return f'a {type(value).__name__}'


def _compare(module: nn.Module, given: Mapping[str, Tensor]) -> _Differences:
    stored, own = (
        {
            key: _shape(value)
            for key, value in weights.items()
            if not _is_fresh(module, key)
        }
        for weights in (given, module.state_dict())
    )
    return _Differences(
        missing=[
            k
            for k in own
            if k not in stored
            and not _MAY_BE_FRESH.match(k)
            # Files of before BatchNorm counted its batches lack the counts.
            and not k.endswith('num_batches_tracked')
        ],
        unknown=[
            k for k in stored if k not in own and not _MAY_BE_LEFT.match(k)
        ],
        reshaped=[
            f'{k} {stored[k]} instead of {own[k]}'
            for k in own
            if k in stored and stored[k] != own[k]
        ],
        no_floats=[
            f'{k} of {given[k].dtype}'
            for k, value in module.state_dict().items()
            if isinstance(given.get(k), Tensor)
            and value.is_floating_point()
            and not given[k].is_floating_point()
        ],
    )


def check_pretrained(module: nn.Module, init_cfg: dict) -> None:
    """Refuse a checkpoint that does not fill the module.

    Args:
        module: The backbone, built.
        init_cfg: A config of type 'Pretrained'.

    Raises:
        ValueError: If the checkpoint lacks a weight of the module (other than
            an output norm), holds one in another shape or of no real floating
            dtype, or holds one that the module does not know.
    """
    checkpoint = init_cfg['checkpoint']
    stored = _stored_weights(
        checkpoint,
        init_cfg.get('prefix'),
        init_cfg.get('map_location', 'cpu'),
    )
    found = _compare(module, stored)
    if any((found.missing, found.unknown, found.reshaped, found.no_floats)):
        raise ValueError(
            f'{checkpoint} does not hold the weights of this '
            f'{type(module).__name__}: {found}. {_ADVICE}'
        )


def pretrained_configs(init_cfg: dict | list | None) -> list[dict]:
    """The configs of type 'Pretrained' among ``init_cfg``."""
    configs = [init_cfg] if isinstance(init_cfg, dict) else init_cfg or []
    return [c for c in configs if c['type'] in ('Pretrained', PretrainedInit)]


class PretrainedBackbone(BaseModule):
    """A backbone that loads released weights, and its own or none.

    Attributes:
        fresh_keys: Of weights that a subclass has in another form, a pattern
            from their start on. A checkpoint may lack them, or hold others.
    """

    fresh_keys: str | None = None

    def init_weights(self) -> None:
        """Initialise the weights; raise if pretrained ones do not fit."""
        for config in pretrained_configs(self.init_cfg):
            check_pretrained(self, config)
        super().init_weights()

    def _dump_init_info(self) -> None:
        """Log a line; mmengine logs three for each parameter."""
        files = [c['checkpoint'] for c in pretrained_configs(self.init_cfg)]
        _logger.info(
            '%s: %d parameters initialised %s',
            type(self).__name__,
            len(list(self.parameters())),
            f'from {files[-1]}' if files else 'at random',
        )

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Tensor],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Translate released keys, and refuse weights of another model.

        A part of the weights may be loaded: mmengine and torch then report
        what is missing.

        Raises:
            RuntimeError: If weights have another shape or no real floating
                dtype, or some are missing and the file has others that the
                model does not know.
        """
        own = {
            key.removeprefix(prefix): value
            for key, value in state_dict.items()
            if key.startswith(prefix)
        }
        if is_released(own):
            own = self._translate(own, state_dict, prefix)
        found = _compare(self, own)
        # Keys for which the models around this one have no place are known.
        foreign = found.unknown or (not own and unexpected_keys)
        misfits = found.reshaped or found.no_floats
        if misfits or (found.missing and foreign):
            place = prefix.removesuffix('.') or type(self).__name__
            raise RuntimeError(
                f'these are not the weights of the {type(self).__name__} at '
                f'{place!r}: {found}. {_ADVICE}'
            )
        for key, value in self.state_dict().items():
            stored = state_dict.get(prefix + key, value)
            if _is_fresh(self, key) and stored.shape != value.shape:
                del state_dict[prefix + key]
        super()._load_from_state_dict(
            state_dict,
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )

    def _translate(
        self, own: dict[str, Tensor], state_dict: dict, prefix: str
    ) -> dict[str, Tensor]:
        """Put translated weights in the place of released ones."""
        converted = convert_released(own, target='backbone')
        for key in own:
            del state_dict[prefix + key]
        for key, value in converted.state_dict.items():
            state_dict[prefix + key] = value
        _logger.info(
            'the weights have the layout of the released %s: translated%s',
            converted.model,
            ''.join(f', {key} left out' for key in converted.left_out),
        )
        return converted.state_dict
