"""The demo's panel of pictures in one, two and three evaluations: models made for it beside the diffusion model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..page import Picture, Section, Table, picture
from .output import note

if TYPE_CHECKING:
    from torch import Tensor

    from .demo_args import DemoArgs

SHOWN = (
    ("critters-ect", None, (1, 2)),
    ("critters-64", "auto", (1, 2, 3, 10)),
    ("critters-udpm", None, (3,)),
    ("critters", "auto", (3, 10)),
)
"""Shipped models, how they are sampled, and in how many evaluations: after each model made for few, one that is not."""
SIDE = 64
"""Pixels that every picture is shown at, at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Few:
    """Pictures of one model at one number of evaluations."""

    model: str
    evaluations: int
    seconds_per_image: float
    images: Tensor
    command: str

    def record(self) -> dict[str, str | int | float]:
        """The entries of the JSON document of the demo."""
        return {"model": self.model, "evaluations": self.evaluations, "seconds_per_image": self.seconds_per_image}


def few(args: DemoArgs) -> list[Few]:
    """The shipped models of few evaluations, each beside a diffusion model."""
    note("pictures in one, two and three evaluations")
    return [_drawn(args, name, sampler, n) for name, sampler, evaluations in SHOWN for n in evaluations]


def _drawn(args: DemoArgs, name: str, sampler: str | None, evaluations: int) -> Few:
    from ..runs import open_own
    from ..sampling import sample

    model = open_own(name).denoiser
    sample(model, 1, sampler=sampler, evaluations=evaluations, seed=args.seed)  # so that no start is timed
    begin = time.perf_counter()
    images = sample(model, args.n, sampler=sampler, evaluations=evaluations, seed=args.seed)
    seconds = (time.perf_counter() - begin) / args.n
    chosen = f" --sampler {sampler}" if sampler else ""
    command = (
        f"ornstein sample {name}{chosen} --evaluations {evaluations} --seed {args.seed} "
        f"--n {args.n} --out {args.out}/{name}-{evaluations}"
    )
    return Few(
        model=name, evaluations=evaluations, seconds_per_image=seconds, images=images.clamp(-1, 1), command=command
    )


def section(args: DemoArgs, shown: Sequence[Few]) -> Section:
    """Their panel."""
    rows: list[list[str | Picture]] = []
    for one in shown:
        alt = f"{args.n} images of {one.model} in {one.evaluations} evaluations"
        scale = max(SIDE // one.images.shape[-1], 1)
        pictures = picture(one.images, alt, columns=args.n, scale=scale)
        rows.append([one.model, str(one.evaluations), f"{one.seconds_per_image:.3f}", pictures])
    return Section(
        title="One, two and three evaluations",
        text="critters-ect is a consistency model that was tuned from the diffusion model below it, critters-64, in "
        "the latents of a small autoencoder. critters-udpm doubles the side of a picture with each of three "
        "evaluations, up to 32 pixels; below it critters, a diffusion model of 64 pixels. A diffusion model in one "
        "evaluation draws the mean of what could be there: its faces are all alike. Seconds include decoding.",
        table=Table(head=["model", "evaluations", "seconds an image", "pictures"], rows=rows),
        command="\n".join(one.command for one in shown),
    )
