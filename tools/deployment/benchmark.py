"""Latency of classifiers in several runtimes on a CPU, one image of 224.

`measure` exports each model into a temporary folder and writes a row per
model, runtime and number of threads; `table` prints a CSV file in Markdown.
Models take turns call by call, so that a disturbance meets all of them. Let
nothing else use the machine.
"""

import argparse
import re
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

MODELS = (
    'EfficientVMamba:tiny',
    'timm:mobilenetv4_conv_medium',
    'timm:resnet50',
)
RUNTIMES = ('eager', 'onnxruntime', 'openvino-f32', 'openvino-bf16')
COLUMNS = (
    *('model', 'runtime', 'threads', 'ms', 'fastest_ms'),
    *('cpu', 'version', 'note'),
)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tasks = parser.add_subparsers(dest='task', required=True)
    measure = tasks.add_parser('measure', help='write a CSV file')
    measure.add_argument('csv', type=Path, metavar='CSV')
    measure.add_argument('--models', nargs='+', default=MODELS)
    measure.add_argument(
        '--runtimes', nargs='+', default=RUNTIMES, choices=RUNTIMES
    )
    measure.add_argument('--threads', type=positive, nargs='+', default=(1, 2))
    measure.add_argument('--repeats', type=positive, default=50)
    measure.add_argument('--note', default='', help='goes into each row')
    table = tasks.add_parser('table', help='print a CSV file as Markdown')
    table.add_argument('csv', type=Path, metavar='CSV')
    return parser.parse_args(argv)


def positive(text):
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f'{text!r} is not a positive integer')
    return int(text)


def cpu_name():
    for line in Path('/proc/cpuinfo').read_text().splitlines():
        if line.startswith('model name'):
            return line.partition(':')[2].strip()
    return 'unknown'


def version_of(runtime):
    import importlib

    package = {'eager': 'torch'}.get(runtime, runtime.partition('-')[0])
    version = importlib.import_module(package).__version__
    return f'{package} {re.match(r"[0-9.]+", version)[0]}'


def export(model, folder, runtimes, image):
    """Write the files that the runtimes need."""
    from evmamba_mm.export.onnx_file import write_onnx

    if 'onnxruntime' in runtimes:
        write_onnx(model, folder / 'loop.onnx', image, ('batch',), False)
    if any(runtime.startswith('openvino') for runtime in runtimes):
        write_onnx(model, folder / 'fixed.onnx', image, (), True)


def runner(model, folder, runtime, threads, image):
    """Function that runs the model once."""
    import torch

    from evmamba_mm.export import onnx_outputs, openvino_outputs

    if runtime == 'eager':

        def run():
            torch.set_num_threads(threads)
            with torch.inference_mode():
                return model(image)

        return run
    array = image.numpy()
    if runtime == 'onnxruntime':
        session = onnx_outputs(folder / 'loop.onnx', threads)
    else:
        precision = runtime.partition('-')[2]
        session = openvino_outputs(folder / 'fixed.onnx', threads, precision)
    return lambda: session(array)


def timed(runs, repeats):
    """Milliseconds of each call by key."""
    times = {key: [] for key in runs}
    for _ in range(3):
        for run in runs.values():
            run()
    for _ in range(repeats):
        for key, run in runs.items():
            start = time.perf_counter()
            run()
            times[key].append(1e3 * (time.perf_counter() - start))
    return times


def measure(args):
    import torch

    from evmamba_mm.benchmark.models import build_classifier
    from evmamba_mm.csv_files import write_rows
    from evmamba_mm.export import DenseModel
    from evmamba_mm.whole_files import check_writable

    check_writable(args.csv)
    image = torch.randn(1, 3, 224, 224)
    rows = []
    with tempfile.TemporaryDirectory() as root:
        models = {}
        for index, name in enumerate(args.models):
            print(f'exporting {name}', file=sys.stderr, flush=True)
            folder = Path(root, str(index))
            folder.mkdir()
            model = DenseModel(
                build_classifier(name), lambda model, x: {'scores': model(x)}
            ).eval()
            export(model, folder, args.runtimes, image)
            models[name] = model, folder
        for runtime in args.runtimes:
            for threads in args.threads:
                print(f'{runtime}, {threads} threads', file=sys.stderr)
                runs = {
                    name: runner(model, folder, runtime, threads, image)
                    for name, (model, folder) in models.items()
                }
                rows += [
                    (
                        *(name, runtime, threads),
                        f'{statistics.median(times):.1f}',
                        f'{min(times):.1f}',
                        *(cpu_name(), version_of(runtime), args.note),
                    )
                    for name, times in timed(runs, args.repeats).items()
                ]
                write_rows(args.csv, COLUMNS, rows)


def print_table(args):
    from evmamba_mm.csv_files import pivoted, read_rows

    rows = read_rows(args.csv, COLUMNS, ('ms',))
    print(pivoted(rows, ('model',), ('runtime', 'threads'), 'ms'))


def main(argv=None):
    args = parse_args(argv)
    try:
        (print_table if args.task == 'table' else measure)(args)
    except (ValueError, OSError, ImportError) as failure:
        print(f'error: {failure}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    # The reader of a pipe may leave, as `head` does. Windows has no signal.
    if hasattr(signal, 'SIGPIPE'):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())
