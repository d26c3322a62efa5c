"""Universal guidance of a trained network: what `ornstein.reproduce.universal` finds there."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ..cells import Cells
from ..record import Budget, Finding, Line, Plot, Table, mean_interval
from ..verdicts import Part
from . import images as trained
from .verdicts import NAMES, RECURRENCES, SOURCE, Numbers, Results, log_ratios, mean_of, over_seeds, pooled, seeds_of

# ------------------------------------------------------------------------------------------------ a trained network

IMAGES, FEW, MANY = 8, 6, 24
STRENGTHS: Mapping[str, float] = {"colour": 0.1, "inpainting": 3e-4, "class": 3.0}
DPS_SCALE: Mapping[str, float] = {"colour": 3.0, "inpainting": 1.0}
NOISY_WEIGHT = 10.0
MEASURED = ("colour", "inpainting")


def image_arms(task: str) -> list[tuple[str, int, int, float]]:
    """(method, steps, recurrence, strength) of a task."""
    w = STRENGTHS[task]
    arms = [("forward", FEW, k, w) for k in (RECURRENCES if task in MEASURED else (4,))]
    arms += [("forward", MANY, 1, w), ("backward", MANY, 1, 0.0), ("both", MANY, 1, w)]
    if task in MEASURED:
        return [*arms, ("dps", MANY, 1, DPS_SCALE[task]), ("posterior", MANY // 2, 1, 1.0)]
    return [*arms, ("noisy", MANY, 1, NOISY_WEIGHT)]


def on_a_network(cells: Cells, budget: Budget) -> Part:
    """The energy reached and the realism kept."""
    keys = [
        (task, *arm, seed)
        for seed in seeds_of(budget)
        for task in trained.TASKS
        for arm in (("plain", MANY, 1, 0.0), *image_arms(task))
    ]
    names = ("task", "method", "steps", "recur", "strength", "seed")
    rows = [dict(zip(names, key, strict=True)) | {"images": IMAGES} for key in keys]
    results: dict[tuple[Any, ...], list[Numbers]] = {}
    for key, value in zip(keys, cells.map(trained.drawn, rows), strict=True):
        results.setdefault(key[:-1], []).append(value)
    return Part(
        findings=_image_findings(results),
        tables=[_image_table(results, task) for task in trained.TASKS],
        plots=[_image_plot(results, "kid", "KID-lite0"), _image_plot(results, "misfit", "misfit")],
    )


def _image_findings(results: Results) -> list[Finding]:
    def at(task: str, method: str, steps: int, k: int = 1) -> Sequence[Numbers]:
        return next(values for key, values in results.items() if key[:4] == (task, method, steps, k))

    def differences(key: str, pairs: Mapping[str, tuple[Any, Any]]) -> tuple[list[float], str]:
        each = {t: [a[key] - b[key] for a, b in zip(at(t, *x), at(t, *y), strict=True)] for t, (x, y) in pairs.items()}
        return pooled(each, "{:+.3f}")

    def ratios(pairs: Mapping[str, tuple[Any, Any]]) -> tuple[list[float], str]:
        each = {t: log_ratios(at(t, *x), at(t, *y), "misfit") for t, (x, y) in pairs.items()}
        return pooled(each, "{:+.2f}")

    def of(x: Any, y: Any, tasks: Sequence[str] = MEASURED) -> Mapping[str, tuple[Any, Any]]:
        return dict.fromkeys(tasks, (x, y))

    few, most, again, long = (("forward", FEW, 1), ("forward", FEW, 8), ("forward", FEW, 4), ("forward", MANY, 1))
    kid = "difference of KID-lite0 to the data"
    parts: list[tuple[str, str, str, tuple[list[float], str], str]] = [
        ("Realism improves with recurrence", "figure 2", f"{kid}: k = 8 less k = 1 at {FEW} steps",
         differences("kid", of(most, few)), "difference"),
        ("Recurrence also brings the samples nearer to what was asked", "figure 2",
         f"log misfit: k = 8 over k = 1 at {FEW} steps", ratios(of(most, few)), "ratio"),
        ("Recurrence improves realism at equal evaluations too", "no claim of the paper",
         f"{kid}: {FEW} steps with k = 4 less {MANY} with k = 1", differences("kid", of(again, long)), "difference"),
        ("Forward and backward guidance together come nearer to what was asked than forward alone", "figure 9",
         f"log misfit: both over forward, {MANY} steps", ratios(of(("both", MANY), long)), "ratio"),
        ("Forward guidance with recurrence comes nearer to what was asked than DPS at equal evaluations",
         "no claim of the paper", f"log misfit: {FEW} steps with k = 4 over {MANY} of DPS",
         ratios(of(again, ("dps", MANY))), "ratio"),
        ("Forward guidance with recurrence is more realistic than DPS at equal evaluations",
         "no claim of the paper", f"{kid}: {FEW} steps with k = 4 less {MANY} of DPS",
         differences("kid", of(again, ("dps", MANY))), "difference"),
        ("Both parts together, without recurrence, come nearer to what was asked than DPS at equal evaluations",
         "no claim of the paper", f"log misfit: both over DPS, {MANY} steps",
         ratios(of(("both", MANY), ("dps", MANY))), "ratio"),
        ("The covariance-corrected form is more realistic than strength w at equal passes through the network",
         "no claim of the paper", f"{kid}: `LinearPosterior` with {MANY // 2} steps less forward with {MANY}",
         differences("kid", of(("posterior", MANY // 2), long)), "difference"),
        ("A classifier of clean images guides as surely as one trained on noise", "section 3.1",
         f"difference of the error rate at {MANY} evaluations: forward, k = 4, less noisy classifier, with 0.1 allowed",
         differences("misfit", of(again, ("noisy", MANY), ("class",))), "rate"),
        ("A classifier of clean images guides as realistically as one trained on noise", "section 3.1",
         f"{kid}: forward, k = 4, less noisy classifier, with 0.1 allowed",
         differences("kid", of(again, ("noisy", MANY), ("class",))), "rate"),
    ]  # fmt: skip
    findings = [
        over_seeds(claim, source, what, values, 0.1 if kind == "rate" else 0.0, kind=kind, told=told)
        for claim, source, what, (values, told), kind in parts
    ]
    return [*findings, _free(results)]


def _free(results: Results) -> Finding:
    plain = {key[0]: values[0] for key, values in results.items() if key[1] == "plain"}
    backward = {key[0]: values[0] for key, values in results.items() if key[1] == "backward"}
    holds = all(
        run["evaluations"] == plain[task]["evaluations"] and run["gradients"] == 0 for task, run in backward.items()
    )
    slower = statistics.fmean(
        run["seconds"] for key, values in results.items() if key[1] == "backward" for run in values
    ) / statistics.fmean(run["seconds"] for key, values in results.items() if key[1] == "plain" for run in values)
    return Finding(
        claim="Backward guidance costs no call of the denoiser and no gradient through it",
        source=f"{SOURCE}, section 3.2",
        expected="as many evaluations as without guidance, and no gradient, in every task",
        measured=f"{MANY} evaluations and no gradient in {len(backward)} tasks; {slower:.2f} times as long as "
        "without guidance",
        verdict="reproduced" if holds else "not reproduced",
        reason="" if holds else "an evaluation or a gradient was counted",
        value=float(max(run["gradients"] for run in backward.values())),
        effect=float(max(run["gradients"] for run in backward.values())),
        noise=0.0,
    )


def _image_table(results: Results, task: str) -> Table:
    rows: list[list[str | float | int | None]] = []
    for (t, method, steps, k, _), values in results.items():
        if t != task:
            continue
        row: list[str | float | int | None] = [NAMES[method], steps, k, values[0]["evaluations"]]
        row.append(values[0]["gradients"])
        for key in ("misfit", "kid", "hidden"):
            if values[0][key] is None:
                row += [None, None]
                continue
            mean, (_, high) = mean_interval([value[key] for value in values])
            row += [mean, high - mean]
        rows.append([*row, statistics.fmean(value["seconds"] for value in values)])
    head = ["guidance", "steps", "k", "evaluations", "gradients", "misfit", "±", "KID-lite0", "±", "hidden", "±"]
    scale = f"Strength {STRENGTHS[task]:g}" + (f", DPS ζ = {DPS_SCALE[task]:g}. " if task in DPS_SCALE else ". ")
    return Table(title=f"Critters, {task}", head=[*head, "s/image"], rows=rows, note=scale + _WHAT[task])


def _image_plot(results: Results, key: str, name: str) -> Plot:
    lines = [
        Line(
            name=task,
            x=list(RECURRENCES),
            y=[mean_of(results[task, "forward", FEW, k, STRENGTHS[task]], key) for k in RECURRENCES],
        )
        for task in MEASURED
    ]
    return Plot(title=f"Critters: {name}, forward guidance, {FEW} steps", x="recurrence k", y=name, lines=lines)


_WHAT = {
    "colour": "Misfit: root mean square error of the mean colour, images in [−1, 1].",
    "inpainting": "Misfit: root mean square error on the left half, which was given; hidden: on the right half.",
    "class": "Misfit: share of images whose body, by its exact pixels, has another colour than was asked for.",
}
