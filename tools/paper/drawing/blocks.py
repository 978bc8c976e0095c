"""The inside of the blocks, by the layers that they have."""

from .diagram import SUM_RADIUS

HEIGHT, GAP = 0.44, 0.15
SCAN_TINT = '#D5EFE6'


def kernel(module):
    return '×'.join(str(side) for side in module.kernel_size)


def depthwise(module):
    return 'dw ' if module.groups > 1 else ''


def title(sheet, origin, text):
    sheet.text(origin[0], origin[1] + 0.42, text, 9.5, True, 'left')


def draw_evss(sheet, trace, name, origin, tint):
    """Draws the two branches of a block, and the sum with its input."""
    left, top = origin
    middle, bottom = top - 0.36, top - 0.72
    block = trace.module(name)
    kinds = [type(part).__name__ for part in block.modules()]
    shared = 'shared' if kinds.count('SqueezeExcite') == 1 else ''
    title(sheet, origin, f'EVSS block ({trace.shape(name)[-1]} channels)')
    sheet.text(left, middle, 'x', 9, True)
    norm = sheet.box(
        *(left + 0.26, middle, 0.78, HEIGHT),
        [trace.kind(f'{name}.norm')],
    )
    x = norm.right + 2 * GAP
    mixer = sheet.box(
        *(x, top, 0.9, HEIGHT),
        [trace.kind(f'{name}.mixer'), f'step {block.mixer.step_size}'],
        SCAN_TINT,
    )
    branch = block.conv_branch
    convs = sheet.box(
        *(x, bottom, 0.9, HEIGHT),
        [
            f'{kernel(branch[0])} {depthwise(branch[0])}conv',
            f'{kernel(branch[3])} conv',
        ],
        tint,
    )
    fork = norm.right + GAP
    sheet.line((norm.right, middle), (fork, middle))
    ends = []
    for box in (mixer, convs):
        sheet.arrow((fork, middle), (fork, box.middle), (x, box.middle))
        se = sheet.box(box.right + GAP, box.middle, 0.5, HEIGHT, ['SE'])
        sheet.arrow((box.right, box.middle), (se.left, se.middle))
        ends.append(se)
    sheet.text(ends[0].left + 0.25, middle, shared, 8)
    plus = ends[0].right + GAP + 0.08
    for se, way in zip(ends, (1, -1), strict=True):
        sheet.arrow(
            (se.right, se.middle),
            (plus, se.middle),
            (plus, middle + way * SUM_RADIUS),
        )
    last = plus + 0.36
    sheet.arrow((left + 0.07, middle), (norm.left, middle))
    skip = (left + 0.15, bottom - 0.34)
    sheet.arrow(
        (skip[0], middle),
        skip,
        (last, skip[1]),
        (last, middle - SUM_RADIUS),
    )
    sheet.arrow((plus + SUM_RADIUS, middle), (last - SUM_RADIUS, middle))
    sheet.arrow((last + SUM_RADIUS, middle), (last + 0.24, middle))
    sheet.sign(plus, middle, '+')
    sheet.sign(last, middle, '+')


def draw_inverted_residual(sheet, trace, name, origin, tint):
    """Draws the chain of a block, and the sum with its input."""
    left, top = origin
    middle = top - 0.36
    block = trace.module(name)
    title(sheet, origin, f'InRes block ({trace.shape(name)[-1]} channels)')
    sheet.text(left, middle, 'x', 9, True)
    chain = []
    for part in ('conv_pw', 'conv_dw', 'se', 'conv_pw2'):
        if part == 'se':
            squeezed = trace.width(f'{name}.se.conv_reduce')
            chain.append((['SE', f'{squeezed}'], 0.42, 'white'))
            continue
        conv = getattr(block, part)[0]
        label = f'{kernel(conv)} {depthwise(conv)}conv'
        out = trace.width(f'{name}.{part}.0')
        wide = 0.9 if depthwise(conv) else 0.68
        chain.append(([label, f'{out}'], wide, tint))
    x, before = left + 0.26, left + 0.07
    for lines, width, colour in chain:
        box = sheet.box(x, middle, width, HEIGHT, lines, colour)
        sheet.arrow((before, middle), (box.left, middle))
        before, x = box.right, box.right + GAP
    last = before + 0.27
    sheet.arrow((before, middle), (last - SUM_RADIUS, middle))
    skip = (left + 0.15, top - 1.06)
    sheet.arrow(
        (skip[0], middle),
        skip,
        (last, skip[1]),
        (last, middle - SUM_RADIUS),
    )
    sheet.arrow((last + SUM_RADIUS, middle), (last + 0.24, middle))
    sheet.sign(last, middle, '+')


def draw_es2d(sheet, trace, block, origin):
    """Draws the mixer; the groups are those that `atrous_scan` makes."""
    import torch

    from evmamba_mm.ops import atrous_scan

    left, top = origin
    gate_y = top - 0.75
    name = f'{block}.mixer'
    mixer = trace.module(name)
    batch, height, width, _ = trace.shape(block)
    inner = trace.width(f'{name}.conv2d')
    u = torch.zeros(batch, height, width, inner)
    groups, length = atrous_scan(u, mixer.step_size).shape[1::2]
    states = mixer.A_logs.shape[-1]
    kind = trace.kind(name)
    title(sheet, origin, f'{kind} ({height} × {width} map)')
    conv = mixer.conv2d
    sheet.text(left, top, 'x', 9, True)
    chain = [
        (['linear', f'{trace.width(f"{name}.in_proj")}'], 0.62, 'white'),
        (
            [f'{kernel(conv)} {depthwise(conv)}conv', f'{inner}, SiLU'],
            0.92,
            'white',
        ),
        (
            ['skip-sample', f'{groups} × {length} cells'],
            1.08,
            SCAN_TINT,
        ),
        (['selective scan', f'{states} states'], 1.08, SCAN_TINT),
        (['regroup', f'{height} × {width}'], 0.78, SCAN_TINT),
        ([trace.kind(f'{name}.out_norm'), f'{inner}'], 0.8, 'white'),
    ]
    x, before, boxes = left + 0.26, left + 0.07, []
    for lines, wide, colour in chain:
        box = sheet.box(x, top, wide, HEIGHT, lines, colour)
        sheet.arrow((before, top), (box.left, top))
        before, x = box.right, box.right + GAP
        boxes.append(box)
    times = before + 0.27
    sheet.arrow((before, top), (times - SUM_RADIUS, top))
    out = sheet.box(
        *(times + SUM_RADIUS + GAP, top, 0.62, HEIGHT),
        ['linear', f'{trace.width(f"{name}.out_proj")}'],
    )
    sheet.arrow((times + SUM_RADIUS, top), (out.left, top))
    sheet.arrow((out.right, top), (out.right + 0.2, top))
    fork = boxes[0].right + GAP / 2
    silu = sheet.box(boxes[3].left, gate_y, 0.7, 0.3, ['SiLU'])
    sheet.arrow((fork, top), (fork, gate_y), (silu.left, gate_y))
    sheet.text((fork + silu.left) / 2, gate_y + 0.1, f'gate, {inner}')
    sheet.arrow(
        (silu.right, gate_y), (times, gate_y), (times, top - SUM_RADIUS)
    )
    sheet.sign(times, top, '×')
