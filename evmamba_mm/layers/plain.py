"""Whether a layer's parameters tell all that it does."""

from torch import Tensor, nn


def has_hooks(module: nn.Module) -> bool:
    """Whether someone wants to be told of the calls of a module."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def is_plain(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a layer may be read instead of called.

    It must be called if it is another class, such as an adapter or a
    parametrised one, if it has hooks, as a pruned one has, or if its weight
    is more than memory, as a sharded or quantised one is.

    Args:
        layer: The layer, with a weight.
        kind: The class that is read.
    """
    weight = layer._parameters.get('weight')
    return (
        type(layer) is kind
        and type(weight) in (nn.Parameter, Tensor)
        and not has_hooks(layer)
    )
