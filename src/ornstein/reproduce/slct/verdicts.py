"""The claims of `ornstein.reproduce.slct` and what became of them."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..arms import FD, KID, PIXELS, RECALL
from ..record import ArmTraining, Finding, Verdict, mean_interval
from ..training import trained_arm
from ..verdicts import side
from .cells import SAMPLERS, STEPS, judged_way
from .outliers import GAUSSIAN
from .world import DIFFUSION, LADDER, World

SOURCE = "arXiv 2502.01441"
LEAST = 1e-4
"""Smaller kernel distances count as this one: at 1000 pictures they are noise."""
SHRUNK = 0.5
"""The adaptive scale is told from a constant one where it ends below this part of it."""
HEAVY = 10.0
"""Latents have outliers where so many times as many values as a Gaussian's lie beyond four deviations."""
NAMES = {
    "ict": "iCT",
    "cauchy": "+ Cauchy",
    "anchored": "+ diffusion loss",
    "paired": "+ optimal transport",
    "adaptive": "+ adaptive c",
    "slct": "+ non-scaling norm = sLCT",
    DIFFUSION: "diffusion model",
}
_RUNGS = {
    "cauchy": "The Cauchy distance improves on pseudo-Huber",
    "anchored": "The diffusion loss at low noise improves on consistency alone",
    "paired": "Pairing by optimal transport improves on independent noise",
    "adaptive": "The adaptive scale c improves on a constant one",
    "slct": "Non-scaling norms improve on group norms",
}
TIMES = ("1", "2")
PAPER_IMAGES = 328_000 * 128
PAPER_SOURCE = f"{SOURCE}, the authors' scripts for CelebA-HQ: about 328,000 steps of 128"

RunResult = Mapping[str, Any]
Value = Callable[[RunResult], float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """All results: of each arm one a seed, in both conditions, and with a longer training in the second one; tails and
    floors by condition.
    """

    usual: Mapping[str, Sequence[RunResult]]
    foreign: Mapping[str, Sequence[RunResult]]
    long: Mapping[str, Sequence[RunResult]]
    tails: Mapping[str, Any]
    floors: Mapping[str, Any]
    world: World
    images: int


def trainings(m: Measured) -> list[ArmTraining]:
    """How much each arm was trained beside sLCT's authors, and whether it had converged."""

    def one(name: str, arm: str, runs: Sequence[RunResult]) -> ArmTraining:
        way = judged_way(arm)
        before = [None if run["diverged"] else run["early"] for run in runs]
        after = [None if run["diverged"] else run["at"][way][KID] for run in runs]
        return trained_arm(name, runs[0]["images"], PAPER_IMAGES, PAPER_SOURCE, before, after, LEAST)

    found = [one(arm, arm, runs) for arm, runs in m.usual.items()]
    found += [one(f"{arm}, outliers", arm, runs) for arm, runs in m.foreign.items()]
    return found + [one(f"{arm}, long", arm, runs) for arm, runs in m.long.items()]


def at(*ways: str, metric: str = KID) -> Value:
    """A run's mean logarithm of a metric over these ways of sampling; None where it diverged."""

    def value(run: RunResult) -> float | None:
        if run["diverged"] or not run["at"]:
            return None
        return statistics.fmean(math.log(max(run["at"][way][metric], LEAST)) for way in ways)

    return value


def best(steps: int, metric: str = KID) -> Value:
    """The same of the better one of the diffusion model's samplers."""

    def value(run: RunResult) -> float | None:
        found = [at(f"{name} {steps}", metric=metric)(run) for name in SAMPLERS]
        return min((one for one in found if one is not None), default=None)

    return value


def compared(
    ours: Sequence[RunResult], a: Value, theirs: Sequence[RunResult], b: Value
) -> tuple[list[float], int, int]:
    """Differences of the seeds where both have a number; how many seeds lack ours alone, and how many theirs alone."""
    pairs = [(a(one), b(other)) for one, other in zip(ours, theirs, strict=True)]
    values = [x - y for x, y in pairs if x is not None and y is not None]
    return (
        values,
        sum(x is None and y is not None for x, y in pairs),
        sum(x is not None and y is None for x, y in pairs),
    )


def judged(values: Sequence[float], lost: int, won: int, sign: int = -1) -> tuple[Verdict, str]:
    """The verdict on differences over seeds: a divergence on one side alone decides; else the interval does.

    >>> [judged(*case)[0] for case in (([], 1, 0), ([], 0, 2), ([-1.0, -1.1], 0, 1), ([-1.0], 0, 0))]
    ['not reproduced', 'reproduced', 'reproduced', 'inconclusive']
    """
    if lost:
        return "not reproduced", f"it diverged with {lost} of the seeds, and what it is compared with did not"
    if not values and won:
        return "reproduced", ""
    if len(values) < 2:
        return "inconclusive", "fewer than two seeds have numbers on both sides"
    return side(mean_interval(values)[1], sign)


def claim(
    text: str,
    source: str,
    expected: str,
    told: str,
    compare: tuple[list[float], int, int],
    *,
    kind: str = "ratio",
    also: str = "",
) -> Finding:
    """A claim that the mean of differences over seeds lies below 0."""
    values, lost, won = compare
    said, reason = judged(values, lost, won)
    mean, interval = mean_interval(values) if values else (None, None)
    if mean is None:
        measured = f"{told}: no seed has both numbers"
    elif kind == "ratio":
        measured = f"{told}: {math.exp(mean):.3g} times (by seed {', '.join(f'{math.exp(v):.3g}' for v in values)})"
    else:
        measured = f"{told}: {mean:+.3g} (by seed {', '.join(f'{v:+.3g}' for v in values)})"
    if won:
        measured += f"; what it is compared with diverged with {won} of the seeds"
    return Finding(
        claim=text,
        source=source,
        expected=f"{expected}, below 0 with its whole 95 % interval over seeds",
        measured=measured + also,
        verdict=said,
        reason=reason,
        value=mean,
        interval=interval if len(values) > 1 else None,
        effect=mean,
        noise=statistics.stdev(values) if len(values) > 1 else 0.0,
    )


def _versus(
    m: Measured, text: str, source: str, ours: str, a: Sequence[str], theirs: str, b: Sequence[str], *, paper: str = ""
) -> Finding:
    """Two arms, or two ways of sampling, by the kernel distance; the other distances are told."""
    mine, other = m.usual[ours], m.usual[theirs]

    def difference(metric: str) -> tuple[list[float], int, int]:
        return compared(mine, at(*a, metric=metric), other, at(*b, metric=metric))

    same = ours == theirs
    what = (
        f"{NAMES[ours]}, {_words(a)} over {_words(b)}" if same else f"{NAMES[ours]} over {NAMES[theirs]}, {_words(a)}"
    )
    return claim(
        text,
        source,
        f"mean log {KID} of {what}",
        f"{KID} of {what}",
        difference(KID),
        also=_others(difference) + paper,
    )


def _others(difference: Callable[[str], tuple[list[float], int, int]]) -> str:
    told = [(metric, difference(metric)[0]) for metric in (FD, PIXELS)]
    parts = [f"{metric} {math.exp(statistics.fmean(values)):.3g} times" for metric, values in told if values]
    return f"; {', '.join(parts)}" if parts else ""


def _words(ways: Sequence[str]) -> str:
    names = {"1": "one", "2": "two"}
    return f"{' and '.join(names.get(way, way) for way in ways)} evaluation{'s' * (tuple(ways) != ('1',))}"


def findings(m: Measured) -> list[Finding]:
    """All claims."""
    out = [_outliers(m)]
    for before, arm in itertools.pairwise(LADDER):
        rung = _versus(m, _RUNGS[arm], f"{SOURCE}, method", arm, TIMES, before, TIMES)
        out.append(_adapted(m, rung) if arm == "adaptive" else rung)
    for way, word, paper in (("1", "one evaluation", "37.15 → 7.27"), ("2", "two evaluations", "16.84 → 6.93")):
        text = f"sLCT is better than iCT at {word}"
        told = f". The paper's FID on CelebA-HQ: {paper}"
        out.append(_versus(m, text, f"{SOURCE}, table 1", "slct", [way], "ict", [way], paper=told))
    for arm, paper in (("slct", "7.27 → 6.93"), ("ict", "37.15 → 16.84")):
        text = f"{NAMES[arm].split(' = ')[-1]} is better with two evaluations than with one"
        found = compared(m.usual[arm], at("searched"), m.usual[arm], at("1"))[0]
        told = f"; at the searched level {KID} {math.exp(statistics.fmean(found)):.3g} times" if found else ""
        told += f". The paper's FID on CelebA-HQ: {paper}"
        out.append(_versus(m, text, f"{SOURCE}, table 1", arm, ["2"], arm, ["1"], paper=told))
    out += [_beside(m, steps) for steps in reversed(STEPS)]
    out += [_recall(m), _features(m)]
    out += [_weigh(m, "usual"), _foreign(m), _weigh(m, "foreign"), *([_longer(m)] if m.long else []), _sound(m)]
    return out


def _recall(m: Measured) -> Finding:
    """Recall, in differences, for it may be 0."""

    def missed(run: RunResult) -> float | None:
        return None if run["diverged"] or not run["at"] else 1.0 - run["at"]["1"][RECALL]

    return claim(
        "sLCT covers more of the data than iCT at one evaluation",
        f"{SOURCE}, table 1",
        f"mean of 1 − {RECALL} of {NAMES['slct']} less that of {NAMES['ict']}, one evaluation",
        f"1 − {RECALL}, sLCT less iCT",
        compared(m.usual["slct"], missed, m.usual["ict"], missed),
        kind="difference",
        also=". The paper's recall on CelebA-HQ: 0.12 → 0.50",
    )


def _features(m: Measured) -> Finding:
    """Outliers in the network: what the norms give, with gain and without."""

    def fourth(run: RunResult) -> float | None:
        return None if run["activations"] is None else math.log(run["activations"])

    ours, theirs = m.usual["slct"], m.usual["adaptive"]
    return claim(
        "Non-scaling norms keep features freer of outliers than group norms",
        f"{SOURCE}, method: norms without a gain do not amplify outlying channels",
        "mean log of the fourth moment over the squared second one of what the norms give, sLCT over the rung below",
        "fourth moment of normalised features",
        compared(ours, fourth, theirs, fourth),
    )


def _longer(m: Measured) -> Finding:
    ours, theirs = m.long["slct"], m.long["ict"]

    def difference(metric: str) -> tuple[list[float], int, int]:
        return compared(ours, at("1", metric=metric), theirs, at("1", metric=metric))

    what = f"{KID} of sLCT over iCT, one evaluation"
    return claim(
        "With a longer training on latents with outliers sLCT is better than iCT",
        f"{SOURCE}, table 1",
        f"mean log {what}",
        f"{what}, {ours[0]['images']} images",
        difference(KID),
        also=_others(difference) + ". The paper's FID on CelebA-HQ: 37.15 → 7.27",
    )


def _adapted(m: Measured, rung: Finding) -> Finding:
    """The rung of the adaptive scale, which says nothing where the curriculum ends before the scale has shrunk."""
    found = [[run["shares"]["c"] for run in m.usual[arm] if run["shares"]] for arm in ("paired", "adaptive")]
    if not all(found) or found[1][0] < SHRUNK * found[0][0]:
        return rung
    constant, adaptive = found[0][0], found[1][0]
    reason = (
        f"at {m.world.end} intervals, where this curriculum ends, the adaptive c is {adaptive:.3g} and the constant "
        f"one {constant:.3g}: it has not shrunk yet; a larger budget goes to more intervals"
    )
    return replace(rung, verdict="not testable here", reason=reason)


def _outliers(m: Measured) -> Finding:
    latents, pixels, foreign = m.tails["usual"]["latents"], m.tails["usual"]["pixels"], m.tails["foreign"]["latents"]
    share = latents["beyond 4"] / GAUSSIAN
    heavy = share > HEAVY
    return Finding(
        claim="Latents contain outliers, many more than a Gaussian",
        source=f"{SOURCE}, abstract",
        expected=f"share of standardised values beyond 4 deviations above {HEAVY:g} times a Gaussian's {GAUSSIAN:.2g}",
        measured=f"{share:.2g} times it ({latents['beyond 4']:.2g}), beyond 6 {latents['beyond 6']:.2g}, largest "
        f"{latents['largest']:.3g}, excess kurtosis {latents['kurtosis']:+.2f}; pixels of the same pictures "
        f"{pixels['beyond 4'] / GAUSSIAN:.2g} times, kurtosis {pixels['kurtosis']:+.2f}; latents with foreign drawings "
        f"{foreign['beyond 4'] / GAUSSIAN:.2g} times, largest {foreign['largest']:.3g}",
        verdict="reproduced" if heavy else "not testable here",
        reason=""
        if heavy
        else "the paper's latents are those of photographs; these, of drawings, have no heavy tails, so what the "
        "ladder gains or loses has another cause than outliers; the second condition has some",
        value=share,
        effect=share - 1.0,
        noise=0.0,
    )


def _beside(m: Measured, steps: int) -> Finding:
    """sLCT at one evaluation against the diffusion model at ``steps``."""
    ours, theirs = m.usual["slct"], m.usual[DIFFUSION]

    def difference(metric: str) -> tuple[list[float], int, int]:
        return compared(ours, at("1", metric=metric), theirs, best(steps, metric))

    said = f"{SOURCE}, table 1" if steps == max(STEPS) else "no claim of the paper's, for comparison"
    paper = ". The paper's FID on CelebA-HQ: 7.27 against 8.85 at 250 evaluations" if steps == max(STEPS) else ""
    what = f"{KID} of sLCT at one evaluation over the diffusion model's at {steps}, the better of DDIM and auto"
    return claim(
        f"sLCT at one evaluation is better than a diffusion model of equal computing at {steps}",
        said,
        f"mean log {what}",
        what,
        difference(KID),
        also=_others(difference) + paper,
    )


def _weigh(m: Measured, world: str) -> Finding:
    """How much the largest errors weigh under both distances, of the same errors."""

    def share(name: str, what: str = "gradient") -> Value:
        def value(run: RunResult) -> float | None:
            return None if not run["shares"] else math.log(max(run["shares"]["distances"][name][what], 1e-9))

        return value

    runs = (m.usual if world == "usual" else m.foreign)["ict"]
    where = "" if world == "usual" else ", with foreign drawings in the data"
    told = [run["shares"] for run in runs if run["shares"]]
    parts = [
        f"{name} {statistics.fmean(one['distances'][name]['gradient'] for one in told):.2%}"
        for name in (told[0]["distances"] if told else ())
    ]
    kurtosis = statistics.fmean(one["kurtosis"] for one in told) if told else math.nan
    return claim(
        f"The Cauchy distance makes outliers weigh less than pseudo-Huber does{where}",
        f"{SOURCE}, abstract",
        "mean log of the share of the gradient's norm that the 1 % of samples with the largest errors carry, Cauchy's "
        "over pseudo-Huber's, of the same errors of the trained iCT",
        "share of the gradient, Cauchy's over pseudo-Huber's",
        compared(runs, share("cauchy"), runs, share("pseudo-huber")),
        also=f"; of the 1 % largest: {', '.join(parts)}; excess kurtosis of the differences {kurtosis:.1f}",
    )


def _foreign(m: Measured) -> Finding:
    ours, theirs = m.foreign["cauchy"], m.foreign["ict"]

    def difference(metric: str) -> tuple[list[float], int, int]:
        return compared(ours, at(*TIMES, metric=metric), theirs, at(*TIMES, metric=metric))

    what = f"{KID} of {NAMES['cauchy']} over {NAMES['ict']} at one and two evaluations"
    found = claim(
        "Where the latents have outliers, the Cauchy distance improves on pseudo-Huber",
        f"{SOURCE}, abstract, here with rare foreign drawings",
        f"mean log {what}, a few drawings foreign",
        what,
        difference(KID),
        also=_others(difference),
    )
    share, kurtosis = (m.tails["foreign"]["latents"][name] for name in ("beyond 4", "kurtosis"))
    if share > HEAVY * GAUSSIAN and kurtosis > 0.0:
        return found
    reason = (
        f"these latents have no outliers either: {share / GAUSSIAN:.2g} times a Gaussian's share beyond four "
        f"deviations, where more than {HEAVY:g} are asked for, and an excess kurtosis of {kurtosis:+.2f}"
    )
    return replace(found, verdict="not testable here", reason=reason)


def _sound(m: Measured) -> Finding:
    runs, others = m.usual["slct"], m.usual["ict"]
    diverged = [f"seed {seed}: {run['diverged']}" for seed, run in enumerate(runs) if run["diverged"]]
    left = max(run["left_out"] for run in runs)
    sound = not diverged and left < 1e-3
    told = sum(bool(run["diverged"]) for run in others)
    return Finding(
        claim="sLCT trains without diverging",
        source=f"{SOURCE}, abstract",
        expected="no seed diverges, and less than a thousandth of the batches is left out",
        measured=f"{len(diverged)} of {len(runs)} seeds diverged, at most {left:.2%} of the batches left out; of iCT "
        f"{told} diverged, {max(run['left_out'] for run in others):.2%} left out",
        verdict="reproduced" if sound else "not reproduced",
        reason="" if sound else "; ".join(diverged) or "too many batches gave no finite loss",
        value=float(len(diverged)),
    )
