"""What lies in a folder of samples: `samples.json` keeps the settings of every call whose pictures are there."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import printable
from .output import note

RECORD = "samples.json"
_PICTURE = re.compile(r"(\d{6,})\.png")
_EACH = ("images", "grid", "seconds_per_image", "first")  # what differs between the parts of one split call


def record_samples(out: Path, settings: Mapping[str, Any], written: Sequence[str]) -> None:
    """Note a call's settings in its folder, and say so where pictures of other calls are left there."""
    from ..storage.files import digest, write_json

    names = {Path(name).name for name in written}
    others = _pictures(out) - names
    mine = {key: value for key, value in settings.items() if key not in _EACH}
    calls: dict[str, dict[str, Any]] = {}
    for call in _calls(out):
        left = sorted(others & set(call["images"]))
        if left:
            calls[digest(call["settings"])] = {"settings": call["settings"], "images": left}
    same = calls.pop(digest(mine), {"images": []})
    foreign = len(others) - len(same["images"])
    if foreign:
        note(
            f"{out} still holds {foreign} pictures of other calls or seeds, which ornstein eval would count too: "
            "name a new --out to keep them apart"
        )
    calls[digest(mine)] = {"settings": mine, "images": sorted({*same["images"], *names})}
    write_json(out / RECORD, {"format": "ornstein-samples", "version": 1, "calls": [*calls.values()]})


def mixture(where: str) -> str | None:
    """A caution if a folder holds samples of several calls with other settings; None for any other folder."""
    folder = Path(where)
    calls = _calls(folder)
    unknown = len(_pictures(folder) - {name for call in calls for name in call["images"]}) if calls else 0
    if len(calls) + bool(unknown) < 2:
        return None
    seeds = sorted({str(call["settings"].get("seed")) for call in calls})
    more = f" and {unknown} pictures of no known call" if unknown else ""
    count = f"{len(calls)} call{'s' * (len(calls) != 1)} (seeds {', '.join(seeds)[:80]})"
    return printable(f"{where} mixes the samples of {count}{more}: the numbers are of the mixture")


def _pictures(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if _PICTURE.fullmatch(path.name)}


def _calls(folder: Path) -> list[dict[str, Any]]:
    """The calls on record, those whose form is damaged left out."""
    from ..storage.files import read_json

    found = read_json(folder / RECORD) if folder.is_dir() else None
    calls = found.get("calls") if isinstance(found, dict) else None
    return [
        call
        for call in (calls if isinstance(calls, list) else [])
        if isinstance(call, dict)
        and isinstance(call.get("settings"), dict)
        and isinstance(call.get("images"), list)
        and all(isinstance(name, str) for name in call["images"])
    ]
