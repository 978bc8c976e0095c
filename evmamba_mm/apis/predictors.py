"""The three hosts' inferencers, asked the same questions.

The inferencers prepare images, predict and draw. Their own loop is not used:
it stops at the first broken image, keeps every picture in memory, and takes a
BGR frame for RGB when it draws.
"""

import warnings
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.infer import BaseInferencer
from mmengine.registry import Registry
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor, nn

from .enlarging import enlarge_image, enlarge_sample, times_for
from .limits import check_image, finite
from .tracks import Tracks
from .weights import Meta, hue

HOSTS = ('mmpretrain', 'mmdet', 'mmseg')
DEFAULT_SCORE_THR = 0.3
SEGMENT_OPACITY = 0.6
# Letters on a smaller image cannot be read.
LEAST_LABELLED_SIDE = 256
LONGEST_ENLARGED_SIDE = 4096
# Said by an inferencer that is given no checkpoint; ours is loaded later.
HARMLESS = (
    'Checkpoint is not loaded',
    'weights is None',
    'Unable to find pre-defined checkpoint',
    '.*Visualizer.* backend is not initialized',
)


def build_predictor(cfg: Config, device: str) -> 'Predictor':
    """Build the inferencer of the config's host, without weights.

    Raises:
        ValueError: If the config is of no known host, or lacks a key.
    """
    if not isinstance(cfg, Config):
        raise ValueError(f'cfg must be a Config, got {cfg!r}')
    host = cfg.get('default_scope')
    if host not in HOSTS:
        raise ValueError(
            f'default_scope of the config is {host!r}; legal are '
            f'{", ".join(HOSTS)}'
        )
    for key in ('model', 'test_dataloader'):
        if cfg.get(key) is None:
            raise ValueError(f'the config has no {key}')
        if not isinstance(cfg[key], dict):
            raise ValueError(f'{key} must be a dict, got {cfg[key]!r}')
    from mmengine.registry import init_default_scope

    # mmpretrain's inferencer, alone of the three, leaves it to the caller.
    init_default_scope(host)
    kinds = dict(mmpretrain=Classifier, mmdet=Detector, mmseg=Segmenter)
    with warnings.catch_warnings():
        for message in HARMLESS:
            warnings.filterwarnings('ignore', message=message)
        return kinds[host](cfg, device)


class Predictor:
    """What the hosts' inferencers have in common."""

    task = None
    # How many times an image is enlarged; None means by its size.
    enlarge = None
    # 'all', 'none', or 'auto': names where they are readable, and none for
    # detections of one class.
    labels = 'auto'

    def __init__(self, inferencer: BaseInferencer, datasets: Registry):
        self.inferencer = inferencer
        self.datasets = datasets
        self.meta = None

    @property
    def model(self) -> nn.Module:
        """The toolbox's model."""
        return self.inferencer.model

    def use_meta(self, meta: Meta) -> None:
        """Take the names and colours of the classes."""
        self.meta = meta
        self.model.dataset_meta = dict(
            classes=meta.classes, palette=meta.palette
        )

    def prepare(
        self, image: str | np.ndarray
    ) -> tuple[Tensor, BaseDataElement]:
        """Takes a path or a BGR array through the test pipeline.

        Raises:
            ValueError: If the image is too large or slender, or its resizing
                leaves no pixel of one side.
        """
        check_image(image)
        try:
            (batch,) = self.inferencer.preprocess([image], batch_size=1)
        except cv2.error as error:
            raise ValueError(
                f'the test pipeline cannot resize it: {error.err}'
            ) from error
        return self.unpack(batch)

    @staticmethod
    def unpack(batch: object) -> tuple[Tensor, BaseDataElement]:
        """Return the image and the data sample of a batch of one."""
        return batch['inputs'][0], batch['data_samples'][0]

    def predict(
        self, prepared: Sequence[tuple[Tensor, BaseDataElement]]
    ) -> list[BaseDataElement]:
        """Predicts a batch of images that were prepared to the same size."""
        inputs, samples = zip(*prepared, strict=True)
        batch = dict(inputs=list(inputs), data_samples=list(samples))
        return self.inferencer.forward(batch)

    def draw(
        self,
        image: np.ndarray,
        sample: BaseDataElement,
        tracks: Tracks | None = None,
    ) -> np.ndarray:
        """Draw a prediction on an RGB image.

        Args:
            image: (H, W, 3) of uint8.
            sample: The prediction.
            tracks: The objects of the earlier frames, in a video.

        Returns:
            RGB, larger than the image by a whole factor where it is small.
        """
        raise NotImplementedError

    def describe(self, sample: BaseDataElement) -> dict:
        """The prediction as a dict for JSON."""
        raise NotImplementedError


class Classifier(Predictor):
    """mmpretrain: one label an image."""

    task = 'classification'

    def __init__(self, cfg: Config, device: str):
        from mmpretrain import ImageClassificationInferencer
        from mmpretrain.registry import DATASETS
        from mmpretrain.visualization import UniversalVisualizer

        super().__init__(
            ImageClassificationInferencer(
                cfg, pretrained=False, device=device
            ),
            DATASETS,
        )
        # Its visualize() hands out no picture, only files.
        self.visualizer = UniversalVisualizer()

    def use_meta(self, meta: Meta) -> None:
        """Take the names of the classes."""
        super().use_meta(meta)
        self.inferencer.classes = meta.classes

    def draw(
        self,
        image: np.ndarray,
        sample: BaseDataElement,
        tracks: Tracks | None = None,
    ) -> np.ndarray:
        """Write label and score on an RGB image.

        Small ones are enlarged; a margin is added to what would get too long.
        """
        image = enlarge_image(image, self.enlarge or 1)
        short, long = sorted(image.shape[:2])
        small = short < LEAST_LABELLED_SIDE
        if (
            small
            and long > LONGEST_ENLARGED_SIDE / LEAST_LABELLED_SIDE * short
        ):
            margins = (
                (0, max(0, LEAST_LABELLED_SIDE - side))
                for side in image.shape[:2]
            )
            image, small = np.pad(image, (*margins, (0, 0))), False
        return self.visualizer.visualize_cls(
            image,
            sample,
            classes=self.meta.classes,
            draw_gt=False,
            resize=LEAST_LABELLED_SIDE if small else None,
            # Many names of ImageNet's classes are longer than such a side.
            text_cfg=dict(wrap=True),
        )

    def describe(self, sample: BaseDataElement) -> dict:
        """Return the label, its name and all scores."""
        (result,) = self.inferencer.postprocess([sample], None)
        return dict(
            label=result['pred_label'],
            class_name=result['pred_class'],
            score=finite(result['pred_score']),
            scores=[finite(x) for x in result['pred_scores'].tolist()],
        )


class Detector(Predictor):
    """mmdet: boxes, and masks where the model predicts them."""

    task = 'detection'
    score_thr = DEFAULT_SCORE_THR
    # Whether each object gets its own colour; None means if all are of one
    # class.
    colour_objects = None

    def __init__(self, cfg: Config, device: str):
        from mmdet.apis import DetInferencer
        from mmdet.registry import DATASETS

        from .det_visualizer import ClearDetVisualizer

        take_visualizer(cfg, 'DetLocalVisualizer', ClearDetVisualizer)
        # Without a palette it would build the data set to find one.
        inferencer = DetInferencer(
            cfg, device=device, palette='random', show_progress=False
        )
        super().__init__(inferencer, DATASETS)

    def use_meta(self, meta: Meta) -> None:
        """Take the names and colours of the classes."""
        super().use_meta(meta)
        self.inferencer.visualizer.dataset_meta = self.model.dataset_meta

    @staticmethod
    def unpack(batch: object) -> tuple[Tensor, BaseDataElement]:
        """Return the image and the data sample of a batch of one."""
        _, data = batch
        return data['inputs'][0], data['data_samples'][0]

    def predict(
        self, prepared: Sequence[tuple[Tensor, BaseDataElement]]
    ) -> list[BaseDataElement]:
        """Predict, and keep what scores more than `score_thr`."""
        samples = super().predict(prepared)
        for sample in samples:
            if 'pred_instances' in sample:
                found = sample.pred_instances
                kept = found.scores > self.score_thr
                sample.pred_instances = found[kept]
        return samples

    def draw(
        self,
        image: np.ndarray,
        sample: BaseDataElement,
        tracks: Tracks | None = None,
    ) -> np.ndarray:
        """Draw boxes and masks on an RGB image."""
        sample = sample.cpu()
        own = self.colour_objects
        if own is None:
            own = len(self.meta.classes) == 1
        if own and 'pred_instances' in sample:
            sample = sample.clone()
            colour_by_object(sample.pred_instances, tracks or Tracks())
        times = self.enlarge or times_for(*image.shape[:2])
        image = enlarge_image(image, times)
        sample = enlarge_sample(sample, times)
        self.inferencer.visualizer.labels = self.labels
        (picture,) = self.inferencer.visualize(
            [image], [sample], return_vis=True, pred_score_thr=self.score_thr
        )
        return picture

    def describe(self, sample: BaseDataElement) -> dict:
        """Return label, name, score, box and mask of each instance.

        Raises:
            ValueError: If the model predicts no instances.
        """
        if 'pred_instances' not in sample:
            raise ValueError(
                '--json writes instances, and this model predicts '
                f'{", ".join(sample.keys())}'
            )
        result = self.inferencer.pred2dict(sample)
        instances = []
        for index, label in enumerate(result['labels']):
            instance = dict(
                label=label,
                class_name=self.meta.classes[label],
                score=finite(result['scores'][index]),
                bbox=[finite(x) for x in result['bboxes'][index]],
            )
            if 'masks' in result:
                instance['mask'] = result['masks'][index]
            instances.append(instance)
        return dict(instances=instances)


class Segmenter(Predictor):
    """mmseg: a class for each pixel."""

    task = 'segmentation'

    def __init__(self, cfg: Config, device: str):
        from mmseg.apis import MMSegInferencer
        from mmseg.registry import DATASETS

        from .seg_visualizer import ClearSegVisualizer

        take_visualizer(cfg, 'SegLocalVisualizer', ClearSegVisualizer)
        super().__init__(MMSegInferencer(cfg, device=device), DATASETS)

    def draw(
        self,
        image: np.ndarray,
        sample: BaseDataElement,
        tracks: Tracks | None = None,
    ) -> np.ndarray:
        """Draw the classes on an RGB image."""
        times = self.enlarge or times_for(*image.shape[:2])
        image = enlarge_image(image, times)
        sample = enlarge_sample(sample, times)
        height, width = image.shape[:2]
        if (height, width) == (1, 1):
            # mmseg takes the mask of a single pixel for an index.
            image = np.tile(image, (2, 2, 1))
            labels = sample.pred_sem_seg
            sample = sample.clone()
            sample.pred_sem_seg = type(labels)(data=labels.data.tile(2, 2))
        self.inferencer.visualizer.labels = self.labels
        (picture,) = self.inferencer.visualize(
            [image],
            [sample],
            return_vis=True,
            opacity=SEGMENT_OPACITY,
            with_labels=self.labels != 'none',
        )
        return picture[:height, :width]

    def describe(self, sample: BaseDataElement) -> dict:
        """Return label, name, pixels and mask of each class that is there."""
        import numpy as np
        from pycocotools import mask as coco_mask

        labels = sample.pred_sem_seg.data[0].cpu().numpy()
        segments = []
        for label in np.unique(labels).tolist():
            mask = np.asfortranarray(labels == label, dtype=np.uint8)
            encoded = coco_mask.encode(mask)
            encoded['counts'] = encoded['counts'].decode()
            segments.append(
                dict(
                    label=label,
                    class_name=self.meta.classes[label],
                    pixels=int(mask.sum()),
                    mask=encoded,
                )
            )
        return dict(segments=segments)


def take_visualizer(cfg: Config, stock: str, ours: type) -> None:
    """Replace a config's visualizer, if it is the host's stock one."""
    cfg.setdefault('visualizer', dict(type=stock))
    cfg.visualizer.vis_backends = None
    kind = cfg.visualizer.type
    name = kind if isinstance(kind, str) else kind.__name__
    if name.rpartition('.')[2] == stock:
        cfg.visualizer.type = ours


def colour_by_object(found: InstanceData, tracks: Tracks) -> None:
    """Give each object a colour of its own, that of the earlier frames."""
    from .det_visualizer import as_bool, box_array

    boxes = box_array(found, as_bool(found.get('masks')))
    numbers = tracks.follow(torch.from_numpy(boxes), found.labels)
    found.colors = torch.tensor([hue(n) for n in numbers]).view(-1, 3)
