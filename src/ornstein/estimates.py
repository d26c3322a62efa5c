"""What a denoiser returns: an estimate of the clean sample, also available as noise, velocity or score."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, Protocol, cast

from torch import Tensor

from .checks import one_line
from .errors import PathError
from .scalars import Time, expand

_NOTHING: Mapping[str, Tensor] = MappingProxyType({})  # copied into every estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Gaussian:
    """N(mean, root·rootᵀ); ``root`` is a number, or the linear map that colours white noise of the mean's shape."""

    mean: Tensor
    root: float | Tensor | Callable[[Tensor], Tensor]

    def sample(self, noise: Tensor) -> Tensor:
        """mean + root(noise)."""
        if callable(self.root):
            return self.mean + self.root(noise)
        return self.mean + expand(self.root, noise) * noise


class ConvertiblePath(Protocol):
    """The methods of a `LocationPath` with which an estimate turns one prediction into another."""

    def std(self, t: Any) -> Any:
        """Standard deviation of x_t given x_0."""
        ...

    def rates(self, t: Any) -> tuple[Any, Any]:
        """(dα/dt, dσ/dt)."""
        ...

    def mean_of(self, estimate: Estimate, t: Time) -> Tensor:
        """E[x_t | x_0] at the estimate."""
        ...

    def clean_from_noise(self, x: Tensor, noise: Tensor, t: Time) -> Tensor:
        """x_0 from x_t and z."""
        ...

    def from_velocity(self, x: Tensor, velocity: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        """(x_0, z) from x_t and dx_t/dt."""
        ...


class Estimate:
    """An estimate at (x, t) on a path, immutable; it holds one prediction and derives the others on first access.

    Exactly one of ``clean`` (x_0), ``noise`` (z of x_t = mean + std·z) and ``velocity`` (dx_t/dt along the
    probability-flow ODE) is given. ``extras`` carries further outputs of the same forward pass, such as ``"variance"``
    (log-variance interpolation of a learned-variance network) or ``"front"``.

    Conversions from clean to noise work on every `LocationPath`; velocity and clean-from-noise need an `AffinePath`.
    """

    __slots__ = ("_clean", "_noise", "_velocity", "extras", "path", "t", "x")

    x: Tensor
    t: Time
    path: Any
    extras: Mapping[str, Tensor]
    _clean: Tensor | None
    _noise: Tensor | None
    _velocity: Tensor | None

    def __init__(
        self,
        x: Tensor,
        t: Time,
        path: Any,
        *,
        clean: Tensor | None = None,
        noise: Tensor | None = None,
        velocity: Tensor | None = None,
        extras: Mapping[str, Tensor] = _NOTHING,
    ) -> None:
        if (clean is None) + (noise is None) + (velocity is None) != 2:
            raise TypeError("an Estimate is made from exactly one of clean, noise and velocity")
        put = object.__setattr__
        put(self, "x", x)
        put(self, "t", t)
        put(self, "path", path)
        put(self, "extras", dict(extras) if extras else _NOTHING)
        put(self, "_clean", clean)
        put(self, "_noise", noise)
        put(self, "_velocity", velocity)

    def __repr__(self) -> str:
        forms = {"clean": self._clean, "noise": self._noise, "velocity": self._velocity}
        held = {name: value for name, value in forms.items() if value is not None}
        return one_line(self, {"x": self.x, "t": self.t, **held, **self.extras, "path": self.path})

    @property
    def prediction(self) -> Tensor:
        """One prediction that it holds already, whichever: nothing is computed."""
        held = self._clean if self._noise is None else self._noise
        return cast("Tensor", self._velocity if held is None else held)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"an Estimate is immutable: make another with replace(), instead of setting {name!r}")

    def _keep(
        self, *, clean: Tensor | None = None, noise: Tensor | None = None, velocity: Tensor | None = None
    ) -> None:
        """Remember derived predictions."""
        for name, value in (("_clean", clean), ("_noise", noise), ("_velocity", velocity)):
            if value is not None:
                object.__setattr__(self, name, value)

    def __getstate__(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name in self.__slots__)

    def __setstate__(self, state: tuple[object, ...]) -> None:
        for name, value in zip(self.__slots__, state, strict=True):
            object.__setattr__(self, name, value)

    def held(self, name: Literal["clean", "noise", "velocity"]) -> Tensor | None:
        """The prediction of this name if it is there already, without deriving it."""
        return getattr(self, f"_{name}")

    @property
    def clean(self) -> Tensor:
        """x̂_0."""
        if self._clean is not None:
            return self._clean
        if self._noise is not None:
            clean = self._location("clean").clean_from_noise(self.x, self._noise, self.t)
            self._keep(clean=clean)
        else:
            clean, noise = self._from_velocity()
            self._keep(clean=clean, noise=noise)
        return clean

    @property
    def noise(self) -> Tensor:
        """ẑ = (x − mean(x̂_0, t)) / std(t)."""
        if self._noise is not None:
            return self._noise
        if self._clean is not None:
            path = self._location("noise")
            noise = (self.x - path.mean_of(self, self.t)) / expand(path.std(self.t), self.x)
            self._keep(noise=noise)
        else:
            clean, noise = self._from_velocity()
            self._keep(clean=clean, noise=noise)
        return noise

    @property
    def velocity(self) -> Tensor:
        """dx/dt = α'·x̂_0 + σ'·ẑ (affine paths)."""
        if self._velocity is not None:
            return self._velocity
        d_alpha, d_sigma = self._location("velocity").rates(self.t)
        velocity = expand(d_alpha, self.x) * self.clean + expand(d_sigma, self.x) * self.noise
        self._keep(velocity=velocity)
        return velocity

    @property
    def score(self) -> Tensor:
        """∇ log p_t(x) ≈ −ẑ/std(t)."""
        return -self.noise / expand(self._location("score").std(self.t), self.x)

    def replace(self, *, clean: Tensor) -> Estimate:
        """The estimate at the same (x, t) with another clean sample: what a guidance returns."""
        return Estimate(self.x, self.t, self.path, clean=clean, extras=self.extras)

    @staticmethod
    def mix(*terms: tuple[float, Estimate]) -> Estimate:
        """∑ wᵢ·x̂_0⁽ⁱ⁾ with weights that sum to one; a single term comes back untouched, bit for bit.

        The mixture stands at the (x, t) of the first term with a weight, and carries that term's extras.
        """
        if not terms or not abs(sum(weight for weight, _ in terms) - 1.0) <= 1e-9:
            raise ValueError(f"weights of a mixture of estimates must sum to 1, got {[w for w, _ in terms]}")
        used = [(weight, estimate) for weight, estimate in terms if weight != 0.0]
        if len(used) == 1:
            return used[0][1]
        clean = used[0][0] * used[0][1].clean
        for weight, estimate in used[1:]:
            clean = clean + weight * estimate.clean
        return used[0][1].replace(clean=clean)

    def _location(self, what: str) -> ConvertiblePath:
        path = self.path
        if not hasattr(path, "std"):  # a protocol's isinstance would look up every method at every step
            raise PathError(f"{type(path).__name__} has no mean and std: its estimates have no {what!r}, only 'clean'")
        return cast("ConvertiblePath", path)

    def _from_velocity(self) -> tuple[Tensor, Tensor]:
        assert self._velocity is not None
        if not hasattr(self.path, "from_velocity"):
            raise PathError(f"{type(self.path).__name__} has no rates(t): a velocity prediction needs an AffinePath")
        return cast("ConvertiblePath", self.path).from_velocity(self.x, self._velocity, self.t)
