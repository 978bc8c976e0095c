"""Keeps functions out of a schedule's stored state.

Breaks: a checkpoint of a training with OneCycleLR, which loading without code
refuses: "it holds more than tensors".
Why: mmengine's OneCycleParamScheduler has its annealing function as an
attribute, and stores all attributes.
Fix: leave out functions; a resumed schedule has its own.
Remove when mmengine stores no function.
"""

import functools
from typing import Any

from mmengine.optim.scheduler.param_scheduler import _ParamScheduler

_MARK = '_without_functions'


def apply() -> None:
    """Makes the fix, for all schedules of mmengine."""
    stock = _ParamScheduler.state_dict
    if hasattr(stock, _MARK):
        return

    @functools.wraps(stock)
    def state_dict(self: _ParamScheduler) -> dict[str, Any]:
        state = stock(self).items()
        return {key: value for key, value in state if not callable(value)}

    setattr(state_dict, _MARK, True)
    _ParamScheduler.state_dict = state_dict
