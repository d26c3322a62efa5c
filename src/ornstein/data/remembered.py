"""Decoded pictures kept in memory, for sources that decode a file at every visit."""

from __future__ import annotations

from dataclasses import dataclass, field

from ornstein.data.base import Derived, Example, Source, captions_of, checked

LIMIT = 2**30
"""Bytes of decoded pictures that are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remembered(Derived):
    """Another source, of which the first ``limit`` bytes of pictures that are read are kept.

    A photograph of twelve megapixels takes longer to decode than a training step takes on its small copy.
    What cannot be read is tried anew at every visit.
    """

    limit: int = LIMIT
    _kept: dict[int, Example] = field(default_factory=dict[int, Example])

    @property
    def fingerprint(self) -> str:
        """Its digest: the examples are the same."""
        return self.source.fingerprint

    def read_captions(self) -> list[str]:
        """The captions of the other source."""
        return captions_of(self.source)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        place = checked(index, len(self))
        found = self._kept.get(place)
        if found is None:
            found = self.source[place]
            if (len(self._kept) + 1) * found.image.nbytes <= self.limit:
                self._kept[place] = found
        return found


def remembered(source: Source) -> Source:
    """The source, kept in memory as it is read if it decodes files."""
    from ornstein.data import folder, hub, shards

    decodes = isinstance(source, folder.Folder | hub.HubDataset | shards.Shards)
    return Remembered(source=source) if decodes else source
