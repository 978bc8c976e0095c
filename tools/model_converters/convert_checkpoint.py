"""Turn a released checkpoint into one for the hosts.

Of EfficientVMamba, of VMamba in its first version, or of Vim with a class
token among the patches; which one, its keys say.
"""

import argparse
import signal
import sys
from pathlib import Path

from evmamba_mm import ARCHS
from evmamba_mm.apis.convert import arch_name, convert_checkpoint


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('source', type=Path, help='released checkpoint')
    parser.add_argument(
        'destination',
        type=Path,
        help='file to write; safetensors, if its name ends so',
    )
    parser.add_argument(
        '--target',
        choices=('classifier', 'backbone'),
        default='classifier',
        help="mmpretrain's classifier, whose backbone the other hosts load "
        "with prefix='backbone.' (default), or the bare backbone",
    )
    parser.add_argument(
        '--ema', action='store_true', help='take the averaged weights'
    )
    parser.add_argument(
        '--arch',
        choices=tuple(ARCHS),
        help='refuse any other; without it the arch is read off the shapes',
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        converted = convert_checkpoint(
            args.source, args.destination, args.target, args.ema, args.arch
        )
    except (ValueError, ImportError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    print(
        f'{args.destination}: {converted.model} '
        f'{arch_name(converted) or "of a custom arch"}, '
        f'channels {converted.channels}, depths {converted.depths}, '
        f'{len(converted.state_dict)} tensors'
    )
    for key in converted.left_out:
        print(f'left out, no place in a bare backbone: {key}')
    return 0


if __name__ == '__main__':
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        # The next one must not break into the end by the first.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print('interrupted', file=sys.stderr)
        sys.exit(130)
