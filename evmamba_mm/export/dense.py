"""The dense part of the hosts' models: image in, tensors out.

Boxes are not decoded and nothing is suppressed: what follows depends on the
data, and each host's runtime has its own.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn


class DenseModel(nn.Module):
    """A model whose outputs are named tensors.

    Args:
        model: Model of a host, or a backbone.
        run: Takes the model and an image and returns the outputs by name.
    """

    def __init__(
        self,
        model: nn.Module,
        run: Callable[[nn.Module, Tensor], dict[str, Tensor]],
    ) -> None:
        super().__init__()
        self.model = model
        self.run = run

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Outputs of an image (B, C, H, W), normalised as in training."""
        return self.run(self.model, image)


def _numbered(name: str, tensors: tuple[Tensor, ...]) -> dict[str, Tensor]:
    return {f'{name}{i}': x for i, x in enumerate(tensors)}


def _outputs(head: nn.Module, maps: tuple[Tensor, ...]):
    """What a head makes of feature maps alone.

    Raises:
        ValueError: If it reads more, such as queries.
    """
    try:
        return head(maps)
    except (TypeError, NotImplementedError) as error:
        raise ValueError(
            f'{type(head).__name__} computes nothing from feature maps alone '
            f'({error}); legal are heads that do, without queries'
        ) from error


def _classify(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    return {'scores': model(image, mode='tensor')}


def _segment(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    scores = _outputs(model.decode_head, model.extract_feat(image))
    scores = F.interpolate(
        scores,
        size=image.shape[2:],
        mode='bilinear',
        align_corners=model.align_corners,
    )
    return {'scores': scores}


def _detect(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    outputs = _outputs(model.bbox_head, model.extract_feat(image))
    if len(outputs) not in (2, 3):
        raise ValueError(
            f'{type(model.bbox_head).__name__} has {len(outputs)} outputs; '
            'legal are scores and boxes, or these and a third'
        )
    named = {}
    for name, levels in zip(
        ('scores', 'boxes', 'other'), outputs, strict=False
    ):
        named |= _numbered(name, levels)
    return named


def _propose(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    maps = model.extract_feat(image)
    scores, boxes = _outputs(model.rpn_head, maps)
    return (
        _numbered('map', maps)
        | _numbered('scores', scores)
        | _numbered('boxes', boxes)
    )


def _features(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    return _numbered('map', model(image))


def dense_model(model: nn.Module) -> DenseModel:
    """The part of a model that maps an image to tensors of fixed rank.

    A classifier gives its scores before the softmax, a segmentor those of
    each pixel, a one-stage detector the raw outputs of its head by level, a
    two-stage detector those of its RPN and the neck's maps, a backbone its
    feature maps.

    Args:
        model: Model of mmpretrain, mmseg or mmdet, or a backbone.

    Raises:
        ValueError: If the model is a segmentor in a cascade or of another
            kind that has no single dense head. That a head reads more than
            feature maps is told when the model runs.
    """
    if isinstance(getattr(model, 'decode_head', None), nn.ModuleList):
        raise ValueError(
            f'{type(model).__name__} has several decode heads; legal are '
            'models with one'
        )
    runs = {
        'decode_head': _segment,
        'rpn_head': _propose,
        'bbox_head': _detect,
        'head': _classify,
    }
    for name, run in runs.items():
        if getattr(model, name, None) is not None:
            return DenseModel(model, run)
    if hasattr(model, 'out_indices'):
        return DenseModel(model, _features)
    raise ValueError(
        f'model must be a classifier, a segmentor, a detector with an RPN or '
        f'a dense head, or a backbone, got {type(model).__name__}'
    )
