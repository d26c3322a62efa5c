"""Several sources as one: ``open_source("critters:3800+planets:120")``, each part a class of the whole.

A large part joined with small ones makes a set whose rare classes are known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ornstein.data.base import Example, Source, UnreadableError, captions_of, checked
from ornstein.errors import DataError
from ornstein.storage.files import digest

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Joined:
    """The examples of several sources of one size; the label of an example is its part.

    The parts are dealt out evenly: example j of a part with n examples stands at (j + ½)/n of the whole, so any first
    part of the set holds the parts in their proportions. ``sources`` are in label order; their own labels are given up,
    captions and names kept. `place` says where an example comes from.

    Masks, parts and attributes are asked of the source that has the example; one that has none raises `DataError`.
    """

    name: str
    sources: tuple[Source, ...] = field(repr=False)
    classes: tuple[str, ...]

    @property
    def size(self) -> int:
        """Side of the pictures."""
        return self.sources[0].size

    @property
    def fingerprint(self) -> str:
        """Digest of all parts and their names."""
        return digest("joined", *self.classes, *(part.fingerprint for part in self.sources))

    @property
    def licence(self) -> str:
        """The licences that the parts state, each once; empty if none does."""
        stated = [str(getattr(part, "licence", "")) for part in self.sources]
        return ", ".join(dict.fromkeys(text for text in stated if text))

    @cached_property
    def _places(self) -> tuple[Integers, Integers]:
        """Part and number within the part of every example, (N,) each."""
        lengths = [len(part) for part in self.sources]
        parts = np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)
        numbers = np.concatenate([np.arange(length, dtype=np.int64) for length in lengths])
        stands = (numbers + 0.5) / np.asarray(lengths, dtype=np.float64)[parts]
        order = np.lexsort((parts, stands))
        return parts[order], numbers[order]

    def __len__(self) -> int:
        return sum(len(part) for part in self.sources)

    def place(self, index: int) -> tuple[int, int]:
        """(part, number of the example within it)."""
        parts, numbers = self._places
        index = checked(index, len(self))
        return int(parts[index]), int(numbers[index])

    def __getitem__(self, index: int) -> Example:
        part, number = self.place(index)
        try:
            return replace(self.sources[part][number], label=part)
        except UnreadableError as error:
            raise UnreadableError(f"{self.classes[part]}: {error.name}", error.reason) from None

    def read_captions(self) -> list[str]:
        """Those of the parts."""
        parts, numbers = self._places
        found = [captions_of(part) for part in self.sources]
        return [found[part][number] for part, number in zip(parts.tolist(), numbers.tolist(), strict=True)]

    def attributes(self, index: int) -> dict[str, str]:
        """See `ornstein.data.embedded.Drawn.attributes`."""
        return self._from_part("attributes", index)

    def parts(self, index: int) -> tuple[str, ...]:
        """See `ornstein.data.embedded.Drawn.parts`."""
        return self._from_part("parts", index)

    def mask(self, index: int, part: str) -> Tensor:
        """See `ornstein.data.embedded.Drawn.mask`."""
        return self._from_part("mask", index, part)

    def _from_part(self, what: str, index: int, *more: Any) -> Any:
        part, number = self.place(index)
        method = getattr(self.sources[part], what, None)
        if method is None:
            raise DataError(f"{self.classes[part]} has no {what}: only drawn sets know how their pictures were made")
        return method(number, *more)


def pieces(where: str) -> tuple[str, ...]:
    """The texts that a WHERE with "+" joins; one text where "+" belongs to a name: a file, a folder or an address.

    >>> pieces("critters:3800+planets:120"), pieces("https://host/a+b.tar")
    (('critters:3800', 'planets:120'), ('https://host/a+b.tar',))
    """
    if "+" not in where or "://" in where or Path(where).expanduser().exists():
        return (where,)
    found = tuple(text.strip() for text in where.split("+"))
    if not all(found):
        raise DataError(f"cannot read {where!r}: a + joins two sources, for example critters:3800+planets:120")
    return found


def join(name: str, texts: Sequence[str], sources: Sequence[Source]) -> Joined:
    """The sources as one. Classes are named as the parts without their counts and folders; in full where these clash.

    Raises `DataError` for parts of several sizes, or one that stands there twice.
    """
    if len({source.size for source in sources}) > 1:
        raise DataError(f"{name}: all parts must have one size, got {', '.join(str(s.size) for s in sources)}")
    short = [_short(text) for text in texts]
    twice = [text for text, count in Counter(texts).items() if count > 1]
    if twice:
        raise DataError(f"{name} names {twice[0]} twice: each part once, with its count if it is drawn")
    clash = {text for text, count in Counter(short).items() if count > 1}
    classes = tuple(text if brief in clash else brief for text, brief in zip(texts, short, strict=True))
    return Joined(name=name, sources=tuple(sources), classes=classes)


def _short(text: str) -> str:
    head, _, count = text.rpartition(":")
    if head and count.isdecimal():
        text = head
    return Path(text).name if "/" in text and not text.startswith("hf:") else text
