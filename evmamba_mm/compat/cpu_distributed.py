"""Training in several processes without a GPU.

Breaks: `torchrun` with a stock train tool, with "Found no NVIDIA driver",
then with DistributedDataParallel's "device_ids" error.
Why: mmengine selects a CUDA device before it starts the process group, and
hands each model wrapper a device id.
Fix: the tool starts the group with the gloo backend first, which mmengine
then keeps, and the config's model wrapper gets no device id.
Remove when mmengine starts processes without a GPU.
"""

import datetime
import logging
from collections.abc import Iterator

import torch
from mmengine.config import Config
from mmengine.device import get_device
from torch import distributed

SYNC_BN_TYPES = ('SyncBN', 'SyncBatchNorm', 'MMSyncBN')

logger = logging.getLogger('evmamba_mm')


def init_cpu_dist(cfg: Config, launcher: str) -> bool:
    """Starts the gloo group and adapts the config, where there is no GPU.

    Call it before building the runner. With launcher 'none' or with an
    accelerator it does nothing, because mmengine works there. It uses
    `cfg.env_cfg.dist_cfg.timeout`, in seconds.

    Returns:
        Whether the processes train on the CPU.

    Raises:
        ValueError: the launcher is not 'pytorch', or the model has a
            SyncBN, which torch has for GPUs only.
    """
    if launcher == 'none' or get_device() != 'cpu':
        return False
    if launcher != 'pytorch':
        raise ValueError(
            f"launcher is {launcher!r}; without a GPU only 'none' and "
            "'pytorch' (torchrun) are legal"
        )
    _refuse_sync_bn(cfg)
    if not distributed.is_initialized():
        distributed.init_process_group('gloo', timeout=_timeout(cfg))
        count = distributed.get_world_size()
        logger.info('no GPU: training on the CPU in %d gloo processes', count)
    wrapper = cfg.get('model_wrapper_cfg') or dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    cfg.model_wrapper_cfg = dict(wrapper, device_ids=None)
    return True


def _timeout(cfg: Config) -> datetime.timedelta | None:
    seconds = cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout')
    return None if seconds is None else datetime.timedelta(seconds=seconds)


def _refuse_sync_bn(cfg: Config) -> None:
    if cfg.get('sync_bn') is not None:
        raise ValueError(
            f'sync_bn is {cfg.sync_bn!r}; without a GPU only None is legal: '
            'torch has no SyncBN for the CPU'
        )
    place = next(_sync_bn_places(cfg.get('model'), 'model'), None)
    if place is not None:
        raise ValueError(
            f'{place} is a SyncBN, which torch has for GPUs only; without a '
            "GPU use type='BN', or a single process, which converts SyncBN "
            'to BN'
        )


def _sync_bn_places(node: object, path: str) -> Iterator[str]:
    if isinstance(node, dict):
        kind = node.get('type')
        name = getattr(kind, '__name__', kind)
        if isinstance(name, str) and name.split('.')[-1] in SYNC_BN_TYPES:
            yield f'{path}.type={name!r}'
        for key, child in node.items():
            yield from _sync_bn_places(child, f'{path}.{key}')
    elif isinstance(node, list | tuple):
        for index, child in enumerate(node):
            yield from _sync_bn_places(child, f'{path}[{index}]')
    elif isinstance(node, torch.nn.SyncBatchNorm):
        yield path
