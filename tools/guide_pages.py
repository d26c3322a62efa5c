"""Make the pictures and the measured tables of docs/guides anew.

    python tools/guide_pages.py [KIND ...]

Each page is run as it stands, in an empty folder: its python blocks draw what the guide aims at, its commands sample
without and with the guide. The samples become docs/guides/figures/KIND.png, a row a command with what was asked for
before it, and their energies the table of the page.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from ornstein import guides
from ornstein.cli.main import main as ornstein
from ornstein.guides import targets

PAGES = Path(__file__).parents[1] / "docs" / "guides"
FIGURES = PAGES / "figures"
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELL = re.compile(r"^(ornstein sample .+)$", re.MULTILINE)
HEAD = "| row | guide | mean ℓ before | mean ℓ after | lower in |"
SIDE, GAP, COLOURS = 96, 3, 112
SHAPE = (3, 64, 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A line `ornstein sample …` of a page."""

    words: tuple[str, ...]

    def all(self, option: str) -> list[str]:
        """What an option was given, each time."""
        return [self.words[i + 1] for i, word in enumerate(self.words) if word == option]

    def one(self, option: str, otherwise: str = "") -> str:
        return (self.all(option) or [otherwise])[-1]


def names() -> list[str]:
    """The kinds that have a page here: all that are energies."""
    return [name for name, kind in guides.kinds().items() if kind.yields == "energy"]


def commands(page: Path) -> list[Command]:
    """The commands of a page: the first without a guide."""
    return [Command(words=tuple(shlex.split(line)[1:])) for line in SHELL.findall(page.read_text("utf-8"))]


def draw_inputs(page: Path) -> None:
    """Run the python blocks of a page: they write into the current folder."""
    code = "\n".join(PYTHON.findall(page.read_text("utf-8")))
    exec(compile(code, page.name, "exec"), {"__name__": "page"})


def samples(folder: str) -> torch.Tensor:
    """The PNGs of a command, (N, 3, H, W) in [−1, 1]."""
    files = sorted(Path(folder).glob("[0-9]*.png"))
    pixels = torch.from_numpy(np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files]))
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def energies(command: Command, pictures: torch.Tensor) -> torch.Tensor:
    """ℓ of the first guide of a command, (N,)."""
    ready = guides.make(command.all("--guide")[:1], shape=SHAPE, choices=command.all("--guide-source"))
    with torch.no_grad():
        return ready.energies[0][1](pictures)


def table(made: list[Command]) -> str:
    """What the guides' energies are before and after; pictures in which nothing is found are left out."""
    plain, lines = samples(made[0].one("--out")), [HEAD, "|---|---|---|---|---|"]
    for row, command in enumerate(made[1:], 2):
        before, after = energies(command, plain), energies(command, samples(command.one("--out")))
        found = torch.isfinite(before + after)
        ends = (float(values[found].mean()) for values in (before, after))
        guide = f"`{command.all('--guide')[0]}`".replace("|", "\\|")
        lower = f"{int((after < before)[found].sum())} of {int(found.sum())}"
        cells = (f"{row}", guide, *(f"{end:.3g}".replace("-", "−") for end in ends), lower)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------------------- figures


def asked_for(command: Command) -> Image.Image | None:
    """What a guide aims at, as a picture; None for words."""
    wish = guides.GuideSpec.read(command.all("--guide")[0])
    first, _, second = wish.arg.partition("@")
    if wish.kind == "boxes":
        return _outlined(wish.arg)
    if wish.kind in ("colour", "palette"):
        return _swatch(wish.arg)
    if not Path(first).is_file():
        return None
    image: Any = Image.open(first)
    if wish.kind == "segmentation":
        return _coloured(image)
    image = image.convert("RGB")
    if wish.kind == "inpaint":
        return Image.composite(image, Image.new("RGB", image.size, "black"), Image.open(second).convert("1"))
    return image


def _outlined(arg: str) -> Image.Image:
    image = Image.new("RGB", (SIDE, SIDE), "white")
    draw = ImageDraw.Draw(image)
    for part in arg.split("+"):
        corners = [float(number) * (SIDE - 1) for number in part.partition("@")[2].split(",")]
        draw.rectangle(corners, outline="black")
        draw.text((corners[0] + 3, corners[1]), part.partition("@")[0], fill="black")
    return image


def _swatch(arg: str) -> Image.Image:
    rows = ((targets.colours(arg) + 1.0) * 127.5).round().byte().numpy()
    return Image.fromarray(rows[:, None, :].repeat(1, 1)).resize((SIDE, SIDE), Image.Resampling.NEAREST)


def _coloured(image: Image.Image) -> Image.Image:
    palette = np.array([*targets.colours_of(8)] + [(224, 224, 224)] * 248, np.uint8)
    return Image.fromarray(palette[np.asarray(image)])


def figure(made: list[Command]) -> Image.Image:
    """A row a command, what was asked for at its left."""
    rows = [[Image.open(f) for f in sorted(Path(c.one("--out")).glob("[0-9]*.png"))] for c in made]
    wanted = [None, *(asked_for(command) for command in made[1:])]
    left = int(any(image is not None for image in wanted))
    size = ((SIDE + GAP) * (len(rows[0]) + left) + 4 * GAP * left - GAP, (SIDE + GAP) * len(rows) - GAP)
    sheet = Image.new("RGB", size, "white")
    for row, (images, target) in enumerate(zip(rows, wanted, strict=True)):
        for place, image in enumerate([target] * left + images):
            if image is not None:
                small = image.width < SHAPE[-1]
                how = Image.Resampling.NEAREST if small or (left and not place) else Image.Resampling.BICUBIC
                shown = image.convert("RGB").resize((SIDE, SIDE), how)
                sheet.paste(shown, ((SIDE + GAP) * place + 4 * GAP * (left and place > 0), (SIDE + GAP) * row))
    return sheet.quantize(COLOURS, dither=Image.Dither.NONE)


def with_table(text: str, new: str) -> str:
    """The page with its measured table replaced."""
    old = re.compile(re.escape(HEAD) + r"\n(\|.*\n)+")
    if not old.search(text):
        raise SystemExit(f"the page has no table {HEAD}")
    return old.sub(lambda _: new + "\n", text)


def make(name: str) -> None:
    """Run one page and keep what came of it."""
    page = PAGES / f"{name}.md"
    made = commands(page)
    draw_inputs(page)
    for command in made:
        if ornstein(command.words):
            raise SystemExit(f"{page}: the command failed: ornstein {shlex.join(command.words)}")
    figure(made).save(FIGURES / f"{name}.png", optimize=True)
    new = table(made)
    page.write_text(with_table(page.read_text("utf-8"), new), "utf-8")
    print(new)


def main(asked: list[str]) -> None:
    """One page after the other, each in an empty folder."""
    here = Path.cwd()
    for name in asked or names():
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            try:
                make(name)
            finally:
                os.chdir(here)


if __name__ == "__main__":
    main(sys.argv[1:])
