"""What all figures share: colours, letters, and the file they end in."""

import contextlib
import io
from pathlib import Path

from .digest import KEY, digest

SUFFIXES = ('.png', '.svg', '.pdf')
# 1600 pixels wide at DPI, for pages that show 800.
WIDTH_INCHES = 8.0
DPI = 200
# Okabe and Ito's colours, told apart with any kind of colour vision.
BLUE = '#0072B2'
ORANGE = '#E69F00'
GREEN = '#009E73'
VERMILLION = '#D55E00'
SKY = '#56B4E9'
PURPLE = '#CC79A7'
BLACK = '#222222'
GREY = '#777777'
LIGHT = '#F2F2F2'


def check_output(path):
    """Refuses a file that no figure can be written to."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise ValueError(
            f'-o {str(path)!r} must end in one of {", ".join(SUFFIXES)}'
        )
    if Path(path).is_dir():
        raise ValueError(f'-o {str(path)!r} is a folder')


def require_matplotlib():
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(
            'the figures need matplotlib: pip install matplotlib'
        ) from error
    return matplotlib


@contextlib.contextmanager
def canvas(height, output):
    """Gives a figure of the common width and writes it at the end."""
    matplotlib = require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    settings = {
        'font.family': 'DejaVu Sans',
        'font.size': 9,
        'axes.edgecolor': GREY,
        'axes.spines.top': False,
        'axes.spines.right': False,
        'hatch.linewidth': 0.5,
        'svg.hashsalt': 'evmamba_mm',
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(WIDTH_INCHES, height), dpi=DPI)
        FigureCanvasAgg(figure)
        figure.set_facecolor('white')
        yield figure
        write(figure, Path(output))


def shrink(text, inches):
    """Makes the letters of a text smaller until it is at most so wide."""
    figure = text.get_figure()
    width = text.get_window_extent(figure.canvas.get_renderer()).width
    if width > inches * figure.dpi:
        text.set_fontsize(text.get_fontsize() * inches * figure.dpi / width)


def place_axes(figure):
    """Gives the axes the room that their ticks and names leave.

    Before what is placed by pixels, such as names of points.
    """
    figure.set_layout_engine('constrained')
    figure.draw_without_rendering()
    figure.set_layout_engine('none')


def write(figure, path):
    """Writes a figure; a PNG in 256 colours, a third of the plain size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() != '.png':
        figure.savefig(path)
        return
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    buffer = io.BytesIO()
    figure.savefig(buffer, format='png')
    buffer.seek(0)
    with Image.open(buffer) as image:
        # The default method gives rare colours, such as a colour bar's, away;
        # this one alone tints the greys.
        few = image.convert('RGB').quantize(
            256,
            method=Image.Quantize.MAXCOVERAGE,
            kmeans=1,
            dither=Image.Dither.NONE,
        )
        about = PngInfo()
        about.add_text(KEY, digest(figure))
        few.save(path, optimize=True, pnginfo=about)
