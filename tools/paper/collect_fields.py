"""Measures the receptive fields of backbones that collect_evidence.py trained.

For each row the share of the gradient that lies outside of the quarter of the
image around the unit goes into results/evidence/fields.csv, and the gradient
itself into fields.npz beside it.
"""

import argparse
import sys
from pathlib import Path

from collect_evidence import positive, seed
from evidence.scores import device_name, torch_version
from evidence.trainings import Training, head_of, last_checkpoint

RESULTS = Path(__file__).resolve().parent / 'results' / 'evidence'
COLUMNS = (
    *('row', 'seed', 'images', 'outside_quarter', 'area_of_90'),
    *('device', 'torch', 'commit'),
)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('configs', nargs='+', type=Path, metavar='CONFIG')
    parser.add_argument('--seed', type=seed, default=2, help='default: 2')
    parser.add_argument(
        '--images', type=Path, default=Path('data/tin50/val'), metavar='FOLDER'
    )
    parser.add_argument('--limit', type=positive, default=200, help='images')
    parser.add_argument(
        '--work-dir', type=Path, default=Path('work_dirs/evidence')
    )
    parser.add_argument('--results', type=Path, default=RESULTS)
    parser.add_argument('--commit', help='default: HEAD')
    return parser.parse_args(argv)


def field_of(training, args):
    """The gradient of the middle of the last feature map."""
    import torch

    from evmamba_mm.analysis.receptive_field import (
        find_images,
        measure,
        prepare,
    )
    from evmamba_mm.apis.predictors import build_predictor
    from evmamba_mm.apis.weights import load_weights
    from evmamba_mm.cli.launch import load_config

    cfg = load_config(str(training.config), [])
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    predictor = build_predictor(cfg, device)
    checkpoint = last_checkpoint(training.work_dir(args.work_dir))
    load_weights(predictor.model, cfg, str(checkpoint))
    # By steps, so that every class is among them.
    paths = find_images(args.images, 10**6)
    paths = paths[:: max(1, len(paths) // args.limit)][: args.limit]
    return measure(predictor.model, prepare(predictor, paths, None), -1)


def outside_quarter(field):
    """Share of the gradient beyond a quarter of the image round the unit."""
    import numpy as np

    height, width = field.gradient.shape
    y, x = field.centre
    rows = np.abs((np.arange(height) + 0.5) / height - y) < 0.25
    columns = np.abs((np.arange(width) + 0.5) / width - x) < 0.25
    inside = field.gradient[np.ix_(rows, columns)].sum()
    return 1 - float(inside / field.gradient.sum())


def main():
    args = parse_args()
    import numpy as np

    from evmamba_mm.analysis.receptive_field import area, share_boxes
    from evmamba_mm.csv_files import write_rows

    rows, gradients = [], {}
    for config in args.configs:
        training = Training(config, args.seed)
        try:
            field = field_of(training, args)
            (box,) = share_boxes(field, [0.9])
        except (ValueError, OSError) as error:
            print(f'error: {training}: {error}', file=sys.stderr)
            return 2
        rows.append(
            dict(
                row=training.row,
                seed=training.seed,
                images=field.images,
                outside_quarter=round(outside_quarter(field), 4),
                area_of_90=round(area(box), 4),
                device=device_name(),
                torch=torch_version(),
                commit=args.commit or head_of(Path(__file__)),
            )
        )
        relative = field.gradient / field.gradient.max()
        gradients[training.row] = relative.astype(np.float16)
        print(f'{training}: {rows[-1]["outside_quarter"]:.1%} outside')
    args.results.mkdir(parents=True, exist_ok=True)
    cells = ([row[name] for name in COLUMNS] for row in rows)
    write_rows(args.results / 'fields.csv', COLUMNS, cells)
    np.savez_compressed(args.results / 'fields.npz', **gradients)
    return 0


if __name__ == '__main__':
    sys.exit(main())
