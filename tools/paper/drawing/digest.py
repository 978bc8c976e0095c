"""Tells whether a figure shows the data of today."""

import hashlib

# Under this name a PNG keeps the digest of what it shows.
KEY = 'drawn'


def digest(figure):
    """Of points, lines, images and words, not of fonts and places in pixels.

    Libraries may differ in the last digits, and in many of an image.
    """
    import numpy as np

    def numbers(values):
        array = np.ma.filled(np.ma.asarray(values, float), np.nan)
        return ' '.join(f'{x:.4g}' for x in np.ravel(array))

    shown = []
    for axes in figure.axes:
        for line in axes.lines:
            shown.append(numbers(line.get_xydata()))
        for points in axes.collections:
            shown.append(numbers(points.get_offsets()))
            shown += [numbers(path.vertices) for path in points.get_paths()]
        for image in axes.images:
            array = np.ma.filled(np.ma.asarray(image.get_array(), float), 0)
            shown.append(f'{array.shape} {numbers(array.mean((0, 1)))}')
        words = (axes.get_xlabel(), axes.get_ylabel(), axes.get_title())
        shown += [*words, *(text.get_text() for text in axes.texts)]
    shown += [text.get_text() for text in figure.texts]
    # Sets have another order in each run.
    return hashlib.sha256('\n'.join(sorted(shown)).encode()).hexdigest()[:16]


def digest_of_file(path):
    """What a PNG says that it shows.

    Raises:
        ValueError: If it says nothing.
    """
    from PIL import Image

    with Image.open(path) as image:
        found = image.info.get(KEY)
    if found is None:
        raise ValueError(
            f'-o {str(path)!r} does not say what it shows: it is no PNG of '
            'this tool, or of an earlier version; draw it anew'
        )
    return found
