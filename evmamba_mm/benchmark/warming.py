"""Compiles models in parallel processes, for a cache that they share."""

import gc
import itertools
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

import torch
from rich.console import Console
from rich.progress import Progress

from . import models, modes

# Calls of a compiled model: it is recorded as a graph after the first.
CALLS = 3


def _divide_cores(processes: int) -> None:
    # Inductor reads it when it is imported, at the first compilation. The
    # number of torch's own threads stays: results are kept by it.
    cores = len(os.sched_getaffinity(0)) // processes
    os.environ['TORCHINDUCTOR_COMPILE_THREADS'] = str(max(1, cores))


def compile_once(
    name: str, phase: str, batch: int, size: int, dtype: str, device: str
) -> None:
    """Compile a model as it is measured, and forget it."""
    torch.backends.cudnn.benchmark = True
    place = torch.device(device)
    make = dict(inference=modes.inference, training=modes.training)[phase]
    model = models.build_classifier(name).to(place)
    settings = modes.DTYPES[dtype], batch, (size, size), place
    run = make(model, 'compiled', *settings)
    for call in range(CALLS):
        run(call)
    del model, run
    torch.compiler.reset()
    gc.collect()
    if place.type == 'cuda':
        torch.cuda.empty_cache()


def warm(
    processes: int,
    names: Sequence[str],
    phases: Sequence[str],
    batches: Sequence[int],
    sizes: Sequence[int],
    dtypes: Sequence[str],
    device: torch.device,
) -> list[str]:
    """Compile every combination of the lists, several at once.

    A compilation takes half a minute to two; with its result in Inductor's
    cache, that of the measuring process takes a few seconds.

    Returns:
        Those that failed, which measuring will tell of in full.
    """
    cases = [*itertools.product(names, phases, batches, sizes, dtypes)]
    failed = []
    with (
        ProcessPoolExecutor(
            min(processes, len(cases)),
            mp_context=get_context('spawn'),
            initializer=_divide_cores,
            initargs=(processes,),
        ) as pool,
        Progress(console=Console(stderr=True)) as bar,
    ):
        task = bar.add_task('compiling', total=len(cases))
        jobs = {
            pool.submit(compile_once, *case, str(device)): case
            for case in cases
        }
        for job in as_completed(jobs):
            error = job.exception()
            if error is not None:
                name = ' '.join(map(str, jobs[job]))
                failed.append(name)
                kind = type(error).__name__
                print(f'not compiled: {name}: {kind}', file=sys.stderr)
            bar.advance(task)
    return failed
