"""Dao et al. 2025 (arXiv 2502.01441): which parts of sLCT help a consistency model on latents, and how much?

A ladder of six arms leads from iCT to sLCT, one change a rung; beside them stands a diffusion model of the same
network. All get the same computing, and see the latents, levels and noise of each seed in the same order, so that two
arms of one seed are compared: numbers are logarithms of ratios of the kernel distance, which is unbiased. Outliers are
measured first, for the method is about them; a second condition adds real ones, rare drawings of foreign styles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from ..cells import Cells
from ..record import Budget, Findings
from . import cells as made
from . import outliers
from .tables import notes, plots, tables
from .verdicts import Measured, findings
from .world import World

CODEC = "critters-latents"
"""The autoencoder whose latents the arms are trained on."""
DATA = "critters"
FOREIGN = "critters:4016+constellation:20+voxel-art:20+stack:20+gaze:20"
"""The second condition: two drawings in a hundred are of styles that the codec does not know."""
IMAGES, SAMPLES, SIZE, SEEDS, COUNT = 160_000, 1000, 64, 3, 4096
STAGE, START = 250, 10
"""Least steps of a stage of the curriculum, and the intervals of the first one."""
PAIR = ("ict", "cauchy")


@dataclass(frozen=True, slots=True)
class SLCTExperiment:
    """The experiment; see the module's text. ``codec``, ``data`` and the sizes can be others in trials."""

    name: str = "slct"
    title: str = "Improved training of latent consistency models"
    arxiv: str = "2502.01441"
    version: int = 1
    codec: str = CODEC
    data: str = DATA
    foreign: str = FOREIGN
    size: int = SIZE
    width: int = 32
    batch: int = 64
    rate: float = 1e-3
    arms: Sequence[str] = made.ARMS

    def run(self, cells: Cells, budget: Budget) -> Findings:
        """Twenty-seven trainings, and what they say."""
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
        worlds = {"usual": asdict(usual), "foreign": asdict(foreign)}
        # First, for they fill the cache of latents that all trainings read.
        tails = {name: cells(outliers.tails, world=world, count=COUNT) for name, world in worlds.items()}
        floors = {name: cells(made.floor, world=world) for name, world in worlds.items()}
        # Seed by seed, so that a run that is stopped early has whole comparisons.
        rows = [(seed, "usual", arm) for seed in seeds for arm in self.arms]
        rows += [(seed, "foreign", arm) for seed in seeds for arm in PAIR]
        found = cells.map(
            made.trained,
            [{"arm": arm, "seed": seed, "images": images, "world": worlds[world]} for seed, world, arm in rows],
        )
        results: dict[str, dict[str, list[made.Json]]] = {name: {} for name in worlds}
        for (_, world, arm), result in zip(rows, found, strict=True):
            results[world].setdefault(arm, []).append(result)
        measured = Measured(
            usual=results["usual"], foreign=results["foreign"], tails=tails, floors=floors, world=usual, images=images
        )
        return Findings(
            findings=findings(measured), tables=tables(measured), plots=plots(measured), notes=notes(measured)
        )


def finest(steps: int) -> int:
    """Intervals of the last stage: they double while each stage keeps `STAGE` steps, up to the paper's 640.

    >>> [finest(steps) for steps in (50, 600, 1000, 330_000)]
    [20, 20, 80, 640]
    """
    return START * 2 ** (min(max(steps // STAGE, 2), 7) - 1)


EXPERIMENT = SLCTExperiment()
