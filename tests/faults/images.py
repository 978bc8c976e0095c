"""Gives infer.py's models of the three tasks images of every bad kind.

    python -m tests.faults.images --out FILE

Each lies in one folder with a good image. The run must go on to the good one,
write the bad one or say in one line why not, and take no more than a bounded
amount of memory.
"""

import argparse
import io
import json
import os
import re
import resource
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import evmamba_mm  # noqa: F401
from evmamba_mm.apis import load_predictor
from evmamba_mm.apis.predictors import Predictor
from evmamba_mm.apis.run import Run
from evmamba_mm.apis.sources import collect, plan

from .record import Counts, write_record

ROOT = Path(__file__).parent.parent.parent
CONFIGS = {
    'classification': 'evmamba-*.py',
    'detection': 'mask-rcnn_*.py',
    'segmentation': 'upernet_*.py',
}
MOST_MEGABYTES = 3000


def pixels(width: int, height: int, mode: str = 'RGB') -> Image.Image:
    shape = (height, width, len(mode)) if len(mode) > 1 else (height, width)
    noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return Image.fromarray(noise, mode if mode != 'P' else 'L').convert(mode)


def saved(
    image: Image.Image, kind: str, transparency: int | None = None
) -> bytes:
    file = io.BytesIO()
    extra = {} if transparency is None else dict(transparency=transparency)
    image.save(file, kind, **extra)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    check = zlib.crc32(kind + content)
    return (
        struct.pack('>I', len(content))
        + kind
        + content
        + struct.pack('>I', check)
    )


def bomb(width: int, height: int) -> bytes:
    """A small PNG of many pixels."""
    row = b'\0' * (1 + (width + 7) // 8)
    packer = zlib.compressobj(9)
    rows = b''.join(packer.compress(row) for _ in range(height))
    size = struct.pack('>IIBBBBB', width, height, 1, 0, 0, 0, 0)
    return (
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', size)
        + chunk(b'IDAT', rows + packer.flush())
        + chunk(b'IEND', b'')
    )


GOOD_PNG = saved(pixels(64, 48), 'PNG')
GOOD_JPEG = saved(pixels(64, 48), 'JPEG')
FILES: dict[str, bytes] = {
    **{
        f'{width}x{height}.png': saved(pixels(width, height), 'PNG')
        for width, height in (
            *((1, 3200), (3200, 1), (2, 5000), (1, 1000), (1000, 1), (1, 1)),
            *((2, 2), (3, 3), (1, 40), (40, 1), (7, 900), (900, 7), (4, 4)),
        )
    },
    'bomb.png': bomb(30000, 30000),
    'large bomb.png': bomb(70000, 70000),
    'empty.png': b'',
    'empty.jpg': b'',
    'half.png': GOOD_PNG[: len(GOOD_PNG) // 2],
    'half.jpg': GOOD_JPEG[: len(GOOD_JPEG) // 2],
    'header alone.png': GOOD_PNG[:40],
    'header alone.jpg': GOOD_JPEG[:20],
    'flipped bits.png': GOOD_PNG[:100] + b'\xff' * 40 + GOOD_PNG[140:],
    'web page.jpg': b'<!DOCTYPE html><html>not found</html>',
    'text.png': b'no image',
    'archive.png': b'PK\x03\x04' + b'\0' * 100,
    'gif.png': saved(pixels(64, 48, 'P'), 'GIF'),
    'jpeg.png': GOOD_JPEG,
    'png.jpg': GOOD_PNG,
    'grey.png': saved(pixels(64, 48, 'L'), 'PNG'),
    'alpha.png': saved(pixels(64, 48, 'RGBA'), 'PNG'),
    'cmyk.jpg': saved(pixels(64, 48, 'CMYK'), 'JPEG'),
    'grey alpha.png': saved(pixels(64, 48, 'LA'), 'PNG'),
    'transparent colour.png': saved(
        pixels(64, 48, 'P'), 'PNG', transparency=3
    ),
    '16 bits.png': saved(
        Image.fromarray(np.arange(64 * 48, dtype=np.uint16).reshape(48, 64)),
        'PNG',
    ),
    'float.tiff': saved(pixels(64, 48, 'L').convert('F'), 'TIFF'),
    'bits.png': saved(pixels(64, 48, 'L').convert('1'), 'PNG'),
    'pages.tiff': saved(pixels(64, 48), 'TIFF'),
    'half.tiff': saved(pixels(64, 48), 'TIFF')[:200],
    'half.webp': saved(pixels(64, 48), 'WEBP')[:90],
    'half.bmp': saved(pixels(64, 48), 'BMP')[:90],
    'text.mp4': b'no video',
    'empty.avi': b'',
    'line\nbreak.png': GOOD_PNG,
    os.fsdecode(b'not utf-8 \xff.png'): GOOD_PNG,
}
SPECIAL: dict[str, Callable[[Path], None]] = {
    'pipe.png': os.mkfifo,
    'device.png': lambda path: path.symlink_to('/dev/zero'),
    'no device.png': lambda path: path.symlink_to('/dev/null'),
    'broken link.png': lambda path: path.symlink_to('nowhere'),
    'link to itself.png': lambda path: path.symlink_to(path.name),
    'folder.png': Path.mkdir,
}


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def legal_json(text: str) -> bool:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        json.loads(text, parse_constant=refuse)
    except ValueError:
        return False
    return True


def holds(predictor: Predictor, make: Callable[[Path], None], name: str):
    """Run over a bad image and a good one; return what is wrong, or None."""
    with tempfile.TemporaryDirectory() as folder:
        images, out = Path(folder) / 'in', Path(folder) / 'out'
        images.mkdir()
        (images / 'zz good.png').write_bytes(GOOD_PNG)
        make(images / name)
        before = peak_megabytes()
        errors = io.StringIO()
        run = Run(predictor, batch_size=2, write_json=True)
        with redirect_stderr(errors):
            found = collect(str(images / '*'), out)
            run.process(plan(found, out))
        said = errors.getvalue()
        lines = re.findall(r'^(?:skipped|\d+ of).*$', said, re.MULTILINE)
        if not (out / 'zz good.png').is_file():
            return 'the good image is not written'
        if 'Traceback' in said:
            return said[-600:]
        if len(lines) != run.reported:
            return f'{run.reported} reported in {len(lines)} lines: {said}'
        if not all(legal_json(f.read_text()) for f in out.glob('*.json')):
            return 'JSON is not legal'
        if max(before, MOST_MEGABYTES) < peak_megabytes():
            return f'it took {peak_megabytes():.0f} MB'
    return None


def kinds() -> dict[str, Callable[[Path], None]]:
    """Name of each bad file, and what makes it."""
    written = {
        name: lambda path, content=content: path.write_bytes(content)
        for name, content in FILES.items()
    }
    return {**written, **SPECIAL}


def predictor_of(task: str) -> Predictor:
    """The demonstration's model of a task, with random weights."""
    (config,) = (ROOT / 'configs' / 'demo').glob(CONFIGS[task])
    torch.manual_seed(0)
    with redirect_stderr(io.StringIO()):
        return load_predictor(config, device='cpu')


def spoiled(predictor: Predictor) -> Predictor:
    """Put NaN into a weight of the backbone."""
    with torch.no_grad():
        predictor.model.backbone.patch_embed.conv.weight[0] = torch.nan
    return predictor


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', help='data file of the counts')
    args = parser.parse_args(argv)
    counts = Counts()
    for task in CONFIGS:
        predictor = predictor_of(task)
        for name, make in kinds().items():
            wrong = holds(predictor, make, name)
            counts.add(task, wrong is None)
            if wrong:
                print(f'{task}, {name!r}: {wrong}', flush=True)
        wrong = holds(spoiled(predictor), Path.touch, 'empty.png')
        counts.add(task, wrong is None)
        if wrong:
            print(f'{task}, weights with NaN: {wrong}', flush=True)
    wanted = (
        'the run goes on, a line says what was skipped, JSON is legal, '
        f'at most {MOST_MEGABYTES} MB'
    )
    command = 'python -m tests.faults.images --out FILE'
    return write_record(args.out, command, wanted, counts)


if __name__ == '__main__':
    sys.exit(main())
