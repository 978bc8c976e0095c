"""The effective receptive field as a picture."""

from pathlib import Path

from . import style

SHARES = (0.5, 0.9, 0.99)
SHARE_COLOURS = (style.VERMILLION, style.ORANGE, style.BLACK)
# A gradient below this share of the largest is drawn as none.
LEAST = 1e-5


def draw(output, args):
    """Measures the field of a config's model and draws it."""
    from mmengine.runner import set_random_seed

    from evmamba_mm.analysis.receptive_field import (
        area,
        find_images,
        measure,
        prepare,
        share_boxes,
    )
    from evmamba_mm.apis.predictors import build_predictor
    from evmamba_mm.apis.weights import load_weights
    from evmamba_mm.cli.launch import load_config

    paths = find_images(args.images, args.limit)
    cfg = load_config(args.config, args.cfg_options)

    # Weights that no file gives are the same in every run.
    set_random_seed(0)
    predictor = build_predictor(cfg, args.device)
    load_weights(predictor.model, cfg, args.checkpoint)
    prepared = prepare(predictor, paths, args.crop)
    field = measure(predictor.model, prepared, args.stage)
    boxes = share_boxes(field, SHARES)
    for share, box in zip(SHARES, boxes, strict=True):
        print(
            f'{share:.0%} of the gradient lies in a box round the centre of '
            f'{area(box):.1%} of the area'
        )
    draw_field(output, field, boxes, name_of(args, cfg))


def name_of(args, cfg):
    from evmamba_mm.apis.weights import pretrained_parts

    files = [args.checkpoint or cfg.get('load_from')]
    files += [file for _, file in pretrained_parts(cfg.model, 'model')]
    weights = next((Path(file).name for file in files if file), None)
    return f'{Path(args.config).stem}\n{weights or "random weights"}'


def draw_field(output, field, boxes, name):
    """Draws the gradient on a logarithmic scale, and the boxes of shares."""
    import numpy as np
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Rectangle

    from evmamba_mm.analysis.receptive_field import area

    height, width = field.gradient.shape
    relative = field.gradient / field.gradient.max()
    with style.canvas(5.2, output) as figure:
        axis = figure.add_axes((0.015, 0.02, 0.61, 0.96))
        image = axis.imshow(
            np.maximum(smaller(relative), LEAST),
            norm=LogNorm(LEAST, 1),
            cmap='GnBu',
            extent=(0, width, height, 0),
            interpolation='nearest',
        )
        for share, box, colour in zip(
            SHARES, boxes, SHARE_COLOURS, strict=True
        ):
            top, bottom, left, right = box
            axis.add_patch(
                Rectangle(
                    (width * left, height * top),
                    *(width * (right - left), height * (bottom - top)),
                    fill=False,
                    edgecolor=colour,
                    linewidth=1.6,
                    label=f'{share:.0%} of it: {area(box):.1%} of the area',
                )
            )
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(True)
        bar = figure.colorbar(
            image, cax=figure.add_axes((0.66, 0.09, 0.025, 0.4))
        )
        bar.set_label('mean |gradient|, relative to the largest')
        bar.outline.set_visible(False)
        text = figure.text(
            0.655, 0.97, describe(field, name), va='top', fontsize=9
        )
        style.shrink(text, 0.335 * style.WIDTH_INCHES)
        below = text.get_window_extent(figure.canvas.get_renderer())
        bottom = figure.transFigure.inverted().transform(below)[0, 1]
        figure.legend(
            *axis.get_legend_handles_labels(),
            loc='upper left',
            bbox_to_anchor=(0.645, min(0.72, bottom)),
            frameon=False,
            fontsize=9,
        )


def smaller(values, side=640):
    """Means of neighbours, so that the picture has fewer cells than pixels."""
    block = -(-max(values.shape) // side)
    height, width = (length // block * block for length in values.shape)
    blocks = values[:height, :width].reshape(
        height // block, block, width // block, block
    )
    return blocks.mean((1, 3))


def describe(field, name):
    import textwrap

    height, width = field.gradient.shape
    lines = [
        line
        for part in name.splitlines()
        for line in textwrap.wrap(part.replace('_', '_ '), 36)
    ]
    plural = '' if field.images == 1 else 's'
    return '\n'.join(
        [
            *(line.replace('_ ', '_') for line in lines),
            f'centre of a {field.height}×{field.width} map of '
            f'{field.channels} channels',
            f'{field.images} image{plural} of {height}×{width}',
        ]
    )
