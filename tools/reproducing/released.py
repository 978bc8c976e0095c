"""The released weights: where they are, and their translation."""

import hashlib
import re
import urllib.request
from decimal import Decimal
from pathlib import Path

from counting import paper

CATALOGUE = paper.ROOT / 'results' / 'released_weights.csv'
FOLDER = Path('checkpoints')
TIMEOUT_SECONDS = 60
CHUNK = 1 << 20


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
    from convert_checkpoint import convert

    source = source_of(entry)
    if not source.is_file():
        if not entry['url']:
            raise ValueError(
                f'there is no file {source}, and the address of the released '
                f'file is not known: {by_hand(entry)}, then run this again'
            )
        fetch(entry['url'], source)
    check_sum(source, entry['sha256'])
    convert(source, target, ema=ema, arch=arch_of(entry))
    print(f'{target}: translated from {source}', flush=True)


def check_origin(entry, path, ema):
    """Refuses weights that are not the release's, to be tested as such.

    Raises:
        ValueError: If the file was not translated from the released one.
    """
    import torch

    meta = torch.load(path, 'cpu', weights_only=True).get('meta', {})
    if (meta.get('source'), meta.get('ema')) == (entry['file'], ema):
        return
    raise ValueError(
        f'{path} was not translated from {entry["file"]} by '
        'tools/convert_checkpoint.py'
        + (' --ema' if ema else '')
        + ': give it by --checkpoint, or move it away'
    )


def fetch(url, target):
    print(f'fetching {url}', flush=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + '.part')
    try:
        with (
            urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer,
            part.open('wb') as file,
        ):
            while chunk := answer.read(CHUNK):
                file.write(chunk)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ValueError(
            f'the weights could not be fetched: {error}. Fetch {url} in '
            f'another way, put it at {target} and run this again'
        ) from error
    part.rename(target)


def check_sum(path, expected):
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    found = digest.hexdigest()
    if not expected:
        print(f'{path}: sha256 {found}, with nothing to compare it to')
    elif found != expected:
        raise ValueError(
            f'{path} has the sha256 {found}, and not {expected}: delete it '
            'and fetch it again'
        )
