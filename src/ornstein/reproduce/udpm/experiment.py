"""Abu-Hussein & Giryes 2024 (arXiv 2305.16269): are three evaluations on three sizes better than DDIM's, and why?

Five arms get the same computing and the same tuning: UDPM, UDPM without its discriminator, UDPM as a plain diffusion
loss, and a diffusion and a consistency model of the same network. Distances of two arms are compared seed by seed, as
logarithms of their ratio, for what seeds have in common then cancels. What the three levels cost, decide, and do
between two pictures is measured beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..arms import KID, PIXELS
from ..cells import Cells
from ..record import Budget, Claim, Finding, Findings
from ..tuning import FIRST_SEED, tune
from . import cells as measure
from .cells import CONSISTENCY, DIFFUSION, FEW, FIT, FULL, ONE, PLAIN, THREE
from .claims import CLAIMS
from .tables import notes, plots, tables
from .verdicts import NAMES, SOURCE, Results, between_arms, judged, ratio, trainings

IMAGES, SAMPLES, SIZE, WIDTH, SEEDS = 80_000, 1000, 32, 32, 3
SHARE = (0.28, 0.38)
"""What three levels may cost of one evaluation: 1/4 + 1/16 + 1/64 = 0.33, and the paper's 13.35 of 40.62."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UDPMExperiment:
    """The experiment; see the module's text. ``size``, ``width`` and ``seeds`` can be others in trials."""

    name: str = "udpm"
    title: str = "Upsampling diffusion probabilistic models"
    arxiv: str = "2305.16269"
    version: int = 3
    changed: str = (
        "every arm chooses its rate and its odds of the levels among four candidates on a seed of its own, a "
        "consistency model stands beside, the discriminator is its authors' (its spread summed over pixels, normalised "
        "blocks), the gradient penalty is the published one, and gradients are not clipped where there is a "
        "discriminator"
    )
    """What is not as it was for the last record."""
    size: int = SIZE
    width: int = WIDTH
    seeds: int = SEEDS

    @property
    def claims(self) -> Mapping[str, Claim]:
        """What is known of every claim beforehand."""
        return CLAIMS

    def run(self, cells: Cells, budget: Budget) -> Findings:
        """Twenty trials, fifteen trainings, and what they say."""
        images, samples = budget.count(IMAGES, 2 * measure.BATCH), budget.count(SAMPLES, 48)
        shared = {"size": self.size, "width": self.width}
        cost = cells(measure.cost, **shared)
        half = {"images": max(images // 2, 2 * measure.BATCH), "samples": samples, **shared}
        tuning = tune(cells, measure.tried, measure.CANDIDATES, **half)
        # Seed by seed, so that a run that is stopped early has whole comparisons.
        seeds = [FIRST_SEED + seed for seed in range(max(self.seeds, math.floor(self.seeds * budget.scale)))]
        rows = [(seed, arm) for seed in seeds for arm in measure.ARMS]
        found = cells.map(
            measure.trained,
            [
                {"arm": arm, "seed": seed, "choice": dict(tuning.chosen(arm)), "images": images, "samples": samples}
                | shared
                for seed, arm in rows
            ],
        )
        results: dict[str, list[Mapping[str, Any]]] = {arm: [] for arm in measure.ARMS}
        for (_, arm), result in zip(rows, found, strict=True):
            results[arm].append(result)
        return Findings(
            findings=findings(results, cost),
            tables=[*tables(results, cost), tuning.table(NAMES, KID)],
            plots=plots(results),
            notes=notes(results, images, samples),
            trainings=trainings(results),
        )


def findings(results: Results, cost: Mapping[str, Any]) -> list[Finding]:
    """Every claim with its verdict."""
    return [
        *_few_steps(results),
        *_one_step(results),
        *_losses(results),
        *_price(cost),
        *_levels(results),
        _way_between(results),
        _published(),
    ]


def _few_steps(results: Results) -> list[Finding]:
    """UDPM's three evaluations against DDIM's, more and more of them, on the better of two grids."""
    table = "table of CIFAR-10: 6.86 against 93.51 at 5 steps and 13.36 at 10"
    return [
        between_arms(
            results,
            (FULL, THREE),
            (DIFFUSION, f"ddim {steps}", f"ddim {steps}, equal times"),
            metric,
            f"Three evaluations of UDPM are better than {steps} of DDIM, in {metric}",
            table if steps > 3 else "abstract",
        )
        for steps in FEW
        for metric in (KID, PIXELS)
    ]


def _one_step(results: Results) -> list[Finding]:
    """UDPM's three evaluations, which cost a third of one, against one of a consistency model."""
    return [
        between_arms(
            results,
            (FULL, THREE),
            (CONSISTENCY, ONE),
            metric,
            f"Three evaluations of UDPM are better than one of a consistency model, in {metric}",
            "table of CIFAR-10: 6.86 against 8.70",
        )
        for metric in (KID, PIXELS)
    ]


def _losses(results: Results) -> list[Finding]:
    """What the losses are good for."""
    where = "ablation of the losses (a figure, whose numbers were not at hand)"
    alone = "arXiv 2603.08709, table: FID 98.6 without the adversarial and perceptual terms, 7.51 with them"
    need = "The adversarial term is needed: without it three evaluations are worse"
    gone = "Without the adversarial and the perceptual term three evaluations are worse"
    told = "The perceptual term helps where there is no adversarial one"
    return [
        *(between_arms(results, (FULL, THREE), (FIT, THREE), m, f"{need}, in {m}", where) for m in (KID, PIXELS)),
        *(between_arms(results, (FULL, THREE), (PLAIN, THREE), m, f"{gone}, in {m}", alone) for m in (KID, PIXELS)),
        *(between_arms(results, (FIT, THREE), (PLAIN, THREE), m, f"{told}, in {m}", where) for m in (KID, PIXELS)),
    ]


def _price(cost: Mapping[str, Any]) -> list[Finding]:
    """Three levels against one evaluation at full size."""
    counted, seconds = cost["operations"], cost["seconds"]
    share = counted["three"] / counted["one"]
    within = SHARE[0] <= share <= SHARE[1]
    operations = Finding(
        claim="Three evaluations, on halves, quarters and eighths of the side, cost a third of one at full size",
        source=f"{SOURCE}, table of costs: 13.35 against 40.62 GFLOPs",
        expected=f"operations of three evaluations over those of one by the same network in [{SHARE[0]}, {SHARE[1]}]",
        measured=f"{counted['three'] / 1e6:.0f} against {counted['one'] / 1e6:.0f} million: {share:.3f}",
        verdict="reproduced" if within else "not reproduced",
        reason="" if within else "the share lies outside the range",
        value=share,
        effect=share,
        noise=0.0,
    )
    return [operations, ratio(
        [math.log(three / one) for three, one in zip(seconds["three"], seconds["one"], strict=True)],
        -1,
        claim="Three evaluations take less time than one at full size",
        source=f"{SOURCE}, table of costs: 765 against 255 images a second",
        expected="mean of log seconds of three over those of one below 0, with its 95 % interval over rounds",
        what="processor time of three evaluations against one",
    )]  # fmt: skip


def _levels(results: Results) -> list[Finding]:
    """What the noise of a level decides."""
    cells = [cell["levels"] for cell in results[FULL] if not cell["diverged"]]
    far = [math.log(max(c["3"]["coarse"], 1e-9) / max(c["1"]["coarse"], 1e-9)) for c in cells]
    part = [
        math.log(max(c["3"]["coarse"], 1e-9) / max(c["3"]["all"], 1e-9))
        - math.log(max(c["1"]["coarse"], 1e-9) / max(c["1"]["all"], 1e-9))
        for c in cells
    ]
    where = f"{SOURCE}, figures of perturbed latents"
    return [
        ratio(
            far,
            1,
            claim="The noise of the last level decides what is seen, that of the first does not",
            source=where,
            expected="log of how far the picture, shrunk to 4 × 4 pixels, moves with new noise at level 3, over that "
            "of level 1, above 0 with its 95 % interval over seeds",
            what="coarse change by level 3 against level 1",
        ),
        ratio(
            part,
            1,
            claim="What the noise of the first level changes is detail",
            source=where,
            expected="log of the coarse share of the change by level 3 over that of level 1, above 0 with its 95 % "
            "interval over seeds",
            what="coarse share of the change, level 3 against level 1",
        ),
    ]


def _way_between(results: Results) -> Finding:
    """Pictures half-way in noise are pictures."""
    cells = [cell["middle"] for cell in results[FULL] if not cell["diverged"]]
    return ratio(
        [judged(cell["noise"][KID]) - judged(cell["pixels"][KID]) for cell in cells],
        -1,
        claim="Half-way between two pictures in noise stands a picture, and not both of them",
        source=f"{SOURCE}, figures of interpolations",
        expected=f"log {KID} of pictures half-way in noise over that of the means of the same pairs of pictures, below "
        "0 with its 95 % interval over seeds",
        what=f"{KID} half-way in noise against half-way in pixels",
    )


def _published() -> Finding:
    return Finding(
        claim="FID 6.86 on CIFAR-10, 7.41 on FFHQ and 7.10 on AFHQv2 in three evaluations",
        source=f"{SOURCE}, abstract",
        expected="FID within 5 % of these",
        measured="not measured",
        verdict="not testable here",
        reason="600 000 steps of 57 to 65 million parameters, and the data, are out of reach of two cores",
    )


EXPERIMENT = UDPMExperiment()
