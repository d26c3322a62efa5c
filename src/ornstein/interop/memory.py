"""How much memory the weights of a pipeline take, known from the headers of its files before any is read."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from ..storage.tensor_files import open_tensors
from .single_file import CLIP, UNET, VAE, is_single_file

GIB = 2**30


def weights_in(where: str | Path, *, dtype: torch.dtype = torch.float32) -> dict[str, int]:
    """Bytes of each part of a diffusers folder or a file of SDXL in a precision; empty for anything else.

    Raises:
        CheckpointError: a file that cannot be read.

    >>> weights_in("no/such/folder")
    {}
    """
    path = Path(where).expanduser()
    if is_single_file(path) and path.is_file() and path.suffix == ".safetensors":
        out: dict[str, int] = {}
        for name, shape in open_tensors(path, "copy it again").shapes.items():
            known = {UNET: "unet", VAE: "vae", CLIP: "text encoders"}
            part = next((part for prefix, part in known.items() if name.startswith(prefix)), None)
            if part is not None:
                out[part] = out.get(part, 0) + math.prod(shape) * dtype.itemsize
        return out
    if not (path / "model_index.json").is_file():
        return {}
    return {
        part.name: sum(_numbers(file) for file in files) * dtype.itemsize
        for part in sorted(path.iterdir())
        if part.is_dir() and (files := _files(part))
    }


def said(weights: dict[str, int]) -> str:
    """The weights as one line.

    >>> said({"unet": 5 * 2**30, "vae": 2**29})
    '5.5 GiB of weights (unet 5.0, vae 0.5)'
    """
    parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in sorted(weights.items(), key=lambda one: -one[1]))
    return f"{sum(weights.values()) / GIB:.1f} GiB of weights ({parts})"


def _files(part: Path) -> list[Path]:
    """The safetensors of a part: of several variants the plain one."""
    files = sorted(part.glob("*.safetensors"), key=lambda file: len(file.name))
    shards = [file for file in files if "-of-" in file.name]
    return shards or files[:1]


def _numbers(file: Path) -> int:
    return sum(math.prod(shape) for shape in open_tensors(file, "copy it again").shapes.values())
