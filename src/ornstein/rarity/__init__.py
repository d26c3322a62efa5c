"""Rarity: how unusual every image of a data set is to a trained model, in numbers, in classes, and from noisy images.

from ornstein import rarity

table = rarity.Table.read("scores.csv")
classes = rarity.quantile_classes(table.scores, 10)            # 9 is the rarest tenth
classifier = rarity.load("runs/rarity")                        # made by `ornstein train rarity-classifier`
"""

from ..metrics.pairs import distance
from ..models.rarity import RarityClassifier
from ..runs.rarity import load
from .classes import held_out, normal_scores, quantile_classes
from .scoring import LSUN_LOG_SNR, Recipe, one_step, rarities, score
from .table import Table

__all__ = [
    "LSUN_LOG_SNR",
    "RarityClassifier",
    "Recipe",
    "Table",
    "distance",
    "held_out",
    "load",
    "normal_scores",
    "one_step",
    "quantile_classes",
    "rarities",
    "score",
]
