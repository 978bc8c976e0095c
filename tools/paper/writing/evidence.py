"""Tables of what trainings with several seeds reached."""

import statistics

from evidence.claims import METRIC, difference, values_of

from .paper import RESULTS, read_csv

FOLDER = RESULTS / 'evidence'
# Task, metric, its factor to per cent, and the column's head.
TASKS = (
    ('bccd', 'coco/bbox_mAP', 100, 'blood cells, box AP'),
    ('bccd', 'coco/bbox_mAP_50', 100, 'AP50'),
    ('camvid', 'mIoU', 1, 'CamVid, mIoU'),
    ('camvid', 'mIoU, sliding window', 1, 'sliding window'),
    ('camvid', 'mIoU, multi-scale', 1, 'multi-scale'),
)
STARTS = {
    'tiny': 'EfficientVMamba-T',
    'resnet18': 'ResNet-18',
    'pvtv2-b0': 'PVTv2-B0',
    'tiny-scratch': 'EfficientVMamba-T, random weights',
}


def shown(values):
    """A mean and, of several values, their standard deviation."""
    mean = f'{statistics.mean(values):.1f}'
    if len(values) == 1:
        return mean
    return f'{mean} ± {statistics.stdev(values):.1f}'


def gpu_seconds(scores, row):
    """Mean seconds of a GPU a training took, which it shared with others."""
    times = [
        float(each['seconds']) / int(each['side_by_side'])
        for each in scores
        if (each['row'], each['metric']) == (row, METRIC) and each['seconds']
    ]
    return statistics.mean(times)


def rows(folder):
    """Each row's top-1 over its seeds, beside the paper's on ImageNet."""
    from .markdown import table

    scores = read_csv(FOLDER / 'tin50.csv')
    body = []
    for row in read_csv(FOLDER / 'rows.csv'):
        values = list(values_of(scores, row['row']).values())
        if not values:
            continue
        body.append(
            [
                row['name'],
                row['blocks'],
                row['gflops'],
                row['mparams'],
                shown(values),
                str(len(values)),
                f'{gpu_seconds(scores, row["row"]):.0f}',
                row['paper'],
            ]
        )
    heads = ['', 'blocks', 'GFLOPs', 'M params', 'top-1, here', 'seeds']
    return table([*heads, 'GPU s', 'top-1, ImageNet, paper'], body)


def transfer(folder):
    """What detectors and a segmentor reach, from each backbone."""
    from .markdown import table

    files = {task: read_csv(FOLDER / f'{task}.csv') for task, *_ in TASKS}
    body = []
    for row, name in STARTS.items():
        cells = [name]
        for task, metric, factor, _ in TASKS:
            values = [
                factor * float(each['value'])
                for each in files[task]
                if (each['row'], each['metric']) == (row, metric)
            ]
            cells.append(shown(values) if values else '')
        body.append(cells)
    return table(['backbone', *(head for *_, head in TASKS)], body)


def fields(folder):
    """The receptive fields of trained rows."""
    from .markdown import table

    names = {row['row']: row['name'] for row in read_csv(FOLDER / 'rows.csv')}
    body = [
        [names[row['row']], f'{float(row["outside_quarter"]):.0%}']
        for row in read_csv(FOLDER / 'fields.csv')
    ]
    return table(['', 'of the gradient outside the quarter'], body)


def claims(folder):
    """Each claim of the paper, and what the trainings say of it."""
    from .markdown import table

    scores = read_csv(FOLDER / 'tin50.csv')
    paper = {row['row']: row['paper'] for row in read_csv(FOLDER / 'rows.csv')}
    body = []
    for row in read_csv(FOLDER / 'claims.csv'):
        found = difference(scores, row['better'], row['worse'])
        printed = float(paper[row['better']]) - float(paper[row['worse']])
        shown = '' if found.mean is None else f'{found.mean:+.1f}'
        if found.half is not None:
            shown += f' ± {found.half:.1f}'
        body.append(
            [
                row['claim'],
                f'{printed:+.1f} ({row["source"]})',
                shown,
                str(found.seeds),
                found.verdict,
            ]
        )
    heads = ['claim', 'paper, ImageNet', 'here', 'seeds', 'here it']
    return table(heads, body)


TABLES = dict(rows=rows, claims=claims, transfer=transfer, fields=fields)
