"""The moving average of a model by a few kernels for all of its tensors."""

import itertools
import operator

import torch
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..arguments import checked
from ..graphs.state import members


@MODELS.register_module()
class ForeachExponentialMovingAverage(ExponentialMovingAverage):
    """mmengine's average of weights, without a loop over tensors.

    For ``EMAHook(ema_type='ForeachExponentialMovingAverage')``, with the same
    arguments, results and checkpoints as 'ExponentialMovingAverage'.

    Raises:
        ValueError: If an argument is illegal.
    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        momentum: float = 0.0002,
        interval: int = 1,
        device: torch.device | None = None,
        update_buffers: bool = False,
    ) -> None:
        super().__init__(model, momentum, interval, device, update_buffers)
        self._source_modules: tuple[nn.Module, ...] = ()
        self._paired: list = []

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Average the weights of the model into these, as the base class."""
        self._pair_up(model)
        # The first step, a copy on another device, and another average.
        own = type(self).avg_func is not ExponentialMovingAverage.avg_func
        if self.steps == 0 or self._apart or own:
            super().update_parameters(model)
            return
        if self.steps % self.interval == 0:
            for averaged, source in self._averaged:
                torch._foreach_lerp_(averaged, source, self.momentum)
        if not self.update_buffers:
            for copy, source in self._copied:
                torch._foreach_copy_(copy, source)
        self.steps += 1

    def _pair_up(self, model: nn.Module) -> None:
        """Find the source of each average, if it is not as in the last step.

        To walk over all names takes longer than to average.
        """
        found = [*self.avg_parameters.values(), *members(self._source_modules)]
        if self._source_modules[:1] == (model,) and (
            len(found) == len(self._paired)
            and all(map(operator.is_, found, self._paired))
        ):
            return
        self._source_modules = tuple(model.modules())
        self._paired = [
            *self.avg_parameters.values(),
            *members(self._source_modules),
        ]
        sources = dict(
            itertools.chain(model.named_parameters(), model.named_buffers())
        )
        pairs = [(p, sources[k]) for k, p in self.avg_parameters.items()]
        self._apart = any(p.device != s.device for p, s in pairs)
        self._averaged = _by_dtype(
            [pair for pair in pairs if pair[0].is_floating_point()]
        )
        buffers = zip(self.module.buffers(), model.buffers(), strict=True)
        self._copied = _by_dtype(list(buffers))


def _by_dtype(
    pairs: list[tuple[Tensor, Tensor]],
) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Lists of targets and sources that one call takes."""
    groups: dict[tuple, tuple[list[Tensor], list[Tensor]]] = {}
    for target, source in pairs:
        key = target.dtype, source.dtype
        targets, sources = groups.setdefault(key, ([], []))
        targets.append(target)
        sources.append(source)
    return list(groups.values())
