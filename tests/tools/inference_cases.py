"""Images and videos for the tests of infer.py."""

import numpy as np
import pytest

cv2 = pytest.importorskip('cv2', reason='opencv-python is not installed')

NAMES = tuple(f'name {index}' for index in range(11))
PALETTE = [(20 * index, 255 - 20 * index, 90) for index in range(11)]
# As many classes in the demonstration's models as the tests have names.
CLASSES = {
    'mmdet': 'roi_head=dict('
    'bbox_head=dict(num_classes=10), mask_head=dict(num_classes=10))',
    'mmseg': 'decode_head=dict(num_classes=11), '
    'auxiliary_head=dict(num_classes=11)',
    'mmpretrain': 'head=dict(num_classes=10)',
}


def photo(seed, height=90, width=120):
    """Smooth random colours, BGR."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
    return path


def write_clip(path, frames, fps=7.5):
    height, width = frames[0].shape[:2]
    codec = cv2.VideoWriter_fourcc(*'MJPG')
    writer = cv2.VideoWriter(str(path), codec, fps, (width, height))
    for frame in frames:
        writer.write(frame)
    writer.release()


def read_clip(path):
    reader = cv2.VideoCapture(str(path))
    frames = []
    while (frame := reader.read()[1]) is not None:
        frames.append(frame)
    return reader.get(cv2.CAP_PROP_FPS), frames


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'x')
    return folder


def truncated(path, seed=9):
    content = write(path, photo(seed)).read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path
