"""Li, Di & Gu 2025 (arXiv 2410.14237): exponential integrators, their TV certificate, and what it assumes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..cells import Cells
from ..orders import PLUS_MINUS, Order, listed, order_of, verdict
from ..record import Budget, Claim, Finding, Findings, Line, Plot, Table, mean_interval
from ..verdicts import judge
from . import cells as measure
from .claims import CLAIMS

SOURCE = "arXiv 2410.14237"
EI = "exponential-integrator"
TARGETS = ("M1", "M1s", "M1p", "M2")
COUNTS = (25, 50, 100, 200, 400, 800)
LIMITS = (0.25, 0.5, 1.0, 2.0, 4.0)
FREQUENCIES = (10.0, 40.0, 160.0)

Runs = Mapping[int, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class ExponentialIntegratorExperiment:
    """The experiment; see the module's text."""

    name: str = EI
    title: str = "Exponential integrators with early stopping"
    arxiv: str = "2410.14237"
    version: int = 1

    @property
    def claims(self) -> Mapping[str, Claim]:
        """What is known of every claim beforehand."""
        return CLAIMS

    def run(self, cells: Cells, budget: Budget) -> Findings:
        """All claims, from the cheapest cells to the dearest."""
        counts = tuple(budget.keep(COUNTS, 4))
        rows = budget.count(4000, 400)
        stopped = {t: _runs(cells, t, EI, "vp", "stopped", counts[:4] if t == "M2" else counts, rows) for t in TARGETS}
        equal = {t: _runs(cells, t, EI, "vp", "equal", counts, 0) for t in ("M1", "M1s")}
        ve = {t: _runs(cells, t, "ddim", "ve", "geometric", counts, 0) for t in ("M1", "M1s")}
        findings = [_rate(stopped), _bound(stopped, equal), _exploding(ve)]
        levels, starts = _starts(cells)
        findings.append(_initialisation(starts))
        ripples = {w: cells(measure.rippled, height=1.0, frequency=w, steps=64) for w in FREQUENCIES}
        findings.append(_counterexample(ripples))
        nets = cells.map(measure.trained, [{"seed": s, "steps": 2000} for s in range(budget.count(6, 3))])
        findings.append(_networks(nets))
        dims = {d: cells(measure.product, dim=d, steps=64) for d in (1, 10, 100, 1000)}
        findings += [_dimension(dims), _tail(stopped, equal), _freezing(cells), _same_scheme(cells)]
        tables = [_table(stopped, equal, ve), _ripple_table(ripples), _start_table(levels, starts)]
        tables.append(Table(title="√KL on d copies of one direction, 64 steps", head=["d", "√KL", "over √d"],
                            rows=[[str(d), e, e / math.sqrt(d)] for d, e in dims.items()]))  # fmt: skip
        return Findings(findings=findings, tables=tables, plots=[_plot(stopped, equal)], notes=_notes())


def _runs(
    cells: Cells, target: str, rule: str, path: str, schedule: str, counts: Sequence[int], rows: int
) -> dict[int, dict[str, Any]]:
    common = {"target": target, "rule": rule, "path": path, "schedule": schedule}
    settings = [{**common, "steps": n, **({"rows": rows} if target == "M2" else {})} for n in counts]
    return dict(zip(counts, cells.map(measure.certificate, settings), strict=True))


def _order(runs: Runs, what: str = "tv") -> Order:
    return order_of(list(runs), [run[what] for run in runs.values()], ceiling=0.5)


def _rate(stopped: Mapping[str, Runs]) -> Finding:
    orders = {target: _order(runs) for target, runs in stopped.items()}
    good = all(order.near(1.0) for order in orders.values())
    return Finding(
        claim="With the variance-preserving process and an exponential integrator the total variation to the law at "
        "the early stopping time falls like 1/N: 1/ε evaluations for an error ε",
        source=f"{SOURCE}, abstract",
        expected="order of TV in N within 1 ± .1 on four targets, two of them singular or nearly so",
        measured=f"orders {listed(orders)}",
        **verdict(good, "an order lies outside", orders.values()),
        value=orders["M1"].value,
        effect=orders["M1"].value,
        noise=0.0,
    )


def _bound(stopped: Mapping[str, Runs], equal: Mapping[str, Runs]) -> Finding:
    every = [(t, n, run) for group in (stopped, equal) for t, runs in group.items() for n, run in runs.items()]
    holds = all(run["least"] > 0.0 and run["tv"] <= run["tight"] <= run["bound"] for _, _, run in every)
    line = [run for target, _, run in every if target != "M2"]
    ratios = [run["bound"] / run["tv"] for run in line]
    tight = [run["tight"] / run["tv"] for run in line]
    orders = {t: _order(runs, "bound") for t, runs in stopped.items()}
    good = holds and all(order.near(1.0) for order in orders.values())
    return Finding(
        claim="The rate at which two flows drift apart, integrated over the extended steps, bounds the total "
        "variation, with the right order",
        source=f"{SOURCE}, lemma 4.2",
        expected="bound ≥ TV in every run, and its order within 1 ± .1",
        measured=f"{len(every)} runs: bound over TV {min(ratios):.2f} to {max(ratios):.2f} on the line, its positive "
        f"part {min(tight):.2f} to {max(tight):.2f}; orders of the bound {listed(orders)}",
        **verdict(good, "a run breaks the bound or an order lies outside", orders.values() if holds else ()),
        value=stopped["M1"][max(stopped["M1"])]["bound"] / stopped["M1"][max(stopped["M1"])]["tv"],
        effect=min(tight) - 1.0,
        noise=0.0,
    )


def _exploding(ve: Mapping[str, Runs]) -> Finding:
    orders = {t: _order(runs) for t, runs in ve.items()}
    ratios = [run["bound"] / run["tv"] for runs in ve.values() for run in runs.values()]
    good = all(order.near(1.0) for order in orders.values()) and min(ratios) >= 1.0
    return Finding(
        claim="The same argument covers the variance-exploding process with DDIM steps, at a polynomial cost",
        source=f"{SOURCE}, abstract",
        expected="order within 1 ± .1 and bound ≥ TV, from an exact start",
        measured=f"orders {listed(orders)}; bound over TV {min(ratios):.2f} to {max(ratios):.2f}",
        **verdict(good, "an order lies outside, or the bound breaks", orders.values() if min(ratios) >= 1.0 else ()),
        value=orders["M1"].value,
        effect=orders["M1"].value,
        noise=0.0,
    )


STARTS = (("VE, mean 1", "ve", 1.0, 1.0), ("VE, centred", "ve", 0.0, 1.0), ("VP, mean 1", "vp", 1.0, 1.0),
          ("VP, centred, variance 2", "vp", 0.0, 2.0))  # fmt: skip
LEVELS = (10.0, 20.0, 40.0, 80.0, 160.0)


def _starts(cells: Cells) -> tuple[tuple[float, ...], dict[str, list[dict[str, float]]]]:
    found = {
        name: cells.map(measure.started, [{"path": p, "level": s, "mean": m, "variance": v} for s in LEVELS])
        for name, p, m, v in STARTS
    }
    return LEVELS, found


def _initialisation(starts: Mapping[str, Sequence[Mapping[str, float]]]) -> Finding:
    orders = {name: order_of([int(s) for s in LEVELS], [run["start"] for run in runs]) for name, runs in starts.items()}
    kept = [run["end"] / run["start"] for runs in starts.values() for run in runs]
    ve = orders["VE, mean 1"]
    claimed = {name: 1.0 if mean else 2.0 for name, _, mean, _ in STARTS}
    good = all(order.near(claimed[name]) for name, order in orders.items()) and all(abs(k - 1.0) < 0.02 for k in kept)
    scale = 1.0 / math.sqrt(2.0 * math.pi) / 1e-3
    return Finding(
        claim="The error of starting from the prior decays slowly for the variance-exploding process: σ_T of order "
        "1/ε, where the variance-preserving one needs a horizon of order log(1/ε)",
        source=f"{SOURCE}, as its reviews put it",
        expected="TV ∝ 1/σ_T for a mean, 1/σ_T² for centred data, and the same in e^T for VP; the flow keeps it to 2 %",
        measured=f"orders in σ̄: {listed(orders)}; the flow keeps {min(kept):.3f} to {max(kept):.3f} of it to the end. "
        f"For .001 per unit of mean: σ_T = {scale:.0f}, or T = {math.log(scale):.2f}",
        **verdict(good, "an order lies outside, or the flow does not keep the error", orders.values()),
        value=ve.value,
        effect=ve.value,
        noise=0.0,
    )


def _counterexample(ripples: Mapping[float, Mapping[str, float]]) -> Finding:
    first, last = ripples[FREQUENCIES[0]], ripples[FREQUENCIES[-1]]
    good = abs(last["heun"] - last["limit"]) < 2e-3 and last["score"] < 0.1 * first["score"]
    forgotten = abs(last["sde"] - last["sde exact"]) < 1e-3
    rows = ", ".join(f"{run['score']:.4f} → {run['heun']:.4f}" for run in ripples.values())
    return Finding(
        claim="A score that is accurate in L2 is not enough for deterministic samplers: the error of its divergence "
        "must be small as well",
        source=f"{SOURCE}, counter-example on the Ornstein–Uhlenbeck process",
        expected="TV of the flow at .3058 while ε_score falls tenfold; that of the reverse SDE falls to its "
        "exact-score value",
        measured=f"ε_score → TV by Heun's rule: {rows}; ancestral sampling {last['sde']:.5f} against "
        f"{last['sde exact']:.5f} with the exact score",
        **verdict(good and forgotten, "the flow's error moves with ε_score, or the reverse SDE keeps one"),
        value=last["heun"],
        effect=last["heun"] - last["sde"],
        noise=0.0,
    )


def _networks(nets: Sequence[Mapping[str, float]]) -> Finding:
    ratios = [net["divergence"] / net["score"] for net in nets]
    mean, interval = mean_interval(ratios)
    scores, sizes = mean_interval([net["score"] for net in nets])[0], mean_interval([net["norm"] for net in nets])[0]
    return Finding(
        claim="The divergence error is an assumption of its own: training on the score does not make it small",
        source=f"{SOURCE}, assumptions",
        expected="ε_div / ε_score above 1 for small networks trained by denoising score matching on M2 at τ = .1",
        measured=f"{len(nets)} seeds: ε_div/ε_score = {mean:.2f}, with ε_score = {scores:.3f} of √E|s|² = {sizes:.2f}",
        **judge(interval, 1.0, math.inf),
        value=mean,
        interval=interval,
        effect=mean - 1.0,
        noise=statistics.stdev(ratios),
    )


def _dimension(dims: Mapping[int, float]) -> Finding:
    return Finding(
        claim="d²/ε evaluations suffice in d dimensions",
        source=f"{SOURCE}, abstract",
        expected="the cost at fixed error grows no faster than d²; an exponent needs targets that are no products",
        measured=f"on d copies of one direction √KL = {dims[1]:.5f}·√d to rounding, up to d = {max(dims)}",
        verdict="not testable here",
        reason="a product law gives exactly √d for every sampler, so it neither confirms nor refutes an exponent",
    )


def _tail(stopped: Mapping[str, Runs], equal: Mapping[str, Runs]) -> Finding:
    count = max(equal["M1"])
    gains = {t: equal[t][count]["tv"] / stopped[t][count]["tv"] for t in equal}
    good = all(gain > 5.0 for gain in gains.values())
    return Finding(
        claim="Beside: the geometric tail of the schedule is worth a large factor over equal steps",
        source="beyond the paper",
        expected="a factor above 5 in TV on M1 and on M1s",
        measured=f"at {count} steps " + ", ".join(f"{gain:.1f} on {t}" for t, gain in gains.items()),
        **verdict(good, "the gain is below 5"),
        value=gains["M1"],
        effect=gains["M1"] - 1.0,
        noise=0.0,
    )


def _freezing(cells: Cells) -> Finding:
    found = {
        (t, f): cells(measure.few_steps, target=t, freeze=f, steps=8, low=low)
        for t, low in (("M1", 0.02), ("M1s", 0.01))
        for f in ("score", "noise")
    }
    smooth, singular = (found[t, "score"] / found[t, "noise"] for t in ("M1", "M1s"))
    good = smooth < 1.0 < singular
    return Finding(
        claim="Beside: the exponential integrator is better than DDIM on smooth laws at few steps, and worse on nearly "
        "singular ones",
        source="beyond the paper",
        expected="TV ratio below 1 on M1 and above 1 on M1s, at 8 steps",
        measured=f"M1 {found['M1', 'score']:.3f} against {found['M1', 'noise']:.3f}, "
        f"M1s {found['M1s', 'score']:.3f} against {found['M1s', 'noise']:.3f}",
        **verdict(good, "the order of the two is different"),
        value=smooth,
        effect=singular - smooth,
        noise=0.0,
    )


def _same_scheme(cells: Cells) -> Finding:
    gap = cells(measure.exploding_against_preserving, steps=10)
    return Finding(
        claim="Beside: the exploding instance is the DDIM of practice: u = x/α maps one process to the other",
        source="beyond the paper",
        expected="the same points in u, to 1e-12",
        measured=f"largest difference {gap:.1e} on M2 in 10 steps",
        **verdict(gap < 1e-12, "they differ"),
        value=gap,
    )


def _table(stopped: Mapping[str, Runs], equal: Mapping[str, Runs], ve: Mapping[str, Runs]) -> Table:
    rows: list[list[Any]] = []
    for name, group in (("EI, early stopping", stopped), ("EI, equal steps", equal), ("VE, DDIM", ve)):
        for target, runs in group.items():
            rows += [
                [f"{name}, {target}", n, r["tv"], r["bound"] / r["tv"], r["tight"] / r["tv"]] for n, r in runs.items()
            ]
    return Table(
        title="Total variation and its certificate, τ from 5 to .01",
        head=["run", "N", "TV", "bound/TV", "positive part/TV"],
        rows=rows,
        note="exact on the line; M2 over drawn nodes",
    )


def _ripple_table(ripples: Mapping[float, Mapping[str, float]]) -> Table:
    rows: list[list[Any]] = [
        [f"w = {w:g}", r["score"], r["divergence"], r["flow"], r["heun"], r["sde"]] for w, r in ripples.items()
    ]
    rows += [[f"limit, cT = {ct:g}", None, None, measure.rippled_limit(ct), None, None] for ct in LIMITS]
    return Table(
        title="A score with ripples of height c/w, cT = 1",
        head=["ripples", "ε_score", "ε_div", "TV of the exact flow", "TV by Heun's rule", "TV of ancestral sampling"],
        rows=rows,
    )


def _start_table(levels: Sequence[float], starts: Mapping[str, Sequence[Mapping[str, float]]]) -> Table:
    return Table(
        title="Error of starting from the prior (TV), by σ̄ at the start",
        head=["law", *(f"{s:g}" for s in levels)],
        rows=[[name, *(run["start"] for run in runs)] for name, runs in starts.items()],
        note="σ̄ = e^T: in log-SNR both processes need the same range, and geometric steps pay its logarithm only",
    )


def _plot(stopped: Mapping[str, Runs], equal: Mapping[str, Runs]) -> Plot:
    lines = [
        Line(name=f"{t}, {name}", x=list(runs), y=[run[what] for run in runs.values()])
        for t in ("M1", "M1s")
        for name, runs, what in (
            ("early stopping", stopped[t], "tv"),
            ("its bound", stopped[t], "bound"),
            ("equal steps", equal[t], "tv"),
        )
    ]
    counts = list(stopped["M1"])
    first = stopped["M1"][counts[0]]["tv"]
    lines.append(Line(name="1/N", x=counts, y=[0.5 * first * counts[0] / n for n in counts], theory=True))
    return Plot(title="Exponential integrator: error and certificate", x="steps", y="total variation", lines=lines)


def _notes() -> list[str]:
    first = (
        "Scores and starts are exact unless said otherwise; the law is compared with that at the stopping time, never "
        "with singular data, whose distance to any density is 1."
    )
    second = (
        "The paper's exact constants, its step condition and its exponents for the exploding process could not be "
        "read; the schedule is the one that its rate is usually stated with."
    )
    return [first, second, PLUS_MINUS]


EXPERIMENT = ExponentialIntegratorExperiment()
