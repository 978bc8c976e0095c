"""Stages and blocks of the backbone, with the shapes of a real forward."""

from . import style
from .blocks import draw_es2d, draw_evss, draw_inverted_residual
from .diagram import Sheet
from .trace import Trace

HEIGHT = 5.05
TINTS = dict(EVSSBlock='#CFE4F2', InvertedResidual='#FBE3B9')
NAMES = dict(EVSSBlock='EVSS', InvertedResidual='InRes')


def draw(output, arch, size):
    """Draws the stages of an arch, and below one block of each kind."""
    trace = Trace(arch, size)
    whole = sum(p.numel() for p in trace.model.parameters())
    with style.canvas(HEIGHT, output) as figure:
        sheet = Sheet(figure, HEIGHT)
        sheet.text(
            0.08,
            4.91,
            f'EfficientVMamba, arch {arch!r}: {readable(whole)} '
            'parameters without a head',
            size=10.5,
            bold=True,
            align='left',
        )
        draw_stages(sheet, trace)
        evss, residual = first_blocks(trace)
        draw_evss(sheet, trace, evss, (0.08, 2.95), TINTS['EVSSBlock'])
        draw_inverted_residual(
            sheet, trace, residual, (4.06, 2.95), TINTS['InvertedResidual']
        )
        draw_es2d(sheet, trace, evss, (0.08, 1.07))


def first_blocks(trace):
    """The names of the first EVSS block and the first inverted residual."""
    found = {}
    for index in range(len(trace.model.stages)):
        found.setdefault(trace.kind(f'stages.{index}.0'), f'stages.{index}.0')
    return found['EVSSBlock'], found['InvertedResidual']


def readable(count):
    return f'{count / 1e6:.2f} M' if count >= 1e5 else f'{count / 1e3:.1f} k'


def map_size(shape):
    """'56 × 56 × 48' of a channels-last shape."""
    return ' × '.join(str(side) for side in shape[1:])


def draw_stages(sheet, trace):
    """Draws image, stem, stages and output from left to right."""
    model = trace.model
    image = tuple(trace.image.permute(0, 2, 3, 1).shape)
    patch = model.patch_embed.conv.kernel_size[0]
    nodes = [
        ('image', ['RGB', map_size(image)], 'white'),
        (
            'stem',
            [
                f'{patch}×{patch} conv',
                trace.kind('patch_embed.norm'),
                map_size(trace.shape('patch_embed')),
                readable(trace.parameters('patch_embed')),
            ],
            style.LIGHT,
        ),
    ]
    for index, stage in enumerate(model.stages):
        parts, first = [f'stages.{index}'], f'stages.{index}.0'
        kind = trace.kind(first)
        lines = [f'{NAMES[kind]} × {len(stage)}']
        if index > 0:
            parts.append(f'downsamples.{index - 1}')
            lines.insert(0, '2×2 merge')
        lines.append(map_size(trace.shape(first)))
        lines.append(readable(trace.parameters(*parts)))
        nodes.append((f'stage {index + 1}', lines, TINTS[kind]))
    norm = trace.kind(f'norm{model.out_indices[-1]}')
    nodes.append(('output', [norm, map_size(trace.output)], style.LIGHT))
    gap = 0.19
    width = (style.WIDTH_INCHES - 0.16 - gap * (len(nodes) - 1)) / len(nodes)
    before = None
    for index, (name, lines, tint) in enumerate(nodes):
        left = 0.08 + index * (width + gap)
        box = sheet.box(
            *(left, 4.08, width, 0.8), lines, tint, '2×2 merge' in lines
        )
        sheet.text(left + width / 2, 4.6, name, size=9, bold=True)
        if before is not None:
            sheet.arrow((before.right, 4.08), (box.left, 4.08))
        before = box
