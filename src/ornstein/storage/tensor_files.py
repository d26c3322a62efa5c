"""Files of many tensors, of which each is read when it is asked for: safetensors by memory map, or a safe pickle."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from .reading import load_json, require_regular, unreadable
from .weights import read_header

M = TypeVar("M", bound=nn.Module)
_SHOWN = 3  # names in a message


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TensorFile:
    """Tensors by name.

    Attributes:
        path: the file, or the folder of several.
        shapes: of all tensors, known before any is read.
        get: the tensor of a name; memory-mapped where the file allows it.
    """

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    get: Callable[[str], Tensor]


def open_tensors(path: Path, give: str) -> TensorFile:
    """A .safetensors file, an index (``….safetensors.index.json``) of several, or a pickle of tensors alone.

    A pickle may hold its tensors under "state_dict". It is read by torch's restricted unpickler, which runs no code.

    Raises:
        CheckpointError: a file that is missing, damaged, or holds anything but tensors; ``give`` is the remedy.
    """
    if path.suffix == ".json":
        return _sharded(path, give)
    if path.suffix == ".safetensors":
        return _mapped(path, give)
    found: Any = read_pickle(path, give)
    inner = found.get("state_dict", found) if isinstance(found, Mapping) else None
    if not isinstance(inner, Mapping):
        raise CheckpointError(f"{path} holds no state dict of tensors: {give}")
    tensors = {str(name): value for name, value in inner.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path} holds no state dict of tensors: {give}")
    return TensorFile(path=path, shapes={name: tuple(t.shape) for name, t in tensors.items()}, get=tensors.__getitem__)


def read_pickle(path: Path, give: str) -> Any:
    """What a pickle of torch holds, if that is tensors in plain containers; `CheckpointError` for any other.

    It is read by torch's restricted unpickler. A file that would run something, a TorchScript archive among them, is
    refused; ``give`` is the remedy.
    """
    try:
        require_regular(path)  # torch would wait for a FIFO
    except (OSError, ValueError) as error:
        raise unreadable(path, error, CheckpointError, give) from None
    mapped = zipfile.is_zipfile(path)
    if mapped:
        with zipfile.ZipFile(path) as archive:
            if any(Path(name).name == "constants.pkl" for name in archive.namelist()):
                raise CheckpointError(f"{path} is a TorchScript archive, and loading one runs its code: {give}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch says of foreign pickles before it refuses them
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped or None)
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, OSError) as error:
        raise unreadable(path, error, CheckpointError, give, "is damaged, or is no file of weights alone") from None


def build_from(
    make: Callable[[], M],
    file: TensorFile,
    names: Callable[[M], Mapping[str, str]],
    *,
    dtype: torch.dtype | None = None,
    take: Callable[[str, Tensor], Tensor] = lambda _, tensor: tensor,
    shape: Callable[[str, tuple[int, ...]], tuple[int, ...]] = lambda _, shape: shape,
    unexpected: Callable[[str], bool] = lambda _: True,
    tick: Callable[[], object] = lambda: None,
) -> M:
    """A module whose weights are those of a file: built without memory first, compared, and only then read.

    Args:
        make: builds the module; what it computes besides its weights is kept.
        file: where they lie.
        names: the name in the file of each weight of the module.
        dtype: of floating-point weights; that of the file by default.
        take: makes the module's tensor, by the name of its weight, of the file's.
        shape: the same for shapes.
        unexpected: whether a name of the file that no weight has is an error.
        tick: called after every weight.

    Raises:
        CheckpointError: weights that are missing, left over or of other shapes, by name.
    """
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        module = make()
    own, table = module.state_dict(), names(module)
    missing = sorted({table[name] for name in own} - set(file.shapes))
    left = sorted(name for name in set(file.shapes) - set(table.values()) if unexpected(name))
    kind = type(module).__name__
    if missing:
        raise CheckpointError(f"{file.path} lacks {_named(missing)} of a {kind}: copy it again, or it is another model")
    if left:
        raise CheckpointError(f"{file.path} holds {_named(left)}, which a {kind} does not have: it is another model")
    for name, tensor in own.items():
        found = shape(name, file.shapes[table[name]])
        if found != tuple(tensor.shape):
            raise CheckpointError(
                f"{file.path}: tensor {table[name]!r} has shape {file.shapes[table[name]]}, where a {kind} has "
                f"{tuple(tensor.shape)}: it is another model"
            )
    state: dict[str, Tensor] = {}
    for name in own:
        tensor = take(name, file.get(table[name]))
        state[name] = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
        tick()
    module.load_state_dict(state, assign=True)
    return module.eval()


def _named(names: list[str]) -> str:
    """A few names and the number of the others."""
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    what = f"the tensor{'s' * (len(names) > 1)} {shown}"
    return what + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _mapped(path: Path, give: str) -> TensorFile:
    from safetensors import SafetensorError, safe_open

    shapes = read_header(path).shapes
    try:
        file: Any = safe_open(path, framework="pt")
        file.keys()
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise unreadable(path, error, CheckpointError, give, "is not a readable safetensors file") from None
    return TensorFile(path=path, shapes=shapes, get=file.get_tensor)


def _sharded(path: Path, give: str) -> TensorFile:
    index: Any = load_json(path, CheckpointError, give).get("weight_map")
    plain = isinstance(index, dict) and all(
        isinstance(name, str) and isinstance(part, str) and Path(part).name == part for name, part in index.items()
    )
    if not plain or not index:
        raise CheckpointError(f"{path} is no index of weights: {give}")
    files = {part: _mapped(path.parent / part, give) for part in sorted(set(index.values()))}
    lost = sorted(name for name, part in index.items() if name not in files[part].shapes)
    if lost:
        raise CheckpointError(f"{path} names {_named(lost)}, which its files do not hold: {give}")
    return TensorFile(
        path=path,
        shapes={name: shape for file in files.values() for name, shape in file.shapes.items()},
        get=lambda name: files[index[name]].get(name),
    )
