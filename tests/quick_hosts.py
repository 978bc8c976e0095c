"""Spares the tests slow work of libraries that no test is about."""

import functools

from mmengine.config import config, utils
from torch.utils.data import _utils

# Seconds for a worker of a DataLoader to end, before it is made to.
JOIN_SECONDS = 0.5


def unformatted(text, **_):
    """What yapf's FormatCode returns for a text that needs no change."""
    compile(text, 'config', 'exec')
    return text, False


def hurry():
    """Leaves the texts of configs unformatted, and looks packages up once.

    And waits less for the workers of a loader that is left in the middle.

    A Runner has yapf format its config five times, which takes longer than
    a short training. A base like `mmdet::yolo/yolov3.py` has mmengine read
    every metafile of its toolbox, and look through all that is installed.
    Where an error keeps the loader's iterator in a cycle, the collection of
    garbage closes the workers' queues before it asks them to end, and torch
    waits five seconds for each.
    """
    _utils.MP_STATUS_CHECK_INTERVAL = JOIN_SECONDS
    config.FormatCode = unformatted
    utils.load = functools.cache(utils.load)
    config.is_installed = functools.cache(config.is_installed)
    config.get_installed_path = functools.cache(config.get_installed_path)
