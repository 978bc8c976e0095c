"""Runs a function on a module of a toolbox right after its import."""

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


def after_import(name: str, run: Callable[[ModuleType], None]) -> None:
    """Call ``run`` on a module once it is imported, or now if it is.

    A second call with the same arguments changes nothing.
    """
    if name in sys.modules:
        run(sys.modules[name])
        return
    finder = _Finder(name, run)
    if finder not in sys.meta_path:
        sys.meta_path.insert(0, finder)


class _Finder(MetaPathFinder):
    def __init__(self, name: str, run: Callable[[ModuleType], None]) -> None:
        self.name = name
        self.run = run

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Finder) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self.name, self.run))

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        # Another function may wait for the same module.
        rest = (
            finder
            for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]
            if isinstance(finder, _Finder) and finder.name == fullname
        )
        finder = next(rest, PathFinder)
        spec = finder.find_spec(fullname, path)
        if spec is not None:
            self._wrap(spec)
        return spec

    def _wrap(self, spec: ModuleSpec) -> None:
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            self.run(module)

        spec.loader.exec_module = exec_module
