"""The text of ``ornstein COMMAND --help``: what most people need on one screen, then the other options by heading.

And the lists of other commands, filled to the width of the terminal in the same way.
"""

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
    summary, *others = inspect.cleandoc(kind.__doc__ or "").split("\n\n")
    example = next((part for part in others if part.startswith("Example:")), "")
    words = [one for one in known if one.option.positional]
    usage = [prog, *(_usage(one) for one in words), *_required(known), "[options]"]
    lines = [f"usage: {' '.join(usage)}", "", *filled(summary), *filled(example)]
    options = [one for one in known if not one.option.positional and not one.option.hidden]
    headings = dict.fromkeys(["", *(one.heading for one in options)])
    for heading in headings:
        rows = [*words, *options] if len(headings) == 1 else [one for one in options if one.heading == heading]
        rows = [*words, *rows] if not heading and len(headings) > 1 else rows
        lines += ["", *([f"{heading}:"] if heading else [])]
        for one in rows:
            lines += _row(one)
    for part in others:
        if part != example:
            lines += ["", *filled(part)]
    return "\n".join(lines)


def _usage(one: Parameter) -> str:
    name = one.flag + (" …" if one.repeats else "")
    return name if one.default is MISSING else f"[{name}]"


def _required(known: Sequence[Parameter]) -> Iterator[str]:
    for one in known:
        if one.default is MISSING and not one.option.positional:
            yield f"{one.flag} {one.value}"


def columns() -> int:
    """Characters of a line: those of the terminal, at most 100."""
    return min(shutil.get_terminal_size().columns, 100)


def filled(text: str, indent: str = "", first: str | None = None) -> list[str]:
    """A text in lines of `columns` characters behind an indent; words, such as those of a command, stay whole."""
    start = indent if first is None else first
    return textwrap.wrap(
        " ".join(text.split()), max(columns(), len(indent) + 20), initial_indent=start, subsequent_indent=indent,
        break_on_hyphens=False, break_long_words=False,
    )  # fmt: skip


def entry(head: str, text: str, column: int = COLUMN) -> list[str]:
    """A name, and from a column on what it means; below the name where that is too long."""
    pad = " " * column
    if len(head) > column - 2:
        return [head, *(filled(text, pad))]
    return filled(text, pad, f"{head:<{column}}") or [head]


def _row(one: Parameter) -> list[str]:
    head = f"  {one.flag}" + ("" if one.option.positional or not one.value else f" {one.value}")
    text = one.text
    if one.value == "NAME" and one.allowed:
        text += f" One of {', '.join(one.allowed)}."
    if one.standard:
        text += f" [{one.standard}]"
    return entry(head, text)
