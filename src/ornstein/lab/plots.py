"""Pictures of the lab: errors over evaluations with the declared order drawn in, over dimension, over a change."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import TYPE_CHECKING

from .dimension import DimensionReport
from .rates import Report, Series
from .studies import Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours that stay apart for colour-blind readers and in grey (Okabe & Ito), each with its own marker.
_STYLES = [("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#56B4E9", "v"), ("#E69F00", "P")]


_THEORY = (0, (4, 3))


def draw(report: Report, name: str) -> Figure:
    """The figure of one sampler of ``report``: measured errors, and beside each the line n^−p of the declared order."""
    series = [s for s in report.series if s.sampler == name]
    figure, axes = _empty("evaluations of the denoiser", "error against the exact law")
    orders = list(dict.fromkeys(one.declared for one in series))
    for one, (colour, marker) in zip(series, _STYLES * (1 + len(series) // len(_STYLES)), strict=False):
        _series(axes, one, colour, marker)
    _ticks(axes, {n for one in series for n in one.evaluations})
    axes.set_title(f"{name}: declared order {', '.join(f'{p:g}' for p in orders)}", loc="left", fontweight="bold")
    _corner(axes, f"{report.path.upper()} path, {report.grid} grid, σ̄ from 80")
    axes.plot([], [], color="#666666", linestyle=_THEORY, linewidth=1.0, label="theory: slope of the declared order")
    _legend(axes)
    return figure


def draw_growth(report: DimensionReport, family: str) -> Figure:
    """Error over dimension of every sampler on one family, with √d drawn in."""
    growths = [one for one in report.growths if one.family == family]
    figure, axes = _empty("dimension d", growths[0].measure + " to the fine solution")
    for one, (colour, marker) in zip(growths, _STYLES * (1 + len(growths) // len(_STYLES)), strict=False):
        means = [sum(column) / len(column) for column in zip(*one.errors, strict=True)]
        label = f"{one.sampler}: d^({one.exponent:.2f} ± {one.half_width:.2f})"
        axes.plot(one.dimensions, means, color=colour, marker=marker, markersize=5, linewidth=1.6, label=label)
        for row in one.errors:
            axes.plot(one.dimensions, row, color=colour, linestyle="none", marker=".", markersize=3, alpha=0.6)
    low = growths[0]
    anchor = 0.5 * min(e for one in growths for row in one.errors for e in row)
    line = [anchor * math.sqrt(d / low.dimensions[0]) for d in low.dimensions]
    axes.plot(low.dimensions, line, color="#666666", linestyle=_THEORY, linewidth=1.0, label="√d, for comparison")
    _ticks(axes, set(low.dimensions))
    axes.set_title(f"{family} targets, {low.steps} steps", loc="left", fontweight="bold")
    _corner(axes, f"{report.path.upper()} path, {report.grid} grid")
    _legend(axes)
    return figure


def draw_effects(study: Study, name: str) -> Figure:
    """Errors of one sampler with and without the change, over the number of steps."""
    effects = [one for one in study.effects if one.sampler == name]
    wrong = study.study == "score-error"
    figure, axes = _empty("steps", "error against the exact law" if wrong else "distance to the run in float64")
    words = ("exact score", f"score {study.change}") if wrong else ("float32 network", "float32 state")
    for one, (colour, marker) in zip(effects, _STYLES * (1 + len(effects) // len(_STYLES)), strict=False):
        for values, word, style in ((one.exact, words[0], ":"), (one.changed, words[1], "-")):
            points = [(n, e) for n, e in zip(one.counts, values, strict=True) if e]
            if points:
                x, y = zip(*points, strict=True)
                label = f"{one.target} {one.measure}: {word}"
                axes.plot(x, y, color=colour, marker=marker, markersize=5, linestyle=style, linewidth=1.6, label=label)
    _ticks(axes, set(study.counts))
    axes.set_title(name, loc="left", fontweight="bold")
    _corner(axes, f"{study.path.upper()} path, {study.grid} grid")
    _legend(axes)
    return figure


def _empty(x: str, y: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(which="major", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _ticks(axes: Axes, values: set[int]) -> None:
    """Only numbers that were measured, and none closer to its neighbour than a quarter of an octave."""
    from matplotlib.ticker import NullLocator

    kept: list[int] = []
    for value in sorted(values):
        if not kept or value >= 1.2 * kept[-1]:
            kept.append(value)
    axes.set_xticks(kept[:: max(1, math.ceil(len(kept) / 10))])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}")
    axes.xaxis.set_minor_locator(NullLocator())


def _corner(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="right", fontsize=8, color="#666666")


def _legend(axes: Axes) -> None:
    """Below the axes, where it hides no curve."""
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14), fontsize=8, ncols=2)


def _series(axes: Axes, one: Series, colour: str, marker: str) -> None:
    points = [(n, e) for n, e in zip(one.evaluations, one.errors, strict=True) if e is not None and e > 0.0]
    if not points:
        return
    x, y = zip(*points, strict=True)
    label = f"{one.target} {one.measure}: {shown(one)}"
    axes.plot(x, y, color=colour, marker=marker, markersize=5, linewidth=1.6, label=label)
    # Theory through the last point that counts: N^−p with the declared p.
    usable = [
        (calls, e)
        for n, calls, e in zip(one.counts, one.evaluations, one.errors, strict=True)
        if n in one.fit.counts and e is not None
    ]
    x0, y0 = usable[-1] if usable else points[-1]
    theory = [y0 * (x0 / n) ** one.declared for n in x]
    axes.plot(x, theory, color=colour, linestyle=_THEORY, linewidth=1.0, alpha=0.7)


def shown(one: Series) -> str:
    """The measured order in a few characters."""
    if one.fit.exact:
        return "exact"
    if one.fit.order is None or one.fit.half_width is None:
        return "not asymptotic"
    return f"order {one.fit.order:.2f} ± {one.fit.half_width:.2f}"


def write(report: Report, folder: FilePath, names: Sequence[str] | None = None) -> list[FilePath]:
    """One PNG a sampler in ``folder`` (made if missing), each replaced atomically; the paths."""
    chosen = dict.fromkeys(s.sampler for s in report.series) if names is None else names
    return save({name: draw(report, name) for name in chosen}, folder)


def save(figures: Mapping[str, Figure], folder: FilePath) -> list[FilePath]:
    """Figures by name, each to a PNG in ``folder`` (made if missing), replaced atomically; the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    out: list[FilePath] = []
    for name, figure in figures.items():
        path = folder / f"{re.sub(r'[^A-Za-z0-9.-]+', '-', name)}.png"
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".png", delete=False) as file:
            figure.savefig(file, format="png", dpi=150)
        FilePath(file.name).replace(path)
        out.append(path)
    return out
