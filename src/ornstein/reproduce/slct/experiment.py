"""Dao et al. 2025 (arXiv 2502.01441): which parts of sLCT help a consistency model on latents, and how much?

A ladder of six arms leads from iCT to sLCT, one change a rung; beside them stands a diffusion model of the same
network. All get the same computing, and see the latents, levels and noise of each seed in the same order, so that two
arms of one seed are compared: numbers are logarithms of ratios of the kernel distance, which is unbiased. Outliers are
measured first, for the method is about them; a second condition adds real ones, rare drawings of foreign styles, and
there two rungs can be trained longer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from ..cells import Cells
from ..record import Budget, Claim, Findings
from . import cells as made
from . import outliers
from .claims import CLAIMS
from .tables import notes, plots, tables
from .verdicts import Measured, findings, trainings
from .world import World, finest

CODEC = "critters-latents"
"""The autoencoder whose latents the arms are trained on."""
DATA = "critters"
FOREIGN = "critters:3976+gaze:60+constellation:60"
"""The second condition: three drawings in a hundred are of two styles that the codec does not know. Of its latents
twenty times as many as of a Gaussian lie beyond four deviations."""
IMAGES, SAMPLES, SIZE, SEEDS, COUNT = 160_000, 1000, 64, 3, 4096
PAIR, LONG = ("ict", "cauchy"), ("ict", "slct")


@dataclass(frozen=True, slots=True)
class SLCTExperiment:
    """The experiment; see the module's text. ``codec``, ``data`` and the sizes can be others in trials."""

    name: str = "slct"
    title: str = "Improved training of latent consistency models"
    arxiv: str = "2502.01441"
    version: int = 2
    changed: str = "the adaptive c is scaled to the size of the latents, and the second condition has heavier tails"
    """What is not as it was for the last record."""
    codec: str = CODEC
    data: str = DATA
    foreign: str = FOREIGN
    size: int = SIZE
    width: int = 32
    batch: int = 64
    rate: float = 1e-3
    arms: Sequence[str] = made.ARMS

    @property
    def claims(self) -> Mapping[str, Claim]:
        """What is known of every claim beforehand."""
        return CLAIMS

    def run(self, cells: Cells, budget: Budget) -> Findings:
        """Twenty-seven trainings, six more where longer ones are asked for, and what they say."""
        images, samples = budget.count(IMAGES, 4 * self.batch), budget.count(SAMPLES, 64)
        seeds = range(max(SEEDS, math.floor(SEEDS * budget.scale)))
        usual = World(
            codec=self.codec,
            data=self.data,
            size=self.size,
            width=self.width,
            batch=self.batch,
            end=finest(images // self.batch),
            samples=min(samples, SAMPLES),  # so that as many others are left, and references stay the same
            rate=self.rate,
        )
        foreign = replace(usual, data=self.foreign)
        end = finest(budget.longer * images // self.batch)
        worlds = {"usual": asdict(usual), "foreign": asdict(foreign), "long": asdict(replace(foreign, end=end))}
        # First, for they fill the cache of latents that all trainings read.
        short = {name: world for name, world in worlds.items() if name != "long"}
        tails = {name: cells(outliers.tails, world=world, count=COUNT) for name, world in short.items()}
        floors = {name: cells(made.floor, world=world) for name, world in short.items()}
        # Seed by seed, so that a run that is stopped early has whole comparisons.
        rows = [(seed, "usual", arm) for seed in seeds for arm in self.arms]
        rows += [(seed, "foreign", arm) for seed in seeds for arm in PAIR]
        rows += [(seed, "long", arm) for seed in seeds for arm in LONG if budget.longer > 1]
        found = cells.map(
            made.trained,
            [
                {
                    "arm": arm,
                    "seed": seed,
                    "images": images * (budget.longer if world == "long" else 1),
                    "world": worlds[world],
                }
                for seed, world, arm in rows
            ],
        )
        results: dict[str, dict[str, list[made.Json]]] = {name: {} for name in worlds}
        for (_, world, arm), result in zip(rows, found, strict=True):
            results[world].setdefault(arm, []).append(result)
        measured = Measured(
            usual=results["usual"],
            foreign=results["foreign"],
            long=results["long"],
            tails=tails,
            floors=floors,
            world=usual,
            images=images,
        )
        return Findings(
            findings=findings(measured),
            tables=tables(measured),
            plots=plots(measured),
            notes=notes(measured),
            trainings=trainings(measured),
        )


EXPERIMENT = SLCTExperiment()
