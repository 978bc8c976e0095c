"""Losses and gradient norms that reach the log without a wait a step."""

import math

import torch
from mmengine.hooks import LoggerHook, RuntimeInfoHook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.utils import apply_to
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from ..arguments import checked


@HOOKS.register_module()
class DeferredRuntimeInfoHook(RuntimeInfoHook):
    """mmengine's hook of runtime information, read from the GPU in batches.

    The stock hook copies each loss to the CPU in every iteration, and the
    optimiser wrapper the norm of the gradients, so the CPU waits until the
    GPU has finished. This one keeps them on the device until the log is
    written, a checkpoint is saved or validation begins. The message hub then
    gets every value, in order; a hook that reads it in between finds values of
    an earlier iteration, and needs mmengine's 'RuntimeInfoHook'. A loss that
    is infinite or NaN is told once.

    Args:
        limit: Most iterations that values are kept for.

    Raises:
        ValueError: If the limit is below 1.
    """

    @checked
    def __init__(self, limit: int = 100) -> None:
        self.limit = limit
        self._kept: list[tuple[str, Tensor]] = []
        self._iterations = 0
        self._told = False
        self._clipping: list[OptimWrapper] = []

    def before_train(self, runner) -> None:
        """Take the norms that clipping computes."""
        super().before_train(runner)
        # Of a training that ended by an exception.
        self._kept.clear()
        self._iterations = 0
        wrapper = runner.optim_wrapper
        several = isinstance(wrapper, OptimWrapperDict)
        for each in wrapper.values() if several else [wrapper]:
            if getattr(each, 'clip_func', None) is clip_grad_norm_:
                each.clip_func = self._clip_and_keep
                self._clipping.append(each)

    def _clip_and_keep(
        self,
        parameters: list[Tensor],
        max_norm: float,
        norm_type: float = 2.0,
        error_if_nonfinite: bool = False,
        foreach: bool | None = None,
    ) -> None:
        """Torch's clip_grad_norm_, whose result the wrapper would copy."""
        norm = clip_grad_norm_(
            parameters, max_norm, norm_type, error_if_nonfinite, foreach
        )
        self._kept.append(('train/grad_norm', norm.detach()))

    def after_train_iter(
        self, runner, batch_idx: int, data_batch=None, outputs=None
    ) -> None:
        """Keep the losses, and hand all over where the log is due."""
        for name, value in (outputs or {}).items():
            if isinstance(value, Tensor):
                self._kept.append((f'train/{name}', value.detach()))
            else:
                runner.message_hub.update_scalar(f'train/{name}', value)
        self._iterations += 1
        if self._is_due(runner, batch_idx):
            self._hand_over(runner)

    def _is_due(self, runner, batch_idx: int) -> bool:
        if self._iterations >= self.limit:
            return True
        if self.end_of_epoch(runner.train_dataloader, batch_idx):
            return True
        return any(
            self.every_n_inner_iters(batch_idx, hook.interval)
            for hook in runner.hooks
            if isinstance(hook, LoggerHook)
        )

    def _hand_over(self, runner) -> None:
        for device in {value.device for _, value in self._kept}:
            names, values = zip(
                *(pair for pair in self._kept if pair[1].device == device),
                strict=True,
            )
            numbers = torch.stack([x.reshape(()).double() for x in values])
            for name, number in zip(names, numbers.tolist(), strict=True):
                runner.message_hub.update_scalar(name, number)
                if name == 'train/loss' and not math.isfinite(number):
                    self._warn(runner, number)
        self._kept.clear()
        self._iterations = 0

    def _warn(self, runner, loss: float) -> None:
        if not self._told:
            self._told = True
            runner.logger.warning(
                'the loss is %s; the training goes on, but weights that took '
                'a step by it are of no use',
                loss,
            )

    def before_val(self, runner) -> None:
        """Hand over what validation hooks may read."""
        self._hand_over(runner)
        super().before_val(runner)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Store the history with all values."""
        self._hand_over(runner)
        checkpoint['message_hub'] = apply_to(
            runner.message_hub.state_dict(),
            lambda x: isinstance(x, Tensor),
            lambda x: x.cpu(),
        )

    def after_train(self, runner) -> None:
        """Hand over the rest, and give the clipping its function back."""
        self._hand_over(runner)
        for wrapper in self._clipping:
            wrapper.clip_func = clip_grad_norm_
        self._clipping.clear()
        super().after_train(runner)
