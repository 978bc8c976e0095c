"""Predicting past what is broken, in batches of images of one size."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from .limits import released
from .predictors import Predictor


@dataclass(frozen=True)
class Outcome:
    """What became of an input: a prediction, or the error it led to."""

    key: object
    image: object
    sample: object = None
    error: Exception | None = None


def predictions(
    items: Iterable[tuple], predictor: Predictor, batch_size: int
) -> Iterator[Outcome]:
    """Yields the outcome of each (key, RGB image, model input).

    A batch holds neighbours that are of one size after the test pipeline:
    padding would change what a network with a global scan sees, and with it
    the result. An input that cannot be predicted does not stop the others.
    """
    pending = []
    for key, image, model_input in items:
        try:
            prepared = predictor.prepare(model_input)
        except Exception as error:
            yield Outcome(key, image, error=released(error))
            continue
        shape = prepared[0].shape
        if pending and (
            len(pending) == batch_size or pending[-1][2][0].shape != shape
        ):
            yield from flush(pending, predictor)
            pending = []
        pending.append((key, image, prepared))
    if pending:
        yield from flush(pending, predictor)


def flush(pending: Sequence[tuple], predictor: Predictor) -> Iterator[Outcome]:
    """Predicts a batch, and one by one what fails as a batch."""
    samples = None
    try:
        samples = predictor.predict([prepared for *_, prepared in pending])
    except Exception as error:
        if len(pending) == 1:
            yield Outcome(*pending[0][:2], error=released(error))
            return
    if samples is None:
        # Only now, when the error no longer holds the memory of the batch.
        for item in pending:
            yield from flush([item], predictor)
        return
    for (key, image, _), sample in zip(pending, samples, strict=True):
        yield Outcome(key, image, sample)
