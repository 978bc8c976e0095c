"""A run of mmengine's Runner with one linear layer, as a script.

Prints one JSON line a process. Without --mend it does not import the
package.
"""

import argparse
import json

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dist import all_gather, get_dist_info
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import METRICS, MODELS
from mmengine.runner import Runner

SAMPLES = 8


@MODELS.register_module()
class TinyModel(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def forward(self, x, mode):
        error = self.layer(x).square().mean()
        return dict(loss=error) if mode == 'loss' else [error]


@METRICS.register_module()
class TinyMetric(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.append(float(data_samples[0]))

    def compute_metrics(self, results):
        # Metrics can be numpy's numbers, and the best one is saved.
        return dict(error=np.float32(np.mean(results)))


def config(folder):
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(SAMPLES, 2, generator=generator)
    loader = dict(
        dataset=[dict(x=row) for row in rows],
        batch_size=2,
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='default_collate'),
    )
    checkpoint = dict(
        type='CheckpointHook', interval=1, save_best='error', rule='less'
    )
    return Config(
        dict(
            model=dict(type='TinyModel'),
            work_dir=folder,
            train_dataloader=loader,
            val_dataloader=loader,
            val_evaluator=dict(type='TinyMetric'),
            train_cfg=dict(by_epoch=True, max_epochs=2, val_interval=1),
            val_cfg=dict(),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
            param_scheduler=dict(type='MultiStepLR', milestones=[1]),
            default_hooks=dict(checkpoint=checkpoint),
            custom_hooks=[dict(type='EMAHook')],
            randomness=dict(seed=0),
        )
    )


def report(runner, on_cpu_dist):
    model = runner.model
    weight = getattr(model, 'module', model).layer.weight.detach()
    history = runner.message_hub.get_scalar('train/loss')
    rank, world_size = get_dist_info()
    return dict(
        rank=rank,
        world_size=world_size,
        epoch=runner.epoch,
        iterations=len(history.data[0]),
        mean_loss=float(history.statistics('mean')),
        weights=[other.flatten().tolist() for other in all_gather(weight)],
        wrapper=type(model).__name__,
        on_cpu_dist=on_cpu_dist,
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('folder')
    parser.add_argument('--mend', action='store_true')
    parser.add_argument('--resume')
    parser.add_argument('--launcher', default='none')
    args = parser.parse_args()
    cfg = config(args.folder)
    cfg.launcher = args.launcher
    cfg.update(load_from=args.resume, resume=args.resume is not None)
    on_cpu_dist = None
    if args.mend:
        import evmamba_mm

        on_cpu_dist = evmamba_mm.compat.init_cpu_dist(cfg, args.launcher)
    runner = Runner.from_cfg(cfg)
    runner.train()
    print(json.dumps(report(runner, on_cpu_dist)))


if __name__ == '__main__':
    main()
