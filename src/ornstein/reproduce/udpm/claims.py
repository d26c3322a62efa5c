"""The claims of `ornstein.reproduce.udpm`: what the paper names for each, and the trainings it compares."""

from __future__ import annotations

from collections.abc import Mapping

from ..record import Claim
from .cells import CONSISTENCY, DIFFUSION, FIT, FULL, PLAIN

_FIGURE = "a figure, no number"

CLAIMS: Mapping[str, Claim] = {
    "Three evaluations of UDPM are better than 3 of DDIM": Claim("none", (FULL, DIFFUSION)),
    "Three evaluations of UDPM are better than 5 of DDIM": Claim("FID 6.86 against 93.51", (FULL, DIFFUSION)),
    "Three evaluations of UDPM are better than 10 of DDIM": Claim("FID 6.86 against 13.36", (FULL, DIFFUSION)),
    "Three evaluations of UDPM are better than one of a consistency model": Claim(
        "FID 6.86 against 8.70", (FULL, CONSISTENCY)
    ),
    "The adversarial term is needed": Claim(_FIGURE, (FULL, FIT)),
    "Without the adversarial and the perceptual term": Claim("FID 98.6 against 7.51", (FULL, PLAIN)),
    "The perceptual term helps where there is no adversarial one": Claim(_FIGURE, (FIT, PLAIN)),
    "Three evaluations, on halves, quarters and eighths of the side, cost a third": Claim("13.35 against 40.62 GFLOPs"),
    "Three evaluations take less time than one at full size": Claim("765 against 255 a second"),
    "The noise of the last level decides what is seen": Claim(_FIGURE, (FULL,)),
    "What the noise of the first level changes is detail": Claim(_FIGURE, (FULL,)),
    "Half-way between two pictures in noise stands a picture": Claim(_FIGURE, (FULL,)),
    "FID 6.86 on CIFAR-10, 7.41 on FFHQ and 7.10 on AFHQv2": Claim("6.86, 7.41, 7.10"),
}
