"""Train a small EfficientVMamba on handwritten digits and show what it sees.

Makes the data set, trains through the toolbox's own Runner, evaluates on
held-out images and draws them with the toolbox's own inferencer.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'demo'
TILES = (2, 3)
TILE_SIZE = 480


@dataclass(frozen=True)
class Task:
    """What a task trains and what a full run must reach.

    ``targets`` maps the evaluator's key to a printed name and the least
    value, or None where the score is only shown; ``images`` is a pattern
    below the data root.
    """

    config: str
    images: str
    targets: dict[str, tuple[str, float | None]]


TASKS = {
    'det': Task(
        'mask-rcnn_evmamba-atto_fpn_1xb8-8e_digits.py',
        'scenes/val/*.png',
        {
            'coco/bbox_mAP_50': ('box AP50', 0.6),
            'coco/segm_mAP_50': ('mask AP50', 0.5),
        },
    ),
    'seg': Task(
        'upernet_evmamba-atto_1xb8-8e_digits-128x128.py',
        'scenes/val/*.png',
        {'mIoU': ('mIoU (%)', None)},
    ),
    'cls': Task(
        'evmamba-atto_1xb16-15e_digits.py',
        'classification/val/*/*.png',
        {'accuracy/top1': ('top-1 (%)', None)},
    ),
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        '--task',
        choices=TASKS,
        default='det',
        help='instance segmentation, semantic segmentation, classification',
    )
    parser.add_argument('--data-root', default='data/digits', type=Path)
    parser.add_argument('--work-dir', default='work_dirs/demo', type=Path)
    parser.add_argument(
        '--device',
        choices=('auto', 'cpu', 'cuda'),
        default='auto',
        help='auto takes a GPU if there is one',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        help='overrides of the config; no target is then asked for',
    )
    args = parser.parse_args()
    # Only now, so that -h need not wait for torch.
    from evmamba_mm.cli.arguments import check_options

    check_options(parser, args.cfg_options)
    return args


def choose_device(wanted: str) -> str:
    """Hide the GPU if it is not wanted and name what will be used.

    The Runner takes whatever device it sees, so hiding is the only way, and
    must come before the first use of CUDA.
    """
    if wanted == 'cpu':
        os.environ['CUDA_VISIBLE_DEVICES'] = ''
    import torch

    available = torch.cuda.is_available()
    if wanted == 'cuda' and not available:
        raise ValueError("device='cuda' but torch sees no GPU")
    return 'cuda' if available else 'cpu'


def make_data(root: Path) -> None:
    from evmamba_mm.datasets import is_digit_scenes, make_digit_scenes

    if is_digit_scenes(root):
        print(f'Data: {root} exists', flush=True)
        return
    print(f'Data: making digit scenes in {root} ...', flush=True)
    start = time.perf_counter()
    make_digit_scenes(root)
    seconds = time.perf_counter() - start
    print(f'Data: made in {seconds:.0f} s', flush=True)


def load_config(args: argparse.Namespace):
    from mmengine.config import Config

    from evmamba_mm.cli.launch import parse_options

    config = Config.fromfile(CONFIGS / TASKS[args.task].config)
    old, new = config.data_root, f'{args.data_root.as_posix()}/'
    config.data_root = new
    for name in ('train', 'val', 'test'):
        config[f'{name}_dataloader'].dataset.data_root = new
    for name in ('val_evaluator', 'test_evaluator'):
        path = config[name].get('ann_file')
        if path is not None:
            config[name].ann_file = new + path.removeprefix(old)
    config.work_dir = str(args.work_dir / args.task)
    config.merge_from_dict(parse_options(args.cfg_options))
    return config


def read_scalars(path: Path) -> list[dict]:
    """The records that the Runner's local visualisation backend wrote."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def final_metrics(records: list[dict], task: Task) -> dict[str, float]:
    """The last value of each target's metric."""
    found = {}
    for record in records:
        found.update({k: v for k, v in record.items() if k in task.targets})
    return found


def draw_curves(records: list[dict], task: Task, path: Path) -> None:
    """Plot the loss and the targets' metrics over the run."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), dpi=120)
    losses = [(r['iter'], r['loss']) for r in records if 'loss' in r]
    left.plot(*zip(*losses, strict=True))
    left.set(title='Training loss', xlabel='iteration', ylim=(0, None))
    for key, (name, least) in task.targets.items():
        points = [(r['step'], r[key]) for r in records if key in r]
        (line,) = right.plot(*zip(*points, strict=True), 'o-', label=name)
        if least is not None:
            right.axhline(least, color=line.get_color(), ls=':', lw=1)
    right.set(title='Held-out images', xlabel='epoch', ylim=(0, None))
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def enlarge_images(root: Path, pattern: str, folder: Path) -> list[str]:
    """Copy held-out images, spread over the split, enlarged into a folder.

    Enlarged before the network's own resizing, so that boxes, masks and
    letters are drawn at a size that can be read.
    """
    import mmcv

    paths = sorted(root.glob(pattern))
    count = min(len(paths), TILES[0] * TILES[1])
    chosen = np.linspace(0, len(paths) - 1, count).round().astype(int)
    copies = []
    for number, index in enumerate(chosen):
        image = mmcv.imresize(
            mmcv.imread(paths[index]),
            (TILE_SIZE, TILE_SIZE),
            interpolation='bicubic',
        )
        copies.append(str(folder / f'{number}.png'))
        mmcv.imwrite(image, copies[-1])
    return copies


def draw_detections(
    config: Path, weights: Path, images: list[str], device: str
) -> list[np.ndarray]:
    import matplotlib
    from mmdet.apis import DetInferencer

    # Letters are sized in points: more dots to the inch make them larger.
    with matplotlib.rc_context({'figure.dpi': 150}):
        inferencer = DetInferencer(
            str(config), str(weights), device=device, show_progress=False
        )
        result = inferencer(images, return_vis=True, pred_score_thr=0.5)
    return result['visualization']


def draw_segments(
    config: Path, weights: Path, images: list[str], device: str
) -> list[np.ndarray]:
    from mmengine.config import Config
    from mmseg.apis import MMSegInferencer

    inferencer = MMSegInferencer(
        str(config),
        str(weights),
        device=device,
        **Config.fromfile(config).metainfo,
    )
    result = inferencer(images, return_vis=True, opacity=0.6)
    return list(result['visualization'])


def draw_classes(
    config: Path, weights: Path, images: list[str], device: str
) -> list[np.ndarray]:
    import mmcv
    from mmpretrain import ImageClassificationInferencer

    inferencer = ImageClassificationInferencer(
        str(config), str(weights), device=device
    )
    # This inferencer hands its pictures over as files alone.
    folder = Path(images[0]).parent / 'drawn'
    inferencer(images, show_dir=str(folder))
    return [
        mmcv.imread(folder / Path(image).name, channel_order='rgb')
        for image in images
    ]


DRAW = {'det': draw_detections, 'seg': draw_segments, 'cls': draw_classes}


def draw_sheet(runner, args: argparse.Namespace, device: str) -> Path:
    """Draw predictions on held-out images into one picture."""
    import mmcv

    work_dir = Path(runner.work_dir)
    config = work_dir / Path(runner.cfg.filename).name
    weights = Path((work_dir / 'last_checkpoint').read_text().strip())
    with tempfile.TemporaryDirectory() as folder:
        pattern = TASKS[args.task].images
        images = enlarge_images(args.data_root, pattern, Path(folder))
        drawn = DRAW[args.task](config, weights, images, device)
    sheet = np.full(
        (TILES[0] * TILE_SIZE, TILES[1] * TILE_SIZE, 3), 255, np.uint8
    )
    for number, tile in enumerate(drawn):
        row, column = divmod(number, TILES[1])
        top, left = row * TILE_SIZE, column * TILE_SIZE
        tile = mmcv.imresize(tile, (TILE_SIZE, TILE_SIZE))
        sheet[top : top + TILE_SIZE, left : left + TILE_SIZE] = tile
    path = work_dir / 'held_out.png'
    mmcv.imwrite(sheet[..., ::-1], str(path))
    return path


def report(metrics: dict[str, float], task: Task, gated: bool) -> bool:
    """Print each metric beside its target; whether all are reached."""
    reached = True
    for key, (name, least) in task.targets.items():
        value = metrics[key]
        note = 'no target'
        if least is not None:
            note = f'target {least:g}' if gated else 'shortened run, no target'
            reached = reached and value >= least
        print(f'  {name:<12}{value:<8.3g} ({note})')
    return reached


def main() -> int:
    start = time.perf_counter()
    # Read when torch is imported. Threads that spin for long while they wait
    # take the cores from whoever they wait for as soon as anything else
    # runs: on two busy cores a step then takes ten times as long.
    os.environ.setdefault('GOMP_SPINCOUNT', '1000')
    args = parse_args()
    task = TASKS[args.task]
    try:
        device = choose_device(args.device)
        make_data(args.data_root)
    except (ValueError, ImportError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2

    from mmengine.runner import Runner

    runner = Runner.from_cfg(load_config(args))
    runner.train()

    work_dir = Path(runner.work_dir)
    scalars = work_dir / runner.timestamp / 'vis_data' / 'scalars.json'
    records = read_scalars(scalars)
    curves = work_dir / 'curves.png'
    draw_curves(records, task, curves)
    sheet = draw_sheet(runner, args, device)

    gated = not args.cfg_options
    seconds = time.perf_counter() - start
    print(f'\nHeld-out images, {task.config.removesuffix(".py")}:')
    reached = report(final_metrics(records, task), task, gated)
    print(f'  {"time":<12}{seconds:.0f} s on {device}')
    print(f'  {"pictures":<12}{sheet}\n{"":<14}{curves}')
    if gated and not reached:
        print('error: a target was missed', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    # The reader of a pipe may leave, as `head` does. Windows has no signal.
    if hasattr(signal, 'SIGPIPE'):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())
