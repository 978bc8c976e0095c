"""Says how many labelled objects a detector's anchors leave out.

An object that no anchor overlaps enough is a positive of none, and the dense
head never learns to propose it. Prints, for the training data of each config
at the size that it tests images at, how many objects have an anchor, and the
AP50 of a detector that finds exactly these: its recall, averaged over the
classes.
"""

import argparse
import contextlib
import io
import math
import sys
from collections import Counter
from pathlib import Path

# Others choose objects by more than the overlap.
HEADS = ('AnchorHead', 'RPNHead', 'RetinaHead', 'RetinaSepBNHead', 'SSDHead')
ASSIGNERS = ('MaxIoUAssigner', 'VectorizedMaxIoUAssigner')


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('configs', nargs='+', type=Path, metavar='CONFIG')
    return parser.parse_args(argv)


class Anchors:
    """The anchors of a dense head, and which object each belongs to.

    Args:
        model: Config of the model.
        divisor: Sides of images are padded to multiples of it.

    Raises:
        ValueError: If its dense head has no anchors, or chooses their objects
            by more than their overlap.
    """

    def __init__(self, model, divisor):
        from mmdet.registry import TASK_UTILS

        from evmamba_mm.cli.kinds import type_name

        head = model.get('rpn_head') or model.get('bbox_head') or {}
        settings = model.get('train_cfg') or {}
        settings = settings.get('rpn') or settings
        if type_name(head) not in HEADS:
            raise ValueError(
                f'the dense head must be one of {", ".join(HEADS)}, got '
                f'{type_name(head) or None}'
            )
        assigner = settings.get('assigner') or {}
        if type_name(assigner) not in ASSIGNERS:
            raise ValueError(
                f'its assigner must be a {ASSIGNERS[0]}, got '
                f'{type_name(assigner) or None}'
            )
        if not head.get('anchor_generator'):
            raise ValueError('the dense head must have an anchor_generator')
        self.generator = TASK_UTILS.build(head['anchor_generator'])
        self.assigner = TASK_UTILS.build(assigner)
        self.border = settings.get('allowed_border', -1)
        self.divisor = divisor

    def have(self, boxes, labels, height, width):
        """Whether each object of an image of this size has an anchor."""
        import torch
        from mmengine.structures import InstanceData

        divisor = self.divisor
        padded = [math.ceil(x / divisor) * divisor for x in (height, width)]
        maps = [
            (math.ceil(padded[0] / y), math.ceil(padded[1] / x))
            for x, y in self.generator.strides
        ]
        anchors = torch.cat(self.generator.grid_priors(maps, device='cpu'))
        if self.border >= 0:
            x0, y0, x1, y1 = anchors.T
            inside = torch.minimum(x0, y0) >= -self.border
            inside &= x1 < width + self.border
            anchors = anchors[inside & (y1 < height + self.border)]
        objects = InstanceData(bboxes=boxes, labels=labels)
        assigned = self.assigner.assign(InstanceData(priors=anchors), objects)
        owners = assigned.gt_inds[assigned.gt_inds > 0] - 1
        return torch.isin(torch.arange(len(boxes)), owners)


def tested_scale(cfg):
    """The scale of images in the test pipeline, and if it keeps the ratio.

    Raises:
        ValueError: If images are not resized there.
    """
    from evmamba_mm.cli.kinds import type_name

    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    for step in dataset.get('pipeline') or ():
        if type_name(step) == 'Resize' and step.get('scale'):
            scale = step['scale']
            if isinstance(scale, int):
                scale = scale, scale
            return tuple(scale), step.get('keep_ratio', False)
    raise ValueError('the test pipeline has no Resize with a scale')


def objects_of(info, scale, keep_ratio):
    """Boxes and labels of an image after it is resized, and its sides."""
    import torch
    from mmcv.image import rescale_size

    old = info['width'], info['height']
    width, height = rescale_size(old, scale) if keep_ratio else scale
    kept = [x for x in info['instances'] if not x['ignore_flag']]
    boxes = torch.tensor([x['bbox'] for x in kept]).reshape(-1, 4)
    factors = boxes.new_tensor([width / old[0], height / old[1]]).repeat(2)
    labels = torch.tensor([x['bbox_label'] for x in kept], dtype=torch.int64)
    return boxes * factors, labels, height, width


def counts(cfg):
    """Objects by their class: all, and those with an anchor.

    Raises:
        ValueError: If the model, the pipeline or the data set is not as this
            program takes it.
    """
    from mmdet.registry import DATASETS

    from evmamba_mm.cli.kinds import type_name

    model = cfg.get('model') or {}
    padding = model.get('data_preprocessor') or cfg.get('data_preprocessor')
    anchors = Anchors(model, (padding or {}).get('pad_size_divisor', 1))
    scale = tested_scale(cfg)
    settings = cfg.train_dataloader.dataset
    if type_name(settings) != 'CocoDataset':
        raise ValueError(
            'train_dataloader.dataset.type must be CocoDataset, got '
            f'{settings.get("type")!r}'
        )
    dataset = DATASETS.build(dict(settings, pipeline=[]))
    every, owned = Counter(), Counter()
    for i in range(len(dataset)):
        boxes, labels, *sides = objects_of(dataset.get_data_info(i), *scale)
        every.update(labels.tolist())
        if len(labels):
            found = anchors.have(boxes, labels, *sides)
            owned.update(labels[found].tolist())
    if not every:
        raise ValueError('the training data have no object')
    return every, owned


def in_mmdet(cfg):
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope('mmdet'):
        import mmdet.datasets
        import mmdet.models  # noqa: F401

        return counts(cfg)


def main(argv=None):
    args = parse_args(argv)
    # The package first: it mends what mmdet would trip over.
    from evmamba_mm.cli.launch import load_config

    failed = False
    for path in args.configs:
        try:
            cfg = load_config(path)
            with contextlib.redirect_stdout(io.StringIO()):
                every, owned = in_mmdet(cfg)
        except Exception as error:
            # Whatever a mistake in one config raises, the others follow.
            kind = type(error).__name__
            print(f'error: {path}: {kind}: {error}', file=sys.stderr)
            failed = True
            continue
        # A detector that makes no mistake has the recall as its AP.
        ap50 = sum(owned[k] / every[k] for k in every) / len(every)
        print(
            f'{path}: anchors for {owned.total()} of {every.total()} objects, '
            f'AP50 {ap50:.1%} with exactly these'
        )
    return 2 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
