"""A web page that shows what a model sees in an image.

python -m evmamba_mm.demo_app CONFIG [CHECKPOINT]

Drop an image: a classifier of mmpretrain answers with its best classes, a
detector of mmdet with boxes and masks, a segmentor of mmseg with a map of the
classes. It needs gradio, the extra `demo-app`. The page is for this machine
alone, unless --host says otherwise; nothing is sent anywhere else.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from mmengine.structures import BaseDataElement

from .apis import load_predictor
from .apis.media import BrokenInputError, read_image
from .apis.outcomes import predictions
from .apis.predictors import DEFAULT_SCORE_THR
from .cli.arguments import check_arguments
from .cli.launch import load_config

if TYPE_CHECKING:
    import gradio

    from .apis.predictors import Predictor

BEST_CLASSES = 5
LARGEST_FILE = '64mb'
COLUMNS = {
    'detection': ['class', 'score', 'left', 'top', 'right', 'bottom'],
    'segmentation': ['class', '% of the image'],
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the arguments of the command line."""
    parser = argparse.ArgumentParser(
        prog='python -m evmamba_mm.demo_app',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        'config', metavar='CONFIG', help='of mmpretrain, mmdet or mmseg'
    )
    parser.add_argument(
        'checkpoint',
        metavar='CHECKPOINT',
        nargs='?',
        help='path or URL of the weights; without it those that the config '
        'names in load_from or init_cfg',
    )
    parser.add_argument(
        '--host',
        default='127.0.0.1',
        help='address to listen at; 0.0.0.0 lets other machines in '
        '(default: 127.0.0.1)',
    )
    parser.add_argument(
        '--port',
        type=int,
        help='port to listen at (default: the first free one from 7860)',
    )
    parser.add_argument(
        '--device', help='cpu, cuda, cuda:1 (default: a GPU if there is one)'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        help='overrides of the config',
    )
    args = parser.parse_args(argv)
    if args.port is not None and not 0 < args.port < 2**16:
        parser.error(f'--port must be between 1 and 65535, got {args.port}')
    check_arguments(parser, args, 'CONFIG')
    return args


def require_gradio() -> None:
    """Tell what to install where gradio is missing.

    Raises:
        ImportError: If it is missing.
    """
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "the page needs gradio: pip install 'gradio>=6'"
        ) from error


def look(
    predictor: Predictor, path: str
) -> tuple[np.ndarray, BaseDataElement]:
    """Predict on an image file; return the picture (RGB) and the prediction.

    Raises:
        BrokenInputError: If the file cannot be read.
        ValueError: If the image is too large or too slender.
    """
    image = read_image(Path(path))
    (outcome,) = predictions([(0, image, path)], predictor, 1)
    if outcome.error is not None:
        raise outcome.error
    return predictor.draw(image, outcome.sample), outcome.sample


def findings(
    predictor: Predictor, described: dict
) -> dict[str, float] | list[list]:
    """What stands beside the picture.

    Args:
        predictor: The one that predicted.
        described: What its `describe` returned.

    Returns:
        For a classifier the scores of the best classes by name, else rows of
        COLUMNS, the surest or largest first.
    """
    if predictor.task == 'classification':
        return class_scores(predictor.meta.classes, described['scores'])
    if predictor.task == 'detection':
        return [
            [found['class_name'], round(found['score'], 3)]
            + [round(side, 1) for side in found['bbox']]
            for found in described['instances']
        ]
    parts = sorted(described['segments'], key=lambda part: -part['pixels'])
    whole = sum(part['pixels'] for part in parts)
    return [
        [part['class_name'], round(100 * part['pixels'] / whole, 1)]
        for part in parts
    ]


def class_scores(
    classes: Sequence[str], scores: Sequence[float]
) -> dict[str, float]:
    """Return the scores of the best classes by name.

    Of two classes of one name, as ImageNet's cranes, one keeps its number.
    """
    best = sorted(range(len(scores)), key=lambda index: -scores[index])
    named = {}
    for index in best[:BEST_CLASSES]:
        name = classes[index]
        named[f'{name} ({index})' if name in named else name] = scores[index]
    return named


def answer(predictor: Predictor) -> Callable:
    """Return what the page calls: (path, score, labels) to its answer."""
    import gradio

    def called(path, score_thr, labels):
        if path is None:
            return None, None
        if predictor.task == 'detection':
            predictor.score_thr = score_thr
        predictor.labels = labels
        try:
            picture, sample = look(predictor, path)
        except (BrokenInputError, ValueError) as error:
            raise gradio.Error(str(error)) from error
        return picture, findings(predictor, predictor.describe(sample))

    return called


def build_page(predictor: Predictor, title: str) -> gradio.Blocks:
    """Build the page of a model.

    Args:
        predictor: What `evmamba_mm.apis.load_predictor` returns.
        title: What the page is called.

    Raises:
        ImportError: If gradio is missing.
    """
    require_gradio()
    import gradio

    with gradio.Blocks(title=title, analytics_enabled=False) as page:
        gradio.Markdown(f'## {title}\nDrop an image.')
        with gradio.Row():
            with gradio.Column():
                image, score, labels = add_inputs(predictor.task)
            with gradio.Column():
                outputs = add_outputs(predictor.task)
        gradio.on(
            [image.change, score.release, labels.change],
            answer(predictor),
            [image, score, labels],
            outputs,
            api_name='predict',
            # The predictor holds the settings of one call.
            concurrency_limit=1,
        )
    return page


def add_inputs(task: str) -> list[gradio.components.Component]:
    """Add the image to drop, the least score and the choice of names."""
    import gradio

    # The file itself, so that the config's own pipeline reads it.
    image = gradio.Image(
        type='filepath',
        format='png',
        image_mode=None,
        label='image',
        sources=['upload', 'clipboard'],
    )
    score = gradio.Slider(
        *(0, 1, DEFAULT_SCORE_THR),
        label='least score',
        visible=task == 'detection',
    )
    labels = gradio.Radio(
        ['auto', 'all', 'none'],
        value='auto',
        label='names',
        visible=task != 'classification',
    )
    return [image, score, labels]


def add_outputs(task: str) -> list[gradio.components.Component]:
    """Add the picture, and the scores or the table below it."""
    import gradio

    # Without the button that would send the picture away.
    picture = gradio.Image(
        elem_id='picture',
        show_label=False,
        format='png',
        interactive=False,
        buttons=['download', 'fullscreen'],
    )
    if task == 'classification':
        return [picture, gradio.Label(label='scores')]
    table = gradio.Dataframe(headers=COLUMNS[task], interactive=False)
    return [picture, table]


def main(argv: list[str] | None = None) -> int:
    """Load the model and serve the page until Ctrl-C."""
    args = parse_args(argv)
    try:
        require_gradio()
        cfg = load_config(args.config, args.cfg_options)
        predictor = load_predictor(cfg, args.checkpoint, args.device)
        build_page(predictor, Path(args.config).stem).launch(
            server_name=args.host,
            server_port=args.port,
            max_file_size=LARGEST_FILE,
        )
    except (ValueError, ImportError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
