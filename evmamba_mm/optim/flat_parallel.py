"""The gradients of all processes, averaged in one piece.

DistributedDataParallel sends gradients while the backward still computes
others, and for that copies each into a bucket and back, two launches a
parameter. A captured backward has all of them at once: nothing is left to
overlap with, and the copies cost more than the sending.
"""

from collections.abc import Sequence

import torch
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.registry import MODEL_WRAPPERS
from torch import Tensor, distributed, nn

from ..arguments import checked


class _Row:
    """Gradients of one dtype and device, one behind the other."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = parameters
        sizes = [parameter.numel() for parameter in parameters]
        self.memory = parameters[0].new_zeros(sum(sizes))
        parts = self.memory.split(sizes)
        # Fused optimisers need the layout of the parameter.
        layouts = [torch.empty_like(p, device='meta') for p in parameters]
        self.gradients = [
            part.as_strided(x.shape, x.stride(), part.storage_offset())
            for part, x in zip(parts, layouts, strict=True)
        ]

    def average(self, group: distributed.ProcessGroup) -> None:
        """Put the mean of all processes in the place of each gradient."""
        given = [parameter.grad for parameter in self.parameters]
        torch._foreach_copy_(self.gradients, given)
        # Divided first: a sum could be too large for half precision.
        self.memory /= group.size()
        distributed.all_reduce(self.memory, group=group)
        for parameter, gradient in zip(
            self.parameters, self.gradients, strict=True
        ):
            parameter.grad = gradient


@MODEL_WRAPPERS.register_module()
class FlatDistributedDataParallel(MMDistributedDataParallel):
    """Averages the gradients after the backward, all of them together.

    For ``model_wrapper_cfg``, in trainings whose backbone is a CUDA graph.
    The mean is that of :class:`mmengine.model.MMDistributedDataParallel`,
    and buffers stay those of each process, as a Runner has them by default.
    Layers may be frozen and thawed at any time, in all processes alike.

    Args:
        module: The model.
        device_ids: Its GPU, None on a CPU.

    Raises:
        ValueError: If an argument is illegal.
    """

    @checked
    def __init__(
        self, module: nn.Module, device_ids: list[int] | None = None
    ) -> None:
        super().__init__(
            module, device_ids=device_ids, broadcast_buffers=False
        )
        self._trained: list[nn.Parameter] = []
        self._rows: list[_Row] = []
        self._find_trained()

    def _find_trained(self) -> None:
        """Make the rows anew if a hook has changed what is trained."""
        trained = []
        for parameter in self.module.parameters():
            if parameter.requires_grad:
                trained.append(parameter)
            else:
                # Frozen while gradients were accumulated: each process has
                # its own, which an optimiser would still take.
                parameter.grad = None
        if [*map(id, trained)] == [*map(id, self._trained)]:
            return
        self._trained = trained
        rows: dict[tuple, list[nn.Parameter]] = {}
        for parameter in trained:
            key = parameter.dtype, parameter.device
            rows.setdefault(key, []).append(parameter)
        self._rows = [_Row(parameters) for parameters in rows.values()]

    def train_step(
        self, data: dict | tuple | list, optim_wrapper: OptimWrapper
    ) -> dict[str, Tensor]:
        """Train with one batch, as the base class.

        Raises:
            RuntimeError: If a parameter has no gradient, or a sparse one.
        """
        with optim_wrapper.optim_context(self):
            # Not while gradients are accumulated.
            due = self.require_backward_grad_sync
            data = self.module.data_preprocessor(data, training=True)
            with self.no_sync():
                losses = self._run_forward(data, mode='loss')
        loss, log_vars = self.module.parse_losses(losses)
        if due:
            self._average_after_backward(loss)
        optim_wrapper.update_params(loss)
        return log_vars

    def _average_after_backward(self, loss: Tensor) -> None:
        def average() -> None:
            self._find_trained()
            self._refuse_missing()
            for row in self._rows:
                row.average(self.process_group)

        # Gradients are clipped and unscaled once the backward has returned;
        # the engine calls this before, as it does for torch's own wrappers.
        engine = torch.autograd.Variable._execution_engine
        loss.register_hook(lambda _: engine.queue_callback(average))

    def _refuse_missing(self) -> None:
        missing = [
            p for p in self._trained if p.grad is None or p.grad.is_sparse
        ]
        if not missing:
            return
        names = {p: name for name, p in self.module.named_parameters()}
        raise RuntimeError(
            f'{len(missing)} parameter(s) have no gradient, or a sparse one, '
            f'the first is {names[missing[0]]}: freeze what the loss does '
            'not depend on before the training, or use '
            'model_wrapper_cfg=None and find_unused_parameters=True'
        )
