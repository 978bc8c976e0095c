"""A model with its weights, and what it predicts on images and videos."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config

from ..arguments import checked
from ..config_files import read_config
from .limits import not_finite
from .outcomes import Outcome, predictions
from .predictors import Predictor, build_predictor
from .weights import find_meta, load_weights, say


@checked
def load_predictor(
    config: Config | str | Path,
    checkpoint: str | None = None,
    device: str | None = None,
    distinct: bool = False,
) -> Predictor:
    """Build the model of a config and load its weights.

    Args:
        config: A config of mmpretrain, mmdet or mmseg, or its path.
        checkpoint: Path or URL of the weights; without it those that the
            config names in load_from or init_cfg.
        device: 'cpu', 'cuda' or 'cuda:1'; without it a GPU if there is one.
        distinct: Whether classes get hues that lie far apart, and not the
            colours that the checkpoint or the config names.

    Raises:
        ValueError: If the config is of no known toolbox, or the checkpoint
            does not fit the model.
    """
    if not isinstance(config, Config):
        if not isinstance(config, str | Path):
            raise ValueError(
                f'config must be a Config or a path, got {config!r}'
            )
        config = read_config(config)
    if device is None:
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
    predictor = build_predictor(config, device)
    give_weights(predictor, config, checkpoint, distinct)
    return predictor


def give_weights(
    predictor: Predictor, cfg: Config, checkpoint: str | None, distinct: bool
) -> None:
    """Load weights, class names and colours into a predictor.

    The arguments and the errors are those of :func:`load_predictor`.
    """
    stored = load_weights(predictor.model, cfg, checkpoint)
    bad = list(not_finite(predictor.model))
    if bad:
        say(
            f'WARNING: {len(bad)} weights hold infinities or NaN, and no '
            f'prediction means anything: {", ".join(bad[:3])}'
        )
    meta = find_meta(
        predictor.model, stored, cfg, predictor.datasets, distinct
    )
    predictor.use_meta(meta)


@checked
def predict(
    predictor: Predictor,
    images: Sequence[str | Path | np.ndarray],
    batch_size: int = 1,
) -> Iterator[Outcome]:
    """Predict on images; yield an outcome for each, in their order.

    `outcome.sample` is the toolbox's data sample, `outcome.error` what went
    wrong with this image; `predictor.describe(outcome.sample)` is the
    prediction as a dict that JSON can hold.

    Args:
        predictor: What :func:`load_predictor` returns.
        images: Paths, or arrays (H, W, 3) of uint8 in BGR, as OpenCV reads.
        batch_size: Images at a time; it does not change a prediction.
    """
    items = (
        (number, image, str(image) if isinstance(image, Path) else image)
        for number, image in enumerate(images)
    )
    return predictions(items, predictor, batch_size)


@checked
def predict_files(
    predictor: Predictor,
    path: str | Path,
    out_dir: str | Path,
    batch_size: int = 1,
    write_json: bool = False,
) -> int:
    """Draw predictions on images and videos; return how many were written.

    Standard error names each input that is skipped, and why.

    Args:
        predictor: What :func:`load_predictor` returns.
        path: An image, a video, a folder or a glob.
        out_dir: Folder to write to; those of the input are kept below it.
        batch_size: Images at a time.
        write_json: Whether to write each prediction beside its picture.

    Raises:
        ValueError: If there is no input, or a result would lie on another or
            beside an input.
    """
    from .run import Run
    from .sources import collect, plan

    sources = plan(collect(str(path), Path(out_dir)), Path(out_dir))
    run = Run(predictor, batch_size, write_json)
    run.process(sources)
    return run.written
