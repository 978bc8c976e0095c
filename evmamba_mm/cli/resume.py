"""The checkpoint that train.py resumes from."""

import logging
from pathlib import Path

from mmengine.config import Config

from ..resuming import missing_for_resume, newest_checkpoint
from ..weight_files import BrokenWeightsError, read_weights

logger = logging.getLogger('evmamba_mm')


def choose_checkpoint(cfg: Config) -> None:
    """Put the checkpoint to resume from into a config that resumes.

    Without `load_from` it is the newest in the work folder that loads; if
    nothing was saved there, training starts from the beginning. A config
    without a seed gets the checkpoint's, so that data come in its order.

    Raises:
        ValueError: If the FlexibleRunner is asked for.
        FileNotFoundError: If `load_from` names no file.
        BrokenWeightsError: If it, or each that was found, does not load.
    """
    if not cfg.get('resume'):
        return
    if cfg.get('runner_type') == 'FlexibleRunner':
        raise ValueError(
            'the FlexibleRunner cannot be resumed safely: with a best '
            'checkpoint it counts an epoch too many, it does not write files '
            'whole, and it leaves weights that a file lacks at random. Train '
            'with the Runner: leave runner_type out, and start a new training '
            'from the weights by load_from'
        )
    given = cfg.get('load_from')
    if given and '://' in given:
        return
    if given:
        path, notes = Path(given), []
    else:
        path, notes = newest_checkpoint(cfg.work_dir)
    for note in notes:
        logger.warning(note)
    if path is None:
        logger.info(
            'there is no checkpoint in %s: training starts from the beginning',
            cfg.work_dir,
        )
        cfg.resume = False
        return
    checkpoint = _read(path)
    cfg.load_from = str(path)
    missing = missing_for_resume(checkpoint)
    if missing:
        raise BrokenWeightsError(
            f'{path} holds weights but no state of a training '
            f'({", ".join(missing)}): start from its weights, without '
            f'--resume, by --cfg-options load_from={path}'
        )
    for key in ('optimizer', 'param_schedulers'):
        if key not in checkpoint:
            logger.warning('%s has no %s: it starts anew', path, key)
    seed = checkpoint['meta'].get('seed')
    if cfg.get('randomness', {}).get('seed') is None and seed is not None:
        cfg.randomness = dict(cfg.get('randomness', {}), seed=seed)


def _read(path: Path) -> dict:
    try:
        return read_weights(path)
    except BrokenWeightsError as error:
        try:
            other, _ = newest_checkpoint(path.parent)
        except BrokenWeightsError:
            other = None
        hint = f'; {other} loads' if other else ''
        raise BrokenWeightsError(f'--resume: {error}{hint}') from error
