"""Tables of what the paper's trainings cost, and of how far that is right."""

from pathlib import Path

from evidence import files
from reproducing import cost

from . import evidence
from .paper import read_table

# Its iterations: 15 epochs of 97 batches, 256 images of 128x128 each.
TIN50_ITERATIONS = 15 * 97
TIN50_SHARE = 256 / cost.MEASURED_BATCH * (128 / 224) ** 2
# The iteration as it was when they were trained.
THEN = 'h200_iteration_before'
TIN50_ROWS = ('tiny', 'ss2d', 'es2d', 'evss', 'early-inres', 'inres')


def costs(folder):
    """Each training of the paper's own models, once."""
    from .markdown import OURS, table

    body, seen = [], set()
    for number in range(2, 9):
        for row in read_table(f'table{number}'):
            own = OURS in row.printed['model'] or 'ablations' in row.config
            if not own or row.config in seen:
                continue
            seen.add(row.config)
            cells = [str(number), f'`{Path(row.config).stem}`']
            found = cost.cost_of(row.config)
            if found is None:
                body.append([*cells, *[''] * 4, 'not measured'])
                continue
            body.append(
                [
                    *cells,
                    f'{found.iterations:,}',
                    f'{found.ms:.1f}',
                    cost.shown(found.hours),
                    cost.shown(found.hours / cost.CARDS),
                    found.basis,
                ]
            )
    heads = ['table', 'config', 'iterations of one GPU', 'ms', 'GPU hours']
    return table([*heads, f'hours on {cost.CARDS}', 'basis'], body)


def checks():
    """Yields what was measured and not used, and what the model says of it.

    Each is (what, unit, measured, predicted).
    """
    for arch, *ends in (('base', 'tiny', 'small'), ('small', 'tiny', 'base')):
        line = cost.step_on_line(f'evmamba-{arch}', ends)
        what = f'step of {arch}, by FLOPs from {" and ".join(ends)}'
        yield what, 'ms', cost.step(arch), line
    for arch in ('tiny', 'base'):
        model = f'EfficientVMamba:{arch}'
        found = cost.ms_of('h200_peers', model, 'graph', 'training')
        yield f'step of {arch}, another run', 'ms', found, cost.step(arch)
    for arch, batch in (('small', 128), ('base', 64)):
        model = f'evmamba-{arch}'
        measured = cost.timed(f'{model}_16xb{batch}-amp-300e_in1k')
        predicted, _ = cost.classifier(model, arch, batch)
        yield f'iteration of {arch}', 'ms', measured, predicted
    scores = files.scores(evidence.FOLDER, 'tin50')
    for row in TIN50_ROWS:
        measured = evidence.gpu_seconds(scores, row)
        if measured is None:
            continue
        model = 'evmamba-tiny' + (f'-{row}' if row != 'tiny' else '')
        ms = cost.step_on_line(model) * TIN50_SHARE + cost.runner(THEN)
        what = f'Tiny-ImageNet, `{row}`, its share of the GPU'
        seconds = TIN50_ITERATIONS * ms / 1000
        yield what, 's', measured, seconds


def cost_checks(folder):
    """The checks with their ratios."""
    from .markdown import table

    body = [
        [
            what,
            f'{measured:.1f} {unit}',
            f'{predicted:.1f} {unit}',
            f'{measured / predicted:.2f}',
        ]
        for what, unit, measured, predicted in checks()
    ]
    return table(['', 'measured', 'predicted', 'ratio'], body)
