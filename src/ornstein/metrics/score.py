"""The distance between two sets of images as a report whose names say which network it was measured with."""

from __future__ import annotations

from dataclasses import dataclass

from ornstein.metrics.frechet import frechet_distance
from ornstein.metrics.kernel import kernel_distance
from ornstein.metrics.measure import check, label
from ornstein.metrics.sets import Statistics


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How far set ``a`` is from set ``b``. Smaller is closer; compare reports with equal counts and features only."""

    features: str
    resolution: tuple[int, int]
    n_a: int
    n_b: int
    distance: float  # Fréchet distance
    kid: float
    kid_error: float | None  # standard error over blocks
    kid_blocks: int
    fingerprint_a: str
    fingerprint_b: str
    skipped: int = 0  # images of both sets that could not be read

    @property
    def names(self) -> tuple[str, str]:
        """What the two distances may be called: "FID" and "KID" on the standard Inception weights alone."""
        return label("fd", self.features), label("kid", self.features)

    def as_dict(self) -> dict[str, object]:
        """The report for JSON, e.g. ``{"FD-lite0": 38.8, "KID-lite0": 0.002, "KID-lite0 error": 0.001, …}``."""
        frechet, kernel = self.names
        return {
            frechet: self.distance,
            kernel: self.kid,
            f"{kernel} error": self.kid_error,
            f"{kernel} blocks": self.kid_blocks,
            "features": self.features,
            "resolution": list(self.resolution),
            "images": [self.n_a, self.n_b],
            "skipped": self.skipped,
            "fingerprints": [self.fingerprint_a, self.fingerprint_b],
        }

    def __str__(self) -> str:
        frechet, kernel = self.names
        error = "" if self.kid_error is None else f" ± {self.kid_error:.2g}"
        return f"{frechet} {self.distance:.4g}, {kernel} {self.kid:.4g}{error} ({self.n_a} against {self.n_b} images)"


def compare(a: Statistics, b: Statistics) -> Report:
    """The Fréchet and kernel distances between two sets of images.

    Raises `UsageError` for statistics of different features or resolutions, for parts that were not merged, and for
    fewer than two images.
    """
    check(a, b)
    assert a.resolution is not None
    width = a.moments.width
    kernel = kernel_distance(a.sample.rows(width), b.sample.rows(width))
    return Report(
        features=a.features,
        resolution=a.resolution,
        n_a=a.count,
        n_b=b.count,
        distance=frechet_distance(a.moments, b.moments),
        kid=kernel.value,
        kid_error=kernel.error,
        kid_blocks=kernel.blocks,
        fingerprint_a=f"{a.fingerprint:032x}",
        fingerprint_b=f"{b.fingerprint:032x}",
        skipped=a.skipped + b.skipped,
    )
