"""Maps the scores of the toolbox's test to the paper's cells."""

import math
from dataclasses import dataclass
from decimal import Decimal

WITHIN, ABOVE, BELOW = 'within', 'above', 'below'
OTHER_DATA, OTHER_SETTINGS = 'other data', 'other settings'


@dataclass(frozen=True)
class Metric:
    """A column of a table and the key that the host reports it under.

    ``scale`` brings the host's number to per cent. ``tolerance`` is for
    trained weights, in points; the released weights have RELEASED_TOLERANCE.
    """

    column: str
    key: str
    scale: int
    tolerance: Decimal
    multi_scale: bool = False


# One rounding of the paper's and one of the host's decimal.
RELEASED_TOLERANCE = Decimal('0.1')


def coco_metrics(prefix, kind):
    """The six columns of COCO's evaluation.

    Two trainings of one config differ more where fewer boxes are counted.
    """
    names = {
        '': ('', '0.5'),
        '50': ('_50', '0.7'),
        '75': ('_75', '0.7'),
        '_s': ('_s', '1.0'),
        '_m': ('_m', '1.0'),
        '_l': ('_l', '1.0'),
    }
    return tuple(
        Metric(f'{prefix}{end}', f'coco/{kind}_mAP{key}', 100, Decimal(points))
        for end, (key, points) in names.items()
    )


TOP1 = (Metric('top1', 'accuracy/top1', 1, Decimal('0.4')),)
MIOU = (
    Metric('miou_ss', 'mIoU', 1, Decimal('0.8')),
    Metric('miou_ms', 'mIoU', 1, Decimal('0.8'), multi_scale=True),
)
METRICS = {
    2: TOP1,
    3: coco_metrics('ap', 'bbox'),
    4: MIOU,
    5: TOP1,
    6: TOP1,
    7: (
        *coco_metrics('box_ap', 'bbox')[:3],
        *coco_metrics('mask_ap', 'segm')[:3],
    ),
    8: TOP1,
}


def choose(table, columns):
    """The metrics of a table, or those of some columns.

    Raises:
        ValueError: If the table has no such column of results.
    """
    metrics = METRICS[table]
    legal = [metric.column for metric in metrics]
    for column in columns or ():
        if column not in legal:
            raise ValueError(
                f'--columns {column!r}: table {table} has {", ".join(legal)}'
            )
    return [m for m in metrics if not columns or m.column in columns]


def to_percent(metric, value):
    """The host's number in per cent, with two digits.

    Raises:
        ValueError: If it is NaN, infinite, or negative, as COCO's -1 for a
            category without objects.
    """
    if not 0 <= value < math.inf:
        raise ValueError(
            f'{metric.key} must be a finite number of at least 0, the test '
            f'gave {value!r}'
        )
    return (Decimal(str(value)) * metric.scale).quantize(Decimal('0.01'))


def verdict(measured, paper, tolerance, whole_data, options):
    """Compares a measured number with the paper's, where that means a thing.

    Args:
        measured: In per cent.
        paper: As printed.
        tolerance: In points.
        whole_data: Whether the whole validation set was measured.
        options: The user's overrides that may change a result.
    """
    if not whole_data:
        return OTHER_DATA
    if options:
        return OTHER_SETTINGS
    if abs(measured - paper) <= tolerance:
        return WITHIN
    return ABOVE if measured > paper else BELOW
