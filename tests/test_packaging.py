"""The wheel: what is in it, and that `mim` can use it once installed."""

import email
import functools
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
NOT_SOURCE = shutil.ignore_patterns('.*', '__pycache__', '*.egg-info')
NOT_AT_THE_ROOT = {'build', 'dist', 'work_dirs', 'data'}
BUILD = """
import sys
from setuptools import build_meta
print(getattr(build_meta, sys.argv[1])(sys.argv[2]))
"""


def build(kind, source, target):
    """Builds an sdist or a wheel without isolation; returns its path."""
    result = subprocess.run(
        [sys.executable, '-c', BUILD, f'build_{kind}', target],
        cwd=source,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return target / result.stdout.split()[-1]


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp('source') / 'evmamba_mm'

    def ignore(place, names):
        at_the_root = NOT_AT_THE_ROOT if Path(place) == ROOT else set()
        return NOT_SOURCE(place, names) | at_the_root

    shutil.copytree(ROOT, folder, ignore=ignore)
    return folder


@pytest.fixture(scope='module')
def wheel(source, tmp_path_factory):
    """A wheel made from the sdist, as a package index would make it."""
    folder = tmp_path_factory.mktemp('dist')
    with tarfile.open(build('sdist', source, folder)) as sdist:
        sdist.extractall(folder, filter='data')
    (unpacked,) = (path for path in folder.iterdir() if path.is_dir())
    return build('wheel', unpacked, folder)


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
    """A folder that holds the installed wheel, to lead the search path."""
    folder = tmp_path_factory.mktemp('site')
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def files_below(folder, *endings):
    return {
        file.relative_to(ROOT).as_posix()
        for file in (ROOT / folder).rglob('*')
        if file.suffix in endings
    }


def files_of_the_package():
    files = files_below('evmamba_mm', '.py', '.cu', '.cuh')
    names = {name for name in files if '.mim' not in name}
    return {*names, 'evmamba_mm/py.typed'}


def files_for_mim():
    tools = files_below('tools', '.py', '.sh')
    ours = ('tools/paper/', 'tools/misc/')
    tools = {name for name in tools if not name.startswith(ours)}
    return {*files_below('configs', '.py', '.yml'), *tools, 'model-index.yml'}


def names_in(wheel):
    return {
        name
        for name in zipfile.ZipFile(wheel).namelist()
        if '.dist-info/' not in name
    }


def test_wheel_holds_the_package_and_what_mim_looks_for(wheel):
    tools = {name for name in files_for_mim() if name.startswith('tools/')}
    assert {f'tools/{name}.py' for name in ('train', 'test', 'infer')} < tools
    assert names_in(wheel) == files_of_the_package() | {
        f'evmamba_mm/.mim/{name}' for name in files_for_mim()
    }


def test_outputs_of_a_user_are_in_no_wheel(source, wheel, tmp_path_factory):
    copy = tmp_path_factory.mktemp('used') / 'source'
    shutil.copytree(source, copy)
    for folder in ('configs', 'tools', 'tools/analysis_tools', 'work_dirs'):
        (copy / folder / 'out').mkdir(parents=True)
        for name in ('photo.jpg', 'photo.json', 'epoch_1.pth', 'rows.csv'):
            (copy / folder / 'out' / name).write_text('private')
    assert names_in(build('wheel', copy, copy / 'dist')) == names_in(wheel)


def test_metadata_of_the_wheel(wheel):
    import evmamba_mm

    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith('/METADATA'))
        metadata = email.message_from_bytes(archive.read(name))
    assert metadata['Version'] == evmamba_mm.__version__
    assert metadata['License-Expression'] == 'Apache-2.0'
    requires = metadata.get_all('Requires-Dist')
    core = [line for line in requires if 'extra ==' not in line]
    # mmcv and mmcv-lite own the same folder, so neither may be forced.
    assert not any(line.startswith('mmcv') for line in core)
    # Old versions are asked for by who needs them alone.
    names = {re.match(r'[\w-]+', line)[0] for line in core}
    assert names == {'torch', 'mmengine', 'numpy'}
    assert all('://' in url for url in metadata.get_all('Project-URL'))


def test_build_leaves_the_source_as_it_was(source, wheel):
    assert not (source / 'evmamba_mm' / '.mim').exists()
    assert not (ROOT / 'evmamba_mm' / '.mim').exists()


def test_stale_build_folder_brings_no_deleted_config(source, tmp_path_factory):
    copy = tmp_path_factory.mktemp('stale') / 'source'
    shutil.copytree(source, copy)
    extra = copy / 'configs' / 'deleted_later.py'
    extra.touch()
    target = copy / 'dist'
    inside = f'evmamba_mm/.mim/configs/{extra.name}'
    first = build('wheel', copy, target)
    assert inside in zipfile.ZipFile(first).namelist()
    extra.unlink()
    second = build('wheel', copy, target)
    assert inside not in zipfile.ZipFile(second).namelist()


def models_of_the_index():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    for metafile in index['Import']:
        content = yaml.safe_load((ROOT / metafile).read_text())
        yield from content['Models']


def test_index_lists_every_config_under_its_own_name():
    configs = (ROOT / 'configs').rglob('*.py')
    runnable = {
        file.relative_to(ROOT).as_posix()
        for file in configs
        # Of the trainings in evidence, no weights are kept.
        if not {'_base_', 'evidence'} & set(file.parts)
    }
    listed = [model['Config'] for model in models_of_the_index()]
    assert sorted(listed) == sorted(runnable)
    names = [model['Name'] for model in models_of_the_index()]
    assert names == [Path(config).stem for config in listed]
    # mim finds a config by its name alone.
    assert len(set(names)) == len(names)


@pytest.fixture
def mim(installed, libraries_python):
    """Runs mim in a folder, with the installed wheel first in the path."""
    return functools.partial(run_mim, libraries_python.path, installed)


def mim_that_starts(python):
    """A program that is mim; mim starts tools by the Python that runs it."""
    return (
        f'import sys; sys.executable = {str(python)!r}; '
        'from mim.cli import cli; cli()'
    )


def run_mim(python, installed, folder, *arguments):
    pytest.importorskip('mim', reason='openmim is not installed')
    environment = {**os.environ, 'PYTHONPATH': str(installed)}
    result = subprocess.run(
        [python, '-c', mim_that_starts(python), *arguments],
        cwd=folder,
        env={**environment, 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
    )
    output = result.stdout + result.stderr
    assert result.returncode == 0, output
    return output


def test_mim_search_lists_the_models(mim, tmp_path):
    output = mim(tmp_path, 'search', 'evmamba_mm', '--valid-config')
    for model in models_of_the_index():
        assert model['Name'] in output


def test_mim_trains_and_tests_with_the_installed_tools(mim, installed, toy):
    tools = installed / 'evmamba_mm' / '.mim' / 'tools'
    output = mim(toy, 'train', 'evmamba_mm', 'toy.py', '--work-dir=work')
    assert f'{tools / "train.py"} toy.py' in output
    checkpoint = toy / 'work' / 'epoch_1.pth'
    output = mim(
        toy,
        'test',
        'evmamba_mm',
        'toy.py',
        f'--checkpoint={checkpoint}',
        '--work-dir=work',
    )
    assert f'{tools / "test.py"} toy.py' in output
    assert 'accuracy/top1' in output


def test_mim_does_not_show_the_help_of_the_tools(mim, tmp_path):
    output = mim(tmp_path, 'train', 'evmamba_mm', '-h')
    assert 'Job launcher' in output
    assert '--cfg-options' not in output
    said = 'evmamba_mm is not an OpenMMLAB codebase'
    assert said in (ROOT / 'docs' / 'install.md').read_text()
    with pytest.raises(AssertionError, match=said):
        mim(tmp_path, 'run', 'evmamba_mm', 'train', '-h')


def test_mim_finds_an_installed_config_by_its_name(mim, installed, tmp_path):
    configs = (installed / 'evmamba_mm/.mim/configs/demo').glob('*.py')
    config = next(configs)
    with pytest.raises(AssertionError, match='unrecognized arguments') as run:
        mim(
            tmp_path,
            'train',
            'evmamba_mm',
            config.name,
            '--no-such-argument',
        )
    assert str(config) in str(run.value)


def test_an_index_would_take_the_wheel(wheel):
    pytest.importorskip('twine', reason='twine is not installed')
    command = [sys.executable, '-m', 'twine', 'check', '--strict', wheel]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_the_citation_and_the_workflow_are_of_this_package():
    import evmamba_mm

    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert citation['version'] == evmamba_mm.__version__
    assert citation['preferred-citation']['authors'][0]['given-names']
    workflow = (ROOT / '.github' / 'workflows' / 'ci.yml').read_text()
    jobs = yaml.safe_load(workflow)['jobs']
    runs = [step.get('run') for step in jobs['test']['steps']]
    assert '.ci/run' in runs and os.access(ROOT / '.ci' / 'run', os.X_OK)
