"""One picture a sampler: measured errors over evaluations, with the declared order drawn in."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import TYPE_CHECKING

from .rates import Report, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours that stay apart for colour-blind readers and in grey (Okabe & Ito), each with its own marker.
_STYLES = [("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#56B4E9", "v"), ("#E69F00", "P")]


def draw(report: Report, name: str) -> Figure:
    """The figure of one sampler of ``report``."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    series = [s for s in report.series if s.sampler == name]
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.add_subplot()
    for one, (colour, marker) in zip(series, _STYLES * (1 + len(series) // len(_STYLES)), strict=False):
        _series(axes, one, colour, marker)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = sorted({n for one in series for n in one.evaluations})
    axes.set_xticks(ticks[:: max(1, math.ceil(len(ticks) / 10))])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("evaluations of the denoiser")
    axes.set_ylabel("error against the exact law")
    axes.grid(which="major", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"{name}: declared order {series[0].declared}", loc="left", fontweight="bold")
    axes.set_title(
        f"{report.path.upper()} path, {report.grid} grid, σ̄ from 80", loc="right", fontsize=8, color="#666666"
    )
    axes.plot(
        [], [], color="#666666", linestyle=(0, (4, 3)), linewidth=1.0, label=f"declared: order {series[0].declared}"
    )
    axes.legend(frameon=False, loc="upper right", fontsize=9)
    return figure


def _series(axes: Axes, one: Series, colour: str, marker: str) -> None:
    points = [(n, e) for n, e in zip(one.evaluations, one.errors, strict=True) if e is not None and e > 0.0]
    if not points:
        return
    x, y = zip(*points, strict=True)
    axes.plot(
        x,
        y,
        color=colour,
        marker=marker,
        markersize=5,
        linewidth=1.6,
        label=f"{one.target} {one.measure}: {shown(one)}",
    )
    # Theory through the last point that counts: N^−p with the declared p.
    usable = [p for p, n in zip(points, one.counts, strict=False) if n in one.fit.counts] or points
    x0, y0 = usable[-1]
    axes.plot(
        x, [y0 * (x0 / n) ** one.declared for n in x], color=colour, linestyle=(0, (4, 3)), linewidth=1.0, alpha=0.7
    )


def shown(one: Series) -> str:
    """The measured order in a few characters."""
    if one.fit.exact:
        return "exact"
    if one.fit.order is None or one.fit.half_width is None:
        return "not asymptotic"
    return f"order {one.fit.order:.2f} ± {one.fit.half_width:.2f}"


def write(report: Report, folder: FilePath, names: Sequence[str] | None = None) -> list[FilePath]:
    """One PNG a sampler in ``folder`` (made if missing), each replaced atomically; the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    out: list[FilePath] = []
    for name in dict.fromkeys(s.sampler for s in report.series) if names is None else names:
        path = folder / f"{re.sub(r'[^A-Za-z0-9.-]+', '-', name)}.png"
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".png", delete=False) as file:
            draw(report, name).savefig(file, format="png", dpi=150)
        FilePath(file.name).replace(path)
        out.append(path)
    return out
