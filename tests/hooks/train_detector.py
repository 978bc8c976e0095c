"""A short training of a tiny detector on noise, with and without graphs."""

import itertools

import numpy as np
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from torch.utils.data import Dataset

import evmamba_mm  # noqa: F401  mends what is imported next

from ..configs.leaves import load

LEAVES = {
    'retinanet': 'retinanet_evmamba-tiny_fpn_8xb2-1x_coco',
    'mask-rcnn': 'mask-rcnn_evmamba-tiny_fpn_8xb2-amp-1x_coco',
}
# Pairs of them fit on two canvases.
SIZES = [(64, 96), (60, 90), (96, 64), (90, 60)]
CANVASES = [(64, 96), (96, 64)]
CHANNELS = [16, 32, 64, 128]
_runs = itertools.count()


class LossHook(Hook):
    """Keeps every loss."""

    def __init__(self):
        self.losses = []

    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        self.losses.append({k: float(v) for k, v in outputs.items()})


@DATASETS.register_module(force=True)
class RandomScenes(Dataset):
    """Noise of a few sizes with two objects each."""

    metainfo = dict(classes=['thing'] * 80)

    def __init__(self, rounds):
        self.rounds = rounds

    def __len__(self):
        return len(SIZES) * self.rounds

    def __getitem__(self, index):
        from mmdet.structures import DetDataSample
        from mmdet.structures.mask import BitmapMasks
        from mmengine.structures import InstanceData

        height, width = SIZES[index % len(SIZES)]
        generator = torch.Generator().manual_seed(index % len(SIZES))
        boxes = torch.tensor(
            [[4.0, 6.0, 40.0, 44.0], [20.0, 12.0, 56.0, 58.0]]
        )
        masks = np.zeros((2, height, width), dtype=np.uint8)
        masks[0, 6:44, 4:40] = masks[1, 12:58, 20:56] = 1
        sample = DetDataSample(
            metainfo=dict(
                img_shape=(height, width),
                ori_shape=(height, width),
                scale_factor=(1.0, 1.0),
            )
        )
        sample.gt_instances = InstanceData(
            bboxes=boxes,
            labels=torch.tensor([3, 70]),
            masks=BitmapMasks(masks, height, width),
        )
        image = torch.randint(
            256, (3, height, width), generator=generator, dtype=torch.uint8
        )
        return dict(inputs=image, data_samples=sample)


def config(kind, folder, hooks, rounds):
    """The shipped config with a small model on noise, without a schedule."""
    cfg = load(LEAVES[kind])
    model = cfg.model
    model.backbone.update(arch='atto', init_cfg=None, drop_path_rate=0.0)
    first = 1 if kind == 'retinanet' else 0
    model.neck.in_channels = CHANNELS[first:]
    model.data_preprocessor.batch_augments[0].canvases = CANVASES
    return Config(
        dict(
            default_scope='mmdet',
            experiment_name=f'detector{next(_runs)}',
            work_dir=str(folder),
            model=model,
            train_dataloader=dict(
                dataset=dict(type='RandomScenes', rounds=rounds),
                batch_size=2,
                num_workers=0,
                collate_fn=dict(type='pseudo_collate'),
                sampler=dict(type='DefaultSampler', shuffle=False),
            ),
            train_cfg=dict(by_epoch=True, max_epochs=1),
            # The weights stay almost as they are: proposals are the same.
            optim_wrapper=dict(
                type=cfg.optim_wrapper.type,
                optimizer=dict(type='SGD', lr=1e-6),
            )
            if torch.cuda.is_available()
            else dict(optimizer=dict(type='SGD', lr=1e-6)),
            default_hooks=dict(checkpoint=None),
            custom_hooks=hooks,
            randomness=dict(seed=0),
            log_level='WARNING',
        )
    )


def train(cfg):
    """Trains; returns the losses and the module."""
    runner = Runner.from_cfg(cfg)
    losses = LossHook()
    runner.register_hook(losses)
    runner.train()
    return losses.losses, runner.model
