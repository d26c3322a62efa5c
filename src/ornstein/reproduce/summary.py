"""One table of all claims of all papers, from their records."""

from __future__ import annotations

from collections.abc import Mapping

from ..methods import PAPERS
from . import EXPERIMENTS, experiment
from .page import ours, trained
from .record import Record
from .training import unmeasured

HEAD = ("claim", "paper's figure", "ours", "share of training", "verdict")
Row = tuple[str, str, str, str, str]


def rows(records: Mapping[str, Record]) -> list[Row]:
    """One row a claim, in the order of `ornstein.methods.PAPERS`, and one before them that names the paper.

    Args:
        records: experiment → its record; an experiment without one has its claims as "not yet measured".
    """
    found: list[Row] = []
    for paper in PAPERS:
        found.append((f"**{paper.name}**", "", "", "", ""))
        names = [name for name in EXPERIMENTS if paper.arxiv and experiment(name).arxiv == paper.arxiv]
        if not names:
            state = "not yet measured" if paper.state == "ready" else "not built yet"
            found.append((paper.what, "–", "–", "–", state))
        for name in names:
            found += _of(name, records.get(name))
    return found


def _of(name: str, record: Record | None) -> list[Row]:
    claims = experiment(name).claims
    findings = [] if record is None else record.found.findings
    told: list[Row] = [(f.claim, f.figure, ours(f), trained(f), f"**{f.verdict}**") for f in findings]
    for text in claims if record is None else unmeasured(record.found, claims):
        command = " ".join(part for part in (f"ornstein reproduce {name}", claims[text].option) if part)
        told.append((text.rstrip(" ,"), claims[text].figure, "–", "–", f"not yet measured (`{command}`)"))
    return told


__all__ = ["HEAD", "rows"]
