"""The demo's page: whole, self-contained, and written in one piece."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ornstein.cli.demo_args import EVALUATIONS, SAMPLERS
from ornstein.cli.demo_few import SHOWN
from ornstein.cli.main import main
from ornstein.page import Curve, Section, chart, render

VOID = {"meta", "img", "br", "hr", "link", "use", "path"}


class Balanced(HTMLParser):
    """Every tag that opens is closed, and nothing is fetched from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        named = dict(attrs)
        self.ids += [named["id"]] if named.get("id") else []
        link = named.get("src") or (named.get("href") or named.get("xlink:href") or "")
        if link and not link.startswith(("data:", "#")):
            self.fetched.append(link)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def checked(html: str) -> Balanced:
    page = Balanced()
    page.feed(html)
    assert page.open == []
    assert page.fetched == []
    assert len(page.ids) == len(set(page.ids)), "ids clash between charts"
    return page


@pytest.mark.parametrize("live", [0, pytest.param(32, marks=pytest.mark.slow)])  # live: draws 4,096 pictures first
def test_demo_writes_one_self_contained_page(
    live: int, capsys: pytest.CaptureFixture[str], tiny_run: Path, tmp_path: Path
) -> None:
    words = ["--images", str(live), "--n", "1", "--out", str(tmp_path), "--json"]
    assert main(["demo", "--model", str(tiny_run), *words]) == 0
    result = json.loads(capsys.readouterr().out)
    html = Path(result["page"]).read_text("utf-8")
    checked(html)
    assert len(result["cells"]) == len(SAMPLERS) * len(EVALUATIONS)
    few = [(name, count) for name, _, counts in SHOWN for count in counts]
    assert [(one["model"], one["evaluations"]) for one in result["few"]] == few
    assert {1, 2, 3} <= {count for _, count in few}, "the models made for one, two and three evaluations are shown"
    assert (result["live"] is None) == (live == 0)
    assert html.count("data:image/png;base64,") >= len(result["cells"]) + len(few) + 8
    # Each panel names the command that repeats it.
    assert len(re.findall(r"<pre>ornstein (sample|train|demo) ", html)) >= 4
    assert not list(tmp_path.glob(".*tmp"))


def test_text_is_escaped() -> None:
    html = render("<script>", "a & b", [Section(title="x", text="<b>", command="a < b", charts=[])])
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    checked(html)


def test_charts_on_one_page_share_no_ids_and_repeat() -> None:
    def draw(name: str) -> str:
        return chart([Curve(name=name, x=[1.0, 2.0], y=[0.1, 0.2])], x="x", y=name, log_x=True, log_y=True)

    assert draw("a") == draw("a"), "the same numbers give the same bytes"
    checked(draw("a") + draw("b"))
