"""Takes each source from reading to writing, past the broken ones."""

import contextlib
import json
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import mmcv
import numpy as np
from rich.console import Console
from rich.progress import Progress

from .limits import lacks_memory, released
from .media import (
    FALLBACK_FPS,
    BrokenInputError,
    VideoWriter,
    count_pictures,
    open_video,
    read_image,
    write_image,
)
from .outcomes import Outcome, predictions
from .predictors import Predictor
from .sources import Source
from .tracks import Tracks

# Their message is enough; any other error also shows where it came from.
PLAIN_ERRORS = (BrokenInputError, ValueError)


class Run:
    """Draws and writes; counts what was written and what was reported."""

    def __init__(
        self, predictor: Predictor, batch_size: int, write_json: bool
    ):
        self.predictor = predictor
        self.batch_size = batch_size
        self.write_json = write_json
        self.written = 0
        self.reported = 0
        self.traceback_shown = False

    def process(self, sources: Sequence[Source]) -> None:
        """Process images first, then videos."""
        images = [source for source in sources if not source.is_video]
        if images:
            self.process_images(images)
        for source in sources:
            if source.is_video:
                self.process_video(source)

    def report(
        self, path: Path, error: Exception, what: str = 'skipped'
    ) -> None:
        """Say on standard error why an input was skipped, and count it."""
        self.reported += 1
        if isinstance(error, PLAIN_ERRORS):
            reason = ' '.join(str(error).split())
        elif lacks_memory(error):
            reason = f'not enough memory: {" ".join(str(error).split())}'
        else:
            reason = f'{type(error).__name__}: {error}'
            if not self.traceback_shown:
                traceback.print_exception(error)
                self.traceback_shown = True
        print(f'{what} {path}: {reason}', file=sys.stderr, flush=True)

    def outcomes(self, items: Iterable[tuple]) -> Iterator[Outcome]:
        """Yield the outcome of each item."""
        return predictions(items, self.predictor, self.batch_size)

    def process_images(self, sources: Sequence[Source]) -> None:
        """Write the picture of each image that can be read."""
        with progress('images', len(sources)) as count:
            for outcome in self.outcomes(self.readable(count(sources))):
                source, error = outcome.key, outcome.error
                if error is None:
                    error = self.write_picture(outcome)
                if error is None:
                    self.written += 1
                else:
                    self.report(source.path, error)

    def readable(self, sources: Iterable[Source]) -> Iterator[tuple]:
        """Yield (source, RGB image, model input) of what can be read."""
        for source in sources:
            try:
                image = read_image(source.path)
            except Exception as error:
                self.report(source.path, released(error))
                continue
            count = count_pictures(source.path)
            if count > 1:
                print(
                    f'note: {source.path} holds {count} pictures; the first '
                    'is used, the others are not',
                    file=sys.stderr,
                    flush=True,
                )
            # The path, so that the config's own pipeline reads the image.
            yield source, image, str(source.path)

    def write_picture(self, outcome: Outcome) -> Exception | None:
        """Writes picture and JSON; returns the error if it cannot."""
        source = outcome.key
        try:
            picture = self.predictor.draw(outcome.image, outcome.sample)
            write_image(picture, source.target)
            if self.write_json:
                origin = dict(image=source.path.as_posix())
                record = self.record(outcome, origin)
                text = json.dumps(record, indent=2, allow_nan=False)
                source.json_path.write_text(text + '\n')
        except Exception as error:
            return released(error)
        return None

    def record(self, outcome: Outcome, origin: dict) -> dict:
        """Return a prediction as a dict, with where it is from."""
        height, width = outcome.image.shape[:2]
        size = dict(task=self.predictor.task, width=width, height=height)
        return origin | size | self.predictor.describe(outcome.sample)

    def process_video(self, source: Source) -> None:
        """Write a video of the frames that can be read."""
        try:
            reader = open_video(source.path)
        except BrokenInputError as error:
            self.report(source.path, error)
            return
        announced = max(reader.frame_cnt, 0)
        writer = VideoWriter(
            source.target, frame_rate(reader, source), source.json_path
        )
        with contextlib.closing(writer):
            frames, error = self.write_frames(
                source, reader, writer, announced or None
            )
        if frames == 0:
            unread = BrokenInputError('no frame of it can be read')
            self.report(source.path, error or unread)
            return
        self.written += 1
        if error is not None or frames < announced:
            self.report(
                source.path,
                error or BrokenInputError('the others cannot be read'),
                f'{frames} of {announced or "?"} frames written of',
            )

    def write_frames(
        self,
        source: Source,
        reader: mmcv.VideoReader,
        writer: VideoWriter,
        announced: int | None,
    ) -> tuple[int, Exception | None]:
        """Returns how many frames are written, and the error at the next."""
        frames, tracks = 0, Tracks()
        with progress(source.path.name, announced) as count:
            for outcome in self.outcomes(as_items(count(reader))):
                error = outcome.error
                if error is None:
                    error = self.write_frame(outcome, source, writer, tracks)
                if error is not None:
                    return frames, error
                frames += 1
        return frames, None

    def write_frame(
        self,
        outcome: Outcome,
        source: Source,
        writer: VideoWriter,
        tracks: Tracks,
    ) -> Exception | None:
        """Write a frame; return the error if it cannot."""
        try:
            writer.write(
                self.predictor.draw(outcome.image, outcome.sample, tracks)
            )
            if self.write_json:
                origin = dict(video=source.path.as_posix(), frame=outcome.key)
                record = self.record(outcome, origin)
                writer.write_line(json.dumps(record, allow_nan=False))
        except Exception as error:
            return released(error)
        return None


@contextlib.contextmanager
def progress(description: str, total: int | None) -> Iterator[Callable]:
    """A bar on standard error; gives a function that counts a sequence.

    rich's own track() keeps a thread waiting, and with it the process, when
    the loop around it ends by an error.
    """
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total)

        def count(items):
            for item in items:
                yield item
                bar.advance(task)

        yield count


def frame_rate(reader: mmcv.VideoReader, source: Source) -> float:
    """Return the frames a second of a video, or FALLBACK_FPS."""
    if reader.fps > 0:
        return reader.fps
    print(
        f'{source.path}: it has no frame rate, {FALLBACK_FPS} is taken',
        file=sys.stderr,
    )
    return FALLBACK_FPS


def as_items(frames: Iterable[np.ndarray]) -> Iterator[tuple]:
    """Yield (number, RGB image, model input) of each BGR frame."""
    for number, frame in enumerate(frames):
        yield number, mmcv.bgr2rgb(frame), frame
