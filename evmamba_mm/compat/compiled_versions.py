"""Lets the compiler trace mmengine's mixed precision.

Breaks: `compile = True` in a config with AmpOptimWrapper, on torch 2.11:
"InternalTorchDynamoError" in the first iteration. Torch 2.14 traces it.
Why: mmengine's autocast compares versions in each call, as lists, and the
compiler follows neither how packaging reads them nor the comparison.
Fix: there a version is a number, which the compiler asks for once.
Remove when torch 2.11 is no longer served.
"""

from types import ModuleType

from mmengine.utils import digit_version

from .after_import import after_import


def apply() -> None:
    """Makes the fix once mmengine's autocast is imported."""
    after_import('mmengine.runner.amp', _mend)


def _mend(module: ModuleType) -> None:
    module.digit_version = _number


def _number(version: str) -> int:
    """Versions of releases as integers of the same order."""
    number = 0
    for part in digit_version(version)[:4]:
        number = 1000 * number + part
    return number


# What torch.compiler.assume_constant_result sets, without its imports.
_number._dynamo_marked_constant = True
