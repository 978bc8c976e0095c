"""Write COCO annotations of images that have a mask file for each object.

SOURCE holds NAME/images/*.png and NAME/masks/*.png, as stage1_train of the
2018 Data Science Bowl does. A map of class numbers for each image, 1 where an
object is, is written too.
"""

import argparse
import json
import shutil
import sys
import zlib
from pathlib import Path

try:
    import cv2
    import numpy as np
    from pycocotools import mask as coco_mask
except ImportError as error:
    sys.exit(f"{error}: pip install '.[lite]'")

# Smaller masks are slips of the pen.
LEAST_PIXELS = 4


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument('source', type=Path)
    parser.add_argument('out', type=Path, help='folder to write to')
    parser.add_argument('--class-name', default='nucleus')
    parser.add_argument(
        '--val-every',
        type=int,
        default=5,
        help='one image of so many is held out, by a hash of its name',
    )
    args = parser.parse_args()
    if args.val_every < 2:
        parser.error(f'--val-every must be at least 2, got {args.val_every}')
    return args


def only_image(folder):
    found = sorted((folder / 'images').glob('*.*'))
    if len(found) != 1:
        raise ValueError(
            f"'{folder}/images' must hold one image, and holds {len(found)}"
        )
    return found[0]


def read(path, flag):
    """An image as an array; unlike OpenCV, says so if it is none."""
    image = cv2.imread(str(path), flag)
    if image is None:
        raise ValueError(f"'{path}' is no image that can be read")
    return image


def annotate(mask):
    """The COCO entries of a boolean mask (H, W)."""
    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return dict(
        bbox=coco_mask.toBbox(encoded).tolist(),
        area=int(mask.sum()),
        segmentation=dict(
            size=encoded['size'], counts=encoded['counts'].decode()
        ),
        category_id=1,
        iscrowd=0,
    )


def convert_image(folder, out, split):
    """Copies an image, writes its map; returns its entries for COCO."""
    image = only_image(folder)
    height, width = read(image, cv2.IMREAD_COLOR).shape[:2]
    classes = np.zeros((height, width), np.uint8)
    annotations = []
    masks = sorted((folder / 'masks').glob('*.png'))
    if not masks:
        raise ValueError(
            f"'{folder}/masks' must hold PNG files, one an object"
        )
    for path in masks:
        mask = read(path, cv2.IMREAD_GRAYSCALE) > 0
        if mask.shape != classes.shape:
            raise ValueError(
                f"'{path}' has the shape {mask.shape}, its image "
                f'{classes.shape}'
            )
        if mask.sum() < LEAST_PIXELS:
            continue
        classes[mask] = 1
        annotations.append(annotate(mask))
    segmap = out / 'segmaps' / split / f'{image.stem}.png'
    if segmap.exists():
        raise ValueError(f"'{image}': another image has its name")
    shutil.copyfile(image, out / 'images' / split / image.name)
    cv2.imwrite(str(segmap), classes)
    entry = dict(file_name=image.name, height=height, width=width)
    return entry, annotations


def convert(args):
    if args.out.is_dir() and any(args.out.iterdir()):
        # What an earlier run has held out would be trained on.
        raise ValueError(f"'{args.out}' must be empty, or not be there")
    folders = sorted(p for p in args.source.iterdir() if p.is_dir())
    if not folders:
        raise ValueError(f"'{args.source}' holds no folders of images")
    splits = {'train': [], 'val': []}
    for folder in folders:
        held_out = zlib.crc32(folder.name.encode()) % args.val_every == 0
        splits['val' if held_out else 'train'].append(folder)
    for split, chosen in splits.items():
        if not chosen:
            raise ValueError(
                f'--val-every {args.val_every} leaves no image of '
                f'{len(folders)} for {split}'
            )
    for split, chosen in splits.items():
        for kind in ('images', 'segmaps'):
            (args.out / kind / split).mkdir(parents=True, exist_ok=True)
        content = dict(
            images=[],
            annotations=[],
            categories=[dict(id=1, name=args.class_name)],
        )
        for number, folder in enumerate(chosen):
            entry, annotations = convert_image(folder, args.out, split)
            content['images'].append(dict(id=number, **entry))
            for annotation in annotations:
                one = len(content['annotations']) + 1
                annotation.update(id=one, image_id=number)
                content['annotations'].append(annotation)
        path = args.out / 'annotations' / f'instances_{split}.json'
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
        print(
            f'{path}: {len(chosen)} images, '
            f'{len(content["annotations"])} objects'
        )


def main():
    args = parse_args()
    try:
        convert(args)
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
