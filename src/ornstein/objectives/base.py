"""What every objective takes and gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..denoisers import Denoiser
from ..randomness import Noise


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainBatch:
    """A batch of clean samples and conditions for an objective, on the device of the network.

    ``clean`` is (B, C, H, W) in [−1, 1]; ``cond`` holds tensors of B rows (``label``, ``words``, …); ``positions`` are
    the samples' numbers in the stream of the run.
    """

    clean: Tensor
    cond: Mapping[str, Tensor]
    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """Named losses, (B,) each and weighted already, and the times (B,) they were taken at, on the host.

    ``watched`` are further numbers of the samples, (B,) each, and ``schedule`` host numbers that say where a schedule
    of the objective stands; both are for the log alone.
    """

    terms: Mapping[str, Tensor]
    times: Tensor
    watched: Mapping[str, Tensor] = field(default_factory=dict)
    schedule: Mapping[str, float] = field(default_factory=dict)

    @property
    def total(self) -> Tensor:
        """The number to minimise: the mean over the batch of the sum of the terms."""
        return torch.stack([term.mean() for term in self.terms.values()]).sum()


class Objective(Protocol):
    """(model, batch, noise, progress) → `Losses`.

    All randomness comes from ``noise``, whose seeds belong to the samples; ``progress`` runs from 0 to 1 over the
    budget of the run.
    """

    def __call__(self, model: Denoiser, batch: TrainBatch, noise: Noise, progress: float) -> Losses:
        """The losses of one batch."""
        ...


@runtime_checkable
class AdversarialObjective(Protocol):
    """An `Objective` that has a network of its own, which learns against the model with its own optimizer.

    Every step of training is one of the discriminator (``discriminator``) on `discriminator_loss`, then one of the
    model. A checkpoint holds the discriminator's weights and its optimizer; an exported model does not.
    ``discriminator`` is None if no term of the loss uses a discriminator.
    """

    @property
    def discriminator(self) -> nn.Module | None:
        """The discriminator."""
        ...

    def discriminator_loss(self, model: Denoiser, batch: TrainBatch, noise: Noise, progress: float) -> Losses | None:
        """The discriminator's losses of one batch, without gradients for the model; None leaves its step out."""
        ...


_GOLDEN = 0x9E3779B97F4A7C15  # 2⁶⁴ divided by the golden ratio


def quantiles(key: str, positions: tuple[int, ...], noise: Noise, stratified: bool) -> list[float]:
    """A number in [0, 1) for every sample, uniform over the seeds: a function of (seed, position) alone.

    ``stratified``: any run of successive positions fills [0, 1) evenly, whatever the batch (a Kronecker sequence).
    """
    if not stratified:
        return noise.uniform_per_sample(key).tolist()
    start = noise.uniform(key)
    return [(position * _GOLDEN % 2**64 / 2**64 + start) % 1.0 for position in positions]


def without(cond: Mapping[str, Tensor], dropped: Tensor) -> dict[str, Tensor]:
    """The conditions with those of some samples, ``dropped`` (B,) bool, replaced by nothing: label −1, all else 0."""
    out: dict[str, Tensor] = {}
    for key, value in cond.items():
        rows = dropped.to(value.device).reshape(-1, *(1,) * (value.ndim - 1))
        out[key] = value.masked_fill(rows, -1 if key == "label" else 0)
    return out
