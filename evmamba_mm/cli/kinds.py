"""Words where a class that a config names takes a switch or a number."""

import contextlib
import functools
import inspect
from collections.abc import Iterator, Mapping
from typing import Any, ParamSpec

from mmengine.registry import Registry

from ..own_files import is_own_class

P = ParamSpec('P')
# By the annotation of an argument; the libraries take 1 for True.
KINDS = {'bool': 'True or False', 'int': 'a number', 'float': 'a number'}


@contextlib.contextmanager
def kinds_checked() -> Iterator[None]:
    """Lets registries refuse words that a class would take for true.

    Raises:
        ValueError: By the body, where it builds such a config.
    """
    stock = Registry.build

    def build(*args: P.args, **kwargs: P.kwargs) -> Any:
        built = stock(*args, **kwargs)
        # Also read by the line that names what cannot be built.
        cfg = args[1] if len(args) > 1 else kwargs.get('cfg')
        if isinstance(cfg, Mapping):
            check_kinds(type(built), cfg)
        return built

    Registry.build = build
    try:
        yield
    finally:
        Registry.build = stock


def type_name(part: object) -> str:
    """Return the name of a config's class, without the modules around it."""
    kind = part.get('type') if isinstance(part, Mapping) else None
    name = getattr(kind, '__name__', None) or str(kind or '')
    return name.rpartition('.')[2]


def check_kinds(owner: type, config: Mapping[str, Any]) -> None:
    """Refuse a word as an argument that is annotated as one of KINDS.

    Raises:
        ValueError: It names the argument.
    """
    for name, value in config.items():
        kind = annotations_of(owner).get(name)
        # A class of the user's own may make numbers of words.
        if kind != 'bool' and is_own_class(owner, ('__init__',)):
            continue
        if kind in KINDS and isinstance(value, str):
            raise ValueError(f'{name} must be {KINDS[kind]}, got {value!r}')


@functools.cache
def annotations_of(owner: type) -> dict[str, str]:
    """Return the types of a class's arguments, also of its bases'.

    An argument whose default is a word takes words, whatever its type says.
    """
    found = {}
    for base in owner.__mro__:
        with contextlib.suppress(TypeError, ValueError):
            for name, parameter in inspect.signature(base).parameters.items():
                kind = parameter.annotation
                word = isinstance(parameter.default, str)
                kind = '' if word else getattr(kind, '__name__', str(kind))
                found.setdefault(name, kind)
    return found
