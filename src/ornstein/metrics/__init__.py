"""Distances between sets of images, on features that say what they are.

>>> from ornstein import metrics
>>> net = metrics.features("lite0")  # doctest: +SKIP
>>> print(metrics.compare(metrics.statistics(mine, net), metrics.statistics(real, net)))  # doctest: +SKIP
FD-lite0 38.8, KID-lite0 0.002 ± 0.0011 (1000 against 1000 images)
"""

from ornstein.metrics.catalogue import features
from ornstein.metrics.classes import InceptionScore, InceptionScoreSums
from ornstein.metrics.diversity import Diversity, DiversityMeter
from ornstein.metrics.features import Features, NetworkFeatures, inception, lite0
from ornstein.metrics.frechet import Moments, frechet, frechet_distance
from ornstein.metrics.kernel import KernelDistance, Sample, kernel_distance, mmd2
from ornstein.metrics.manifold import Manifold, expected_coverage, manifold
from ornstein.metrics.measure import METRICS, Measured, label, measure
from ornstein.metrics.rarity import Rarity, rarity
from ornstein.metrics.score import Report, compare
from ornstein.metrics.sets import Collector, Statistics, statistics
from ornstein.metrics.vectors import Vectors

__all__ = [
    "METRICS",
    "Collector",
    "Diversity",
    "DiversityMeter",
    "Features",
    "InceptionScore",
    "InceptionScoreSums",
    "KernelDistance",
    "Manifold",
    "Measured",
    "Moments",
    "NetworkFeatures",
    "Rarity",
    "Report",
    "Sample",
    "Statistics",
    "Vectors",
    "compare",
    "expected_coverage",
    "features",
    "frechet",
    "frechet_distance",
    "inception",
    "kernel_distance",
    "label",
    "lite0",
    "manifold",
    "measure",
    "mmd2",
    "rarity",
    "statistics",
]
