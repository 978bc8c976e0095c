"""Inference, features and weights, called from Python.

predictor = load_predictor('my_detector.py', 'epoch_12.pth')
for outcome in predict(predictor, ['a.jpg', 'b.jpg'], batch_size=2):
    print(predictor.describe(outcome.sample))
maps = extract_features(predictor, 'a.jpg')
maps = image_features(load_backbone('tiny'), Image.open('a.jpg'))
"""

from .backbone import image_features, load_backbone
from .convert import convert_checkpoint
from .features import extract_features
from .fetch import fetch, fetch_released
from .inference import load_predictor, predict, predict_files
from .predictors import build_predictor

__all__ = [
    'build_predictor',
    'convert_checkpoint',
    'extract_features',
    'fetch',
    'fetch_released',
    'image_features',
    'load_backbone',
    'load_predictor',
    'predict',
    'predict_files',
]
