"""What trained detectors and segmentors make of images they never saw.

Of a task's test images in the order of their objects, the middle one: it was
not chosen for what a model makes of it.
"""

import json
from pathlib import Path

from evidence.files import rows
from evidence.trainings import ROOT, Training, last_checkpoint

from . import style

BACKBONES = ('tiny', 'resnet18')
SEGMENTED = ('tiny', 'resnet18', 'pvtv2-b0')
# Detections below it are left out.
SCORE = 0.5
COLOURS = (style.VERMILLION, style.BLUE, style.GREEN)


def draw(output, folder, work_dir):
    """Draws a row of pictures for each task.

    Raises:
        ValueError: If a backbone was not trained.
    """
    names = {key: row['name'] for key, row in rows(folder).items()}
    with style.canvas(7.1, output) as figure:
        grid = figure.subplots(3, 3)
        figure.subplots_adjust(0.01, 0.01, 0.99, 0.96, 0.03, 0.16)
        for axes, task in zip(grid, ('bccd', 'nuclei'), strict=False):
            trainings = [trained(task, key, work_dir) for key in BACKBONES]
            path, labelled = middle_image(trainings[0])
            show_objects(axes[0], path, labelled, 'labels')
            for axis, training in zip(axes[1:], trainings, strict=True):
                objects = found(predicted(training, work_dir, path))
                show_objects(axis, path, objects, names[training.row])
        for axis, key in zip(grid[2], SEGMENTED, strict=True):
            training = trained('camvid', key, work_dir)
            path = middle_photo(training)
            show_map(axis, training, predicted(training, work_dir, path))
            finish(axis, names[key])


def trained(task, row, work_dir):
    """The first finished training of a row, by its seed."""
    notes = (work_dir / task).glob(f'{row}-*/last_checkpoint')
    seeds = [note.parent.name.removeprefix(f'{row}-') for note in notes]
    seeds = sorted(int(seed) for seed in seeds if seed.isdecimal())
    if not seeds:
        raise ValueError(f'{work_dir / task} holds no finished {row}')
    config = Path('configs', 'evidence', task, f'{row}.py')
    return Training(config, seeds[0])


def images_of(training):
    """The test data in the config, and the folder that it lies in."""
    from evmamba_mm.config_files import read_config

    cfg = read_config(ROOT / training.config)
    dataset = cfg.test_dataloader.dataset
    return dataset, ROOT / dataset.data_root


def predicted(training, work_dir, path):
    """The sample that a trained model makes of an image."""
    from evmamba_mm.apis import load_predictor, predict

    checkpoint = last_checkpoint(training.work_dir(work_dir))
    predictor = load_predictor(ROOT / training.config, str(checkpoint))
    (outcome,) = predict(predictor, [path])
    if outcome.error is not None:
        raise outcome.error
    return outcome.sample


def middle_image(training):
    """Path and labels (x, y, w, h, mask, class) of one test image."""
    test, root = images_of(training)
    stored = json.loads((root / test.ann_file).read_text())
    objects = {image['id']: [] for image in stored['images']}
    for one in stored['annotations']:
        mask = one.get('segmentation')
        objects[one['image_id']].append(
            (*one['bbox'], mask, one['category_id'] - 1)
        )
    files = {image['id']: image['file_name'] for image in stored['images']}
    order = sorted(objects, key=lambda key: (len(objects[key]), key))
    middle = order[len(order) // 2]
    return root / test.data_prefix.img / files[middle], objects[middle]


def middle_photo(training):
    """Path of one validation photograph."""
    test, root = images_of(training)
    paths = sorted((root / test.data_prefix.img_path).iterdir())
    return paths[len(paths) // 2]


def found(sample):
    """Detections (x, y, w, h, mask, class)."""
    instances = sample.pred_instances.cpu().numpy()
    instances = instances[instances.scores >= SCORE]
    masks = instances.get('masks', [None] * len(instances))
    return [
        (x0, y0, x1 - x0, y1 - y0, mask, label)
        for (x0, y0, x1, y1), mask, label in zip(
            instances.bboxes, masks, instances.labels, strict=True
        )
    ]


def show_objects(axis, path, objects, name):
    """The image with outlines of masks, or boxes where there are none."""
    from matplotlib.patches import Rectangle
    from PIL import Image

    with Image.open(path) as image:
        axis.imshow(image.convert('RGB'))
    for x, y, width, height, mask, label in objects:
        colour = COLOURS[label % len(COLOURS)]
        if mask is None:
            axis.add_patch(
                Rectangle(
                    (x, y),
                    *(width, height),
                    fill=False,
                    edgecolor=colour,
                    linewidth=0.9,
                )
            )
        else:
            axis.contour(bits_of(mask), [0.5], colors=[colour], linewidths=0.7)
    finish(axis, f'{name}: {len(objects)}')


def bits_of(mask):
    """A mask (H, W) of COCO's run lengths, or as it is."""
    from pycocotools import mask as coco

    return coco.decode(mask) if isinstance(mask, dict) else mask


def show_map(axis, training, sample):
    """The map of the classes in the palette of the data set, alone."""
    import numpy as np

    palette = np.array(images_of(training)[0].metainfo.palette, np.uint8)
    axis.imshow(palette[sample.pred_sem_seg.data[0].cpu().numpy()])


def finish(axis, title):
    axis.set_title(title, fontsize=8.5)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
