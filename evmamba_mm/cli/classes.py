"""Classes of the heads, the data sets and the scores, which must agree."""

import json
import logging
from collections.abc import Iterator, Sequence

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.fileio import get_text
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from ..own_files import is_own_class
from .checks import errors_in_a_line
from .kinds import type_name

logger = logging.getLogger('evmamba_mm')
# These count other things than the classes of the data set.
OTHER_HEADS = ('rpn_head', 'semantic_head')
OTHER_HEAD_TYPES = ('STDCHead',)
# What mmseg's IoUMetric computes; it refuses others after a validation.
IOU = ('mIoU', 'mDice', 'mFscore')
# Where mmdet numbers the categories of a json in its order.
COCO = ('mmdet.datasets.coco', 'mmdet.datasets.lvis')
# A model that has one of these counts, or names, its classes in another way.
OTHER_MODELS = ('panoptic_head', 'panoptic_fusion_head', 'language_model')


class ClassesHook(Hook):
    """Ends a training or a test at its beginning where classes disagree."""

    priority = 'VERY_HIGH'

    def before_run(self, runner: Runner) -> None:
        """Compare the heads with the data sets that are built.

        Raises:
            SystemExit: With a line that names the keys of the config.
        """
        names = {}
        with errors_in_a_line():
            for split in ('train', 'val', 'test'):
                # The properties would build the loops of the other splits.
                loop = getattr(runner, f'_{split}_loop')
                dataset = getattr(
                    getattr(loop, 'dataloader', None), 'dataset', None
                )
                classes = classes_of(dataset, split)
                if classes:
                    names[split] = classes
                    check_heads(runner.model, classes, split)
                    check_categories(dataset, classes, split)
                    scores = getattr(loop, 'evaluator', None)
                    check_scores(
                        getattr(scores, 'metrics', ()), classes, split
                    )
        train, val = names.get('train'), names.get('val')
        if train and val and train != val and is_main_process():
            logger.warning(
                'the classes of train_dataloader are %s, those of '
                'val_dataloader %s: scores compare their numbers, not names',
                shortened(train),
                shortened(val),
            )


def classes_of(dataset: Dataset | None, split: str) -> tuple[str, ...]:
    """Return the classes of a data set, or () where it names none.

    Raises:
        ValueError: If they are a string.
    """
    meta = getattr(dataset, 'metainfo', None)
    classes = meta.get('classes') if isinstance(meta, dict) else None
    if isinstance(classes, str):
        raise ValueError(
            f'{split}_dataloader.dataset.metainfo.classes is the string '
            f'{classes!r}, and must be a tuple: ({classes!r},)'
        )
    return tuple(classes or ())


def heads_of(model: nn.Module) -> Iterator[tuple[str, int]]:
    """Yield (name, number of classes) of the heads that have one each."""
    modules = {
        name.removeprefix('module.'): module
        for name, module in model.named_modules()
    }
    if modules.keys() & set(OTHER_MODELS):
        return
    for name, module in modules.items():
        words = [part for part in name.split('.') if not part.isdigit()]
        last = words[-1] if words else ''
        number = getattr(module, 'num_classes', None)
        if (
            last.endswith('head')
            and last not in OTHER_HEADS
            and type(module).__name__ not in OTHER_HEAD_TYPES
            and isinstance(number, int)
            # One mask for all classes.
            and not getattr(module, 'class_agnostic', False)
            # A sigmoid tells two classes apart.
            and getattr(module, 'out_channels', None) != 1
            # It may count what it likes.
            and not is_own_class(type(module), ('__init__', 'loss'))
        ):
            yield name, number


def check_heads(model: nn.Module, classes: Sequence[str], split: str) -> None:
    """Refuse heads that have another number of classes than a data set.

    Raises:
        ValueError: It names the keys of all of them.
    """
    wrong = [
        f'model.{name}.num_classes is {number}'
        for name, number in heads_of(model)
        if number != len(classes)
    ]
    if wrong:
        raise ValueError(
            f'{" and ".join(wrong)}, and the data set of {split}_dataloader '
            f'has {len(classes)} ({shortened(classes)}). Set num_classes to '
            f'{len(classes)}, or name the classes in {split}_dataloader.'
            'dataset.metainfo.classes'
        )


def check_categories(
    dataset: Dataset, classes: Sequence[str], split: str
) -> None:
    """Refuse classes that are not the categories of a COCO file, in order.

    mmdet numbers the categories in the file's order, and skips classes that
    the file lacks: later classes would get wrong numbers.

    Raises:
        ValueError: It names both.
    """
    inner = getattr(dataset, 'datasets', None)
    if hasattr(dataset, 'dataset'):
        inner = [dataset.dataset]
    for part in inner or ():
        check_categories(part, classes, split)
    reads = getattr(type(dataset), 'load_data_list', None)
    if getattr(reads, '__module__', '') not in COCO:
        return
    known = getattr(type(dataset), 'METAINFO', {}).get('classes')
    # A benchmark's own classes, whose file may take long to read.
    if tuple(known or ()) == tuple(classes) and len(dataset.cat2label) == len(
        classes
    ):
        return
    text = get_text(dataset.ann_file, backend_args=dataset.backend_args)
    there = [entry['name'] for entry in json.loads(text)['categories']]
    kept = [name for name in there if name in classes]
    if kept != list(classes):
        key = f'{split}_dataloader.dataset.metainfo.classes'
        raise ValueError(
            f'{key} is {shortened(classes)}, and {dataset.ann_file} has the '
            f'categories {shortened(there)}: give names that are in the '
            "file, in the file's order"
        )


def check_scores(
    metrics: Sequence[object], classes: Sequence[str], split: str
) -> None:
    """Refuse a top-k accuracy of more classes than there are, or no score.

    Raises:
        ValueError: It names the key.
    """
    for metric in metrics:
        kind = type(metric).__name__
        names = getattr(metric, 'metrics', ())
        names = [names] if isinstance(names, str) else names
        if kind == 'IoUMetric' and not {*names} <= {*IOU}:
            raise ValueError(
                f'{split}_evaluator.iou_metrics must be of {", ".join(IOU)}, '
                f'got {names!r}'
            )
        most = metric.topk if kind == 'Accuracy' else ()
        for k in most if isinstance(most, tuple) else ():
            if not (isinstance(k, int) and 1 <= k <= len(classes)):
                raise ValueError(
                    f'{split}_evaluator.topk is {k!r}, and must be a number '
                    f'from 1 to {len(classes)}, the number of classes'
                )


def shortened(names: Sequence[str]) -> str:
    """Return the first names, in quotes."""
    more = f', ... {len(names) - 5} more' if len(names) > 5 else ''
    return ', '.join(map(repr, names[:5])) + more


def check_classes(cfg: Config) -> None:
    """Compare the numbers of classes of a classifier's two parts.

    A preprocessor inside `model` replaces the one beside it, whose mean and
    std it then lacks: a log line tells so.

    Raises:
        ValueError: If preprocessor and head differ.
    """
    model = cfg.get('model') or {}
    if type_name(model) != 'ImageClassifier':
        return
    place, used = 'data_preprocessor', cfg.get('data_preprocessor')
    inner = model.get('data_preprocessor')
    if inner is not None:
        dropped = [key for key in ('mean', 'std') if used and key not in inner]
        if dropped and used.get('mean') is not None:
            logger.warning(
                'model.data_preprocessor replaces the data_preprocessor at '
                'the top level, and images are not normalised: it has no %s. '
                'Write its keys into the data_preprocessor at the top level',
                ' and no '.join(dropped),
            )
        place, used = 'model.data_preprocessor', inner
    head = (model.get('head') or {}).get('num_classes')
    classes = (used or {}).get('num_classes')
    if None not in (head, classes) and head != classes:
        raise ValueError(
            f'{place}.num_classes is {classes!r} and '
            f'model.head.num_classes is {head!r}; set both to the number of '
            'classes of your data'
        )
