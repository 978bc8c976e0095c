"""Tables of what trainings with several seeds reached."""

import math
import statistics

from evidence import files
from evidence.claims import METRIC, difference, values_of
from evidence.scores import LOSS_SCALE

from .paper import RESULTS

FOLDER = RESULTS / 'evidence'
AP, AP50 = 'coco/{}_mAP', 'coco/{}_mAP_50'
# Task, metric, its factor to per cent, and the column's head.
TASKS = (
    ('bccd', AP.format('bbox'), 100, 'blood cells, box AP'),
    ('bccd', AP50.format('bbox'), 100, 'AP50'),
    ('nuclei', AP.format('bbox'), 100, 'nuclei, box AP'),
    ('nuclei', AP50.format('bbox'), 100, 'AP50'),
    ('nuclei', AP.format('segm'), 100, 'nuclei, mask AP'),
    ('nuclei', AP50.format('segm'), 100, 'AP50'),
    ('camvid', 'mIoU', 1, 'CamVid, mIoU'),
    ('camvid', 'mIoU, sliding window', 1, 'sliding window'),
    ('camvid', 'mIoU, multi-scale', 1, 'multi-scale'),
)
# Of each task the one that backbones are compared by.
GAINS = (TASKS[0], TASKS[4], TASKS[6])
STARTS = {
    'tiny': 'EfficientVMamba-T',
    'resnet18': 'ResNet-18',
    'pvtv2-b0': 'PVTv2-B0',
    'tiny-scratch': 'EfficientVMamba-T, random weights',
}
BY_HEART = (
    ('overfit', AP50.format('bbox'), 100, 'box AP50'),
    ('overfit', AP50.format('segm'), 100, 'mask AP50'),
)
DETECTORS = {
    'retinanet': 'RetinaNet',
    'mask-rcnn': 'Mask R-CNN',
    'mask-rcnn_1333x800': 'Mask R-CNN, 1333x800',
}
# The first is the row of tin50 that the others are compared with.
BASE = 'tiny'
WAYS = {
    BASE: 'fp16, kernels, CUDA graphs',
    'eager': 'fp16, kernels',
    'plain': 'fp16, layers',
    'compiled': 'fp16, compiled',
    'with-cp': 'fp16, kernels, `with_cp`',
    'two-gpus': 'fp16, kernels, CUDA graphs, two GPUs',
    'bf16': 'bf16, kernels, CUDA graphs',
    'fp32': 'fp32, kernels, CUDA graphs',
}
NOT_YET = 'Not trained yet.'


def shown(values, digits=1):
    """A mean and, of several values, their standard deviation."""
    if not values:
        return ''
    mean = f'{statistics.mean(values):.{digits}f}'
    if len(values) == 1:
        return mean
    return f'{mean} ± {statistics.stdev(values):.{digits}f}'


def shown_difference(found):
    """A mean difference and half of its interval."""
    if found.mean is None:
        return ''
    mean = f'{found.mean:+.1f}'
    return mean if found.half is None else f'{mean} ± {found.half:.1f}'


def gpu_seconds(scores, row):
    """Mean seconds of a GPU a training took, which it shared with others.

    None if no training of the row has a time.
    """
    times = [
        float(each['seconds']) / int(each['side_by_side'])
        for each in scores
        if (each['row'], each['metric']) == (row, METRIC) and each['seconds']
    ]
    return statistics.mean(times) if times else None


def rows(folder):
    """Each row's top-1 over its seeds, beside the paper's on ImageNet."""
    from .markdown import table

    scores = files.scores(FOLDER, 'tin50')
    speeds, _ = files.speeds(FOLDER)
    body = []
    for name, row in files.rows(FOLDER).items():
        values = list(values_of(scores, name).values())
        if not values:
            continue
        seconds = gpu_seconds(scores, name)
        body.append(
            [
                *(row[key] for key in ('name', 'blocks', 'gflops', 'mparams')),
                f'{speeds[name]:,.0f}' if name in speeds else '',
                shown(values),
                str(len(values)),
                '' if seconds is None else f'{seconds:.0f}',
                row['paper'],
            ]
        )
    heads = ['', 'blocks', 'GFLOPs', 'M params', 'images/s']
    heads += ['top-1, here', 'seeds', 'GPU s', 'top-1, ImageNet, paper']
    return table(heads, body)


def by_row(names, metrics, head):
    """A table of several metrics over their seeds, of what was trained."""
    from .markdown import table

    found = {task: files.scores(FOLDER, task) for task, *_ in metrics}
    metrics = [metric for metric in metrics if found[metric[0]]]
    body = []
    for row, name in names.items():
        cells = [
            values_of(found[task], row, metric, factor)
            for task, metric, factor, _ in metrics
        ]
        if any(cells):
            counts = [len(values) for values in cells if values]
            least, most = min(counts), max(counts)
            seeds = str(most) if least == most else f'{least} to {most}'
            body.append([name, *(shown([*v.values()]) for v in cells), seeds])
    if not body:
        return NOT_YET
    return table([head, *(name for *_, name in metrics), 'seeds'], body)


def transfer(folder):
    """What detectors and a segmentor reach, from each backbone."""
    return by_row(STARTS, TASKS, 'backbone')


def gains(folder):
    """What tiny has more than each other backbone, seed by seed."""
    from .markdown import table

    best, *others = STARTS
    body = []
    for row in others:
        found = [
            difference(files.scores(FOLDER, task), best, row, metric, factor)
            for task, metric, factor, _ in GAINS
        ]
        cells = [
            f'{shown_difference(x)} ({x.seeds})' if x.seeds else ''
            for x in found
        ]
        body.append([STARTS[row], *cells])
    heads = (head for *_, head in GAINS)
    return table([f'{STARTS[best]} over', *heads], body)


def overfit(folder):
    """What detectors reach on the images that they learned by heart."""
    return by_row(DETECTORS, BY_HEART, '')


def precision(folder):
    """One training in several precisions and ways to run."""
    from .markdown import table

    others = files.scores(FOLDER, 'precision')
    if not others:
        return NOT_YET
    base = [r for r in files.scores(FOLDER, 'tin50') if r['row'] == BASE]
    body = []
    for row, name in WAYS.items():
        task, own = ('tin50', base) if row == BASE else ('precision', others)
        values = values_of(own, row)
        if not values:
            continue
        losses = [files.last_loss(FOLDER, task, row, seed) for seed in values]
        scales = [
            float(each['value'])
            for each in own
            if (each['row'], each['metric']) == (row, LOSS_SCALE)
        ]
        found = difference([*base, *others], row, BASE)
        body.append(
            [
                name,
                shown([*values.values()]),
                str(len(values)),
                '' if row == BASE else shown_difference(found),
                shown(losses, 3),
                ', '.join(f'2^{math.log2(scale):g}' for scale in scales),
            ]
        )
    heads = ['', 'top-1', 'seeds', 'difference to the first row']
    return table([*heads, 'last loss', 'loss scale at the end'], body)


def fields(folder):
    """The receptive fields of trained rows."""
    from .markdown import table

    body = [
        [row['name'], f'{float(row["outside_quarter"]):.0%}']
        for row in files.fields(FOLDER)
    ]
    return table(['', 'of the gradient outside the quarter'], body)


def claims(folder):
    """Each claim of the paper, and what the trainings say of it."""
    from .markdown import table

    scores = files.scores(FOLDER, 'tin50')
    body = []
    for claim in files.claims(FOLDER):
        found = difference(scores, claim['better'], claim['worse'])
        body.append(
            [
                claim['claim'],
                f'{claim["printed"]:+.1f} ({claim["source"]})',
                shown_difference(found),
                str(found.seeds),
                found.verdict,
            ]
        )
    heads = ['claim', 'paper, ImageNet', 'here', 'seeds', 'here it']
    return table(heads, body)


TABLES = dict(
    rows=rows,
    claims=claims,
    transfer=transfer,
    gains=gains,
    fields=fields,
    overfit=overfit,
    precision=precision,
)
