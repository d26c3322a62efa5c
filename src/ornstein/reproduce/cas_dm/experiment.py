"""An et al. 2024 (arXiv 2401.02414): does a perceptual metric help a cascade, and hurt a single network?

Six arms get the same computing, and see the images, times and noise of each seed in the same order: a plain denoiser,
one with as many parameters as the cascade, the plain one with the metric added to its loss, the cascade, the cascade
with the metric, and a control that the paper does not have: the plain one predicting the clean image. All numbers are
logarithms of ratios between two arms of one seed, for what seeds have in common then cancels.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..arms import KID
from ..cells import Cells
from ..record import ArmTraining, Budget, Claim, Finding, Findings, Interval, Line, Plot, Table, Verdict, mean_interval
from ..training import trained_arm
from ..tuning import FIRST_SEED, tune
from ..verdicts import over_seeds, side
from . import cells as measure
from .claims import CLAIMS

SOURCE = "arXiv 2401.02414"
IMAGES, SAMPLES, SIZE, SEEDS = 120_000, 1000, 32, 3
FD, SFD, IS, PIXELS = "FD-lite0", "sFD-lite0", "IS-lite0", "FD-pixels8"
NOTHING = 0.05
"""A smaller change of a distance, in parts, counts as none."""

PAPER_IMAGES = 500_000 * 128
PAPER_SOURCE = "not found; the public settings of its code base on CIFAR-10 are 500,000 steps of 128"

Results = Mapping[str, Sequence[Mapping[str, Any]]]  # arm: one result a seed
_NAMES = {
    "ddpm": "(a) DDPM",
    "ddpm-large": "(b) DDPM, parameters of the cascade",
    "ddpm-metric": "(c) DDPM with the metric",
    "cas-dm": "(d) Cas-DM without metric",
    "cas-dm-metric": "(e) Cas-DM with the metric",
    "clean": "(f) DDPM that predicts the clean image",
}


@dataclass(frozen=True, slots=True)
class CasDMExperiment:
    """The experiment; see the module's text."""

    name: str = "cas-dm"
    title: str = "Bringing a metric function into diffusion"
    arxiv: str = "2401.02414"
    version: int = 3
    changed: str = "every arm chooses its rate among three candidates on a seed of its own"
    """What is not as it was for the last record."""

    @property
    def claims(self) -> Mapping[str, Claim]:
        """What is known of every claim beforehand."""
        return CLAIMS

    def run(self, cells: Cells, budget: Budget) -> Findings:
        """Eighteen trials, eighteen trainings, and what they say."""
        images, samples = budget.count(IMAGES, 512), budget.count(SAMPLES, 64)
        seeds = [FIRST_SEED + seed for seed in range(max(SEEDS, math.floor(SEEDS * budget.scale)))]
        # Seed by seed, so that a run that is stopped early has whole comparisons.
        rows = [(seed, arm) for seed in seeds for arm in measure.ARMS]
        shared = {"images": images, "samples": samples, "size": SIZE}
        half = {**shared, "images": max(images // 2, 64)}
        tuning = tune(cells, measure.tried, measure.CANDIDATES, **half)
        found = cells.map(
            measure.trained,
            [{"arm": arm, "seed": seed, "choice": dict(tuning.chosen(arm)), **shared} for seed, arm in rows],
        )
        results: dict[str, list[Mapping[str, Any]]] = {arm: [] for arm in measure.ARMS}
        for (_, arm), result in zip(rows, found, strict=True):
            results[arm].append(result)
        return Findings(
            findings=_findings(results),
            tables=[_table(results, metric) for metric in (FD, SFD, IS, PIXELS)]
            + [_cost(results), tuning.table(_NAMES, KID)],
            plots=[_plot(results, metric) for metric in (FD, SFD)],
            notes=_notes(images, samples),
            trainings=_trainings(results),
        )


def _trainings(results: Results) -> list[ArmTraining]:
    steps = str(measure.TRIED_STEPS)
    return [
        trained_arm(
            arm,
            runs[0]["images"],
            PAPER_IMAGES,
            PAPER_SOURCE,
            [run["early"] for run in runs],
            [run["at"][steps][KID] for run in runs],
        )
        for arm, runs in results.items()
    ]


def ratios(results: Results, arm: str, against: str, metric: str) -> list[float]:
    """log(arm / against), one a seed, averaged over the numbers of steps; a distance rounded below 0 counts as 0."""
    out: list[float] = []
    for ours, theirs in zip(results[arm], results[against], strict=True):
        pairs = [(ours["at"][str(steps)][metric], theirs["at"][str(steps)][metric]) for steps in measure.STEPS]
        out.append(statistics.fmean(math.log(max(a, 1e-12) / max(b, 1e-12)) for a, b in pairs))
    return out


def _claim(
    results: Results, arm: str, against: str, metric: str, sign: int, claim: str, source: str = f"{SOURCE}, abstract"
) -> Finding:
    values = ratios(results, arm, against, metric)
    return over_seeds(
        values,
        lambda interval: side(interval, sign),
        claim=claim,
        source=source,
        expected=f"mean of log {metric} of {_NAMES[arm][:3]} over {_NAMES[against][:3]} at 5, 10 and 50 steps "
        f"{'above' if sign > 0 else 'below'} 0, with its 95 % interval over seeds",
        measured=_told(values, metric, arm, against),
    )


def _told(values: Sequence[float], metric: str, arm: str, against: str) -> str:
    seeds = ", ".join(f"{math.expm1(value):+.1%}" for value in values)
    mean = math.expm1(statistics.fmean(values))
    return f"{metric} of {_NAMES[arm]} against {_NAMES[against]}: {mean:+.1%} (by seed {seeds})"


def _single(results: Results, metric: str, measured: str = "") -> Finding:
    values = ratios(results, "ddpm-metric", "ddpm", metric)
    return over_seeds(
        values,
        _no_gain,
        claim=f"Added to the loss of a single noise-predicting network, the metric does nothing or harm{measured}",
        source=f"{SOURCE}, introduction",
        expected=f"95 % interval of log {metric} of (c) over (a) above −{NOTHING:g}",
        measured=_told(values, metric, "ddpm-metric", "ddpm"),
    )


def _no_gain(interval: Interval) -> tuple[Verdict, str]:
    if interval[0] > -NOTHING:
        return "reproduced", ""
    if interval[1] < 0.0:
        return "not reproduced", "the metric helps the single network: the whole interval lies below 0"
    return "inconclusive", f"the interval holds both an improvement of more than {NOTHING:.0%} and none"


def _findings(results: Results) -> list[Finding]:
    own, control = "our control", "The gain over DDPM is more than that of predicting the clean image"
    both = "With the metric the cascade is better than a single network of as many parameters"
    gain = "The gain is the metric's and not the cascade's alone"
    # Each claim about the metric twice: on its own features, which it has been trained on, and on none of them.
    apart = ", measured without the metric's network"
    return [
        _claim(results, "cas-dm-metric", "ddpm", FD, -1, "Cas-DM with the metric improves on DDPM in Fréchet distance"),
        _claim(
            results, "cas-dm-metric", "ddpm", SFD, -1, "Cas-DM with the metric improves on DDPM in spatial distance"
        ),
        _claim(results, "cas-dm-metric", "ddpm", IS, 1, "Cas-DM with the metric improves on DDPM in inception score"),
        _claim(results, "cas-dm-metric", "ddpm-large", FD, -1, f"{both}, in Fréchet distance"),
        _claim(results, "cas-dm-metric", "ddpm-large", PIXELS, -1, f"{both}{apart}"),
        _claim(results, "cas-dm-metric", "cas-dm", FD, -1, gain),
        _claim(results, "cas-dm-metric", "cas-dm", PIXELS, -1, f"{gain}{apart}"),
        _single(results, FD),
        _single(results, PIXELS, apart),
        _claim(results, "cas-dm-metric", "clean", FD, -1, f"{control}, in Fréchet distance", own),
        _claim(results, "cas-dm-metric", "clean", PIXELS, -1, f"{control}{apart}", own),
    ]


def _table(results: Results, metric: str) -> Table:
    rows: list[list[str | float | int | None]] = []
    for arm, runs in results.items():
        row: list[str | float | int | None] = [_NAMES[arm]]
        for steps in measure.STEPS:
            values = [run["at"][str(steps)][metric] for run in runs]
            mean, (_, high) = mean_interval(values)
            row += [mean, high - mean if math.isfinite(high) else None]
        rows.append(row)
    head = ["arm", *(name for steps in measure.STEPS for name in (f"{steps} steps", "±"))]
    better = "More" if metric == IS else "Less"
    return Table(
        title=f"{metric}, DDIM", head=head, rows=rows, note=f"{better} is better; ± is half the 95 % interval."
    )


def _cost(results: Results) -> Table:
    rows = [
        [_NAMES[arm], runs[0]["parameters"], runs[0]["images"], statistics.fmean(run["seconds"] for run in runs)]
        for arm, runs in results.items()
    ]
    return Table(title="What an arm costs", head=["arm", "parameters", "images", "seconds of training"], rows=rows)


def _plot(results: Results, metric: str) -> Plot:
    lines = [
        Line(
            name=_NAMES[arm],
            x=list(measure.STEPS),
            y=[statistics.fmean(run["at"][str(steps)][metric] for run in runs) for steps in measure.STEPS],
        )
        for arm, runs in results.items()
    ]
    return Plot(title=f"{metric} over the steps of DDIM", x="steps", y=metric, lines=lines)


def _notes(images: int, samples: int) -> list[str]:
    data = (
        f"Critters at {SIZE} pixels, the linear table of 1000 betas, noise prediction. Every arm is measured on "
        f"{samples} samples of its average weights against as many images of the data, the clean estimate clipped to "
        "[−1, 1] in all of them."
    )
    cost = (
        "The floating-point operations of training, forward and backward and with the metric, are the budget: those of "
        f"(a) on {images} images. So (b) to (e) see fewer images, as the table of costs says. In seconds the arms with "
        "the metric cost more, for its network is of the kind that a processor runs slowly."
    )
    exam = (
        "The metric is the formula of LPIPS on EfficientNet-lite0, and FD, sFD and IS are measured on the same: "
        f"what it has been trained on favours (c) and (e). {PIXELS}, a Fréchet distance of images shrunk to 8 × 8 "
        "pixels, knows nothing of it."
    )
    control = (
        "The cascade's second network predicts the clean image, the plain arms predict noise, and a young network "
        "shows clean images sooner. (f) tells the two apart: the plain network, predicting the clean image."
    )
    reach = (
        "The paper's data sets, sizes and standard networks are out of reach here, and its tables were not at hand: "
        "only the direction of its claims is tested. The gate's loss is that in clean space; λ = 1, not tuned. Rates "
        "were, with as many candidates for every arm."
    )
    return [data, cost, exam, control, reach]


EXPERIMENT = CasDMExperiment()
