"""What the demo's page says: every number, picture, curve and command in its own place."""

from __future__ import annotations

import itertools
import json
import shlex
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

import ornstein as orn
from ornstein import grids, sampling
from ornstein.cli import demo, demo_args, demo_few, demo_guides, demo_page
from ornstein.cli.demo import compare, reference
from ornstein.cli.demo_args import Cell, DemoArgs, live_command
from ornstein.cli.demo_few import Few
from ornstein.cli.demo_guides import Led
from ornstein.cli.main import main, parse
from ornstein.cli.sample import SampleArgs
from ornstein.page import Curve
from ornstein.runs import TrainedModel, open_own


class Page(HTMLParser):
    """The parts of a page as plain values: sections with their tables, pictures, captions, notes and commands."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.sections: list[dict[str, Any]] = [{}]
        self.facts: list[str] = []
        self.title = self.lead = ""
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag == "section":
            self.sections.append(
                {"rows": [], "pictures": [], "captions": [], "notes": [], "pre": "", "p": "", "h2": ""}
            )
        elif tag == "tr":
            self.sections[-1]["rows"].append([])
        elif tag in ("td", "th"):
            self.sections[-1]["rows"][-1].append("")
        elif tag == "img":
            shown = (named["alt"], int(named["width"] or 0), int(named["height"] or 0))
            if "td" in self.open:
                self.sections[-1]["rows"][-1][-1] = shown
            else:
                self.sections[-1]["pictures"].append(shown)
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        tag = self.open[-1] if self.open else ""
        if tag in ("td", "th"):
            self.sections[-1]["rows"][-1][-1] += data
        elif tag in ("p", "pre", "h2") and len(self.sections) > 1:
            self.sections[-1][tag] += data
        elif tag == "figcaption":
            self.sections[-1]["captions"].append(data)
        elif tag == "li":
            self.sections[-1]["notes"].append(data)
        elif tag in ("dt", "dd"):
            self.facts.append(data)
        elif tag == "h1":
            self.title += data
        elif tag == "p":
            self.lead += data


@pytest.fixture
def charts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[Curve], dict[str, Any]]]:
    """Every chart that is drawn: its curves and its options."""
    drawn: list[tuple[list[Curve], dict[str, Any]]] = []

    def record(curves: list[Curve], **options: Any) -> str:
        drawn.append((list(curves), options))
        return "<svg></svg>"

    monkeypatch.setattr(demo_page, "chart", record)
    return drawn


ARGS = DemoArgs(out=Path("o/d"), model="mine", images=64, n=2, seed=3)
NAMES, COUNTS = ("ddpm", "ddim", "heun", "dpmpp-2m", "unipc", "auto"), (5, 10, 20, 50)


@pytest.fixture
def whole(tiny_run: Path, charts: list[Any], tmp_path: Path) -> tuple[Page, TrainedModel, list[Cell]]:
    run = replace(open_own(tiny_run), images=12_345, details={"card": {"data": "discs", "note": "N", "command": "C"}})
    cells = [Cell(sampler=name, evaluations=n, seconds_per_image=i + n / 1000, distance=None if i == 0 else i / n)
             for i, name in enumerate(NAMES) for n in COUNTS]  # fmt: skip
    pictures = {(name, n): torch.zeros(2, 3, 8, 8) for name in NAMES for n in COUNTS}
    shown = [
        Few(model=name, evaluations=n, seconds_per_image=n / 8, images=torch.zeros(2, 3, side, side), command=f"do {n}")
        for name, n, side in (("a", 1, 64), ("b", 3, 16))
    ]
    fine = torch.zeros(2, 3, 16, 16)
    led = [
        Led(guide=guide, images=torch.zeros(2, 3, 64, 64), command=f"lead {i}") for i, guide in enumerate(("", "a:b"))
    ]
    opening = [
        demo_guides.first(ARGS, led[0]), demo_few.section(ARGS, shown), demo_guides.guided(ARGS, led),
        demo_guides.rare(ARGS, led),
    ]  # fmt: skip
    html = demo_page.page(ARGS, run, cells, pictures, fine, opening, None)
    return Page(html), run, cells


def test_constants_of_the_demo() -> None:
    assert (demo_args.SAMPLERS, demo_args.EVALUATIONS, demo_args.FINE) == (NAMES, COUNTS, 200)
    assert demo_few.SHOWN == (
        ("critters-ect", None, (1, 2)),
        ("critters-64", "auto", (1, 2, 3, 10)),
        ("critters-udpm", None, (3,)),
        ("critters", "auto", (3, 10)),
    )


def test_every_section_shows_its_numbers(
    whole: tuple[Page, TrainedModel, list[Cell]], charts: list[tuple[list[Curve], dict[str, Any]]]
) -> None:
    page, run, _ = whole
    million = f"{run.parameters / 1e6:.2f} million"
    assert page.title == "Critters, drawn from noise"
    assert page.facts == [
        "parameters",
        million,
        "trained on",
        "12,345 images",
        "resolution",
        "16 × 16",
        "data",
        "discs",
    ]
    first, few, guided, rare, same, distance, seconds, fine, measured = page.sections[1:]
    name, _, _, n = demo_guides.BEST
    assert [alt for alt, *_ in first["pictures"]] == [f"{n} pictures by {name}"], "the best is seen first"
    assert first["pre"] == "lead 0"
    assert guided["rows"][1:] == [
        [label, (f"2 pictures, {label}", 134, 68)] for label in ("no guide", "a:b")
    ]  # fmt: skip
    assert [row[0] for row in rare["rows"][1:]] == ["as the model draws", "a:b"]
    assert guided["pre"] == rare["pre"] == "lead 0\nlead 1"
    heads = [f"{n} evaluations" for n in COUNTS]

    assert same["h2"] == "The same noise under six samplers"
    assert same["rows"][0] == ["sampler", *heads]
    assert same["rows"][1:] == [
        [name, *((f"2 images by {name} with {n} evaluations", 22, 12) for n in COUNTS)] for name in NAMES
    ]
    words = "ornstein sample mine --sampler {} --evaluations {} --seed 3 --n 2 --out o/d/{}-{}"
    assert same["pre"].splitlines() == [words.format(name, 10, name, 10) for name in NAMES]

    assert distance["rows"][0] == ["sampler", *map(str, COUNTS)]
    assert distance["rows"][1:] == [[name, *(f"{i / n:.4f}" for n in COUNTS)] for i, name in enumerate(NAMES) if i]
    assert distance["captions"] == ["2 images, seed 3"]
    assert distance["pre"] == "ornstein demo --model mine --seed 3 --n 2 --images 0 --out o/d"
    assert "200 evaluations of unipc-3" in distance["p"]
    curves, options = charts[0]
    assert curves == [Curve(name=name, style=i, x=list(COUNTS), y=[i / n for n in COUNTS])
                      for i, name in enumerate(NAMES) if i]  # fmt: skip
    assert options == {"x": "network evaluations", "y": "RMS distance", "log_x": True, "log_y": True, "ticks": COUNTS}

    assert seconds["rows"][0] == ["sampler", *map(str, COUNTS)]
    assert seconds["rows"][1:] == [[name, *(f"{i + n / 1000:.3f}" for n in COUNTS)] for i, name in enumerate(NAMES)]
    assert seconds["pre"] == words.format("dpmpp-2m", 20, "dpmpp-2m", 20)
    assert "Batches of 2" in seconds["p"]

    # A picture of 64 pixels is shown at its size, one of 16 four times as large: two side by side and three gaps.
    assert few["rows"] == [
        ["model", "evaluations", "seconds an image", "pictures"],
        ["a", "1", "0.125", ("2 images of a in 1 evaluations", 134, 68)],
        ["b", "3", "0.375", ("2 images of b in 3 evaluations", 4 * 38, 4 * 20)],
    ]
    assert few["pre"] == "do 1\ndo 3"

    assert fine["pictures"] == [("model, 200 evaluations", 76, 40), ("training data", 76, 40)]
    assert fine["pre"] == (
        "ornstein sample mine --sampler unipc-3 --grid log-snr --steps 200 --seed 3 --n 2 --out o/d/fine"
    )
    assert measured["h2"] == "Distance to the data"
    assert "first pictures is noise" in same["p"], "a panel with noise on it says why"
    assert len(page.sections) == 10, "nothing is known of the training of this model"
    assert len(charts) == 3


def test_distances_measured_beforehand(
    whole: tuple[Page, TrainedModel, list[Cell]], charts: list[tuple[list[Curve], dict[str, Any]]]
) -> None:
    page, _, _ = whole
    data = json.loads((Path(orn.__file__).parent / "weights" / "critters" / "distances.json").read_text("utf-8"))
    section = page.sections[9]
    names = [name for name in NAMES if any(cell["sampler"] == name for cell in data["cells"])]
    counts = sorted({cell["evaluations"] for cell in data["cells"]})
    by = {(cell["sampler"], cell["evaluations"]): cell for cell in data["cells"]}
    assert section["rows"][0] == ["FD-lite0", *map(str, counts)]
    assert sorted(section["rows"][1:]) == sorted(
        [name, *(f"{by[name, n]['FD-lite0']:.1f}" for n in counts)] for name in names
    )
    assert section["captions"] == ["Fréchet distance", "Kernel distance"]
    assert section["pre"] == data["command"]
    assert f"{data['n']} samples of each cell against {data['n_data']} training pictures" in section["p"]
    assert data["floor_text"].strip() in section["p"]
    for (curves, options), key, log in zip(charts[1:], ("FD-lite0", "KID-lite0"), (True, False), strict=True):
        assert {curve.name: (curve.style, list(curve.x), list(curve.y)) for curve in curves} == {
            name: (NAMES.index(name), counts, [by[name, n][key] for n in counts]) for name in names
        }
        assert (options["y"], options["log_x"], options.get("log_y", False)) == (key, True, log)
        assert options["ticks"] == counts


def test_the_training_of_the_model_and_the_live_run(
    tiny_run: Path, charts: list[tuple[list[Curve], dict[str, Any]]], tmp_path: Path
) -> None:
    run = replace(open_own(tiny_run), folder=tmp_path, details={"card": {"note": "A remark.", "command": "made so"}})
    (tmp_path / "history.json").write_text(json.dumps({"images": [1, 2], "levels": {"low": [3, 4], "high": [5, 6]}}))
    html = demo_page.page(ARGS, run, [], {(n, c): torch.zeros(1, 3, 4, 4) for n in NAMES for c in COUNTS},
                          torch.zeros(1, 3, 16, 16), [], tiny_run)  # fmt: skip
    section = Page(html).sections[-1]
    assert section["h2"] == "Training"
    assert section["notes"] == ["A remark."]
    assert section["pre"] == f"made so\n{live_command(ARGS)}"
    after = "The live run after 64 images: a start, for minutes more see ornstein train --minutes"
    assert section["captions"] == [after,
                                   "The shipped model's training, by noise level (log-SNR)",
                                   "The live run, just now"]  # fmt: skip
    assert section["pictures"] == [
        ("The live run after 64 images: a start, for minutes more see ornstein train --minutes", 8 * 18 + 2, 20)
    ]
    (levels, how), (live, options) = charts[-2:]
    assert levels == [Curve(name="low", x=[1, 2], y=[3, 4]), Curve(name="high", x=[1, 2], y=[5, 6])]
    assert (how["log_x"], how["log_y"], how["marks"]) == (True, True, False)
    lines = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert live == [Curve(name="loss", x=[line["images"] for line in lines], y=[line["loss"] for line in lines])]
    assert (options.get("log_x", False), options["log_y"]) == (False, True)


def test_cells_are_samples_of_the_same_noise_beside_a_fine_solution(
    bold_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.perf_counter", itertools.count(10.0, 6.0).__next__)
    run = open_own(bold_run)
    cond = run.cond(labels=[0, 1])  # the classes in turn, as the command draws them
    fine = reference(run, 2, 4)
    expected = sampling.sample(run.denoiser, 2, sampler="unipc-3", grid=grids.log_snr(200), seed=4, cond=cond)
    assert torch.equal(fine, expected)
    cells, pictures = compare(run, fine, 2, 4)
    assert [(cell.sampler, cell.evaluations) for cell in cells] == [(name, n) for name in NAMES for n in COUNTS]
    for cell in cells:
        images = pictures[cell.sampler, cell.evaluations]
        if cell.sampler == "ddpm":
            assert cell.distance is None
        else:
            assert cell.distance == pytest.approx(torch.nn.functional.mse_loss(images, fine).item() ** 0.5, rel=1e-5)
        if cell.evaluations == 5:
            expected = sampling.sample(run.denoiser, 2, sampler=cell.sampler, evaluations=5, seed=4, cond=cond)
            assert torch.equal(images, expected)
        assert cell.seconds_per_image == 3.0


def test_led_pictures_are_what_their_command_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_guides, "STEPS", 2)
    plain, blue = demo_guides.led(DemoArgs(out=Path("o"), n=1, seed=5), ("", "colour:#2266dd:20"), "x")
    model = orn.load("critters")
    torch.testing.assert_close(plain.images, sampling.sample(model, 1, sampler="ddim", steps=2, seed=5).clamp(-1, 1))
    assert not torch.equal(plain.images, blue.images)
    for place, one in enumerate((plain, blue)):
        words = parse(SampleArgs, "ornstein sample", shlex.split(one.command)[2:])
        assert (words.run, words.sampler, words.steps, words.seed, words.n) == ("critters", "ddim", 2, 5, 1)
        assert words.out == Path(f"o/x-{place}")
        assert list(words.guide or ()) == ([one.guide] if one.guide else [])


def test_pictures_of_few_evaluations_are_what_their_command_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.perf_counter", itertools.count(10.0, 6.0).__next__)
    monkeypatch.setattr(demo_few, "SHOWN", (("critters-udpm", None, (3,)), ("critters-ect", "auto", (1, 2))))
    args = DemoArgs(out=Path("o"), n=2, seed=5)
    shown = demo_few.few(args)
    names = [(name, sampler, n) for name, sampler, counts in demo_few.SHOWN for n in counts]
    assert [(one.model, one.evaluations) for one in shown] == [(name, n) for name, _, n in names]
    for one, (name, sampler, n) in zip(shown, names, strict=True):
        chosen = f" --sampler {sampler}" if sampler else ""
        assert one.command == f"ornstein sample {name}{chosen} --evaluations {n} --seed 5 --n 2 --out o/{name}-{n}"
        assert one.record() == {"model": name, "evaluations": n, "seconds_per_image": 3.0}
        assert float(one.images.abs().max()) <= 1.0
        words = parse(SampleArgs, "ornstein sample", one.command.split()[2:])
        assert (words.run, words.sampler, words.evaluations, words.seed) == (name, sampler, n, 5)
    first, last = shown[0], shown[-1]
    for one, sampler in ((first, None), (last, "auto")):
        expected = sampling.sample(orn.load(one.model), 2, sampler=sampler, evaluations=one.evaluations, seed=5)
        torch.testing.assert_close(one.images, expected.clamp(-1, 1))


@pytest.mark.parametrize(("words", "said"), [
    (("--n", "0"), "--n must be at least 1, got 0"),
    (("--images", "-1"), "--images must be at least 0, got -1"),
    (("--out", __file__), "is a file: name a folder"),
])  # fmt: skip
def test_what_cannot_be_shown_is_refused(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str) -> None:
    assert main(["demo", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err


def test_the_demo_itself(
    capsys: pytest.CaptureFixture[str], tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its stages meet: the live training that the page's command repeats, the document, and the sentence."""
    from ornstein import training
    from ornstein.cli.train import parse as parse_training

    trained: list[Any] = []
    monkeypatch.setattr(training, "train", trained.append)
    monkeypatch.setattr(demo, "EVALUATIONS", (5, 6))
    monkeypatch.setattr(demo_page, "EVALUATIONS", (5, 6))
    monkeypatch.setattr(demo, "FINE", 7)
    monkeypatch.setattr(demo_few, "SHOWN", (("critters-udpm", None, (3,)),))
    monkeypatch.setattr(demo_guides, "BEST", ("critters-udpm", "ancestral", 3, 1))
    monkeypatch.setattr(demo_guides, "led", lambda *_: [])
    monkeypatch.setattr(demo_page, "page", lambda *args: f"page with {args[-1]}")
    words = ["demo", "--model", str(tiny_run), "--n", "1", "--seed", "2", "--out", str(tmp_path / "d")]
    assert main([*words, "--images", "0", "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert not trained
    assert (found["model"], found["seed"], found["n"], found["live"]) == (str(tiny_run), 2, 1, None)
    assert found["page"] == str(tmp_path / "d" / "index.html")
    assert (tmp_path / "d" / "index.html").read_text() == "page with None"
    assert [(cell["sampler"], cell["evaluations"]) for cell in found["cells"]] == [
        (s, n) for s in NAMES for n in (5, 6)
    ]
    assert [one["model"] for one in found["few"]] == ["critters-udpm"]
    assert found["seconds"] > 0
    assert "6 samplers at 5, 6 evaluations" in err
    assert main([*words, "--images", "48"]) == 0
    assert capsys.readouterr().out == f"the page is {(tmp_path / 'd' / 'index.html').resolve()}\n"
    assert (tmp_path / "d" / "index.html").read_text() == f"page with {tmp_path / 'd' / 'live'}"
    args = parse(DemoArgs, "ornstein demo", [*words[1:], "--images", "48"])
    assert trained == [parse_training(live_command(args).split()[2:]).config]
