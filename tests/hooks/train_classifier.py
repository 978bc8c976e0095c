"""A short training of a tiny classifier, with and without CUDA graphs.

As a script it trains in the processes of a launcher and prints one JSON line
a process.
"""

import argparse
import json

import torch
from mmengine.config import Config
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from torch.utils.data import Dataset

import evmamba_mm  # noqa: F401  mends what is imported next

SAMPLES = 10
BATCH = 4
EPOCHS = 3
WRAPPERS = {
    'fp32': dict(type='OptimWrapper'),
    'bf16': dict(type='AmpOptimWrapper', dtype='bfloat16'),
    'fp16': dict(type='AmpOptimWrapper', dtype='float16'),
    'accumulated': dict(type='OptimWrapper', accumulative_counts=2),
}
_runs = iter(range(1000))


class LossHook(Hook):
    """Keeps every loss."""

    def __init__(self):
        self.losses = []

    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        self.losses.append(outputs['loss'].item())


@DATASETS.register_module(force=True)
class RandomImages(Dataset):
    """Random images of two classes."""

    def __init__(self, size):
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(
            256,
            (SAMPLES, 3, size, size),
            generator=generator,
            dtype=torch.uint8,
        )

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        from mmpretrain.structures import DataSample

        return dict(
            inputs=self.images[index],
            data_samples=DataSample().set_gt_label(index % 2),
        )


def config(folder, wrapper, hooks, size=64):
    loader = dict(
        dataset=dict(type='RandomImages', size=size),
        batch_size=BATCH,
        sampler=dict(type='DefaultSampler', shuffle=False),
    )
    return Config(
        dict(
            default_scope='mmpretrain',
            experiment_name=f'run{next(_runs)}',
            work_dir=str(folder),
            model=dict(
                type='ImageClassifier',
                backbone=dict(type='EfficientVMamba', arch='atto'),
                neck=dict(type='GlobalAveragePooling'),
                head=dict(
                    type='LinearClsHead',
                    num_classes=2,
                    in_channels=128,
                    loss=dict(type='CrossEntropyLoss'),
                ),
                data_preprocessor=dict(
                    mean=[128] * 3, std=[64] * 3, num_classes=2
                ),
            ),
            train_dataloader=loader,
            val_dataloader=loader,
            val_evaluator=dict(type='Accuracy', topk=1),
            train_cfg=dict(by_epoch=True, max_epochs=EPOCHS),
            val_cfg=dict(),
            optim_wrapper=WRAPPERS[wrapper]
            | dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9)),
            default_hooks=dict(checkpoint=None),
            custom_hooks=hooks,
            randomness=dict(seed=0),
            log_level='WARNING',
        )
    )


def train(cfg):
    """Trains; returns the losses, the module and its state."""
    runner = Runner.from_cfg(cfg)
    losses = LossHook()
    runner.register_hook(losses)
    runner.train()
    model = getattr(runner.model, 'module', runner.model)
    return losses.losses, model, model.state_dict()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('folder')
    parser.add_argument('--hook', action='store_true')
    parser.add_argument('--flat', action='store_true')
    args = parser.parse_args()
    replays = []
    plain = torch.cuda.CUDAGraph.replay

    def replay(graph):
        replays.append(graph)
        plain(graph)

    torch.cuda.CUDAGraph.replay = replay
    hooks = [dict(type='CUDAGraphHook', repeats=1)] if args.hook else []
    cfg = config(args.folder, 'fp32', hooks)
    cfg.launcher = 'pytorch'
    if args.flat:
        cfg.model_wrapper_cfg = dict(type='FlatDistributedDataParallel')
    losses, _, state = train(cfg)
    print(
        json.dumps(
            dict(
                rank=get_rank(),
                replays=len(replays),
                losses=losses,
                weights={
                    name: tensor.flatten()[:8].tolist()
                    for name, tensor in state.items()
                    if tensor.is_floating_point()
                },
            )
        )
    )


if __name__ == '__main__':
    main()
