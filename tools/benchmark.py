"""Measures speed and memory: classifiers, the scan, sizes, detection.

Rows go into a CSV file, of which `plot` and `table` make a figure and a
Markdown table.
"""

import shlex
import sys
from pathlib import Path

import closed_pipe
from benchmarking import arguments


def device_of(name):
    import torch

    if name is None:
        name = 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f'--device {name!r} is missing: {reason}') from None
    if device.type not in ('cpu', 'cuda'):
        raise ValueError(f'--device must be a cpu or cuda, got {name!r}')
    return device


def classifiers(args, session):
    from benchmarking import classifiers

    classifiers.run(
        session,
        args.models,
        args.batch,
        args.size,
        args.dtype,
        args.mode,
        args.phase,
    )
    if args.task == 'sizes':
        print('\n'.join(classifiers.growth(session.rows)))


def measure(args, command):
    from benchmarking import detection, models, rows, scans
    from benchmarking.session import Session

    device = device_of(args.device)
    if args.csv is not None and args.csv.is_file():
        rows.read(args.csv)
    pairs = scans.default_backends(device)
    if args.task == 'op':
        if args.scan:
            pairs = [scans.check_pair(text) for text in args.scan]
        for shape in args.shape:
            scans.step_of(shape[1])
        cases = (pairs, args.shape, args.dtype, args.phase)
    elif args.task == 'detection':
        for config in args.configs:
            if not Path(config).is_file():
                raise ValueError(f'there is no config {config!r}')
        cases = (args.configs, args.mode, detection.PHASES)
    else:
        for name in args.models:
            models.split_name(name)
        cases = (args.models, args.batch, args.size)
        cases += (args.dtype, args.mode, args.phase)
    total = 1
    for values in cases:
        total *= len(values)
    with Session(device, args.repeats, args.csv, command, total) as session:
        if args.task == 'op':
            scans.run(session, *cases)
        elif args.task == 'detection':
            detection.run(
                session,
                args.configs,
                args.mode,
                args.batch,
                *args.size,
                args.dtype,
            )
        else:
            classifiers(args, session)
    if session.failures:
        print(f'{session.failures} of {total} failed', file=sys.stderr)
    return 1 if session.failures else 0


def plot(args):
    from benchmarking import rows, throughput
    from figures import style

    style.check_output(args.output)
    style.require_matplotlib()
    chosen = throughput.chosen_rows(
        rows.read(args.rows), args.mode, args.phase, args.batch, args.size
    )
    throughput.draw(
        args.output,
        chosen,
        throughput.read_accuracies(args.accuracy),
        args.mode,
        args.phase,
    )
    print(f'{args.output} written')
    return 0


def run(args, command):
    from benchmarking import rows

    if args.task == 'plot':
        return plot(args)
    if args.task == 'table':
        print(rows.markdown(rows.read(args.rows), args.unit))
        return 0
    from benchmarking.scans import RedCheck

    try:
        return measure(args, command)
    except RedCheck as error:
        print(f'error: no speed is measured: {error}', file=sys.stderr)
        return 1


def main(argv=None):
    given = sys.argv[1:] if argv is None else argv
    args = arguments.parse(__doc__, given)
    command = shlex.join(['python', 'tools/benchmark.py', *map(str, given)])
    try:
        return run(args, command)
    except BrokenPipeError:
        raise
    except (ValueError, ImportError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2


if __name__ == '__main__':
    closed_pipe.run(main)
