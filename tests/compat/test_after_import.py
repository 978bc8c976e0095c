import sys

from evmamba_mm.compat.after_import import after_import


def test_runs_once_on_the_module_and_leaves_others_alone(
    tmp_path, monkeypatch
):
    (tmp_path / 'imported_later.py').write_text('value = 3')
    (tmp_path / 'another_one.py').write_text('value = 4')
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, 'meta_path', [*sys.meta_path])
    values = []

    def note(module):
        values.append(module.value)

    after_import('imported_later', note)
    after_import('imported_later', note)
    import another_one  # noqa: F401
    import imported_later  # noqa: F401

    assert values == [3]
    after_import('imported_later', note)
    assert values == [3, 3]


def test_two_functions_wait_for_one_module(tmp_path, monkeypatch):
    (tmp_path / 'imported_by_two.py').write_text('value = 3')
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, 'meta_path', [*sys.meta_path])
    first, second = [], []
    after_import('imported_by_two', first.append)
    after_import('imported_by_two', second.append)
    import imported_by_two

    assert first == second == [imported_by_two]
