"""Configurations to plain dictionaries and back: every dataclass by its fields, every union of dataclasses by a kind.

Nothing is imported or called by name: the type that is asked for decides what may be read.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ..errors import ConfigError

C = TypeVar("C")


def kind_of(cls: type) -> str:
    """The name of a class in files: its own ``kind``, which stays when the class is renamed.

    Raises `TypeError` for a class that names none: whatever is written needs ``kind: ClassVar[str]``.
    """
    kind = cls.__dict__.get("kind")
    if not isinstance(kind, str):
        raise TypeError(f"{cls.__name__} cannot be written to a file: it needs kind: ClassVar[str], its name there")
    return kind


def to_dict(value: Any) -> Any:
    """A configuration as numbers, texts, lists and dictionaries; each dataclass with its ``kind``."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"kind": kind_of(type(value)), **fields}
    if isinstance(value, tuple | list):
        return [to_dict(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ConfigError(f"a {type(value).__name__} cannot be written to a configuration file")


def from_dict(cls: type[C], data: object, where: str = "") -> C:
    """The inverse of `to_dict`: ``from_dict(type(c), to_dict(c)) == c``. Missing keys take their defaults, and those
    that the class calls ``retired``, for older files have them, are left out.

    Raises `ConfigError` for an unknown key (naming the closest one), a missing key without default, a value of another
    type, and whatever the class itself refuses.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where or 'the configuration'} must hold named values, not {data!r}")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
    hints = get_type_hints(cls)
    present = _in_present_words(cls, data, where)
    given = {key: value for key, value in present.items() if key not in {"kind", *getattr(cls, "retired", ())}}
    if data.get("kind", kind_of(cls)) != kind_of(cls):
        raise ConfigError(f"{where or 'the configuration'} is of kind {data['kind']!r}, expected {kind_of(cls)!r}")
    for key in given:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(fields)}"
            raise ConfigError(f"unknown key {_joined(where, str(key))!r}: {hint}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in given:
            raise ConfigError(f"missing key {_joined(where, name)!r}")
    return cls(**{key: _read(hints[key], value, _joined(where, key)) for key, value in given.items()})


def renamed_fields(cls: type) -> dict[str, str]:
    """Old name in files → field, of a class and its bases: what their ``renamed: ClassVar[Mapping[str, str]]`` say."""
    return {old: new for base in reversed(cls.__mro__) for old, new in base.__dict__.get("renamed", {}).items()}


def _in_present_words(cls: type, data: Mapping[Any, Any], where: str) -> dict[Any, Any]:
    """The values under the present names of their fields; files are read under the older ones for good."""
    names, out = renamed_fields(cls), dict[Any, Any]()
    for key, value in data.items():
        name = names.get(key, key)
        if name in out:
            raise ConfigError(
                f"{_joined(where, str(key))!r} and {_joined(where, str(name))!r} are one key: give it once"
            )
        out[name] = value
    return out


def flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as dotted names, e.g. ``{"optimizer.lr": 0.001}``."""
    out: dict[str, Any] = {}
    for key, value in data.items():
        name = _joined(prefix, key)
        out |= flat(value, name) if isinstance(value, Mapping) else {name: value}
    return out


def _joined(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _read(hint: Any, value: Any, where: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _read_union(args, value, where)
    if origin is Literal:
        if value in args:
            return value
        raise ConfigError(f"{where}={value!r} is unknown: choose one of {', '.join(map(str, args))}")
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}={value!r} must be a list")
        kinds = args[:1] * len(value) if args[1:] == (...,) else args
        if len(kinds) != len(value):
            raise ConfigError(f"{where}={value!r} must be a list of {len(kinds)} values")
        return tuple(
            _read(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
        )
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is type(None):
        hint = types.NoneType
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{where}={value!r} must be of type {hint.__name__}")
    return value


def _read_union(args: tuple[Any, ...], value: Any, where: str) -> Any:
    classes = {kind_of(arg): arg for arg in args if isinstance(arg, type) and dataclasses.is_dataclass(arg)}
    if isinstance(value, Mapping) and classes:
        kind = value.get("kind")
        if kind not in classes:
            raise ConfigError(f"{where}.kind={kind!r} is unknown: choose one of {', '.join(classes)}")
        return from_dict(classes[kind], value, where)
    for arg in args:
        try:
            return _read(arg, value, where)
        except ConfigError:
            continue
    names = ", ".join(getattr(arg, "__name__", str(arg)) for arg in args)
    raise ConfigError(f"{where}={value!r} must be one of: {names}")
