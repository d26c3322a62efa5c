"""Whether a claim on trained networks can be judged: the share of the paper's training, and a converged baseline.

A verdict on networks that were hardly trained says something of their beginning and not of the paper. So every claim is
a *law* or rests on *trainings*; of the latter it is said which share of the paper's training its arms had, in images
(steps times batch), and whether its baseline had converged. Below `LEAST_SHARE`, or beside a baseline that had not
converged, or where either is not recorded, the verdict is "inconclusive (budget)", whichever way the numbers point.
Where the length of the paper's training is not known, the baseline alone decides.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..errors import ConfigError
from .record import ArmTraining, Claim, Finding, Findings, Verdict, mean_interval

LEAST_SHARE = 0.05
"""Least share of the paper's training. At 5 % UDPM's moving average (0.9999, 600,000 steps) still holds e⁻³ of
the first weights, and sLCT's curriculum is a third through the first of seven stages: less is no test of either paper.
It is a lower bound: whether the training was enough is asked of the baseline."""

LARGE, SMALL = math.log(1.1), math.log(1.02)
"""The last third of a converged training changes its distance by less than the distance's own 95 % interval over seeds,
and by less than a tenth, however wide that is; a change below 2 % counts as none."""
STILL_TEST = "the last third of its training changes its distance by less than its 95 % interval, and less than a tenth"
BUDGET: Verdict = "inconclusive (budget)"


def claim_of(text: str, claims: Mapping[str, Claim]) -> Claim:
    """What is known of the claim ``text``: the entry of ``claims`` that is the longest beginning of it.

    Raises:
        ConfigError: no entry begins it, so that nobody said whether training decides it.
    """
    found = max((known for known in claims if text.startswith(known)), key=len, default=None)
    if found is None:
        raise ConfigError(f"the claim {text!r} is in no list of claims: say there what it rests on")
    return claims[found]


def trained_arm(
    arm: str,
    images: int | None,
    paper: int | None,
    source: str,
    before: Sequence[float | None],
    after: Sequence[float | None],
    least: float = 1e-4,
) -> ArmTraining:
    """An arm whose last third of training is tested: did it still change a distance noticeably?

    Args:
        arm: its name in the list of claims.
        images: images that it saw, in a seed; None if not recorded.
        paper: the same of the paper; None if not known.
        source: where the paper's number is from.
        before: the distance to the data after two thirds of the training, one a seed.
        after: the same at its end.
        least: distances below count as this.

    Fewer than two seeds that have both numbers decide nothing.

    >>> for end in ([0.99, 1.12, 1.0], [0.5, 0.6, 0.5], [None, None, 1.0]):
    ...     print(trained_arm("a", 1, 2, "", [1.0, 1.1, 1.0], end).converged)
    True
    False
    None
    """
    pairs = [(a, b) for a, b in zip(before, after, strict=True) if a is not None and b is not None]
    gains = [math.log(max(a, least) / max(b, least)) for a, b in pairs]
    plain = ArmTraining(arm=arm, images=images, paper=paper, source=source, test=STILL_TEST)
    if len(gains) < 2:
        return plain
    end, (_, high) = mean_interval([math.log(max(b, least)) for _, b in pairs])
    mean, bar = statistics.fmean(gains), min(LARGE, max(high - end, SMALL))
    return replace(plain, value=mean, bar=bar, converged=abs(mean) < bar)


def above_bar(
    arm: str, images: int | None, paper: int | None, source: str, test: str, values: Sequence[float], bar: float
) -> ArmTraining:
    """An arm whose mean over seeds must lie above a bar, which ``test`` states."""
    mean = statistics.fmean(values) if values else None
    good = None if mean is None else mean > bar
    return ArmTraining(
        arm=arm, images=images, paper=paper, source=source, test=test, value=mean, bar=bar, converged=good
    )


def judge_budget(found: Findings, claims: Mapping[str, Claim]) -> Findings:
    """The findings with the paper's figures, their kind, the share of the training and the verdict that these allow.

    The numbers' own verdict and its reason stay in ``by_interval`` and ``why``, from which stored findings are judged
    again.
    """
    trainings = {training.arm: training for training in found.trainings}
    return replace(found, findings=[_judged(one, claim_of(one.claim, claims), trainings) for one in found.findings])


def _judged(finding: Finding, claim: Claim, trainings: Mapping[str, ArmTraining]) -> Finding:
    own, why = (finding.verdict, finding.reason) if finding.by_interval is None else (finding.by_interval, finding.why)
    finding = replace(finding, figure=claim.figure, by_interval=own, why=why, verdict=own, reason=why)
    if not claim.arms:
        return replace(finding, kind="law", share=None, baseline="")
    arms = [trainings.get(arm) for arm in claim.arms]
    shares = [arm.share for arm in arms if arm is not None and arm.share is not None]
    share, last = min(shares, default=None), arms[-1]
    settled = None if last is None else last.converged
    state = "not recorded" if settled is None else "converged" if settled else "not converged"
    finding = replace(finding, kind="training", share=share, baseline=state)
    counted = all(arm is not None and arm.images is not None for arm in arms)
    lacks = _lacks(counted, share, claim.arms[-1], last, state)
    if own == "not testable here" or not lacks:
        return finding
    return replace(finding, verdict=BUDGET, reason=f"no verdict on the paper: {lacks}")


def _lacks(counted: bool, share: float | None, name: str, last: ArmTraining | None, state: str) -> str:
    """Why the trainings decide nothing; empty if they do."""
    parts = []
    if not counted:
        parts.append("how many images our arms saw is not recorded")
    elif share is not None and share < LEAST_SHARE:
        parts.append(f"{percent(share)} of the paper's training, where {LEAST_SHARE:.0%} is the least")
    if state != "converged":
        told = ""
        if last is not None and last.value is not None and last.bar is not None:
            told = f" ({last.test}: {last.value:.3g}, bar {last.bar:.3g})"
        not_so = f"whether {name} had converged is not recorded", f"{name} had not converged{told}"
        parts.append(not_so[state == "not converged"])
    return ", and ".join(parts)


def percent(share: float | None) -> str:
    """A share in per cent, of two digits.

    >>> [percent(share) for share in (0.0021, 0.0000612, 0.5, 1.25)]
    ['0.21 %', '0.0061 %', '50 %', '125 %']
    """
    if share is None:
        return "not known"
    value = 100.0 * share
    digits = 0 if value >= 10.0 else 1 - math.floor(math.log10(value)) if value > 0.0 else 0
    return f"{value:.{digits}f} %"


def unmeasured(found: Findings, claims: Mapping[str, Claim]) -> list[str]:
    """The claims of the list that no finding is about."""
    known = {text for finding in found.findings for text in claims if finding.claim.startswith(text)}
    return [text for text in claims if text not in known]


__all__ = [
    "BUDGET",
    "LEAST_SHARE",
    "above_bar",
    "claim_of",
    "judge_budget",
    "percent",
    "trained_arm",
    "unmeasured",
]
