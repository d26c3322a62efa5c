"""Tables of `ornstein rates` and `ornstein reproduce`, and the charts of pages, from made-up numbers."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ornstein import reproduce
from ornstein.cli.interpolate import Later
from ornstein.cli.main import main
from ornstein.errors import UsageError
from ornstein.interpolation import Between
from ornstein.lab import dimension, plots, rates, studies
from ornstein.lab.bench import Series
from ornstein.lab.slopes import Fit
from ornstein.page import Curve, Picture, Section, Table, chart, picture, render
from ornstein.page.curves import COLOURS, MARKS
from ornstein.reproduce import Claim, Finding, Findings, Line, Plot, Record
from ornstein.reproduce import Table as Numbers
from ornstein.reproduce.page import against_noise, draw, measured_and_reason, number, page, tally, value


def call(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, list[str], str]:
    status = main([str(arg) for arg in args])
    out, err = capsys.readouterr()
    return status, [line.rstrip() for line in out.splitlines() if line.strip()], err


def cells(line: str) -> list[str]:
    return re.split(r"\s{2,}", line.strip())


def fit(order: float | None, half: float | None = 0.011, last: float | None = 1.234, exact: bool = False) -> Fit:
    return Fit(order=order, half_width=half, last=last, local=(), counts=(4, 8), used=2, exact=exact)


SERIES = Series(sampler="ddim", target="G8", measure="W2", declared=1.0, counts=(4, 8, 16), evaluations=(5, 9, 17),
                errors=(0.5, 0.0321, None), fit=fit(1.02), verdict="agrees")  # fmt: skip


def report(*series: Series, **more: Any) -> rates.Report:
    base: dict[str, Any] = {"path": "vp", "grid": "log-snr", "quick": True, "seconds": 12.6, "skipped": ()}
    return rates.Report(series=series, **{**base, **more})


def test_rates_as_a_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    found = report(
        SERIES,
        replace(SERIES, measure="√KL", fit=fit(None, None, None), errors=(None, None, None), verdict="open", note="n"),
        replace(SERIES, sampler="heun", declared=1.5, fit=fit(2.0, exact=True), verdict="below", note="n"),
        skipped=(rates.Skipped(sampler="sa", target="M2", reason="no law"),),
        comparisons=(
            rates.Comparison(
                sampler="a", against="b", target="M1", measure="TV", evaluations=(4, 8), closer=(1.5, 2.25)
            ),
        ),
    )

    def measure(*args: Any, **how: Any) -> rates.Report:
        how.pop("progress")("something")
        asked.append((args, how))
        return found

    monkeypatch.setattr(rates, "measure", measure)
    status, lines, err = call(capsys, "rates", "--samplers", " ddim,,heun ", "--targets", "G8, M1", "--path", "flow",
                              "--grid", "karras", "--quick", "--jobs", 3)  # fmt: skip
    assert status == 1, "heun is below its order"
    assert asked == [((["ddim", "heun"], ["G8", "M1"]), {"path": "flow", "grid": "karras", "quick": True, "jobs": 3})]
    assert "measuring something\n" in err
    head = ["sampler", "target", "error in", "declared", "measured", "last pair", "steps", "evaluations", "error"]
    assert cells(lines[0]) == [*head, "verdict"]
    rows = [cells(line) for line in lines[2:] if not set(line.strip()) <= set("─ ")]
    assert rows[0] == ["ddim", "G8", "W2", "1", "1.02 ± 0.01", "1.23", "8", "9", "3.2e-02", "agrees"]
    assert rows[1] == ["G8", "√KL", "1", "not asymptotic", "–", "–", "–", "–", "open"]
    assert rows[2] == ["heun", "G8", "W2", "1.5", "exact", "1.23", "8", "9", "3.2e-02", "below"]
    assert lines[-5:] == [
        "sa on M2 not measured: no law",
        "a on M1, TV: times closer than b: 1.50 at 4, 2.25 at 8 evaluations",
        "ddim on G8, √KL: n",
        "heun on G8, W2: n",
        "vp path, log-snr grid, 13 s: below the declared order: heun",
    ]
    found = report(SERIES)
    status, lines, _ = call(capsys, "rates")
    assert status == 0
    assert asked[-1] == ((None, ["G8", "M1"]), {"path": "vp", "grid": "log-snr", "quick": False, "jobs": None})
    assert lines[-1] == "vp path, log-snr grid, 13 s: every sampler has at least its declared order"


def test_rates_as_a_document_with_plots(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = report(SERIES)
    monkeypatch.setattr(rates, "measure", lambda *args, **how: found)
    monkeypatch.setattr(plots, "write", lambda report, folder: [folder / "a", folder / "b"])
    assert main(["rates", "--json", "--plot", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == json.loads(json.dumps(found.to_json()))
    assert out.count("\n") == 1
    assert f"wrote 2 plots to {tmp_path}\n" in err

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(plots, "write", full)
    assert main(["rates", "--json", "--plot", str(tmp_path)]) == 2
    assert f"cannot write plots to {tmp_path}: No space left on device" in capsys.readouterr().err
    for words, said in (
        (("--targets", ","), "no target given: choose from G8"),
        (("--dimension", "--precision"), "--dimension and --precision are different studies: give one at a time"),
        (
            ("--score-error", "scale=2", "--dimension"),
            "--score-error and --dimension are different studies: give one at a time",
        ),
        (("--score-error", "scale=2", "--targets", ","), "no target given: a wrong score"),
    ):
        assert main(["rates", *words]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(("quick", "counts"), [((), (32, 128, 512)), (("--quick",), (32, 128))])
def test_a_wrong_score_as_a_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, quick: tuple[str, ...], counts: tuple[int, ...]
) -> None:
    asked: list[Any] = []
    effect = studies.Effect(sampler="ddim", target="G8", measure="√KL", counts=(32, 128), exact=(0.5, None),
                            changed=(0.25, 0.0321), converged=True)  # fmt: skip
    moving = replace(effect, sampler="heun", converged=False, changed=(0.5, None))
    found = studies.Study(study="score-error", change="2·s", path="ve", grid="karras", counts=(32, 128),
                          effects=(effect, moving, replace(moving, converged=True)),
                          skipped=(rates.Skipped(sampler="sa", target="M2", reason="no law"),))  # fmt: skip
    monkeypatch.setattr(studies, "score_error", lambda *args: asked.append(args[:-1]) or args[-1]("it") or found)
    words = ("rates", "--score-error", "scale=1", "--samplers", "ddim", "--path", "ve", "--grid", "karras", *quick)
    status, lines, err = call(capsys, *words)
    assert (status, "measuring it\n" in err) == (0, True)
    ((error, *rest),) = asked
    assert rest == [["ddim"], ["G8", "M1"], "ve", "karras", counts]
    assert str(error) == "2·s"
    assert [word for word in " ".join(lines[:2]).split() if word in {"exact", "wrong", "plateau"}] == [
        *("exact", "exact", "wrong", "wrong"),
        "plateau",
    ]
    rows = [cells(line) for line in lines if line.split() and line.split()[0] in {"ddim", "heun"}]
    assert rows == [
        ["ddim", "G8", "√KL", "5.0e-01", "–", "2.5e-01", "3.2e-02", "0.0321"],
        ["heun", "G8", "√KL", "5.0e-01", "–", "5.0e-01", "–", "still moving"],
        ["heun", "G8", "√KL", "5.0e-01", "–", "5.0e-01", "–", "still moving"],
    ]
    assert lines[-2:] == ["sa on M2 not measured: no law", "ve path, karras grid, score 2·s"]
    assert json.loads("".join(call(capsys, *words, "--json")[1])) == json.loads(json.dumps(found.to_json()))


@pytest.mark.parametrize(("quick", "counts"), [((), (64, 256, 1024)), (("--quick",), (64, 256))])
def test_single_precision_as_a_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quick: Any, counts: Any
) -> None:
    asked: list[Any] = []
    effect = studies.Effect(sampler="ddim", target="M2", measure="median", counts=(64,), exact=(1e-8,),
                            changed=(2e-7,), converged=False)  # fmt: skip
    found = studies.Study(study="precision", change="", path="vp", grid="log-snr", counts=(64,),
                          effects=(effect, replace(effect, target="M3")), skipped=())  # fmt: skip

    def precision(samplers: Any, **how: Any) -> studies.Study:
        how.pop("progress")("it")
        asked.append((samplers, how))
        return found

    saved: list[Any] = []
    monkeypatch.setattr(studies, "precision", precision)
    monkeypatch.setattr(plots, "draw_effects", lambda study, name: (study, name))
    monkeypatch.setattr(plots, "save", lambda figures, folder: saved.append((figures, folder)) or [folder])
    status, lines, err = call(capsys, "rates", "--precision", *quick, "--plot", tmp_path)
    assert (status, asked) == (0, [(None, {"path": "vp", "grid": "log-snr", "counts": counts})])
    assert saved == [({"precision-ddim": (found, "ddim")}, tmp_path)]
    assert f"wrote 1 plots to {tmp_path}" in err
    text = " ".join(lines)
    assert text.index("float32 network") < text.index("float32 state")
    assert "plateau" not in text
    rows = [cells(line) for line in lines if line.split()[0] == "ddim"]
    assert rows == [["ddim", name, "median", "1.0e-08", "2.0e-07"] for name in ("M2", "M3")]
    assert lines[-1] == "vp path, log-snr grid, float32 beside float64, on M2"


@pytest.mark.parametrize(("quick", "sizes"), [((), (4, 8, 128)), (("--quick",), (2, 4, 64))])
def test_dimensions_as_a_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quick: Any, sizes: Any
) -> None:
    asked: list[Any] = []
    both = ((0.1, 0.2), (0.3, 0.6))
    growth = dimension.Growth(sampler="ddim", family="product", measure="m", steps=9, evaluations=17,
                              dimensions=(4, 16), errors=both, exponent=0.5, half_width=0.0123)  # fmt: skip
    found = dimension.DimensionReport(
        path="vp", grid="log-snr", seconds=3.4, growths=(growth, replace(growth, family="x"))
    )

    def measured(samplers: Any, **how: Any) -> dimension.DimensionReport:
        how.pop("progress")("it")
        asked.append((samplers, how))
        return found

    saved: list[Any] = []
    monkeypatch.setattr(dimension, "dimension", measured)
    monkeypatch.setattr(plots, "draw_growth", lambda report, family: (report, family))
    monkeypatch.setattr(plots, "save", lambda figures, folder: saved.append((figures, folder)) or [])
    status, lines, _ = call(capsys, "rates", "--dimension", *quick, "--plot", tmp_path)
    how = dict(zip(("targets", "schedules", "trajectories"), sizes, strict=True))
    assert (status, asked) == (0, [(None, {"path": "vp", "grid": "log-snr", **how})])
    assert saved == [({"dimension-product": (found, "product"), "dimension-x": (found, "x")}, tmp_path)]
    assert cells(lines[0]) == ["family", "sampler", "evaluations", "d = 4", "d = 16", "exponent of d"]
    rows = [cells(line) for line in lines if line.split()[0] in {"product", "x"}]
    assert rows == [[name, "ddim", "17", "2.00e-01", "4.00e-01", "0.500 ± 0.012"] for name in ("product", "x")]
    assert " ".join(lines[-2:]).startswith("vp path, log-snr grid, 3 s: median distance to the fine solution")


# ------------------------------------------------------------------------------------------------------------ reproduce


FINDINGS = (
    Finding(claim="A", source="S1", expected="E1", measured="M1.", verdict="reproduced", value=1.23456,
            interval=(1.0, 1.5), effect=-3.0, noise=2.0),
    Finding(claim="B", source="S2", expected="E2", measured="M2", verdict="not reproduced", reason="R2", value=2.0,
            effect=0.5, noise=0.0),
    Finding(claim="C", source="S3", expected="E3", measured="", verdict="not testable here", reason="R3."),
    Finding(claim="D", source="S4", expected="E4", measured="M4", verdict="inconclusive", reason="R4", effect=4.0),
)  # fmt: skip


def test_reproductions_as_text(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runs: list[Any] = []

    class Made:
        name, title, arxiv, version = "made", "Made up", "0000.1", 7
        claims = dict.fromkeys("ABCD", Claim("none"))

        def run(self, cells: Any, budget: Any) -> Findings:
            runs.append((cells.folder, cells.experiment, cells.version, cells.jobs, budget.scale))
            cells.note("a line")
            return Findings(findings=FINDINGS)

    monkeypatch.setattr(reproduce, "EXPERIMENTS", {"one": ("x", "X"), "two": ("x", "X")})
    monkeypatch.setattr(reproduce, "experiment", lambda name: Made())
    monkeypatch.setattr("time.perf_counter", iter([1.0, 43.4, 50.0, 51.0, 1.0, 2.0, 3.0, 4.0]).__next__)
    status, lines, err = call(capsys, "reproduce", "one", "two", "one", "--out", tmp_path / "o", "--budget", 0.25,
                              "--jobs", 2)  # fmt: skip
    assert status == 0
    assert runs == [(tmp_path / "o" / "cells" / name, name, 7, 2, 0.25) for name in ("one", "two")]
    assert err == "one: a line\none: 42 s\ntwo: a line\ntwo: 1 s\n"
    half = [line.strip() for line in lines[: len(lines) // 2]]
    assert half == [
        "Made up (arXiv 0000.1)",
        *("REPRODUCED: A", "expected  E1", "measured  M1."),
        "value     1.235 [1, 1.5]; effect against noise: -3 against 2: 1.5 times",
        *("NOT REPRODUCED: B", "expected  E2", "measured  M2"),
        *("value     2; effect against noise: 0.5 (exact, no seeds)", "because   R2"),
        *("NOT TESTABLE HERE: C", "expected  E3", "because   R3."),
        *("INCONCLUSIVE: D", "expected  E4", "measured  M4", "because   R4"),
        f"4 claims: 1 reproduced, 1 not reproduced, 1 inconclusive, 1 not testable here; {tmp_path / 'o' / 'one.html'}",
    ]
    tree = json.loads((tmp_path / "o" / "two.json").read_text("utf-8"))
    assert {key: tree[key] for key in ("experiment", "title", "arxiv", "version", "budget", "command", "cells")} == {
        "experiment": "two",
        "title": "Made up",
        "arxiv": "0000.1",
        "version": 7,
        "budget": 0.25,
        "cells": 0,
        "command": "ornstein reproduce two --budget 0.25",
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", tree["date"])
    assert set(tree["machine"]) == {"processor", "cores", "threads", "python", "torch"}
    assert tree["machine"]["torch"] == torch.__version__
    assert tree["machine"]["processor"]
    cached = tmp_path / "o" / "cells" / "one"
    (cached / "files").mkdir(parents=True)
    for name in ("cell.json", "other.txt"):
        (cached / name).write_text("{}")
    status, lines, _ = call(capsys, "reproduce", "one", "--out", tmp_path / "o", "--fresh", "--json")
    assert [path.name for path in cached.iterdir()] == ["other.txt"]
    assert json.loads("\n".join(lines))[0]["findings"][1]["reason"] == "R2"


def test_words_of_a_finding() -> None:
    a, b, c, d = FINDINGS
    assert [measured_and_reason(one) for one in FINDINGS] == ["M1.", "M2; R2.", "R3.", "M4; R4."]
    assert [value(one) for one in (a, b, c)] == ["1.235 [1, 1.5]", "2", "–"]
    assert [against_noise(one) for one in (a, b, c, d)] == [
        "-3 against 2: 1.5 times",
        "0.5 (exact, no seeds)",
        "–",
        "4",
    ]
    assert tally([a]) == "1 claim: 1 reproduced"
    assert tally([]) == "0 claims: "
    assert [number(one) for one in (float("nan"), float("inf"), 7, "x", 0.000123456)] == [
        "–",
        "–",
        "7",
        "x",
        "0.0001235",
    ]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(119.4, "119 s"), (120.0, "2 min"), (7199.0, "120 min"), (7200.0, "2.0 h"), (9000.0, "2.5 h")],
)
def test_the_page_of_a_record(seconds: float, shown: str) -> None:
    table = Numbers(title="T", head=["a", "b"], rows=[["r", 0.123456]], note="N")
    plot = Plot(title="P", x="x", y="y", lines=[Line(name="l", x=[1.0, 2.0], y=[1.0, None])])
    record = Record(experiment="e", title="Title", arxiv="1.2", version=1, budget=0.5, command="C",
                    date="2026-05-06T07", seconds=seconds, cells=1, machine={"processor": "CPU", "torch": "9"},
                    found=Findings(findings=FINDINGS[:2], tables=[table], plots=[plot], notes=["a note"]))  # fmt: skip
    html = page(record)
    facts = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", html))
    assert facts == {
        "paper": "arXiv 1.2",
        "budget": "0.5",
        "computing": shown,
        "processor": "CPU",
        "torch": "9",
        "date": "2026-05-06",
    }
    assert re.findall(r"<h2>(.*?)</h2>", html) == ["Claims", "Plots", "T", "Notes"]
    assert "2 claims: 1 reproduced, 1 not reproduced. Every number" in html
    assert "✓ reproduced" in html
    assert "✗ not reproduced" in html
    assert "A\nS1\n\nExpected: E1" in html
    assert "1.235 [1, 1.5]\n-3 against 2: 1.5 times" in html
    assert '<td data-head="b">0.1235</td>' in html
    assert "<code>ornstein reproduce</code>" in html
    bare = page(replace(record, found=Findings(findings=FINDINGS[:1])))
    assert re.findall(r"<h2>(.*?)</h2>", bare) == ["Claims"]


# ---------------------------------------------------------------------------------------------------------------- pages


def paths(svg: str) -> list[tuple[str, list[tuple[float, float]], str]]:
    """(colour, points, style) of every curve of a chart."""
    out = []
    for d, style in re.findall(r'<path d="([^"]+)"[^>]*?style="([^"]*)"', svg):
        colour = re.search(r"stroke: (#[0-9a-f]{6})", style)
        points = [(float(x), float(y)) for x, y in re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", d)]
        if (colour and "fill: none" in style and "stroke-width: 1.8" in style) or "stroke-dasharray" in style:
            out.append((colour[1] if colour else "", points, style))
    return out


def test_a_chart_shows_its_points_on_its_axes() -> None:
    curves = [Curve(name="one", x=[1.0, 10.0, 100.0], y=[1.0, 0.1, 0.01]),
              Curve(name="two", x=[1.0, 10.0, 100.0], y=[1.0, 0.5, 0.25], style=10),
              Curve(name="law", x=[1.0, 100.0], y=[1.0, 0.01], theory=True)]  # fmt: skip
    assert len(COLOURS) == len(MARKS) == 8
    logs = paths(chart(curves, x="n", y="e", log_x=True, log_y=True))[:3]  # the legend repeats them
    assert [colour for colour, _, _ in logs] == [COLOURS[0], COLOURS[2], "#777777"]
    (x0, y0), (x1, y1), (x2, y2) = logs[0][1]
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.01)
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.01)
    assert x0 < x1
    assert y0 < y1, "down the page"
    assert "dasharray" in logs[2][2]
    (x0, y0), (x1, y1), (x2, y2) = paths(chart(curves, x="n", y="e"))[0][1]
    assert (x2 - x1) / (x1 - x0) == pytest.approx(10.0, rel=1e-3)
    assert (y2 - y1) / (y1 - y0) == pytest.approx(0.1, rel=1e-2)
    svg = chart(curves, x="steps", y="error", log_x=True, ticks=[3, 30])
    for word in ("steps", "error", "one", "two", "law", "3", "30"):
        assert f">{word}<" in svg
    assert svg.startswith("<svg")
    assert svg.count("<use") > chart(curves, x="steps", y="error", log_x=True, ticks=[3, 30], marks=False).count("<use")
    assert ">one<" not in chart(curves[:1], x="n", y="e"), "one curve needs no legend"
    many = [replace(curves[0], name=f"curve {i}") for i in range(6)]
    ends = [paths(chart(many[:n], x="n", y="e"))[0][1][-1][0] for n in (5, 6)]
    assert ends[1] < ends[0], "more than five names stand beside the axes"
    assert all(f">curve {i}<" in chart(many, x="n", y="e") for i in range(6))


def test_a_plot_of_a_record_has_gaps_and_theory() -> None:
    gap = Line(name="a", x=[1.0, 2.0, 4.0, 8.0], y=[1.0, None, 0.25, 0.125])
    lines = [gap, Line(name="b", x=[1.0, 8.0], y=[1.0, 0.1], theory=True)]
    svg = draw(Plot(title="T", x="n", y="e", lines=lines, log_y=False))
    curves = [
        Curve(name="a", x=gap.x, y=[1.0, float("nan"), 0.25, 0.125]),
        Curve(name="b", x=[1.0, 8.0], y=[1.0, 0.1], theory=True),
    ]
    assert svg == chart(curves, x="n", y="e", log_x=True)


def test_a_picture_is_a_grid_of_images() -> None:
    images = torch.zeros(5, 3, 4, 6)
    shown = picture(images, "alt", columns=2, scale=3)
    assert (shown.width, shown.height, shown.alt) == (3 * (2 * 8 + 2), 3 * (3 * 6 + 2), "alt")
    assert shown.uri.startswith("data:image/png;base64,iVBORw0KGgo")
    assert picture(images, "alt", columns=2).width == 18
    html = render("T", "L", [Section(title="S", pictures=[shown], notes=["n1"], command="c"),
                             Section(title="S2", table=Table(head=["h", "p", "q"], rows=[["first", shown, "x"]]))],
                  facts=[("f", "v")], made_by="me")  # fmt: skip
    assert html.count(shown.uri) == 2
    assert '<th scope="row">first</th><td class="picture" data-head="p"><img' in html
    assert "<code>me</code>" in html
    assert "<dt>f</dt><dd>v</dd>" in html
    assert "<code>ornstein demo</code>" in render("T", "L", [])
    assert '<dl class="facts">' not in render("T", "L", [])
    assert Picture(png=b"a", alt="", width=1, height=1).uri == "data:image/png;base64,YQ=="


def test_later_parts_of_a_call_see_their_own_rows() -> None:
    asked: list[range] = []

    def latents(rows: range, device: torch.device, dtype: torch.dtype) -> Any:
        asked.append(rows)
        return SimpleNamespace(device=device, dtype=dtype)

    found: Any = Later(latents=latents, start=4)(range(2, 5), torch.device("cpu"), torch.float64)
    assert asked == [range(6, 9)]
    assert (found.device, found.dtype) == (torch.device("cpu"), torch.float64)
    with pytest.raises(UsageError):
        Between(a=0, b=1, frames=1)
