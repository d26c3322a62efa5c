"""The part of `ornstein sample` about images between images, variations of one, and the posterior of a pyramid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from ..errors import UsageError
from ..options import Count, Index, Share

if TYPE_CHECKING:
    import torch

    from ..denoisers import Denoiser
    from ..interpolation import Latents
    from ..paths.base import Path
    from ..randomness import NoiseSource


@dataclass(frozen=True, kw_only=True)
class LatentArgs:
    """What else but (seed, number) an image's noise may be."""

    interpolate: tuple[Index, Index] | None = None
    """Numbers A B of two images of the stream: --n images from the one to the other, by their noise."""
    resample_level: Count | None = None
    """A level of a udpm model: image --first, and then variations of it with fresh noise at this level alone, 1 for
    details to the last for everything."""
    keep_noise: Share = 0.0
    """With --resample-level, the share of the level's own noise that is kept: 1 changes nothing."""
    posterior: Literal["exact", "published"] | None = None
    """The posterior between the levels of a udpm model, if not the one of its training."""

    def latents(self, n: int, seed: int, first: int, resample: int, path: Path) -> Latents | None:
        """Where the noise of the call comes from, if not from seed and number; `UsageError` for what does not fit."""
        from ..interpolation import Between, Varied, level_key

        if self.interpolate is not None and self.resample_level is not None:
            raise UsageError("give --interpolate or --resample-level, not both")
        if self.keep_noise and self.resample_level is None:
            raise UsageError(f"--keep-noise {self.keep_noise:g} belongs to --resample-level: name a level")
        if self.interpolate is not None:
            a, b = self.interpolate
            return Between(a=a, b=b, frames=n, seed=seed)
        if self.resample_level is None:
            return None
        if resample > 1:
            raise UsageError("--resample-level needs every level once: leave --resample out")
        return Varied(image=first, key=level_key(path, self.resample_level), keep=self.keep_noise, seed=seed)

    def ruled(self, model: Denoiser) -> Denoiser:
        """The model with the posterior asked for; `UsageError` where its path has no choice."""
        from ..paths import PyramidPath

        if self.posterior is None:
            return model
        if not isinstance(model.path, PyramidPath):
            raise UsageError(
                f"--posterior {self.posterior}: a {type(model.path).__name__} has one alone, a model of train udpm two"
            )
        return replace(model, path=replace(model.path, rule=self.posterior))

    def record(self) -> Mapping[str, Any]:
        """What of this was asked for, for the record."""
        given = {"interpolate": self.interpolate, "resample_level": self.resample_level, "posterior": self.posterior}
        found = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items() if value}
        return found | ({"keep_noise": self.keep_noise} if self.resample_level is not None else {})


@dataclass(frozen=True, kw_only=True)
class Later:
    """The noise of a later part of a call."""

    latents: Latents
    start: int

    def __call__(self, rows: range, device: torch.device, dtype: torch.dtype) -> NoiseSource:
        """See `Latents`."""
        return self.latents(range(self.start + rows.start, self.start + rows.stop), device, dtype)
