"""Write docs/reproductions.md from the records in benchmarks/results/reproduce.

python tools/reproductions.py
"""

from __future__ import annotations

import json
from pathlib import Path

from ornstein.reproduce import EXPERIMENTS, Record, experiment
from ornstein.reproduce.page import against_noise, measured_and_reason, number, tally, value

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "benchmarks" / "results" / "reproduce"
PAGE = ROOT / "docs" / "reproductions.md"

LEAD = """# Reproductions

What became of the papers' claims. This page is made by `python tools/reproductions.py` from the records in
`benchmarks/results/reproduce`, and each of those by the command that stands with it; `ornstein reproduce` also writes a
page with the plots. *Expected* says what counts as reproduced; some of these ranges were set after first, smaller runs.
Values over seeds carry 95 % intervals, exact computations none; *reproduced* needs the whole interval where it was
expected. *Inconclusive* means measured, but not told apart from the edge of that range.
"""


def text() -> str:
    """The page."""
    parts = [LEAD]
    for name in EXPERIMENTS:
        file = RECORDS / f"{name}.json"
        known = file.is_file()
        parts.append(
            section(Record.from_json(json.loads(file.read_text("utf-8")))) if known else f"## {name}\n\nNot run.\n"
        )
    return "\n".join(parts)


def section(record: Record) -> str:
    """One paper."""
    made_on = f"{record.machine['processor']}, torch {record.machine['torch']}"
    lines = [
        f"## {record.experiment}",
        "",
        f"{record.title} ([{record.arxiv}](https://arxiv.org/abs/{record.arxiv})). {tally(record.found.findings)}.",
        "",
        f"`{record.command}`, {record.date[:10]}, {record.seconds / 60:.0f} minutes of computing, {made_on}.",
        "",
        *_outdated(record),
        "| verdict | claim | expected | measured | value | effect against the noise between seeds |",
        "|---|---|---|---|---|---|",
    ]
    for finding in record.found.findings:
        claim = f"{finding.claim} ({finding.source})"
        cells = (
            f"**{finding.verdict}**",
            claim,
            finding.expected,
            measured_and_reason(finding),
            value(finding),
            against_noise(finding),
        )
        lines.append(_row(cells))
    for table in record.found.tables:
        lines += ["", f"### {table.title}", ""]
        if table.note:
            lines += [table.note, ""]
        lines += [_row(table.head), "|" + "---|" * len(table.head)]
        lines += [_row([number(cell) for cell in row]) for row in table.rows]
    lines += ["", *(f"* {note}" for note in record.found.notes)] if record.found.notes else []
    return "\n".join(lines) + "\n"


def _outdated(record: Record) -> list[str]:
    """A sentence about a record of an earlier version of its experiment."""
    now = experiment(record.experiment)
    if record.version == now.version:
        return []
    changed = f": {now.changed}" if hasattr(now, "changed") else ""
    said = (
        f"Measured with version {record.version} of the experiment, which is at version {now.version} now and has not "
    )
    return [f"{said}been run again{changed}.", ""]


def _row(cells: object) -> str:
    assert isinstance(cells, (list, tuple))
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


if __name__ == "__main__":
    PAGE.write_text(text(), "utf-8")
    print(PAGE)
