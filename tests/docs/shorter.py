"""Prints the arguments that make a command of the page short.

As a script: `shorter.py ARGUMENTS` of the command.
"""

import sys

LOADERS = tuple(
    f'{split}_dataloader.{setting}'
    for split in ('train', 'val', 'test')
    for setting in ('num_workers=0', 'persistent_workers=False')
)
DETECTOR = (
    *LOADERS,
    'train_dataloader.batch_size=2',
    'train_dataloader.dataset.pipeline.2.scale=(64,64)',
    'val_dataloader.dataset.pipeline.1.scale=(64,64)',
    'test_dataloader.dataset.pipeline.1.scale=(64,64)',
    'model.train_cfg.rpn_proposal.max_per_img=50',
    'model.train_cfg.rcnn.sampler.num=16',
    'model.test_cfg.rpn.max_per_img=20',
    'model.test_cfg.rcnn.max_per_img=5',
    'train_cfg.val_interval=1',
)
# FCOS has neither proposals nor regions.
DENSE = (
    *(option for option in DETECTOR if not option.startswith('model.')),
    'model.test_cfg.max_per_img=5',
    # Else one epoch leaves no box to be scored.
    'model.test_cfg.score_thr=0',
    'train_cfg.max_epochs=1',
)
SEGMENTOR = (
    *LOADERS,
    'train_dataloader.batch_size=2',
    'train_dataloader.dataset.pipeline.2.scale=(64,64)',
    'train_dataloader.dataset.pipeline.3.crop_size=(32,32)',
    'val_dataloader.dataset.pipeline.1.scale=(64,64)',
    'test_dataloader.dataset.pipeline.1.scale=(64,64)',
    'model.data_preprocessor.size=(32,32)',
    'model.decode_head.channels=32',
    'model.auxiliary_head.channels=16',
    'train_cfg.max_iters=2',
    'train_cfg.val_interval=2',
    'default_hooks.checkpoint.interval=2',
)
CLASSIFIER = (
    *LOADERS,
    'train_dataloader.batch_size=4',
    'train_dataloader.dataset.pipeline.0.scale=64',
    'train_cfg.max_epochs=1',
)
# Of docs/finetune.md: CamVid's images are tested at their own size.
UPERNET = (
    *(option for option in SEGMENTOR if '.pipeline.1.scale' not in option),
    'train_dataloader.dataset.pipeline.2.ratio_range=(1.0,1.0)',
)
FINETUNE = {
    'my_classifier.py': CLASSIFIER,
    'layer_decay.py': CLASSIFIER,
    'lora.py': CLASSIFIER,
    'my_logs.py': CLASSIFIER,
    'wrong.py': CLASSIFIER,
    'my_retinanet.py': DENSE,
    'my_upernet.py': UPERNET,
}


def shorter(arguments):
    """The arguments to append to a command."""
    for name in FINETUNE.keys() & set(arguments):
        return ('--cfg-options', *FINETUNE[name])
    if 'my_segmentor.py' in arguments:
        return ('--cfg-options', *SEGMENTOR)
    if 'my_fcos.py' in arguments:
        return ('--cfg-options', *DENSE)
    detectors = {'my_detector.py', 'my_neck.py', 'my_grey.py', 'elsewhere.py'}
    if detectors & set(arguments):
        epochs = 2 if '--resume' in arguments else 1
        length = f'train_cfg.max_epochs={epochs}'
        return ('--cfg-options', *DETECTOR, length)
    return ()


if __name__ == '__main__':
    print(*shorter(sys.argv[1:]))
