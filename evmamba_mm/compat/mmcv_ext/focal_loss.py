"""Focal losses in torch.

The logarithms come from the logits, so the loss keeps growing where the
compiled kernels, whose fp32 probability is 0 or 1 there, stop at 87.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .kernels import full_precision


def sigmoid_focal_loss_forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    output: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Fills `output` (N, C): the loss of each class against the rest.

    A target of C is the background, which is no class. `weight` is empty or
    one number a class, used for the rows of that class.

    Raises:
        ValueError: a target is larger than C.
    """
    logits = full_precision(input)
    sign, balance = _sides(logits, target, alpha)
    logit = logits * sign
    factor = torch.sigmoid(-logit).pow(gamma) * balance
    loss = -factor * F.logsigmoid(logit)
    output.copy_(_weighted(loss, weight, target))


def sigmoid_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Fills `grad_input`: the derivative of each loss by its own logit."""
    logits = full_precision(input)
    sign, balance = _sides(logits, target, alpha)
    logit = logits * sign
    miss = torch.sigmoid(-logit)
    slope = gamma * (1 - miss) * F.logsigmoid(logit) - miss
    grad = miss.pow(gamma) * slope * balance * sign
    grad_input.copy_(_weighted(grad, weight, target))


def _sides(
    logits: Tensor, target: Tensor, alpha: float
) -> tuple[Tensor, Tensor]:
    """Signs that make each logit that of the right answer, and alpha_t."""
    classes = logits.shape[1]
    _check_targets(target, classes, 'sigmoid_focal_loss')
    hit = target[:, None] == torch.arange(classes, device=target.device)
    hit = hit.to(logits.dtype)
    return 2 * hit - 1, (2 * alpha - 1) * hit + (1 - alpha)


def softmax_focal_loss_forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    output: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Fills `output` (N,) from the softmax `input` (N, C).

    Rows with a negative target count nothing.

    Raises:
        ValueError: a target is not below C.
    """
    chance, label = _chance_of_target(input, target)
    loss = -alpha * (1 - chance).pow(gamma) * _safe_log(chance)
    loss = loss.masked_fill(target < 0, 0)
    output.copy_(_weighted(loss, weight, label))


def softmax_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    buff: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Fills `grad_input` (N, C): the derivative by the logits."""
    chance, label = _chance_of_target(input, target)
    miss = 1 - chance
    grad = gamma * miss.pow(gamma - 1) * chance * _safe_log(chance)
    # 0 to the power of a negative number, where the first factor is 0.
    grad = grad.masked_fill(miss <= 0, 0)
    grad = alpha * (grad - miss.pow(gamma)).masked_fill(target < 0, 0)
    grad = _weighted(grad, weight, label)
    buff.copy_(grad)
    grads = -grad[:, None] * full_precision(input)
    grads.scatter_add_(1, label[:, None], grad[:, None])
    grad_input.copy_(grads)


def _chance_of_target(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    _check_targets(target, input.shape[1] - 1, 'softmax_focal_loss')
    label = target.clamp(min=0)
    return full_precision(input).gather(1, label[:, None])[:, 0], label


def _safe_log(chance: Tensor) -> Tensor:
    return chance.clamp(min=torch.finfo(torch.float32).tiny).log()


def _weighted(values: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """Rows times the weight of their class; background counts 1."""
    if not weight.numel():
        return values
    classes = len(weight)
    factor = weight.to(values.dtype)[target.clamp(0, classes - 1)]
    factor = factor.masked_fill((target < 0) | (target >= classes), 1)
    return values * factor.view(-1, *[1] * (values.dim() - 1))


def _check_targets(target: Tensor, largest: int, loss: str) -> None:
    if target.numel() and int(target.max()) > largest:
        raise ValueError(
            f'target of {loss} holds {int(target.max())}; at most {largest} '
            'is legal for this number of classes'
        )
