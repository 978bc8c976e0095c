"""Writes a trained model as ONNX, for OpenVINO, or as a torch program.

The file takes images (B, 3, H, W) that are normalised as in training. A
classifier and a segmentor are written whole, a one-stage detector without the
decoding of its boxes, a two-stage detector up to its RPN. The file is compared
with the model before the tool ends.
"""

import argparse
import sys
from pathlib import Path

ENDINGS = {'onnx': '.onnx', 'openvino': '.xml', 'torch': '.pt2'}
SIZES = ('batch', 'height', 'width')


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'config',
        metavar='CONFIG',
        help='a config of mmpretrain, mmdet or mmseg',
    )
    parser.add_argument(
        'checkpoint', metavar='CHECKPOINT', help='path or URL of the weights'
    )
    parser.add_argument('out', metavar='OUT', type=Path, help='file to write')
    parser.add_argument(
        '--format',
        choices=tuple(ENDINGS),
        help='without it the ending of OUT decides: '
        + ', '.join(ENDINGS.values()),
    )
    parser.add_argument(
        '--shape',
        type=positive,
        nargs=2,
        default=(224, 224),
        metavar=('HEIGHT', 'WIDTH'),
        help='size of the example image (default: 224 224)',
    )
    parser.add_argument(
        '--dynamic',
        nargs='*',
        choices=SIZES,
        help='sizes that stay open; none: all are fixed (default: all; of a '
        'segmentor the batch, since its pooling has a fixed size; for '
        'OpenVINO none)',
    )
    parser.add_argument(
        '--opset',
        type=positive,
        help="of an ONNX file (default: torch's choice)",
    )
    args = parser.parse_args(argv)
    by_ending = {ending: name for name, ending in ENDINGS.items()}
    if args.format is None:
        args.format = by_ending.get(args.out.suffix)
        if args.format is None:
            parser.error(
                f'OUT must end in {", ".join(by_ending)}, or give --format; '
                f'got {args.out}'
            )
    if args.opset and args.format != 'onnx':
        parser.error('--opset: only ONNX files have one')
    if args.format == 'openvino' and args.dynamic:
        parser.error('--dynamic: OpenVINO files have a fixed size')
    if args.format == 'openvino' and args.out.suffix != '.xml':
        parser.error(f'OUT must end in .xml for OpenVINO, got {args.out}')
    return args


def positive(text):
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f'{text!r} is not a positive integer')
    return int(text)


def write(args):
    """Write the file; returns the largest error, or None if unchecked."""
    import torch

    from evmamba_mm.apis import load_predictor
    from evmamba_mm.export import (
        dense_model,
        export_onnx,
        export_openvino,
        export_program,
    )
    from evmamba_mm.whole_files import check_writable

    # The work until the first write takes minutes.
    check_writable(args.out)
    predictor = load_predictor(args.config, args.checkpoint, 'cpu')
    image = torch.randn(1, 3, *args.shape)
    if args.format == 'openvino':
        return export_openvino(predictor.model, args.out, image)
    dynamic = args.dynamic
    if dynamic is None:
        dynamic = ('batch',) if predictor.task == 'segmentation' else SIZES
    if args.format == 'onnx':
        return export_onnx(
            predictor.model, args.out, image, dynamic, opset=args.opset
        )
    program = export_program(dense_model(predictor.model), image, dynamic)
    torch.export.save(program, args.out)
    return None


def main(argv=None):
    args = parse_args(argv)
    try:
        error = write(args)
    except (ValueError, RuntimeError, OSError, ImportError) as failure:
        print(f'error: {failure}', file=sys.stderr)
        return 1
    checked = '' if error is None else f', within {error:.1e} of the model'
    print(f'{args.out}: written{checked}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
