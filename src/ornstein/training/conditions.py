"""The conditions of a network, and whether the data has the labels or captions for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from ..data.base import Source, captions_of
from ..errors import ConfigError
from ..models.spec import ModelSpec
from ..networks import TextConfig, vocabulary
from ..options import check_fields
from ..typed import typed
from .limits import at_least


class Conditioning(NamedTuple):
    """Names of the labels, and the caption encoder; at most one of the two is there."""

    classes: tuple[str, ...] = ()
    text: TextConfig | None = None

    def options(self) -> dict[str, int]:
        """The fields of a network's configuration that follow."""
        return {"classes": len(self.classes), "text_width": 0 if self.text is None else self.text.width}


def conditioning_of(condition: str, wanted: Text, source: Source) -> Conditioning:
    """What ``condition`` (none, label or text) means on this data, with a caption encoder as ``wanted``.

    Raises `ConfigError` where the data lacks the labels or captions that it asks for.
    """
    if condition == "label":
        if not source.classes:
            raise ConfigError(f"--condition label: {source.name} has no labels; use none or text, or other data")
        return Conditioning(classes=tuple(source.classes))
    if condition == "text":
        known = vocabulary(captions_of(source), wanted.words)
        if not known:
            raise ConfigError(f"--condition text: {source.name} has no captions; use none or label, or other data")
        heads = wanted.width // 32
        text = TextConfig(vocabulary=known, length=wanted.length, width=wanted.width, layers=wanted.layers, heads=heads)
        return Conditioning(text=text)
    return Conditioning()


def require_known(spec: ModelSpec, source: Source, what: str) -> None:
    """Raise `ConfigError` where data lacks the labels or captions of a model that is trained on; ``what`` names it."""
    if spec.labels and spec.labels != tuple(source.classes):
        raise ConfigError(f"{what} knows other labels than {source.name}: train on its own data")
    if spec.encoder is not None and not any(captions_of(source)):
        raise ConfigError(f"{what} takes captions, and {source.name} has none: name other data")


@typed()
@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """The caption encoder of --condition text, trained with the network; its words are those of the data."""

    kind: ClassVar[str] = "text"

    words: int = 4096
    """Largest number of known words."""
    length: int = 24
    """Words kept of a caption."""
    width: int = 96
    """Channels of a word, a multiple of 32."""
    layers: int = 1
    """Layers of its transformer."""

    def __post_init__(self) -> None:
        at_least(1, text__words=self.words, text__length=self.length, text__layers=self.layers)
        if self.width < 32 or self.width % 32:
            raise ConfigError(f"text.width must be a multiple of 32, got {self.width}")
        check_fields(self)
