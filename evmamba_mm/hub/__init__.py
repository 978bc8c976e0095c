"""Where weights and names of models come from.

`register` tells mmengine how to load released files and `evmamba://` names,
and the toolboxes which models this package has. It imports no toolbox.
"""

from . import loading, zoo
from .released import RELEASED, Release

__all__ = ['RELEASED', 'Release', 'register']


def register() -> None:
    """Registers both; a second call changes nothing."""
    loading.register()
    zoo.register()
