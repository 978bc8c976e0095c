"""Writes digit scenes as COCO json, segmentation maps and class folders."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from .digit_render import Instance, Scene
from .digit_sources import Sources


def encode_rle(mask: np.ndarray) -> dict[str, list[int]]:
    """COCO's uncompressed run lengths of a (H, W) bool mask.

    Runs go down the columns and start with zeros. Polygons could not
    represent the holes of 0, 6, 8 and 9.
    """
    flat = np.concatenate([[False], mask.ravel(order='F')])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    runs = np.diff(np.concatenate([[0], edges, [mask.size]]))
    return {'size': list(mask.shape), 'counts': runs.tolist()}


class DataWriter:
    """Writes splits below ``root`` and hashes their decoded content."""

    def __init__(self, root: Path, classes: tuple[str, ...]) -> None:
        self.root = root
        self.classes = classes
        self._hash = hashlib.sha256()

    def hexdigest(self) -> str:
        """Hash of everything written so far."""
        return self._hash.hexdigest()

    def write_scenes(self, split: str, scenes: list[Scene]) -> None:
        """Write images, segmentation maps and the COCO file of a split."""
        images, annotations = [], []
        for number, scene in enumerate(scenes):
            name = f'{number:06d}.png'
            height, width = scene.image.shape[:2]
            self._write_png(f'scenes/{split}/{name}', scene.image)
            self._write_png(f'segmaps/{split}/{name}', seg_map(scene))
            images.append(
                {
                    'id': number + 1,
                    'file_name': name,
                    'height': height,
                    'width': width,
                }
            )
            annotations += [
                _annotation(instance, number + 1)
                for instance in scene.instances
            ]
        for number, annotation in enumerate(annotations):
            annotation['id'] = number + 1
        self._write_json(
            f'annotations/instances_{split}.json',
            {
                'info': {'description': f'digit scenes, {split}'},
                'images': images,
                'annotations': annotations,
                'categories': [
                    {'id': number + 1, 'name': name}
                    for number, name in enumerate(self.classes)
                ],
            },
        )

    def write_singles(
        self, split: str, singles: list[np.ndarray], sources: Sources
    ) -> None:
        """Write one image a digit, named by its row in ``load_digits``."""
        for image, label, row in zip(
            singles, sources.labels, sources.indices, strict=True
        ):
            name = self.classes[label]
            path = f'classification/{split}/{name}/{row:05d}.png'
            self._write_png(path, image)

    def _write_png(self, path: str, image: np.ndarray) -> None:
        from PIL import Image

        self._hash.update(f'{path} {image.shape}\n'.encode())
        self._hash.update(np.ascontiguousarray(image).tobytes())
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(target, compress_level=1)

    def _write_json(self, path: str, content: dict) -> None:
        text = json.dumps(content)
        self._hash.update(f'{path}\n{text}\n'.encode())
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)


def seg_map(scene: Scene) -> np.ndarray:
    """(H, W) uint8 with 0 for the background and 1 + digit elsewhere."""
    result = np.zeros(scene.image.shape[:2], dtype=np.uint8)
    for instance in scene.instances:
        result[instance.mask] = instance.label + 1
    return result


def _annotation(instance: Instance, image_id: int) -> dict:
    x1, y1, x2, y2 = instance.box
    return {
        'image_id': image_id,
        'category_id': instance.label + 1,
        'bbox': [x1, y1, x2 - x1, y2 - y1],
        'area': int(instance.mask.sum()),
        'iscrowd': 0,
        'segmentation': encode_rle(instance.mask),
        'source_row': instance.source,
    }
