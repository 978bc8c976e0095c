"""What a person calls from Python: inference, features, weights."""

from .convert import convert_checkpoint
from .features import extract_features
from .fetch import fetch
from .inference import load_predictor, predict, predict_files
from .predictors import build_predictor

__all__ = [
    'build_predictor',
    'convert_checkpoint',
    'extract_features',
    'fetch',
    'load_predictor',
    'predict',
    'predict_files',
]
