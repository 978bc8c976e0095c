"""What a training costs on one H200, from measured iterations.

Where a config's own iteration was timed, that is it. Another classifier's is
`step * images / 128 + runner`: the step is that of tiny, small or base, or for
an ablation on the line through tiny and base over the FLOPs; the runner's part
is that of tiny. Another Mask R-CNN's is that of tiny with standard heads, the
backbone's part in it longer by the ratio of the classifiers' steps.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from writing.paper import COMPUTED, RESULTS, read_csv

BENCHMARK = RESULTS / 'benchmark'
DEVICE = 'NVIDIA H200'
# Of COCO those with boxes, which the toolbox keeps.
IMAGES = dict(in1k=1_281_167, coco=117_266)
EPOCHS = dict(e=1, x=12)
CARDS = 8
MEASURED_BATCH = 128
TINY = 'evmamba-tiny_16xb128-amp-300e_in1k'
DETECTOR = 'mask-rcnn-std_evmamba-tiny_fpn_8xb2-amp-1x_coco'
NAME = re.compile(
    r'(?P<model>.*evmamba-(?P<arch>tiny|small|base).*)_\d+xb(?P<batch>\d+)'
    r'-.*?(?P<length>\d+)(?P<unit>[ex])_(?P<data>in1k|coco)'
)


@dataclass(frozen=True)
class Cost:
    """Iterations of one GPU with the config's batch, and one's milliseconds.

    `basis` says what was measured and what is scaled.
    """

    iterations: int
    ms: float
    basis: str

    @property
    def hours(self):
        """Of one GPU for the whole training."""
        return self.iterations * self.ms / 3.6e6


def ms_of(file, model, mode, phase):
    """A measured time; exactly one row must hold it."""
    wanted = (model, mode, phase, DEVICE)
    (ms,) = (
        row['ms']
        for row in read_csv(BENCHMARK / f'{file}.csv')
        if tuple(row[k] for k in ('model', 'mode', 'phase', 'device'))
        == wanted
    )
    return float(ms)


def timed(name, file='h200_iteration'):
    """Milliseconds of a config's own iteration, None if it was not timed."""
    # Others are a part of it, or wait for files.
    wanted = (name, 'config', 'iteration')
    return next(
        (
            float(row['ms'])
            for row in read_csv(BENCHMARK / f'{file}.csv')
            if tuple(row[k] for k in ('model', 'mode', 'phase')) == wanted
        ),
        None,
    )


def step(arch, mode='graph'):
    """Forward and backward of 128 images of 224x224, of one run for all."""
    return ms_of('h200_after', f'EfficientVMamba:{arch}', mode, 'training')


def runner(file='h200_iteration'):
    """What an iteration of tiny takes besides the model's step."""
    return timed(TINY, file) - step('tiny')


def flops():
    """G FLOPs of the classifiers, by the config's name without its recipe."""
    return {
        Path(row['config']).stem.partition('_')[0]: int(row['flops']) / 1e9
        for row in read_csv(COMPUTED / 'configs.csv')
        if row['config'].endswith('_in1k.py')
    }


def step_on_line(model, ends=('tiny', 'base')):
    """The step by a model's FLOPs, on the line through two measured ones."""
    known = flops()
    (x0, y0), (x1, y1) = (
        (known[f'evmamba-{arch}'], step(arch)) for arch in ends
    )
    return y0 + (y1 - y0) * (known[model] - x0) / (x1 - x0)


def classifier(model, arch, batch):
    """Milliseconds of an iteration, and their basis."""
    published = model == f'evmamba-{arch}'
    whole = step(arch) if published else step_on_line(model)
    if not published:
        basis = 'scaled by FLOPs between T and B of h200_after.csv'
    else:
        basis = "model measured: h200_after.csv, Runner's part that of T"
    return whole * batch / MEASURED_BATCH + runner(), basis


def mask_rcnn(arch, mode):
    """Milliseconds of a training step, and their basis."""
    whole, backbone = (
        ms_of('h200_detection', DETECTOR, mode, phase)
        for phase in ('training step', 'backbone in step')
    )
    if mode == 'graph':
        whole = timed(DETECTOR)
    longer = step(arch, mode) / step('tiny', mode)
    files = 'h200_detection.csv'
    if mode == 'graph':
        files = f'h200_iteration.csv, {files}'
    basis = f'scaled from T with standard heads, {mode}: {files}'
    return whole + backbone * (longer - 1), basis


def cost_of(config):
    """The cost of a config's training; None where nothing like it was timed.

    The config's name says the batch, the length and the data.
    """
    name = NAME.fullmatch(Path(config).stem)
    if name is None:
        return None
    model, arch, batch = name['model'], name['arch'], int(name['batch'])
    ms = timed(Path(config).stem)
    if ms is not None:
        basis = 'measured: h200_iteration.csv'
    elif name['data'] == 'in1k':
        ms, basis = classifier(model, arch, batch)
    elif model.startswith('mask-rcnn'):
        # The sizes of multi-scale images are too many for CUDA graphs.
        mode = 'graph' if name['length'] == '1' else 'eager'
        ms, basis = mask_rcnn(arch, mode)
    else:
        return None
    epochs = int(name['length']) * EPOCHS[name['unit']]
    iterations = round(IMAGES[name['data']] * epochs / batch)
    return Cost(iterations, ms, basis)


def shown(hours):
    return f'{hours:.0f}' if hours >= 10 else f'{hours:.1f}'


def line_of(config, device):
    """The line to print before a training on a device."""
    cost = cost_of(config)
    if cost is None:
        return 'training: how long it takes was not measured'
    here = '' if device == DEVICE else f'; this machine has {device}'
    return (
        f'training: about {shown(cost.hours)} GPU hours on one {DEVICE}, '
        f'{shown(cost.hours / CARDS)} hours on {CARDS} ({cost.basis}), '
        'without data loading, validation, communication and '
        f'--cfg-options{here}'
    )
