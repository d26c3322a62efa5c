"""What the numbers of `ornstein.reproduce.minority` say of the claims: ratios and differences of arms, seed by seed.

Compared with plain sampling at equal evaluations, unless the steps of the chain are the question: then with plain
sampling of as many steps.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ..record import ArmTraining, Finding, Interval, Verdict
from ..training import above_bar
from ..verdicts import judge
from ..verdicts import over_seeds as finding_over_seeds
from . import arms
from .claims import BASE, CLASSIFIER

SOURCE = "arXiv 2301.12334"
Results = dict[str, list[Mapping[str, Any]]]  # arm: numbers, one mapping a seed

MAIN, PLAIN, SHORT = "noisy-3", "plain", "plain-short"
_HEADS = {
    "avgknn": "AvgkNN-lite0",
    "lof": "LOF-lite0",
    "rarity": "the rarity score on lite0",
    "avgknn pixels": "AvgkNN-pixels8",
    "lof pixels": "LOF-pixels8",
    "rarity pixels": "the rarity score on pixels8",
}
_WITH = "with its interval over seeds"
NOTHING_LOST = -0.1
"""A change of precision above this counts as kept."""


REAL_PICTURES = 0.5
"""Least precision of the base model's own samples: below it rarity measures artefacts."""
PAPER_CLASSIFIER = 60_000 * 256


def trainings(results: Results, sizes: Mapping[str, int]) -> list[ArmTraining]:
    """How much was trained, and whether the base model's samples are pictures."""
    precision = over_seeds(results[PLAIN], "precision")
    test = f"precision-lite0 of its plain samples above {REAL_PICTURES:g}"
    found = "not found for data of this size"
    classifier = "the authors' code for LSUN: 60,000 steps of 256"
    return [
        above_bar(BASE, sizes["images"], None, found, test, precision, REAL_PICTURES),
        ArmTraining(
            arm=CLASSIFIER,
            images=sizes["taught"],
            paper=PAPER_CLASSIFIER,
            source=classifier,
            test="not tested",
        ),
    ]


def over_seeds(runs: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    """The values of a number that every seed has."""
    return [float(run[key]) for run in runs if run[key] is not None]


def logs(results: Results, arm: str, against: str, key: str) -> list[float]:
    """log(arm / against), one a seed; none where a seed has no value."""
    pairs = [(a[key], b[key]) for a, b in zip(results[arm], results[against], strict=True)]
    if any(a is None or b is None for a, b in pairs):
        return []
    return [math.log(max(a, 1e-12) / max(b, 1e-12)) for a, b in pairs]


def gaps(results: Results, arm: str, against: str, key: str) -> list[float]:
    """arm − against, one a seed."""
    return [a[key] - b[key] for a, b in zip(results[arm], results[against], strict=True)]


def control(values: Sequence[float], *, low: float, high: float, **said: Any) -> Finding:
    """A finding on numbers, one a seed: their mean's interval must lie in [low, high]."""
    if not values:
        reason = "in some seed no sample lies on the manifold, where the number is defined"
        return Finding(verdict="inconclusive", reason=reason, **said)
    return finding_over_seeds(values, lambda interval: _judged(interval, low, high), **said)


def _judged(interval: Interval, low: float, high: float) -> tuple[Verdict, str]:
    found = judge(interval, low, high)
    if math.isfinite(low) and math.isfinite(high):
        return found["verdict"], found["reason"]
    edge = low if math.isfinite(low) else high
    reasons = {
        "reproduced": "",
        "inconclusive": f"the interval over seeds holds {edge:g}",
        "not reproduced": f"the whole interval lies {'below' if math.isfinite(low) else 'above'} {edge:g}",
    }
    return found["verdict"], reasons[found["verdict"]]


def _above(values: Sequence[float], edge: float = 0.0, **said: Any) -> Finding:
    return control(values, low=edge, high=math.inf, **said)


def _name(arm: str) -> str:
    return "held-out drawings" if arm == arms.REAL else arms.ARMS[arm].name.replace("… ", "w = 3 ")


def _ratio(results: Results, arm: str, against: str, key: str, claim: str, source: str = SOURCE) -> Finding:
    values = logs(results, arm, against, key)
    by_seed = ", ".join(f"{math.expm1(v):+.1%}" for v in values)
    told = f"{math.expm1(statistics.fmean(values)):+.1%} (by seed {by_seed})" if values else "not defined"
    return _above(
        values,
        claim=claim,
        source=source,
        expected=f"mean of log {_HEADS[key]} of {_name(arm)} over {_name(against)} above 0, {_WITH}",
        measured=f"{_HEADS[key]}: {told}",
    )


def _means(results: Results, names: Sequence[str], key: str) -> str:
    return ", ".join(f"{_name(name)} {statistics.fmean(over_seeds(results[name], key)):.4g}" for name in names)


def claims(results: Results) -> list[Finding]:
    """All that rests on the drawn samples."""
    raised = "At equal evaluations, guidance toward the rarest class raises"
    return [
        *(_ratio(results, MAIN, PLAIN, key, f"{raised} {head}") for key, head in _HEADS.items()),
        _increasing(results, (SHORT, "noisy-1", MAIN, "noisy-8"), "Rarity grows with the weight"),
        _increasing(results, ("noisy-3-common", "noisy-3-middle", MAIN), "Rarity grows with the class aimed at"),
        _ratio_down(results),
        *_kept(results),
        *_rare(results),
        _windows(results, "", "at a noise that hides as much of a picture"),
        _windows(results, "-snr", "at the same log-SNR; asked after the first seed of the one above"),
        *_successors(results),
    ]


def _increasing(results: Results, names: Sequence[str], claim: str) -> Finding:
    """The smallest of the mean steps from one arm to the next."""
    steps = [logs(results, b, a, "avgknn") for a, b in itertools.pairwise(names)]
    smallest = min(steps, key=statistics.fmean)
    return _above(
        smallest,
        claim=claim,
        source=f"{SOURCE}, LOF density by class and scale",
        expected=f"every step raises the mean of log AvgkNN-lite0; the smallest step above 0, {_WITH}",
        measured=_means(results, names, "avgknn"),
    )


def _ratio_down(results: Results) -> Finding:
    values = [-v for v in logs(results, "noisy-3-common", SHORT, "avgknn")]
    return _above(
        values,
        claim="Guidance toward the commonest class lowers rarity",
        source=f"{SOURCE}, sampling toward any class",
        expected=f"mean of log AvgkNN-lite0 of {_name(SHORT)} over {_name('noisy-3-common')} above 0, {_WITH}",
        measured=_means(results, (SHORT, "noisy-3-common"), "avgknn"),
    )


def _kept(results: Results) -> list[Finding]:
    values = gaps(results, MAIN, PLAIN, "precision pixels")
    chain = statistics.fmean(gaps(results, SHORT, PLAIN, "precision pixels"))
    return [
        _above(
            values,
            NOTHING_LOST,
            claim="Guidance toward the rarest class keeps the quality of the samples",
            source=f"{SOURCE}, results",
            expected=f"precision-pixels8 of {_name(MAIN)} less that of {_name(PLAIN)} above {NOTHING_LOST:g}, {_WITH}",
            measured=f"{_means(results, (PLAIN, MAIN), 'precision pixels')}; the shorter chain alone changes it by "
            f"{chain:+.3f}",
        )
    ]


def _rare(results: Results) -> list[Finding]:
    share, covered = gaps(results, MAIN, PLAIN, "share"), gaps(results, MAIN, PLAIN, "coverage rare pixels")
    nearer = gaps(results, PLAIN, MAIN, "kid rare")
    names = (PLAIN, MAIN)
    return [
        _above(
            share,
            claim="More samples belong to the rare classes that are known",
            source=f"{SOURCE}, purpose",
            expected="their part of the samples rises, with its interval over seeds",
            measured=f"{_means(results, (arms.REAL, *names), 'share')}",
        ),
        _above(
            covered,
            claim="More of the rare data is covered",
            source=f"{SOURCE}, results on low-density references",
            expected="coverage-pixels8 of new drawings of the rare classes rises, with its interval over seeds",
            measured=f"{_means(results, (arms.REAL, *names), 'coverage rare pixels')}",
        ),
        _above(
            nearer,
            claim="The samples come nearer to the low-density data",
            source=f"{SOURCE}, distances to low-density references",
            expected="the kernel distance to new drawings of the rare classes falls, with its interval over seeds",
            measured=f"{_means(results, names, 'kid rare')}",
        ),
    ]


def _windows(results: Results, suffix: str, how: str) -> Finding:
    names = [f"noisy-3-{name}{suffix}" for name in ("high", "mid", "low")]
    found = {name: logs(results, name, SHORT, "avgknn") for name in names}
    full = statistics.fmean(logs(results, MAIN, SHORT, "avgknn"))
    values = [mid - max(high, low) for high, mid, low in zip(*found.values(), strict=True)]
    shares = ", ".join(
        f"{arms.ARMS[name].window} {statistics.fmean(v) / full if full else math.nan:.0%}" for name, v in found.items()
    )
    return _above(
        values,
        claim=f"Guidance at mid noise alone has more of the effect than at high or low noise alone ({how})",
        source="a third-party ablation of arXiv 2301.12334: 0.41, 0.69 and 0.38 at high, mid and low noise",
        expected="effect on log AvgkNN-lite0 at mid noise less the larger of the other two above 0, with its interval",
        measured=f"of the whole chain's effect, {math.expm1(full):+.1%}: {shares}",
    )


def _successors(results: Results) -> list[Finding]:
    ours = "arXiv 2407.11555", "arXiv 2502.06516"
    stochastic = [
        (a - b) - (c - d)
        for a, b, c, d in zip(
            *(
                [run["precision pixels"] for run in results[name]]
                for name in ("boost", "boost-ddim", PLAIN, "plain-ddim")
            ),
            strict=True,
        )
    ]
    away = max(
        (f"away-{weight:g}" for weight in arms.AWAY),
        key=lambda name: statistics.fmean(over_seeds(results[name], "avgknn")),
    )
    return [
        _ratio(
            results,
            MAIN,
            "selected",
            "avgknn",
            "Guided samples are rarer than the rarest third of three times as many",
            "no claim of the paper, for comparison",
        ),
        _ratio(
            results,
            MAIN,
            away,
            "avgknn",
            "Guided samples are rarer than those pushed away from the mean of the features",
            f"{SOURCE}, baselines: Sehwag et al. 2022, here at the best of {len(arms.AWAY)} weights",
        ),
        _ratio(results, "self", PLAIN, "avgknn", "Self-guided sampling raises rarity without a classifier", ours[0]),
        _ratio(results, "self", MAIN, "avgknn", "Self-guided samples are rarer than those by the classifier", ours[0]),
        _ratio(results, "boost", PLAIN, "avgknn", "Boost-and-Skip raises rarity without any guidance", ours[1]),
        _above(
            stochastic,
            claim="Boost-and-Skip needs a stochastic sampler",
            source=ours[1],
            expected=f"it costs a deterministic sampler more precision-pixels8 than a stochastic one, {_WITH}",
            measured=_means(results, (PLAIN, "boost", "plain-ddim", "boost-ddim"), "precision pixels"),
        ),
    ]


def telling(taught: Sequence[Mapping[str, Any]]) -> Finding:
    """Whether the classifier's accuracy falls with the noise."""
    values = [row["accuracy"][-1] - row["accuracy"][0] for row in taught]
    ends = [statistics.fmean(row["accuracy"][place] for row in taught) for place in (0, -1)]
    levels = taught[0]["log_snr"][0], taught[0]["log_snr"][-1]
    return _above(
        values,
        claim="The classifier of rarity knows more at low noise than at high noise",
        source=f"{SOURCE}, noise-conditioned classifier",
        expected=f"accuracy at log-SNR {levels[1]:g} less that at {levels[0]:g} above 0, {_WITH}",
        measured=f"on held-out images {ends[0]:.3f} at log-SNR {levels[0]:g} and {ends[1]:.3f} at {levels[1]:g}; "
        f"chance {1 / arms.RARITIES:.2f}",
    )
