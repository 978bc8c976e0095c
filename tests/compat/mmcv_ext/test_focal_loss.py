"""mmcv's focal losses against their definitions, derived by autograd."""

import mmcv.ops
import pytest
import torch
from torch.testing import assert_close

ROWS, CLASSES = 13, 5
DTYPES = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 5e-3,
    torch.bfloat16: 4e-2,
}


def random_logits(dtype, rows=ROWS):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, CLASSES, generator=generator) * 3
    return logits.to(dtype)


def sigmoid_reference(logits, target, gamma, alpha, weight):
    """Losses (N, C), one number at a time."""
    rows = []
    for row, label in zip(logits, target.tolist(), strict=True):
        for column, logit in enumerate(row):
            p = 1 / (1 + torch.exp(-logit))
            p, a = (p, alpha) if column == label else (1 - p, 1 - alpha)
            loss = -a * (1 - p) ** gamma * torch.log(p)
            if weight is not None and label < CLASSES:
                loss = loss * weight[label]
            rows.append(loss)
    return torch.stack(rows).view_as(logits)


def softmax_reference(logits, target, gamma, alpha, weight):
    """Losses (N,); a negative target counts nothing."""
    rows = []
    for row, label in zip(logits, target.tolist(), strict=True):
        p = torch.exp(row[label]) / torch.exp(row).sum()
        loss = -alpha * (1 - p) ** gamma * torch.log(p)
        if weight is not None:
            loss = loss * weight[label]
        rows.append(loss if label >= 0 else 0 * loss)
    return torch.stack(rows)


REDUCTIONS = {
    'mean': lambda loss: loss.sum() / ROWS,
    'sum': lambda loss: loss.sum(),
}
LOSSES = {
    'sigmoid': (
        mmcv.ops.sigmoid_focal_loss,
        sigmoid_reference,
        # CLASSES is the background.
        torch.arange(ROWS) % (CLASSES + 1),
    ),
    'softmax': (
        mmcv.ops.softmax_focal_loss,
        softmax_reference,
        torch.arange(ROWS) % (CLASSES + 1) - 1,
    ),
}


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('reduction', REDUCTIONS)
@pytest.mark.parametrize('weighted', [False, True], ids=['plain', 'weights'])
@pytest.mark.parametrize('gamma, alpha', [(2.0, 0.25), (1.5, 0.6), (0.0, 0.5)])
@pytest.mark.parametrize('kind', LOSSES)
def test_loss_and_gradient(
    device, kind, gamma, alpha, weighted, reduction, dtype
):
    loss_of, reference, target = LOSSES[kind]
    logits = random_logits(dtype)
    weight = torch.linspace(0.5, 2, CLASSES) if weighted else None
    leaf = logits.to(device, copy=True).requires_grad_()
    loss = loss_of(
        leaf,
        target.to(device),
        gamma,
        alpha,
        weight.to(device, dtype) if weighted else None,
        reduction,
    )
    loss.backward()
    exact = logits.to(torch.float64, copy=True).requires_grad_()
    expected = REDUCTIONS[reduction](
        reference(exact, target, gamma, alpha, weight)
    )
    expected.backward()
    assert loss.dtype == leaf.grad.dtype == dtype
    tolerance = dict(rtol=DTYPES[dtype], atol=DTYPES[dtype])
    assert_close(loss.detach().cpu().double(), expected.detach(), **tolerance)
    assert_close(leaf.grad.cpu().double(), exact.grad, **tolerance)


def test_losses_one_by_one(device):
    logits = random_logits(torch.float64)
    loss_of, reference, target = LOSSES['sigmoid']
    loss = loss_of(
        logits.to(device), target.to(device), 2.0, 0.25, None, 'none'
    )
    expected = reference(logits, target, 2.0, 0.25, None)
    assert_close(loss.cpu(), expected)


@pytest.mark.parametrize('kind', LOSSES)
def test_gradcheck(device, kind):
    loss_of, _, target = LOSSES[kind]
    logits = random_logits(torch.float64).to(device).requires_grad_()
    torch.autograd.gradcheck(
        lambda x: loss_of(x, target.to(device), 2.0, 0.25, None, 'sum'), logits
    )


def test_sure_mistakes_of_any_size_have_a_slope(device):
    logits = torch.tensor([[30.0, -150.0, 500.0]], device=device)
    logits.requires_grad_()
    target = torch.tensor([1], device=device)
    loss = mmcv.ops.sigmoid_focal_loss(logits, target, 2.0, 0.25, None, 'sum')
    loss.backward()
    assert_close(loss.item(), 0.75 * 30 + 0.25 * 150 + 0.75 * 500)
    assert_close(logits.grad.cpu(), torch.tensor([[0.75, -0.25, 0.75]]))


@pytest.mark.parametrize('kind', LOSSES)
def test_no_rows(device, kind):
    logits = random_logits(torch.float32, 0).to(device).requires_grad_()
    target = torch.zeros(0, dtype=torch.long, device=device)
    loss = LOSSES[kind][0](logits, target, 2.0, 0.25, None, 'sum')
    loss.backward()
    assert loss.item() == 0 and logits.grad.shape == (0, CLASSES)


@pytest.mark.parametrize(
    'kind, most', [('sigmoid', CLASSES), ('softmax', CLASSES - 1)]
)
def test_target_beyond_the_classes_is_refused(device, kind, most):
    logits = random_logits(torch.float32, 1).to(device)
    target = torch.tensor([most + 1], device=device)
    with pytest.raises(ValueError, match=f'{most + 1}; at most {most} is'):
        LOSSES[kind][0](logits, target, 2.0, 0.25, None, 'sum')
