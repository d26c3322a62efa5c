"""The convergence lab: exact targets, exact error meters, and measured orders beside the declared ones."""

from .targets import G8, M1, M2, M64, ExactDenoiser, GaussianTarget, Gdeg, Giso, M1p, M1s, MixtureTarget, PointsTarget

__all__ = [
    "G8",
    "M1",
    "M2",
    "M64",
    "ExactDenoiser",
    "GaussianTarget",
    "Gdeg",
    "Giso",
    "M1p",
    "M1s",
    "MixtureTarget",
    "PointsTarget",
]
