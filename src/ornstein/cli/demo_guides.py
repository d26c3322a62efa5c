"""The demo's first panel, and those of guides and of rare pictures: shipped models at their best and led."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..page import Picture, Section, Table, picture
from .output import note

if TYPE_CHECKING:
    from torch import Tensor

    from .demo_args import DemoArgs

BEST = ("critters-64", "auto", 20, 24)
"""What is shown first: model, sampler, evaluations, number of pictures."""
STEPS = 20
GUIDES = ("", "text:a yellow critter with droopy ears on crimson", "colour:#2266dd:20")
RARE = ("", "rare:lite0:0.1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Led:
    """Pictures of one model under one guide ("" for none)."""

    guide: str
    images: Tensor
    command: str


def best(args: DemoArgs) -> Led:
    """The pictures of the first panel."""
    from ..runs import open_own
    from ..sampling import sample

    name, sampler, evaluations, n = BEST
    note(f"{n} pictures by {name}")
    images = sample(open_own(name).denoiser, n, sampler=sampler, evaluations=evaluations, seed=args.seed)
    command = (
        f"ornstein sample {name} --sampler {sampler} --evaluations {evaluations} --seed {args.seed} --n {n} "
        f"--out {args.out}/best"
    )
    return Led(guide="", images=images.clamp(-1, 1), command=command)


def led(args: DemoArgs, guides: Sequence[str], name: str) -> list[Led]:
    """The same noise under each guide, at `STEPS` steps of ddim."""
    from .. import guides as made
    from ..runs import open_own
    from ..sampling import sample

    run = open_own("critters")
    found: list[Led] = []
    for place, guide in enumerate(guides):
        note(f"guided by {guide}" if guide else "without a guide")
        denoiser = run.denoiser
        if guide:
            guidance = made.compose(made.make([guide], shape=run.picture))
            denoiser = denoiser if guidance is None else guidance(denoiser)
        images = sample(denoiser, args.n, sampler="ddim", steps=STEPS, seed=args.seed)
        asked = f" --guide '{guide}'" if guide else ""
        command = (
            f"ornstein sample critters --sampler ddim --steps {STEPS}{asked} --seed {args.seed} --n {args.n} "
            f"--out {args.out}/{name}-{place}"
        )
        found.append(Led(guide=guide, images=images.clamp(-1, 1), command=command))
    return found


def first(args: DemoArgs, shown: Led) -> Section:
    """The panel that is seen first."""
    del args
    name, sampler, evaluations, n = BEST
    return Section(
        title=f"{n} drawings that nobody drew",
        text=f"{name} in {evaluations} evaluations, by {sampler}: the first {n} of the seed, not a choice.",
        pictures=[picture(shown.images, f"{n} pictures by {name}", columns=6, scale=2)],
        command=shown.command,
    )


def guided(args: DemoArgs, shown: Sequence[Led]) -> Section:
    """The panel of guides."""
    return _beside(
        args,
        shown,
        title="Led by a sentence, led by a colour",
        text="The same noise and the same network, which takes no sentence: a second network looks at every clean "
        "estimate, and its gradient leads the sample (universal guidance).",
        plain="no guide",
    )


def rare(args: DemoArgs, shown: Sequence[Led]) -> Section:
    """The panel of rare pictures."""
    return _beside(
        args,
        shown,
        title="Rare pictures",
        text="Away from what the model would reconstruct itself (self-guided minority sampling): unusual shapes and "
        "colours become more frequent, and so do mistakes.",
        plain="as the model draws",
    )


def _beside(args: DemoArgs, shown: Sequence[Led], *, title: str, text: str, plain: str) -> Section:
    rows: list[list[str | Picture]] = []
    for one in shown:
        label = one.guide or plain
        rows.append([label, picture(one.images, f"{args.n} pictures, {label}", columns=args.n, scale=1)])
    return Section(
        title=title,
        text=text,
        table=Table(head=["--guide", "pictures"], rows=rows),
        command="\n".join(one.command for one in shown),
    )
