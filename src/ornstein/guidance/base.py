"""What a guidance is made of: `Rule` turns a denoiser into a `Guided` one; `CachedEvaluation` evaluates a network
once for several guidances.

A guidance is any function from a denoiser to a denoiser. The ones of this package are frozen values: they hold no
state, so one of them serves every model, sampler and batch, and two equal calls give equal results.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from .. import checks, grids
from ..denoisers import DenoiserLike, DenoiserWrapper, Guidance, info_of, uncached
from ..errors import PathError, UsageError
from ..estimates import Estimate
from ..networks.sites import bindings
from ..paths.base import AffinePath, Cond, Path
from ..scalars import Time

Strength = float | Callable[[Any], Any]
"""A number, or a function of the log-SNR (a float in sampling, (B,) in training) that gives one."""


def strength_at(strength: Strength, path: Path, t: Time) -> Time:
    """The number that a `Strength` means at time t."""
    return strength(grids.affine(path).log_snr(t)) if callable(strength) else strength


def affine_path(path: Path, who: str) -> AffinePath:
    """The path, or a refusal that says what to use instead."""
    if not isinstance(path, AffinePath):
        raise PathError(
            f"{who} needs an AffinePath (alpha, sigma) to weigh a gradient of the state, got {type(path).__name__}: "
            "guide a model on another path, or the clean sample, by Universal of strength 0 with backward steps"
        )
    return path


class Rule(checks.OneLine, ABC):
    """A guidance as a value: calling it with a denoiser gives the guided denoiser."""

    __slots__ = ()

    def __call__(self, denoiser: DenoiserLike) -> Guided:
        """The guided denoiser."""
        return Guided(self, denoiser)

    @abstractmethod
    def estimate(self, inner: DenoiserLike, x: Tensor, t: Time) -> Estimate:
        """The guided estimate at x (B, *event) and time t."""

    @property
    def differentiates(self) -> bool:
        """Whether it takes gradients through the network; `add` evaluates such guidances first."""
        return False


@dataclass(frozen=True, slots=True, eq=False)
class Guided(DenoiserWrapper):
    """A denoiser under a guidance, with the conditions, shape, codec and device of the inner one."""

    guidance: Rule
    inner: DenoiserLike

    def __repr__(self) -> str:
        return checks.cut(f"{checks.brief(self.guidance)} around {self.inner!r}")

    def uncached(self) -> Guided:
        """The same guidance around the inner denoiser without a memory."""
        return Guided(self.guidance, uncached(self.inner))

    def with_condition(self, cond: Cond) -> Guided:
        """The same guidance around the bound denoiser."""
        return Guided(self.guidance, self.inner.with_condition(cond))

    def __call__(self, x: Tensor, t: Time) -> Estimate:
        """The guided estimate at x (B, *event) and time t."""
        return self.guidance.estimate(self.inner, x, t)


def differentiates(guidance: Guidance) -> bool:
    """Whether a guidance takes gradients through the network, as far as it says so."""
    return isinstance(guidance, Rule) and guidance.differentiates


def condition_of(denoiser: object) -> Cond | None:
    """The condition that a denoiser is bound to; None if unknown."""
    return info_of(denoiser).cond


@runtime_checkable
class SharesWithCondition(Protocol):
    """An empty condition that shares something with the condition it stands beside, such as the size of a picture."""

    def beside(self, cond: Cond) -> Cond:
        """The empty condition, with what it shares with ``cond``."""
        ...


def null_beside(null: Cond, denoiser: object) -> Cond:
    """The empty condition ``null`` for a denoiser: with what it shares with the condition that is bound to it."""
    cond = condition_of(denoiser)
    return null.beside(cond) if cond is not None and isinstance(null, SharesWithCondition) else null


def network_of(denoiser: object) -> nn.Module | None:
    """The module that a denoiser evaluates, if there is one."""
    return info_of(denoiser).module


def detached(estimate: Estimate, x: Tensor) -> Estimate:
    """The same answer without its graph, at the state x."""
    extras = {key: value.detach() for key, value in estimate.extras.items()}
    return Estimate(x, estimate.t, estimate.path, clean=estimate.clean.detach(), extras=extras)


def leaf_of(x: Tensor) -> Tensor:
    """A tensor that gradients can be taken with respect to: x itself where an outer guidance does so already."""
    if torch.is_grad_enabled() and x.requires_grad:
        return x
    return (x.clone() if x.is_inference() else x.detach()).requires_grad_()


@dataclass(frozen=True, slots=True, eq=False)
class _Answer:
    """One answer, and under which circumstances it was given."""

    inner: DenoiserLike
    cond: Cond | None
    x: Tensor
    t: Time
    modulated: object
    graph: bool
    estimate: Estimate

    def fits(self, inner: DenoiserLike, cond: Cond | None, x: Tensor, t: Time) -> bool:
        return (
            self.x is x
            and (self.t is t if isinstance(t, Tensor) or isinstance(self.t, Tensor) else self.t == t)
            and (_same(self.cond, cond) or (self.cond is cond is None and self.inner is inner))
            and self.modulated is bindings()
        )


class CachedEvaluation(DenoiserWrapper):
    """A denoiser that remembers every estimate at one (x, t), so that the guidances around it share evaluations.

    The key of an estimate is its condition, whether it has gradients, and the modulations of the network: one with
    gradients also serves a call without, one under other modulations serves none. `compose` and `add` make a fresh
    cache for every (x, t) and drop it afterwards, graphs included. `ornstein.CachedDenoiser` is the simple form.
    """

    __slots__ = ("_answers", "_cond", "_leaves", "inner")

    def __init__(self, inner: DenoiserLike) -> None:
        self.inner = inner
        self._cond = condition_of(inner)
        self._answers: list[_Answer] = []
        self._leaves: list[tuple[Tensor, Tensor]] = []

    @classmethod
    def of(cls, denoiser: DenoiserLike) -> CachedEvaluation:
        """The denoiser itself if it is such a cache already."""
        return denoiser if isinstance(denoiser, CachedEvaluation) else cls(denoiser)

    def uncached(self) -> DenoiserLike:
        """The inner denoiser."""
        return uncached(self.inner)

    def with_condition(self, cond: Cond) -> CachedEvaluation:
        """The bound denoiser, with the same memory."""
        bound = CachedEvaluation(self.inner.with_condition(cond))
        bound._cond, bound._answers, bound._leaves = cond, self._answers, self._leaves
        return bound

    def __call__(self, x: Tensor, t: Time) -> Estimate:
        """The inner estimate at (x, t), evaluated once."""
        return self._known(self._cond, x, t) or self._keep(self._cond, x, t, self.inner(x, t))

    def predict_conditions(self, x: Tensor, t: Time, conds: Sequence[Cond]) -> list[Estimate]:
        """The inner estimates under several conditions; those not known yet are evaluated in one batch."""
        known = [self._known(cond, x, t) for cond in conds]
        missing = [cond for cond, answer in zip(conds, known, strict=True) if answer is None]
        if len(missing) == 1 and _same(missing[0], self._cond):
            estimates = [self.inner(x, t)]
        else:
            estimates = self.inner.predict_conditions(x, t, missing) if missing else []
        for cond, answer in zip(missing, estimates, strict=True):
            self._keep(cond, x, t, answer)
        rest = iter(estimates)
        return [next(rest) if answer is None else answer for answer in known]

    def differentiable(self, x: Tensor, t: Time) -> tuple[Tensor, Estimate]:
        """(leaf, the estimate as a function of it), with the graph kept for the next guidance."""
        leaf = next((leaf for state, leaf in self._leaves if state is x), None)
        if leaf is None:
            leaf = leaf_of(x)
            self._leaves.append((x, leaf))
        return leaf, self(leaf, t)

    def _known(self, cond: Cond | None, x: Tensor, t: Time) -> Estimate | None:
        graph = torch.is_grad_enabled() and x.requires_grad
        for answer in self._answers:
            if answer.fits(self.inner, cond, x, t) and answer.graph == graph:
                return answer.estimate
        for state, leaf in [] if graph else self._leaves:
            for answer in self._answers if state is x else ():
                if answer.fits(self.inner, cond, leaf, t):
                    return detached(answer.estimate, x)
        return None

    def _keep(self, cond: Cond | None, x: Tensor, t: Time, answer: Estimate) -> Estimate:
        graph = torch.is_grad_enabled() and x.requires_grad
        self._answers.append(_Answer(self.inner, cond, x, t, bindings(), graph, answer))
        return answer


def differentiable(inner: DenoiserLike, x: Tensor, t: Time) -> tuple[Tensor, Estimate]:
    """(leaf, the estimate as a function of it); on a `CachedEvaluation` denoiser the same pair for every guidance."""
    if isinstance(inner, CachedEvaluation):
        return inner.differentiable(x, t)
    leaf = leaf_of(x)
    return leaf, inner(leaf, t)


def pulled(estimate: Estimate, leaf: Tensor, cotangent: Tensor, *, keep: bool) -> Tensor:
    """(∂x̂_0/∂x)ᵀ·cotangent: one backward pass through the network; ``keep`` its graph for the next.

    Raises `UsageError` if the estimate has no graph: the network detaches its output, or runs under ``no_grad`` itself.
    """
    if not estimate.clean.requires_grad:
        raise UsageError(
            "the network's output carries no gradient of its input: it is detached, or made under torch.no_grad(); "
            'use differentiate_through="estimate" or backward steps, which need none'
        )
    (gradient,) = torch.autograd.grad(estimate.clean, leaf, cotangent, retain_graph=keep, allow_unused=True)
    return torch.zeros_like(leaf) if gradient is None else gradient


def finite_rows(value: Tensor) -> Tensor:
    """The value (B, …), rows with a number that is not finite set to zero."""
    rows = torch.isfinite(value.flatten(1)).all(1).reshape(-1, *(1,) * (value.ndim - 1))
    return torch.where(rows, value, torch.zeros_like(value))


def _same(one: Cond | None, other: Cond | None) -> bool:
    """Whether two conditions hold the same tensors."""
    if one is None or other is None:
        return False
    return one.keys() == other.keys() and all(value is other[key] for key, value in one.items())
