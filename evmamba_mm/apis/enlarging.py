"""Small images drawn larger, so that lines and letters leave them visible."""

import cv2
import numpy as np
import torch
from mmengine.structures import BaseDataElement, PixelData
from torch import Tensor

# Letters of a readable size cover the objects of a smaller picture.
READABLE_SIDE = 512
LONGEST_ENLARGED_SIDE = 4096
MOST_TIMES = 8


def times_for(height: int, width: int) -> int:
    """How many times an image is enlarged to be drawn on.

    So often that its shorter side has about READABLE_SIDE pixels, and its
    longer one at most LONGEST_ENLARGED_SIDE.
    """
    short, long = sorted((height, width))
    wanted = round(READABLE_SIDE / short)
    return max(1, min(wanted, LONGEST_ENLARGED_SIDE // long, MOST_TIMES))


def enlarge_image(image: np.ndarray, times: int) -> np.ndarray:
    """Enlarge an image (H, W, 3)."""
    if times == 1:
        return image
    height, width = image.shape[:2]
    return cv2.resize(
        image, (width * times, height * times), interpolation=cv2.INTER_CUBIC
    )


def enlarge_sample(sample: BaseDataElement, times: int) -> BaseDataElement:
    """Enlarge what mmdet or mmseg predicts: boxes, masks and label maps."""
    if times == 1:
        return sample
    sample = sample.cpu()
    for value in sample.values():
        if isinstance(value, PixelData):
            enlarged = {
                name: repeat(field, times) for name, field in value.items()
            }
            # Their setters compare each field with the shape of the others.
            for name in enlarged:
                value.pop(name)
            for name, field in enlarged.items():
                setattr(value, name, field)
    instances = sample.get('pred_instances')
    if instances is not None:
        for name in ('bboxes', 'masks'):
            if name in instances:
                field = instances.pop(name)
                larger = field * times
                if name == 'masks':
                    larger = enlarge_masks(field, times)
                setattr(instances, name, larger)
    return sample


def repeat(field: Tensor, times: int) -> Tensor:
    """Repeats each pixel of a map (..., H, W)."""
    return field.repeat_interleave(times, -1).repeat_interleave(times, -2)


def enlarge_masks(masks: Tensor, times: int) -> Tensor:
    """Enlarges masks (N, H, W), with outlines that have no steps."""
    count, height, width = masks.shape
    larger = np.zeros((count, height * times, width * times), bool)
    for index, mask in enumerate(masks.numpy()):
        larger[index] = enlarge_image(mask * np.uint8(255), times) > 127
    return torch.from_numpy(larger)
