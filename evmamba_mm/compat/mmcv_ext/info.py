def get_compiler_version() -> str:
    """Replaces mmcv's compiler in a report of the environment."""
    return 'none (mmcv ops served by torchvision and torch)'


def get_compiling_cuda_version() -> str:
    """The answer of an mmcv that was compiled without CUDA."""
    return 'not available'
