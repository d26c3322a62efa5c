"""Guidances by name: the registry at the edge, for `ornstein sample --guidance NAME[:NUMBER][,KEY=VALUE…]`.

>>> read_guidance("pag:3,at=up.0.*").make(Setting())
PAG(scale=3.0, at='up.0.*')
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from torch import nn

from ..denoisers import DenoiserLike, Guidance
from ..errors import ConfigError, UsageError
from ..grids import GridLike, affine
from ..networks.sites import modulated
from ..paths.base import Cond, Path
from .base import affine_path
from .cfg import APG, CFG, Autoguidance, CFGpp
from .compose import interval
from .perturbed import PAG, SEG, SkipLayer
from .threshold import Threshold

Need = Literal["condition", "grid", "model", "sites"]
_WINDOW = "sigma"  # a key of every guidance


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _named(text: str) -> str:
    if not text:
        raise ValueError(text)
    return text


def _window(text: str) -> tuple[float, float]:
    low, _, high = text.partition(":")
    window = float(low), float(high)
    if not 0.0 <= window[0] < window[1]:
        raise ValueError(text)
    return window


def _blocks(text: str) -> tuple[int, ...]:
    return tuple(int(block) for block in text.split("+"))


@dataclass(frozen=True, slots=True)
class Value:
    """One argument as text: how it is read, and what it must look like."""

    read: Callable[[str], Any]
    looks: str


NUMBER = Value(_finite, "a number")
POSITIVE = Value(float, "a positive number, or inf")
SITES = Value(_named, "a pattern of site names")
WINDOW = Value(_window, "LOW:HIGH in σ/α with 0 ≤ LOW < HIGH")


@dataclass(frozen=True, slots=True, kw_only=True)
class GuidanceType:
    """One entry of `GUIDANCES`.

    ``make`` gives the guidance from its arguments by name. ``number`` is the argument that NUMBER sets, read by
    ``reads``; ``default`` is its value without a NUMBER (None: a NUMBER is required). ``keys`` are the other arguments.
    ``needs`` is what the model or the call must offer: a "condition", the "grid" of the sampler, a second "model", or a
    network with named "sites".
    """

    name: str
    what: str
    make: Callable[..., Guidance]
    number: str
    default: float | None
    reads: Value = NUMBER
    keys: Mapping[str, Value] = field(default_factory=dict)
    needs: tuple[Need, ...] = ()

    @property
    def form(self) -> str:
        """How it is written, such as ``cfg:WEIGHT[,rescale=…][,sigma=…]``."""
        run = ":RUN" if "model" in self.needs else ""
        number = f":{self.number.upper()}" if self.default is None else f"[:{self.number.upper()}]"
        return self.name + run + number + "".join(f"[,{key}=…]" for key in (*self.keys, _WINDOW))


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a guidance may need of the call around it. None: the call does not have it.

    * ``null``: the empty condition, where the model is given a condition to guide toward.
    * ``grid`` and ``path``: of the sampler.
    * ``net``: the network whose sites are modulated.
    * ``open``: opens the second model by its name; (model, whether it takes the same condition).
    """

    null: Cond | None = None
    grid: GridLike | None = None
    path: Path | None = None
    net: nn.Module | None = None
    open: Callable[[str], tuple[DenoiserLike, bool]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GuidanceSpec:
    """A guidance in words, read: its type, its arguments, and the window and the second model where there is one."""

    text: str
    type: GuidanceType
    arguments: Mapping[str, Any]
    window: tuple[float, float] | None = None
    model: str | None = None

    def make(self, setting: Setting) -> Guidance:
        """The guidance.

        Raises:
            UsageError: the setting lacks what the guidance needs, or an argument is out of range.
        """
        needs, name = self.type.needs, self.type.name
        arguments = dict(self.arguments)
        if "condition" in needs:
            if setting.null is None:
                raise UsageError(f"guidance {self.text!r} needs a condition to guide toward, and there is none")
            arguments["null"] = setting.null
        if "grid" in needs:
            if setting.grid is None:
                raise UsageError(f"guidance {self.text!r} needs the grid of the sampler")
            if setting.path is not None:
                affine_path(setting.path, name)
            arguments["grid"] = setting.grid
        if "model" in needs:
            if setting.open is None or self.model is None:
                raise UsageError(f"guidance {self.text!r} needs a second model")
            arguments["worse"], arguments["conditional"] = setting.open(self.model)
        if self.window is not None and setting.path is not None:
            affine(setting.path)
        made = self.type.make(**arguments)
        if "sites" in needs and setting.net is not None:
            try:
                with modulated(setting.net, made.modulations()):  # pyright: ignore[reportAttributeAccessIssue]
                    pass
            except ConfigError as error:
                raise ConfigError(f"guidance {self.text!r}: {error}") from None
        return made if self.window is None else interval(made, sigma=self.window)


def _skip_layer(
    scale: float, blocks: tuple[int, ...] | None = None, before: str | None = None, after: str | None = None
) -> SkipLayer:
    if blocks is not None and before is None and after is None:
        return SkipLayer.blocks(*blocks, scale=scale)
    if blocks is None and before is not None and after is not None:
        return SkipLayer(layers=((before, after),), scale=scale)
    raise ConfigError("skip-layer needs blocks=2+3 of a transformer, or before=SITE,after=SITE of any network")


_ALL = (
    GuidanceType(
        name="cfg",
        what="classifier-free guidance toward the condition; 1 is none",
        make=CFG,
        number="weight",
        default=None,
        keys={"rescale": NUMBER},
        needs=("condition",),
    ),
    GuidanceType(
        name="apg",
        what="the same without the part along the estimate, which over-saturates",
        make=APG,
        number="weight",
        default=None,
        keys={"parallel": NUMBER, "norm": NUMBER},
        needs=("condition",),
    ),
    GuidanceType(
        name="cfg++",
        what="classifier-free guidance re-noised with the unconditional noise",
        make=CFGpp,
        number="scale",
        default=0.6,
        needs=("condition", "grid"),
    ),
    GuidanceType(
        name="autoguidance",
        what="away from a worse model of the same kind; 1 is none",
        make=Autoguidance,
        number="weight",
        default=2.0,
        needs=("model",),
    ),
    GuidanceType(
        name="pag",
        what="away from the network without its attention maps; 0 is none",
        make=PAG,
        number="scale",
        default=3.0,
        keys={"at": SITES},
        needs=("sites",),
    ),
    GuidanceType(
        name="seg",
        what="away from the network with blurred queries; 0 is none",
        make=SEG,
        number="scale",
        default=3.0,
        keys={"blur": POSITIVE, "at": SITES},
        needs=("sites",),
    ),
    GuidanceType(
        name="skip-layer",
        what="away from the network with layers left out; 0 is none",
        make=_skip_layer,
        number="scale",
        default=2.8,
        keys={"blocks": Value(_blocks, "numbers such as 2+3"), "before": SITES, "after": SITES},
        needs=("sites",),
    ),
    GuidanceType(
        name="threshold",
        what="the clean estimate clipped to a quantile of itself and divided by it",
        make=Threshold,
        number="quantile",
        default=0.995,
        reads=Value(lambda text: None if text == "none" else _finite(text), "a number, or none for plain clipping"),
        keys={"bound": NUMBER},
    ),
)

GUIDANCES: Mapping[str, GuidanceType] = MappingProxyType({one.name: one for one in _ALL})


def read_guidance(text: str) -> GuidanceSpec:
    """A guidance from NAME[:NUMBER][,KEY=VALUE…]; autoguidance from autoguidance:RUN[:NUMBER][,KEY=VALUE…].

    The key ``sigma=LOW:HIGH`` of every guidance is its window of noise levels σ/α, as in `interval`.

    Raises:
        ConfigError: an unknown name or key (the closest ones are named first), or a value that cannot be read.
    """
    head, *pairs = text.split(",")
    name, _, number = head.partition(":")
    found = GUIDANCES.get(name)
    if name == "help":
        raise ConfigError(f"a guidance is one of {'; '.join(one.form for one in GUIDANCES.values())}")
    if found is None:
        raise ConfigError(f"unknown guidance {name!r}: {_nearest(name, GUIDANCES)}")
    model = None
    if "model" in found.needs:
        model, number = _model(number)
        if not model:
            raise ConfigError(f"guidance {text!r} needs a second model: write {found.form}")
    if not number and found.default is None:
        raise ConfigError(f"guidance {text!r} needs a number: write {found.form}")
    arguments: dict[str, Any] = {
        found.number: _read(text, found.number, found.reads, number) if number else found.default
    }
    values, window = {**found.keys, _WINDOW: WINDOW}, None
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if key not in values:
            raise ConfigError(f"guidance {text!r} has no {key!r}: {_nearest(key, values)}")
        if not equals or key in arguments or (key == _WINDOW and window is not None):
            raise ConfigError(f"guidance {text!r} must give {key} once, as {key}=VALUE")
        result = _read(text, key, values[key], value)
        if key == _WINDOW:
            window = result
        else:
            arguments[key] = result
    return GuidanceSpec(text=text, type=found, arguments=arguments, window=window, model=model)


def _model(text: str) -> tuple[str, str]:
    """(run, number) of RUN[:NUMBER]."""
    run, colon, number = text.rpartition(":")
    try:
        float(number)
    except ValueError:
        return text, ""
    return (run, number) if colon else (text, "")


def _read(text: str, key: str, value: Value, given: str) -> Any:
    try:
        return value.read(given)
    except ValueError:
        raise ConfigError(f"guidance {text!r}: {key} must be {value.looks}, got {given!r}") from None


def _nearest(word: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(word.lower(), known, n=1)
    return f"did you mean {close[0]}?" if close else f"choose one of {', '.join(known)}"


# The classes among these are those of `ornstein.guidance`.
__all__ = [
    "APG",
    "CFG",
    "GUIDANCES",
    "PAG",
    "SEG",
    "Autoguidance",
    "CFGpp",
    "GuidanceSpec",
    "GuidanceType",
    "SkipLayer",
    "Threshold",
]
