"""Universal guidance where the posterior is known: what `ornstein.reproduce.universal` finds there."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping
from typing import Any

from ..cells import Cells
from ..record import Budget, Finding, Line, Plot, Table
from ..verdicts import Part
from . import cells as exact
from .verdicts import NAMES, RECURRENCES, SOURCE, Numbers, Results, log_ratios, mean_of, over_seeds, seeds_of

# ------------------------------------------------------------------------------------------------------ a Gaussian

TABLE_STEPS, FEW_STEPS = 1000, 100
GAUSSIAN_DRAWS = 100_000
DPS_SCALES = (0.03, 0.1, 0.3, 1.0)


def on_a_gaussian(cells: Cells) -> Part:
    """Exact moments of the paper's and of the corrected strength, and of recurrence."""
    rows = [
        {"method": method, "sampler": sampler, "steps": steps, "recur": recur}
        for sampler in exact.SAMPLERS
        for method, steps, recurs in (
            ("paper", TABLE_STEPS, (1,)),
            ("corrected", TABLE_STEPS, (1,)),
            ("posterior", FEW_STEPS, (1,)),
            ("corrected", FEW_STEPS, (1,)),
            ("paper", FEW_STEPS, RECURRENCES),
        )
        for recur in recurs
    ]
    found = {tuple(row.values()): value for row, value in zip(rows, cells.map(exact.gaussian, rows), strict=True)}
    scales = [
        {"scale": scale, "sampler": sampler, "steps": FEW_STEPS, "samples": GAUSSIAN_DRAWS}
        for sampler in exact.SAMPLERS
        for scale in DPS_SCALES
    ]
    dps = dict(zip((tuple(r.values())[:2] for r in scales), cells.map(exact.gaussian_dps, scales), strict=True))
    return Part(
        findings=[_concentrated(found), _corrected(found), _recurring(found)],
        tables=[_gaussian_table(found, dps)],
        plots=[_gaussian_plot(found)],
    )


def _concentrated(found: Mapping[Any, Numbers]) -> Finding:
    mean, variance = exact.POSTERIOR
    parts = {s: found["paper", s, TABLE_STEPS, 1]["variance"] / variance for s in exact.SAMPLERS}
    means = {s: found["paper", s, TABLE_STEPS, 1]["mean"] for s in exact.SAMPLERS}
    holds = all(part < 2.0 / 3.0 for part in parts.values()) and all(m > mean for m in means.values())
    return _exactly(
        "The paper's strength s(t) = √(1 − ᾱ) with a log-likelihood is not the posterior: it concentrates too much",
        "consequence of eq. 6: it leaves out the uncertainty of the clean estimate",
        "below two thirds of the posterior's variance, and beyond its mean, with DDIM and with ancestral sampling",
        f"{TABLE_STEPS} steps: "
        + ", ".join(f"{s} {parts[s]:.1%} of the variance, mean {means[s]:.3f}" for s in parts)
        + f" for the exact {mean:.3f}",
        holds,
        max(parts.values()),
    )


def _corrected(found: Mapping[Any, Numbers]) -> Finding:
    mean, variance = exact.POSTERIOR
    rows = {s: found["corrected", s, TABLE_STEPS, 1] for s in exact.SAMPLERS}
    away = {s: (row["mean"] - mean, row["variance"] / variance - 1.0) for s, row in rows.items()}
    return _exactly(
        "With the strength corrected for that uncertainty the same guidance samples the exact posterior",
        "no claim of the paper; `corrected` of this library",
        f"mean within 0.02 and variance within 5 % after {TABLE_STEPS} steps, both samplers",
        ", ".join(f"{s}: mean {m:+.4f}, variance {v:+.1%}" for s, (m, v) in away.items()),
        all(abs(m) <= 0.02 and abs(v) <= 0.05 for m, v in away.values()),
        max(abs(v) for _, v in away.values()),
    )


def _recurring(found: Mapping[Any, Numbers]) -> Finding:
    series = {s: [found["paper", s, FEW_STEPS, k]["w2"] for k in RECURRENCES] for s in exact.SAMPLERS}
    falls = all(b < a for values in series.values() for a, b in itertools.pairwise(values))
    holds = falls and all(values[0] > 3.0 * values[-1] for values in series.values())
    return _exactly(
        "Recurrence moves the paper's strength towards the posterior of a Gaussian",
        "section 3.3, put in numbers",
        "Wasserstein-2 distance falls with each of k = 1, 2, 4, 8, more than threefold in all, both samplers",
        f"{FEW_STEPS} steps: " + "; ".join(f"{s} " + ", ".join(f"{v:.3f}" for v in series[s]) for s in series),
        holds,
        min(values[0] / values[-1] for values in series.values()),
    )


def _exactly(claim: str, source: str, expected: str, measured: str, holds: bool, value: float) -> Finding:
    return Finding(
        claim=claim,
        source=source if source.startswith("no claim") else f"{SOURCE}, {source}",
        expected=expected,
        measured=measured,
        verdict="reproduced" if holds else "not reproduced",
        reason="" if holds else "outside what was expected",
        value=value,
        effect=value,
        noise=0.0,
    )


def _gaussian_table(found: Mapping[Any, Numbers], dps: Mapping[Any, Numbers]) -> Table:
    names = {"paper": "strength 1", "corrected": "corrected", "posterior": "LinearPosterior"}
    rows = [
        [f"{names[method]}, k = {k}", sampler, steps, value["mean"], value["variance"], value["w2"]]
        for (method, sampler, steps, k), value in found.items()
    ]
    rows += [[f"DPS, ζ = {z:g}", s, FEW_STEPS, v["mean"], v["variance"], v["w2"]] for (z, s), v in dps.items()]
    note = (
        f"N(0.7, 1.5) seen as 2 with standard deviation 0.5: the posterior has mean {exact.POSTERIOR[0]:.4f} and "
        f"variance {exact.POSTERIOR[1]:.4f}. Moments are exact but for DPS: {GAUSSIAN_DRAWS} draws."
    )
    head = ["guidance", "sampler", "steps", "mean", "variance", "W2 to the posterior"]
    return Table(title="Gaussian", head=head, rows=rows, note=note)


def _gaussian_plot(found: Mapping[Any, Numbers]) -> Plot:
    lines = [
        Line(name=s, x=list(RECURRENCES), y=[found["paper", s, FEW_STEPS, k]["w2"] for k in RECURRENCES])
        for s in exact.SAMPLERS
    ]
    return Plot(title="Gaussian: distance to the posterior", x="recurrence k", y="W2", lines=lines)


# -------------------------------------------------------------------------------------------------------- mixtures

MIXTURES, DRAWS = ("M1", "M2", "M16"), 2000
SHORT, LONG = 20, 80
SCALES = (0.1, 0.3, 1.0)
# method, steps, recurrence, scale
MIXTURE_ARMS: tuple[tuple[str, int, int, float], ...] = (
    ("exact", LONG, 1, 0.0),
    ("plain", LONG, 1, 0.0),
    *(("forward", SHORT, k, 1.0) for k in RECURRENCES),
    ("forward", LONG, 1, 1.0),
    ("backward", LONG, 1, 0.0),
    ("both", LONG, 1, 1.0),
    ("paper", LONG, 1, 1.0),
    ("corrected", LONG, 1, 1.0),
    ("posterior", LONG, 1, 1.0),
    *(("dps", LONG, 1, scale) for scale in SCALES),
)


def on_mixtures(cells: Cells, budget: Budget) -> Part:
    """Distances to the exact posterior of mixtures, one observation a seed."""
    keys = [(t, arm, s) for s in seeds_of(budget) for t in MIXTURES for arm in MIXTURE_ARMS]
    rows: list[dict[str, Any]] = [
        dict(zip(("target", "method", "steps", "recur", "scale", "seed", "samples"), (t, *arm, s, DRAWS), strict=True))
        for t, arm, s in keys
    ]
    results: dict[tuple[Any, ...], list[Numbers]] = {}
    for (t, arm, _), value in zip(keys, cells.map(exact.mixture, rows), strict=True):
        results.setdefault((t, *arm), []).append(value)
    scales = {
        t: min((0.1, 0.3, 1.0), key=lambda z, t=t: mean_of(results[t, "dps", LONG, 1, z], "sw2")) for t in MIXTURES
    }

    def ratio(ours: tuple[Any, ...], theirs: tuple[Any, ...]) -> list[float]:
        """Mean over the mixtures of log SW2(ours)/SW2(theirs), one a seed."""
        each = [log_ratios(results[(t, *_scaled(ours, scales[t]))], results[(t, *_scaled(theirs, scales[t]))], "sw2")
                for t in MIXTURES]  # fmt: skip
        return [statistics.fmean(values) for values in zip(*each, strict=True)]

    once, again = ("forward", SHORT, 1, 1.0), ("forward", SHORT, 4, 1.0)
    long, best = ("forward", LONG, 1, 1.0), ("dps", LONG, 1, None)
    what = "log of the sliced W2 distance to the posterior, mean of M1, M2 and M16"
    findings = [
        over_seeds(
            "Recurrence moves forward guidance towards the posterior of mixtures", "section 3.3, put in numbers",
            f"{what}: k = 4 over k = 1 at {SHORT} steps", ratio(again, once), math.log(0.7), kind="ratio",
        ),
        over_seeds(
            "It does so at equal evaluations too", "no claim of the paper",
            f"{what}: {SHORT} steps with k = 4 over {LONG} with k = 1", ratio(again, long), 0.0, kind="ratio",
        ),
        over_seeds(
            "The covariance-corrected form lies nearer to the posterior than strength 1", "no claim of the paper",
            f"{what}: `LinearPosterior` over strength 1, {LONG} steps", ratio(("posterior", LONG, 1, 1.0), long), 0.0,
            kind="ratio",
        ),
        over_seeds(
            "So does the corrected scalar strength, which takes the data for one Gaussian", "no claim of the paper",
            f"{what}: `corrected` over strength 1, {LONG} steps", ratio(("corrected", LONG, 1, 1.0), long), 0.0,
            kind="ratio",
        ),
        over_seeds(
            "Forward guidance with recurrence lies nearer to the posterior than DPS at equal evaluations",
            "no claim of the paper", f"{what}: {SHORT} steps with k = 4 over {LONG} of DPS, its best scale",
            ratio(again, best), 0.0, kind="ratio",
        ),
    ]  # fmt: skip
    return Part(
        findings=findings, tables=[_mixture_table(results, t) for t in MIXTURES], plots=[_mixture_plot(results)]
    )


def _scaled(arm: tuple[Any, ...], scale: float) -> tuple[Any, ...]:
    return arm if arm[-1] is not None else (*arm[:-1], scale)


def _mixture_table(results: Results, target: str) -> Table:
    rows = [
        [NAMES[method] + (f", ζ = {scale:g}" if method == "dps" else ""), steps, k, values[0]["evaluations"]]
        + [mean_of(values, key) for key in ("sw2", "energy", "spread")]
        for (t, method, steps, k, scale), values in results.items()
        if t == target
    ]
    head = ["guidance", "steps", "k", "evaluations", "sliced W2", "energy distance", "variance of A·x, in parts"]
    return Table(
        title=f"Mixture {target}",
        head=head,
        rows=rows,
        note=f"{DRAWS} draws against as many of the exact posterior, mean over observations; 'exact' is the floor.",
    )


def _mixture_plot(results: Results) -> Plot:
    lines = [
        Line(name=t, x=list(RECURRENCES), y=[mean_of(results[t, "forward", SHORT, k, 1.0], "sw2") for k in RECURRENCES])
        for t in MIXTURES
    ]
    return Plot(title=f"Mixtures: forward guidance, {SHORT} steps", x="recurrence k", y="sliced W2", lines=lines)
