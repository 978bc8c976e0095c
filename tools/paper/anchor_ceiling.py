"""Says what AP50 a detector with anchors can reach on its training images.

An object that no anchor overlaps enough is a positive of none: the dense head
never learns to propose it. Prints how many there are in the training data of
each config, and the AP50 of a detector that finds all others exactly.
"""

import argparse
import contextlib
import io
import math
import sys
from pathlib import Path

# mmdet's `pad_size_divisor` of feature pyramids.
PADDED_TO = 32


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('configs', nargs='+', type=Path, metavar='CONFIG')
    return parser.parse_args(argv)


class Anchors:
    """The anchors of a config's dense head, and which object each belongs to.

    Args:
        model: Config of the model.
    """

    def __init__(self, model):
        from mmdet.registry import TASK_UTILS

        head = model.get('rpn_head') or model.bbox_head
        settings = model.train_cfg.get('rpn', model.train_cfg)
        self.generator = TASK_UTILS.build(head.anchor_generator)
        self.assigner = TASK_UTILS.build(settings.assigner)

    def owners(self, sample):
        """Indices of the objects that are a positive of some anchor."""
        import torch
        from mmdet.structures.bbox import get_box_tensor
        from mmengine.structures import InstanceData

        height, width = (
            math.ceil(side / PADDED_TO) * PADDED_TO
            for side in sample.img_shape
        )
        maps = [
            (math.ceil(height / y), math.ceil(width / x))
            for x, y in self.generator.strides
        ]
        anchors = torch.cat(self.generator.grid_priors(maps, device='cpu'))
        objects = InstanceData(
            bboxes=get_box_tensor(sample.gt_instances.bboxes),
            labels=sample.gt_instances.labels,
        )
        assigned = self.assigner.assign(InstanceData(priors=anchors), objects)
        return assigned.gt_inds[assigned.gt_inds > 0].unique() - 1


def reachable(cfg, dataset):
    """Detections as of COCO, exact ones, and how many objects there are."""
    from mmdet.structures.bbox import get_box_tensor

    anchors = Anchors(cfg.model)
    detections, count = [], 0
    for item in dataset:
        sample = item['data_samples']
        boxes = get_box_tensor(sample.gt_instances.bboxes)
        # As they are in the file, before the image was resized.
        boxes = boxes / boxes.new_tensor(sample.scale_factor).repeat(2)
        count += len(boxes)
        for index in anchors.owners(sample):
            x0, y0, x1, y1 = boxes[index].tolist()
            label = int(sample.gt_instances.labels[index])
            detections.append(
                dict(
                    image_id=sample.img_id,
                    category_id=dataset.cat_ids[label],
                    bbox=[x0, y0, x1 - x0, y1 - y0],
                    score=1.0,
                )
            )
    return detections, count


def ap50(detections, labels):
    """Mean over the classes, as mmdet's CocoMetric counts it."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO(labels)
    scored = COCOeval(truth, truth.loadRes(detections), 'bbox')
    scored.evaluate()
    scored.accumulate()
    scored.summarize()
    return scored.stats[1]


def main(argv=None):
    args = parse_args(argv)
    # The package first: it mends what mmdet would trip over.
    from evmamba_mm.config_files import read_config

    for path in args.configs:
        cfg = read_config(path)
        with contextlib.redirect_stdout(io.StringIO()):
            from mmdet.registry import DATASETS
            from mmengine.registry import init_default_scope

            init_default_scope('mmdet')
            dataset = DATASETS.build(cfg.train_dataloader.dataset)
            detections, count = reachable(cfg, dataset)
            most = ap50(detections, dataset.ann_file)
        print(
            f'{path}: anchors have {len(detections)} of {count} objects, '
            f'AP50 at most {most:.1%}'
        )
    return 0


if __name__ == '__main__':
    sys.exit(main())
