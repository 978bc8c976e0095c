"""From a file to a small crop in uint8, in a third of the usual time."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine import fileio
from mmengine.registry import TRANSFORMS

# A reduced image must keep this many pixels for each of the result, a side.
MARGIN = 2
# To read a header is not worth it for smaller files.
LARGE_FILE = 2**18
REDUCTIONS = (8, 4, 2)


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes (H, W, 3) in uint8, antialiased and bicubic as Pillow does."""
    # In a batch of one whose memory is channels last, which torch is fast on.
    batch = torch.from_numpy(np.ascontiguousarray(image))[None]
    resized = F.interpolate(
        batch.permute(0, 3, 1, 2),
        (height, width),
        mode='bicubic',
        antialias=True,
    )
    return resized[0].permute(1, 2, 0).numpy()


@TRANSFORMS.register_module()
class LoadResizedCrop:
    """Load a random crop of an image, resized.

    It takes the place of LoadImageFromFile and mmpretrain's RandomResizedCrop
    with ``backend='pillow', interpolation='bicubic'``, has their distribution
    and changes the same keys. torch resizes crops several times as fast as
    Pillow. Of a large JPEG whose crop has many pixels for each of the result,
    OpenCV decodes 1/2, 1/4 or 1/8 alone.

    Args:
        scale: Side, or height and width, of the result.
        crop_ratio_range: See RandomResizedCrop.
        aspect_ratio_range: See RandomResizedCrop.
        max_attempts: See RandomResizedCrop.
        as_tensor: Whether the image becomes a tensor (3, H, W), which
            PackInputs takes as it is, and no other transform. Otherwise it is
            an array (H, W, 3).
        backend_args: Of mmengine's file backend.
    """

    def __init__(
        self,
        scale: int | Sequence[int],
        crop_ratio_range: Sequence[float] = (0.08, 1.0),
        aspect_ratio_range: Sequence[float] = (3 / 4, 4 / 3),
        max_attempts: int = 10,
        as_tensor: bool = False,
        backend_args: Mapping[str, Any] | None = None,
    ) -> None:
        from mmpretrain.datasets.transforms import RandomResizedCrop

        self._stock = RandomResizedCrop(
            scale, crop_ratio_range, aspect_ratio_range, max_attempts
        )
        self.size = tuple(self._stock.scale)
        self.as_tensor = as_tensor
        self.backend_args = backend_args

    def __call__(self, results: dict) -> dict:
        """Load ``results['img_path']`` into ``img``.

        Raises:
            ValueError: If the file is no image.
        """
        path = results['img_path']
        content = fileio.get(path, self.backend_args)
        image, box, shape = self._decode(path, content)
        top, left, height, width = box
        crop = image[top : top + height, left : left + width]
        image = resize(crop, *self.size)
        results['ori_shape'] = shape
        results['img_shape'] = self.size
        results['img'] = image
        if self.as_tensor:
            results['img'] = torch.from_numpy(image).permute(2, 0, 1)
        return results

    def _decode(
        self, path: str, content: bytes
    ) -> tuple[np.ndarray, tuple[int, int, int, int], tuple[int, int]]:
        """Image, box in it, and the shape of the whole image."""
        import cv2

        buffer = np.frombuffer(content, np.uint8)
        shape = _jpeg_shape(content) if len(content) >= LARGE_FILE else None
        if shape is None:
            # OpenCV raises an error of its own for no bytes.
            image = cv2.imdecode(buffer, cv2.IMREAD_COLOR) if content else None
            _check(image, path)
            return image, self._stock.rand_crop_params(image), image.shape[:2]
        # It reads the shape alone.
        box = self._stock.rand_crop_params(np.empty(shape, np.uint8))
        reduction = self._reduction(box)
        flags = {
            1: cv2.IMREAD_COLOR,
            2: cv2.IMREAD_REDUCED_COLOR_2,
            4: cv2.IMREAD_REDUCED_COLOR_4,
            8: cv2.IMREAD_REDUCED_COLOR_8,
        }
        image = cv2.imdecode(buffer, flags[reduction])
        _check(image, path)
        return image, tuple(round(x / reduction) for x in box), shape

    def _reduction(self, box: tuple[int, int, int, int]) -> int:
        for reduction in REDUCTIONS:
            least = (MARGIN * reduction * side for side in self.size)
            if all(x >= y for x, y in zip(box[2:], least, strict=True)):
                return reduction
        return 1


def _check(image: np.ndarray | None, path: str) -> None:
    if image is None:
        raise ValueError(f'{path!r} is no image that OpenCV can read')


def _jpeg_shape(content: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG as it is shown, or None of other files."""
    from PIL import Image

    # The tag of EXIF, of which the values from 5 on change the sides.
    orientation = 0x0112
    if not content.startswith(b'\xff\xd8'):
        return None
    try:
        with Image.open(io.BytesIO(content)) as image:
            width, height = image.size
            turned = image.getexif().get(orientation, 1) >= 5
    except (OSError, Image.DecompressionBombError):
        # OpenCV has the last word on it.
        return None
    return (width, height) if turned else (height, width)
