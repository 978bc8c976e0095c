"""Broken files, given to each command."""

import gzip
import io
import pickle
import shutil
import zipfile

import torch
from torch import nn

from .lab import EPOCHS, same_training, training


def broken_files(lab, good):
    """Yields (name, content) of files that are no whole checkpoint."""

    def saved(value):
        file = io.BytesIO()
        torch.save(value, file)
        return file.getvalue()

    cut = lab.chance.randrange(1, len(good))
    garbled = bytearray(good)
    for _ in range(len(good) // 100):
        garbled[lab.chance.randrange(len(good))] ^= 0xFF
    changed = bytearray(good)
    changed[len(good) // 2] ^= 1
    header = (1000).to_bytes(8, 'little') + b'{"a": '
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, 'w') as file:
        file.writestr('readme.txt', 'weights')
    yield 'empty', b''
    yield 'truncated', good[:cut]
    yield 'without-its-end', good[:-30]
    yield 'garbled', bytes(garbled)
    yield 'one-bit-changed', bytes(changed)
    yield 'web-page', b'<!DOCTYPE html><html>Not found</html>'
    yield 'git-lfs', b'version https://git-lfs.github.com/spec/v1'
    yield 'text', b'weights of the model'
    yield 'noise', lab.chance.randbytes(1000)
    yield 'zip', archive.getvalue()
    yield 'gzip', gzip.compress(good[:1000])
    yield 'half-safetensors', header
    yield 'pickle', pickle.dumps(dict(state_dict={}))
    yield 'module', saved(nn.Linear(2, 2))
    yield 'list', saved([torch.ones(2)])
    yield 'none', saved(None)
    yield 'no-weights', saved(dict(meta={}, state_dict={}))


def give_broken_files(lab, tally, kinds=None):
    """Gives kinds of broken files, by default all, to every command."""
    good = (lab.folder / 'whole' / f'epoch_{EPOCHS}.pth').read_bytes()
    init = 'model.backbone.init_cfg'
    image = 'images/class0/0.png'
    row = 'evmamba-tiny_16xb128-amp-300e_in1k'
    for kind, content in broken_files(lab, good):
        if kinds is not None and kind not in kinds:
            continue
        name = f'{kind}.pth'
        (lab.folder / name).write_bytes(content)
        fresh = ('train.py', 'c.py', '--work-dir', 'fresh', '--cfg-options')
        commands = {
            'train.py --resume FILE': (
                *fresh[:-1],
                '--resume',
                name,
            ),
            'train.py, load_from': (*fresh, f'load_from={name}'),
            'train.py, init_cfg': (
                *fresh,
                f'{init}.type=Pretrained',
                f'{init}.checkpoint={name}',
            ),
            'test.py': ('test.py', 'c.py', name, '--work-dir', 'fresh'),
            'infer.py': ('infer.py', image, 'c.py', name),
            'convert_checkpoint.py': (
                'model_converters/convert_checkpoint.py',
                name,
                'out.pth',
            ),
        }
        outcomes = {key: lab.run(*args) for key, args in commands.items()}
        outcomes['reproduce.py --checkpoint'] = lab.run(
            'paper/reproduce.py',
            *('--table', 2, '--row', row, '--checkpoint', name),
            *('--data-root', 'imagenet', '--results', 'results'),
        )
        for command, ended in outcomes.items():
            tally.add(
                f'broken weights for {command}: an error in a line',
                ended.is_clear(name),
                f'{kind}: {ended.status} {ended.output[-400:]}',
            )
        resume_beside(lab, tally, kind, content)


def resume_beside(lab, tally, kind, content):
    """Breaks the newest checkpoint of a folder, or what names it."""
    work = f'beside-{kind}'
    shutil.copytree(lab.folder / 'whole', lab.folder / work)
    (lab.folder / work / f'epoch_{EPOCHS}.pth').write_bytes(content)
    pointer = lab.folder / work / 'last_checkpoint'
    names = str(lab.folder / work / f'epoch_{EPOCHS}.pth')
    texts = [names, '', '\0\1', 'no/such/file.pth', str(lab.folder / names)]
    pointer.write_text(lab.chance.choice(texts))
    ended = lab.run(*training(work))
    held = (
        ended.status == 0
        and f'resuming from {work}/epoch_{EPOCHS - 1}.pth' in ended.output
        and same_training(lab.final('whole'), lab.final(work))
    )
    tally.add(
        'newest checkpoint broken, last_checkpoint as well: the one before '
        'is resumed',
        held,
        f'{kind}: {ended.status} {ended.output[-600:]}',
    )


def write_results(lab, tally):
    """Damages a file of results; kills processes that write to one."""
    table = lab.folder / 'results' / 'table2.csv'
    table.parent.mkdir(exist_ok=True)
    heads = 'row,model,metric,paper,measured,tolerance,verdict,images,'
    heads += 'of_images,weights,config,options'
    line = '1,m,top1,76.5,76.4,0.1,match,50000,50000,w.pth,c.py,'
    damaged = {
        'other-heads': 'a,b\n1,2\n',
        'half-a-line': f'{heads}\n{line}\n1,m,to',
        'garbled': f'{heads}\n\0\xff{line}\n',
        'no-number': f'{heads}\n{line.replace("50000", "many")}\n',
        'binary': '\0\1\2',
    }
    (lab.folder / 'good.pth').write_bytes(
        (lab.folder / 'whole' / f'epoch_{EPOCHS}.pth').read_bytes()
    )
    for kind, text in damaged.items():
        table.write_bytes(text.encode('latin-1'))
        ended = lab.run(
            'paper/reproduce.py',
            *('--table', 2, '--row', 'evmamba-tiny_16xb128-amp-300e_in1k'),
            *('--checkpoint', 'good.pth', '--data-root', 'imagenet'),
            *('--results', 'results'),
        )
        tally.add(
            'a damaged file of results: refused in a line before testing',
            ended.is_clear('table2.csv') and '$ ' not in ended.output,
            f'{kind}: {ended.status} {ended.output[-400:]}',
        )
    table.unlink()
