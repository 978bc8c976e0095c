"""The weights of a model, and the names and colours of its classes."""

import colorsys
import contextlib
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config
from mmengine.fileio import list_from_file
from mmengine.logging import MMLogger
from mmengine.registry import Registry
from mmengine.runner.checkpoint import load_checkpoint
from torch import nn

from ..weight_files import BrokenWeightsError, file_named, mismatch

# Where the hosts' models keep the part that knows the number of classes.
HEADS = (
    'roi_head.bbox_head',
    'bbox_head',
    'decode_head',
    'panoptic_head',
    'head',
)
GOLDEN_RATIO = 0.618034


@dataclass(frozen=True)
class Meta:
    """Names and RGB colours of the classes, in the order of the labels."""

    classes: tuple[str, ...]
    palette: list[tuple[int, int, int]]


def load_weights(
    model: nn.Module, cfg: Config, checkpoint: str | None
) -> dict:
    """Load the checkpoint, or what the config names; returns its meta.

    Every weight of the model must be in the file and the other way round: a
    model with a part left at random would still draw something.
    """
    origin = 'CHECKPOINT'
    if checkpoint is None and cfg.get('load_from'):
        checkpoint, origin = cfg.load_from, 'load_from of the config,'
        say(f'no CHECKPOINT given: load_from of the config, {checkpoint}')
    if checkpoint is None:
        initialise(model, cfg)
        return {}
    if '://' not in checkpoint and not Path(checkpoint).exists():
        raise ValueError(f'{origin} {checkpoint!r}: there is no such file')
    try:
        with file_named(checkpoint):
            loaded = load_checkpoint(
                model, checkpoint, map_location='cpu', strict=True
            )
    except BrokenWeightsError as error:
        raise BrokenWeightsError(f'{origin} {error}') from error
    except (RuntimeError, OSError, KeyError) as error:
        raise ValueError(
            f'{origin} {checkpoint!r} does not fit the model of the config: '
            f'{mismatch(str(error))}'
        ) from error
    return loaded.get('meta', {})


def say(text: str) -> None:
    """Print on standard error."""
    print(text, file=sys.stderr, flush=True)


def initialise(model: nn.Module, cfg: Config) -> None:
    """Loads what the config's init_cfg name and says what stays random."""
    trained = dict(pretrained_parts(cfg.model, 'model'))
    listed = ', '.join(f'{k} ({v})' for k, v in trained.items())
    if trained:
        try:
            with quiet_log():
                model.init_weights()
        except (BrokenWeightsError, OSError) as error:
            raise ValueError(
                f'no CHECKPOINT given, and the init_cfg of {listed} cannot '
                f'be loaded: {error}'
            ) from error
    if 'model' in trained:
        say(f'no CHECKPOINT given: model.init_cfg loads {trained["model"]}')
    elif trained:
        say(
            f'WARNING: NO CHECKPOINT GIVEN. Only {listed} has trained '
            f'weights; all others are RANDOM, and so are the predictions.'
        )
    else:
        say(
            'WARNING: NO CHECKPOINT GIVEN, and the config names none in '
            'load_from or init_cfg. All weights are RANDOM, and so are the '
            'predictions.'
        )


@contextlib.contextmanager
def quiet_log() -> Iterator[None]:
    """Holds back the several lines that mmengine logs for each weight."""
    log = MMLogger.get_current_instance()
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)


def pretrained_parts(node: object, place: str) -> Iterator[tuple[str, str]]:
    """Yields (place, file) of each initialisation from a file."""
    if isinstance(node, (list, tuple)):
        for index, child in enumerate(node):
            yield from pretrained_parts(child, f'{place}[{index}]')
    elif isinstance(node, dict):
        init = node.get('init_cfg')
        for item in init if isinstance(init, list) else [init]:
            if item and item.get('type') == 'Pretrained':
                yield place, item['checkpoint']
        for key, child in node.items():
            if key != 'init_cfg':
                yield from pretrained_parts(child, f'{place}.{key}')


def find_meta(
    model: nn.Module,
    checkpoint_meta: dict,
    cfg: Config,
    datasets: Registry,
    distinct: bool,
) -> Meta:
    """Finds the names and colours of the classes that the model predicts.

    The checkpoint knows what it was trained on and comes first, then the
    config. A list of another length than the model's is of another data set.
    """
    wanted = count_classes(model)
    for origin in ('checkpoint', 'config'):
        if origin == 'checkpoint':
            meta = meta_of_checkpoint(checkpoint_meta)
        else:
            meta = meta_of_config(cfg, datasets)
        classes = meta.get('classes')
        if not classes:
            continue
        if wanted not in (None, len(classes)):
            say(
                f'WARNING: the {origin} names {len(classes)} classes, and '
                f'the model has {wanted}: these names are not used'
            )
            continue
        palette = None if distinct else meta.get('palette')
        return Meta(tuple(classes), colours(palette, len(classes)))
    if wanted is None:
        raise ValueError(
            'neither the checkpoint nor the config names the classes; give '
            'them by --cfg-options '
            'test_dataloader.dataset.metainfo.classes="[a, b]"'
        )
    say(
        f'WARNING: neither the checkpoint nor the config names the {wanted} '
        f'classes: they are called "class 0", "class 1", ...'
    )
    names = tuple(f'class {label}' for label in range(wanted))
    return Meta(names, colours(None, wanted))


def count_classes(model: nn.Module) -> int | None:
    """Return the number of classes that a model predicts, or None."""
    for place in HEADS:
        part = model
        for name in place.split('.'):
            part = getattr(part, name, None)
        # A cascade has a head for each stage; the last one predicts.
        if hasattr(part, '__getitem__'):
            part = part[-1]
        if getattr(part, 'num_classes', None) is not None:
            return part.num_classes
    return None


def meta_of_checkpoint(meta: dict) -> dict:
    """Return the data set's meta of a checkpoint, its keys in lower case."""
    # The hosts' releases before 2023 wrote CLASSES and PALETTE.
    stored = meta.get('dataset_meta') or meta
    return {key.lower(): value for key, value in stored.items()}


def meta_of_config(cfg: Config, datasets: Registry) -> dict:
    """Return the meta of a config's test data set."""
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    if 'datasets' in dataset:
        dataset = dataset.datasets[0]
    kind = dataset.type
    kind = datasets.get(kind) if isinstance(kind, str) else kind
    meta = dict(getattr(kind, 'METAINFO', {}))
    meta.update(dataset.get('metainfo') or {})
    if dataset.get('classes'):
        meta['classes'] = dataset.classes
    if isinstance(meta.get('classes'), str):
        meta['classes'] = list_from_file(meta['classes'])
    return meta


def colours(palette: object, count: int) -> list[tuple[int, int, int]]:
    """The first `count` colours of a palette, or hues that lie far apart."""
    if isinstance(palette, (list, tuple)) and len(palette) >= count:
        return [tuple(int(v) for v in colour) for colour in palette[:count]]
    return [hue(index) for index in range(count)]


def hue(index: int) -> tuple[int, int, int]:
    """Return an RGB colour whose hue is far from those of its neighbours."""
    rgb = colorsys.hsv_to_rgb(index * GOLDEN_RATIO % 1, 0.8, 0.95)
    return tuple(round(255 * value) for value in rgb)
