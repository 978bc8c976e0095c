"""Counts the parameters and FLOPs of a config, or of a bare backbone."""

import argparse
import sys


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'model',
        metavar='MODEL',
        help='a config of mmpretrain, mmdet or mmseg, counted at the size '
        'that its toolbox is compared at; or an arch (tiny, small, base)',
    )
    parser.add_argument(
        '--shape',
        type=int,
        nargs='+',
        metavar='PIXELS',
        help='side of the image, or height and width; for an arch alone '
        '(default: 224)',
    )
    args = parser.parse_args(argv)
    if args.shape and len(args.shape) > 2:
        parser.error('--shape: one or two numbers, height and width')
    if args.shape and args.model.endswith('.py'):
        parser.error('--shape is for an arch; a config has a size of its own')
    return args


def main(argv=None):
    args = parse_args(argv)
    from evmamba_mm.analysis import count_backbone, count_config

    shape = args.shape or [224]
    try:
        if args.model.endswith('.py'):
            count = count_config(args.model)
        else:
            count = count_backbone(args.model, shape[0], shape[-1])
    except (ValueError, OSError, ImportError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(count.text())
    return 0


if __name__ == '__main__':
    sys.exit(main())
