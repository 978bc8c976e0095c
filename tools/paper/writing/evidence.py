"""Tables of what trainings with several seeds reached."""

import statistics

from evidence.claims import difference, values_of

from .paper import RESULTS, read_csv

FOLDER = RESULTS / 'evidence'


def rows(folder):
    """Each row's top-1 over its seeds, beside the paper's on ImageNet."""
    from .markdown import table

    scores = read_csv(FOLDER / 'tin50.csv')
    body = []
    for row in read_csv(FOLDER / 'rows.csv'):
        values = list(values_of(scores, row['row']).values())
        if not values:
            continue
        spread = f' ± {statistics.stdev(values):.1f}' * (len(values) > 1)
        body.append(
            [
                row['name'],
                row['blocks'],
                f'{statistics.mean(values):.1f}{spread}',
                str(len(values)),
                row['paper'],
                f'`configs/evidence/tin50/{row["row"]}.py`',
            ]
        )
    heads = ['', 'blocks', 'top-1, here', 'seeds', 'top-1, ImageNet, paper']
    return table([*heads, 'config'], body)


def claims(folder):
    """Each claim of the paper, and what the trainings say of it."""
    from .markdown import table

    scores = read_csv(FOLDER / 'tin50.csv')
    paper = {row['row']: row['paper'] for row in read_csv(FOLDER / 'rows.csv')}
    body = []
    for row in read_csv(FOLDER / 'claims.csv'):
        found = difference(scores, row['better'], row['worse'])
        printed = float(paper[row['better']]) - float(paper[row['worse']])
        shown = '' if found.mean is None else f'{found.mean:+.1f}'
        if found.half is not None:
            shown += f' ± {found.half:.1f}'
        body.append(
            [
                row['claim'],
                f'{printed:+.1f} ({row["source"]})',
                shown,
                str(found.seeds),
                found.verdict,
            ]
        )
    heads = ['claim', 'paper, ImageNet', 'here', 'seeds', 'here it']
    return table(heads, body)
