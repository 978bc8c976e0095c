"""CSV files of measurements: damaged ones are refused, tables pivot."""

import pytest

from evmamba_mm.csv_files import pivoted, read_rows, write_rows

COLUMNS = ('model', 'threads', 'ms')


@pytest.mark.parametrize(
    'content, said',
    [
        (b'', 'must have the columns model,threads,ms, it has none'),
        (b'arch,error\na,1\n', 'it has arch,error'),
        (b'model,threads,ms\na,1\n', 'line 2 must have 3 cells'),
        (b'model,threads,ms\na,1,2,3\n', 'line 2 must have 3 cells'),
        (b'model,threads,ms\na,1,2\nb,1,x\n', "line 3, ms: 'x' must be"),
        (b'model,threads,ms\na,1,nan\n', "line 2, ms: 'nan' must be"),
        (b'\x89PNG\xff\x00', 'is no CSV file: '),
    ],
    ids=['empty', 'other', 'fewer', 'more', 'word', 'nan', 'image'],
)
def test_damaged_file(content, said, tmp_path):
    path = tmp_path / 'rows.csv'
    path.write_bytes(content)
    with pytest.raises(ValueError, match='rows.csv') as error:
        read_rows(path, COLUMNS, ('ms',))
    assert said in str(error.value)


@pytest.mark.parametrize('name', ['none.csv', ''])
def test_missing_file(name, tmp_path):
    with pytest.raises(ValueError, match='there is no file'):
        read_rows(tmp_path / name, COLUMNS)


def test_rows_come_back_and_pivot(tmp_path):
    path = tmp_path / 'new' / 'rows.csv'
    write_rows(path, COLUMNS, [('a', 1, '5.0'), ('b', 2, '7.5')])
    rows = read_rows(path, COLUMNS, ('ms',))
    assert rows[1] == dict(model='b', threads='2', ms='7.5')
    assert pivoted(rows, ('model',), ('threads',), 'ms').splitlines() == [
        '| model | 1 | 2 |',
        '|---|---|---|',
        '| a | 5.0 |  |',
        '| b |  | 7.5 |',
    ]
