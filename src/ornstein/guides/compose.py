"""Guides put together: one universal guidance for all energies, other guidances beside it, around a conditional one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from .. import guidance
from ..denoisers import Guidance
from ..errors import ConfigError, UsageError
from ..guidance import Backward, Universal
from ..paths.base import Cond
from .registry import Guides

BACKWARD_RATE = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class GuidanceOptions:
    """How guides act on a model.

    * ``differentiate_through``: "network" differentiates through the denoiser; "estimate" stops at its clean
      estimate and saves that pass.
    * ``backward``: descent on the clean estimate after the forward guidance; see `backward_of`.
    * ``window``: (low, high) in σ/α; outside, the guides are silent.
    * ``placement``: "joint" guides the estimate of classifier-free guidance; "separate" guides the unconditional model
      and adds both shifts, as the authors' code does for detection. The latter needs the empty condition ``null``.
    * ``chunk``: samples at a time, as in `Universal`.
    """

    differentiate_through: Literal["network", "estimate"] = "network"
    backward: Backward | None = None
    window: tuple[float, float] | None = None
    placement: Literal["joint", "separate"] = "joint"
    chunk: int | None = None


def compose(
    guides: Guides, options: GuidanceOptions | None = None, cfg: Guidance | None = None, null: Cond | None = None
) -> Any:
    """One guidance of all, or None if there is nothing to do.

    Energies share one pass through the network. ``cfg`` is a guidance toward a condition, such as `CFG`.

    >>> import torch, ornstein as orn
    >>> from ornstein import guides
    >>> model = orn.Denoiser(lambda x, time: 0.5 * x, path=orn.VP(), predicts="clean", shape=(3, 8, 8))
    >>> guided = guides.compose(guides.make(["colour:white:50", "palette:white,black"], shape=model.shape))(model)
    >>> orn.sample(guided, n=1, steps=3).shape
    torch.Size([1, 3, 8, 8])
    """
    options = options or GuidanceOptions()
    separate = options.placement == "separate"
    if separate and guides.energies and null is None:
        raise UsageError("guides apart from the condition need the empty condition null, e.g. run.null()")
    parts: list[Guidance] = []
    if guides.energies:
        parts.append(
            Universal(
                energies=guides.energies,
                differentiate_through=options.differentiate_through,
                backward=options.backward,
                at=null if separate else None,
                chunk=options.chunk,
            )
        )
    parts.extend(guides.guidances)
    if not parts:
        return cfg
    if options.window is not None:
        parts = [guidance.interval(part, sigma=options.window) for part in parts]
    if cfg is None:
        return parts[0] if len(parts) == 1 else guidance.add(*parts)
    if separate:
        return guidance.add(cfg, *parts)
    return guidance.compose(cfg, parts[0] if len(parts) == 1 else guidance.add(*parts))


def backward_of(text: str) -> Backward:
    """Backward guidance from STEPS[:RATE]: Adam in [−1, 1] around the guided estimate, as in the authors' code.

    Its first steps have the size RATE a pixel, whatever the weights of the guides are.
    """
    steps, colon, rate = text.partition(":")
    try:
        count, size = int(steps), float(rate) if colon else BACKWARD_RATE
    except ValueError:
        raise UsageError(f"backward guidance reads STEPS[:RATE], such as 5:0.02, got {text!r}") from None
    if count < 1 or not 0.0 < size < float("inf"):
        raise UsageError(f"backward guidance needs at least one step and a positive rate, got {text!r}")
    return Backward(steps=count, rate=size, descent="adam", clamp=(-1.0, 1.0), cutoff=None)


def window_of(text: str) -> tuple[float, float]:
    """(low, high) from LOW:HIGH, in σ/α."""
    low, _, high = text.partition(":")
    try:
        window = (float(low), float(high))
        guidance.interval(guidance.compose(), sigma=window)
    except (ValueError, ConfigError):
        raise UsageError(
            f"a window reads LOW:HIGH in σ/α with 0 ≤ LOW < HIGH, such as 0.2:5 or 0:inf, got {text!r}"
        ) from None
    return window


__all__ = ["GuidanceOptions", "backward_of", "compose", "window_of"]
