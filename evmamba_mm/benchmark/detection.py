"""The backbone in a training step of a detector, and the step itself."""

import functools
import itertools
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from ..config_files import read_config
from ..graphs import graph_training
from . import modes, timing
from .session import Session

INPUTS = 2
OBJECTS = 7
STEP = 'training step'
INSIDE = 'backbone in step'
ALONE = 'backbone alone'
PHASES = (STEP, INSIDE, ALONE)


def build(path: str | Path, device: torch.device) -> nn.Module:
    """Builds a config's detector with random weights, in training mode."""
    config = read_config(path)
    for part in (config.model, config.model.backbone):
        part.pop('init_cfg', None)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        model = MODELS.build(config.model)
    return revert_sync_batchnorm(model).to(device).train()


def random_batches(
    model: nn.Module, batch: int, height: int, width: int
) -> list[dict]:
    """Preprocessed batches of noise with random objects and masks."""
    from mmdet.testing._utils import demo_mm_inputs

    make = functools.partial(
        demo_mm_inputs,
        batch_size=batch,
        image_shapes=(3, height, width),
        num_items=[OBJECTS] * batch,
        with_mask=True,
    )
    with torch.no_grad():
        return [
            model.data_preprocessor(make(), training=True)
            for _ in range(INPUTS)
        ]


class Marks:
    """Where in a step the backbone begins and ends.

    Its backward begins when the last of its outputs has its gradient and ends
    with the backward of the whole, since nothing lies before it.
    """

    def __init__(self, backbone: nn.Module, device: torch.device):
        self.clock = timing.Clock(device)
        self.at = {}
        self.hooks = [
            backbone.register_forward_pre_hook(self.enter),
            backbone.register_forward_hook(self.leave),
        ]

    def enter(self, module: nn.Module, inputs: tuple) -> None:
        """Mark the begin of the forward."""
        self.at['forward'] = self.clock.mark()

    def leave(self, module: nn.Module, inputs: tuple, outputs: tuple) -> None:
        """Mark the end of the forward, and wait for the gradients."""
        self.at['forward end'] = self.clock.mark()
        # A frozen stage's output has no gradient.
        for output in outputs:
            if output.requires_grad:
                output.register_hook(self.gradient)

    def gradient(self, gradient: Tensor) -> None:
        """Mark the begin of the backward."""
        self.at['backward'] = self.clock.mark()

    def ms(self, end: object) -> float:
        """Return the milliseconds of forward, and of backward up to `end`."""
        at = self.at
        return self.clock.ms(at['forward'], at['forward end']) + self.clock.ms(
            at['backward'], end
        )


def step_function(
    model: nn.Module,
    batches: Sequence[dict],
    device: torch.device,
    dtype: torch.dtype,
) -> Callable[[int], object]:
    """Make a function of a call's number: a training step."""

    def step(call):
        data = batches[call % INPUTS]
        model.zero_grad(set_to_none=True)
        with modes.autocast(device, dtype):
            losses = model(**data, mode='loss')
        loss, _ = model.parse_losses(losses)
        loss.backward()

    return step


def inside(
    model: nn.Module,
    step: Callable[[int], object],
    device: torch.device,
    repeats: int,
) -> timing.Measured:
    """Median milliseconds of the backbone within a step."""
    marks = Marks(model.backbone, device)
    times = []
    for call in range(timing.WARM_UP + repeats):
        timing.synchronize(device)
        step(call)
        end = marks.clock.mark()
        timing.synchronize(device)
        times.append(marks.ms(end))
    for hook in marks.hooks:
        hook.remove()
    ms = statistics.median(times[timing.WARM_UP :])
    return timing.Measured(ms, timing.peak_gib(device))


def graphed(
    model: nn.Module, batches: Sequence[dict], dtype: torch.dtype
) -> None:
    """Captures the backbone, as CUDAGraphHook does while a model trains."""
    graph_training(
        model.backbone,
        batches[0]['inputs'],
        None if dtype == torch.float32 else dtype,
    )


def alone_function(
    model: nn.Module,
    batches: Sequence[dict],
    device: torch.device,
    dtype: torch.dtype,
) -> Callable[[int], object]:
    """Make a function of a call's number: the backbone alone."""
    backbone = model.backbone
    gradients = []

    def step(call):
        backbone.zero_grad(set_to_none=True)
        with modes.autocast(device, dtype):
            outputs = backbone(batches[call % INPUTS]['inputs'])
        outputs = [y for y in outputs if y.requires_grad]
        if not gradients:
            gradients.extend(torch.randn_like(y) for y in outputs)
        torch.autograd.backward(outputs, gradients)

    return step


def run(
    session: Session,
    configs: Sequence[str],
    wanted: Sequence[str],
    batch: int,
    height: int,
    width: int,
    dtype: str,
) -> None:
    """Three rows a config and mode: the step, the backbone in it, and alone.

    In mode 'graph' the backbone alone is a graph, the rest is as it is.
    """
    size = f'{height}x{width}'
    device, kind = session.device, modes.DTYPES[dtype]
    for path, mode in itertools.product(configs, wanted):
        name = str(path).rpartition('/')[2].removesuffix('.py')

        @functools.cache
        def prepared(path=path, mode=mode):
            model = build(path, device)
            batches = random_batches(model, batch, height, width)
            if mode == 'graph':
                graphed(model, batches, kind)
            return model, batches

        def whole(prepared=prepared):
            return step_function(*prepared(), device, kind)

        def within(prepared=prepared, whole=whole):
            model, _ = prepared()
            return inside(model, whole(), device, session.repeats)

        def backbone(prepared=prepared):
            return alone_function(*prepared(), device, kind)

        asked = (name, mode)
        rest = (batch, size, dtype)
        session.measure(whole, *asked, STEP, *rest)
        session.record(within, *asked, INSIDE, *rest)
        session.measure(backbone, *asked, ALONE, *rest)
