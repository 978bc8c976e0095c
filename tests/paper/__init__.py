from pathlib import Path

ROOT = Path(__file__).parents[2]
PAPER = ROOT / 'tools' / 'paper'
RESULTS = PAPER / 'results'
