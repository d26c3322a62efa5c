"""Published files of weights, read without ever running code that came with them."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from ornstein.errors import CheckpointError

from .reading import require_regular, unreadable


def read_state(path: Path, give: str = "a published file of weights") -> dict[str, Tensor]:
    """The tensors of a state dict: safetensors, or a .pth of tensors alone.

    Raises `CheckpointError` for anything else, a TorchScript archive among it; ``give`` is its remedy.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        require_regular(path)  # the libraries would wait for a FIFO
        if path.suffix == ".safetensors":
            return load_file(path)
        if _is_script(path):
            raise CheckpointError(
                f"{path} is a TorchScript archive, and loading one runs its code: give the state dict, {give}"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch says of foreign pickles before it refuses them
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, OSError) as error:
        what = "is damaged, or cannot be read as a state dict"
        raise unreadable(path, error, CheckpointError, f"give {give}", what) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path} holds no state dict of tensors: give {give}")
    return dict(state)


def _is_script(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(Path(name).name == "constants.pkl" for name in archive.namelist())
