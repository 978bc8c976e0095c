"""Draws handwritten digits over crops of photographs."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np

from .digit_sources import Sources

# Height of a digit as a share of the scene's side, and digits in a scene.
_HEIGHT_SHARE = (0.16, 0.40)
_DIGITS_PER_SCENE = (3, 8)
_MAX_ANGLE = 12.0
_MIN_CONTRAST = 80.0
_PLACE_TRIES = 30
_GAP = 2
# Ink below the first level is clear, above the second opaque.
_INK_LEVELS = (0.25, 0.50)
_LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Instance:
    """One drawn digit.

    ``mask`` is (H, W) bool over the whole scene, ``source`` the digit's row
    in ``load_digits``.
    """

    label: int
    mask: np.ndarray
    source: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Tight ``(x1, y1, x2, y2)`` in pixels, the far edges exclusive."""
        ys = np.flatnonzero(self.mask.any(axis=1))
        xs = np.flatnonzero(self.mask.any(axis=0))
        return int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1


@dataclass(frozen=True)
class Scene:
    """An RGB image (H, W, 3) and its digits, which never overlap."""

    image: np.ndarray
    instances: list[Instance]


def draw_scene(sources: Sources, size: int, rng: np.random.Generator) -> Scene:
    """Scatter three to eight random digits over a random crop."""
    image = draw_background(sources.photos, size, rng)
    instances: list[Instance] = []
    low, high = _DIGITS_PER_SCENE
    for _ in range(rng.integers(low, high + 1)):
        pick = int(rng.integers(len(sources.digits)))
        height = size * rng.uniform(*_HEIGHT_SHARE)
        ink = draw_glyph(sources.digits[pick], height, rng)
        corner = _find_room(ink.shape, instances, size, rng)
        # A crowded scene has no room for another digit; the first one
        # always fits, because a glyph is smaller than the scene.
        if corner is None:
            continue
        mask = _paint(image, ink, corner, rng)
        instances.append(
            Instance(
                label=int(sources.labels[pick]),
                mask=mask,
                source=int(sources.indices[pick]),
            )
        )
    return Scene(image, instances)


def draw_single(
    sources: Sources, pick: int, size: int, rng: np.random.Generator
) -> np.ndarray:
    """One digit, number ``pick`` of the split, near the middle of a crop."""
    image = draw_background(sources.photos, size, rng)
    height = size * rng.uniform(0.6, 0.8)
    ink = draw_glyph(sources.digits[pick], height, rng)
    slack = np.array([size, size]) - ink.shape
    corner = np.rint(slack * rng.uniform(0.3, 0.7, 2)).astype(int)
    _paint(image, ink, (int(corner[0]), int(corner[1])), rng)
    return image


def draw_background(
    photos: list[np.ndarray], size: int, rng: np.random.Generator
) -> np.ndarray:
    """A random square of a random photograph, resized and maybe mirrored."""
    from PIL import Image

    photo = photos[rng.integers(len(photos))]
    limit = min(photo.shape[:2])
    side = int(rng.integers(limit // 2, limit + 1))
    top = int(rng.integers(photo.shape[0] - side + 1))
    left = int(rng.integers(photo.shape[1] - side + 1))
    crop = Image.fromarray(photo[top : top + side, left : left + side])
    image = np.array(crop.resize((size, size), Image.Resampling.BILINEAR))
    if rng.random() < 0.5:
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def draw_glyph(
    digit: np.ndarray, height: float, rng: np.random.Generator
) -> np.ndarray:
    """Upscale an 8x8 digit smoothly, slightly turned, and crop it.

    Returns:
        Opacity in 0..1; above 0.5 is the stroke, which touches all edges.
    """
    from scipy.ndimage import affine_transform

    angle = np.deg2rad(rng.uniform(-_MAX_ANGLE, _MAX_ANGLE))
    stretch = rng.uniform(0.85, 1.15)
    cos, sin = np.cos(angle), np.sin(angle)
    padded = np.pad(digit, 3)
    cells_per_pixel = len(digit) / height
    side = int(np.ceil(height * len(padded) / len(digit)))
    matrix = cells_per_pixel * np.array([[cos, -sin], [sin, cos]])
    matrix[:, 1] /= stretch
    middle = (len(padded) - 1) / 2
    offset = middle - matrix @ np.full(2, (side - 1) / 2)
    field = affine_transform(
        padded, matrix, offset, output_shape=(side, side), order=3
    )
    # Steps of 1/256 keep the last bits of a machine's arithmetic out of the
    # picture, so every machine draws the same one.
    field = np.rint(field / field.max() * 256) / 256
    low, high = _INK_LEVELS
    ink = np.clip((field - low) / (high - low), 0, 1)
    stroke = ink > 0.5
    ys = np.flatnonzero(stroke.any(axis=1))
    xs = np.flatnonzero(stroke.any(axis=0))
    return ink[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1]


def _find_room(
    shape: tuple[int, ...],
    instances: list[Instance],
    size: int,
    rng: np.random.Generator,
) -> tuple[int, int] | None:
    height, width = shape
    boxes = [instance.box for instance in instances]
    for _ in range(_PLACE_TRIES):
        top = int(rng.integers(size - height + 1))
        left = int(rng.integers(size - width + 1))
        if all(
            left >= x2 + _GAP
            or left + width + _GAP <= x1
            or top >= y2 + _GAP
            or top + height + _GAP <= y1
            for x1, y1, x2, y2 in boxes
        ):
            return top, left
    return None


def _paint(
    image: np.ndarray,
    ink: np.ndarray,
    corner: tuple[int, int],
    rng: np.random.Generator,
) -> np.ndarray:
    """Blend the ink into the image and return the stroke's mask."""
    top, left = corner
    window = np.s_[top : top + ink.shape[0], left : left + ink.shape[1]]
    patch = image[window].astype(np.float64)
    colour = _contrasting_colour(patch, rng)
    opacity = ink[..., None]
    blended = patch * (1 - opacity) + colour * opacity
    image[window] = np.rint(blended).astype(np.uint8)
    mask = np.zeros(image.shape[:2], dtype=bool)
    mask[window] = ink > 0.5
    return mask


def _contrasting_colour(
    patch: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """A random colour whose lightness differs from the patch's mean."""
    ground = float(patch.mean(axis=(0, 1)) @ _LUMA)
    for _ in range(20):
        hue, saturation, value = rng.random(3)
        colour = np.rint(
            np.multiply(255, colorsys.hsv_to_rgb(hue, saturation, value))
        )
        if abs(float(colour @ _LUMA) - ground) >= _MIN_CONTRAST:
            return colour
    return np.full(3, 0.0 if ground > 127 else 255.0)
