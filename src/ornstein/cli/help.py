"""The text of ``ornstein COMMAND --help``: what most people need on one screen, then the other options by heading."""

from __future__ import annotations

import inspect
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import MISSING

from .parameters import Parameter

COLUMN = 26  # where the sentences begin


def help_text(kind: type, prog: str, known: Sequence[Parameter]) -> str:
    """Usage, summary, example, options; and below them what else the docstring says."""
    width = min(shutil.get_terminal_size().columns, 100)
    summary, *others = inspect.cleandoc(kind.__doc__ or "").split("\n\n")
    example = next((part for part in others if part.startswith("Example:")), "")
    words = [one for one in known if one.option.positional]
    usage = [prog, *(_usage(one) for one in words), *_required(known), "[options]"]
    lines = [f"usage: {' '.join(usage)}", "", *_filled(summary, width), *_filled(example, width)]
    options = [one for one in known if not one.option.positional and not one.option.hidden]
    headings = dict.fromkeys(["", *(one.heading for one in options)])
    for heading in headings:
        rows = [*words, *options] if len(headings) == 1 else [one for one in options if one.heading == heading]
        rows = [*words, *rows] if not heading and len(headings) > 1 else rows
        lines += ["", *([f"{heading}:"] if heading else [])]
        for one in rows:
            lines += _row(one, width)
    for part in others:
        if part != example:
            lines += ["", *_filled(part, width)]
    return "\n".join(lines)


def _usage(one: Parameter) -> str:
    name = one.flag + (" …" if one.repeats else "")
    return name if one.default is MISSING else f"[{name}]"


def _required(known: Sequence[Parameter]) -> Iterator[str]:
    for one in known:
        if one.default is MISSING and not one.option.positional:
            yield f"{one.flag} {one.value}"


def _filled(text: str, width: int) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False, break_long_words=False)


def _row(one: Parameter, width: int) -> list[str]:
    head = f"  {one.flag}" + ("" if one.option.positional or not one.value else f" {one.value}")
    text = one.text
    if one.value == "NAME" and one.allowed:
        text += f" One of {', '.join(one.allowed)}."
    if one.standard:
        text += f" [{one.standard}]"
    rows = _filled(text, width - COLUMN) or [""]
    pad = " " * COLUMN
    if len(head) > COLUMN - 2:
        return [head, *(pad + row for row in rows)]
    return [f"{head:<{COLUMN}}{rows[0]}", *(pad + row for row in rows[1:])]
