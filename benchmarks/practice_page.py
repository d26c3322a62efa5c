"""The tables and the figure of docs/practice.md, from what `practice.py` and `practice_critters.py` have measured."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import practice_sweep
from report import RESULTS

FIGURE = Path("docs/figures/practice.svg")
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"
# (mean, median, calls) by count, by name
Rows = dict[str, dict[int, list[float]]]
WORDS = {"linear": "linear betas", "scaled-linear": "scaled-linear betas", "cosine": "cosine betas"}


def load(name: str) -> dict[str, Any]:
    """One JSON document of the results."""
    return json.loads((RESULTS / f"{name}.json").read_text("utf-8"))


def rows_of(cells: dict[str, dict[str, list[float | None]]]) -> Rows:
    """Only the numbers that are numbers."""
    return {
        name: {int(count): cell for count, cell in counts.items() if cell[0] is not None}
        for name, counts in cells.items()
    }  # type: ignore[return-value]


def by_family(rows: Rows, cut: str) -> Rows:
    """The best over all settings or grids: names are cut at the first ``cut``."""
    out: Rows = {}
    for name, counts in rows.items():
        row = out.setdefault(name.split(cut)[0], {})
        for count, cell in counts.items():
            if count not in row or cell[0] < row[count][0]:
                row[count] = cell
    return out


def best(rows: Rows) -> dict[int, list[float]]:
    """The least error at each count."""
    return by_family({f"all {name}": counts for name, counts in rows.items()}, " ").get("all", {})


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table."""
    rule = ["---", *("---:" for _ in header[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *lines))


def problem_table(cells: dict[str, Any], counts: Sequence[int]) -> str:
    """Every family at its best; what is at or below the best of diffusers is bold."""
    theirs, ours = rows_of(cells.get("theirs", {})), rows_of(cells.get("ours", {}))
    least = best(theirs)

    def line(title: str, row: dict[int, list[float]], mark: bool) -> list[str]:
        out = [title]
        for count in counts:
            if count not in row:
                out.append("–")
                continue
            text = shown(row[count][0])
            out.append(f"**{text}**" if mark and count in least and row[count][0] <= least[count][0] else text)
        return out

    lines = [line(f"diffusers {name}", row, False) for name, row in by_family(theirs, " [").items()]
    lines.append(line("*best of diffusers*", least, False))
    own = by_family(ours, " ")
    auto = own.pop("auto", {})
    lines += [line(f"`{name}`", row, True) for name, row in own.items()]
    lines.append(line("**`auto`**", auto, True))
    return markdown(["best setting or grid", *map(str, counts)], lines)


def shown(value: float) -> str:
    """Three digits, no exponent above 1e-5."""
    return f"{value:.3g}" if value >= 1e-4 or value == 0.0 else f"{value:.1e}"


def winners(cells: dict[str, Any], counts: Sequence[int]) -> str:
    """Which setting of diffusers was the best at each count."""
    theirs = rows_of(cells.get("theirs", {}))
    named = {
        count: min((n for n in theirs if count in theirs[n]), key=lambda n: theirs[n][count][0], default="–")
        for count in counts
    }
    return "; ".join(f"{count}: {name}" for count, name in named.items())


def verdicts(document: dict[str, Any]) -> str:
    """For every sampler of ours, in how many cells its best grid is at or below the best of diffusers."""
    score: dict[str, list[int]] = {}
    for cells in document["results"].values():
        least = best(rows_of(cells.get("theirs", {})))
        for name, row in by_family(rows_of(cells.get("ours", {})), " ").items():
            tally = score.setdefault(name, [0, 0])
            for count, cell in row.items():
                if count in least:
                    tally[0] += cell[0] <= least[count][0]
                    tally[1] += 1
    lines = sorted(([f"`{name}`", str(won), str(of)] for name, (won, of) in score.items()), key=lambda r: -int(r[1]))
    return markdown(["sampler, best of four grids", "cells won", "of"], lines)


def critters_tables(document: dict[str, Any], counts: Sequence[int]) -> str:
    """Distances to the 1000-step solution, then Fréchet distances."""
    near: dict[str, dict[int, dict[str, Any]]] = {}
    far: dict[str, dict[int, dict[str, Any]]] = {}
    for cell in document["results"]:
        near.setdefault(cell["sampler"], {})
        if "mean" in cell:
            near[cell["sampler"]][cell["count"]] = cell
        if "FD" in cell:
            far.setdefault(cell["sampler"], {})[cell["count"]] = cell
    least = {count: min((r[count]["mean"] for r in near.values() if count in r), default=0.0) for count in counts}

    def mean(row: dict[int, dict[str, Any]], count: int) -> str:
        if count not in row:
            return "–"
        value = row[count]["mean"]
        return f"**{value:.3f}**" if value <= least[count] else f"{value:.3f}"

    lines = [[name, *(mean(row, count) for count in counts)] for name, row in near.items() if row]
    parts = [markdown(["RMS distance to the 1000-step solution", *map(str, counts)], lines)]
    some = sorted({count for row in far.values() for count in row})

    def fd(row: dict[int, dict[str, Any]], count: int) -> str:
        if count not in row:
            return "–"
        halves = " / ".join(f"{half:.0f}" for half in row[count]["FD of halves"])
        return f"{row[count]['FD']:.0f} ({halves})"

    if far:
        lines = [[name, *(fd(row, count) for count in some)] for name, row in far.items()]
        parts.append(markdown(["FD-lite0 of 256 images (of its halves)", *map(str, some)], lines))
    return "\n\n".join(parts)


def page() -> str:
    """Everything between the two marks of the page."""
    document = load("practice")
    counts = document["counts"]
    parts: list[str] = []
    for key, cells in document["results"].items():
        path, target = key.split("/")
        if "auto auto" not in cells.get("ours", {}):
            continue
        parts += [f"### {target}, {WORDS.get(path, path)}", problem_table(cells, counts)]
        parts.append(f"Best settings of diffusers. {winners(cells, counts)}.")
    parts += ["### Cells won", verdicts(document)]
    if (RESULTS / "practice-sweep.json").exists():
        parts += ["### Points, clusters and mixtures of other scales, beside 2M"]
        parts += [practice_sweep.page(load("practice-sweep"))]
    if (RESULTS / "practice-critters.json").exists():
        parts += ["### The shipped model", critters_tables(load("practice-critters"), counts)]
    return "\n\n".join(parts)


def renew(file: Path = Path("docs/practice.md")) -> None:
    """Put the tables between the marks."""
    text = file.read_text("utf-8")
    head, tail = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    file.write_text(f"{head}\n\n{page()}\n\n{tail}", "utf-8")


def figure(to: Path = FIGURE) -> None:
    """Error against evaluations on two targets."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    document = load("practice")
    counts = document["counts"]
    with plt.rc_context({"svg.hashsalt": "practice", "font.size": 8}):
        shown_, axes = plt.subplots(1, 3, figsize=(9.5, 3.2))
        for axis, target in zip(axes, ("M1", "M2", "M64"), strict=True):
            cells = document["results"].get(f"linear/{target}", {})
            theirs, ours = rows_of(cells.get("theirs", {})), by_family(rows_of(cells.get("ours", {})), " ")
            rows = {
                "diffusers 2M, default": theirs.get(
                    "DPM-Solver++ 2M [timestep_spacing=linspace final_sigmas_type=zero]"
                ),
                "best of diffusers": best(theirs),
                "staggered-midpoint": ours.get("staggered-midpoint"),
                "accelerated-ode-memory": ours.get("accelerated-ode-memory"),
                "auto": ours.get("auto"),
            }
            for (name, row), style in zip(rows.items(), ("s:", "o-", "^--", "v--", "D-"), strict=True):
                if row:
                    axis.loglog(
                        [c for c in counts if c in row],
                        [row[c][0] for c in counts if c in row],
                        style,
                        label=name,
                        ms=3,
                    )
            axis.set(title=target, xlabel="evaluations", xticks=counts, xticklabels=counts)
            axis.minorticks_off()
            axis.grid(alpha=0.3)
        axes[0].set_ylabel("mean distance to the exact solution")
        axes[0].legend(fontsize=6)
        shown_.tight_layout()
        to.parent.mkdir(parents=True, exist_ok=True)
        shown_.savefig(to, metadata={"Date": None})
        plt.close(shown_)


if __name__ == "__main__":
    renew()
    figure()
    print("docs/practice.md and", FIGURE, "renewed", file=sys.stderr)
