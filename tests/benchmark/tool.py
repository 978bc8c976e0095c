"""The script, as a module."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / 'tools' / 'analysis_tools' / 'benchmark.py'
spec = importlib.util.spec_from_file_location('benchmark_tool', SCRIPT)
benchmark = importlib.util.module_from_spec(spec)
spec.loader.exec_module(benchmark)


def run(*argv):
    return benchmark.main([*map(str, argv)])
