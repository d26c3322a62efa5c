"""Create or resume a run folder; refuse folders that are not ours."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..data.base import Source
from ..errors import CheckpointError, ConfigError
from ..models.card import CONFIG, VERSION, read_document, read_spec
from ..models.registry import spec_class
from ..models.spec import ModelSpec
from ..storage.configs import flat, from_dict, to_dict
from ..storage.console import tell
from ..storage.files import read_json, write_json, write_text
from ..storage.reading import lines_of, parse_json, unreadable
from .config import TrainConfig
from .methods import METHODS, config_class, method_of

METRICS = "metrics.jsonl"
SUMMARY = "summary.json"

# What may change between two sittings of one run without changing a bit of it. The data is compared by its fingerprint.
_FREE = ("out", "data", "codec", "images", "minutes", "workers", "keep", "device", "tensorboard", "every.")


def document(config: TrainConfig, spec: ModelSpec, source: Source) -> dict[str, Any]:
    """What config.json holds: how the model is built, and how it was trained."""
    return {
        "format": "ornstein-run",
        "version": VERSION,
        "model": to_dict(spec),
        "data": {"name": source.name, "fingerprint": source.fingerprint, "examples": len(source)},
        "train": to_dict(config),
    }


def check(config: TrainConfig) -> bool:
    """Whether ``config.out`` holds a run to go on with; `ConfigError` if it is anything else but empty or absent."""
    out = Path(config.out)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file: name a folder")
    if not out.is_dir():
        home = next((parent for parent in out.absolute().parents if parent.exists()), Path("/"))
        if not home.is_dir():
            raise ConfigError(f"--out {out} cannot be written (not a directory): name another folder")
        return False
    for path in (out / ".lock", out / METRICS):  # a FIFO would be waited for
        if os.path.lexists(path) and not path.is_file():
            raise ConfigError(f"{path} is no regular file: remove it")
    if (out / CONFIG).is_file():
        read_document(out / CONFIG)
        return True
    # A run killed in its first moment leaves at most hidden files.
    if any(not path.name.startswith(".") for path in out.iterdir()):
        raise ConfigError(f"--out {out} is not empty and holds no run: name a new folder, or empty this one")
    return False


def compare(out: Path, new: dict[str, Any]) -> None:
    """Refuse to go on with a configuration that would give other weights; `ConfigError` names the first difference."""
    old = read_document(out / CONFIG)
    if old["data"]["fingerprint"] != new["data"]["fingerprint"]:
        raise ConfigError(
            f"the data of {out} has changed ({old['data']['examples']} examples of {old['data']['name']} then, "
            f"{new['data']['examples']} of {new['data']['name']} now): restore it, or choose another --out"
        )
    kinds = old["train"].get("kind", METHODS["ddpm"].kind), new["train"]["kind"]
    if kinds[0] != kinds[1]:
        was, now = (method_of({"kind": kind}) for kind in kinds)
        raise ConfigError(f"the run in {out} was begun with `ornstein train {was}`, not {now}: choose another --out")
    for part, prefix in (("train", "--"), ("model", "model.")):
        before, now = flat(_completed(part, old[part])), flat(new[part])
        for key in [*now, *(key for key in before if key not in now)]:
            if part == "train" and key.startswith(_FREE):
                continue
            if key not in before or key not in now or before[key] != now[key]:
                if part == "train" and _remedies(out, key, before.get(key), now.get(key)):
                    continue
                raise ConfigError(
                    f"the run in {out} was begun with {prefix}{key} {_short(before.get(key))}, not "
                    f"{_short(now.get(key))}: use that value to go on, or choose another --out"
                )


DIVERGED = "diverged.json"


def note_divergence(out: Path, images: int, message: str) -> None:
    """Note in the folder that its run has diverged: from here on it accepts a smaller learning rate."""
    write_json(out / DIVERGED, {"format": "ornstein-divergence", "version": 1, "images": images, "message": message})


def forget_divergence(out: Path, images: int) -> None:
    """Remove the note once a good checkpoint of more images is there."""
    found = read_json(out / DIVERGED)
    if found is not None and not (isinstance(found, dict) and found.get("images", 0) >= images):
        (out / DIVERGED).unlink(missing_ok=True)


def _remedies(out: Path, key: str, before: object, now: object) -> bool:
    """Whether a changed option is what the message of a divergence advises: a smaller rate, or a larger eps."""
    if not isinstance(before, int | float) or not isinstance(now, int | float) or not (out / DIVERGED).is_file():
        return False
    return (key.endswith(".lr") and now < before) or (key.endswith(".eps") and now > before)


def _completed(part: str, old: dict[str, Any]) -> dict[str, Any]:
    """What a file holds, with the defaults of options that are newer than it; as it is where it cannot be read."""
    kind = (config_class if part == "train" else spec_class)(old.get("kind"))
    try:
        return to_dict(from_dict(kind, old))
    except ConfigError:
        return old


def with_known_words(out: Path, spec: ModelSpec) -> ModelSpec:
    """The model with the words of the run that ``out`` holds: older versions chose them from a part of the captions."""
    if spec.encoder is None or not (out / CONFIG).is_file():
        return spec
    try:
        old = read_spec(read_document(out / CONFIG), out / CONFIG).encoder
    except CheckpointError:
        return spec
    return spec if old is None else replace(spec, text=replace(spec.encoder, vocabulary=old.vocabulary))  # pyright: ignore[reportCallIssue]


def begin(out: Path, new: dict[str, Any]) -> None:
    """Make the folder, or bring its config.json up to date."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / CONFIG, new)


def truncate(out: Path, images: int) -> None:
    """Keep the lines of the log up to ``images``, so that it reads as if the run had never been stopped."""
    path = out / METRICS
    if not path.is_file():
        return
    kept: list[str] = []
    try:
        for _, line in lines_of(path):
            with contextlib.suppress(ValueError, KeyError, TypeError):  # a torn last line
                if parse_json(line)["images"] <= images:
                    kept.append(line)
    except ValueError as error:  # not text from here on
        tell(f"{path}: {error}; what follows is cut off")
    write_text(path, "".join(line + "\n" for line in kept))


_HELD: set[int] = set()


def _let_go() -> None:
    """In a forked data worker: drop its copy of the lock, or it would outlive a killed trainer by some seconds."""
    for handle in _HELD:
        with contextlib.suppress(OSError):
            os.close(handle)
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the folder against a second trainer; the system lets go of it however the process ends."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        yield
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        handle = os.open(out / ".lock", os.O_CREAT | os.O_WRONLY, 0o644)
    except OSError as error:
        raise unreadable(f"--out {out}", error, ConfigError, "name another folder", "cannot be written") from None
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    f"another process is training in {out}: wait for it, or choose another --out"
                ) from None
        _HELD.add(handle)
        yield
    finally:
        _HELD.discard(handle)
        os.close(handle)


def _short(value: object) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
