"""Which file of a data set it is that a training or a test fails on."""

import contextlib
import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mmengine.dataset import BaseDataset

from ..own_files import is_own_class
from .failing import said_of
from .origins import ran_user

PATHS = ('img_path', 'seg_map_path')
METHODS = ('transform', '__call__')
# OpenCV reads every whole file of these; others may need another loader.
IMAGES = ('.png', '.jpg', '.jpeg', '.bmp')


class SampleError(ValueError):
    """An image or a map that cannot be used; the message is one line."""


@contextlib.contextmanager
def named() -> Iterator[None]:
    """Lets data sets say which image is broken, also from their workers.

    Raises:
        SampleError: In place of what the pipeline raises about a file that is
            no image, or that a library's transform cannot take. It is said in
            any other error, too, which file it comes from.
    """
    stock = BaseDataset.prepare_data
    BaseDataset.prepare_data = _naming_files(stock)
    try:
        yield
    except SampleError as error:
        # That of a worker has its traceback before the message.
        last = str(error).strip().splitlines()[-1]
        raise SampleError(
            last.partition('SampleError: ')[2] or last
        ) from error
    finally:
        BaseDataset.prepare_data = stock


def _naming_files(prepare: Callable) -> Callable:
    def prepare_data(self: BaseDataset, idx: int) -> Any:
        try:
            sample = prepare(self, idx)
        except (FileNotFoundError, MemoryError):
            raise
        except Exception as error:
            info = self.get_data_info(idx)
            if not isinstance(info, Mapping):
                raise
            wrong = _wrong_file(info)
            if isinstance(error, KeyError) and error.args == ('mask',):
                wrong = (
                    f'img_path {info.get("img_path")}: an object in it has no '
                    'mask ("segmentation" in the json), which this model needs'
                )
            if wrong is None and not ran_user(error):
                wrong = _failed_transform(self, info, error)
            if wrong:
                raise SampleError(wrong) from error
            if hasattr(error, 'add_note'):
                error.add_note(f'sample {idx}: {_files(info)}')
            raise
        # Those of a user's own pack, and resize, in their way.
        if not any(is_own_class(type(t), METHODS) for t in _transforms(self)):
            _check_packed(sample)
            _check_map(self, idx, sample)
        return sample

    return prepare_data


def _transforms(dataset: BaseDataset) -> Sequence[Callable]:
    return getattr(dataset.pipeline, 'transforms', ())


def _files(info: Mapping[str, Any]) -> dict[str, str]:
    found = {key: info.get(key) for key in PATHS}
    return {key: path for key, path in found.items() if isinstance(path, str)}


def _wrong_file(info: Mapping[str, Any]) -> str | None:
    """Say what is wrong with the first file that OpenCV cannot read."""
    import cv2

    for key, path in _files(info).items():
        if not (os.path.isfile(path) and path.lower().endswith(IMAGES)):
            continue
        if not os.path.getsize(path):
            return f'{key} {path} is empty (0 bytes)'
        try:
            image = cv2.imread(path, cv2.IMREAD_UNCHANGED)
        except cv2.error:
            image = None
        if image is None:
            return (
                f'{key} {path} is no image, or damaged: replace it, or take '
                'it out of the data set'
            )
    return None


def _failed_transform(
    dataset: BaseDataset, info: Mapping[str, Any], error: Exception
) -> str | None:
    """Say which transform of the pipeline cannot take a sample."""
    owners = [
        frame.f_locals.get('self')
        for frame, _ in traceback.walk_tb(error.__traceback__)
    ]
    for index, transform in enumerate(_transforms(dataset)):
        if any(owner is transform for owner in owners):
            paths = [f'{k} {path}' for k, path in _files(info).items()]
            return (
                f'pipeline.{index} ({type(transform).__name__}) of the data '
                f'set fails on {" and ".join(paths)}: {said_of(error)}'
            )
    return None


def _check_packed(sample: Any) -> None:
    """Refuse a sample that is still what was read, and not packed."""
    if (
        isinstance(sample, Mapping)
        and 'img_path' in sample
        and 'inputs' not in sample
    ):
        raise SampleError(
            f'img_path {sample["img_path"]}: the pipeline of its data set is '
            'empty, or does not end in PackInputs (mmpretrain), '
            'PackDetInputs (mmdet) or PackSegInputs (mmseg)'
        )


def _check_map(dataset: BaseDataset, idx: int, sample: Any) -> None:
    """Refuse a map of classes that has another size than its image."""
    if not isinstance(sample, Mapping) or 'data_samples' not in sample:
        return
    found = getattr(sample['data_samples'], 'gt_sem_seg', None)
    if found is None or not hasattr(sample['inputs'], 'shape'):
        return
    size, image = found.data.shape[-2:], sample['inputs'].shape[-2:]
    # In a validation the image is resized before its map is loaded.
    unchanged = sample['data_samples'].metainfo.get('ori_shape')
    if size in (image, unchanged):
        return
    raise SampleError(
        f'seg_map_path {dataset.get_data_info(idx).get("seg_map_path")} is '
        f'{size[1]}x{size[0]} pixels large after the pipeline, its image '
        f'{image[1]}x{image[0]}: they must have one size'
    )
