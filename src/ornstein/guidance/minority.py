"""Minority guidance and its successors: toward samples that are rare in the data.

`Minority` takes a trained classifier of rarity (Um, Lee & Ye 2024). `SelfMinority` and `MinorityPrompt` need none: they
measure how far the model itself reconstructs its own clean estimate, and make that larger, by the state or by an extra
token of the prompt. Boost-and-Skip needs no gradient at all: ``ornstein.sample(…, prior_scale=…, skip_steps=…)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path as File
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from .. import grids
from ..denoisers import DenoiserLike, info_of, uncached
from ..errors import ConfigError, UsageError
from ..estimates import Estimate
from ..grids import GridLike
from ..paths.base import AffinePath, Cond
from ..randomness import Noise
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
    pulled,
    strength_at,
)
from .classifier import NoisyClassifier

Pair = Callable[[Tensor, Tensor], Tensor]


@runtime_checkable
class Rarities(Protocol):
    """The classifier that `Minority` needs: `ornstein.rarity.RarityClassifier` is one."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels that it takes, empty if none."""
        ...

    def number(self, target: int) -> int:
        """The class that ``target`` names; negative numbers count from the rarest."""
        ...

    def log_likelihood(self, state: Tensor, log_snr: Tensor, target: int, label: Tensor | None = None) -> Tensor:
        """log p(target | state of unit variance, log-SNR), (B,)."""
        ...


@typed()
@dataclass(frozen=True, slots=True, eq=False)
class Minority(Rule):
    """Minority guidance (Um, Lee & Ye 2024): a `NoisyClassifier` of classes of rarity.

        score ← score + w·∇_x log p(class of rarity | x, log-SNR)

    ``classifier``: what `ornstein.rarity.load` made of a run of ``ornstein train rarity-classifier``. ``target``: a
    class from 0, the most common, to L − 1, the rarest; −1 is the rarest, too. ``weight`` w: 0 is no guidance; 1
    samples the class exactly if model and classifier are exact; larger weights overshoot.

    A classifier that takes labels gets those of the bound condition, or none.

    Raises `UsageError` for a class that is none, and `ConfigError` for anything that is no rarity classifier.
    """

    classifier: Any = field(repr=False)
    target: int = -1
    weight: Strength = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.classifier, Rarities):
            raise ConfigError(
                f"Minority needs a rarity classifier, got a {type(self.classifier).__name__}: open a run of `ornstein "
                "train rarity-classifier` with ornstein.rarity.load; for any other classifier of noisy samples use "
                "NoisyClassifier"
            )
        self.classifier.number(self.target)

    def estimate(self, inner: DenoiserLike, x: Tensor, t: Time) -> Estimate:
        """The inner estimate, moved toward the class."""
        classifier = cast("Rarities", self.classifier)
        cond = condition_of(inner) or {}
        label = cond.get("label") if classifier.labels else None
        if label is not None:
            label = label.to(x.device).expand(x.shape[0])
        scores = partial(classifier.log_likelihood, target=classifier.number(self.target), label=label)
        return NoisyClassifier(classifier=scores, weight=self.weight).estimate(inner, x, t)


def _white(x: Tensor, t: Time, seed: int, draw: int) -> Tensor:
    """Noise (1, *event) of (seed, time, draw), the same for all samples: a split of the batch changes no sample."""
    place = "batch" if isinstance(t, Tensor) else float(t).hex()
    noise = Noise.of(seed, [0], device=x.device, dtype=x.dtype)
    return noise.normal(("minority", place, draw), x.shape[1:])


def _again(inner: DenoiserLike, path: AffinePath, clean: Tensor, noise: Tensor, log_snr: float) -> Tensor:
    """D(α·clean + σ·z) at a log-SNR."""
    t = path.time_of(log_snr)
    path.check(t)
    return inner(path.diffuse(clean, t, noise.expand_as(clean)), t).clean


@typed()
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SelfMinority(Rule):
    """Self-guided minority sampling (Um & Ye 2024, arXiv 2407.11555): rarity by the model's own reconstruction.

        x̂_0 ← x̂_0 + s·(σ²/α)·g/max|g|,     g = ∇_x d(x̂_0(x), x̃_0),     x̃_0 = D(α_p·x̂_0 + σ_p·z) held fixed

    No classifier; one more evaluation each time, and one backward pass.

    * ``scale`` s: 0.4 (CelebA) and 0.2 (ImageNet 64) are published. A number or a function of the log-SNR; 0 is no
      guidance, bit for bit.
    * ``log_snr``: the level p of the second look; by default that of the published 0.8·T on the cosine schedule.
    * ``distance``: "lite0", "alex" (published), "vgg", "squeeze", a path of LPIPS weights, "squared", "absolute", or
      any callable (B, …) × (B, …) → (B,). A named perceptual distance sees decoded pictures.
    * ``draws`` of z, whose distances are averaged. z is a function of (``seed``, time, draw), common to the batch.
    * ``every``, with the ``grid`` of the sampler: act only at every n-th sampling time (published: 5 and 2).
    * ``normalise=False`` leaves the gradient as it is.
    """

    scale: Strength = 0.4
    log_snr: float = -2.25
    distance: str | File | Pair = "lite0"
    draws: int = 1
    seed: int = 0
    every: int = 1
    grid: GridLike | None = None
    normalise: bool = True

    def __post_init__(self) -> None:
        if self.draws < 1 or self.every < 1:
            raise ConfigError(f"draws and every must be at least 1, got {self.draws} and {self.every}")
        if self.every > 1 and self.grid is None:
            raise ConfigError(f"every={self.every} counts the times of a grid: give the sampler's as grid=…")
        if isinstance(self.distance, str | File):
            from ..metrics.pairs import PLAIN
            from ..metrics.pairs import distance as named

            pair = named(self.distance)[1]
            object.__setattr__(self, "distance", pair if self.distance in PLAIN else _Seen(pair))

    @property
    def differentiates(self) -> bool:
        """Through the network."""
        return True

    def estimate(self, inner: DenoiserLike, x: Tensor, t: Time) -> Estimate:
        """The estimate, moved away from its own reconstruction."""
        path = affine_path(inner.path, "SelfMinority")
        scale, alpha = strength_at(self.scale, path, t), path.alpha(t)
        still = not isinstance(scale, Tensor) and scale == 0.0
        if still or not self._acts(path, t) or (not isinstance(alpha, Tensor) and alpha == 0.0):
            return inner(x, t)
        outer = torch.is_grad_enabled() and x.requires_grad
        with torch.inference_mode(False), torch.enable_grad():
            leaf, known = differentiable(inner, x, t)
            cotangent = self._slope(inner, path, known.clean.detach(), t)
            gradient = pulled(known, leaf, cotangent, keep=outer or isinstance(inner, CachedEvaluation)).detach()
        if self.normalise:
            largest = gradient.flatten(1).abs().amax(1).clamp_min(torch.finfo(gradient.dtype).tiny)
            gradient = gradient / expand(largest, gradient)
        shift = expand(scale * path.sigma(t) ** 2 / alpha, x) * finite_rows(gradient)
        plain = known if outer else detached(known, x)
        return plain.replace(clean=plain.clean + shift)

    def _slope(self, inner: DenoiserLike, path: AffinePath, clean: Tensor, t: Time) -> Tensor:
        """∇d at the clean estimate, averaged over the draws."""
        alone = uncached(inner)
        with torch.no_grad():
            others = [
                _again(alone, path, clean, _white(clean, t, self.seed, draw), self.log_snr)
                for draw in range(self.draws)
            ]
        leaf = clean.requires_grad_()
        pair = cast("Pair", self.distance)
        codec = info_of(inner).codec if isinstance(pair, _Seen) else None
        decode: Callable[[Tensor], Tensor] = (lambda latent: latent) if codec is None else codec.decode
        far = torch.stack([pair(decode(leaf), decode(other)) for other in others]).mean(0)
        return torch.autograd.grad(far.sum(), leaf)[0].to(clean)

    def _acts(self, path: AffinePath, t: Time) -> bool:
        if self.every == 1 or self.grid is None or isinstance(t, Tensor):
            return True
        times = grids.times_of(self.grid, path)
        nearest = min(range(len(times)), key=lambda i: abs(times[i] - t))
        return nearest % self.every == 0


@dataclass(frozen=True, slots=True)
class _Seen:
    """A distance of pictures."""

    pair: Pair

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return self.pair(a, b)


@typed()
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MinorityPrompt(Rule):
    """MinorityPrompt (Um & Ye 2025, arXiv 2410.07838): an extra token of the prompt, learned at every evaluation.

    The token e is appended to the text embeddings of the bound condition, and ``steps`` of Adam raise

        ‖sg(x̂_0) − x̃_0‖² + λ·‖x̂_0 − sg(x̃_0)‖²,    x̂_0 = D(x | prompt, e),    x̃_0 = D(α_p·x̂_0 + σ_p·z | prompt)

    by e. The result is the estimate under the prompt with its token. It starts at the mean of the prompt's tokens, anew
    at every evaluation, for an estimate does not depend on earlier evaluations (the authors carry it on). Nothing else
    is learned.

    * ``steps``, ``rate``: of Adam; 10 and 0.01 are published, 3 for few-step models. steps=0 is no guidance.
    * ``balance`` λ.
    * ``log_snr``: the level p; by default that of 0.75·T of Stable Diffusion's schedule. A function of the log-SNR
      makes it follow the evaluation.
    * ``text``, ``mask``: names of the condition's entries, (B, L, D) and (B, L); a condition without a mask has none.
    * ``seed``: of z, which is common to the batch.

    The published window, t > 0.9·T, is ``interval(MinorityPrompt(), log_snr=(-inf, -4.23))``. With classifier-free
    guidance it comes last: ``compose(CFG(…), MinorityPrompt())``. It costs 2·steps forward and backward passes a
    evaluation, and one more.

    Raises `UsageError` where the model is bound to no text.
    """

    steps: int = 10
    rate: float = 0.01
    balance: float = 1.0
    log_snr: Strength = -2.81
    text: str = "text"
    mask: str = "text_mask"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 0 or self.rate < 0.0:
            raise ConfigError(f"MinorityPrompt needs steps ≥ 0 and rate ≥ 0, got {self.steps} and {self.rate}")

    @property
    def differentiates(self) -> bool:
        """By the condition, not by the state: it has nothing to share."""
        return False

    def estimate(self, inner: DenoiserLike, x: Tensor, t: Time) -> Estimate:
        """The estimate under the prompt with its token."""
        if self.steps == 0 or self.rate == 0.0:
            return inner(x, t)
        cond = condition_of(inner)
        if cond is None or self.text not in cond:
            known = "nothing" if not cond else ", ".join(cond)
            raise UsageError(f"MinorityPrompt needs text embeddings {self.text!r} in the condition, got {known}")
        path = affine_path(inner.path, "MinorityPrompt")
        alone, rows = uncached(inner), x.shape[0]
        with torch.inference_mode(False), torch.enable_grad():
            known_cond = {key: value.detach().clone() for key, value in cond.items()}
            token = self._first(known_cond, rows).requires_grad_()
            first, second = torch.zeros_like(token), torch.zeros_like(token)
            for step in range(1, self.steps + 1):
                gradient = self._ascent(alone, path, x.detach().clone(), t, known_cond, token)
                first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient.square()
                move = (first / (1.0 - 0.9**step)) / ((second / (1.0 - 0.999**step)).sqrt() + 1e-8)
                token = (token.detach() + self.rate * finite_rows(move)).requires_grad_()
        return alone.with_condition(self._with(known_cond, token.detach()))(x, t)

    def _ascent(self, inner: DenoiserLike, path: AffinePath, x: Tensor, t: Time, cond: Cond, token: Tensor) -> Tensor:
        """The gradient of what is raised; each sample's depends on its own token alone."""
        clean = inner.with_condition(self._with(cond, token))(x, t).clean
        level = cast("float", strength_at(self.log_snr, path, t))
        other = _again(inner, path, clean, _white(x, t, self.seed, 0), level)
        far = (clean.detach() - other).square() + self.balance * (clean - other.detach()).square()
        (gradient,) = torch.autograd.grad(far.sum(), token)
        return gradient

    def _first(self, cond: Cond, rows: int) -> Tensor:
        """The mean of the prompt's tokens, (B, 1, D)."""
        text, mask = cond[self.text], cond.get(self.mask)
        weight = torch.ones_like(text[..., :1]) if mask is None else mask[..., None].to(text.dtype)
        mean = (text * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp_min(1.0)
        return mean.expand(rows, -1, -1).clone()

    def _with(self, cond: Cond, token: Tensor) -> dict[str, Tensor]:
        """The condition with one more token."""
        out, rows = dict(cond), token.shape[0]
        out[self.text] = torch.cat((cond[self.text].expand(rows, -1, -1), token.to(cond[self.text].dtype)), dim=1)
        mask = cond.get(self.mask)
        if mask is not None:
            out[self.mask] = torch.cat((mask.expand(rows, -1), mask.new_ones(rows, 1)), dim=1)
        return out


__all__ = ["Minority", "MinorityPrompt", "Rarities", "SelfMinority"]
