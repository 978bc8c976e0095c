"""Tables in Markdown files, between `<!-- table:NAME -->` markers.

The end of a table is `<!-- /table:NAME -->`. A marker begins its line.
"""

import json
import os
import re
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

from evmamba_mm import ARCHS

from . import costs, evidence
from .paper import (
    ABLATIONS,
    COMPUTED,
    RELIABILITY,
    ROOT,
    TABLES,
    read_csv,
    read_table,
)
from .zoo import FETCHER, RELEASED

MARKERS = re.compile(
    r'^<!-- table:(?P<name>[\w-]+) -->\n.*?^<!-- /table:(?P=name) -->\n?',
    re.DOTALL | re.MULTILINE,
)
ANY_MARKER = re.compile(r'^<!-- /?table:[\w-]+ -->', re.MULTILINE)
HEADS = {
    'params_m': 'params, M',
    'flops_g': 'FLOPs, G',
    'top1': 'top-1',
    'ap': 'AP',
    'ap50': 'AP50',
    'ap75': 'AP75',
    'ap_s': 'AP small',
    'ap_m': 'AP medium',
    'ap_l': 'AP large',
    'miou_ss': 'mIoU',
    'miou_ms': 'mIoU, multi-scale',
    'box_ap': 'box AP',
    'box_ap50': 'box AP50',
    'box_ap75': 'box AP75',
    'mask_ap': 'mask AP',
    'mask_ap50': 'mask AP50',
    'mask_ap75': 'mask AP75',
    'es2d': 'ES2D',
    'inres': 'InRes',
}
MEASURED = COMPUTED.parent / 'benchmark'
SPEEDS = MEASURED / 'h200_peers.csv'
TOP1 = MEASURED / 'top1.csv'
PHASES = ('inference', 'training')
SETTING = ('batch', 'size', 'dtype', 'device', 'torch')
# The paper's references to its bibliography say nothing here.
HIDDEN = ('reference',)
OURS = 'EfficientVMamba'


def rounded(number, digits, places):
    """Shows '6493660' as '6.49' for digits=6 and places=2."""
    unit = Decimal(1).scaleb(-places)
    exact = Decimal(number).scaleb(-digits)
    return f'{exact.quantize(unit, ROUND_HALF_UP)}'


def table(heads, rows):
    lines = [heads, ['---'] * len(heads), *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def link(path, folder):
    """Links a file of the repository from a page in `folder`."""
    target = os.path.relpath(ROOT / path, folder)
    return f'[config]({target.replace(os.sep, "/")})'


def own_count(row):
    """Returns our params and FLOPs, a star where the paper's differ."""
    cells = []
    for name, digits in (('params', 6), ('flops', 9)):
        number = row[name]
        if name == 'params' and row['table'] == 'table3':
            number = row['trainable_params']
        # The paper prints a digit more of what is small.
        places = 3 if number and len(number) <= digits + 1 else 2
        shown = rounded(number, digits, places) if number else ''
        star = '\\*' if row[f'{name}_verdict'] == 'differs' else ''
        cells.append(shown + star)
    return cells


def paper_table(name, folder):
    """One table of the paper: its cells, then ours, then the notes."""
    rows = read_table(name)
    computed = read_csv(COMPUTED / f'{name}.csv')
    columns = [column for column in rows[0].printed if column not in HIDDEN]
    heads = [HEADS.get(c, c.replace('_', ' ')) for c in columns]
    heads += ['params counted, M', 'FLOPs counted, G', '']
    body, notes = [], []
    for row, count in zip(rows, computed, strict=True):
        cells = [row.printed[column] for column in columns]
        cells += own_count(dict(count, table=name))
        cells.append(link(row.config, folder) if row.config else '')
        body.append(cells)
        if row.config and count['why']:
            notes.append(
                f'- Row {row.number}, {count["model"]}: {count["why"]}'
            )
    text = table(heads, body)
    return f'{text}\n\n' + '\n'.join(notes) if notes else text


def variants(folder):
    """The published sizes, as the package builds them."""
    rows = []
    for count in read_csv(COMPUTED / 'table1.csv'):
        arch = count['config'].partition('evmamba-')[2].partition('_')[0]
        sizes = ARCHS[arch]
        rows.append(
            [
                f'`{arch}`',
                ', '.join(map(str, sizes.channels)),
                ', '.join(map(str, sizes.depths)),
                f'{int(count["params"]):,}',
                f'{rounded(count["flops"], 9, 3)} G',
            ]
        )
    heads = ['`arch`', 'channels', 'depths', 'parameters', 'FLOPs at 224x224']
    return table(heads, rows)


def results(folder):
    """The paper's first metric of our rows, a line a task, and our counts."""
    metrics = {
        'table2': ('ImageNet, top-1', 'top1'),
        'table3': ('COCO, RetinaNet 1x, AP', 'ap'),
        'table7': ('COCO, Mask R-CNN {schedule}, box AP', 'box_ap'),
        'table4': ('ADE20K, UperNet, mIoU', 'miou_ss'),
    }
    lines = {}
    for name, (task, column) in metrics.items():
        for row, count in zip(
            read_table(name), read_csv(COMPUTED / f'{name}.csv'), strict=True
        ):
            model = row.printed['model']
            if not model.startswith(OURS):
                continue
            line = task.format(schedule=row.printed.get('schedule'))
            config = os.path.relpath(ROOT / row.config, folder)
            params = rounded(count['params'], 6, 1)
            cell = f'[{row.printed[column]}]({config}), {params} M'
            lines.setdefault(line, {})[model] = cell
    models = list(next(iter(lines.values())))
    body = [[line, *map(cells.get, models)] for line, cells in lines.items()]
    return table(['task', *models], body)


def ablations(folder):
    """The configs of the ablations, and the rows that they stand for."""
    body = [
        [f'`{Path(row["config"]).name}`', row['row'], row['what']]
        for row in read_csv(ABLATIONS)
    ]
    return table(['config', 'Table', 'blocks'], body)


def weights(folder):
    """The pages of the released weights, and what becomes of the files."""
    body = []
    for row in read_csv(RELEASED):
        arch = row['config'].partition('evmamba-')[2].partition('_')[0]
        body.append(
            [
                f'`{arch}`',
                f'[{row["page"].rpartition("/")[2]}]({row["page"]})',
                f'{row["top1_raw"]} / {row["top1_ema"]}',
                f'`{row["sha256"]}`' if row['sha256'] else 'not seen',
                f'`python {FETCHER} {arch}`',
                link(row['config'], folder),
            ]
        )
    heads = ['`arch`', 'page', 'top-1 in its log, raw / EMA', 'SHA-256']
    return table([*heads, 'command', ''], body)


def reliability(folder):
    """What was tried to break things, of every file of such runs."""
    rows = [
        row
        for path in sorted(RELIABILITY.glob('*.csv'))
        for row in read_csv(path)
    ]
    for path in sorted(RELIABILITY.glob('*.json')):
        row = json.loads(path.read_text())
        what = path.stem.partition('_')[0]
        rows.append(row | dict(what=f'{what}: {row["wanted"]}'))
    heads = ['what', 'tried', 'held', 'command']
    body = [
        [
            row['what'],
            str(row['tried']),
            str(row['held']),
            f'`{row["command"]}`',
        ]
        for row in rows
    ]
    return table(heads, body)


def speed(folder):
    """Each model at its fastest, in inference and in training.

    Raises:
        ValueError: If nothing is measured yet, or several settings are.
    """
    from evmamba_mm.benchmark import rows

    names = {row['model']: row for row in read_csv(TOP1)}
    fastest = rows.best(rows.read(SPEEDS))
    if len({tuple(row[k] for k in SETTING) for row in fastest}) != 1:
        raise ValueError(
            f'{SPEEDS.name} must have one of each of {", ".join(SETTING)}'
        )
    models = {}
    for row in fastest:
        models.setdefault(row['model'], {})[row['phase']] = row

    def slowness(model):
        row = models[model].get('inference')
        return -float(row['images_per_s']) if row else 0

    body = []
    for model in sorted(models, key=slowness):
        known = names.get(model, dict(name=model, top1=''))
        cells = [known['name'], known['top1']]
        for phase in PHASES:
            row = models[model].get(phase)
            cells.append(rows.shown(row, 'images_per_s'))
            cells.append(row['mode'] if row else '')
        body.append(cells)
    heads = ['model', 'top-1']
    for phase in PHASES:
        heads += [f'{phase}, images/s', 'mode']
    return table(heads, body)


def render(name, folder):
    """Returns the table of a marker for a page in `folder`."""
    own = dict(variants=variants, results=results, weights=weights)
    own |= dict(ablations=ablations, reliability=reliability, speed=speed)
    own |= {f'evidence-{key}': make for key, make in evidence.TABLES.items()}
    own |= {'costs': costs.costs, 'cost-checks': costs.cost_checks}
    if name in TABLES:
        return paper_table(name, folder)
    if name in own:
        return own[name](folder)
    raise ValueError(
        f'there is no table {name!r}; legal are {", ".join([*TABLES, *own])}'
    )


def fill(text, folder):
    """Returns the text of a page with its tables updated.

    Raises:
        ValueError: If a marker has no other end or names no table.
    """

    def block(match):
        name = match['name']
        body = render(name, folder)
        return f'<!-- table:{name} -->\n{body}\n<!-- /table:{name} -->\n'

    paired = len(MARKERS.findall(text)) * 2
    markers = ANY_MARKER.findall(text)
    if paired != len(markers):
        raise ValueError(
            'each <!-- table:NAME --> needs its <!-- /table:NAME -->, got '
            f'{", ".join(markers)}'
        )
    return MARKERS.sub(block, text)
