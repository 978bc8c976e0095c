"""Time and memory of models, scans and detectors."""

from .models import build_classifier
from .rows import Row
from .timing import Measured, measure

__all__ = ['Measured', 'Row', 'build_classifier', 'measure']
