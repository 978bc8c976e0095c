"""Provides the part of `pkg_resources` that mmengine asks for, if it is gone.

Breaks: `_base_ = 'mmdet::...'` and `get_installed_path`, with "No module named
'pkg_resources'".
Why: mmengine 0.10 finds packages by `pkg_resources`, which setuptools 82
removed.
Fix: a module with the lookup of a distribution alone, by
`importlib.metadata`, stands in for it. A real one takes precedence.
openmim asks for more of it before this package is imported: the extra `mim`
keeps setuptools below 82.
Remove when mmengine asks `importlib.metadata`.
"""

from dataclasses import dataclass
from importlib import metadata
from types import ModuleType

from .stand_in import stand_in

NAME = 'pkg_resources'


class DistributionNotFound(Exception):
    """There is no such distribution."""


@dataclass(frozen=True)
class Distribution:
    """An installed distribution, as far as mmengine looks at it."""

    source: metadata.Distribution

    @property
    def version(self) -> str:
        """Its version."""
        return self.source.version

    @property
    def location(self) -> str:
        """The folder that its packages lie in."""
        return str(self.source.locate_file(''))

    def has_metadata(self, name: str) -> bool:
        """Whether its metadata has a file of this name."""
        return self.source.read_text(name) is not None

    def get_metadata(self, name: str) -> str:
        """Return a file of its metadata.

        Raises:
            FileNotFoundError: If there is none of this name.
        """
        text = self.source.read_text(name)
        if text is None:
            raise FileNotFoundError(f'{self.source.name} has no {name}')
        return text


def get_distribution(name: str) -> Distribution:
    """Return an installed distribution.

    Raises:
        DistributionNotFound: If there is none of this name.
    """
    try:
        return Distribution(metadata.distribution(name))
    except (metadata.PackageNotFoundError, ValueError) as error:
        raise DistributionNotFound(name) from error


def apply() -> None:
    """Registers the module, once."""
    stand_in(NAME, _fill)


def _fill(module: ModuleType) -> None:
    module.__doc__ = __doc__
    module.get_distribution = get_distribution
    module.DistributionNotFound = DistributionNotFound
