"""Every guide has a page: its commands are those that the tool runs, its pictures and its table came of them."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from ornstein import guides
from ornstein.cli.parser import parse
from ornstein.cli.sample import SampleArgs

ROOT = Path(__file__).parents[2]
NAMES = [name for name, kind in guides.kinds().items() if kind.yields == "energy"]


def load_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("guide_pages", ROOT / "tools" / "guide_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


tool = load_tool()


def cells(page: Path, head: str) -> list[list[str]]:
    """The rows of the table with that head."""
    lines = page.read_text("utf-8").split(head + "\n")[1].splitlines()[1:]
    count = next((i for i, line in enumerate(lines) if not line.startswith("|")), len(lines))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:count]]


def test_every_kind_has_a_page_and_a_figure() -> None:
    assert tool.names() == NAMES
    assert sorted(page.stem for page in tool.PAGES.glob("*.md")) == sorted(NAMES)
    figures = sorted(tool.FIGURES.iterdir())
    assert [figure.name for figure in figures] == [f"{name}.png" for name in sorted(NAMES)]
    assert all(1000 < figure.stat().st_size < 60_000 for figure in figures)
    assert sum(figure.stat().st_size for figure in figures) <= 600_000


def test_the_table_of_guides_is_the_registry() -> None:
    table = (ROOT / "docs" / "reference" / "guides.md").read_text("utf-8")
    assert [
        name for name, _ in re.findall(r"^\| \[`([\w-]+)`\]\(\.\./guides/([\w-]+)\.md\)", table, re.MULTILINE)
    ] == NAMES
    assert re.findall(r"^\| `([\w-]+)` \| .* \| [\d.]+ \|$", table, re.MULTILINE) == [
        name for name, kind in guides.kinds().items() if kind.yields == "guidance"
    ]


def test_the_weights_of_the_tables_are_the_registry() -> None:
    """Of every kind, new ones too: "2; 5 package, standard" is 2 with the first source, and 5 with two others."""
    page = (ROOT / "docs" / "reference" / "guides.md").read_text("utf-8")
    rows = re.findall(r"^\| \[?`([\w-]+)`.* \| (\d[^|]*) \|", page, re.MULTILINE)
    assert [name for name, _ in rows] == list(guides.kinds())
    for name, text in rows:
        kind = guides.kinds()[name]
        plain, *others = text.split("; ")
        expected = dict.fromkeys((source.name for source in kind.sources), float(plain))
        for other in others:
            weight, _, sources = other.partition(" ")
            expected |= dict.fromkeys(sources.split(", "), float(weight))
        assert {source.name: kind.weight_with(source) for source in kind.sources} == expected, name
        assert kind.weight in {float(plain), *expected.values()}, name


@pytest.mark.parametrize("name", NAMES)
def test_the_commands_differ_in_the_guide_alone(name: str) -> None:
    first, *others = tool.commands(tool.PAGES / f"{name}.md")
    plain = parse(SampleArgs, "ornstein sample", list(first.words[1:]))
    assert (plain.run, plain.guide) == ("critters", ())
    assert 6 <= plain.n <= 8
    assert others
    for command in others:
        read = parse(SampleArgs, "ornstein sample", list(command.words[1:]))
        assert all(guides.GuideSpec.read(words).kind == name for words in read.guide)
        assert len(read.guide) == 1
        same = ("run", "n", "seed", "first", "steps", "sampler", "grid")
        assert [getattr(read, field) for field in same] == [getattr(plain, field) for field in same]
    assert len({command.one("--out") for command in (first, *others)}) == 1 + len(others)


@pytest.mark.parametrize("name", NAMES)
def test_the_blocks_draw_what_the_commands_ask_for(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the first energy is finite there, so that a reader needs no file of ours."""
    page = tool.PAGES / f"{name}.md"
    monkeypatch.chdir(tmp_path)
    tool.draw_inputs(page)
    for command in tool.commands(page)[1:]:
        assert guides.GuideSpec.read(command.all("--guide")[0]).weight != 0
        found = tool.energies(command, torch.zeros(1, *tool.SHAPE))
        assert found.shape == (1,)
        assert tool.asked_for(command) is not None or name in ("text", "classifier")


@pytest.mark.parametrize("name", NAMES)
def test_the_figure_has_a_row_a_command(name: str) -> None:
    made = tool.commands(tool.PAGES / f"{name}.md")
    count, side, gap = int(made[0].one("--n")), tool.SIDE, tool.GAP
    with Image.open(tool.FIGURES / f"{name}.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(float)
    assert pixels.shape[0] == len(made) * (side + gap) - gap
    assert pixels.shape[1] // (side + gap) in (count - 1, count, count + 1)
    rows = [pixels[row * (side + gap) :][:side, -(count * (side + gap) - gap) :] for row in range(len(made))]
    for row in rows:  # each of its pictures shows something
        assert all(row[:, i * (side + gap) :][:, :side].std((0, 1)).max() > 20 for i in range(count))
    assert all(np.abs(row - rows[0]).mean() > 5 for row in rows[1:])


@pytest.mark.parametrize("name", NAMES)
def test_the_table_says_that_the_guide_worked(name: str) -> None:
    page = tool.PAGES / f"{name}.md"
    rows = cells(page, tool.HEAD)
    made = tool.commands(page)
    assert [row[1] for row in rows] == [f"`{command.all('--guide')[0]}`" for command in made[1:]]
    for number, (row, _, before, after, lower) in enumerate(rows, 2):
        assert row == str(number)
        assert float(after.replace("−", "-")) < float(before.replace("−", "-"))
        assert re.fullmatch(r"\d of \d", lower)


@pytest.mark.parametrize("name", [name for name in NAMES if guides.kinds()[name].sources])
def test_the_weights_are_those_of_the_registry(name: str) -> None:
    kind = guides.kinds()[name]
    listed = {row[0]: float(row[2]) for row in cells(tool.PAGES / f"{name}.md", "| source | network | weight |")}
    assert listed == {source.name: kind.weight_with(source) for source in kind.sources}


@pytest.mark.slow
def test_a_page_made_anew_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the cheap ones: the table to a tenth, since machines round differently."""
    page, name = tmp_path / "pages" / "inpaint.md", "inpaint"
    (tmp_path / "pages").mkdir()
    page.write_text((tool.PAGES / f"{name}.md").read_text("utf-8"), "utf-8")
    old = cells(page, tool.HEAD)
    monkeypatch.setattr(tool, "PAGES", page.parent)
    monkeypatch.setattr(tool, "FIGURES", page.parent)
    monkeypatch.chdir(tmp_path)
    tool.make(name)
    assert (page.parent / "inpaint.png").is_file()
    for was, new in zip(old, cells(page, tool.HEAD), strict=True):
        assert was[1] == new[1]
        assert [float(cell) for cell in new[2:4]] == pytest.approx([float(cell) for cell in was[2:4]], rel=0.1)
