"""A mistake in a config file is a line with the file's name."""

import pytest

from evmamba_mm.config_files import read_config


@pytest.mark.parametrize(
    'name, text, said',
    [
        ('a.py', 'x = 1\ny = (2', "a.py, line 2: '(' was never closed"),
        ('a.py', 'x = 1\ny = z', "a.py, line 2: name 'z' is not defined"),
        ('a.py', "x = {}['z']", "a.py, line 1: there is no 'z'"),
        # Without a base mmengine takes it for a file of its lazy kind.
        (
            'a.py',
            '_base_ = []\nimport nowhere_to',
            'a.py, line 2: No module named',
        ),
        (
            'a.py',
            "custom_imports = dict(imports=['nowhere_to'])",
            "a.py: No module named 'nowhere_to'; install it, or name its",
        ),
        ('a.json', '{"a": ', 'a.json: Expecting value'),
        ('a.json', '[1]', 'a.json: it holds no keys with values (list)'),
        ('a.json', '{"_base_": 3}', 'a.json: _base_ must name files, got 3'),
        ('a.json', '{"text": 3}', 'a.json: text is reserved'),
        ('a.yaml', 'a: [1\nb: 2}', 'a.yaml, line 2: while parsing a flow'),
        ('a.yaml', 'a: {{b: 1}: 2}', 'a.yaml, line 1: while constructing'),
        ('a.yml', 'a: b: c', 'a.yml, line 1: mapping values are not allowed'),
        ('a.yaml', 'a: 1\n---\nb: 1', 'a.yaml, line 2: expected a single'),
        ('a.yaml', '', 'a.yaml: it holds no keys with values (nothing)'),
        ('a.yaml', '1: 2', 'a.yaml: its key 1 is no name'),
        ('a.txt', 'a', 'a.txt: Only py'),
        ('a.py', b'\x89PNG\xff', "a.py: 'utf-8' codec can't decode"),
    ],
    ids=[
        *('syntax', 'name', 'key', 'import', 'module', 'json', 'json-list'),
        *('json-base', 'json-reserved', 'yaml', 'yaml-key', 'yml'),
        *('yaml-documents', 'yaml-empty', 'yaml-number', 'kind', 'image'),
    ],
)
@pytest.mark.parametrize('inherited', [False, True], ids=['leaf', 'base'])
def test_mistake_is_a_line(name, text, said, inherited, tmp_path):
    content = text if isinstance(text, bytes) else text.encode()
    (tmp_path / name).write_bytes(content)
    path = tmp_path / name
    if inherited:
        path = tmp_path / 'leaf.py'
        path.write_text(f"_base_ = './{name}'\n")
        # mmengine imports modules when all files are merged.
        said = said.replace('a.py: No', 'leaf.py: No')
        said = said.replace('a.json: text', 'leaf.py: text')
    with pytest.raises(ValueError, match='^config ') as error:
        read_config(path)
    assert said in str(error.value)
    assert '\n' not in str(error.value)


def test_missing_files(tmp_path):
    path = tmp_path / 'a.py'
    with pytest.raises(FileNotFoundError, match='No such file'):
        read_config(path)
    path.write_text("_base_ = './none.py'\n")
    with pytest.raises(FileNotFoundError, match='a.py: there is no file .*no'):
        read_config(path)


def test_error_in_a_module_of_the_user_is_left_alone(tmp_path, monkeypatch):
    (tmp_path / 'my_broken_module.py').write_text('x = undefined\n')
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / 'a.py'
    path.write_text("custom_imports = dict(imports=['my_broken_module'])\n")
    with pytest.raises(NameError, match='undefined'):
        read_config(path)


def test_good_file(tmp_path):
    path = tmp_path / 'a.py'
    path.write_text('x = 1\n')
    assert read_config(str(path)).x == 1
