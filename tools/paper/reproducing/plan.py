"""Plans the steps for a row, and prints or runs them."""

from decimal import Decimal
from pathlib import Path

from writing import paper

from . import commands, cost, data, measured, metrics, released, rows

# Overrides that change how fast a test is and not what it finds.
HARMLESS = ('num_workers', 'persistent_workers', 'pin_memory')


class Plan:
    """The steps for one row of the paper.

    Nothing is imported, fetched or written before the arguments are known to
    be good.
    """

    def __init__(self, args):
        self.args = args
        self.row = rows.find_row(args.table, args.row)
        self.metrics = metrics.choose(args.table, args.columns)
        self.dataset = data.DATASETS[args.table]
        self.root = data.root_of(self.dataset, args.data_root)
        self.split = 'train' if args.train else 'test'
        self.config = str(paper.ROOT / self.row.config)
        self.gpus = args.gpus or count_gpus()
        self.work_dir = args.work_dir / rows.stem_of(self.row)
        self.results = args.results / f'table{args.table}.csv'
        self.check_checkpoint()

    def check_checkpoint(self):
        given = self.args.checkpoint
        if given is None or '://' in given or Path(given).exists():
            return
        raise ValueError(f'--checkpoint: there is no file {given!r}')

    def read_checkpoint(self):
        """Refuses a broken file before anything is run."""
        from evmamba_mm.weight_files import read_weights

        given = self.args.checkpoint
        if given is not None and '://' not in given:
            read_weights(given)

    @property
    def options(self):
        own = data.config_options(self.dataset, self.root)
        return [*own, *self.args.cfg_options]

    @property
    def telling_options(self):
        """The user's overrides that may change a result."""
        return [
            option
            for option in self.args.cfg_options
            if option.partition('=')[0].rpartition('.')[2] not in HARMLESS
        ]

    def printed(self, column):
        return Decimal(self.row.printed[column])

    def needed_weights(self):
        """The released weights that are needed, each (entry, path, ema).

        Raises:
            ValueError: If the row is to be tested and nothing can be.
        """
        if self.args.checkpoint:
            return []
        if self.args.train:
            return [
                (released.entry_of_checkpoint(path), Path(path), False)
                for path in self.starting_files()
                if released.entry_of_checkpoint(path)
            ]
        entry = released.entry_of_config(self.row.config)
        if entry is None:
            raise ValueError(
                f'no weights of {self.row.config} were released: train it '
                'first with --train, or give --checkpoint FILE'
            )
        ema = released.wants_average(entry, self.printed('top1'))
        return [(entry, released.translated_path(entry, ema), ema)]

    def starting_files(self):
        """The files that the config's training starts from."""
        from evmamba_mm.cli import launch, weights

        cfg = read_config(self.config)
        cfg.merge_from_dict(launch.parse_options(self.args.cfg_options))
        for _, init_cfg in weights.pretrained_configs(cfg.model, 'model'):
            yield init_cfg['checkpoint']

    def scales_rate(self):
        """Whether the batch is another than the learning rate is meant for."""
        from evmamba_mm.cli import launch

        cfg = read_config(self.config)
        cfg.merge_from_dict(launch.parse_options(self.args.cfg_options))
        base = cfg.auto_scale_lr.base_batch_size
        return self.gpus * cfg.train_dataloader.batch_size != base

    def train_command(self):
        return commands.train_command(
            self.config,
            self.gpus,
            self.work_dir / 'train',
            self.scales_rate(),
            self.options,
        )

    def tests(self):
        """Yields the metrics of each test, and its command's arguments."""
        for multi_scale in (False, True):
            chosen = [m for m in self.metrics if m.multi_scale == multi_scale]
            if chosen:
                name = 'test-multi-scale' if multi_scale else 'test'
                yield chosen, self.work_dir / name, multi_scale

    def test_command(self, checkpoint, work_dir, multi_scale):
        return commands.test_command(
            self.config,
            checkpoint,
            self.gpus,
            work_dir,
            multi_scale,
            self.options,
        )

    def describe(self):
        """Says what would be done; returns 1 if something is missing."""
        print(f'table {self.args.table}, row {self.row.number}: {self.name}')
        complete = True
        try:
            data.check(self.dataset, self.root, self.split)
            images = data.count_images(self.dataset, self.root)
            print(
                f'data: {self.dataset.name} in {self.root}, {images} of '
                f'{self.dataset.images} validation images'
            )
        except ValueError as error:
            complete = False
            print(f'data: {error}')
        checkpoint = self.args.checkpoint
        try:
            for entry, path, _ in self.needed_weights():
                checkpoint = path
                found = self.describe_weights(entry, path)
                complete = found and complete
        except ValueError as error:
            print(f'weights: {error}')
            return 1
        if self.args.train:
            complete = self.describe_unknown() and complete
            print(cost.line_of(self.row.config, gpu_name()))
            print(commands.shown(self.train_command()))
            checkpoint = 'TRAINED'
        for chosen, work_dir, multi_scale in self.tests():
            command = self.test_command(checkpoint, work_dir, multi_scale)
            print(commands.shown(command))
            for metric in chosen:
                print(
                    f'  {metric.column}: {metric.key}, paper '
                    f'{self.printed(metric.column)} ± {self.tolerance(metric)}'
                )
        print(f'result: {self.results}')
        return 0 if complete else 1

    def describe_weights(self, entry, path):
        """Says where weights come from; false if the user has to act."""
        if path.is_file():
            print(f'weights: {path} is there')
            return True
        source = released.source_of(entry)
        needed = f'weights: {path} is not there; would be converted from'
        if source.is_file():
            print(f'{needed} {source}')
            return True
        if entry['url']:
            print(f'{needed} {source}, fetched from {entry["url"]}')
            return True
        print(f'{needed} {source}: {released.by_hand(entry)}')
        return False

    def describe_unknown(self):
        """Names starting weights that are of no release; true without any."""
        from evmamba_mm.cli import weights

        absent = [
            path
            for path in self.starting_files()
            if weights.is_missing(path)
            and not released.entry_of_checkpoint(path)
        ]
        for path in absent:
            print(f'weights: {path} is not there, and no release has it')
        return not absent

    @property
    def name(self):
        return f'{self.row.printed["model"]}, {self.row.config}'

    def tolerance(self, metric):
        tests_released = not (self.args.train or self.args.checkpoint)
        return (
            metrics.RELEASED_TOLERANCE if tests_released else metric.tolerance
        )

    def carry_out(self):
        """Does it all; returns 1 if a cell is outside of its tolerance."""
        print(f'table {self.args.table}, row {self.row.number}: {self.name}')
        data.check(self.dataset, self.root, self.split)
        measured.check(self.results)
        self.read_checkpoint()
        checkpoint = self.args.checkpoint
        for entry, path, ema in self.needed_weights():
            released.obtain(entry, path, ema)
            if not self.args.train:
                released.check_origin(entry, path, ema)
            checkpoint = path
        if self.args.train:
            print(cost.line_of(self.row.config, gpu_name()))
            commands.run(self.train_command())
            checkpoint = commands.trained_checkpoint(self.work_dir / 'train')
        lines = []
        for chosen, work_dir, multi_scale in self.tests():
            scores = commands.run_test(
                self.test_command(checkpoint, work_dir, multi_scale), work_dir
            )
            lines += [
                self.line(metric, scores, checkpoint) for metric in chosen
            ]
        # First, so that nothing measured is lost with the file.
        for line in lines:
            print(
                f'{line["metric"]}: measured {line["measured"]}, paper '
                f'{line["paper"]} ± {line["tolerance"]}: {line["verdict"]}',
                flush=True,
            )
        measured.write(self.results, lines)
        print(f'{self.results} written')
        outside = (metrics.ABOVE, metrics.BELOW)
        return int(any(line['verdict'] in outside for line in lines))

    def line(self, metric, scores, checkpoint):
        """One line of the file of results."""
        if metric.key not in scores:
            raise ValueError(
                f'the test reports no {metric.key}, but {", ".join(scores)}; '
                'mmdet leaves the scores out where a model detects nothing'
            )
        images = data.count_images(self.dataset, self.root)
        found = metrics.to_percent(metric, scores[metric.key])
        options = self.telling_options
        return dict(
            row=self.row.number,
            model=self.row.printed['model'],
            metric=metric.column,
            paper=self.printed(metric.column),
            measured=found,
            tolerance=self.tolerance(metric),
            verdict=metrics.verdict(
                found,
                self.printed(metric.column),
                self.tolerance(metric),
                images == self.dataset.images,
                options,
            ),
            images=images,
            of_images=self.dataset.images,
            weights=Path(checkpoint).name,
            config=self.row.config,
            options=' '.join(options),
        )


def count_gpus():
    import torch

    return torch.cuda.device_count() or 1


def gpu_name():
    import torch

    if not torch.cuda.is_available():
        return 'no GPU'
    return torch.cuda.get_device_name()


def read_config(path):
    # The package first: it mends what a toolbox would trip over.
    import evmamba_mm  # noqa: F401, I001
    from mmengine.config import Config

    return Config.fromfile(path)
