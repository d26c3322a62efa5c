"""What every data source offers: examples that can be indexed, so that order and resuming are exact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from ornstein.errors import DataError, printable
from ornstein.storage.files import digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One picture: ``image`` is uint8 (3, R, R); ``label`` indexes the source's ``classes``, −1 for none."""

    image: Tensor
    label: int = -1
    caption: str = ""
    name: str = ""  # file name, seed or key: what messages call it


class Source(Protocol):
    """A map-style data source: a length and an example for every index, the same in every process.

    ``source[i]`` raises `UnreadableError` where the i-th example exists but cannot be turned into a picture.
    """

    @property
    def name(self) -> str:
        """What the user calls it, e.g. ``"critters"`` or a folder."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels; empty if there are none."""
        ...

    @property
    def size(self) -> int:
        """Side R of the square pictures, in pixels."""
        ...

    @property
    def fingerprint(self) -> str:
        """Digest of what the source is made from; a run refuses to resume on another one."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


@runtime_checkable
class Captioned(Protocol):
    """A source that knows its captions without its pictures."""

    def read_captions(self) -> list[str]:
        """The caption of every example, in order; empty where there is none."""
        ...


def captions_of(source: Source) -> list[str]:
    """The caption of every example of any source; pictures are decoded only where it is not `Captioned`.

    Empty for an example without a caption, or one that cannot be read.
    """
    if isinstance(source, Captioned):
        return source.read_captions()
    found: list[str] = []
    for index in range(len(source)):
        try:
            found.append(source[index].caption)
        except UnreadableError:
            found.append("")
    return found


class UnreadableError(DataError):
    """One example cannot be turned into a picture; `batches` skips it and reports ``(name, reason)``."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{printable(name)}: {reason}")
        self.name, self.reason = name, reason

    def __reduce__(self) -> tuple[type[UnreadableError], tuple[str, str]]:
        return type(self), (self.name, self.reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Derived:
    """What is made of another ``source``, of which it keeps name, classes (labels keep their meaning) and size."""

    source: Source

    @property
    def name(self) -> str:
        """The name of the whole source."""
        return self.source.name

    @property
    def classes(self) -> tuple[str, ...]:
        """All classes of the whole source."""
        return tuple(self.source.classes)

    @property
    def size(self) -> int:
        """Side of the pictures."""
        return self.source.size


@dataclass(frozen=True, slots=True, kw_only=True)
class First(Derived):
    """The first ``count`` examples of another source."""

    count: int

    @property
    def fingerprint(self) -> str:
        """Digest of the whole source and the count."""
        return digest(self.source.fingerprint, self.count)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        return self.source[checked(index, self.count)]

    def read_captions(self) -> list[str]:
        """The captions of the first ``count`` examples."""
        return captions_of(self.source)[: self.count]


def checked(index: int, length: int) -> int:
    """``index`` as a number in [0, length), counting from the end if negative; IndexError outside."""
    if not -length <= index < length:
        raise IndexError(f"index {index} of a source with {length} examples")
    return index % length
