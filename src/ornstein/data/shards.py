"""WebDataset shards: tar files whose members are grouped into examples by the name before the first dot.

A tar is indexed once (offset and size of each member; the index is kept in the cache), so that shards can be read in
any order like every other source. Shards behind http(s) addresses are first brought to the cache folder.
"""

from __future__ import annotations

import glob
import itertools
import os
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ornstein.data.base import Example, UnreadableError, checked
from ornstein.data.decode import decode, extensions
from ornstein.data.folder import caption_of, name_labels
from ornstein.errors import DataError
from ornstein.storage.files import cache_folder, digest, digest_files, read_json, write_json
from ornstein.storage.reading import DOCUMENT, LINE, PICTURE, Clamped, Refused, open_regular, parse_json, reason_of

_PREFERRED = ("jpg", "jpeg", "png", "webp")
_CAPTIONS = ("txt", "text", "caption")

MOST = 100_000
"""Most shards that one text may name."""

# What Python's tar reader raises of headers that somebody made up.
_DAMAGED = (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, RecursionError, MemoryError, LookupError)

Place = tuple[int, int]  # offset and size of a member's bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One example: where its image and caption lie in which shard, and its label."""

    shard: int
    key: str
    image: Place
    text: Place | None = None
    json: Place | None = None
    label: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shards:
    """Examples of local tar files, in the order of the files and of the members inside."""

    name: str
    size: int
    classes: tuple[str, ...]
    fingerprint: str
    files: tuple[Path, ...]
    members: tuple[Member, ...]
    places: dict[Any, int]

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: int) -> Example:
        member = self.members[checked(index, len(self))]
        file = self.files[member.shard]
        name = f"{file.name}/{member.key}"
        try:
            image = decode(_bytes(file, member.image, PICTURE), self.size, name)
            caption = self._caption(file, member)
        except UnreadableError:
            raise
        except (OSError, ValueError) as error:
            raise UnreadableError(name, reason_of(error)) from None
        return Example(image=image, label=self.places.get(member.label, -1), caption=caption, name=name)

    def read_captions(self) -> list[str]:
        """Read from the texts alone; empty where one cannot be read."""
        found: list[str] = []
        for member in self.members:
            try:
                found.append(self._caption(self.files[member.shard], member))
            except (OSError, ValueError):
                found.append("")
        return found

    @staticmethod
    def _caption(file: Path, member: Member) -> str:
        if member.text is not None:
            return _bytes(file, member.text, LINE).decode("utf-8", "replace").strip()
        return caption_of(_document(_bytes(file, member.json, DOCUMENT))) if member.json is not None else ""


def is_shards(where: str) -> bool:
    """Whether a text names tar files: by its ending, or as an http(s) address."""
    return where.endswith((".tar", ".tar}")) or re.match(r"https?://", where) is not None


def open_shards(where: str, *, size: int) -> Shards:
    """``shards-{000..003}.tar``, a glob such as ``data/*.tar``, one tar, or http(s) addresses with the same braces.

    Members: an image (``.jpg``, ``.png``, …), optionally ``.cls`` (a number or a name), ``.txt`` (a caption) and
    ``.json`` (``label``, ``caption`` or ``text``). Raises `DataError` if a shard is missing or is not a plain tar.
    """
    files = tuple(_local(where))
    members = [m for shard, file in enumerate(files) for m in _indexed(shard, file)]
    if not members:
        raise DataError(f"{where} holds no images: its members should be called like 0001.jpg, 0001.cls, 0001.txt")
    classes, places = name_labels([m.label for m in members], where)
    return Shards(
        name=where,
        size=size,
        classes=classes,
        fingerprint=digest("shards", digest_files((f.name, f) for f in files), size),
        files=files,
        members=tuple(members),
        places=places,
    )


def _local(where: str) -> list[Path]:
    """The shards as local files, in order."""
    names = _expanded(where)
    if re.match(r"https?://", where):
        return _fetched(names)
    names = [str(Path(name).expanduser()) for name in names]
    files = [Path(f) for name in names for f in (sorted(glob.glob(name)) if glob.has_magic(name) else [name])]  # noqa: PTH207
    missing = [f for f in files if not f.is_file()]
    if missing or not files:
        raise DataError(f"no shard {missing[0] if missing else where}: give tar files, e.g. shards-{{000..003}}.tar")
    return files


def _expanded(where: str) -> list[str]:
    if "{" not in where:
        return [where]
    try:
        from braceexpand import braceexpand
    except ImportError:
        raise DataError("braces in shard names need the package webdataset: run `pip install webdataset`") from None
    many = f"{where[:80]!r} names more than {MOST} shards: give a smaller range, or a glob such as *.tar"
    if _least_number(where) > MOST:  # before the package makes lists of it
        raise DataError(many)
    try:
        found = list(itertools.islice(braceexpand(where), MOST + 1))
    except (ValueError, RecursionError) as error:
        raise DataError(f"cannot expand the braces of {where[:80]!r}: {str(error)[:80]}") from None
    if len(found) > MOST:
        raise DataError(many)
    return found


def _least_number(where: str) -> int:
    """How many texts braces expand to, those inside others counted once."""
    number = 1
    for group in re.findall(r"\{([^{}]*)\}", where):
        ends = re.fullmatch(r"(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?", group)
        if ends is None:
            number *= group.count(",") + 1
        elif max(map(len, ends.group(1, 2))) > 12:
            return MOST + 1
        else:
            number *= abs(int(ends[2]) - int(ends[1])) // max(int(ends[3] or 1), 1) + 1
        if number > MOST:
            break
    return number


def _fetched(addresses: list[str]) -> list[Path]:
    """Bring shards to the cache folder with the ``webdataset`` library, unless they are there already."""
    try:
        from webdataset.cache import FileCache
    except ImportError:
        raise DataError("shards behind addresses need the package webdataset: run `pip install webdataset`") from None
    for address in addresses:
        # The library hands addresses to a download program's command line.
        if re.fullmatch(r"https?://[\w.~:/?#@!$&()*+,;=%\[\]-]+", address) is None:
            raise DataError(f"not a plain http(s) address: {address!r}")
    folder = cache_folder() / "shards"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        cache = FileCache(str(folder), url_to_name=_cache_name)
        return [Path(cache.get_file(address)) for address in addresses]
    except Exception as error:  # noqa: BLE001  (the library raises whatever its download program makes of it)
        raise DataError(f"cannot fetch {addresses[0]} …: {' '.join(str(error).split())[:160]}") from None


def _cache_name(address: str) -> str:
    last = re.sub(r"[^\w.-]", "_", address.split("?", 1)[0].rsplit("/", 1)[-1]) or "shard.tar"
    return f"{digest(address)[:16]}-{last}"


def _indexed(shard: int, file: Path) -> list[Member]:
    """The examples of a tar, from the cached index if the file has not changed since."""
    found = file.stat()
    key = [str(file.resolve()), found.st_size, found.st_mtime_ns, 1]
    kept = cache_folder() / f"shard-{digest(*key)}.json"
    document = read_json(kept)
    if not isinstance(document, dict) or document.get("key") != key:
        document = {"key": key, "examples": _scan(file)}
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_json(kept, document)
        except OSError:
            pass  # indexed again next time
    return [
        Member(shard=shard, key=k, image=(i[0], i[1]), text=_place(t), json=_place(j), label=label)
        for k, i, t, j, label in document["examples"]
    ]


def _place(pair: Any) -> Place | None:
    return (pair[0], pair[1]) if pair else None


def _scan(file: Path) -> list[list[Any]]:
    """[key, image, text, json, label] of every example that has an image."""
    groups: dict[str, dict[str, Place]] = {}
    try:
        with open_regular(file) as stream, tarfile.open(fileobj=Clamped(stream), mode="r:") as tar:  # type: ignore[call-overload]
            for member in _members(tar):
                folder, _, base = member.name.rpartition("/")
                stem, _, kind = base.partition(".")
                if member.isreg() and stem:
                    key = f"{folder}/{stem}" if folder else stem
                    groups.setdefault(key, {})[kind.lower()] = (member.offset_data, member.size)
    except _DAMAGED as error:
        raise DataError(f"{file} is not an uncompressed tar file: {reason_of(error)}") from None
    known = (*_PREFERRED, *sorted(e[1:] for e in extensions()))
    examples = []
    for key, kinds in groups.items():
        image = next((kinds[k] for k in known if k in kinds), None)
        if image is not None:
            text = next((kinds[k] for k in _CAPTIONS if k in kinds), None)
            label = _label(file, kinds.get("cls"), kinds.get("json"))
            examples.append([key, image, text, kinds.get("json"), label])
    return examples


def _members(tar: tarfile.TarFile) -> Any:
    """Members up to the point where a truncated file ends; the one cut short is found out when it is decoded."""
    some = False
    try:
        for member in tar:
            if member.size < 0 or member.offset < 0:  # the library would go back, and never end
                raise tarfile.ReadError(f"the member {member.name[:80]!r} has a negative size")
            some = True
            yield member
    except _DAMAGED:
        if not some:
            raise


def _label(file: Path, cls: Place | None, document: Place | None) -> int | str | None:
    value: Any = None
    try:
        if cls is not None:
            value = _bytes(file, cls, LINE).decode("utf-8", "replace").strip()
            value = int(value) if re.fullmatch(r"-?\d{1,9}", value) else value or None
        elif document is not None:
            value = _document(_bytes(file, document, DOCUMENT)).get("label")
    except (OSError, ValueError):
        return None
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None


def _document(data: bytes) -> dict[str, Any]:
    try:
        found = parse_json(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _bytes(file: Path, place: Place, limit: int) -> bytes:
    """The bytes of a member; `Refused` where its header claims more than the file holds, or than ``limit``."""
    with open_regular(file) as stream:
        left = os.fstat(stream.fileno()).st_size - place[0]
        if place[1] > max(left, 0):
            raise Refused(f"the shard ends {place[1] - max(left, 0)} bytes before this member does")
        if place[1] > limit:
            raise Refused(f"{place[1]} bytes, more than the {limit} that such a file may have")
        stream.seek(place[0])
        return stream.read(place[1])
