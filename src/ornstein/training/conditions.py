"""What a network is told about its images, and how the data answers for it."""

from __future__ import annotations

from typing import NamedTuple

from ..data.base import Source
from ..data.loader import read
from ..errors import ConfigError
from ..networks import TextConfig, vocabulary
from .config import TrainConfig

_CAPTIONS_READ = 4096


class Told(NamedTuple):
    """Names of the labels, and the caption encoder; at most one of the two is there."""

    classes: tuple[str, ...] = ()
    text: TextConfig | None = None

    def options(self) -> dict[str, int]:
        """The fields of a network's configuration that follow."""
        return {"classes": len(self.classes), "text_width": 0 if self.text is None else self.text.width}


def told(config: TrainConfig, source: Source) -> Told:
    """What ``config.condition`` means on this data.

    Raises `ConfigError` where the data lacks the labels or captions that the configuration asks for.
    """
    if config.condition == "label":
        if not source.classes:
            raise ConfigError(f"--condition label: {source.name} has no labels; use none or text, or other data")
        return Told(classes=tuple(source.classes))
    if config.condition == "text":
        wanted = config.text
        known = vocabulary(captions(source), wanted.words)
        if not known:
            raise ConfigError(f"--condition text: {source.name} has no captions; use none or label, or other data")
        heads = wanted.width // 32
        text = TextConfig(vocabulary=known, length=wanted.length, width=wanted.width, layers=wanted.layers, heads=heads)
        return Told(text=text)
    return Told()


def captions(source: Source, count: int = _CAPTIONS_READ) -> list[str]:
    """Captions of at most ``count`` examples, evenly spaced; empty where an example has none."""
    stride = -(-len(source) // count)
    return [read(source, index)[0].caption for index in range(0, len(source), stride)]
