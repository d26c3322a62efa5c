"""Guides toward rare pictures: by a classifier of rarity, by the model's own reconstruction, by an extra token."""

from __future__ import annotations

from typing import Any

from ..errors import UsageError
from ..guidance.minority import Minority, MinorityPrompt, SelfMinority
from .types import GuideContext, GuideType


def _minority(context: GuideContext) -> Any:
    """RUN, or RUN@CLASS with a class 0 … L − 1; −1, the default, is the rarest."""
    from ..runs.rarity import load

    where, at, number = context.arg.rpartition("@")
    if not at:
        where, number = context.arg, "-1"
    try:
        target = int(number)
    except ValueError:
        raise UsageError(
            f"the class {number!r} of rarity:{context.arg} is no number: write RUN@CLASS, such as runs/rarity@0"
        ) from None
    classifier = load(where, device=context.device)
    if classifier.spec.shape != context.shape:
        raise UsageError(
            f"the classifier {where} knows pictures of {classifier.spec.shape[-1]} pixels, the model makes "
            f"{context.shape[-1]}: train one at that size"
        )
    return Minority(classifier, target, context.weight)


def _self(context: GuideContext) -> Any:
    return SelfMinority(scale=context.weight, distance=context.arg)


def _prompt(context: GuideContext) -> Any:
    try:
        steps = int(context.arg)
    except ValueError:
        raise UsageError(f"rare-token:{context.arg} reads rare-token:STEPS:RATE, such as rare-token:10:0.01") from None
    return MinorityPrompt(steps=steps, rate=context.weight)


KINDS = (
    GuideType(
        name="rarity",
        takes="RUN[@CLASS]",
        what="a class of rarity, the rarest by default, by a run of ornstein train rarity-classifier",
        weight=1.0,
        make=_minority,
        yields="guidance",
        example="rarity:runs/rarity@-1:2",
    ),
    GuideType(
        name="rare",
        takes="DISTANCE",
        what="away from the model's own reconstruction (self-guided minority sampling): lite0, squared, alex, …",
        weight=0.4,
        make=_self,
        yields="guidance",
        example="rare:lite0:0.4",
    ),
    GuideType(
        name="rare-token",
        takes="STEPS",
        what="the same by an extra token of the caption (MinorityPrompt), learned in so many steps; weight: their rate",
        weight=0.01,
        make=_prompt,
        yields="guidance",
        example="rare-token:10:0.01",
    ),
)
