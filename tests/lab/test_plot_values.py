"""What the lab's pictures show: every line, its numbers and its words."""

import math
from dataclasses import replace

import pytest

from ornstein.lab.dimension import DimensionReport, Growth
from ornstein.lab.plots import draw, draw_effects, draw_growth, save, shown, write
from ornstein.lab.rates import Report, Series
from ornstein.lab.slopes import Fit
from ornstein.lab.studies import Effect, Study

FIT = Fit(order=1.96, half_width=0.04, last=2.0, local=(2.0, 2.0), counts=(8, 16, 32), used=3)
FIRST = Series(sampler="heun", target="G8", measure="√KL", declared=2.0, counts=(8, 16, 32), evaluations=(16, 32, 64),
               errors=(0.4, 0.1, None), fit=FIT, verdict="agrees")  # fmt: skip
SECOND = replace(FIRST, target="M1", measure="TV", declared=3.0, errors=(0.2, 0.0, 0.01))
OTHER = replace(FIRST, sampler="ddim", declared=1.0)
REPORT = Report(path="flow", grid="karras", quick=True, seconds=1.0, series=(FIRST, OTHER, SECOND), skipped=())


def lines(figure):
    """(label, x, y, colour, marker, dashes) of every curve."""
    (axes,) = figure.axes
    return [
        (str(one.get_label()), list(one.get_xdata()), list(one.get_ydata()), one.get_color(), one.get_marker(), one)
        for one in axes.lines
    ]


def texts(figure):
    (axes,) = figure.axes
    return [one.get_text() for one in axes.texts]


def test_measured_orders_in_a_few_characters():
    assert shown(FIRST) == "order 1.96 ± 0.04"
    assert shown(replace(FIRST, fit=replace(FIT, exact=True))) == "exact"
    assert shown(replace(FIRST, fit=replace(FIT, order=None))) == "not asymptotic"
    assert shown(replace(FIRST, fit=replace(FIT, half_width=None))) == "not asymptotic"


def test_errors_over_evaluations_with_the_declared_orders():
    """Series of the one sampler, without missing or vanishing errors; theory at half of the least last error."""
    figure = draw(REPORT, "heun")
    (axes,) = figure.axes
    one, two, theory, steeper = lines(figure)
    assert one[:5] == ("G8 √KL: order 1.96 ± 0.04", [16, 32], [0.4, 0.1], "#0072B2", "o")
    assert two[:5] == ("M1 TV: order 1.96 ± 0.04", [16, 64], [0.2, 0.01], "#D55E00", "s")
    assert theory[0] == "theory: error ∝ n^(−2)"
    assert (theory[1], theory[2]) == ([16, 32], pytest.approx([0.2, 0.05]))
    assert steeper[0] == "theory: error ∝ n^(−3)"
    assert (steeper[1], steeper[2]) == ([16, 64], pytest.approx([0.005 * 64, 0.005]))
    assert [line[5].get_linestyle() for line in (one, theory)] == ["-", "--"]
    assert axes.get_title(loc="left") == "heun: declared order 2 and 3"
    assert texts(figure) == ["FLOW path, karras grid, σ̄ from 80"]
    assert axes.get_xlabel() == "evaluations of the denoiser"
    assert axes.get_ylabel() == "error against the exact law"
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert list(axes.get_xticks()) == [16, 32, 64]
    assert [one.get_text() for one in axes.get_legend().get_texts()] == [
        line[0] for line in (one, two, theory, steeper)
    ]


def test_theory_hangs_below_the_lowest_curve_of_its_order():
    lower = replace(SECOND, declared=2.0, errors=(0.04, 0.02, 0.002))
    figure = draw(replace(REPORT, series=(FIRST, lower)), "heun")
    *_, theory = lines(figure)
    assert (theory[1], theory[2]) == ([16, 32, 64], pytest.approx([0.001 * 16, 0.001 * 4, 0.001]))
    nothing = replace(FIRST, errors=(None, None, 0.0))
    assert lines(draw(replace(REPORT, series=(nothing,)), "heun")) == []


def test_more_series_than_colours():
    many = tuple(replace(FIRST, target=f"T{i}") for i in range(8))
    found = lines(draw(replace(REPORT, series=many), "heun"))
    assert [line[0].split()[0] for line in found[:8]] == [f"T{i}" for i in range(8)]
    assert found[6][3:5] == found[0][3:5] == ("#0072B2", "o")
    assert len({line[3:5] for line in found[:6]}) == 6


def test_ticks_stand_where_something_was_measured():
    """None within a fifth of its neighbour below, and ten at most."""
    near = replace(
        FIRST, counts=tuple(range(6)), evaluations=(10, 11, 12, 14, 15, 100), errors=(0.5, 0.4, 0.3, 0.2, 0.1, 0.05)
    )
    (axes,) = draw(replace(REPORT, series=(near,)), "heun").axes
    assert list(axes.get_xticks()) == [10, 12, 15, 100]
    assert axes.xaxis.get_major_formatter()(12.0, 0) == "12"
    evaluations = tuple(2**k for k in range(1, 13))
    long = replace(FIRST, counts=evaluations, evaluations=evaluations, errors=tuple(1.0 / n for n in evaluations))
    (axes,) = draw(replace(REPORT, series=(long,)), "heun").axes
    assert list(axes.get_xticks()) == list(evaluations[::2])
    assert list(axes.get_xticks(minor=True)) == []


GROWTH = Growth(sampler="heun", family="mixture", measure="median distance", steps=16, evaluations=32,
                dimensions=(4, 16, 64), errors=((0.1, 0.2, 0.6), (0.3, 0.4, 0.8)),
                exponent=0.52, half_width=0.1)  # fmt: skip


def test_error_over_dimension():
    """Means with every draw beside them, and √d at half of the least error."""
    other = replace(GROWTH, sampler="ddim", errors=((0.05, 0.1, 0.2), (0.15, 0.3, 0.4)))
    left = replace(GROWTH, family="product")
    report = DimensionReport(path="ve", grid="log-snr", seconds=1.0, growths=(left, GROWTH, other))
    figure = draw_growth(report, "mixture")
    (axes,) = figure.axes
    found = lines(figure)
    assert found[0][:3] == ("heun: d^(0.52 ± 0.10)", [4, 16, 64], pytest.approx([0.2, 0.3, 0.7]))
    assert [line[2] for line in found[1:3]] == [[0.1, 0.2, 0.6], [0.3, 0.4, 0.8]]
    assert found[3][:3] == ("ddim: d^(0.52 ± 0.10)", [4, 16, 64], pytest.approx([0.1, 0.2, 0.3]))
    assert found[3][3:5] == ("#D55E00", "s")
    assert found[-1][:3] == ("√d, for comparison", [4, 16, 64], pytest.approx([0.025, 0.05, 0.1]))
    assert axes.get_xlabel() == "dimension d"
    assert axes.get_ylabel() == "median distance to the fine solution"
    assert axes.get_title(loc="left") == "mixture targets, 16 steps"
    assert texts(figure) == ["VE path, log-snr grid"]
    assert list(axes.get_xticks()) == [4, 16, 64]


@pytest.mark.parametrize(
    ("study", "y", "words"),
    [
        ("score-error", "error against the exact law", ("exact score", "score 1.01·s")),
        ("precision", "distance to the run in float64", ("float32 network", "float32 state")),
    ],
)
def test_errors_with_and_without_the_change(study, y, words):
    effect = Effect(sampler="heun", target="G8", measure="√KL", counts=(4, 8, 16), exact=(0.4, None, 0.1),
                    changed=(0.5, 0.3, 0.0), converged=True)  # fmt: skip
    whole = Study(study=study, change="1.01·s", path="vp", grid="karras", counts=(4, 8, 16),
                  effects=(replace(effect, sampler="ddim"), effect), skipped=())  # fmt: skip
    figure = draw_effects(whole, "heun")
    (axes,) = figure.axes
    exact, changed = lines(figure)
    assert exact[:3] == (f"G8 √KL: {words[0]}", [4, 16], [0.4, 0.1])
    assert changed[:3] == (f"G8 √KL: {words[1]}", [4, 8], [0.5, 0.3])
    assert [line[5].get_linestyle() for line in (exact, changed)] == [":", "-"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("steps", y)
    assert axes.get_title(loc="left") == "heun"
    assert texts(figure) == ["VP path, karras grid"]
    assert list(axes.get_xticks()) == [4, 8, 16]


def test_files_are_named_after_the_samplers(tmp_path):
    """One a sampler in the order of the report, or those that are named; signs become dashes; folders are made."""
    folder = tmp_path / "a" / "b"
    assert write(REPORT, folder) == [folder / "heun.png", folder / "ddim.png"]
    assert write(REPORT, folder / "c", ["ddim"]) == [folder / "c" / "ddim.png"]
    (path,) = save({"x (1.5)/µ": draw(REPORT, "ddim")}, folder)
    assert path.name == "x-1.5-.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    assert sorted(one.name for one in folder.iterdir()) == ["c", "ddim.png", "heun.png", "x-1.5-.png"]
    assert math.isclose(draw(REPORT, "ddim").get_figwidth(), 6.4)
