"""What is read of the kernels on the disk, and what is refused."""

import hashlib
import logging
import os
import stat
import time
from pathlib import Path

import pytest

from evmamba_mm.ops.scan.cuda import cache

KEY, CODE = 'a' * 64, b'\x7fELF machine code\n and more'


@pytest.fixture(autouse=True)
def base(tmp_path, monkeypatch):
    """A folder for the cache, beside which nothing else is used."""
    base = tmp_path / 'base'
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(base))
    cache._warn_once.cache_clear()
    yield base
    cache._warn_once.cache_clear()


@pytest.fixture
def warnings(caplog, monkeypatch):
    # The toolbox's logger gets the records, pytest's does not.
    monkeypatch.setattr(logging.getLogger('evmamba_mm'), 'propagate', True)
    caplog.set_level(logging.WARNING, 'evmamba_mm')
    return caplog


def own(base):
    return base / f'evmamba_mm-{os.getuid()}'


def test_code_is_kept_in_the_users_own_folder(base):
    assert cache.read(KEY) is None
    cache.write(KEY, CODE)
    assert cache.read(KEY) == CODE
    assert cache.read('b' * 64) is None
    (file,) = own(base).iterdir()
    assert stat.S_IMODE(own(base).stat().st_mode) == 0o700
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


DAMAGES = {
    'empty': lambda file: file.write_bytes(b''),
    'truncated': lambda file: file.write_bytes(file.read_bytes()[:-3]),
    'one bit': lambda file: file.write_bytes(file.read_bytes()[:-1] + b'f'),
    'longer': lambda file: file.write_bytes(file.read_bytes() + b'\0'),
    'no header': lambda file: file.write_bytes(CODE),
    'text': lambda file: file.write_text('<html>'),
}


@pytest.mark.parametrize('damage', DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_compiled_again(damage, base, warnings):
    cache.write(KEY, CODE)
    damage(own(base) / f'{KEY}.cubin')
    assert cache.read(KEY) is None
    assert 'is damaged and will be compiled again' in warnings.text
    cache.write(KEY, CODE)
    assert cache.read(KEY) == CODE


def test_code_of_another_key_is_not_run(base):
    cache.write(KEY, CODE)
    other = own(base) / f'{"b" * 64}.cubin'
    os.link(own(base) / f'{KEY}.cubin', other)
    assert cache.read('b' * 64) is None


@pytest.mark.parametrize('mode', [0o770, 0o707, 0o777], ids=oct)
@pytest.mark.parametrize('place', ['folder', 'file'])
def test_what_others_may_write_is_refused(place, mode, base, warnings):
    cache.write(KEY, CODE)
    path = own(base) if place == 'folder' else own(base) / f'{KEY}.cubin'
    path.chmod(mode)
    assert cache.read(KEY) is None
    assert f'{path} can be written by others; run chmod go-w' in warnings.text
    cache.write('b' * 64, CODE)
    assert len(warnings.records) == 1


@pytest.mark.parametrize('place', ['folder', 'file'])
def test_what_another_user_owns_is_refused(place, base, warnings, monkeypatch):
    cache.write(KEY, CODE)
    path = own(base) if place == 'folder' else own(base) / f'{KEY}.cubin'
    if os.getuid() == 0:
        os.chown(path, 12345, -1)
    else:
        pytest.skip('only root can give a file away')
    assert cache.read(KEY) is None
    assert f'{path} belongs to user 12345' in warnings.text


def test_a_link_is_not_followed(base, tmp_path):
    cache.write(KEY, CODE)
    file = own(base) / f'{KEY}.cubin'
    file.rename(tmp_path / 'elsewhere')
    file.symlink_to(tmp_path / 'elsewhere')
    assert cache.read(KEY) is None
    own(base).rename(tmp_path / 'moved')
    own(base).symlink_to(tmp_path / 'moved')
    assert cache.read(KEY) is None


def test_two_users_share_a_folder(base, monkeypatch):
    cache.write(KEY, CODE)
    first = os.getuid()
    monkeypatch.setattr(os, 'getuid', lambda: first + 1)
    base.chmod(0o1777)
    assert cache.read(KEY) is None
    assert sorted(path.name for path in base.iterdir()) == [
        f'evmamba_mm-{first}',
        f'evmamba_mm-{first + 1}',
    ]


@pytest.mark.parametrize('home', ['unset', 'missing', 'a file'])
def test_no_home_falls_back_on_the_temporary_folder(
    home, tmp_path, monkeypatch
):
    monkeypatch.delenv(cache.CACHE_VARIABLE)
    monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
    monkeypatch.setattr(cache.tempfile, 'gettempdir', lambda: str(tmp_path))
    (tmp_path / 'file').touch()

    def no_home():
        if home == 'unset':
            raise RuntimeError('Could not determine home directory.')
        return Path('/proc/none' if home == 'missing' else tmp_path / 'file')

    monkeypatch.setattr(Path, 'home', no_home)
    cache.write(KEY, CODE)
    assert cache.read(KEY) == CODE
    assert (own(tmp_path) / f'{KEY}.cubin').is_file()


def test_a_folder_that_cannot_be_made_is_told_once(
    tmp_path, monkeypatch, warnings
):
    (tmp_path / 'file').touch()
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / 'file'))
    for _ in range(3):
        assert cache.read(KEY) is None
        cache.write(KEY, CODE)
    (record,) = warnings.records
    assert 'every process compiles its own' in record.getMessage()


def test_nothing_half_written_stays(base, monkeypatch, warnings):
    cache.write(KEY, CODE)

    def full(self, target):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(Path, 'replace', full)
    cache.write('b' * 64, CODE)
    assert 'No space left' in warnings.text
    assert [path.suffix for path in own(base).iterdir()] == ['.cubin']


def test_remains_of_a_killed_process_are_removed(base):
    cache.write(KEY, CODE)
    old, young = own(base) / 'x.1.part', own(base) / 'y.2.part'
    for path in (old, young):
        path.touch()
    an_hour_ago = time.time() - cache._STALE_SECONDS - 1
    os.utime(old, (an_hour_ago, an_hour_ago))
    cache.write('b' * 64, CODE)
    assert not old.exists()
    assert young.exists()


def test_a_file_deleted_between_two_looks(base, monkeypatch):
    cache.write(KEY, CODE)
    look = cache._own_folder

    def then_delete():
        folder = look()
        (folder / f'{KEY}.cubin').unlink(missing_ok=True)
        return folder

    monkeypatch.setattr(cache, '_own_folder', then_delete)
    assert cache.read(KEY) is None


def test_header_names_key_and_digest(base):
    cache.write(KEY, CODE)
    header = (own(base) / f'{KEY}.cubin').read_bytes().splitlines()[0]
    digest = hashlib.sha256(CODE).hexdigest()
    assert header.decode().split()[-2:] == [KEY, digest]
