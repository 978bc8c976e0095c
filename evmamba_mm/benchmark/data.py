"""Time of a training pipeline, by step, and of the batches it makes."""

import functools
import itertools
import statistics
import time
from collections import Counter
from pathlib import Path

import cv2
import torch
from mmengine.registry import DATASETS, FUNCTIONS, MODELS, DefaultScope

from ..config_files import read_config
from . import timing

# The training data's own pipeline.
OWN = 'config'
WHOLE = 'pipeline'
BATCH = 'data preprocessor'
# Images of one repeat.
IMAGES = 32


def pipeline_config(path, folder, pipeline=OWN):
    """A config, and the settings of its training data.

    Args:
        path: Config.
        folder: Where the data are, or None for the config's own.
        pipeline: A list of the config that takes the pipeline's place.

    Raises:
        ValueError: If the training data have no pipeline, or the config no
            such list.
    """
    config = read_config(path)
    settings = config.train_dataloader.dataset
    while 'pipeline' not in settings and 'dataset' in settings:
        settings = settings.dataset
    if 'pipeline' not in settings:
        raise ValueError(f'the training data of {path!r} have no pipeline')
    if pipeline != OWN:
        if not isinstance(config.get(pipeline), list):
            lists = [k for k in config if k.endswith('_pipeline')]
            raise ValueError(
                f'{path!r} has no pipeline {pipeline!r}; it has '
                f'{", ".join([OWN, *lists])}'
            )
        settings.pipeline = config[pipeline]
    if folder is not None and config.default_scope == 'mmpretrain':
        steps = settings.pipeline
        settings.clear()
        settings.update(type='CustomDataset', data_root=folder, pipeline=steps)
    elif folder is not None:
        settings.data_root = folder
    return config, settings


def step_names(pipeline):
    """Names of the steps; a number tells those of one type apart."""
    names, seen = [], Counter()
    for step in pipeline:
        seen[step['type']] += 1
        number = seen[step['type']]
        names.append(step['type'] + (f' {number}' if number > 1 else ''))
    return names


def phases(path, folder, pipeline=OWN):
    """Return what is measured of a config: the whole, its steps, a batch."""
    _, settings = pipeline_config(path, folder, pipeline)
    batch = [BATCH] if pipeline == OWN else []
    return (WHOLE, *step_names(settings.pipeline), *batch)


class Steps:
    """Times each step of a pipeline, on one thread, when first asked.

    It is the time that the thread computes: what a core is needed for, and
    neither a wait for a disk nor the time that others have the core.

    Args:
        settings: Config of a data set.
        repeats: Runs over `IMAGES` images that medians are taken of.
    """

    def __init__(self, settings, repeats):
        self.settings = settings
        self.repeats = repeats
        self.found = None

    def __call__(self, phase):
        """Time of an image in a step, or in all of them."""
        if self.found is None:
            threads = torch.get_num_threads(), cv2.getNumThreads()
            torch.set_num_threads(1)
            cv2.setNumThreads(1)
            try:
                self.found = self._measure()
            finally:
                torch.set_num_threads(threads[0])
                cv2.setNumThreads(threads[1])
        return timing.Measured(self.found[phase], None)

    def _measure(self):
        dataset = DATASETS.build(self.settings)
        count = len(dataset)
        # Spread over the data, which lie in the order of their classes.
        stride = max(1, count // (IMAGES * (self.repeats + 1)))
        numbers = iter(range(0, stride * IMAGES * (self.repeats + 1), stride))
        names = step_names(self.settings.pipeline)
        runs = []
        for _ in range(self.repeats + 1):
            sums = dict.fromkeys((WHOLE, *names), 0.0)
            for _ in range(IMAGES):
                self._run(dataset, next(numbers) % count, names, sums)
            runs.append(sums)
        # The first run warms up.
        return {
            name: statistics.median(run[name] for run in runs[1:])
            / IMAGES
            * 1e3
            for name in runs[0]
        }

    def _run(self, dataset, number, names, sums):
        item = dataset.get_data_info(number)
        for name, step in zip(names, dataset.pipeline.transforms, strict=True):
            start = time.thread_time()
            item = step(item)
            seconds = time.thread_time() - start
            sums[name] += seconds
            sums[WHOLE] += seconds
            if item is None:
                return


def collated(config, settings):
    """One batch of the config's data, as its loader would make it."""
    loader = config.train_dataloader
    dataset = DATASETS.build(settings)
    collate = loader.get('collate_fn', dict(type='pseudo_collate'))
    function = FUNCTIONS.get(collate['type'])
    numbers = [i % len(dataset) for i in range(loader.batch_size)]
    if collate['type'] == 'whole_batch':
        function = FUNCTIONS.get('stack_samples')
    return function([dataset[number] for number in numbers])


def preprocessing(config, settings, session):
    """Time of the data preprocessor with a batch, in training."""
    preprocessor = config.get('data_preprocessor')
    preprocessor = config.model.get('data_preprocessor') or preprocessor
    built = dict(preprocessor)
    if config.default_scope == 'mmpretrain':
        built.setdefault('type', 'ClsDataPreprocessor')
        built.setdefault('batch_augments', config.model.get('train_cfg'))
    module = MODELS.build(built).to(session.device)
    batch = collated(config, settings)
    return timing.measure(
        lambda _: module(dict(batch), True), session.device, session.repeats
    )


def run(session, paths, folder, pipelines):
    """Measures the steps and a batch of each config.

    Raises:
        ValueError: If a config has no such pipeline.
    """
    for path, pipeline in itertools.product(paths, pipelines):
        before = len(session.rows)
        run_one(session, path, folder, pipeline)
        print('\n'.join(shares(session.rows[before:])))


def run_one(session, path, folder, pipeline):
    """Measures one pipeline of a config."""
    config, settings = pipeline_config(path, folder, pipeline)
    stem = Path(path).stem
    with DefaultScope.overwrite_default_scope(config.default_scope):
        steps = Steps(settings, session.repeats)
        for phase in phases(path, folder, pipeline):
            if phase == BATCH:
                call = functools.partial(
                    preprocessing, config, settings, session
                )
                sizes = config.train_dataloader.batch_size, 'batch'
            else:
                call, sizes = functools.partial(steps, phase), (1, 'file')
            session.record(call, stem, pipeline, phase, *sizes, 'uint8')


def shares(rows):
    """Lines that say what part of an image's time each step takes."""
    times = {row.phase: row.ms for row in rows}
    whole = times.get(WHOLE)
    if whole is None:
        return
    yield f'{1e3 / whole:,.0f} images/s a core, of which'
    for phase, ms in times.items():
        if phase not in (WHOLE, BATCH):
            yield f'{ms / whole:6.1%} {phase}'
