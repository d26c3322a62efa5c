"""Universal guidance: any differentiable score of the clean estimate steers any denoiser (Bansal et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from .. import scalars
from ..checks import OneLine
from ..denoisers import DenoiserLike, info_of, uncached
from ..errors import ConfigError
from ..estimates import Estimate
from ..paths.base import Cond
from ..scalars import Time, expand
from ..typed import typed
from .base import (
    CachedEvaluation,
    Rule,
    Strength,
    affine_path,
    condition_of,
    detached,
    differentiable,
    finite_rows,
    network_of,
    null_beside,
    pulled,
    strength_at,
)
from .checkpointing import checkpointed
from .energies import Energy, as_energies, rows_of, slope

Picture = Callable[[Tensor], Tensor]
Energies = tuple[tuple[float, Energy], ...]


@typed()
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Backward(OneLine):
    """Backward guidance: Δ = argmin ℓ(x̂_0 + Δ) by ``steps`` m descent steps from Δ = 0 (Bansal et al., eqs. 7–9).

    No gradient passes the denoiser, and it is not called. In terms of the noise the result is the paper's update,
    ε ← ε − (α/σ)·Δ: exactly the noise whose clean estimate is x̂_0 + Δ.

    * ``rate``: step size. For a quadratic energy of curvature 1/std² it must stay below 2·std².
    * ``descent``: "gradient" (the paper): Δ ← Δ − rate·∇ℓ. "adam" (the authors' code): a fresh Adam with PyTorch's
      constants, whose first steps have the size ``rate`` a pixel whatever the energy's scale.
    * ``centre``: "guided" (the code) starts from the forward-guided clean estimate. "plain" (the paper) starts from the
      unguided one, and the two shifts add: with the same energy in both they count the evidence twice.
    * ``clamp``: (low, high), the clean sample is kept in this range before each step and after the last (the code);
      without steps it is clamped all the same.
    * ``cutoff``: samples whose energy is below it stand still (the code: 1e-5). Those in which no guide finds anything
      are left as they are, unclamped too.
    * ``energies``: by default those of the `Universal` guidance, weights included; its strength does not enter.
    * ``space``: "image" descends on the decoded picture and encodes the result (the code's text-CLIP script); it
      needs ``encode``. By default the descent is in the space of the clean estimate, through the decoder.
    """

    steps: int
    rate: float
    descent: Literal["gradient", "adam"] = "gradient"
    centre: Literal["guided", "plain"] = "guided"
    clamp: tuple[float, float] | None = None
    cutoff: float | None = None
    energies: Any = None
    space: Literal["clean", "image"] = "clean"

    def __post_init__(self) -> None:
        if self.steps < 0 or self.rate < 0.0:
            raise ConfigError(f"backward guidance needs steps ≥ 0 and rate ≥ 0, got {self.steps} and {self.rate}")
        if self.energies is not None:
            object.__setattr__(self, "energies", as_energies(self.energies))

    def descend(self, clean: Tensor, gradient: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        """``clean`` after the steps; ``gradient(clean)`` gives (∇ℓ, ℓ (B,)), NaN where there is nothing to go by."""
        if self.steps == 0:
            return clean if self.clamp is None else clean.clamp(*self.clamp)
        begun, heard = clean, torch.zeros(len(clean), dtype=torch.bool, device=clean.device)
        first, second = torch.zeros_like(clean), torch.zeros_like(clean)
        for step in range(1, self.steps + 1):
            clean = clean if self.clamp is None else clean.clamp(*self.clamp)
            slope_, values = gradient(clean)
            heard = heard | ~values.isnan()
            if self.descent == "adam":
                first, second = 0.9 * first + 0.1 * slope_, 0.999 * second + 0.001 * slope_.square()
                slope_ = (first / (1.0 - 0.9**step)) / ((second / (1.0 - 0.999**step)).sqrt() + 1e-8)
            moved = clean - self.rate * slope_
            if self.cutoff is not None:
                moved = torch.where(_column(values < self.cutoff, clean), clean, moved)
            clean = moved
        clean = clean if self.clamp is None else clean.clamp(*self.clamp)
        return torch.where(_column(heard, clean), clean, begun)


@typed()
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Universal(Rule):
    """Universal guidance by ``energies`` of the clean estimate, forward and backward, for any denoiser.

    **Forward** (eq. 6 of the paper, s(t) = w·√(1 − ᾱ), in terms of x = α·x_0 + σ·z):

        x̂_0 ← x̂_0 − w·(σ²/α)·∇_x ℓ(decode(x̂_0(x)))

    which is score ← score − w·∇_x ℓ. ``strength`` w is a number or a function of the log-SNR; 0 with no `Backward` is
    no guidance, bit for bit and without a gradient. There is none at pure noise (α = 0).

    **Backward**: see `Backward`. **Recurrence** is the grid's business: ``grids.resample(grid, k)``.

    Args:
        energies: one callable clean (B, *event) → (B,), or several, each alone or as (weight, callable); see
            `ornstein.guidance.energies`. They see pictures: latents are decoded.
        strength: w. With an energy that is a negative log-likelihood, w = 1 omits the uncertainty of x̂_0 and
            over-concentrates; `corrected` gives the strength that recovers an exact Gaussian posterior, and
            `LinearPosterior` the matrix form.
        differentiate_through: "network" differentiates through the denoiser. "estimate" stops at x̂_0 and takes
            σ̄²/(1 + σ̄²), the posterior variance of unit-variance data, for (σ²/α)·∂x̂_0/∂x: no pass through the network,
            for large models.
        backward: None, or the descent on the clean estimate.
        decode: latents (B, c, h, w) → pictures, by default that of the denoiser's own codec, if it has one; gradients
            pass it. ``decode=lambda z: z`` is for energies of the latents themselves.
        encode: its inverse, for ``Backward(space="image")``, by default the codec's too.
        at: a condition under which the gradient's estimate is taken, instead of the model's own. With the null
            condition, ``add(CFG(…), Universal(…, at=null))`` is the authors' code for detection, where
            classifier-free guidance is kept apart; ``compose(CFG(…), Universal(…))`` is its joint form.
        limit: largest root-mean-square of a sample's forward shift of x̂_0; longer ones are shortened.
        checkpoint: recompute the network's blocks and the decoder in the backward pass, instead of storing them.
        chunk: so many samples at a time, to bound the memory; energies with a target for each sample need ``rows``.

    Gradients that are not finite are left out, sample by sample. The estimate carries no graph, and nothing is kept
    between evaluations. Within an outer guidance that differentiates, the shift counts as a constant.

    >>> import torch, ornstein as orn
    >>> model = orn.Denoiser(lambda x, time: 0.5 * x, path=orn.VP(), predicts="clean", shape=(1, 4, 4))
    >>> bright = Universal(energies=lambda clean: -clean.flatten(1).mean(1), strength=10.0)
    >>> plain, guided = (orn.sample(m, n=1, steps=5, sampler="ddim") for m in (model, bright(model)))
    >>> float(guided.mean()) > float(plain.mean())
    True
    """

    energies: Any
    strength: Strength = 1.0
    differentiate_through: Literal["network", "estimate"] = "network"
    backward: Backward | None = None
    decode: Picture | None = field(default=None, repr=False)
    encode: Picture | None = field(default=None, repr=False)
    at: Cond | None = field(default=None, repr=False)
    limit: float | None = None
    checkpoint: bool = False
    chunk: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "energies", as_energies(self.energies))
        if (self.decode is None) != (self.encode is None) and self.backward and self.backward.space == "image":
            raise ConfigError('backward guidance with space="image" needs decode=… and encode=…, or neither')
        if self.chunk is not None and self.chunk < 1:
            raise ConfigError(f"chunk must be at least 1, got {self.chunk}")

    @classmethod
    def as_in_paper(
        cls, energies: Any, strength: float, *, steps: int = 0, rate: float = 0.0, **rest: Any
    ) -> Universal:
        """The algorithm of the paper: Δ found by plain descent around the *unguided* estimate, both shifts added."""
        return cls(
            energies=energies, strength=strength, backward=Backward(steps=steps, rate=rate, centre="plain"), **rest
        )

    @classmethod
    def as_in_code(
        cls, energies: Any, strength: float, *, steps: int = 0, rate: float = 0.01, **rest: Any
    ) -> Universal:
        """What the authors' code does: Adam in [−1, 1] around the forward-guided estimate, resting below 1e-5.

        Without steps (``steps=0``) the forward-guided estimate is still clamped to [−1, 1], and the noise follows it.
        """
        backward = Backward(steps=steps, rate=rate, descent="adam", clamp=(-1.0, 1.0), cutoff=1e-5)
        return cls(energies=energies, strength=strength, backward=backward, **rest)

    @property
    def differentiates(self) -> bool:
        """Whether the gradient passes through the network."""
        return self.differentiate_through == "network"

    def estimate(self, inner: DenoiserLike, x: Tensor, t: Time) -> Estimate:
        """The guided estimate."""
        if self.decode is None and (codec := info_of(inner).codec) is not None:
            return replace(self, decode=codec.decode, encode=codec.encode).estimate(inner, x, t)
        forward, backward = self._forward(inner, t), self.backward
        if backward is not None and (backward.steps == 0 or backward.rate == 0.0):
            backward = None if backward.clamp is None else replace(backward, steps=0)
        if forward is None and backward is None:
            return inner(x, t)
        if self.chunk is not None and x.shape[0] > self.chunk:
            return self._chunked(inner, x, t, self.chunk)
        shift, plain = (None, inner(x, t)) if forward is None else self._shifted(inner, x, t, forward)
        guided = plain.clean if shift is None else plain.clean + shift
        if backward is not None:
            start = guided.detach() if backward.centre == "guided" else plain.clean.detach()
            guided = guided + (self._descended(backward, start) - start)
        return plain.replace(clean=guided)

    def _forward(self, inner: DenoiserLike, t: Time) -> Time | None:
        """w·σ²/α (or w·V with differentiate_through="estimate"), or None where there is no forward guidance."""
        if not callable(self.strength) and self.strength == 0.0:
            return None
        path = affine_path(inner.path, "forward guidance")
        weight, alpha, sigma = strength_at(self.strength, path, t), path.alpha(t), path.sigma(t)
        if not isinstance(weight, Tensor) and weight == 0.0:
            return None
        if self.differentiate_through == "estimate":
            return weight * sigma**2 / (alpha**2 + sigma**2)
        if not isinstance(alpha, Tensor) and alpha == 0.0:
            return None
        return weight * sigma**2 / alpha

    def _shifted(self, inner: DenoiserLike, x: Tensor, t: Time, factor: Time) -> tuple[Tensor, Estimate]:
        """(forward shift of x̂_0, the unguided estimate)."""
        unconditional = inner if self.at is None else inner.with_condition(null_beside(self.at, inner))
        if self.differentiate_through == "estimate":
            plain = inner(x, t)
            gradient = self._slope((plain if unconditional is inner else unconditional(x, t)).clean)[0]
        else:
            outer = torch.is_grad_enabled() and x.requires_grad
            with torch.inference_mode(False), torch.enable_grad():
                with checkpointed(network_of(inner)) if self.checkpoint else nullcontext():
                    leaf, known = differentiable(unconditional, x, t)
                cotangent = self._slope(known.clean)[0]
                gradient = pulled(known, leaf, cotangent, keep=outer or isinstance(inner, CachedEvaluation))
            plain = inner(x, t) if self.at is not None else known if outer else detached(known, x)
        shift = -expand(factor, x) * finite_rows(gradient.detach())
        return shift if self.limit is None else _limited(shift, self.limit), plain

    def _slope(self, clean: Tensor, given: Energies | None = None) -> tuple[Tensor, Tensor]:
        """(∇ℓ at a clean estimate, through the decoder; ℓ (B,))."""
        energies: Energies = self.energies if given is None else given
        if self.decode is None:
            return slope(energies, clean)
        with torch.inference_mode(False), torch.enable_grad():
            leaf = (clean.clone() if clean.is_inference() else clean.detach()).requires_grad_()
            image = _recomputed(self.decode, leaf) if self.checkpoint else self.decode(leaf)
            gradient, values = slope(energies, image)
            (gradient,) = torch.autograd.grad(image, leaf, gradient)
        return finite_rows(gradient), values

    def _descended(self, backward: Backward, start: Tensor) -> Tensor:
        energies: Energies = self.energies if backward.energies is None else backward.energies
        if backward.space == "clean":
            return backward.descend(start, lambda clean: self._slope(clean, energies))
        if self.decode is None or self.encode is None:
            raise ConfigError(
                'backward guidance with space="image" needs decode=… and encode=…, or a model with a codec'
            )
        with torch.no_grad():
            image = self.decode(start)
        moved = backward.descend(image, lambda picture: slope(energies, picture))
        with torch.no_grad():  # what no guide has moved would still change by being decoded and encoded
            return torch.where(_column((moved != image).flatten(1).any(1), start), self.encode(moved), start)

    def _chunked(self, inner: DenoiserLike, x: Tensor, t: Time, size: int) -> Estimate:
        """The same, ``size`` rows at a time."""
        inner = uncached(
            inner
        )  # a memory would keep the graphs of all chunks, and no other guidance asks for these rows
        at = None if self.at is None else null_beside(self.at, inner)
        parts = [
            self._rows(which, at).estimate(_bound(inner, which, len(x)), x[which], _row(t, which))
            for which in _slices(len(x), size)
        ]
        extras = {key: torch.cat([part.extras[key] for part in parts]) for key in parts[0].extras}
        return Estimate(x, t, inner.path, clean=torch.cat([part.clean for part in parts]), extras=extras)

    def _rows(self, which: slice, at: Cond | None) -> Universal:
        backward = self.backward
        if backward is not None and backward.energies is not None:
            backward = replace(backward, energies=_each(backward.energies, which))
        at = None if at is None else {k: v if v.shape[0] == 1 else v[which] for k, v in at.items()}
        return replace(self, chunk=None, energies=_each(self.energies, which), backward=backward, at=at)


def _each(energies: Energies, which: slice) -> Energies:
    return tuple((weight, rows_of(energy, which)) for weight, energy in energies)


def _slices(rows: int, size: int) -> Iterator[slice]:
    return (slice(begin, min(begin + size, rows)) for begin in range(0, rows, size))


def _row(t: Time, which: slice) -> Time:
    return t[which] if isinstance(t, Tensor) and t.ndim else t


def _bound(inner: DenoiserLike, which: slice, rows: int) -> DenoiserLike:
    """The denoiser with its condition cut to some rows."""
    cond = condition_of(inner)
    if not cond or all(value.shape[0] != rows for value in cond.values()):
        return inner
    return inner.with_condition({k: v[which] if v.shape[0] == rows else v for k, v in cond.items()})


def _column(rows: Tensor, like: Tensor) -> Tensor:
    return rows.reshape(-1, *(1,) * (like.ndim - 1))


def _limited(shift: Tensor, limit: float) -> Tensor:
    size = shift.flatten(1).square().mean(1).sqrt().clamp_min(torch.finfo(shift.dtype).tiny)
    return shift * expand((limit / size).clamp(max=1.0), shift)


def _recomputed(function: Picture, x: Tensor) -> Tensor:
    from torch.utils.checkpoint import checkpoint

    out: Any = checkpoint(function, x, use_reentrant=False)
    return out


def corrected(std: float, variance: float = 1.0, weight: float = 1.0) -> Callable[[Time], Time]:
    """The strength that makes up for the uncertainty of x̂_0:  w·std²/(std² + V),  V = v/(1 + v·SNR).

    For Gaussian data of ``variance`` v and the energy ‖y − x_0‖²/(2·std²), forward guidance of this strength samples
    the exact posterior; with w = 1 alone it over-concentrates by the factor 1 + V/std².

    >>> corrected(0.5, variance=1.0)(0.0)
    0.3333333333333333
    """

    def strength(log_snr: Time) -> Time:
        left = variance / (1.0 + variance * scalars.exp(log_snr))
        return weight * std**2 / (std**2 + left)

    return strength


__all__ = ["Backward", "Universal", "corrected"]
