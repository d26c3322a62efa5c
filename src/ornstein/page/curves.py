"""Line charts as inline SVG, in one quiet style."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

# Okabe and Ito's palette: told apart by colour-blind readers, and in grey by its order of lightness.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#999999")
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One line: its name and its points. Curves of one ``style`` look alike on every chart of a page.

    ``theory`` draws a grey dashed line without marks.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: int | None = None
    theory: bool = False


def chart(
    curves: Sequence[Curve],
    *,
    x: str,
    y: str,
    log_x: bool = False,
    log_y: bool = False,
    marks: bool = True,
    ticks: Sequence[float] | None = None,
    size: tuple[float, float] = (6.0, 3.6),
) -> str:
    """An <svg> element with the curves, direct labels at their ends where there is room, and a light grid."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    with mpl.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10, "svg.hashsalt": "0"}):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for place, curve in enumerate(curves):
            i = place if curve.style is None else curve.style
            axes.plot(
                curve.x,
                curve.y,
                color="#777777" if curve.theory else COLOURS[i % len(COLOURS)],
                marker=MARKS[i % len(MARKS)] if marks and not curve.theory else None,
                markersize=5,
                linewidth=1.0 if curve.theory else 1.8,
                linestyle=(0, (4, 3)) if curve.theory else "-",
                label=curve.name,
            )
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        if log_x:
            axes.set_xscale("log")
        if log_y:
            axes.set_yscale("log")
        if ticks is not None:
            axes.set_xticks(list(ticks), labels=[f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
        elif log_x:
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(color="#e4e4e4", linewidth=0.8)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        if len(curves) > 5:  # too many to stand among the lines
            axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5), reverse=True)
        elif len(curves) > 1:
            axes.legend(frameon=False, fontsize=9)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    # The XML prologue has no place inside an HTML page, and ids must not clash between charts.
    svg = text[text.index("<svg") :]
    prefix = f"c{zlib.crc32(repr((x, y, [curve.name for curve in curves])).encode()):08x}-"
    svg = re.sub(r'id="([^"]+)"', rf'id="{prefix}\1"', svg)
    svg = re.sub(r'(xlink:href|href)="#([^"]+)"', rf'\1="#{prefix}\2"', svg)
    return re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}\1)", svg)
