"""Which images of a set are odd to a model: a row of scores for each file, ranked among held-out images, and pictures.

The scores themselves are :mod:`davi.evaluation.scores`, the p-values :mod:`davi.evaluation.conformal`.
"""

from davi.scoring.pictures import contact_sheet, histogram
from davi.scoring.result import Calibration, Column, Files, Scores, held_out, score
from davi.scoring.tables import patches_csv, to_csv, to_terminal

__all__ = [
    "Calibration",
    "Column",
    "Files",
    "Scores",
    "contact_sheet",
    "held_out",
    "histogram",
    "patches_csv",
    "score",
    "to_csv",
    "to_terminal",
]
