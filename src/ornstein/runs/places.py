"""Where trained models lie: folders, shipped names, and what is read before a network is built."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import CheckpointError, UsageError
from ..models.card import CONFIG, STATE, complete, read_document, read_spec
from ..storage.files import read_json
from ..storage.reading import denied
from ..storage.weights import read_header, read_tensors

if TYPE_CHECKING:
    from ..models.spec import ModelSpec


CARD = "ema.safetensors"


SAMPLING_CONFIG = "sampling.json"


CODEC = "codec"


WEIGHTS = Path(__file__).parents[1] / "weights"


def shipped() -> tuple[str, ...]:
    """Names of the models that come with the library."""
    return tuple(sorted(card.parent.name for card in WEIGHTS.glob(f"*/{CARD}")))


def exists(path: Path, *, file: bool = False) -> bool:
    """Whether there is such a file or folder, or such a ``file``; False also for names that cannot be one.

    Raises `StorageError` where a closed folder hides the answer.
    """
    try:
        mode = path.stat().st_mode
    except PermissionError:
        raise denied(path) from None
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(mode) or not file


def resolve_model_path(where: str | Path) -> Path:
    """A folder of that name, or else the shipped model of that name."""
    folder = Path(where)
    return folder if exists(folder) or str(where) not in shipped() else WEIGHTS / str(where)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFiles:
    """A run as it lies on the disk: its home, the file of its weights and what is in it, its model and details."""

    home: Path
    weights: Path
    details: dict[str, Any]
    spec: ModelSpec
    tensors: dict[str, Tensor]

    @property
    def images(self) -> int:
        """Images trained on."""
        return _images(self.weights)


def read_run(where: str | Path, *, ema: bool | float = True) -> RunFiles:
    """What `open_run` makes a model of, read and not yet built; it raises the same."""
    folder = resolve_model_path(where)
    if exists(folder / STATE, file=True) and not exists(folder / CONFIG, file=True):
        home, weights = folder.parent.parent, folder
        if not (home / CONFIG).is_file():
            raise CheckpointError(f"checkpoint {folder} has lost its run: {home / CONFIG} is missing")
    elif exists(folder / CONFIG, file=True):
        home, weights = folder, _weights(folder, complete(folder))
    else:
        what = "is no run, checkpoint or model card" if exists(folder) else "does not exist"
        names = f", or a shipped model ({', '.join(shipped())})" if shipped() else ""
        raise CheckpointError(f"{folder} {what}: give a folder made by `ornstein train`{names}")
    details = read_document(home / CONFIG)
    spec = read_spec(details, home / CONFIG)
    spec = spec.with_sampling_config(read_json(home / SAMPLING_CONFIG)) if (home / SAMPLING_CONFIG).is_file() else spec
    path = _named(weights, ema)
    return RunFiles(home=home, weights=path, details=details, spec=spec, tensors=read_tensors(path))


def _named(weights: Path, ema: bool | float) -> Path:
    """The file of the weights, of their average or of a further one."""
    if isinstance(ema, bool):
        return weights / (CARD if ema else "model.safetensors")
    path = weights / f"ema-{float(ema)}.safetensors"
    if not path.is_file():
        others = sorted(p.stem.removeprefix("ema-") for p in weights.glob("ema-*.safetensors"))
        known = f"it has {', '.join(others)}" if others else "it has none: see --ema.also of ornstein train slct"
        raise UsageError(f"{weights} has no average {ema}; {known}")
    return path


def _weights(folder: Path, checkpoints: list[Path]) -> Path:
    if checkpoints:
        return checkpoints[-1]
    if (folder / CARD).is_file():
        return folder
    raise CheckpointError(f"the run in {folder} has no checkpoint yet: let it train for longer")


def _images(path: Path) -> int:
    images = read_header(path).metadata.get("images", "0")
    return int(images) if images.isascii() and images.isdecimal() and len(images) < 19 else 0
