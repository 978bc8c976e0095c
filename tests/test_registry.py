"""The plain name resolves from each host's registry, with any hosts absent.

Each subset of the hosts runs in a process of its own, whose search path is a
folder of links to everything that is installed but the absent packages and
their metadata: to Python they are not installed.
"""

import importlib
import importlib.metadata
import importlib.util
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Import name to distribution name.
HOSTS = {
    'mmpretrain': 'mmpretrain',
    'mmdet': 'mmdet',
    'mmseg': 'mmsegmentation',
}
FOUND = 'found and run by '
SUBSETS = [
    subset
    for size in range(len(HOSTS) + 1)
    for subset in itertools.combinations(HOSTS, size)
]


def search_path_without(absent, folder):
    """Links what is installed into `folder`, but for the absent packages."""
    prefixes = tuple(f'{name.replace("-", "_")}-' for name in absent.values())
    for entry in reversed([Path(entry) for entry in sys.path]):
        if entry.name not in ('site-packages', 'dist-packages'):
            continue
        for item in entry.iterdir():
            link = folder / item.name
            hidden = item.name in absent or item.name.startswith(prefixes)
            if not hidden and not link.is_symlink():
                link.symlink_to(item)
    return os.pathsep.join([str(ROOT), str(folder)])


@pytest.mark.parametrize(
    'present', SUBSETS, ids=['+'.join(names) or 'none' for names in SUBSETS]
)
def test_name_resolves_with_these_hosts(present, tmp_path, libraries_python):
    for host in present:
        pytest.importorskip(host, reason=f'{host} is not installed')
    absent = {
        name: distribution
        for name, distribution in HOSTS.items()
        if name not in present
    }
    if not present:
        absent |= {'mmcv': 'mmcv', 'mmcv_lite': 'mmcv-lite'}
    path = search_path_without(absent, tmp_path)
    # -S: the links stand in for the installed packages, and must not be
    # joined by the packages themselves.
    python = (libraries_python.path, '-S', __file__)
    result = subprocess.run(
        [*python, ','.join(present), ','.join(absent)],
        env={**os.environ, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    found = [line for line in lines if line.startswith(FOUND)]
    assert found == [f'{FOUND}{name}' for name in ('mmengine', *present)]


def probe(present, absent):
    """Runs in the process made above: prints each registry that worked."""
    for name in absent:
        assert importlib.util.find_spec(name) is None, name
        with pytest.raises(importlib.metadata.PackageNotFoundError):
            importlib.metadata.version(HOSTS.get(name, name))

    import evmamba_mm  # noqa: F401, I001
    import torch

    config = dict(type='EfficientVMamba', arch='atto')
    image = torch.zeros(1, 3, 33, 31)
    for name in ('mmengine', *present):
        registry = importlib.import_module(f'{name}.registry').MODELS
        outputs = registry.build(config).eval()(image)
        assert isinstance(outputs, tuple)
        assert all(output.isfinite().all() for output in outputs)
        print(f'{FOUND}{name}')


if __name__ == '__main__':
    probe(*([n for n in arg.split(',') if n] for arg in sys.argv[1:]))
