import numpy as np
import pytest
import torch

pytest.importorskip('mmpretrain', reason='mmpretrain is not installed')


def smooth_pictures(count, height, width, seed=0):
    """Pictures (B, H, W, 3) with edges and gradients, in uint8."""
    import cv2

    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (count, 9, 7, 3), dtype=np.uint8)
    pictures = [
        cv2.resize(each, (width, height), interpolation=cv2.INTER_CUBIC)
        for each in coarse
    ]
    for i, picture in enumerate(pictures):
        picture[i : i + 9, 2 * i : 2 * i + 12] = random.integers(0, 256, 3)
    return np.stack(pictures)


def to_batch(pictures):
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()


def to_pictures(batch):
    return batch.permute(0, 2, 3, 1).numpy()


@pytest.fixture
def pictures():
    pictures = smooth_pictures(6, 48, 64)
    # Of one colour, and one that uses few values.
    pictures[4] = (10, 200, 90)
    pictures[5] = 100 + pictures[5] // 8
    return pictures
