"""Bansal et al. 2024 (arXiv 2302.07121): is universal guidance a posterior, and what do its three parts buy?

Three measurements: exact moments on a Gaussian, distances to the exact posterior on mixtures, and a trained network.
The paper has pictures and no table; what is claimed there is put in numbers here. Over seeds, all numbers are
differences or logarithms of ratios between two methods on one seed, for what seeds have in common then cancels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..cells import Cells
from ..record import Budget, Claim, Findings
from . import images as trained
from .claims import CLAIMS, NOISY_TRAINING
from .exact import on_a_gaussian, on_mixtures
from .network import IMAGES, on_a_network
from .verdicts import seeds_of


@dataclass(frozen=True, slots=True)
class UniversalGuidanceExperiment:
    """The experiment; see the module's text."""

    name: str = "universal-guidance"
    title: str = "Universal guidance: posteriors, and the parts of the method"
    arxiv: str = "2302.07121"
    version: int = 1

    @property
    def claims(self) -> Mapping[str, Claim]:
        """What is known of every claim beforehand."""
        return CLAIMS

    def run(self, cells: Cells, budget: Budget) -> Findings:
        """The three measurements."""
        parts = [on_a_gaussian(cells), on_mixtures(cells, budget), on_a_network(cells, budget)]
        return Findings(
            findings=[finding for part in parts for finding in part.findings],
            tables=[table for part in parts for table in part.tables],
            plots=[plot for part in parts for plot in part.plots],
            notes=_notes(len(seeds_of(budget))),
            trainings=[NOISY_TRAINING],
        )


def _notes(seeds: int) -> list[str]:
    size = (
        f"{seeds} seeds; a seed is one observation of each mixture and {IMAGES} images of each task. The kernel "
        "distance has no bias at few images; it is measured on EfficientNet-lite0 against 1024 drawings."
    )
    targets = (
        "Targets come from drawings that the network has not seen, one an image: exact posterior samples would follow "
        "the law of the data. The network alone has a distance to the data too, the row 'none'."
    )
    strengths = (
        "DDIM on the default grid. Strengths were chosen for each task and method on sixteen images of another seed "
        "with ten steps and then left alone; that of DPS, which belongs to a step, was divided by the ratio of steps. "
        f"Backward guidance takes {trained.DESCENT} steps."
    )
    reach = (
        "The two classifiers are one small network trained on the same batches, clean and noisy; the class is judged "
        "by the exact colours of the pixels. The paper's guides, models and pictures are out of reach here, and its "
        "text has no table: its claims are put in numbers."
    )
    return [size, targets, strengths, reach]


EXPERIMENT = UniversalGuidanceExperiment()
