"""What one image may take, so that it does not end a run over many."""

import io
import math
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import nn

# matplotlib takes about 45 bytes for each pixel that it draws.
MAX_PIXELS = 89_478_485
# The pipelines of classifiers make the short side 256 pixels long.
MAX_SIDES_RATIO = 1000


def check_sides(height: int, width: int) -> None:
    """Refuse an image that would take the memory of all others.

    Raises:
        ValueError: If it has too many pixels, or one side is far longer than
            the other.
    """
    if height * width > MAX_PIXELS:
        raise ValueError(
            f'it is {width}x{height} pixels large, and at most {MAX_PIXELS} '
            'are read: cut it into tiles'
        )
    if max(height, width) > MAX_SIDES_RATIO * min(height, width):
        raise ValueError(
            f'it is {width}x{height} pixels large, and one side may be at '
            f'most {MAX_SIDES_RATIO} times the other: cut it into tiles'
        )


def check_image(image: str | bytes | np.ndarray) -> None:
    """Refuse an array, or a file by its header, as :func:`check_sides` does.

    Args:
        image: An array (H, W, C), a path, or the bytes of a file. A file that
            cannot be read is left to whatever decodes it.
    """
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or not image.size:
            raise ValueError(
                f'the image must have shape (H, W, 3), got {image.shape}'
            )
        check_sides(*image.shape[:2])
        return
    if not isinstance(image, str | bytes):
        raise ValueError(
            'the image must be a path or an array (H, W, 3), got '
            f'{type(image).__name__}'
        )
    file = io.BytesIO(image) if isinstance(image, bytes) else image
    try:
        with warnings.catch_warnings():
            # Of Pillow's own limit, which is twice as high.
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)
            with Image.open(file) as opened:
                width, height = opened.size
    except Image.DecompressionBombError as error:
        raise ValueError(
            f'it has more than the {MAX_PIXELS} pixels that are read: cut it '
            'into tiles'
        ) from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        return
    check_sides(height, width)


def lacks_memory(error: Exception) -> bool:
    """Whether an error says that there is too little memory."""
    # Torch's allocator on the CPU has no class of its own.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and 'allocate memory' in str(error)
    )


def released(error: Exception) -> Exception:
    """An error of too little memory without the frames that hold it."""
    return error.with_traceback(None) if lacks_memory(error) else error


def finite(value: float) -> float | None:
    """A number that JSON can hold, or None."""
    return value if math.isfinite(value) else None


def not_finite(model: nn.Module) -> Iterator[str]:
    """Names of the weights that hold infinities or NaN."""
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            yield name
