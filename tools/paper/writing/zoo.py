"""The model zoo: metafile.yml of each folder of configs, and the index."""

import yaml

from evmamba_mm.analysis.models import quiet, read_config

from .paper import RESULTS, ROOT, TABLES, read_csv, read_table

CONFIGS = ROOT / 'configs'
INDEX = ROOT / 'model-index.yml'
RELEASED = RESULTS / 'released_weights.csv'
CONVERTER = 'tools/model_converters/convert_checkpoint.py'
FETCHER = 'tools/model_converters/fetch_weights.py'
REPOSITORY = 'https://github.com/TerryPei/EfficientVMamba'
# Not of the paper: nothing in the tables is counted of them.
DEMO = 'demo'
# Not of the zoo: short trainings that compare, of which no weights are kept.
EVIDENCE = 'evidence'
PAPERS = {
    'EfficientVMamba': 'https://arxiv.org/abs/2403.09977',
    'VMamba': 'https://arxiv.org/abs/2401.10166',
    'Vim': 'https://arxiv.org/abs/2401.09417',
}
DATASETS = {
    'in1k': 'ImageNet-1k',
    'coco': 'COCO',
    'ade20k': 'ADE20K',
    'cells': 'blood cells of BCCD_Dataset',
    'nuclei': 'nuclei of the 2018 Data Science Bowl',
    'tin50': 'Tiny-ImageNet, every fourth class',
}
# The metrics of a table's columns, and the task that they measure.
METRICS = {
    'table2': {'Image Classification': {'top1': 'Top 1 Accuracy'}},
    'table3': {'Object Detection': {'ap': 'box AP'}},
    'table4': {
        'Semantic Segmentation': {
            'miou_ss': 'mIoU',
            'miou_ms': 'mIoU(ms+flip)',
        }
    },
    'table7': {
        'Object Detection': {'box_ap': 'box AP'},
        'Instance Segmentation': {'mask_ap': 'mask AP'},
    },
}
for _ablation in ('table5', 'table6', 'table8'):
    METRICS[_ablation] = METRICS['table2']
HEADER = """\
# Written by tools/paper/tables.py from the configs and tools/paper/results/.
# FLOPs and Parameters are counted, Results are what the paper prints: none is
# of a run of these configs.
"""
WEIGHTS_HEADER = """\
# Weights: evmamba://SIZE is loaded by what imports evmamba_mm, which asks the
# page in Converted From for its file; mim cannot download it. No page was
# opened here, so the addresses of the files are not known.
"""


def runnable_configs():
    """Returns every config of the zoo, as a path below the root."""
    return sorted(
        path.relative_to(ROOT).as_posix()
        for path in CONFIGS.rglob('*.py')
        if not {'_base_', EVIDENCE} & set(path.parts)
    )


def counted_configs():
    return [c for c in runnable_configs() if c.split('/')[1] != DEMO]


def folders():
    return sorted({config.split('/')[1] for config in runnable_configs()})


def dataset_of(config):
    words = config.rpartition('_')[2].removesuffix('.py').split('-')
    if words[0] not in DATASETS:
        raise ValueError(
            f'{config}: the name must end with a data set, one of '
            f'{", ".join(DATASETS)}, got {words[0]!r}'
        )
    return DATASETS[words[0]]


def results_of(config):
    """Returns what the paper's tables say of a config, one entry a task."""
    metrics = {}
    for table in TABLES:
        for row in read_table(table):
            if row.config != config:
                continue
            for task, columns in METRICS.get(table, {}).items():
                found = {
                    name: float(row.printed[column])
                    for column, name in columns.items()
                    if row.printed[column]
                }
                metrics.setdefault(task, {}).update(found)
    dataset = dataset_of(config)
    return [
        {'Task': task, 'Dataset': dataset, 'Metrics': found}
        for task, found in metrics.items()
    ]


def backbone_of(config):
    with quiet():
        return read_config(ROOT / config).model.backbone.type


def weights_of(released):
    """Returns the page of released weights, and the file if it is known."""
    origin = {
        'Page': released['page'],
        'Code': REPOSITORY,
        'Converter': CONVERTER,
    }
    if not released['url']:
        size = released['page'].rpartition('-')[2].lower()
        return {'Weights': f'evmamba://{size}', 'Converted From': origin}
    return {
        'Weights': released['url'],
        'SHA256': released['sha256'] or None,
        'Converted From': origin,
    }


def model_entry(config, backbone, count, released):
    metadata = {'Training Data': dataset_of(config)}
    if count is not None:
        metadata['FLOPs'] = int(count['flops'])
        metadata['Parameters'] = int(count['params'])
    entry = {
        'Name': config.rpartition('/')[2].removesuffix('.py'),
        'In Collection': backbone,
        'Config': config,
        'Metadata': metadata,
    }
    results = results_of(config)
    if results:
        entry['Results'] = results
    # mmengine's inferencers read the key of each model.
    entry['Weights'] = None
    if released is not None:
        entry.update(weights_of(released))
    return entry


def collection_entry(name):
    entry = {'Name': name}
    if name in PAPERS:
        entry['Paper'] = PAPERS[name]
    if name == 'EfficientVMamba':
        entry['License'] = 'Apache-2.0'
    return entry


def metafile(folder, counts):
    """Returns the text of a folder's metafile.

    `counts` are the rows of configs.csv by config.
    """
    released = {row['config']: row for row in read_csv(RELEASED)}
    unknown = released.keys() - set(runnable_configs())
    if unknown:
        raise ValueError(
            f'{RELEASED.relative_to(ROOT)} names no config of ours: '
            f'{", ".join(sorted(unknown))}'
        )
    models = [
        model_entry(
            config,
            backbone_of(config),
            # What is demonstrated stands in no table.
            None if folder == DEMO else counts[config],
            released.get(config),
        )
        for config in runnable_configs()
        if config.split('/')[1] == folder
    ]
    names = dict.fromkeys(model['In Collection'] for model in models)
    content = {
        'Collections': [collection_entry(name) for name in sorted(names)],
        'Models': models,
    }
    header = HEADER
    if any('Converted From' in model for model in models):
        header += WEIGHTS_HEADER
    return header + yaml.safe_dump(content, sort_keys=False, width=1000)


def index():
    """Returns the text of model-index.yml."""
    content = {
        'Import': [f'configs/{folder}/metafile.yml' for folder in folders()]
    }
    return yaml.safe_dump(content, sort_keys=False)
