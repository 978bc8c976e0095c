"""What trainings reached, as files: a row a score, and the log's lines."""

import json
import math
import platform
import shlex
from pathlib import Path

from evmamba_mm.csv_files import read_rows, write_rows
from evmamba_mm.file_locks import alone
from evmamba_mm.weight_files import read_weights
from evmamba_mm.whole_files import written_whole

from .trainings import last_checkpoint

COLUMNS = (
    *('row', 'seed', 'metric', 'value', 'epochs', 'seconds', 'side_by_side'),
    *('device', 'torch', 'commit', 'command'),
)
# What is kept of a line of the log.
KEPT = ('step', 'epoch', 'loss', 'grad_norm')
LOSS_SCALE = 'loss scale'


def read(path):
    """Rows of a file of scores, none if it is not there.

    Raises:
        ValueError: If it is no such file.
    """
    if not path.is_file():
        return []
    return read_rows(path, COLUMNS, ('seed', 'value'))


def json_lines(path):
    """A file of JSON, a line an object.

    Raises:
        ValueError: If it is none.
    """
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except ValueError as error:
        raise ValueError(f'{str(path)!r} is damaged: {error}') from error


def log_lines(folder):
    """What mmengine logged in the newest training of a work folder."""
    logs = sorted(folder.glob('*/vis_data/scalars.json'))
    return json_lines(logs[-1]) if logs else []


def loss_scale(folder):
    """The scale of the loss at the end of a training in fp16, as a score."""
    try:
        path = last_checkpoint(folder)
    except ValueError:
        return {}
    scaler = read_weights(path).get('optimizer', {}).get('loss_scaler')
    return {LOSS_SCALE: scaler['scale']} if scaler else {}


def is_score(name):
    return '/' in name or name in ('mIoU', 'mAcc', 'aAcc')


def tested(folder):
    """Scores that tools/test.py wrote below its newest work folder."""
    files = sorted(folder.glob('*/*.json'))
    if not files:
        return {}
    found = json.loads(files[-1].read_text())
    return {name: value for name, value in found.items() if is_score(name)}


def last_scores(lines):
    """Scores of the last validation."""
    found = {}
    for line in lines:
        scores = {k: v for k, v in line.items() if is_score(k)}
        if scores and 'loss' not in line:
            found = scores
    return found


class Scores:
    """The files of scores, one for each folder of configs.

    Args:
        folder: Where they lie.
        commit: Of the code that is trained with.
    """

    def __init__(self, folder: Path, commit: str) -> None:
        self.folder = folder
        self.commit = commit

    def _file(self, training):
        return self.folder / f'{training.task}.csv'

    def _rows(self, training):
        wanted = training.row, str(training.seed)
        return [
            row
            for row in read(self._file(training))
            if (row['row'], row['seed']) == wanted
        ]

    def __contains__(self, training) -> bool:
        return bool(self._rows(training))

    def shown(self, training) -> str:
        """Its scores on a line."""
        return ', '.join(
            f'{row["metric"]} {row["value"]}' for row in self._rows(training)
        )

    def store(self, training, root, seconds, side_by_side) -> None:
        """Put what a training reached in the place of what is there of it.

        Raises:
            ValueError: If it left no finite score.
        """
        folder = training.work_dir(root)
        lines = log_lines(folder)
        found = last_scores(lines)
        for name, command in training.tests(root).items():
            tests = Path(command[command.index('--work-dir') + 1])
            further = tested(tests) or {'mIoU': math.nan}
            found |= {f'{k}, {name}': v for k, v in further.items()}
        if not found or not all(map(math.isfinite, found.values())):
            raise ValueError(f'{folder} holds no finite scores')
        found |= loss_scale(folder)
        new = [
            dict(
                row=training.row,
                seed=training.seed,
                metric=metric,
                value=round(value, 4),
                epochs=max(line.get('epoch', 0) for line in lines) or '',
                seconds=round(seconds, 1),
                side_by_side=side_by_side,
                device=device_name(),
                torch=torch_version(),
                commit=self.commit,
                command=shlex.join(training.command(root)),
            )
            for metric, value in found.items()
        ]
        path, own = self._file(training), (training.row, str(training.seed))
        with alone(path):
            kept = [
                row for row in read(path) if (row['row'], row['seed']) != own
            ]
            cells = ([row[name] for name in COLUMNS] for row in [*kept, *new])
            write_rows(path, COLUMNS, cells)
        self._store_curve(training, lines)

    def _store_curve(self, training, lines):
        name = f'{training.task}_{training.row}_{training.seed}.json'
        kept = [
            {
                key: round(value, 5)
                for key, value in line.items()
                if key in KEPT or is_score(key)
            }
            for line in lines
        ]
        with written_whole(self.folder / 'curves' / name) as part:
            part.write_text(
                ''.join(f'{json.dumps(line)}\n' for line in kept),
                encoding='utf-8',
            )


def device_name():
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return platform.processor() or platform.machine()


def torch_version():
    import torch

    return torch.__version__
