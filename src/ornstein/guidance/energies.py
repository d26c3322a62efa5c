"""Energies: what a clean sample is scored by. Low is good; guidance descends.

An energy is any callable ``clean (B, *event) → (B,)``, one number a sample, differentiable by torch. The ones here need
no network. Those named after a measurement are negative log-likelihoods, so that strength 1 is Bayes' rule; the others
are means over pixels, so that their strength does not depend on the resolution.

A guide that finds nothing in a sample returns NaN there, or None for the whole batch: such samples are left unguided at
this evaluation, and a `GuideWarning` says so once. Targets have one row, or as many as the batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from .. import checks
from ..errors import ConfigError, UsageError
from ..typed import typed
from .base import finite_rows

Linear = Callable[[Tensor], Tensor]
"""A linear map of samples (B, *event) → (B, …), written with torch."""


class GuideWarning(UserWarning):
    """A guide had nothing to say about a sample."""


class Energy(Protocol):
    """clean (B, *event) → (B,): low is good. NaN for a sample, or None for all, where there is nothing to go by."""

    def __call__(self, clean: Tensor, /) -> Tensor | None:
        """The energies, shape (B,)."""
        ...


@runtime_checkable
class Rows(Protocol):
    """An energy with a target for each sample can be restricted to some rows of the batch: chunks need it."""

    def rows(self, which: slice) -> Energy:
        """The energy of these samples alone."""
        ...


def rows_of(energy: Energy, which: slice) -> Energy:
    """The energy of some rows of a batch; itself where it treats all samples alike."""
    return energy.rows(which) if isinstance(energy, Rows) else energy


def checked_energies(energy: Energy, clean: Tensor) -> Tensor | None:
    """The energies of ``clean``, checked: (B,) or None.

    Raises `UsageError` for any other shape.
    """
    values: object = energy(clean)
    if values is None:
        return None
    if not isinstance(values, Tensor) or values.shape != clean.shape[:1]:
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise UsageError(
            f"energy {name_of(energy)} must give one number a sample, shape ({clean.shape[0]},), got {got}: "
            "reduce over all but the first axis, and never over the batch"
        )
    return values


def slope(energies: Sequence[tuple[float, Energy]], clean: Tensor) -> tuple[Tensor, Tensor]:
    """(∇ ∑ wᵢ·ℓᵢ at ``clean``, the weighted energies (B,)), both without the guides that find nothing in a row.

    Where none finds anything the gradient is zero and the energy NaN. No gradient flows into whatever made ``clean``.
    """
    with torch.inference_mode(False), torch.enable_grad():
        leaf = (clean.clone() if clean.is_inference() else clean.detach()).requires_grad_()
        total, sum_ = torch.zeros_like(leaf), torch.zeros(len(leaf), dtype=leaf.dtype, device=leaf.device)
        heard = torch.zeros(len(leaf), dtype=torch.bool, device=leaf.device)
        for weight, energy in energies:
            values = checked_energies(energy, leaf)
            if values is None:
                _say(energy)
                continue
            found = torch.isfinite(values)
            if not bool(found.all()):  # a wait for the device, small beside the gradients
                _say(energy)
            if not values.requires_grad:
                if not bool(found.any()):  # rows of NaN that no network made
                    continue
                raise UsageError(
                    f"energy {name_of(energy)} does not depend on the sample by differentiable operations: "
                    "no gradient reaches it"
                )
            heard = heard | found
            values = torch.where(found, values, torch.zeros_like(values))
            (gradient,) = torch.autograd.grad(values.sum(), leaf)
            total = total + weight * finite_rows(gradient)
            sum_ = sum_ + weight * values.detach().to(sum_.dtype)
    return total.detach(), torch.where(heard, sum_, torch.nan)


def name_of(energy: object) -> str:
    """How messages call an energy."""
    return getattr(energy, "__name__", type(energy).__name__)


def _say(energy: Energy) -> None:
    # Python shows a warning of one text from one line only once, which is what is wanted here.
    warnings.warn(
        f"the guide {name_of(energy)} found nothing to go by in a sample: such samples stay unguided at that step",
        GuideWarning,
        stacklevel=2,
    )


def _fits(target: Tensor, clean: Tensor, what: str) -> Tensor:
    if target.ndim != clean.ndim or target.shape[0] not in (1, clean.shape[0]):
        raise UsageError(
            f"{what} of shape {tuple(target.shape)} does not fit samples of shape {tuple(clean.shape)}: give it one "
            "row, or one for each sample"
        )
    return target.to(clean.device, clean.dtype)


def images(clean: Tensor, who: str) -> Tensor:
    """The samples, if they are images (B, C, H, W).

    Raises:
        UsageError: signals, points or anything else.
    """
    if clean.ndim != 4:
        raise UsageError(f"{who} needs images (C, H, W), got samples of shape {tuple(clean.shape[1:])}")
    return clean


def _sliced(target: Tensor, which: slice) -> Tensor:
    return target if target.shape[0] == 1 else target[which]


@typed()
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measured(checks.OneLine):
    """ℓ = ‖y − A·x_0‖²/(2·std²): a linear measurement with Gaussian noise, summed, so that strength 1 is Bayes' rule.

    ``operator`` A is any linear map written with torch, ``target`` y has its output's shape, of one row or B.
    """

    operator: Linear = field(repr=False)
    target: Tensor = field(repr=False)
    std: float = 1.0

    def __post_init__(self) -> None:
        if not self.std > 0.0:
            raise ConfigError(f"the noise of a measurement needs std > 0, got {self.std}: 0.05 suits pixels in [−1, 1]")

    def residual(self, clean: Tensor) -> Tensor:
        """y − A·x_0."""
        seen = self.operator(clean)
        target = _fits(self.target, seen, "the target of a measurement")
        if target.shape[1:] != seen.shape[1:]:
            raise UsageError(
                f"the operator gives {tuple(seen.shape[1:])}, the target has {tuple(self.target.shape[1:])}"
            )
        return target - seen

    def __call__(self, clean: Tensor) -> Tensor:
        """(B,)."""
        return self.residual(clean).square().flatten(1).sum(1) / (2.0 * self.std**2)

    def rows(self, which: slice) -> Measured:
        """The targets of these samples."""
        return Measured(operator=self.operator, target=_sliced(self.target, which), std=self.std)


@typed(UsageError)
def inpainting(target: Tensor, mask: Tensor, *, std: float = 0.1) -> Measured:
    """Keep what is known: A·x_0 = mask·x_0. ``target`` (1 or B, C, H, W); ``mask`` (1, 1 or C, H, W), 1 where known."""
    if mask.ndim != target.ndim or mask.shape[0] != 1 or mask.shape[-2:] != target.shape[-2:]:
        raise UsageError(
            f"a mask of one row and the target's size is needed, got {tuple(mask.shape)} for {tuple(target.shape)}"
        )
    known = mask.to(target.dtype)
    return Measured(operator=lambda x: known.to(x.device, x.dtype) * x, target=known * target, std=std)


@typed(UsageError)
def super_resolution(target: Tensor, factor: int, *, std: float = 0.05) -> Measured:
    """Agree with a small picture: A·x_0 is the mean of every factor × factor pixels; ``target`` (1 or B, C, h, w)."""
    checks.whole("factor", factor, 1, ConfigError)
    images(target, "super_resolution")

    def shrunk(x: Tensor) -> Tensor:
        return functional.avg_pool2d(images(x, "super_resolution"), factor)

    return Measured(operator=shrunk, target=target, std=std)


@typed()
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Colour(checks.OneLine):
    """ℓ = ‖mean colour − target‖²/2, the mean over all pixels or over those of a ``mask``.

    ``target`` (1 or B, C) in the range of the images; ``mask`` (1 or B, 1, H, W), weights of the pixels.
    """

    target: Tensor
    mask: Tensor | None = field(default=None, repr=False)

    def __call__(self, clean: Tensor) -> Tensor:
        """(B,)."""
        images(clean, "Colour")
        weights = torch.ones_like(clean[:1, :1]) if self.mask is None else _fits(self.mask, clean, "a mask")
        mean = (weights * clean).sum((2, 3)) / weights.sum((2, 3))
        target = _fits(self.target, mean, "a colour")
        return 0.5 * (mean - target).square().sum(1)

    def rows(self, which: slice) -> Colour:
        """The targets of these samples."""
        mask = None if self.mask is None else _sliced(self.mask, which)
        return Colour(target=_sliced(self.target, which), mask=mask)


@typed()
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Palette(checks.OneLine):
    """ℓ = the mean over pixels of the soft squared distance to the nearest of some colours.

        −softness·log ∑_k exp(−‖pixel − colour_k‖²/(2·softness)) + softness·log K

    ``colours`` (K, C) in the range of the images; the smaller ``softness``, the harder the choice. Pixels far from
    every colour move to the nearest; nothing asks that all colours be used.
    """

    colours: Tensor
    softness: float = 0.02

    def __call__(self, clean: Tensor) -> Tensor:
        """(B,)."""
        images(clean, "Palette")
        colours = self.colours.to(clean.device, clean.dtype)
        if colours.ndim != 2 or colours.shape[1] != clean.shape[1]:
            raise UsageError(
                f"a palette for {clean.shape[1]} channels is (K, {clean.shape[1]}), got {tuple(colours.shape)}"
            )
        square = (clean[:, None] - colours[None, :, :, None, None]).square().sum(2)  # (B, K, H, W)
        soft = -self.softness * torch.logsumexp(-0.5 * square / self.softness, dim=1)
        return soft.mean((1, 2)) + self.softness * torch.log(torch.tensor(float(len(colours)))).item()


def gradients(clean: Tensor) -> Tensor:
    """Sobel's horizontal and vertical differences of the brightness (mean of the channels), (B, 2, H, W)."""
    images(clean, "a map of edges")
    row, column = (torch.tensor(v, dtype=clean.dtype, device=clean.device) for v in ([1.0, 2.0, 1.0], [-1.0, 0.0, 1.0]))
    kernels = torch.stack((torch.outer(row, column), torch.outer(column, row)))[:, None] / 8.0
    return functional.conv2d(functional.pad(clean.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate"), kernels)


@typed()
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Edges(checks.OneLine):
    """ℓ = half the mean squared difference of edge maps.

    The map is the size of `gradients`, √(g_x² + g_y² + 1e-4), in units of brightness a pixel. ``target``
    (1 or B, 1, H, W) is such a map: `Edges.like` takes that of a picture.
    """

    target: Tensor = field(repr=False)

    @classmethod
    def like(cls, picture: Tensor) -> Edges:
        """The edges of a picture (1 or B, C, H, W)."""
        return cls(target=cls.map(picture))

    @staticmethod
    def map(clean: Tensor) -> Tensor:
        """The edge map (B, 1, H, W)."""
        return (gradients(clean).square().sum(1, keepdim=True) + 1e-4).sqrt()

    def __call__(self, clean: Tensor) -> Tensor:
        """(B,)."""
        return 0.5 * (self.map(clean) - _fits(self.target, clean, "an edge map")).square().flatten(1).mean(1)

    def rows(self, which: slice) -> Edges:
        """The targets of these samples."""
        return Edges(target=_sliced(self.target, which))


@typed()
@dataclass(frozen=True, slots=True, kw_only=True)
class Smoothness:
    """ℓ = the mean of √(differences² + 1e-4) between neighbouring pixels: total variation."""

    def __call__(self, clean: Tensor) -> Tensor:
        """(B,)."""
        images(clean, "Smoothness")
        down = (clean[:, :, 1:, :-1] - clean[:, :, :-1, :-1]).square()
        right = (clean[:, :, :-1, 1:] - clean[:, :, :-1, :-1]).square()
        return (down + right + 1e-4).sqrt().flatten(1).mean(1)


def as_energies(given: Any) -> tuple[tuple[float, Energy], ...]:
    """One energy, or several, each alone or as (weight, energy), as pairs.

    Raises `ConfigError` for anything else.
    """
    if isinstance(given, type) or not (callable(given) or isinstance(given, tuple | list)):
        raise ConfigError(
            f"energies are callables clean → (B,), or pairs (weight, callable), got {checks.brief(given)}"
        )
    items = (given,) if callable(given) else tuple(given)
    if len(items) == 2 and isinstance(items[0], int | float) and callable(items[1]):
        items = (items,)
    pairs = tuple((1.0, item) if callable(item) else item for item in items)
    fits = (isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], int | float) for pair in pairs)
    if not all(fits) or not all(callable(energy) for _, energy in pairs):
        raise ConfigError(f"energies are callables clean → (B,), or pairs (weight, callable), got {given!r}")
    return pairs  # pyright: ignore[reportReturnType]


__all__ = [
    "Colour",
    "Edges",
    "Energy",
    "GuideWarning",
    "Linear",
    "Measured",
    "Palette",
    "Smoothness",
    "gradients",
    "inpainting",
    "super_resolution",
]
