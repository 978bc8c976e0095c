"""Provides a module under a name that nothing else has."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType


def stand_in(name: str, fill: Callable[[ModuleType], None]) -> None:
    """Let ``import name`` make a module, which a function fills.

    A module that is found elsewhere takes precedence. A second call with the
    same arguments changes nothing.
    """
    finder = _Finder(name, fill)
    if finder not in sys.meta_path:
        sys.meta_path.append(finder)


@dataclass(frozen=True)
class _Finder(MetaPathFinder, Loader):
    name: str
    fill: Callable[[ModuleType], None]

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        return (
            spec_from_loader(fullname, self) if fullname == self.name else None
        )

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        self.fill(module)
