"""The options of a command, read from a dataclass: the one list behind the parser, the help and the tests."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from ..options import Choice, Option

WORDS: dict[Any, str] = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}
Fields = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """An option: the field that it sets by its ``path`` from the configuration, and all that the field says.

    ``choices`` are the names of the classes in a union, for an option that chooses one; ``default`` is MISSING where
    a value is required.
    """

    path: Fields
    hint: Any
    default: Any
    text: str
    heading: str
    option: Option
    choices: tuple[str, ...] = ()

    @property
    def flag(self) -> str:
        """Its name as it is typed; that of the value for a word without a name."""
        if self.option.positional:
            return self.option.value
        *above, last = (name.replace("_", "-") for name in self.path)
        last = self.option.name or last
        return "--" + ".".join([*above, f"no-{last}" if self.default is True else last])

    @property
    def flags(self) -> Fields:
        """All names."""
        return (self.flag, *self.option.aliases)

    @property
    def alternatives(self) -> tuple[Any, ...]:
        """The types that its value may have, None left out."""
        plain = bare(self.hint)
        parts = get_args(plain) if get_origin(plain) in (Union, types.UnionType) else (plain,)
        return tuple(bare(part) for part in parts if part is not type(None))

    @property
    def optional(self) -> bool:
        """Whether None is a value beside the default: the word none."""
        return type(None) in get_args(bare(self.hint)) and self.default not in (None, MISSING)

    @property
    def least(self) -> int:
        """How many words it takes at least."""
        if self.alternatives == (bool,) or (self.repeats and self.default):  # what replaces the default may be nothing
            return 0
        return min(_words(kind)[0] for kind in self.alternatives)

    @property
    def most(self) -> float:
        """How many words it takes at most, each time it is given."""
        if self.alternatives == (bool,):
            return 0
        return 1 if self.option.single else max(_words(kind)[1] for kind in self.alternatives)

    @property
    def repeats(self) -> bool:
        """Whether it may be given several times."""
        return any(get_args(kind)[1:] == (...,) for kind in self.alternatives)

    @property
    def allowed(self) -> tuple[str, ...]:
        """The words to choose from, where there are only so many."""
        if self.choices:
            return self.choices
        return tuple(str(word) for kind in self.alternatives if get_origin(kind) is Literal for word in get_args(kind))

    @property
    def value(self) -> str:
        """What stands for its value in the help: INT, a|b or NAME…; nothing for a flag."""
        if self.option.value or not self.most:
            return self.option.value
        short = "|".join(self.allowed)
        if self.allowed:
            return short if len(short) <= 20 else "NAME"
        return _written(self.alternatives[-1])

    @property
    def standard(self) -> str:
        """Its default in the help; empty where that says nothing."""
        value = self.default
        if self.choices:
            return value
        if value in (None, "", (), MISSING) or isinstance(value, bool):
            return ""
        return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def parameters(kind: type, chosen: Mapping[Fields, str] | None = None) -> Iterator[Parameter]:
    """The options of a configuration in the order of the help; ``chosen`` names a class for each union by its path."""
    yield from _walk(kind, None, (), "", chosen or {})


def _walk(kind: type, instance: Any, path: Fields, heading: str, chosen: Mapping[Fields, str]) -> Iterator[Parameter]:
    hints, texts = types_of(kind), field_docs(kind)
    headings: dict[str, str] = {}
    if not path:
        headings = {name: title for title, names in getattr(kind, "layout", {}).items() for name in names}
    fields = {field.name: field for field in dataclasses.fields(kind)}
    rest = "" if not headings else "Other options"
    for name in sorted(fields, key=lambda name: list(headings).index(name) if name in headings else len(headings)):
        hint, text = hints[name], texts.get(name, "")
        option = next((item for item in getattr(hint, "__metadata__", ()) if isinstance(item, Option)), Option())
        if option.absent:
            continue
        default = default_of(fields[name]) if instance is None else getattr(instance, name)
        title, classes = headings.get(name, heading or rest), choices_of(hint)
        parameter = Parameter(
            path=(*path, name), hint=hint, default=default, text=text, heading=title, option=option
        )  # fmt: skip
        if not classes:
            yield parameter
            continue
        used = next((key for key, one in classes.items() if one is (None if default is None else type(default))), "")
        if len(classes) > 1:
            yield dataclasses.replace(parameter, choices=tuple(classes), default=used)
        picked = chosen.get(parameter.path, used)
        inner = classes[picked if picked in classes else used]
        if inner is not None:
            below = default if type(default) is inner else inner()
            section = f"{text.split(':')[0].rstrip('.')}{f', {picked}' if len(classes) > 1 else ''}"
            yield from _walk(inner, below, parameter.path, section, chosen)


@functools.cache
def types_of(kind: type) -> dict[str, Any]:
    """The types of the fields, with their annotations."""
    return get_type_hints(kind, include_extras=True)


def choices_of(hint: Any) -> dict[str, type | None]:
    """The configurations that a field may hold, by their names; one without a name if there is only one; else none."""
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    found = {}
    for part in parts:
        choice = next((item for item in getattr(part, "__metadata__", ()) if isinstance(item, Choice)), None)
        kind = bare(part)
        if choice is not None or dataclasses.is_dataclass(kind):
            found["" if choice is None else choice.name] = None if kind is type(None) else kind
    return found


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The default of a field; MISSING where it is required."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def bare(hint: Any) -> Any:
    """A type without its annotations."""
    return bare(get_args(hint)[0]) if get_origin(hint) is Annotated else hint


def _words(kind: Any) -> tuple[int, float]:
    """The least and the largest number of words that a type is read from."""
    if get_origin(kind) is not tuple:
        return 1, 1
    parts = get_args(kind)
    return (1, float("inf")) if parts[1:] == (...,) else (len(parts), len(parts))


def _written(kind: Any) -> str:
    if get_origin(kind) is tuple:
        parts = get_args(kind)
        if parts[1:] == (...,):
            return f"{WORDS.get(bare(parts[0]), 'NAME')}…"
        return " ".join(WORDS.get(bare(part), "NAME") for part in parts)
    return WORDS.get(kind, "NAME")


@functools.cache
def field_docs(kind: type) -> dict[str, str]:
    """The docstrings of the fields of a dataclass, its bases' included: the text under each in the source."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            body = _classes(base.__module__)[base.__name__].body
            for line, below in itertools.pairwise(body):
                said = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
                if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and said:
                    found[line.target.id] = inspect.cleandoc(str(below.value.value))  # pyright: ignore[reportAttributeAccessIssue]
    return {name: " ".join(text.split()) for name, text in found.items()}


@functools.cache
def _classes(module: str) -> dict[str, ast.ClassDef]:
    source = Path(str(sys.modules[module].__file__)).read_text("utf-8")
    return {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
