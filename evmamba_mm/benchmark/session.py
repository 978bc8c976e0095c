"""A series of measurements: some fail, the others go on."""

import gc
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from . import rows, timing


class Session:
    """Measures, prints, stores, and remembers what failed.

    Args:
        device: Where everything runs.
        repeats: See :func:`timing.measure`.
        path: CSV file, or None.
        command: The command line that asks for it.
        total: How many measurements there will be.
    """

    def __init__(
        self,
        device: torch.device,
        repeats: int,
        path: Path | None,
        command: str,
        total: int,
    ):
        self.device = device
        self.repeats = repeats
        self.path = path
        self.command = command
        self.failures = 0
        self.rows = []
        self.bar = Progress(console=Console(stderr=True))
        self.task = self.bar.add_task('measuring', total=total)

    def __enter__(self) -> 'Session':
        # Convolutions choose their algorithm while warming up.
        torch.backends.cudnn.benchmark = True
        self.bar.start()
        return self

    def __exit__(self, *_) -> None:
        self.bar.stop()

    def measure(
        self,
        make: Callable[[], Callable],
        model: str,
        mode: str,
        phase: str,
        batch: int,
        size: str,
        dtype: str,
    ) -> None:
        """Times what `make()` returns, a function of a call's number."""
        self.record(
            lambda: timing.measure(make(), self.device, self.repeats),
            *(model, mode, phase, batch, size, dtype),
        )

    def record(
        self,
        measured: Callable[[], timing.Measured],
        model: str,
        mode: str,
        phase: str,
        batch: int,
        size: str,
        dtype: str,
    ) -> None:
        """Makes a row of what `measured()` returns."""
        name = f'{model} {mode} {phase} batch {batch} size {size} {dtype}'
        self.bar.update(self.task, description=name)
        timing.forget_peak(self.device)
        try:
            result = measured()
        except Exception as error:
            # A failure is told and counted, and must not end the series.
            self.failures += 1
            kind = type(error).__name__
            print(f'error: {name}: {kind}: {error}', file=sys.stderr)
            return
        finally:
            self.bar.advance(self.task)
            self.clean()
        row = rows.Row(
            model=model,
            mode=mode,
            phase=phase,
            batch=batch,
            size=size,
            dtype=dtype,
            images_per_s=batch / result.ms * 1e3,
            ms=result.ms,
            peak_gib=result.peak_gib,
            device=timing.device_name(self.device),
            torch=torch.__version__,
            command=self.command,
        )
        self.rows.append(row)
        texts = row.texts()
        print(
            f'{name}: {texts["ms"]} ms, {texts["images_per_s"]} images/s'
            + (f', {texts["peak_gib"]} GiB' if texts['peak_gib'] else ''),
            flush=True,
        )
        if self.path is not None:
            rows.store(self.path, row)

    def skip(self, name: str, why: str) -> None:
        """Reports requested combinations that make no sense."""
        print(f'left out: {name}: {why}', file=sys.stderr)
        self.bar.advance(self.task)

    def clean(self) -> None:
        """Free what a measurement has left."""
        torch.compiler.reset()
        gc.collect()
        if self.device.type == 'cuda':
            torch.cuda.empty_cache()
