"""Measures the receptive fields of backbones that collect_evidence.py trained.

For each row the share of the gradient that lies outside of the quarter of the
image around the unit goes into results/evidence/fields.csv, and the gradient
itself into fields.npz beside it. Both then hold the given rows alone.
"""

import argparse
import os
import sys
from pathlib import Path

from collect_evidence import (
    RESULTS,
    ROOT,
    WORK_DIR,
    check_paths,
    positive,
    seed,
)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('configs', nargs='+', type=Path, metavar='CONFIG')
    parser.add_argument('--seed', type=seed, default=2, help='default: 2')
    parser.add_argument(
        '--images',
        type=Path,
        default=ROOT / 'data' / 'tin50' / 'val',
        metavar='FOLDER',
    )
    parser.add_argument('--limit', type=positive, default=200, help='images')
    parser.add_argument('--work-dir', type=Path, default=WORK_DIR)
    parser.add_argument('--results', type=Path, default=RESULTS)
    parser.add_argument('--commit', help='default: HEAD')
    args = parser.parse_args(argv)
    check_paths(parser, args)
    args.images = args.images.resolve()
    return args


def field_of(training, checkpoint, args):
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


def main(argv=None):
    args = parse_args(argv)
    os.chdir(ROOT)
    import numpy as np
    from evidence.files import FIELDS
    from evidence.scores import device_name, torch_version
    from evidence.trainings import Training, head_of, last_checkpoint

    from evmamba_mm.analysis.receptive_field import area, share_boxes
    from evmamba_mm.csv_files import write_rows
    from evmamba_mm.whole_files import written_whole

    rows, gradients = [], {}
    trainings = [Training(config, args.seed) for config in args.configs]
    try:
        checkpoints = {
            training: last_checkpoint(training.work_dir(args.work_dir))
            for training in trainings
        }
    except ValueError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    for training, checkpoint in checkpoints.items():
        try:
            field = field_of(training, checkpoint, args)
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
    cells = ([row[name] for name in FIELDS] for row in rows)
    write_rows(args.results / 'fields.csv', FIELDS, cells)
    with (
        written_whole(args.results / 'fields.npz') as part,
        part.open('wb') as file,
    ):
        np.savez_compressed(file, **gradients)
    return 0


if __name__ == '__main__':
    sys.exit(main())
