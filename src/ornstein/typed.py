"""Arguments are of the types that a signature declares: `typed` checks a function or class where it is called.

    @typed(GridError)
    def uniform(steps: int, *, start: float | None = None) -> Grid: ...

``uniform("4")`` then raises `GridError`: steps must be a whole number, got '4'. Only types are compared; the range of a
number is its owner's business. Types that cannot be looked at (type variables, names for type checkers alone) pass.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import operator
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import ConfigError, UsageError

T = TypeVar("T", bound=Callable[..., Any])


class FieldError(ConfigError):
    """A field of a configuration is out of range: its name, and what is wrong with its value."""

    def __init__(self, field: str, complaint: str) -> None:
        super().__init__(f"{field} {complaint}")
        self.field, self.complaint = field, complaint


def typed(error: type[UsageError] = FieldError) -> Callable[[T], T]:
    """A decorator: arguments that are not of their declared types raise ``error`` in one line."""

    def decorate(thing: T) -> T:
        if not isinstance(thing, type):
            return _checked(thing, functools.partial(_hints_of_function, thing), error)
        made: Any = thing
        made.__init__ = _checked(made.__init__, functools.partial(_hints_of_class, thing), error)
        return made

    return decorate


def _checked(call: Any, hints_of: Callable[[], Mapping[str, Any]], error: type[UsageError]) -> Any:
    signature, hints = inspect.signature(call), functools.cache(hints_of)

    @functools.wraps(call)
    def checked(*args: Any, **keywords: Any) -> Any:
        try:
            given = signature.bind(*args, **keywords).arguments
        except TypeError:
            given = {}  # Python says which argument is missing or unknown
        for name, value in given.items():
            if name in hints():
                check_type(name, value, hints()[name], error)
        return call(*args, **keywords)

    return checked


def _hints_of_class(cls: type) -> dict[str, Any]:
    fields = {field.name for field in dataclasses.fields(cls)}
    return {
        name: hint
        for base in reversed(cls.__mro__)
        for name, hint in _evaluated(inspect.get_annotations(base), base.__module__).items()
        if name in fields
    }


def _hints_of_function(function: Callable[..., Any]) -> dict[str, Any]:
    kinds = inspect.signature(function).parameters
    hints = _evaluated(function.__annotations__, function.__module__)
    return {name: hint for name, hint in hints.items() if name in kinds and "VAR_" not in kinds[name].kind.name}


def _evaluated(annotations: Mapping[str, Any], module: str) -> dict[str, Any]:
    """Each annotation as a type; without those that only a type checker can read."""
    found: dict[str, Any] = {}
    for name, annotation in annotations.items():
        try:
            holder = type("_", (), {"__annotations__": {name: annotation}})
            found |= get_type_hints(holder, vars(sys.modules[module]), include_extras=True)  # with other spellings
        except NameError:
            continue
    return found


def check_type(name: str, value: Any, hint: Any, error: type[UsageError] = FieldError) -> None:
    """Raise ``error`` unless ``value`` is of the type ``hint``."""
    if not fits(value, hint):
        complaint = _complaint(value, hint)
        raise FieldError(name, complaint) if error is FieldError else error(f"{name} {complaint}")


def _complaint(value: Any, hint: Any) -> str:
    wanted = [part for part in _alternatives(hint) if part is not type(None)]
    if isinstance(value, type) and not any(part in {str, int, float, bool, bytes} for part in [*wanted, value]):
        return f"is the class {value.__name__}, not an object: write {value.__name__}(…)"
    if isinstance(value, float) and float in wanted:
        return f"must be a finite number, got {value}"
    return f"must be {said(hint)}, got {brief(value)}"


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, or one of its other spellings.

    Nan and bools are no numbers, any sequence can stand for a tuple, and whatever has one method of a protocol for it.
    """
    spellings = (getattr(mark, "spellings", {}) for mark in getattr(hint, "__metadata__", ()))
    if isinstance(value, str) and any(value in known for known in spellings):
        return True
    alternatives = _alternatives(hint)
    if len(alternatives) > 1:
        return any(fits(value, part) for part in alternatives)
    hint = alternatives[0]
    origin, args = get_origin(hint), get_args(hint)
    if hint in _PLAIN:
        return _PLAIN[hint](value)
    if origin is Literal:
        return isinstance(value, str | int | None) and value in args
    if origin in {tuple, Sequence, list}:
        return _fits_sequence(value, (*args, ...) if origin is not tuple else args)
    if origin is Mapping or origin is dict:
        return isinstance(value, Mapping) and all(fits(k, args[0]) and fits(v, args[1]) for k, v in value.items())
    if origin is Callable or getattr(hint, "_is_protocol", False):
        wanted = {"__call__"} if origin is Callable else _members(hint)
        return not isinstance(value, type) and any(_has(value, member) for member in wanted)
    return isinstance(value, hint) if isinstance(hint, type) and origin is None else True


def _has(value: Any, member: str) -> bool:
    return callable(value) if member == "__call__" else hasattr(type(value), member) or hasattr(value, member)


def _members(protocol: type) -> set[str]:
    """The names of a protocol's methods and properties."""
    kinds = [base for base in protocol.__mro__ if getattr(base, "_is_protocol", False)]
    names = {name for base in kinds for name in vars(base) if base.__module__ != "typing"}
    return {name for name in names if not name.startswith("_") or name == "__call__"}


def _fits_sequence(value: Any, parts: tuple[Any, ...]) -> bool:
    if isinstance(value, str | bytes | Mapping | type) or not hasattr(value, "__getitem__"):
        return False
    try:
        items = list(value)
    except TypeError:  # a tensor without dimensions
        return False
    if parts[1:] == (...,):
        return all(fits(item, parts[0]) for item in items)
    return len(items) == len(parts) and all(map(fits, items, parts))


def _is_whole(value: Any) -> bool:
    if _is_bool(value):
        return False
    try:
        return -(2**63) <= operator.index(value) < 2**64  # seeds have 64 bits without a sign
    except TypeError:
        return False


def _is_real(value: Any) -> bool:
    if _is_bool(value) or isinstance(value, str | bytes) or not hasattr(value, "__float__"):
        return False
    try:
        return not math.isnan(float(value))
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return False


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool) or type(value).__name__ == "bool"  # NumPy's


_PLAIN: Mapping[Any, Callable[[Any], bool]] = {
    Any: lambda _: True,
    object: lambda _: True,
    None: lambda value: value is None,
    type(None): lambda value: value is None,
    bool: _is_bool,
    int: _is_whole,
    float: _is_real,
    str: lambda value: isinstance(value, str),
}

_SAID = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    None: "None",
    type(None): "None",
}


def said(hint: Any) -> str:
    """A type in words."""
    alternatives = _alternatives(hint)
    if len(alternatives) > 1:
        return " or ".join(dict.fromkeys(map(said, alternatives)))
    hint = alternatives[0]
    origin, args = get_origin(hint), get_args(hint)
    if hint in _SAID:
        return _SAID[hint]
    if origin is Literal:
        return f"one of {', '.join(map(repr, args))}"
    if origin in {tuple, Sequence, list}:
        many = "a list" if origin is not tuple or args[1:] == (...,) else f"{len(args)} values"
        return f"{many} ({said(args[0])} each)"
    if origin is Mapping or origin is dict:
        return "a mapping from names"
    if origin is Callable or _members(hint) == {"__call__"}:
        return "a function"
    name = getattr(hint, "__name__", str(hint))
    return f"{'an' if name[:1] in 'AEIOU' else 'a'} {name}"


def _alternatives(hint: Any) -> list[Any]:
    """The members of a union."""
    if get_origin(hint) is Annotated:
        return _alternatives(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return [part for member in get_args(hint) for part in _alternatives(member)]
    return [hint]


def brief(value: object) -> str:
    """A value in one line of at most 80 characters, for a message."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if hasattr(value, "shape") and hasattr(value, "dtype") and hasattr(value, "__len__"):
        kind = "a tensor" if hasattr(value, "device") and hasattr(value, "requires_grad") else "an array"
        return f"{kind} of shape {tuple(value.shape)}"  # pyright: ignore[reportAttributeAccessIssue]
    if hasattr(value, "named_parameters"):  # a module of torch, which is not imported here
        return f"the module {type(value).__name__}"
    if isinstance(value, types.FunctionType | types.MethodType):
        return f"the function {value.__name__}"
    if isinstance(value, Mapping):
        text = "{" + ", ".join(f"{key!r}: {brief(part)}" for key, part in value.items()) + "}"
    elif isinstance(value, tuple | list) and len(value) > 16:
        text = f"({', '.join(map(brief, value[:2]))}, … {brief(value[-1])}: {len(value)} in all)"
    else:
        text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:60]}… ({type(value).__name__})"


__all__ = ["FieldError", "brief", "check_type", "fits", "said", "typed"]
