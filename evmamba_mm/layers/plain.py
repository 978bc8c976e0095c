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
    parametrised one, if its weight is no parameter, as of a pruned one, or
    more than memory, as of a sharded or quantised one.

    Args:
        layer: The layer, with a weight.
        kind: The class that is read.
    """
    weight = layer._parameters.get('weight')
    plain = type(layer) is kind and type(weight) in (nn.Parameter, Tensor)
    # Pruning leaves what is no parameter in the place of one.
    return plain and 'bias' not in layer.__dict__


def is_plain_and_unseen(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """The same of a layer that is called where someone waits for it."""
    return is_plain(layer, kind) and not has_hooks(layer)
