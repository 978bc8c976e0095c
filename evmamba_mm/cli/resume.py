"""The checkpoint that train.py resumes from."""

import ast
import logging
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config

from ..resuming import (
    missing_for_resume,
    newest_checkpoint,
    trained_before,
)
from ..weight_files import BrokenWeightsError, read_weights

logger = logging.getLogger('evmamba_mm')
# In the section of a config that scales the learning rate.
ENABLED = "keyword(arg='enable', value=Constant(value=True))"


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
        _tell_of_earlier(cfg.work_dir)
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
    for note in differences(cfg, checkpoint):
        logger.warning('%s %s', path, note)
    seed = checkpoint['meta'].get('seed')
    if cfg.get('randomness', {}).get('seed') is None and seed is not None:
        cfg.randomness = dict(cfg.get('randomness', {}), seed=seed)


def _tell_of_earlier(work_dir: str) -> None:
    old = trained_before(work_dir)
    if old is not None:
        logger.warning(
            '%s is of an earlier training, and this one starts from the '
            'beginning in its folder, where it overwrites files of the same '
            'name; --resume goes on from there, --work-dir chooses another '
            'folder',
            old,
        )


def differences(cfg: Config, checkpoint: dict) -> Iterator[str]:
    """Yields what a resumed training does that the config does not say."""
    meta, loop = checkpoint['meta'], cfg.get('train_cfg') or {}
    for done, most in (('epoch', 'max_epochs'), ('iter', 'max_iters')):
        end = loop.get(most)
        if isinstance(end, int) and meta[done] >= end:
            yield (
                f'is of {done} {meta[done]}, and train_cfg.{most} is {end}: '
                'nothing is left to train'
            )
    optimizer = checkpoint.get('optimizer')
    if isinstance(optimizer, dict) and meta['iter']:
        groups = optimizer.get('param_groups')
        # Other optimisers may need no state.
        if optimizer.get('state') == {} and 'betas' in str(groups):
            yield 'has no state of the optimizer: its averages start anew'
    stored, now = map(_sections, (meta.get('cfg'), cfg.pretty_text))
    for name in ('optim_wrapper', 'param_scheduler'):
        if stored and stored.get(name) != now.get(name):
            yield (
                f'was trained with another {name} than the config has: rates '
                'and schedules go on as the checkpoint has them'
            )
    scales = [part.get('auto_scale_lr', '') for part in (stored, now)]
    before, after = (text if ENABLED in text else '' for text in scales)
    if stored and before != after:
        yield (
            'was trained with another auto_scale_lr (--auto-scale-lr) than is '
            'asked for now: the learning rate goes on as the checkpoint has it'
        )


def _sections(text: object) -> dict[str, str]:
    """The top level of a config's text by name, which nothing executes."""
    try:
        tree = ast.parse(text)
    except (
        *(MemoryError, RecursionError),
        *(SyntaxError, TypeError, ValueError),
    ):
        return {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            node.keywords.sort(key=lambda keyword: keyword.arg or '')
    return {
        node.targets[0].id: ast.dump(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
    }


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
