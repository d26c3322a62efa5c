"""Write docs/reproductions.md from the records in benchmarks/results/reproduce.

python tools/reproductions.py            the page
python tools/reproductions.py --judge    first every record again, with the verdicts that its numbers and trainings give
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from ornstein.reproduce import EXPERIMENTS, Record, experiment, judge_budget
from ornstein.reproduce.page import against_noise, measured_and_reason, number, tally, training, trainings, value
from ornstein.reproduce.record import Table
from ornstein.reproduce.summary import HEAD, rows
from ornstein.reproduce.training import LEAST_SHARE

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "benchmarks" / "results" / "reproduce"
PAGE = ROOT / "docs" / "reproductions.md"

LEAD = """# Reproductions

What became of the papers' claims, one row a claim; the details stand below, paper by paper.

"""
READING = f"""
*Ours* is the number that decides, with its 95 % interval over seeds; exact computations have none. Where two arms are
compared it is mostly the logarithm of the ratio of their distances to the data; the column *expected* below says what
it is of, and on which side the claim lies. *Share of training* is how many images (steps times batch) our least trained
arm of the comparison saw in a seed, of those of the paper's training; *none* means that no training decides the claim:
a cost, an order, an identity, or guidance of a model that ships. *Reproduced* needs the whole interval where it was
expected. *Inconclusive* means measured, but not told apart from the edge of that range. *Inconclusive (budget)*
withholds the verdict, whichever way the numbers point: below {LEAST_SHARE:.0%} of the paper's training, or beside a
baseline that had not converged, or of which that is not recorded.

This page is made by `python tools/reproductions.py` from the records in `benchmarks/results/reproduce`, and each of
those by the command that stands with it; `ornstein reproduce` also writes a page with the plots. *Expected* says what
counts as reproduced; some of these ranges were set after first, smaller runs.
"""


def records() -> dict[str, Record]:
    """The records that there are."""
    files = {name: RECORDS / f"{name}.json" for name in EXPERIMENTS}
    return {
        name: Record.from_json(json.loads(file.read_text("utf-8"))) for name, file in files.items() if file.is_file()
    }


def judged(record: Record) -> Record:
    """The record with the verdicts that its own numbers and trainings give today."""
    return replace(record, found=judge_budget(record.found, experiment(record.experiment).claims))


def text() -> str:
    """The page."""
    known = records()
    table = [_row(HEAD), "|" + "---|" * len(HEAD), *(_row(row) for row in rows(known))]
    parts = [LEAD + "\n".join(table) + "\n" + READING]
    parts += [section(known[name]) if name in known else f"## {name}\n\nNot run.\n" for name in EXPERIMENTS]
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
        "| verdict | claim | expected | measured | value | effect against the noise between seeds | training |",
        "|---|---|---|---|---|---|---|",
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
            training(finding),
        )
        lines.append(_row(cells))
    tables = [*record.found.tables, *([trainings(record.found.trainings)] if record.found.trainings else [])]
    for table in tables:
        lines += _table(table)
    lines += ["", *(f"* {note}" for note in record.found.notes)] if record.found.notes else []
    return "\n".join(lines) + "\n"


def _table(table: Table) -> list[str]:
    lines = ["", f"### {table.title}", ""]
    lines += [table.note, ""] if table.note else []
    lines += [_row(table.head), "|" + "---|" * len(table.head)]
    return lines + [_row([number(cell) for cell in row]) for row in table.rows]


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
    if sys.argv[1:] == ["--judge"]:
        for name, record in records().items():
            tree = judged(record).to_json()
            text_of = json.dumps(tree, indent=1, ensure_ascii=False, allow_nan=False)
            (RECORDS / f"{name}.json").write_text(text_of + "\n", "utf-8")
    PAGE.write_text(text(), "utf-8")
    print(PAGE)
