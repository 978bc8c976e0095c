"""Spares the tests slow work of mmengine that no test is about."""

import functools

from mmengine.config import config, utils


def unformatted(text, **_):
    """What yapf's FormatCode returns for a text that needs no change."""
    compile(text, 'config', 'exec')
    return text, False


def hurry():
    """Leaves the texts of configs unformatted, and looks packages up once.

    A Runner has yapf format its config five times, which takes longer than
    a short training. A base like `mmdet::yolo/yolov3.py` has mmengine read
    every metafile of its toolbox, and look through all that is installed.
    """
    config.FormatCode = unformatted
    utils.load = functools.cache(utils.load)
    config.is_installed = functools.cache(config.is_installed)
    config.get_installed_path = functools.cache(config.get_installed_path)
