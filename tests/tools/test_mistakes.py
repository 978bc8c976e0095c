"""What a user can get wrong is told with what to do about it."""

import ast
import importlib.util
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from evmamba_mm.cli import checks, launch, missing, weights

from .test_train_test import TOOLS, load_tool, run

CONFIGS = TOOLS.parent / 'configs'


@pytest.fixture
def refusal(toy, monkeypatch):
    """Calls a tool until it refuses; returns what it says."""
    monkeypatch.chdir(toy)

    def refuse(tool, *arguments, config='toy.py'):
        module = load_tool(tool, monkeypatch)
        monkeypatch.setattr(sys, 'argv', [tool, config, *arguments])
        with pytest.raises(SystemExit) as stopped:
            module.prepare_config(module.parse_args())
        return str(stopped.value.code)

    return refuse


def assert_says(text, *parts):
    absent = [part for part in parts if part not in text]
    assert absent == [], text


def test_data_root_that_is_not_there(refusal):
    message = refusal(
        'train',
        '--cfg-options',
        'train_dataloader.dataset.data_root=nowhere',
        'val_dataloader.dataset.data_root=nowhere',
        'val_dataloader.dataset.data_prefix=val',
    )
    assert "train_dataloader.dataset.data_root: 'nowhere'" in message
    assert (
        '--cfg-options train_dataloader.dataset.data_root=PATH '
        'val_dataloader.dataset.data_root=PATH'
    ) in message
    assert 'test_dataloader' not in message


@pytest.mark.parametrize('key', ['ann_file', 'data_prefix'])
def test_part_of_the_data_that_is_not_there(key, refusal, toy):
    (toy / 'toy.pth').touch()
    message = refusal(
        'test',
        'toy.pth',
        '--cfg-options',
        f'test_dataloader.dataset.{key}=nowhere',
    )
    assert f"test_dataloader.dataset.{key}: 'images/nowhere'" in message
    assert 'data_root' not in message


def missing_keys(cfg, splits=('train', 'val')):
    from mmengine.config import Config

    with pytest.raises(FileNotFoundError) as error:
        checks.check_data(Config(cfg), splits)
    options = str(error.value).rpartition('--cfg-options ')[2]
    return [option.removesuffix('=PATH') for option in options.split()]


def test_every_dataset_and_evaluator_is_looked_at(monkeypatch, tmp_path):
    inner = dict(type='A', data_root=str(tmp_path), ann_file='none.json')
    cfg = dict(
        train_dataloader=dict(
            dataset=dict(
                type='RepeatDataset',
                dataset=dict(type='ConcatDataset', datasets=[inner, inner]),
            )
        ),
        train_cfg=dict(),
        val_dataloader=dict(dataset=dict(inner, data_prefix=dict(img='x'))),
        val_cfg=dict(),
        val_evaluator=[dict(type='M'), dict(type='N', ann_file='none.json')],
    )
    concat = 'train_dataloader.dataset.dataset.datasets'
    assert missing_keys(cfg) == [
        f'{concat}.0.ann_file',
        f'{concat}.1.ann_file',
        'val_dataloader.dataset.data_prefix.img',
        'val_dataloader.dataset.ann_file',
        'val_evaluator.1.ann_file',
    ]


@pytest.mark.parametrize(
    'dataset',
    [
        dict(type='A', data_root='s3://bucket/data', ann_file='a.json'),
        dict(type='A', data_root='far', backend_args=dict(backend='petrel')),
        dict(type='mmpretrain.CIFAR10', data_root='data/cifar10'),
        dict(type='A', data_root='unused', ann_file=__file__),
        dict(type='A', data_prefix=dict(img='', seg_map_path='no_labels')),
    ],
    ids=['remote', 'backend', 'download', 'absolute', 'labels'],
)
def test_data_that_may_be_elsewhere_are_not_refused(dataset, monkeypatch):
    from mmengine.config import Config

    cfg = Config(dict(test_dataloader=dict(dataset=dataset), test_cfg={}))
    checks.check_data(cfg, ['test'])


def test_annotation_that_names_a_missing_image(toy, warm_python):
    (toy / 'names.txt').write_text('class0/0.png 0\nclass1/none.png 1\n')
    key = 'train_dataloader.dataset'
    status, output = run(
        toy,
        *('train.py', 'toy.py', '--cfg-options'),
        *(f'{key}.ann_file={toy}/names.txt', 'train_dataloader.num_workers=1'),
        python=warm_python.path,
    )
    assert status != 0
    said = output.rpartition('FileNotFoundError: ')[2]
    assert_says(
        said,
        "there is no file 'images/class1/none.png'",
        f"{key}.data_root puts it in 'images/' and {key}.ann_file names it",
        f'--cfg-options {key}.data_root=FOLDER',
    )


def test_longest_folder_explains_a_missing_file(monkeypatch):
    from mmengine.config import Config

    prefix = dict(img_path='img/val', seg_map_path='ann/val')
    dataset = dict(type='A', data_root='data', data_prefix=prefix)
    cfg = Config(dict(val_dataloader=dict(dataset=dataset), val_cfg={}))
    message = missing.explain_missing(cfg, ['val'], 'data/ann/val/x.png')
    assert 'val_dataloader.dataset.data_prefix.seg_map_path puts' in message
    assert missing.explain_missing(cfg, ['val'], 'other/x.png') is None


@pytest.mark.parametrize(
    'key, meant',
    [
        ('optim_wraper', 'optim_wrapper'),
        ('train_dataloder', 'train_dataloader'),
        ('modle', 'model'),
        ('load_form', 'load_from'),
        ('custom_hook', 'custom_hooks'),
        ('visualiser', 'visualizer'),
        ('find_unused_parameter', 'find_unused_parameters'),
    ],
)
def test_misspelt_key_is_refused(key, meant, monkeypatch):
    with pytest.raises(ValueError, match=f"{key!r}.*did you mean '{meant}'"):
        checks.check_keys([key])


def test_misspelt_key_of_a_file_stops_the_tool(refusal, toy):
    text = (toy / 'toy.py').read_text()
    (toy / 'slip.py').write_text(text + '\noptim_wraper = dict()\n')
    message = refusal('train', config='slip.py')
    assert "error: the config has a key 'optim_wraper'" in message


def config_files():
    yield from CONFIGS.rglob('*.py')
    for host in ('mmdet', 'mmseg', 'mmpretrain'):
        found = importlib.util.find_spec(host)
        if found:
            folder = Path(found.origin).parent / '.mim' / 'configs'
            yield from folder.rglob('*.py')


def assigned_names(nodes):
    for node in nodes:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                yield from (
                    name.id
                    for name in ast.walk(target)
                    if isinstance(name, ast.Name)
                )
        elif isinstance(node, ast.For | ast.If | ast.With):
            yield from assigned_names(
                [*node.body, *getattr(node, 'orelse', [])]
            )


def test_no_config_of_the_hosts_or_ours_has_a_misspelt_key(monkeypatch):
    names = {}
    for file in config_files():
        for name in assigned_names(ast.parse(file.read_text()).body):
            names.setdefault(name, file)
    assert {'model', 'optim_wrapper', 'train_cfg'} <= set(names)
    known = checks.known_keys()
    checks.check_keys([*names, *known])
    # What the hosts' configs set at the top and mmengine reads is known.
    assert {'auto_scale_lr', 'sync_bn', 'tta_model', 'launcher'} <= known


def test_override_of_a_variable_names_where_it_went(refusal):
    message = refusal('train', '--cfg-options', 'pipeline.0.color_type=gray')
    assert_says(
        message,
        "'pipeline' is a variable of the config file",
        'train_dataloader.dataset.pipeline, val_dataloader.dataset.pipeline',
    )


def test_override_of_a_string_is_found_in_longer_ones(monkeypatch):
    from mmengine.config import Config

    dataset = dict(data_root='data/x/')
    cfg = Config(
        dict(
            data_root='data/x/',
            train_dataloader=dict(dataset=dataset),
            val_evaluator=dict(ann_file='data/x/a.json'),
        )
    )
    places = 'train_dataloader.dataset.data_root, val_evaluator.ann_file'
    with pytest.raises(ValueError, match=places):
        checks.check_overrides(cfg, {'data_root': 'data/y/'})
    checks.check_overrides(cfg, {'val_evaluator.ann_file': 'a', 'resume': 1})


def test_override_that_nothing_reads_is_refused(refusal):
    message = refusal('train', '--cfg-options', 'modl.backbone.arch=tiny')
    assert "no 'modl', and nothing reads it; did you mean 'model'?" in message


def test_mixed_precision_without_a_gpu_is_full_precision(monkeypatch, caplog):
    from mmengine.config import Config

    wrapper = dict(type='AmpOptimWrapper', dtype='bfloat16', loss_scale=8.0)
    cfg = Config(dict(optim_wrapper=wrapper))
    monkeypatch.setattr(checks, 'get_device', lambda: 'cuda')
    checks.choose_precision(cfg)
    assert cfg.optim_wrapper == wrapper
    monkeypatch.setattr(checks, 'get_device', lambda: 'cpu')
    checks.choose_precision(cfg)
    assert cfg.optim_wrapper == dict(type='OptimWrapper')
    assert 'training in fp32 instead' in caplog.text


def test_pretrained_weights_that_are_not_there(monkeypatch):
    from mmengine.config import Config

    cfg = Config.fromfile(
        CONFIGS / 'mmdet/mask-rcnn_evmamba-tiny_fpn_8xb2-amp-1x_coco.py'
    )
    cfg.model.backbone.init_cfg.checkpoint = 'nowhere/tiny.pth'
    with pytest.raises(FileNotFoundError) as error:
        weights.check_weight_files(cfg)
    assert_says(
        str(error.value),
        "model.backbone.init_cfg.checkpoint is 'nowhere/tiny.pth'",
        ' from https://huggingface.co/TerryPei/EfficientVMamba-Tiny:',
        'tools/model_converters/fetch_weights.py tiny nowhere/tiny.pth',
        'tools/model_converters/convert_checkpoint.py RELEASED '
        'nowhere/tiny.pth --arch tiny',
        '--cfg-options model.backbone.init_cfg.checkpoint=FILE',
        '--cfg-options model.backbone.init_cfg=None '
        'model.backbone.norm_eval=False',
    )


def test_load_from_that_is_not_there(refusal):
    message = refusal('train', '--cfg-options', 'load_from=none.pth')
    assert "load_from is 'none.pth', and there is no such file" in message


@pytest.fixture
def small_weights(tmp_path):
    """A checkpoint as a classifier of arch small would write it."""
    from evmamba_mm import EfficientVMamba

    state = EfficientVMamba('small').state_dict()
    path = tmp_path / 'small.pth'
    state = {f'backbone.{key}': value for key, value in state.items()}
    torch.save(dict(state_dict=state), path)
    return str(path)


@pytest.mark.parametrize('key', ['load_from', 'resume', 'checkpoint'])
def test_weights_of_another_arch_are_named(key, small_weights, monkeypatch):
    from evmamba_mm import EfficientVMamba

    detector = SimpleNamespace(backbone=EfficientVMamba('atto'))
    wrapped = SimpleNamespace(module=detector)
    with pytest.raises(ValueError) as error:
        weights.check_backbone(
            SimpleNamespace(model=wrapped), key, small_weights
        )
    assert_says(
        str(error.value),
        f"{key}: {small_weights} holds weights of arch 'small'",
        "the backbone of the config has arch 'atto'",
    )


def test_weights_without_their_prefix_are_told_apart(
    small_weights, monkeypatch
):
    from evmamba_mm import EfficientVMamba

    model = SimpleNamespace(backbone=EfficientVMamba('small'))
    runner = SimpleNamespace(model=model)
    weights.check_backbone(runner, 'load_from', small_weights)
    with pytest.raises(ValueError, match="init_cfg: .*prefix \\('backbone.'"):
        weights.check_backbone(runner, 'init_cfg', small_weights, None)
    foreign = SimpleNamespace(model=SimpleNamespace(backbone=torch.nn.ReLU()))
    weights.check_backbone(foreign, 'load_from', small_weights)


def test_starting_weights_of_a_config(monkeypatch, tmp_path):
    from mmengine.config import Config

    pretrained = dict(type='Pretrained', checkpoint='a.pth', prefix='p.')
    backbone = dict(type='EfficientVMamba', init_cfg=[pretrained])
    cfg = Config(dict(model=dict(backbone=backbone), work_dir=str(tmp_path)))
    own = ('model.backbone.init_cfg.0', 'a.pth', 'p.')
    cfg.resume = True
    assert list(weights.starting_weights(cfg)) == [own]
    cfg.load_from = 'work/epoch_3.pth'
    first = ('resume', 'work/epoch_3.pth', 'backbone.')
    assert list(weights.starting_weights(cfg)) == [first, own]
    cfg.resume = False
    cfg.load_from = 'b.pth'
    first = ('load_from', 'b.pth', 'backbone.')
    assert list(weights.starting_weights(cfg)) == [first, own]


@pytest.mark.parametrize(
    'tool, arguments',
    [('dist_train.sh', ['toy.py', 2]), ('dist_test.sh', ['toy.py', 'a', 2])],
    ids=['train', 'test'],
)
def test_port_in_use(tool, arguments, tmp_path):
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = taken.getsockname()[1]
        status, output = run(tmp_path, tool, *arguments, PORT=str(port))
    assert status == 2
    assert f'port {port} is in use' in output
    assert f'PORT={port + 1} bash' in output


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(PORT='http'), "PORT is 'http', and not a number from 1"),
        (dict(PORT='70000'), "PORT is '70000', and not a number from 1"),
        (dict(NNODES='2'), 'NNODES is 2: set MASTER_ADDR'),
    ],
    ids=['word', 'large', 'no-address'],
)
def test_settings_of_several_machines(settings, message, tmp_path):
    status, output = run(tmp_path, 'dist_train.sh', 'toy.py', 2, **settings)
    assert status == 2
    assert message in output


def test_more_processes_than_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setenv('LOCAL_RANK', '2')
    with pytest.raises(ValueError, match='torch sees 2 .*GPUS=2 at most'):
        launch.check_gpu_of_process('pytorch')
    monkeypatch.setenv('LOCAL_RANK', '1')
    launch.check_gpu_of_process('pytorch')


def test_message_comes_through_torchrun(toy, warm_python):
    status, output = run(
        toy,
        *('dist_train.sh', 'toy.py', 2),
        *('--cfg-options', 'train_dataloader.dataset.data_root=nowhere'),
        python=warm_python.path,
        CUDA_VISIBLE_DEVICES='',
    )
    assert status != 0
    assert 'error: the config names missing data' in output


def test_a_key_below_what_is_no_dict(refusal):
    message = refusal('train', '--cfg-options', 'work_dir=a', 'resume.b=1')
    assert_says(message, '--cfg-options: resume=', 'is a dict')
