"""Make the digit scenes, the small data set that needs no download."""

import argparse
import sys

from evmamba_mm.datasets import make_digit_scenes, read_fingerprint


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument('--out', default='data/digits', help='folder to make')
    parser.add_argument('--num-train', type=int, default=400, metavar='N')
    parser.add_argument('--num-val', type=int, default=100, metavar='N')
    parser.add_argument(
        '--size', type=int, default=160, help='side of the scenes in pixels'
    )
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument(
        '--overwrite',
        action='store_true',
        help='replace an earlier data set of this kind',
    )
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    try:
        root = make_digit_scenes(
            args.out,
            num_train=args.num_train,
            num_val=args.num_val,
            size=args.size,
            seed=args.seed,
            overwrite=args.overwrite,
        )
    except (ValueError, ImportError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(f'{root}: {read_fingerprint(root)}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
