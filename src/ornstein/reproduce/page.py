"""The page of a reproduction, drawn from its record alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ..page import Curve, Section, chart, render
from ..page import Table as Shown
from .record import ArmTraining, Finding, Plot, Record, Table, Verdict
from .training import percent

_SIGNS: Mapping[Verdict, str] = {
    "reproduced": "✓",
    "not reproduced": "✗",
    "inconclusive": "~",
    "inconclusive (budget)": "~",
    "not testable here": "–",
}


def page(record: Record) -> str:
    """One HTML file: the claims with their verdicts, then the tables and plots they rest on."""
    found = record.found
    sections = [_claims(found.findings, record.command)]
    sections += [_plots(found.plots)] if found.plots else []
    sections += [_table(table) for table in found.tables]
    sections += [_table(trainings(found.trainings))] if found.trainings else []
    if found.notes:
        sections.append(Section(title="Notes", notes=found.notes))
    machine = record.machine
    facts = [
        ("paper", f"arXiv {record.arxiv}"),
        ("budget", f"{record.budget:g}"),
        ("computing", _duration(record.seconds)),
        ("processor", str(machine.get("processor", ""))),
        ("torch", str(machine.get("torch", ""))),
        ("date", record.date[:10]),
    ]
    lead = f"{tally(found.findings)}. Every number below comes from the command on this page."
    return render(record.title, lead, sections, facts, made_by="ornstein reproduce")


def tally(findings: Sequence[Finding]) -> str:
    """How many claims got which verdict, in words."""
    counts = {verdict: sum(f.verdict == verdict for f in findings) for verdict in _SIGNS}
    parts = [f"{n} {verdict}" for verdict, n in counts.items() if n]
    return f"{len(findings)} claim{'s' * (len(findings) != 1)}: {', '.join(parts)}"


def number(value: float | str | None) -> str:
    """A cell as text: four significant digits.

    >>> number(0.00123456), number(1234567.0), number(3), number(None)
    ('0.001235', '1.235e+06', '3', '–')
    """
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def measured_and_reason(finding: Finding) -> str:
    """What was measured, then why the verdict is what it is."""
    return "; ".join(part.rstrip(".") for part in (finding.measured, finding.reason) if part) + "."


def against_noise(finding: Finding) -> str:
    """How large the effect was against the noise between seeds.

    An exact computation has no such noise; without an effect there is nothing to compare.
    """
    if finding.effect is None:
        return "–"
    if not finding.noise:
        return f"{number(finding.effect)} (exact, no seeds)" if finding.noise == 0.0 else number(finding.effect)
    return f"{number(finding.effect)} against {number(finding.noise)}: {abs(finding.effect) / finding.noise:.1f} times"


def trained(finding: Finding) -> str:
    """Share of the paper's training: "none" for a law, "not known" where it cannot be said."""
    if finding.kind == "law":
        return "none"
    return percent(finding.share) if finding.kind == "training" else "–"


def training(finding: Finding) -> str:
    """The share, and whether the baseline had converged."""
    return f"{trained(finding)}; baseline {finding.baseline}" if finding.baseline else trained(finding)


def ours(finding: Finding) -> str:
    """The headline number with its interval, three digits of each.

    >>> ours(Finding(claim="", source="", expected="", measured="", verdict="reproduced", value=1.0, interval=(0.5, 2)))
    '1 [0.5, 2]'
    """
    if finding.value is None:
        return "–"
    numbers = (finding.value, *(finding.interval or ()))
    first, *rest = ["–" if not math.isfinite(x) else f"{x:.3g}" for x in numbers]
    return f"{first} [{', '.join(rest)}]" if rest else first


def value(finding: Finding) -> str:
    """The headline number with its interval."""
    if finding.value is None:
        return "–"
    if finding.interval is None:
        return number(finding.value)
    return f"{number(finding.value)} [{number(finding.interval[0])}, {number(finding.interval[1])}]"


def _claims(findings: Sequence[Finding], command: str) -> Section:
    rows = [
        [
            f"{_SIGNS[finding.verdict]} {finding.verdict}",
            f"{finding.claim}\n{finding.source}\n\nExpected: {finding.expected}",
            measured_and_reason(finding),
            "\n".join(dict.fromkeys((value(finding), against_noise(finding)))),
            training(finding),
        ]
        for finding in findings
    ]
    return Section(
        title="Claims",
        text="Expected says what counts as reproduced. Values carry 95 % intervals; below them the effect, and the "
        "noise between seeds where there are seeds. Training is the share of the paper's, none for claims that no "
        "training decides.",
        table=Shown(head=["verdict", "claim", "measured", "value, effect", "training"], rows=rows),
        command=command,
    )


def trainings(arms: Sequence[ArmTraining]) -> Table:
    """How much every arm was trained beside the paper, and whether it had converged."""
    rows = [
        [
            arm.arm,
            arm.images,
            arm.paper,
            percent(arm.share),
            {None: "not recorded", True: "yes", False: "no"}[arm.converged],
            arm.value,
            arm.bar,
        ]
        for arm in arms
    ]
    told = "; ".join(dict.fromkeys(arm.test for arm in arms if arm.converged is not None))
    sources = "; ".join(dict.fromkeys(arm.source for arm in arms))
    return Table(
        title="How much was trained",
        head=["arm", "images", "the paper's", "share", "converged", "tested number", "bar"],
        rows=rows,
        note=f"Images are steps times batch, of one seed. The paper's: {sources}."
        + (f" Tested: {told}." if told else ""),
    )


def _plots(plots: Sequence[Plot]) -> Section:
    return Section(title="Plots", charts=[(plot.title, draw(plot)) for plot in plots])


def draw(plot: Plot) -> str:
    """The plot as <svg>."""
    curves = [
        Curve(
            name=line.name,
            x=line.x,
            y=[math.nan if y is None else y for y in line.y],
            theory=line.theory,
        )
        for line in plot.lines
    ]
    return chart(curves, x=plot.x, y=plot.y, log_x=plot.log_x, log_y=plot.log_y)


def _table(table: Table) -> Section:
    rows = [[number(cell) for cell in row] for row in table.rows]
    return Section(title=table.title, text=table.note, table=Shown(head=table.head, rows=rows))


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
