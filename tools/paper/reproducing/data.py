"""Finds the data sets and what is missing of them."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

IMAGE_SUFFIXES = ('.jpeg', '.jpg', '.png')
# mmengine would read a list out of a value with one of these.
UNUSABLE = ',[]()\'"'


@dataclass(frozen=True)
class DataSet:
    """A data set as the host's configs expect it.

    ``parts`` are the paths below the root that a split needs, ``images`` the
    size of the validation set that the paper's numbers are of.
    """

    name: str
    variable: str
    default: str
    source: str
    images: int
    parts: dict[str, tuple[str, ...]]


IMAGENET = DataSet(
    'ImageNet-1k',
    'EVMAMBA_IMAGENET',
    'data/imagenet',
    'ILSVRC2012 from https://image-net.org (after registering); train/ and '
    'val/ hold a folder for each class, or ann.txt lists the images below '
    'images/ with their labels',
    50000,
    dict(test=('val',), train=('train', 'val')),
)
COCO = DataSet(
    'COCO 2017',
    'EVMAMBA_COCO',
    'data/coco',
    'train2017.zip, val2017.zip and annotations_trainval2017.zip from '
    'https://cocodataset.org/#download',
    5000,
    dict(
        test=('annotations/instances_val2017.json', 'val2017'),
        train=(
            'annotations/instances_train2017.json',
            'train2017',
            'annotations/instances_val2017.json',
            'val2017',
        ),
    ),
)
ADE20K = DataSet(
    'ADE20K',
    'EVMAMBA_ADE20K',
    'data/ade/ADEChallengeData2016',
    'ADEChallengeData2016.zip from '
    'http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip',
    2000,
    dict(
        test=('images/validation', 'annotations/validation'),
        train=(
            'images/training',
            'annotations/training',
            'images/validation',
            'annotations/validation',
        ),
    ),
)
DATASETS = {2: IMAGENET, 3: COCO, 4: ADE20K, 7: COCO}
DATASETS |= dict.fromkeys((5, 6, 8), IMAGENET)
LIST, LISTED = 'ann.txt', 'images'


def root_of(dataset, given):
    """The data root: given, from the environment, or the host's own."""
    root = given or os.environ.get(dataset.variable) or dataset.default
    return Path(root).absolute()


def is_list(dataset, root):
    """Whether the root holds a list of images in place of the splits."""
    return dataset is IMAGENET and (root / LIST).is_file()


def missing(dataset, root, split):
    """The paths below the root that a split needs and that are not there."""
    parts = dataset.parts[split]
    if is_list(dataset, root):
        parts = (LIST, LISTED)
    return [part for part in parts if not (root / part).exists()]


def check(dataset, root, split):
    """Refuses a root that lacks something.

    Raises:
        ValueError: It says what is missing and where it comes from.
    """
    unusable = sorted(set(UNUSABLE) & set(str(root)))
    if unusable:
        raise ValueError(
            f'--data-root {str(root)!r} holds {" ".join(unusable)}, which a '
            'config cannot be given; link the folder to another path'
        )
    absent = missing(dataset, root, split)
    if absent:
        lines = '\n'.join(f'  {root / part}' for part in absent)
        raise ValueError(
            f'{dataset.name} is not complete; missing are\n{lines}\n'
            f'It comes from: {dataset.source}\nIf it lies elsewhere: '
            f'--data-root FOLDER, or {dataset.variable}=FOLDER'
        )


def config_options(dataset, root):
    """The overrides that lead a config of the data set to the root."""
    options = []
    for split in ('train', 'val', 'test'):
        key = f'{split}_dataloader.dataset'
        options.append(f'{key}.data_root={root.as_posix()}')
        if is_list(dataset, root):
            options.append(f'{key}.ann_file={LIST}')
            options.append(f'{key}.data_prefix={LISTED}')
    if dataset is COCO:
        file = (root / dataset.parts['test'][0]).as_posix()
        options += [f'{s}_evaluator.ann_file={file}' for s in ('val', 'test')]
    return options


def count_images(dataset, root):
    """The images of the validation set at the root."""
    if dataset is COCO:
        file = root / dataset.parts['test'][0]
        return len(json.loads(file.read_text())['images'])
    if is_list(dataset, root):
        lines = (root / LIST).read_text().splitlines()
        return sum(bool(line.strip()) for line in lines)
    folder = root / dataset.parts['test'][0]
    return sum(
        path.suffix.lower() in IMAGE_SUFFIXES for path in folder.rglob('*')
    )
