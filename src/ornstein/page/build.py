"""From sections of text, pictures, curves and tables to one HTML file without outside references."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An image inside the page: PNG bytes, what it shows, and its size on the page."""

    png: bytes
    alt: str
    width: int
    height: int

    @property
    def uri(self) -> str:
        """The data URI."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of cells; a cell is text or a `Picture`. The first cell of a row is its heading."""

    head: Sequence[str]
    rows: Sequence[Sequence[str | Picture]]

    @property
    def shows(self) -> bool:
        """Whether a cell is a picture; such a table becomes a list on a phone."""
        return any(isinstance(cell, Picture) for row in self.rows for cell in row)


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One part of the page: a heading, a sentence, then whatever it shows, and the command that made it."""

    title: str
    text: str = ""
    table: Table | None = None
    charts: Sequence[tuple[str, str]] = ()  # (caption, svg)
    pictures: Sequence[Picture] = ()
    command: str = ""
    notes: Sequence[str] = field(default_factory=tuple)


def picture(images: object, alt: str, *, columns: int, scale: int = 1) -> Picture:
    """A grid of images (B, C, H, W) in [−1, 1] as one `Picture`, ``scale`` times its pixels on the page."""
    import io

    from PIL import Image

    from ..data import grid

    array = grid(images, columns)  # pyright: ignore[reportArgumentType]
    buffer = io.BytesIO()
    Image.fromarray(array.permute(1, 2, 0).numpy()).save(buffer, format="PNG", optimize=True)
    height, width = array.shape[-2:]
    return Picture(png=buffer.getvalue(), alt=alt, width=width * scale, height=height * scale)


def render(
    title: str,
    lead: str,
    sections: Sequence[Section],
    facts: Sequence[tuple[str, str]] = (),
    made_by: str = "ornstein demo",
) -> str:
    """The page as text."""
    import jinja2

    source = files("ornstein.page").joinpath("page.html.j2").read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.tests["picture"] = lambda value: isinstance(value, Picture)
    return environment.from_string(source).render(
        title=title, lead=lead, sections=sections, facts=facts, made_by=made_by
    )
