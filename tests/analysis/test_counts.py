"""Parameters and FLOPs: counted as the hosts count, and by formula."""

import functools
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import torch
from mmengine.analysis import FlopAnalyzer, get_model_complexity_info

from evmamba_mm.analysis import flops, models
from evmamba_mm.layers import ES2D, SS2D
from evmamba_mm.ops import selective_scan

for host in ('mmdet', 'mmseg', 'mmpretrain'):
    pytest.importorskip(host, reason=f'{host} is not installed')

CONFIGS = Path(__file__).parents[2] / 'configs'
TINY = 'mmpretrain/evmamba-tiny_16xb128-amp-300e_in1k.py'
BASELINE = 'mmpretrain/ablations/evmamba-tiny-ss2d_16xb128-amp-300e_in1k.py'
MASK_RCNN = 'mmdet/mask-rcnn_evmamba-tiny_fpn_8xb2-amp-1x_coco.py'
RETINANET = 'mmdet/retinanet_evmamba-tiny_fpn_8xb2-1x_coco.py'
UPERNET = 'mmseg/upernet_evmamba-tiny_4xb4-160k_ade20k-512x512.py'
# One product of matrices has several names, by how far it is taken apart.
PRODUCTS = ('linear', 'addmm', 'mm', 'matmul', 'bmm', 'einsum')


def built(config):
    with models.quiet():
        return models.build(models.read_config(CONFIGS / config))


def grouped(counts):
    total = Counter()
    for name, count in counts.items():
        if count:
            total['products' if name in PRODUCTS else name] += count
    return total


@pytest.mark.parametrize(
    ('config', 'height', 'width'),
    [
        pytest.param(TINY, 64, 64, id='classifier'),
        pytest.param(TINY, 52, 75, id='odd maps'),
        pytest.param(BASELINE, 64, 64, id='ss2d'),
        pytest.param(RETINANET, 64, 96, id='retinanet'),
        pytest.param(UPERNET, 64, 96, id='upernet'),
    ],
)
def test_counts_what_mmengine_counts(config, height, width):
    model = built(config)
    shape = (1, 3, height, width)
    with models.quiet():
        traced = FlopAnalyzer(model, (torch.randn(shape),))
        expected = grouped(traced.by_operator())
    counted = grouped(flops.count_flops(model, shape))
    # mmengine takes the count of an einsum from four printed digits.
    products = expected.pop('products')
    assert counted.pop('products') == pytest.approx(products, rel=5e-4)
    assert counted == expected


def with_samples(model, size):
    """The model with the argument that the host's get_flops.py gives it."""
    from mmdet.structures import DetDataSample

    sample = DetDataSample(
        metainfo=dict(
            img_shape=size, ori_shape=size, pad_shape=size, scale_factor=(1, 1)
        )
    )
    model.forward = functools.partial(model.forward, data_samples=[sample])
    return model


def test_detector_counts_what_a_real_run_of_the_host_counts():
    model = with_samples(built(MASK_RCNN), (800, 1280))
    seen = {}
    for kind in ('bbox', 'mask'):
        getattr(model.roi_head, f'{kind}_head').register_forward_pre_hook(
            lambda head, inputs, kind=kind: seen.update({kind: len(inputs[0])})
        )
    with models.quiet():
        info = get_model_complexity_info(
            model,
            inputs=torch.randn(1, 3, 800, 1280),
            show_table=False,
            show_arch=False,
        )
    assert seen == dict(bbox=1000, mask=100)
    count = models.count_config(CONFIGS / MASK_RCNN)
    assert count.protocol == '1280x800, 1000 proposals, 100 mask RoIs'
    assert count.flops == pytest.approx(info['flops'], rel=1e-4)
    assert count.params == info['params']
    assert f'{count.flops / 1e9:.3f}' == '59.786'


def test_the_hosts_own_tool_counts_the_same(warm_python):
    import mmpretrain

    script = Path(mmpretrain.__file__).parent.joinpath(
        '.mim', 'tools', 'analysis_tools', 'get_flops.py'
    )
    if not script.is_file():
        pytest.skip('mmpretrain is installed without its tools')
    result = subprocess.run(
        [warm_python.path, script, CONFIGS / TINY],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    # It leaves out the head.
    count = models.count_config(CONFIGS / TINY)
    shown = re.search(r'^Flops: (.*)G$', result.stdout, re.M)[1]
    assert shown == f'{(count.flops - 384 * 1000) / 1e9:.3f}'


@pytest.mark.parametrize(
    ('mixer', 'groups', 'length'),
    [
        pytest.param(ES2D(16), 4, 4 * 5, id='es2d'),
        pytest.param(ES2D(16, step_size=1), 1, 8 * 10, id='es2d step 1'),
        pytest.param(ES2D(16, step_size=4), 16, 2 * 3, id='es2d step 4'),
        pytest.param(SS2D(16), 4, 8 * 10, id='ss2d'),
    ],
)
def test_a_scan_counts_by_the_formula(mixer, groups, length):
    counts = flops.count_flops(mixer, (3, 16, 8, 10))
    channels, states = groups * 32, 16
    scan = 9 * 3 * length * channels * states + 3 * length * channels
    assert counts['selective_scan'] == scan


def test_a_scan_without_d_has_no_second_term():
    def run(u, A, B):
        return selective_scan(u, u, A, B, B)

    counts = flops.count_flops(run, (2, 6, 11), (6, 4), (2, 1, 4, 11))
    assert counts['selective_scan'] == 9 * 2 * 11 * 6 * 4


def test_attention_counts_both_products():
    attend = torch.nn.functional.scaled_dot_product_attention
    counts = flops.count_flops(
        attend, (2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 8)
    )
    assert counts.total() == 2 * 3 * 5 * 7 * (8 + 8)


def test_an_operation_of_ours_without_a_handle_is_refused():
    @torch.library.custom_op('evmamba_mm::uncounted', mutates_args=())
    def uncounted(x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    uncounted.register_fake(torch.empty_like)
    with pytest.raises(ValueError, match='uncounted has no handle'):
        flops.count_flops(uncounted, (2, 3))


def test_too_few_regions_are_refused():
    rois = models.FixedRoIs(built(MASK_RCNN))
    rois.seen = dict(bbox=1000, mask=99)
    with pytest.raises(ValueError, match='must see .* saw .*99'):
        rois.check()


# Rows of the paper that are not of this package's models.
@pytest.mark.parametrize(
    ('base', 'millions', 'billions'),
    [
        ('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', '44.40', '259.79'),
        ('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', '37.97', '238.99'),
        (
            'mmseg::upernet/upernet_r50_4xb4-160k_ade20k-512x512.py',
            '66.52',
            '952.62',
        ),
        ('mmpretrain::deit/deit-small_4xb256_in1k.py', '22.05', '4.61'),
    ],
)
def test_models_of_the_hosts(base, millions, billions, tmp_path):
    config = tmp_path / 'config.py'
    config.write_text(f'_base_ = {base!r}\n')
    count = models.count_config(config)
    assert f'{count.params / 1e6:.2f}' == millions
    assert f'{count.flops / 1e9:.2f}' == billions


def test_frozen_stages_are_told_apart(tmp_path):
    config = tmp_path / 'config.py'
    base = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
    config.write_text(f'_base_ = {base!r}\n')
    count = models.count_config(config)
    assert f'{count.trainable_params / 1e6:.1f}' == '37.7'


def test_a_config_of_another_toolbox_is_refused(tmp_path):
    config = tmp_path / 'config.py'
    config.write_text("default_scope = 'mmpose'\nmodel = dict()\n")
    with pytest.raises(ValueError, match='mmpretrain, mmdet, mmseg'):
        models.count_config(config)
    with pytest.raises(FileNotFoundError, match='no config'):
        models.count_config(tmp_path / 'other.py')


def test_the_widths_that_table_1_prints_for_small(tmp_path):
    config = tmp_path / 'config.py'
    base = str(CONFIGS / 'mmpretrain/evmamba-base_16xb64-amp-300e_in1k.py')
    arch = (
        'dict(_delete_=True, channels=[96, 192, 384, 768], depths=[2,2,4,2])'
    )
    config.write_text(
        f'_base_ = {base!r}\nmodel = dict(backbone=dict(arch={arch}))\n'
    )
    count = models.count_config(config)
    assert f'{count.params / 1e6:.2f} M, {count.flops / 1e9:.2f} G' == (
        '24.76 M, 2.82 G'
    )


def test_a_bare_backbone_counts_what_its_classifier_does_but_the_head():
    whole = models.count_config(CONFIGS / TINY)
    bare = models.count_backbone('tiny')
    assert whole.params - bare.params == 384 * 1000 + 1000
    # The head, and what the pooling before it counts.
    assert whole.flops - bare.flops == pytest.approx(384 * 1000, rel=0.1)
    wide = models.count_backbone('tiny', 224, 448)
    assert wide.protocol == '448x224'
    # Squeeze-and-excitation costs the same at any size.
    assert wide.flops == pytest.approx(2 * bare.flops, rel=2e-3)
    with pytest.raises(ValueError, match='one of atto, tiny'):
        models.count_backbone('huge')
