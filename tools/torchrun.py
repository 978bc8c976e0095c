"""Runs torch's launcher of processes, and reports its errors in a line."""

import importlib.util
import os
import signal
import sys

# Between a signal and the end of processes that write a checkpoint.
SHUTDOWN_SECONDS = '60'


def end_by_signal(number, frame):
    from torch.distributed.elastic.multiprocessing.api import SignalException

    raise SignalException('', sigval=signal.Signals(number))


def launch():
    """Run torchrun; return the exit status and what is to be said."""
    if importlib.util.find_spec('torch') is None:
        return 2, (
            f'{sys.executable} has no torch: activate the environment that '
            'has it, or name its python in PYTHON'
        )
    os.environ.setdefault('TORCH_ELASTIC_SHUTDOWN_TIMEOUT', SHUTDOWN_SECONDS)
    # What SLURM sends before its limit; torchrun hands on the others itself.
    signal.signal(signal.SIGUSR1, end_by_signal)
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import (
        ChildFailedError,
    )
    from torch.distributed.run import main

    try:
        main()
    except SignalException as error:
        return (
            128 + error.sigval,
            f'ended by {signal.Signals(error.sigval).name}',
        )
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        how = f'ended with status {failure.exitcode}'
        if failure.exitcode < 0:
            how = f'was killed by {signal.Signals(-failure.exitcode).name}'
        status = failure.exitcode if failure.exitcode > 0 else 1
        return status, (
            f'process {rank} (pid {failure.pid}) {how}; what it said is '
            'above, and the others were ended'
        )
    except (OSError, RuntimeError, ValueError) as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        return 1, f'the processes could not be started: {first}'
    return 0, None


if __name__ == '__main__':
    try:
        status, message = launch()
    except KeyboardInterrupt:
        status, message = 130, 'interrupted'
    if message:
        print(f'torchrun: {message}', file=sys.stderr)
    sys.exit(status)
