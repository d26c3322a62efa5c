"""Tables, plots and notes of `ornstein.reproduce.slct`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from ..arms import COVERAGE, FD, KID, PIXELS, RECALL
from ..record import Line, Plot, Table, mean_interval
from .cells import SAMPLERS, STEPS
from .verdicts import LEAST, NAMES, TIMES, Measured, RunResult
from .world import DIFFUSION, LADDER

Row = list[str | float | int | None]


def tables(m: Measured) -> list[Table]:
    """Distances of all arms, tails, shares and costs."""
    return [
        *(_ladder(m, metric) for metric in (KID, FD, PIXELS, RECALL, COVERAGE)),
        *(_diffusion(m, metric) for metric in (KID, FD)),
        _tails(m),
        _shares(m),
        _cost(m),
    ]


def _cells_of(runs: Sequence[RunResult], way: str, metric: str) -> Row:
    values = [run["at"][way][metric] for run in runs if not run["diverged"] and way in run["at"]]
    if not values:
        return [None, None]
    mean, (_, high) = mean_interval(values)
    return [mean, high - mean if math.isfinite(high) else None]


def _ladder(m: Measured, metric: str) -> Table:
    ways = (*TIMES, "searched")
    rows: list[Row] = [
        [NAMES[arm], *(x for way in ways for x in _cells_of(m.usual[arm], way, metric))] for arm in LADDER
    ]
    rows += [
        [f"{NAMES[arm]}, foreign drawings", *(x for way in ways for x in _cells_of(runs, way, metric))]
        for arm, runs in m.foreign.items()
    ]
    for what in ("data", "reconstructions"):
        rows.append([f"other {what} (no model)", m.floors["usual"][what][metric], *(None,) * 5])
    better = "More" if metric in (RECALL, COVERAGE) else "Less"
    return Table(
        title=f"{metric} of the ladder",
        head=["arm", "1 evaluation", "±", "2 evaluations", "±", "2, searched level", "±"],
        rows=rows,
        note=f"{better} is better; ± is half the 95 % interval over seeds. The last rows are pictures that are not in "
        "the reference, as they are and reconstructed.",
    )


def _diffusion(m: Measured, metric: str) -> Table:
    rows: list[Row] = [
        [name, *(x for steps in STEPS for x in _cells_of(m.usual[DIFFUSION], f"{name} {steps}", metric))]
        for name in SAMPLERS
    ]
    head = ["sampler", *(text for steps in STEPS for text in (f"{steps} evaluations", "±"))]
    return Table(title=f"{metric} of the diffusion model", head=head, rows=rows, note="Less is better.")


def _tails(m: Measured) -> Table:
    names = {"latents": "latents", "pixels": "pixels of the same pictures", "gaussian": "Gaussian numbers"}
    rows: list[Row] = [
        [f"{names[what]}{', foreign drawings' * (world == 'foreign')}", *m.tails[world][what].values()]
        for world in ("usual", "foreign")
        for what in names
        if (world, what) != ("foreign", "gaussian")
    ]
    head = ["values", *m.tails["usual"]["latents"]]
    note = "Each element has mean 0 and deviation 1 over the data. Kurtosis is in excess of a Gaussian's."
    return Table(title="Outliers", head=head, rows=rows, note=note)


def _shares(m: Measured) -> Table:
    rows: list[Row] = []
    for world, arms in (("", m.usual), (", foreign drawings", m.foreign)):
        for arm, runs in arms.items():
            told = [run["shares"]["distances"] for run in runs if run["shares"]]
            for name in told[0] if told else ():
                parts = [statistics.fmean(one[name][what] for one in told) for what in ("loss", "gradient", "elements")]
                rows.append([f"{NAMES[arm]}{world}: {name}", *parts])
    return Table(
        title="What the largest hundredth carries",
        head=["errors of, distance", "loss, samples", "gradient, samples", "squared gradient, elements"],
        rows=rows,
        note="Shares of the 1 % largest errors, means over four noise levels; 0.01 is no more than the others. All "
        "distances of an arm are of the same errors, with its own c of the last stage.",
    )


def _cost(m: Measured) -> Table:
    rows: list[Row] = []
    for world, arms in (("", m.usual), (", foreign drawings", m.foreign)):
        for arm, runs in arms.items():
            sound = [run for run in runs if run["seconds"] is not None]
            rows.append(
                [
                    NAMES[arm] + world,
                    sound[0]["parameters"] if sound else None,
                    runs[0]["images"],
                    statistics.fmean(run["seconds"] for run in sound) if sound else None,
                    sum(bool(run["diverged"]) for run in runs),
                    statistics.fmean(run["left_out"] for run in runs),
                    ", ".join(f"{run['middle']:g}" for run in runs if run["middle"]) or None,
                ]
            )
    head = ["arm", "parameters", "images", "seconds of training", "diverged", "left out", "searched levels"]
    return Table(title="What an arm costs, and whether it held", head=head, rows=rows)


def plots(m: Measured) -> list[Plot]:
    """The distance over the number of evaluations."""

    def line(name: str, arm: str, ways: Sequence[str], counts: Sequence[float]) -> Line:
        values = [_cells_of(m.usual[arm], way, KID)[0] for way in ways]
        return Line(name=name, x=list(counts), y=[None if v is None else max(float(v), LEAST) for v in values])

    lines = [line(NAMES[arm], arm, TIMES, (1, 2)) for arm in LADDER]
    lines += [line(f"diffusion, {name}", DIFFUSION, [f"{name} {n}" for n in STEPS], STEPS) for name in SAMPLERS]
    lines = [one for one in lines if any(y is not None for y in one.y)]  # all seeds of an arm may have diverged
    return [Plot(title=f"{KID} over evaluations", x="evaluations", y=KID, lines=lines)] if lines else []


def notes(m: Measured) -> list[str]:
    """What differs from the paper."""
    w, count = m.world, m.usual["ict"][0]["images"]
    stages = round(math.log2(w.end / 10)) + 1
    data = (
        f"Critters at {w.size} pixels in the latents of the autoencoder {w.codec}, standardised by element as in the "
        f"paper and drawn from the posterior at every visit. {w.samples} samples an arm against as many pictures of "
        "the data. The paper trains on 256-pixel photographs in Stable Diffusion's latents, for some 330,000 steps "
        "of 128 with 150 million weights; its own ablation table was not at hand. Only directions are tested here, and "
        "a rung may need the longer training."
    )
    cost = (
        "The floating-point operations of training, forward, backward and the target's forward, are the budget: those "
        f"of iCT on {count} images, {count // w.batch} steps of {w.batch}. The diffusion model has no target and sees "
        "more images. Pairing and norms are not counted."
    )
    course = (
        f"The curriculum ends at {w.end} intervals in {stages} stages instead of 640 in seven, for the steps are few; "
        f"RAdam has a rate of {w.rate:g} instead of 1e-4 for the same reason. The diffusion model is trained with "
        "AdamW at 1e-3. Averages of the weights are power functions of width 0.1."
    )
    constants = (
        "All other constants are the published ones: c of 0.00054·√d where it is constant, d being smaller here, and "
        "the published law of S where it adapts, scaled by √(d/4096) so that it shrinks here too; a weight of 5 for "
        "the diffusion loss. iCT's distance is of the mean of squares, as in the published code."
    )
    sampling = (
        "The middle level of two evaluations is 0.53 as published; the searched one was chosen by the kernel distance "
        "on other pictures. The diffusion model is compared by the better of DDIM and auto at each number, which "
        "favours it a little."
    )
    foreign = (
        "Foreign drawings: three pictures in a hundred are of two other styles. These are outlying pictures, not "
        "the impulses in single values that the paper describes; but the distance is of a picture's whole error, where "
        "both look alike."
    )
    judged_by = (
        f"Kernel distances below {LEAST:g} count as that. {KID} decides, for it is unbiased; {PIXELS}, the Fréchet "
        "distance of pictures shrunk to 8 × 8 pixels, knows nothing of its network."
    )
    return [data, cost, course, constants, sampling, foreign, judged_by]
