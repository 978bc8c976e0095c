"""Write COCO annotations of a data set in Pascal VOC's layout.

SOURCE holds Annotations/*.xml, JPEGImages/ and ImageSets/Main/*.txt, as
VOC2007 and BCCD_Dataset/BCCD do.
"""

import argparse
import collections
import glob
import json
import math
import shutil
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

try:
    import cv2
except ImportError as error:
    sys.exit(f"{error}: pip install '.[lite]'")

CORNERS = ('xmin', 'ymin', 'xmax', 'ymax')


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
    args = parser.parse_args()
    for name in ('splits', 'classes'):
        again = repeated(getattr(args, name) or ())
        if again:
            parser.error(f'--{name} names {again!r} twice')
    return args


def repeated(names):
    """The first name that is there again, or None."""
    counts = collections.Counter(names)
    return next((name for name in counts if counts[name] > 1), None)


def read_split(source, split):
    path = source / 'ImageSets' / 'Main' / f'{split}.txt'
    if not path.is_file():
        there = sorted(p.stem for p in path.parent.glob('*.txt'))
        raise ValueError(f"there is no list '{path}'; there are {there}")
    try:
        lines = path.read_text().splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"'{path}' is no text in UTF-8") from None
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise ValueError(f"the list '{path}' names no image")
    if repeated(names):
        raise ValueError(f"the list '{path}' names {repeated(names)!r} twice")
    return names


def read_xml(path):
    """The root of an annotation."""
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"'{path}' is no XML: {error}") from None
    if root.tag != 'annotation':
        raise ValueError(f"'{path}' is no annotation: it holds <{root.tag}>")
    return root


def read_label(item, path):
    label = (item.findtext('name') or '').strip()
    if not label:
        raise ValueError(f"'{path}': an object has no <name>")
    return label


def read_number(parent, tag, path):
    text = parent.findtext(tag)
    try:
        number = float(text)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"'{path}': <{tag}> must be a number, got {text!r}")
    return number


def read_box(item, path, width, height):
    """A box (left, top, width, height) in its image, and the one given.

    VOC counts pixels from 1 and includes the last: a box from 1 to 2 is two
    pixels wide.
    """
    left, top, right, bottom = (
        read_number(item, f'bndbox/{corner}', path) for corner in CORNERS
    )
    given = (left - 1, top - 1, right, bottom)
    limits = (width, height, width, height)
    left, top, right, bottom = (
        min(max(value, 0), most)
        for value, most in zip(given, limits, strict=True)
    )
    inside = (left, top, right, bottom) == given
    return [left, top, right - left, bottom - top], inside


def find_image(source, name):
    found = sorted(
        path
        for path in (source / 'JPEGImages').glob(f'{glob.escape(name)}.*')
        if path.stem == name
    )
    if not found:
        raise ValueError(f"there is no image of {name!r} in '{source}'")
    return found[0]


def image_size(path, root, annotation):
    """Width and height of an image, which its annotation may repeat."""
    image = cv2.imread(str(path))
    if image is None:
        raise ValueError(f"'{path}' is no image that can be read")
    height, width = image.shape[:2]
    for tag, number in (('width', width), ('height', height)):
        # Some tools write 0.
        said = root.findtext(f'size/{tag}')
        if said and read_number(root, f'size/{tag}', annotation) not in (
            *(0, number),
        ):
            raise ValueError(
                f"'{annotation}': <{tag}> is {said}, and that of '{path}' is "
                f'{number}'
            )
    return width, height


def convert_split(source, names, classes):
    """The content of a split's json, and counts of boxes that were mended."""
    numbers = {name: number for number, name in enumerate(classes, start=1)}
    images, annotations = [], []
    mended = collections.Counter()
    for name in names:
        path = source / 'Annotations' / f'{name}.xml'
        image, root = find_image(source, name), read_xml(path)
        width, height = image_size(image, root, path)
        images.append(
            dict(
                id=len(images),
                file_name=image.name,
                width=width,
                height=height,
            )
        )
        for item in root.iter('object'):
            label = read_label(item, path)
            if label not in numbers:
                raise ValueError(
                    f"'{path}' has the class {label!r}; --classes names "
                    f'{", ".join(classes)}'
                )
            box, inside = read_box(item, path, width, height)
            empty = min(box[2:]) <= 0
            mended['dropped, which are empty'] += empty
            mended['clipped at the border of their image'] += (
                not inside and not empty
            )
            if empty:
                continue
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=images[-1]['id'],
                    category_id=numbers[label],
                    bbox=box,
                    area=box[2] * box[3],
                    # Neither learned from nor counted.
                    iscrowd=int(item.findtext('difficult') == '1'),
                )
            )
    content = dict(
        images=images,
        annotations=annotations,
        categories=[dict(id=n, name=name) for name, n in numbers.items()],
    )
    return content, mended


def find_classes(files):
    return sorted(
        {
            read_label(item, path)
            for path in files
            for item in read_xml(path).iter('object')
        }
    )


def write_split(source, out, split, content):
    """Copies the images and writes the json."""
    folder = out / 'images' / split
    folder.mkdir(parents=True, exist_ok=True)
    for entry in content['images']:
        name = entry['file_name']
        shutil.copyfile(source / 'JPEGImages' / name, folder / name)
    path = out / 'annotations' / f'instances_{split}.json'
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    print(
        f'{path}: {len(content["images"])} images, '
        f'{len(content["annotations"])} boxes'
    )


def main():
    args = parse_args()
    try:
        files = sorted((args.source / 'Annotations').glob('*.xml'))
        if not files:
            raise ValueError(f"'{args.source}' holds no Annotations/*.xml")
        splits = {s: read_split(args.source, s) for s in args.splits}
        classes = args.classes or find_classes(files)
        contents = {
            split: convert_split(args.source, names, classes)
            for split, names in splits.items()
        }
        for split, (content, mended) in contents.items():
            write_split(args.source, args.out, split, content)
            for what, count in mended.items():
                if count:
                    print(f'{split}: {count} boxes {what}', file=sys.stderr)
        print(f'classes = {tuple(classes)}')
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
