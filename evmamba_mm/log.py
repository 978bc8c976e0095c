"""Forwards the package's log to the toolbox's log."""

import logging

from mmengine.logging import print_log


class _MMEngineHandler(logging.Handler):
    """Hand records to whichever logger mmengine runs with."""

    def emit(self, record: logging.LogRecord) -> None:
        print_log(self.format(record), logger='current', level=record.levelno)


def forward_to_mmengine() -> None:
    """Send the logger 'evmamba_mm' to mmengine's current logger, once."""
    logger = logging.getLogger('evmamba_mm')
    if any(isinstance(h, _MMEngineHandler) for h in logger.handlers):
        return
    logger.addHandler(_MMEngineHandler())
    logger.setLevel(logging.INFO)
    logger.propagate = False
