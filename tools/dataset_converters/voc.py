"""Write COCO annotations of a data set in Pascal VOC's layout.

SOURCE holds Annotations/*.xml, JPEGImages/ and ImageSets/Main/*.txt, as
VOC2007 and BCCD_Dataset/BCCD do.
"""

import argparse
import json
import shutil
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument('source', type=Path)
    parser.add_argument('out', type=Path, help='folder to write to')
    parser.add_argument(
        '--splits',
        nargs='+',
        default=['train', 'val', 'test'],
        help='names of lists in ImageSets/Main',
    )
    parser.add_argument(
        '--classes',
        nargs='+',
        help='their order; without it, all that the files name, sorted',
    )
    return parser.parse_args()


def read_split(source, split):
    path = source / 'ImageSets' / 'Main' / f'{split}.txt'
    if not path.is_file():
        there = sorted(p.stem for p in path.parent.glob('*.txt'))
        raise ValueError(f"there is no list '{path}'; there are {there}")
    return path.read_text().split()


def read_objects(path):
    """Yields (class, box in COCO's form, whether it is difficult).

    VOC counts pixels from 1 and includes the last: a box from 1 to 2 is two
    pixels wide.
    """
    for item in ElementTree.parse(path).iter('object'):
        corners = [
            float(item.findtext(f'bndbox/{corner}'))
            for corner in ('xmin', 'ymin', 'xmax', 'ymax')
        ]
        left, top = corners[0] - 1, corners[1] - 1
        box = [left, top, corners[2] - left, corners[3] - top]
        yield item.findtext('name'), box, item.findtext('difficult') == '1'


def read_size(path):
    size = ElementTree.parse(path).find('size')
    return {k: int(size.findtext(k)) for k in ('width', 'height')}


def find_image(source, name):
    found = sorted((source / 'JPEGImages').glob(f'{name}.*'))
    if not found:
        raise ValueError(f"there is no image of {name} in '{source}'")
    return found[0]


def convert_split(source, names, classes, folder):
    """Copies the images; returns the content of the split's json."""
    numbers = {name: number for number, name in enumerate(classes, start=1)}
    images, annotations = [], []
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = source / 'Annotations' / f'{name}.xml'
        image = find_image(source, name)
        shutil.copyfile(image, folder / image.name)
        images.append(
            dict(id=len(images), file_name=image.name, **read_size(path))
        )
        for label, box, difficult in read_objects(path):
            if label not in numbers:
                raise ValueError(
                    f"'{path}' has the class {label!r}; --classes names "
                    f'{", ".join(classes)}'
                )
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=images[-1]['id'],
                    category_id=numbers[label],
                    bbox=box,
                    area=box[2] * box[3],
                    # Neither learned from nor counted.
                    iscrowd=int(difficult),
                )
            )
    return dict(
        images=images,
        annotations=annotations,
        categories=[dict(id=n, name=name) for name, n in numbers.items()],
    )


def main():
    args = parse_args()
    try:
        files = sorted((args.source / 'Annotations').glob('*.xml'))
        if not files:
            raise ValueError(f"'{args.source}' holds no Annotations/*.xml")
        splits = {s: read_split(args.source, s) for s in args.splits}
        classes = args.classes or sorted(
            {label for path in files for label, *_ in read_objects(path)}
        )
        (args.out / 'annotations').mkdir(parents=True, exist_ok=True)
        for split, names in splits.items():
            folder = args.out / 'images' / split
            content = convert_split(args.source, names, classes, folder)
            path = args.out / 'annotations' / f'instances_{split}.json'
            path.write_text(json.dumps(content))
            print(
                f'{path}: {len(content["images"])} images, '
                f'{len(content["annotations"])} boxes'
            )
        print(f'classes = {tuple(classes)}')
    except (ValueError, OSError, ElementTree.ParseError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
