"""Train a small EfficientVMamba on real photographs and show what it sees.

The images lie beside the configs in configs/demo. Trains through the toolbox's
own Runner, evaluates on held-out images and draws what was found.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
TILES = (2, 3)
TILE_SIZE = 480
GAP = 6


@dataclass(frozen=True)
class Task:
    """What a task trains and what a full run must reach.

    ``targets`` maps the evaluator's key to a printed name and the least
    value; ``images`` is a pattern below the data root.
    """

    config: str
    images: str
    targets: dict[str, tuple[str, float]]


TASKS = {
    'det': Task(
        'mask-rcnn_evmamba-atto_fpn_1xb8-8e_nuclei.py',
        'images/val/*.jpg',
        {
            'coco/bbox_mAP_50': ('box AP50', 0.6),
            'coco/segm_mAP_50': ('mask AP50', 0.6),
        },
    ),
    'seg': Task(
        'upernet_evmamba-atto_1xb8-8e_nuclei-128x128.py',
        'images/val/*.jpg',
        {'mIoU': ('mIoU (%)', 80)},
    ),
    'cls': Task(
        'evmamba-atto_1xb16-15e_cells.py',
        'val/*/*.jpg',
        {'accuracy/top1': ('top-1 (%)', 90)},
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


def load_config(args: argparse.Namespace):
    from mmengine.config import Config

    from evmamba_mm.cli.launch import parse_options

    config = Config.fromfile(ROOT / 'configs/demo' / TASKS[args.task].config)
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
        right.axhline(least, color=line.get_color(), ls=':', lw=1)
    right.set(title='Held-out images', xlabel='epoch', ylim=(0, None))
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def held_out_images(root: Path, pattern: str) -> list[np.ndarray]:
    """Held-out images in BGR, spread over the split and enlarged.

    Enlarged before the network's own resizing, so that outlines and letters
    are drawn at a size that can be read.
    """
    import mmcv

    paths = sorted(root.glob(pattern))
    count = min(len(paths), TILES[0] * TILES[1])
    chosen = np.linspace(0, len(paths) - 1, count).round().astype(int)
    return [
        mmcv.imresize(
            mmcv.imread(paths[index]),
            (TILE_SIZE, TILE_SIZE),
            interpolation='bicubic',
        )
        for index in chosen
    ]


def draw_sheet(runner, task: Task, device: str) -> Path:
    """Draw predictions on held-out images into one picture."""
    import cv2
    import mmcv

    from evmamba_mm.apis import load_predictor, predict

    work_dir = Path(runner.work_dir)
    config = work_dir / Path(runner.cfg.filename).name
    weights = (work_dir / 'last_checkpoint').read_text().strip()
    predictor = load_predictor(config, weights, device)
    if predictor.task == 'detection':
        predictor.score_thr = 0.5
    root = Path(runner.cfg.val_dataloader.dataset.data_root)
    images = held_out_images(root, task.images)
    step = TILE_SIZE + GAP
    height, width = (count * step - GAP for count in TILES)
    sheet = np.full((height, width, 3), 255, np.uint8)
    for number, outcome in enumerate(predict(predictor, images)):
        row, column = divmod(number, TILES[1])
        top, left = row * step, column * step
        # Some are dim: they are brightened, after the prediction.
        image = cv2.normalize(images[number], None, 0, 255, cv2.NORM_MINMAX)
        tile = predictor.draw(image[..., ::-1], outcome.sample)
        sheet[top : top + TILE_SIZE, left : left + TILE_SIZE] = tile
    path = work_dir / 'held_out.png'
    mmcv.imwrite(sheet[..., ::-1], str(path))
    return path


def report(metrics: dict[str, float], task: Task, gated: bool) -> bool:
    """Print each metric beside its target; whether all are reached."""
    reached = True
    for key, (name, least) in task.targets.items():
        value = metrics[key]
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
    except ValueError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2

    from mmengine.runner import Runner

    # The configs name their data relative to the repository.
    args.work_dir = args.work_dir.resolve()
    os.chdir(ROOT)
    runner = Runner.from_cfg(load_config(args))
    runner.train()

    work_dir = Path(runner.work_dir)
    scalars = work_dir / runner.timestamp / 'vis_data' / 'scalars.json'
    records = read_scalars(scalars)
    curves = work_dir / 'curves.png'
    draw_curves(records, task, curves)
    sheet = draw_sheet(runner, task, device)

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
