"""What a reproduction is: claims of a paper, what was measured, and a verdict on each.

An `Experiment` computes its numbers in *cells* (`ornstein.reproduce.cells`), small jobs that are stored as soon as they
are done, so a killed run goes on where it stopped, and returns `Findings`: one `Finding` a claim, beside tables and
plots. `Record` adds how it was made and turns into JSON; the page and the documentation are drawn from that JSON alone.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from ..errors import ConfigError

if TYPE_CHECKING:
    from .cells import Cells

Verdict = Literal["reproduced", "not reproduced", "not testable here", "inconclusive", "inconclusive (budget)"]
Kind = Literal["law", "training"]
Interval = tuple[float, float]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One claim and what became of it.

    Args:
        claim: the claim, in one sentence.
        source: where it stands, such as "arXiv 2403.03852, Theorem 1".
        expected: what counts as reproduced, best fixed before measuring: "slope of TV over T in [−2.1, −1.9]".
        measured: what was measured, in one sentence, with the numbers.
        verdict: "inconclusive" means measured, but not told apart from the noise; "not testable here" was not measured.
        reason: why the verdict is what it is; needed unless it is "reproduced".
        value: the headline number, if there is one.
        interval: its 95 % interval over seeds; None for an exact computation, which has no seeds.
        effect: size of the claimed effect, in the units of ``noise``.
        noise: standard deviation of the effect between seeds; 0 for an exact computation without any.

    The rest is filled in by `ornstein.reproduce.training.judge_budget`, from what the experiment knows of the claim and
    of its trainings.

    Args:
        figure: the paper's own figure, in a few words; "none" if it names none.
        kind: "training" if the claim is about networks trained here, "law" if no such training decides it: costs,
            operation counts, exact identities, orders, and guidance of a model that ships.
        share: least share of the paper's training that an arm of the comparison had; None for a law, or if unknown.
        baseline: whether what is compared with had converged: "converged", "not converged", "not recorded"; "" for a
            law.
        by_interval: the verdict of the numbers alone, which ``verdict`` withholds below the least share, and
        why: its reason.
    """

    claim: str
    source: str
    expected: str
    measured: str
    verdict: Verdict
    reason: str = ""
    value: float | None = None
    interval: Interval | None = None
    effect: float | None = None
    noise: float | None = None
    figure: str = ""
    kind: Kind | None = None
    share: float | None = None
    baseline: str = ""
    by_interval: Verdict | None = None
    why: str = ""

    def __post_init__(self) -> None:
        if self.verdict != "reproduced" and not self.reason:
            raise ConfigError(f"a finding that is {self.verdict!r} needs a reason: {self.claim!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table of numbers: a title, column heads, rows whose first cell is their name, and a remark."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str | float | int | None]]
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Points of one plotted quantity. ``theory`` draws it dashed and without marks."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    theory: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """Lines on shared axes, logarithmic unless said otherwise."""

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    log_x: bool = True
    log_y: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmTraining:
    """How much one arm was trained, beside the paper, and whether it had converged.

    Args:
        arm: its name in `Claim.arms`.
        images: images that its training saw in a seed, steps times batch; None if not recorded.
        paper: the same of the paper's training; None if not known.
        source: where the paper's number is from.
        test: what counts as converged, in words.
        value: the number that is tested.
        bar: what it is compared with.
        converged: the outcome; None if the record lacks what the test needs.
    """

    arm: str
    images: int | None
    paper: int | None
    source: str
    test: str
    value: float | None = None
    bar: float | None = None
    converged: bool | None = None

    @property
    def share(self) -> float | None:
        """Share of the paper's training."""
        return None if self.images is None or self.paper is None else self.images / self.paper


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """All that an experiment found."""

    findings: Sequence[Finding]
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()
    notes: Sequence[str] = ()
    trainings: Sequence[ArmTraining] = ()


@dataclass(frozen=True, slots=True)
class Claim:
    """What is known of a claim before anything is measured.

    Args:
        figure: the paper's own figure, in a few words; "none" if it names none.
        arms: the arms trained here that the claim compares, the baseline last; none for a law.
        option: what the command needs beside the method's name to measure it.
    """

    figure: str
    arms: tuple[str, ...] = ()
    option: str = ""


@dataclass(frozen=True, slots=True)
class Budget:
    """How much of the full experiment to run: 1 is all of it, at most six hours on two cores.

    Sizes below 1 keep every claim in the table with wider intervals; each size used is named in the result.
    """

    scale: float = 1.0

    longer: int = 1
    """So many times longer are two rungs trained beside, where an experiment has a long comparison; 1 leaves it out."""

    def __post_init__(self) -> None:
        if not 1 <= self.longer <= 1000:
            raise ConfigError(f"longer must be between 1 and 1000, got {self.longer}: 1 has no longer trainings")
        if not 0.0 < self.scale <= 100.0:
            raise ConfigError(f"budget must be above 0 and at most 100, got {self.scale:g}: 1 runs the full table")

    def count(self, full: int, least: int = 1) -> int:
        """``full`` scaled, at least ``least``.

        >>> Budget(0.1).count(200, 24), Budget(2.0).count(3)
        (24, 6)
        """
        return max(least, round(full * self.scale))

    def keep(self, items: Sequence[T], least: int = 1) -> Sequence[T]:
        """The first of ``items``, as many as the budget buys; all of them from 1 on."""
        return items[: max(least, math.ceil(len(items) * min(self.scale, 1.0)))]


class Experiment(Protocol):
    """A reproduction. ``version`` rises whenever its cells change meaning; older cells are then not used."""

    name: str
    title: str
    arxiv: str
    version: int

    @property
    def claims(self) -> Mapping[str, Claim]:
        """All its claims: text, or how it begins → what is known of it."""
        ...

    def run(self, cells: Cells, budget: Budget) -> Findings:
        """Measure. Everything that takes time goes through ``cells``."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Findings with how they were made; what the JSON holds."""

    experiment: str
    title: str
    arxiv: str
    version: int
    budget: float
    command: str
    date: str
    seconds: float  # of all cells together, also those of earlier runs
    cells: int
    machine: Mapping[str, Any]
    found: Findings

    def to_json(self) -> dict[str, Any]:
        """A tree of plain values; numbers that are not finite become null."""
        tree = asdict(self)
        tree.update(tree.pop("found"))
        return _plain(tree)

    @staticmethod
    def from_json(tree: Mapping[str, Any]) -> Record:
        """The inverse of `to_json`."""
        rest = {k: v for k, v in tree.items() if k not in {"findings", "tables", "plots", "notes", "trainings"}}
        found = Findings(
            findings=[Finding(**{**f, "interval": f["interval"] and tuple(f["interval"])}) for f in tree["findings"]],
            tables=[Table(**table) for table in tree["tables"]],
            plots=[Plot(**{**plot, "lines": [Line(**line) for line in plot["lines"]]}) for plot in tree["plots"]],
            notes=tree["notes"],
            trainings=[ArmTraining(**training) for training in tree.get("trainings", [])],
        )
        return Record(**rest, found=found)


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, Interval]:
    """Mean and its interval of Student's t over ``values``, one a seed; a single value has an endless interval, and
    both are NaN where a value is.

    >>> mean_interval([1.0, 2.0, 3.0])[0]
    2.0
    """
    mean = statistics.fmean(values)
    if math.isnan(mean):
        return mean, (math.nan, math.nan)
    if len(values) < 2:
        return mean, (-math.inf, math.inf)
    from scipy.stats import t as student

    half = float(student.ppf(0.5 + level / 2, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, (mean - half, mean + half)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
