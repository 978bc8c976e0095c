import torch


def unserved_error(op: str) -> NotImplementedError:
    """The error of an op without a replacement; docs/install.md lists them."""
    return NotImplementedError(
        f'mmcv op {op} needs the compiled ops of the full mmcv, which this '
        'environment does not have. Replace mmcv-lite by a build for your '
        "torch: `pip uninstall -y mmcv-lite`, then `mim install 'mmcv>="
        "2.0.0rc4,<2.2.0'`. Builds exist for older releases of torch only; "
        f'torch {torch.__version__} is installed.'
    )


def unserved_op(name: str) -> '_UnservedOp':
    """The `__getattr__` of `mmcv._ext`: an op that raises when called."""
    if name.startswith('__'):
        raise AttributeError(f"module 'mmcv._ext' has no attribute {name!r}")
    return _UnservedOp(name)


class _UnservedOp:
    def __init__(self, name: str):
        self.name = name

    def __repr__(self) -> str:
        return f'<mmcv op {self.name}, not served>'

    # A property raises before any argument is looked at, so that the call
    # fails with this error whatever the op's signature is.
    @property
    def __call__(self):
        raise unserved_error(self.name)
