"""The released weights: where they are, and their translation."""

import re
from decimal import Decimal
from pathlib import Path

from writing import paper

CATALOGUE = paper.RESULTS / 'released_weights.csv'
FOLDER = Path('checkpoints')


def entry_of_config(config):
    """The line of the catalogue about a config's weights, or None."""
    for entry in paper.read_csv(CATALOGUE):
        if entry['config'] == config:
            return entry
    return None


def entry_of_checkpoint(path):
    """The line about weights that the configs name by this path, or None."""
    match = re.fullmatch(r'evmamba-(\w+)_in1k\.pth', Path(path).name)
    for entry in paper.read_csv(CATALOGUE):
        if match and arch_of(entry) == match[1]:
            return entry
    return None


def arch_of(entry):
    return re.match(r'evmamba-(\w+?)_', Path(entry['config']).name)[1]


def wants_average(entry, printed):
    """Whether the averaged weights are nearer to the paper's number."""
    raw, ema = Decimal(entry['top1_raw']), Decimal(entry['top1_ema'])
    return abs(ema - printed) < abs(raw - printed)


def translated_path(entry, ema):
    average = '-ema' if ema else ''
    return FOLDER / f'evmamba-{arch_of(entry)}{average}_in1k.pth'


def source_of(entry):
    """Where the released file is looked for."""
    return FOLDER / entry['file']


def by_hand(entry):
    """How to get a released file that is to be downloaded by hand."""
    return (
        f'download the weights from {entry["page"]} and put the file at '
        f'{source_of(entry)}'
    )


def obtain(entry, target, ema):
    """Fetches and translates weights to `target`, if they are not there.

    Raises:
        ValueError: If they are not there and cannot be fetched, are other
            than the catalogue says, or cannot be translated.
    """
    if target.is_file():
        return
    from evmamba_mm.apis.convert import convert_checkpoint
    from evmamba_mm.apis.fetch import check_sum, download

    source = source_of(entry)
    if not source.is_file():
        if not entry['url']:
            raise ValueError(
                f'there is no file {source}, and the address of the released '
                f'file is not known: {by_hand(entry)}, then run this again'
            )
        print(f'fetching {entry["url"]}', flush=True)
        download(entry['url'], source)
    found = check_sum(source, entry['sha256'])
    if not entry['sha256']:
        print(f'{source}: sha256 {found}, with nothing to compare it to')
    convert_checkpoint(source, target, ema=ema, arch=arch_of(entry))
    print(f'{target}: translated from {source}', flush=True)


def check_origin(entry, path, ema):
    """Refuses weights that are not the release's, to be tested as such.

    Raises:
        ValueError: If the file was not translated from the released one.
    """
    from evmamba_mm.weight_files import read_weights

    meta = read_weights(path).get('meta', {})
    if (meta.get('source'), meta.get('ema')) == (entry['file'], ema):
        return
    raise ValueError(
        f'{path} was not translated from {entry["file"]} by '
        'tools/model_converters/convert_checkpoint.py'
        + (' --ema' if ema else '')
        + ': give it by --checkpoint, or move it away'
    )
