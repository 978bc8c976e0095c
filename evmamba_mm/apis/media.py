"""Reading images and videos so that a broken one is known as such."""

import contextlib
import io
from pathlib import Path

import cv2
import mmcv
import numpy as np
from PIL import Image, UnidentifiedImageError

from .limits import check_image
from .sources import JPEG_SUFFIXES

VIDEO_CODEC = 'mp4v'
FALLBACK_FPS = 25.0


class BrokenInputError(Exception):
    """Why a file cannot be used."""


def read_image(path: Path) -> np.ndarray:
    """Reads an image as RGB, turned as its EXIF data say.

    Raises:
        BrokenInputError: If it cannot be read.
        ValueError: If it is too large, or too slender.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BrokenInputError(error.strerror) from error
    if not content:
        raise BrokenInputError('the file is empty')
    check_image(content)
    try:
        image = mmcv.imfrombytes(content)
    except cv2.error as error:
        raise BrokenInputError(error.err) from error
    # OpenCV 4 passes the readable part of a truncated JPEG for the whole.
    is_jpeg = path.suffix.lower() in JPEG_SUFFIXES
    damage = find_damage(content) if image is None or is_jpeg else None
    if image is None or damage:
        raise BrokenInputError(damage or 'it cannot be decoded')
    return mmcv.bgr2rgb(image)


def count_pictures(path: Path) -> int:
    """Count the frames or pages of an image file; OpenCV reads the first."""
    with contextlib.suppress(Exception), Image.open(path) as image:
        # The others of a phone's MPO are copies for its screen.
        if image.format != 'MPO':
            return getattr(image, 'n_frames', 1)
    return 1


def find_damage(content: bytes) -> str | None:
    """Says what Pillow finds wrong with an image, or None."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
    except UnidentifiedImageError:
        return 'it holds no image'
    except Image.DecompressionBombError:
        return None
    except (OSError, SyntaxError, ValueError) as error:
        return str(error)
    return None


def open_video(path: Path) -> mmcv.VideoReader:
    """Open a video.

    Raises:
        BrokenInputError: If there is none, or it cannot be opened.
    """
    if not path.is_file():
        raise BrokenInputError('there is no such file')
    reader = mmcv.VideoReader(str(path))
    if not reader.opened:
        raise BrokenInputError('it cannot be opened as a video')
    return reader


class VideoWriter:
    """Writes RGB pictures of one size as a video, and lines of text beside.

    Neither file is made before there is something to write.
    """

    def __init__(self, path: Path, fps: float, lines_path: Path):
        self.path = path
        self.fps = fps
        self.lines_path = lines_path
        self.writer = None
        self.lines = None

    def write(self, picture: np.ndarray) -> None:
        """Write a picture (H, W, 3) in RGB."""
        if self.writer is None:
            self.writer = self.open(picture.shape)
        self.writer.write(mmcv.rgb2bgr(picture))

    def open(self, shape: tuple[int, ...]) -> cv2.VideoWriter:
        """Make the video file, for pictures of this shape.

        Raises:
            OSError: If the file cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        height, width = shape[:2]
        writer = cv2.VideoWriter(
            str(self.path),
            cv2.VideoWriter_fourcc(*VIDEO_CODEC),
            self.fps,
            (width, height),
        )
        if not writer.isOpened():
            raise OSError(
                f'{self.path} cannot be written: this OpenCV lacks the codec '
                f'{VIDEO_CODEC}, or the folder is not writable'
            )
        return writer

    def write_line(self, text: str) -> None:
        """Write a line of the text file."""
        if self.lines is None:
            self.lines = self.lines_path.open('w')
        self.lines.write(text + '\n')

    def close(self) -> None:
        """Close both files."""
        if self.writer is not None:
            self.writer.release()
        if self.lines is not None:
            self.lines.close()


def write_image(picture: np.ndarray, path: Path) -> None:
    """Writes an RGB picture and makes the folder for it."""
    if not mmcv.imwrite(mmcv.rgb2bgr(picture), str(path)):
        raise OSError(f'{path} cannot be written')
