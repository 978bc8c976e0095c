"""Spares the tests repeated work of Triton's interpreter."""

import functools
import importlib.util
import inspect


def hurry():
    """Readies Triton's language once for each launch.

    The interpreter looks through all of `triton.language` at each call of a
    function inside of a kernel, which takes a third of a kernel's time.
    """
    if not importlib.util.find_spec('triton'):
        return
    from triton.runtime import interpreter

    if not hasattr(interpreter, '_LangPatchScope'):
        return
    language = interpreter.tl
    patch, empty = interpreter._patch_lang, interpreter._LangPatchScope
    # The first scope is of the launch, and ends with it.
    scopes = {}

    @functools.cache
    def parts(function):
        found = filter(inspect.ismodule, function.__globals__.values())
        return frozenset(
            part.__name__
            for part in found
            if part in (language, language.core)
        )

    def patch_once(function):
        if scopes and not next(iter(scopes.values()))._changes:
            scopes.clear()
        used = parts(function)
        if used in scopes:
            return empty()
        scopes[used] = patch(function)
        return scopes[used]

    interpreter._patch_lang = patch_once
