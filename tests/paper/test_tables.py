"""The tables: counted as the hosts count, compared, written where marked."""

import functools
import importlib
import re
import shutil
import subprocess
import sys
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest
import torch
from mmengine.analysis import FlopAnalyzer, get_model_complexity_info

from evmamba_mm.analysis import flops, models
from evmamba_mm.layers import ES2D, SS2D
from evmamba_mm.ops import selective_scan

for host in ('mmdet', 'mmseg', 'mmpretrain'):
    pytest.importorskip(host, reason=f'{host} is not installed')

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / 'configs'
TINY = 'mmpretrain/evmamba-tiny_16xb128-amp-300e_in1k.py'
BASELINE = 'mmpretrain/ablations/evmamba-tiny-ss2d_16xb128-amp-300e_in1k.py'
MASK_RCNN = 'mmdet/mask-rcnn_evmamba-tiny_fpn_8xb2-amp-1x_coco.py'
RETINANET = 'mmdet/retinanet_evmamba-tiny_fpn_8xb2-1x_coco.py'
UPERNET = 'mmseg/upernet_evmamba-tiny_4xb4-160k_ade20k-512x512.py'
# One product of matrices has several names, by how far it is taken apart.
PRODUCTS = ('linear', 'addmm', 'mm', 'matmul', 'bmm', 'einsum')


def tool(name):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / 'tools' / 'paper')
        return importlib.import_module(name)


markdown, paper, zoo = (
    tool(f'writing.{name}') for name in ('markdown', 'paper', 'zoo')
)
tables = tool('tables')


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


def test_the_hosts_own_tool_counts_the_same():
    import mmpretrain

    script = Path(mmpretrain.__file__).parent.joinpath(
        '.mim', 'tools', 'analysis_tools', 'get_flops.py'
    )
    if not script.is_file():
        pytest.skip('mmpretrain is installed without its tools')
    result = subprocess.run(
        [sys.executable, str(script), str(CONFIGS / TINY)],
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


@pytest.mark.parametrize(
    ('printed', 'exact', 'verdict', 'reason'),
    [
        ('6', '6.49366', 'match', ''),
        ('0.8', '0.75', 'match', ''),
        ('0.8', '0.7499', 'differs', ''),
        ('33', '33.717', 'differs', '33.72 is cut off, not rounded.'),
        ('13.0', '13.10', 'differs', ''),
        ('945', '945.66', 'differs', '945.66 is cut off, not rounded.'),
        ('1030', '1029.5', 'match', ''),
    ],
)
def test_comparison_at_the_printed_digits(printed, exact, verdict, reason):
    assert paper.compare(printed, Decimal(exact)) == (verdict, reason)


@pytest.mark.parametrize(
    ('name', 'rows'),
    list(zip(paper.TABLES, (3, 16, 13, 11, 8, 3, 20, 6), strict=True)),
)
def test_every_row_of_the_paper(name, rows):
    table = paper.read_table(name)
    assert len(table) == rows
    for row in table:
        numbers = {
            column: cell
            for column, cell in row.printed.items()
            if re.fullmatch(
                r'params_m|flops_g|top1|.*ap(\d+|_.)?|miou_.*', column
            )
        }
        assert all(re.fullmatch(r'\d+(\.\d+)?', n) for n in numbers.values())
        ours = row.printed['model'].startswith('EfficientVMamba')
        assert row.config or not ours
        assert not row.config or (ROOT / row.config).is_file()


def judged(note, params='33717136', printed='33'):
    row = paper.Row('table2', 1, dict(model='a', params_m=printed), 'c', note)
    count = dict(params=params, trainable_params='1', flops='1')
    return paper.judge(row, count)


def test_a_difference_needs_a_reason():
    assert judged('')['why'] == '33.72 is cut off, not rounded.'
    assert paper.unexplained([judged('', printed='35')]) != []
    assert paper.unexplained([judged('So it is.', printed='35')]) == []
    assert paper.unexplained([judged('', printed='34')]) == []


def test_retinanet_rows_leave_out_what_is_frozen():
    row = paper.Row('table3', 1, dict(model='a', params_m='37.7'), 'c', '')
    count = dict(params='37968692', trainable_params='37743348', flops='1')
    assert paper.judge(row, count)['params_verdict'] == 'match'


def test_page_is_filled_between_the_markers(tmp_path):
    page = tmp_path / 'docs' / 'page.md'
    page.parent.mkdir()
    page.write_text(
        'Before.\n\n<!-- table:variants -->\n<!-- /table:variants -->\n'
        '\nAfter.\n'
    )
    text = markdown.fill(page.read_text(), ROOT / 'docs')
    assert text.startswith('Before.\n\n<!-- table:variants -->\n| `arch`')
    assert text.endswith('|\n<!-- /table:variants -->\n\nAfter.\n')
    assert '| `tiny` | 48, 96, 192, 384 | 2, 2, 4, 2 | 6,493,660 |' in text
    assert markdown.fill(text, ROOT / 'docs') == text


@pytest.mark.parametrize('name', [*paper.TABLES, 'results', 'weights'])
def test_links_of_a_table_lead_somewhere(name):
    for folder in (ROOT, ROOT / 'docs'):
        text = markdown.render(name, folder)
        links = re.findall(r'\]\((?!https)(.*?)\)', text)
        assert links
        assert all((folder / target).is_file() for target in links)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (
            '<!-- table:table9 -->\n<!-- /table:table9 -->\n',
            "no table 'table9'",
        ),
        ('<!-- table:table1 -->\n', 'needs its'),
        ('<!-- table:table1 -->\n<!-- /table:table2 -->\n', 'needs its'),
    ],
)
def test_wrong_markers_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        markdown.fill(text, ROOT)


def test_check_finds_a_stale_page_and_leaves_it(tmp_path, capsys):
    page = tmp_path / 'page.md'
    stale = '<!-- table:variants -->\nold\n<!-- /table:variants -->\n'
    page.write_text(stale)
    assert tables.main(['--check', '--no-count', str(page)]) == 1
    assert f'not up to date: {page}' in capsys.readouterr().out
    assert page.read_text() == stale


def test_a_page_that_is_not_there_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        tables.main(['--check', str(tmp_path / 'none.md')])
    assert 'there is no page' in capsys.readouterr().err


def test_one_config_is_counted_and_printed(capsys):
    assert tables.main(['--config', str(CONFIGS / UPERNET)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        'input: 512x2048',
        'parameters: 14,487,488',
        'trainable parameters: 14,487,488',
        'FLOPs: 229.8597 G, a multiply-add as one',
    ]
    with pytest.raises(SystemExit, match='error: there is no config'):
        tables.main(['--config', 'none.py'])


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


def test_without_a_package_the_stored_count_stays(monkeypatch, capsys):
    def needs_package(path):
        raise ImportError('needs timm')

    configs = [f'configs/{TINY}']
    monkeypatch.setattr(zoo, 'counted_configs', lambda: configs)
    monkeypatch.setattr(models, 'count_config', needs_package)
    counts = tables.fresh_counts()
    assert counts == {configs[0]: tables.stored_counts()[configs[0]]}
    assert f'not counted: {configs[0]}: needs timm' in capsys.readouterr().err
    configs.append('configs/mmpretrain/new.py')
    with pytest.raises(ImportError, match='timm'):
        tables.fresh_counts()


def test_everything_is_up_to_date(capsys):
    """Counts every config anew."""
    assert tables.main(['--check']) == 0, capsys.readouterr().out


def test_without_the_results_it_says_what_is_needed(tmp_path):
    shutil.copytree(ROOT / 'tools', tmp_path / 'tools')
    result = subprocess.run(
        [sys.executable, 'tools/paper/tables.py', '--check'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert 'results/paper' in result.stderr
    assert 'Traceback' not in result.stderr
