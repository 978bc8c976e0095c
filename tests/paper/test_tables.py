"""The tables: counted as the hosts count, compared, written where marked."""

import importlib
import re
from decimal import Decimal
from pathlib import Path

import pytest
import torch

from evmamba_mm.analysis import models

for host in ('mmdet', 'mmseg', 'mmpretrain'):
    pytest.importorskip(host, reason=f'{host} is not installed')

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / 'configs'
TINY = 'mmpretrain/evmamba-tiny_16xb128-amp-300e_in1k.py'
UPERNET = 'mmseg/upernet_evmamba-tiny_4xb4-160k_ade20k-512x512.py'


def tool(name):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / 'tools' / 'paper')
        return importlib.import_module(name)


markdown, paper, zoo = (
    tool(f'writing.{name}') for name in ('markdown', 'paper', 'zoo')
)
tables = tool('tables')


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


def test_everything_is_up_to_date(monkeypatch, capsys):
    """Counts every config anew."""
    # No count depends on the values of weights, and making them takes long.
    for name in ('kaiming_uniform_', 'kaiming_normal_', 'trunc_normal_'):
        monkeypatch.setattr(torch.nn.init, name, lambda *_, **__: None)
    assert tables.main(['--check']) == 0, capsys.readouterr().out


def test_table_of_speeds(tmp_path, monkeypatch):
    head = 'model,mode,phase,batch,size,dtype,images_per_s,ms,peak_gib,device'
    lines = [
        *('EfficientVMamba:tiny,graph,inference', 'timm:x,eager,inference'),
        *('timm:x,compiled,inference', 'timm:x,compiled,training'),
    ]
    speeds = [300, 100, 400, 50]
    path = tmp_path / 'a.csv'
    text = [
        f'{line},2,32,bf16,{speed},1,,GPU,2,c'
        for line, speed in zip(lines, speeds, strict=True)
    ]
    path.write_text('\n'.join([f'{head},torch,command', *text]) + '\n')
    monkeypatch.setattr(markdown, 'SPEEDS', path)
    assert markdown.render('speed', ROOT).splitlines() == [
        '| model | top-1 | inference, images/s | mode | '
        'training, images/s | mode |',
        '| --- | --- | --- | --- | --- | --- |',
        '| timm:x |  | 400 | compiled | 50 | compiled |',
        '| EfficientVMamba-T | 76.5 | 300 | graph |  |  |',
    ]
    path.write_text(path.read_text() + text[0].replace(',32,', ',64,') + '\n')
    with pytest.raises(ValueError, match='must have one of each of batch'):
        markdown.render('speed', ROOT)
