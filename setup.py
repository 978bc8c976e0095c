"""Adds to a wheel what the `mim` command looks for beside the package.

Everything declarative stands in pyproject.toml.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
MIM_ENTRIES = (
    'configs',
    'model-index.yml',
    *('tools/train.py', 'tools/test.py', 'tools/infer.py'),
    *('tools/dist_train.sh', 'tools/dist_test.sh', 'tools/slurm_train.sh'),
    *('tools/torchrun.sh', 'tools/torchrun.py'),
    'tools/analysis_tools',
    'tools/dataset_converters',
    'tools/deployment',
    'tools/model_converters',
)
# Whatever else lies in these folders is not of the package.
ENDINGS = ('.py', '.sh', '.yml')


class BuildWithMim(build_py):
    """Copies configs and tools to `evmamba_mm/.mim` of the build.

    The source tree is never written to. An editable install gets no `.mim`:
    mim does not find the files of an editable install anyway.
    """

    def run(self):
        super().run()
        if self.editable_mode:
            return
        # A build folder kept from an earlier build would bring deleted
        # configs back.
        shutil.rmtree(self._mim_dir(), ignore_errors=True)
        for source, target in self._mim_files():
            self.mkpath(str(target.parent))
            self.copy_file(str(source), str(target))

    def get_outputs(self, include_bytecode=1):
        outputs = super().get_outputs(include_bytecode)
        if self.editable_mode:
            return outputs
        return outputs + [str(target) for _, target in self._mim_files()]

    def _mim_dir(self):
        return Path(self.build_lib, 'evmamba_mm', '.mim')

    def _mim_files(self):
        for entry in MIM_ENTRIES:
            path = ROOT / entry
            if not path.exists():
                raise FileNotFoundError(
                    f'{path} is missing: without it `mim` cannot use the '
                    f'installed package'
                )
            sources = [path] if path.is_file() else sorted(path.rglob('*'))
            for source in sources:
                if source.is_file() and source.suffix in ENDINGS:
                    yield source, self._mim_dir() / source.relative_to(ROOT)


setup(cmdclass={'build_py': BuildWithMim})
