"""What the trainings say of the paper's claims."""

import math
import statistics
from dataclasses import dataclass

METRIC = 'accuracy/top1'
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """The difference of two rows over the seeds that both have.

    `half` is half the width of its interval of 95 %, by Student's t; None for
    fewer than two seeds.
    """

    seeds: int
    mean: float | None
    half: float | None

    @property
    def verdict(self) -> str:
        """Whether the first row is better."""
        if self.half is None:
            return 'not measured'
        if self.mean > self.half:
            return 'holds'
        return 'does not hold' if -self.mean > self.half else 'undecided'


def values_of(scores, row, metric=METRIC, factor=1):
    """A score, top-1 if no other is named, by seed."""
    return {
        int(each['seed']): factor * float(each['value'])
        for each in scores
        if each['row'] == row and each['metric'] == metric
    }


def difference(scores, better, worse, metric=METRIC, factor=1):
    """What one row has more than another in a score, see `values_of`."""
    first, second = (
        values_of(scores, row, metric, factor) for row in (better, worse)
    )
    pairs = [first[seed] - second[seed] for seed in first if seed in second]
    if len(pairs) < 2:
        return Difference(len(pairs), pairs[0] if pairs else None, None)
    from scipy import stats

    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, len(pairs) - 1)
    error = statistics.stdev(pairs) / math.sqrt(len(pairs))
    return Difference(
        len(pairs), statistics.mean(pairs), float(quantile * error)
    )
