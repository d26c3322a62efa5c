"""Distances between sets of images, on features that say what they are.

>>> from ornstein import metrics
>>> net = metrics.features("lite0")  # doctest: +SKIP
>>> print(metrics.compare(metrics.statistics(mine, net), metrics.statistics(real, net)))  # doctest: +SKIP
FD-lite0 38.8, KID-lite0 0.002 ± 0.0011 (1000 against 1000 images)
"""

from ornstein.metrics.features import Features, NetworkFeatures, features, inception, lite0
from ornstein.metrics.frechet import Moments, frechet, frechet_distance
from ornstein.metrics.kernel import KernelDistance, Sample, kernel_distance, mmd2
from ornstein.metrics.score import Report, compare
from ornstein.metrics.sets import Statistics, statistics

__all__ = [
    "Features",
    "KernelDistance",
    "Moments",
    "NetworkFeatures",
    "Report",
    "Sample",
    "Statistics",
    "compare",
    "features",
    "frechet",
    "frechet_distance",
    "inception",
    "kernel_distance",
    "lite0",
    "mmd2",
    "statistics",
]
