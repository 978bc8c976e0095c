"""The ways a classifier is run: one function of a call's number each."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones import EfficientVMamba
from ..deploy import fuse
from ..graphs import graph_inference, graph_training

MODES = ('eager', 'compiled', 'deployed', 'graph')
PHASES = ('inference', 'training')
# A model that is trained keeps its fp32 weights and BatchNorms.
TRAINING_MODES = ('eager', 'compiled', 'graph')
DTYPES = dict(fp32=torch.float32, fp16=torch.float16, bf16=torch.bfloat16)
INPUTS = 4
CLASSES = 1000
FOLD_TOLERANCE = 1e-3


class Batches:
    """Several batches, so that no run finds its input in a cache.

    Each is made when a call first asks for it: what a model needs is counted
    beside one.

    Args:
        make: Makes a batch.
    """

    def __init__(self, make: Callable[[], Tensor]):
        self.make = make
        self.made = {}

    def __getitem__(self, call: int) -> Tensor:
        number = call % INPUTS
        if number not in self.made:
            self.made[number] = self.make()
        return self.made[number]


def random_images(
    batch: int, size: tuple[int, int], device: torch.device
) -> Tensor:
    """Return noise (B, 3, H, W)."""
    return torch.randn(batch, 3, *size, device=device)


def autocast(
    device: torch.device, dtype: torch.dtype
) -> AbstractContextManager:
    """Return a context that casts to `dtype`, if it is not fp32."""
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def layout(model: nn.Module) -> torch.memory_format:
    """Return the layout of images that serves a model best."""
    # Ours exchange channels-last maps inside, whatever the image is.
    return torch.contiguous_format if is_ours(model) else torch.channels_last


def is_ours(model: nn.Module) -> bool:
    """Return whether an EfficientVMamba is part of a model."""
    return any(isinstance(m, EfficientVMamba) for m in model.modules())


def deployed(
    model: nn.Module, dtype: torch.dtype, size: tuple[int, int]
) -> nn.Module:
    """Copy for inference: BatchNorms folded, else weights in `dtype`, NHWC.

    Ours are folded by the package, which keeps what the scan's decay rates
    are made of in fp32. Others are folded by mmcv; one whose outputs that
    would change stays as it is. timm merges the branches of its models that
    are trained with several first.
    """
    if is_ours(model):
        return fuse(model, None if dtype == torch.float32 else dtype)
    if type(model).__module__.partition('.')[0] == 'timm':
        from timm.utils import reparameterize_model

        model = reparameterize_model(model.eval(), inplace=False)
    folded = folded_by_mmcv(model.eval(), size)
    return folded.to(dtype=dtype, memory_format=torch.channels_last)


@torch.no_grad()
def folded_by_mmcv(model: nn.Module, size: tuple[int, int]) -> nn.Module:
    """Return a copy with folded BatchNorms, if that keeps the outputs."""
    from mmcv.cnn import fuse_conv_bn

    folded = fuse_conv_bn(copy.deepcopy(model))
    image = torch.randn(1, 3, *size, device=next(model.parameters()).device)
    expected, got = model(image), folded(image)
    error = (got - expected).norm() / expected.norm()
    return folded if error < FOLD_TOLERANCE else model


def compiled(model: nn.Module, device: torch.device) -> Callable:
    """As a user compiles it: with CUDA graphs where there are some."""
    if device.type != 'cuda':
        return torch.compile(model)
    return torch.compile(model, mode='reduce-overhead')


def inference(
    model: nn.Module,
    mode: str,
    dtype: torch.dtype,
    batch: int,
    size: tuple[int, int],
    device: torch.device,
) -> Callable[[int], object]:
    """A function that gives the logits of one of several batches."""
    model = model.eval()
    if mode == 'eager':
        order = layout(model)
        model = model.to(memory_format=order)
        images = Batches(
            lambda: random_images(batch, size, device).to(memory_format=order)
        )

        def run(call):
            with torch.no_grad(), autocast(device, dtype):
                return model(images[call])

        return run

    def half_images():
        images = random_images(batch, size, device)
        return images.to(dtype=dtype, memory_format=torch.channels_last)

    images = Batches(half_images)
    model = deployed(model, dtype, size)
    wide = is_ours(model) and dtype != torch.float32
    if mode == 'compiled':
        model = compiled(model, device)
    if mode == 'graph':
        graph_inference(model, images[0], dtype if wide else None)

    def run(call):
        context = autocast(device, dtype) if wide else nullcontext()
        with torch.no_grad(), context:
            return model(images[call])

    return run


def training(
    model: nn.Module,
    mode: str,
    dtype: torch.dtype,
    batch: int,
    size: tuple[int, int],
    device: torch.device,
) -> Callable[[int], object]:
    """A function that goes forward and backward, without an optimiser."""
    order = layout(model)
    model = model.to(memory_format=order)
    images = Batches(
        lambda: random_images(batch, size, device).to(memory_format=order)
    )
    labels = torch.randint(CLASSES, (INPUTS, batch), device=device)
    model = model.train()
    called = compiled(model, device) if mode == 'compiled' else model
    if mode == 'graph':
        graph_training(
            model, images[0], None if dtype == torch.float32 else dtype
        )

    def run(call):
        model.zero_grad(set_to_none=True)
        with autocast(device, dtype):
            logits = called(images[call])
        loss = F.cross_entropy(logits.float(), labels[call % INPUTS])
        loss.backward()
        return loss

    return run
