"""Receptive fields of trained backbones, side by side."""

from zipfile import BadZipFile

from evidence import files

from . import style

# A gradient below this share of the largest is drawn as none.
LEAST = 1e-3


def draw(output, folder):
    """Draws each row's gradient, and its share outside of the quarter."""
    import numpy as np
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Rectangle

    measured = files.fields(folder)
    path = folder / 'fields.npz'
    try:
        with np.load(path) as stored:
            gradients = [stored[row['row']].astype(float) for row in measured]
    except (BadZipFile, KeyError) as error:
        raise ValueError(
            f'{path} does not hold what fields.csv names: {error}'
        ) from None
    with style.canvas(2.0, output) as figure:
        (axes,) = figure.subplots(1, len(measured), squeeze=False)
        figure.subplots_adjust(0.005, 0.01, 0.995, 0.79, wspace=0.04)
        for axis, row, gradient in zip(axes, measured, gradients, strict=True):
            height, width = gradient.shape
            axis.imshow(
                np.maximum(gradient, LEAST),
                norm=LogNorm(LEAST, 1),
                cmap='GnBu',
                extent=(0, width, height, 0),
            )
            # The unit at the centre of a map of four rows and columns.
            axis.add_patch(
                Rectangle(
                    (0.375 * width, 0.375 * height),
                    *(width / 2, height / 2),
                    fill=False,
                    edgecolor=style.VERMILLION,
                )
            )
            share = float(row['outside_quarter'])
            axis.set_title(f'{row["name"]}\n{share:.0%}', fontsize=8.5)
            axis.set(xticks=[], yticks=[])
