"""Fetch the released weights of a size and convert them for the hosts."""

import argparse
import sys
from pathlib import Path

from evmamba_mm.apis import fetch_released
from evmamba_mm.hub import RELEASED


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('arch', choices=tuple(RELEASED))
    parser.add_argument(
        'destination',
        type=Path,
        nargs='?',
        help='file to write (default: checkpoints/evmamba-ARCH_in1k.pth, '
        'where the configs look)',
    )
    parser.add_argument(
        '--ema', action='store_true', help='take the averaged weights'
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    target = args.destination or Path(
        'checkpoints', f'evmamba-{args.arch}_in1k.pth'
    )
    try:
        path = fetch_released(args.arch, target, args.ema)
    except ValueError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    print(path)
    return 0


if __name__ == '__main__':
    sys.exit(main())
