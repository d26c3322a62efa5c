"""Tables, plots and notes of `ornstein.reproduce.udpm`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ..arms import COVERAGE, FD, KID, PIXELS, RECALL
from ..record import Line, Plot, Table, mean_interval
from ..tuning import FIRST_SEED
from .cells import ARMS, BATCH, CONSISTENCY, DIFFUSION, LAZY, LEVELS, ONE, PYRAMIDS, STEPS, THREE, WAYS
from .verdicts import NAMES, Results

METRICS = (KID, FD, PIXELS, RECALL, COVERAGE)
Row = list[str | float | int | None]


def tables(results: Results, cost: Mapping[str, Any]) -> list[Table]:
    """Distances, variety by level, ways between pictures, and costs."""
    return [_distances(results), _variety(results), _middles(results), _training(results), _evaluations(cost)]


def _spread(values: Sequence[float]) -> Row:
    """Mean, and half of the interval."""
    if not values:
        return [None, None]
    mean, (_, high) = mean_interval(values)
    return [mean, high - mean if math.isfinite(high) else None]


def _sound(results: Results, arm: str) -> list[Mapping[str, Any]]:
    return [cell for cell in results[arm] if not cell["diverged"]]


def _distances(results: Results) -> Table:
    rows: list[Row] = []
    for arm in ARMS:
        for way in {DIFFUSION: WAYS, CONSISTENCY: (ONE,)}.get(arm, (THREE,)):
            row: Row = [f"{NAMES[arm]}, {way}"]
            for metric in METRICS:
                row += _spread([cell["at"][way][metric] for cell in _sound(results, arm)])
            rows.append(row)
    return Table(
        title="Samples against the data",
        head=["arm and sampling", *(name for metric in METRICS for name in (metric, "±"))],
        rows=rows,
        note="Of distances less is better, of recall and coverage more; ± is half the 95 % interval over seeds.",
    )


def _variety(results: Results) -> Table:
    rows: list[Row] = []
    kinds = ("all", "coarse", "metric")
    for arm in PYRAMIDS:
        for level in (*reversed(LEVELS), 0):
            row: Row = [f"{NAMES[arm]}, {f'level {level}' if level else 'all levels'}"]
            for kind in kinds:
                row += _spread([cell["levels"][str(level)][kind] for cell in _sound(results, arm)])
            rows.append(row)
    return Table(
        title="How far a picture moves with new noise at one level",
        head=["arm and level", "pixels", "±", "shrunk to 4 × 4", "±", "lite0", "±"],
        rows=rows,
        note="Root mean squares over pixels in [−1, 1], and the perceptual distance.",
    )


def _middles(results: Results) -> Table:
    rows: list[Row] = []
    for arm in PYRAMIDS:
        sound = [cell["middle"] for cell in _sound(results, arm)]
        row: Row = [NAMES[arm]]
        for how in ("noise", "pixels"):
            for metric in (KID, PIXELS):
                row += _spread([cell[how][metric] for cell in sound])
        rows.append(row + _spread([cell["smooth"] for cell in sound]))
    heads = [f"{metric}, {how}" for how in ("noise", "pixels") for metric in (KID, PIXELS)]
    return Table(
        title="Half-way between two pictures, in noise and in pixels, against the data",
        head=["arm", *(name for head in (*heads, "largest of 8 steps") for name in (head, "±"))],
        rows=rows,
        note="The largest of eight perceptual steps between two pictures, as a share of the way: 0.125 is even.",
    )


def _training(results: Results) -> Table:
    rows: list[Row] = []
    for arm in ARMS:
        cells, sound = results[arm], _sound(results, arm)
        seconds = [cell["seconds"] for cell in sound]
        rows.append(
            [
                NAMES[arm],
                next((cell["parameters"] for cell in sound), None),
                cells[0]["images"],
                cells[0]["operations"] / 1e6,
                cells[0]["operations"] * cells[0]["images"] / 1e12,
                statistics.fmean(seconds) if seconds else None,
                len(cells) - len(sound),
            ]
        )
    return Table(
        title="What a training costs",
        head=["arm", "parameters", "images", "10⁶ operations an image", "10¹² in all", "seconds", "diverged"],
        rows=rows,
        note="Forward and backward, with discriminator, gradient penalty and metric; parameters without the latter.",
    )


def _evaluations(cost: Mapping[str, Any]) -> Table:
    names = {"three": "three levels", "one": "one, full size", "squares": "one of (d)"}
    rows: list[Row] = [
        [label, cost["operations"][name] / 1e6, *_spread([1e3 * value for value in cost["seconds"][name]])]
        for name, label in names.items()
    ]
    return Table(
        title="What a picture costs",
        head=["evaluations", "10⁶ operations", "milliseconds", "±"],
        rows=rows,
        note="The same network; (d) sees squares of 2 × 2 pixels as channels, the one at full size single pixels.",
    )


def plots(results: Results) -> list[Plot]:
    """Distances over evaluations."""
    out: list[Plot] = []
    for metric in (KID, PIXELS):
        lines = [
            Line(
                name=NAMES[arm],
                x=list(STEPS) if arm == DIFFUSION else [STEPS[0], STEPS[-1]],
                y=[_mean(results, arm, way, metric) for way in _ways(arm)],
                theory=arm != DIFFUSION,
            )
            for arm in ARMS
        ]
        title = f"{metric}: DDIM over its steps; UDPM's three evaluations and the consistency model's one as lines"
        out.append(Plot(title=title, x="evaluations", y=metric, lines=lines))
    return out


def _ways(arm: str) -> list[str]:
    way = ONE if arm == CONSISTENCY else THREE
    return [f"ddim {steps}" for steps in STEPS] if arm == DIFFUSION else [way, way]


def _mean(results: Results, arm: str, way: str, metric: str) -> float | None:
    values = [cell["at"][way][metric] for cell in _sound(results, arm)]
    return statistics.fmean(values) if values and statistics.fmean(values) > 0.0 else None


def notes(results: Results, images: int, samples: int) -> list[str]:
    """Protocol, and differences from the paper."""
    how = (
        f"Critters at 32 pixels. Every arm is measured on {samples} samples of its average weights against as many "
        "images of the data. (d) has UDPM's network on squares of 2 × 2 pixels, and predicts the clean image on the "
        "cosine schedule, its estimate clipped to [−1, 1]. Few steps of DDIM are better spaced for details by log-SNR "
        "and for the whole picture by time, so both are drawn, and in each comparison the better one counts. (e) is "
        "iCT on the same network as (d), sampled in one evaluation."
    )
    computing = (
        f"The floating-point operations of training are the budget: those of (a) on {images} images, in steps of "
        f"{BATCH}. Discriminator, metric and gradient penalty count, its second derivative included. The penalty "
        f"is computed in one step of {LAZY}."
    )
    tuning = (
        "Every arm chose among four candidates on a seed of its own: rates, and of pyramids how often each level is "
        "drawn. The judged trainings have other seeds."
    )
    exam = (
        "The metric that (a) and (b) are trained with is the formula of LPIPS on EfficientNet-lite0, and KID, FD, "
        f"recall and coverage are measured on the same network, which favours them. {PIXELS}, a Fréchet distance of "
        "images shrunk to 8 × 8 pixels, knows nothing of it, and sees no details."
    )
    reach = (
        "What differs from the paper: size, data, network (2.7 million parameters and not 57 to 65, fed at unit "
        "variance), steps, AdamW with betas of 0 and 0.99 where there is a discriminator and 0.9 and 0.99 "
        "elsewhere, the metric and a small discriminator. The paper's DDIM is another network, "
        "trained by others."
    )
    silent = (
        "Without a discriminator there is nothing but the mean picture to be learned at level 3, so (b) and (c) draw "
        "their variety from levels 2 and 1."
    )
    said = [how, computing, tuning, exam, reach, silent]
    for arm, cells in results.items():
        said += [
            f"{NAMES[arm]}, seed {seed}: {c['diverged']}" for seed, c in enumerate(cells, FIRST_SEED) if c["diverged"]
        ]
    return said
