"""The latents of a data set, encoded once and read from the cache afterwards.

    CACHE/latents-DIGEST/   00000.npy  00000.json  00001.npy  …

A shard holds the posteriors of `SHARD` examples, float32 (N, 2·c, h, w): mean and log-variance, before any
normalisation. It appears whole or not at all, so encoding that was interrupted goes on with the first missing shard.
The digest is that of the data's fingerprint, the codec's weights and its tiles. Everything may be deleted.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ornstein.data.base import Derived, Example, Source, UnreadableError, checked
from ornstein.data.cache import Progress
from ornstein.errors import DataError
from ornstein.latents.codec import By, Codec, KLCodec, Moments, Normalisation, Running, normalisation
from ornstein.storage.files import atomic, cache_folder, digest, map_array, read_json, write_json

SHARD = 1024
_BATCH = 16
Shard = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """A shard: its posteriors, and label, caption, name and (if it cannot be read) reason of each example."""

    notes: list[dict[str, Any]]
    path: Path | None = None
    array: Shard | None = None
    mapped: dict[str, Shard] = field(default_factory=dict)

    def rows(self) -> Shard:
        """Memory-mapped if they lie in the cache."""
        if self.array is not None:
            return self.array
        if "rows" not in self.mapped:
            assert self.path is not None
            self.mapped["rows"] = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return self.mapped["rows"]

    def __reduce__(self) -> tuple[Any, ...]:
        # A process started afresh maps the file again instead of receiving a copy of it.
        return _kept, (self.notes, self.path, self.array)


def _kept(notes: list[dict[str, Any]], path: Path | None, array: Shard | None) -> _Kept:
    return _Kept(notes=notes, path=path, array=array)


@dataclass(frozen=True, slots=True, kw_only=True)
class Latents(Derived):
    """A `Source` whose examples are latents: ``image`` is float32, (c, h, w), normalised.

    With ``draws`` it is (2·c, h, w), mean and log-variance, for a fresh draw at every visit. ``shape`` is (c, h, w)
    either way.
    """

    shards: tuple[_Kept, ...]
    shape: tuple[int, int, int]
    normalise: Normalisation
    draws: bool
    key: str

    @property
    def fingerprint(self) -> str:
        """Digest of the data, the codec's weights and the normalisation."""
        shift, scale = (value.numpy().tobytes().hex() for value in (self.normalise.shift, self.normalise.scale))
        return digest(self.key, shift, scale, self.draws)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        place, row = divmod(checked(index, len(self)), SHARD)
        note = self.shards[place].notes[row]
        if "reason" in note:
            raise UnreadableError(note["name"], note["reason"])
        raw = torch.from_numpy(np.array(self.shards[place].rows()[row]))[None]
        mean, logvar = raw.chunk(2, dim=1)
        latent = self.normalise.apply(mean)
        if self.draws:
            latent = torch.cat((latent, logvar + self.normalise.log_scale(mean)), dim=1)
        return Example(image=latent[0], label=note["label"], caption=note["caption"], name=note["name"])

    def read_captions(self) -> list[str]:
        """Those of the data."""
        return [note.get("caption", "") for shard in self.shards for note in shard.notes]


def latents(
    source: Source,
    codec: Codec,
    *,
    by: By = "element",
    std: float = 0.5,
    draws: bool = True,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> tuple[Latents, KLCodec]:
    """A source's latents, and the codec with the normalisation that they have.

    ``by`` says how latents are normalised: ``element`` or ``channel`` brings the set to mean 0 and standard deviation
    ``std``; ``none`` leaves them as the codec makes them. With ``draws`` the variance of the posteriors counts in the
    statistics, and examples hold both moments. The codec must be on ``device``.

    Raises `DataError` for a codec that is no `KLCodec`, or pictures that it cannot encode.
    """
    if not isinstance(codec, KLCodec):
        raise DataError(f"latents are made with an autoencoder, got {type(codec).__name__}: leave the codec out")
    if source.size % codec.factor:
        raise DataError(f"pictures of {source.size} pixels do not divide by {codec.factor}, as the codec needs")
    raw = codec.normalised(Normalisation())
    shape = codec.latent_shape((3, source.size, source.size))
    tiles = "" if codec.tiles is None else f"{codec.tiles.side},{codec.tiles.overlap}"
    key = digest(source.fingerprint, len(source), source.size, codec.weights, str(codec.dtype), tiles)
    shards = tuple(
        _shard(source, raw, shape, key, place, torch.device(device), progress)
        for place in range(-(-len(source) // SHARD))
    )
    scale = codec.normalisation if by == "none" else _measured(shards, by, std, draws)
    made = Latents(source=source, shards=shards, shape=shape, normalise=scale, draws=draws, key=key)
    return made, codec.normalised(scale)


def moments_of(image: Tensor, channels: int) -> Moments | None:
    """The two halves of a batch of examples that hold both moments; None where they hold latents alone."""
    return Moments(*image.chunk(2, dim=1)) if image.shape[1] == 2 * channels else None


def _measured(shards: tuple[_Kept, ...], by: By, std: float, draws: bool) -> Normalisation:
    seen = Running()
    for shard in shards:
        readable = [row for row, note in enumerate(shard.notes) if "reason" not in note]
        for start in range(0, len(readable), 256):
            rows = torch.from_numpy(np.array(shard.rows()[readable[start : start + 256]]))
            mean, logvar = rows.chunk(2, dim=1)
            seen.update(mean, logvar if draws else None)
    return normalisation(seen, by, std=std)


def _shard(
    source: Source,
    codec: KLCodec,
    shape: tuple[int, int, int],
    key: str,
    place: int,
    device: torch.device,
    progress: Progress | None,
) -> _Kept:
    first, last = place * SHARD, min((place + 1) * SHARD, len(source))
    about = {"key": key, "count": last - first, "shape": [2 * shape[0], *shape[1:]], "format": 1}
    try:
        folder = cache_folder() / f"latents-{key}"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{place:05d}.npy"
        found = _found(path, about)
        if found is not None:
            return found
        array, notes = _encoded(source, codec, range(first, last), shape, device, progress)
        with atomic(path) as file:
            np.save(file, array, allow_pickle=False)
        write_json(path.with_suffix(".json"), {**about, "crc32": zlib.crc32(array.tobytes()), "notes": notes})
        return _Kept(notes=notes, path=path)
    except OSError:  # a cache that cannot be written costs only time
        array, notes = _encoded(source, codec, range(first, last), shape, device, progress)
        return _Kept(notes=notes, array=array)


def _found(path: Path, about: Mapping[str, Any]) -> _Kept | None:
    notes = read_json(path.with_suffix(".json"))
    if not isinstance(notes, dict) or any(notes.get(name) != value for name, value in about.items()):
        return None
    array = map_array(path, (about["count"], *about["shape"]), np.dtype(np.float32))
    if array is None or len(notes.get("notes", ())) != about["count"]:
        return None
    return None if zlib.crc32(array.tobytes()) != notes.get("crc32") else _Kept(notes=notes["notes"], path=path)


@torch.no_grad()
def _encoded(
    source: Source,
    codec: KLCodec,
    rows: range,
    shape: tuple[int, int, int],
    device: torch.device,
    progress: Progress | None,
) -> tuple[Shard, list[dict[str, Any]]]:
    """Posteriors in batches that begin at the shard's own start, so that a restart changes none of them."""
    out = np.zeros((len(rows), 2 * shape[0], *shape[1:]), dtype=np.float32)
    notes: list[dict[str, Any]] = []
    for start in range(0, len(rows), _BATCH):
        part = rows[start : start + _BATCH]
        pictures: list[Tensor] = []
        for index in part:
            try:
                example = source[index]
            except UnreadableError as error:
                notes.append({"name": error.name, "reason": error.reason})
                pictures.append(torch.zeros(3, source.size, source.size, dtype=torch.uint8))
                continue
            notes.append({"name": example.name, "label": example.label, "caption": example.caption})
            pictures.append(example.image)
        images = torch.stack(pictures).to(device).float().div_(127.5).sub_(1.0)
        found = torch.cat(codec.moments(images), dim=1).float().cpu().numpy()
        out[start : start + len(part)] = found
        if progress is not None:
            progress(part[-1] + 1, len(source))
    return out, notes
