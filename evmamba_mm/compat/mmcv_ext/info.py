def get_compiler_version() -> str:
    """What stands for mmcv's compiler in a report of the environment."""
    return 'none (mmcv ops served by torchvision and torch)'


def get_compiling_cuda_version() -> str:
    """What a mmcv that was compiled without CUDA answers."""
    return 'not available'
