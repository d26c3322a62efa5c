"""The words of a command line as a dataclass: its fields are the options, their docstrings the help.

A field that is a dataclass gives options with its name before a dot, ``--optimizer.lr``; a union of dataclasses is
chosen by name, ``--network dit``. Errors are one line, the same on a terminal and in a pipe.
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from ..errors import UsageError
from ..options import FieldError, check_fields
from .help import help_text
from .parameters import WORDS, Fields, Parameter, bare, choices_of, default_of, parameters, types_of


def parse(kind: Any, prog: str, args: Sequence[str]) -> Any:
    """The arguments as a ``kind``.

    Raises:
        UsageError: unknown options, or values that are unreadable or out of range.
        SystemExit: with status 0, for ``--help``.
    """
    known = list(parameters(kind, _chosen(args)))
    if "-h" in args or "--help" in args:
        sys.stdout.write(help_text(kind, prog, known) + "\n")
        raise SystemExit(0)
    try:
        return _make(kind, None, (), _values(known, _sorted(known, args)), {one.path: one.flag for one in known})
    except UsageError as error:
        hint = f" (see {prog} --help)" if isinstance(error, ParseError) else ""
        raise UsageError(f"{error}{hint}") from None


def given(kind: Any, args: Sequence[str]) -> frozenset[str]:
    """The fields, such as "optimizer.lr", that readable arguments set."""
    return frozenset(".".join(one.path) for one, _ in _sorted(list(parameters(kind, _chosen(args))), args))


class ParseError(UsageError):
    """Words that are no options or no values of one; the help tells more."""


def _chosen(args: Sequence[str]) -> dict[Fields, str]:
    """Whatever follows an option, by the fields that its name stands for: the names of classes are among them."""
    found: dict[Fields, str] = {}
    for word, after in zip(args, [*args, ""][1:], strict=True):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            found[tuple(name.replace("-", "_").split("."))] = value if equals else after
    return found


def _sorted(known: Sequence[Parameter], args: Sequence[str]) -> Iterator[tuple[Parameter, list[str]]]:
    """Each option with the words that follow it, as often as it is given; words without a name at the end."""
    named = {flag: one for one in known if not one.option.positional for flag in one.flags}
    loose: list[str] = []
    left = list(args)
    while left:
        word = left.pop(0)
        if not word.startswith("-") or _is_number(word):
            loose.append(word)
            continue
        name, equals, value = word.partition("=")
        one = named.get(name) or named.get(name.replace("_", "-"))
        if one is None:
            raise ParseError(f"unknown option {name}{_nearest(name, known)}")
        words = [value] if equals else []
        while not equals and left and len(words) < one.most and not (left[0].startswith("--") or left[0] in named):
            words.append(left.pop(0))
        if (equals and not one.most) or len(words) < one.least:
            raise ParseError(f"{one.flag}: {_give(one)}, not {' '.join(map(repr, words)) or 'nothing'}")
        yield one, words
    yield from _loose(known, loose)


def _loose(known: Sequence[Parameter], words: Sequence[str]) -> Iterator[tuple[Parameter, list[str]]]:
    left = list(words)
    for one in known:
        if one.option.positional and left:
            taken = left if one.repeats else left[:1]
            left = left[len(taken) :]
            yield one, list(taken)
    if left:
        name, _, value = left[0].partition(":")
        choice = next((one for one in known if one.choices and one.path == (name,) and value in one.choices), None)
        hint = f": write {choice.flag} {value}" if choice is not None else ""
        raise ParseError(f"unexpected word {left[0]!r}{hint}")


def _values(known: Sequence[Parameter], given: Iterator[tuple[Parameter, list[str]]]) -> dict[Fields, Any]:
    """What is given, read: values by the path of their field."""
    found: dict[Fields, Any] = {}
    for one, words in given:
        value = _read(one, words)
        if one.path in found and not one.repeats:
            raise ParseError(f"{one.flag} is given twice: give it once")
        found[one.path] = (*found[one.path], *value) if one.path in found else value
    for one in known:
        if one.default is MISSING and one.path not in found:
            raise ParseError(f"{one.flag} is missing: {one.text[:1].lower()}{one.text[1:].rstrip('.')}")
    return found


def _read(one: Parameter, words: list[str]) -> Any:
    """The value of an option from its words."""
    if one.alternatives == (bool,):
        return not one.default
    words = [one.option.spellings.get(word, word) for word in words]
    if any(not word.strip() for word in words) and not one.option.empty:
        raise ParseError(f"{one.flag} is empty: {_give(one)}, or leave it out")
    if one.choices:
        if words[0] not in one.choices:
            raise ParseError(f"{one.flag}: {_choose(words[0], one.choices)}")
        return words[0]
    if words == ["none"] and one.optional:
        return None
    for kind in one.alternatives:
        if get_origin(kind) is not tuple and len(words) > 1:
            continue
        try:
            return _value(kind, words)
        except (ValueError, KeyError):
            continue
    if one.allowed:
        raise ParseError(f"{one.flag}: {_choose(words[0], one.allowed)}")
    raise ParseError(f"{one.flag}: {_give(one)}, not {' '.join(map(repr, words))}")


def _value(kind: Any, words: list[str]) -> Any:
    """Words as a type; `ValueError` or `KeyError` where they are none of it."""
    if get_origin(kind) is tuple:
        parts = get_args(kind)
        kinds = parts[:1] * len(words) if parts[1:] == (...,) else parts
        return tuple(_value(bare(part), [word]) for part, word in zip(kinds, words, strict=True))
    if get_origin(kind) is Literal:
        return {str(value): value for value in get_args(kind)}[words[0]]
    if kind not in WORDS:
        raise TypeError(f"no option can be of type {kind}")
    return Path(words[0]) if kind is Path else kind(words[0])


def _give(one: Parameter) -> str:
    return f"give {one.value}" if one.most else "it is given alone"


def _choose(word: str, allowed: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, allowed, n=1, cutoff=0.7)
    return f"{word!r} is unknown: " + (f"did you mean {near[0]}?" if near else f"choose one of {', '.join(allowed)}")


def _nearest(name: str, known: Sequence[Parameter]) -> str:
    """The known option that is most like an unknown one: in spelling, or by what follows its dot."""
    flags = [flag for one in known if not one.option.positional for flag in one.flags]
    near = difflib.get_close_matches(name, flags, n=1, cutoff=0.7)
    near = near or [flag for flag in flags if flag.rpartition(".")[2] == name.lstrip("-")]
    return f": did you mean {near[0]}?" if near else ""


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _make(kind: Any, default: Any, path: Fields, given: Mapping[Fields, Any], flags: Mapping[Fields, str]) -> Any:
    """A configuration from the values below ``path``; ``default`` is what they change, if it is of this kind."""
    changes: dict[str, Any] = {}
    hints = types_of(kind)
    for field in dataclasses.fields(kind):
        here = (*path, field.name)
        classes = choices_of(hints[field.name])
        if not classes:
            if here in given:
                changes[field.name] = given[here]
            continue
        if not any(key[: len(here)] == here for key in given):
            continue
        before = default_of(field) if default is None else getattr(default, field.name)
        inner = classes[given[here]] if here in given else type(before)
        changes[field.name] = None if inner is None else _make(inner, before, here, given, flags)
    try:
        known: Any = default if type(default) is kind else None
        made = kind(**changes) if known is None else dataclasses.replace(known, **changes)
        check_fields(made)
    except FieldError as error:
        flag = flags.get((*path, error.field), error.field)
        raise UsageError(f"{flag} {error.complaint}") from None
    return made
