"""The options --guidance and --guidance-scale of `ornstein sample`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from ..errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from ..denoisers import DenoiserLike, Guidance
    from ..guidance.registry import GuidanceSpec
    from ..runs import OpenedModel


def read_guidances(words: Sequence[str], scale: float) -> list[GuidanceSpec]:
    """The guidances of a call, innermost first; ``scale`` is classifier-free guidance before all others.

    Raises:
        UsageError: unreadable words, or the same guidance twice.
    """
    from ..guidance.registry import GUIDANCES, GuidanceSpec, read_guidance

    specs = [read_guidance(text) for text in words]
    toward = {f"--guidance {spec.text}": spec for spec in specs if "condition" in spec.type.needs}
    if scale != 1.0:
        option = f"--guidance-scale {scale:g}"
        twice = [name for name, spec in toward.items() if spec.type.name == "cfg"]
        if twice:
            raise UsageError(f"{option} and {twice[0]} are the same guidance twice: give one of them")
        specs.insert(0, GuidanceSpec(text=f"cfg:{scale:g}", type=GUIDANCES["cfg"], arguments={"weight": scale}))
    return specs


def needs_condition(specs: Sequence[GuidanceSpec], scale: float) -> str:
    """The words of the first guidance that leads toward the condition of a call; empty if none does."""
    first = next((spec for spec in specs if "condition" in spec.type.needs), None)
    if first is None:
        return ""
    return f"--guidance-scale {scale:g}" if scale != 1.0 and first is specs[0] else f"--guidance {first.text}"


def guidances_of(
    specs: Sequence[GuidanceSpec],
    run: OpenedModel,
    times: Sequence[float],
    device: str,
    null: Mapping[str, Tensor] | None,
) -> Guidance | None:
    """The guidances for a model and the times of its sampler as one, or None if there are none.

    ``null`` is the condition that classifier-free guidance leads away from.

    Raises:
        UsageError: the model lacks what one of them needs, or an argument is out of range.
    """
    if not specs:
        return None
    from ..guidance import compose, network_of
    from ..guidance.registry import Setting

    conditional = any("condition" in spec.type.needs for spec in specs)
    setting = Setting(
        null=null if conditional else None,
        grid=list(times),
        path=run.denoiser.path,
        net=network_of(run.denoiser),
        open=partial(_second, run, device),
    )
    made = [spec.make(setting) for spec in specs]
    return made[0] if len(made) == 1 else compose(*made)


def _second(run: OpenedModel, device: str, where: str) -> tuple[DenoiserLike, bool]:
    """A second model beside the run's, and whether it takes the same condition."""
    from ..runs import open_run

    other = open_run(where, device=device)
    mine, theirs = run.denoiser, other.denoiser
    if mine.shape != theirs.shape or mine.path != theirs.path:
        raise UsageError(
            f"autoguidance needs a second model on the same states and path: {where} has {theirs.shape} on "
            f"{type(theirs.path).__name__}, {run.folder} {mine.shape} on {type(mine.path).__name__}"
        )
    if other.condition == "none":
        return theirs, False
    if other.condition == "text":
        raise UsageError(
            f"autoguidance cannot give captions to {where}, which encodes them in its own way: take a model of "
            "labels or of no condition, or guidance.Autoguidance in Python"
        )
    if other.condition != run.condition or tuple(other.classes) != tuple(run.classes):
        raise UsageError(
            f"autoguidance needs a second model with the labels of {run.folder} or none: {where} has others"
        )
    return theirs, True


__all__ = ["guidances_of", "needs_condition", "read_guidances"]
