"""Weights: tensors of a safetensors file, and into a module."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import CheckpointError, ConfigError, OrnsteinError, StorageError
from .files import atomic
from .reading import Refused, open_regular, parse_json, reason_of, room_for, unreadable

Tensors = dict[str, Tensor]
M = TypeVar("M", bound=nn.Module)
_HEADER = 100 << 20  # the format's own bound


class Header(NamedTuple):
    """Header of a safetensors file: shapes by name, and its metadata."""

    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]


def read_tensors(path: Path, error: type[OrnsteinError] = CheckpointError, remedy: str = "copy it again") -> Tensors:
    """All tensors of a safetensors file; ``error`` (`CheckpointError`) if it is missing or is none."""
    return dict(_opened(path, "pt", error, remedy)[0])


def read_arrays(
    path: Path, error: type[OrnsteinError], remedy: str = "copy it again"
) -> tuple[dict[str, Any], dict[str, str]]:
    """The same as numpy arrays, and the file's metadata."""
    return _opened(path, "np", error, remedy)


def read_with_metadata(
    path: Path, error: type[OrnsteinError] = CheckpointError, remedy: str = "copy it again"
) -> tuple[Tensors, dict[str, str]]:
    """Tensors, and the file's metadata."""
    return _opened(path, "pt", error, remedy)


def _opened(
    path: Path, framework: str, error: type[OrnsteinError], remedy: str
) -> tuple[dict[str, Any], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        open_regular(path).close()  # the library would wait for a FIFO
        with safe_open(path, framework=framework) as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
            return tensors, dict(file.metadata() or {})
    except FileNotFoundError:
        raise error(f"{path} is missing: copy it again, or train again") from None
    except (OSError, SafetensorError, RuntimeError, ValueError, TypeError, LookupError, AttributeError) as problem:
        raise unreadable(path, problem, error, remedy, "is not a readable safetensors file") from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file atomically.

    Raises `StorageError` where the disk cannot hold it, and `ConfigError` naming a tensor that is not finite.
    """
    from safetensors.torch import save

    bad = next((name for name, tensor in tensors.items() if not_finite(tensor)), None)
    if bad is not None:
        raise ConfigError(f"the weight {bad!r} holds values that are not finite, and is not written to {path}")
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, dict(metadata or {}))
    try:
        with atomic(path) as file:
            file.write(data)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written ({reason_of(error)}): {room_for(error)}, or name another place"
        ) from error


def read_header(path: Path) -> Header:
    """Names, shapes and metadata of a safetensors file, without its tensors; `CheckpointError` as `read_tensors`."""
    try:
        with open_regular(path) as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= _HEADER:
                raise Refused("its header has an impossible length")
            found = parse_json(file.read(length))
        shapes = {name: tuple(about["shape"]) for name, about in found.items() if name != "__metadata__"}
        if not all(isinstance(size, int) and size >= 0 for shape in shapes.values() for size in shape):
            raise Refused("a shape in its header is none")
        return Header(shapes, dict(found.get("__metadata__") or {}))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: copy it again, or train again") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as problem:
        what = "is not a readable safetensors file"
        raise unreadable(path, problem, CheckpointError, "copy it again", what) from None


def build_like(make: Callable[[], M], path: Path, *, inside: str = "") -> M:
    """``make()``, after its weights were compared with those in ``path``, before any is allocated.

    ``make`` runs twice: first with weights that have shapes but no memory (PyTorch's meta device), and no further than
    the file's own number of tensors and values. So a description that promises more than the file holds costs nothing.
    ``inside`` is the prefix under which the module's weights lie in the file.

    Raises `CheckpointError` naming the first tensor that differs, or what ``make`` refuses.
    """
    shapes = {n.removeprefix(inside): s for n, s in read_header(path).shapes.items() if n.startswith(inside)}
    try:
        with _Sketch(shapes):
            sketch = make()
    except _TooLarge:
        raise CheckpointError(
            f"{path} holds {len(shapes)} tensors, fewer or smaller ones than the model that its configuration "
            "describes: they do not belong together"
        ) from None
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except (RuntimeError, ValueError, TypeError, OverflowError, ZeroDivisionError, IndexError, MemoryError) as error:
        raise CheckpointError(f"{path}: its configuration describes no network ({reason_of(error)})") from None
    _compare({name: tuple(tensor.shape) for name, tensor in sketch.state_dict().items()}, shapes, path)
    return make()


def _compare(own: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], path: Path) -> None:
    for name, shape in own.items():
        if name not in found:
            raise CheckpointError(f"{path} lacks the tensor {name!r}: it belongs to another network")
        if found[name] != shape:
            raise CheckpointError(f"{path}: tensor {name!r} has shape {found[name]}, not {shape}")
    left = sorted(set(found) - set(own))
    if left:
        raise CheckpointError(f"{path} holds a tensor {left[0]!r} that the network does not have")


@torch.no_grad()
def fill(module: nn.Module, tensors: Tensors, path: Path, *, exact: bool = False) -> None:
    """Copy weights into a module, keeping the module's own dtypes and memory formats.

    With ``exact`` the types must be the module's own as well; else half precision is read into float32.

    Raises `CheckpointError` naming the first tensor that is missing, left over, of another shape, of no floating-point
    type where the module has one, or not finite; the module is then as it was.
    """
    own = module.state_dict()
    _compare({n: tuple(t.shape) for n, t in own.items()}, {n: tuple(t.shape) for n, t in tensors.items()}, path)
    for name, tensor in own.items():
        found = tensors[name]
        alike = found.is_floating_point() == tensor.is_floating_point() and not found.is_complex()
        if not alike or (exact and found.dtype != tensor.dtype):
            raise CheckpointError(f"{path}: tensor {name!r} is of type {found.dtype}, not {tensor.dtype}")
        if not_finite(found):
            raise CheckpointError(
                f"{path}: tensor {name!r} holds values that are not finite: it was damaged, or diverged"
            )
    for name, tensor in own.items():
        tensor.copy_(tensors[name])


def not_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds a NaN or an infinity."""
    return tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())


class _TooLarge(Exception):  # noqa: N818 - internal signal
    """A module has more weights than a file."""


_PAUSED = threading.local()


@contextlib.contextmanager
def from_elsewhere() -> Iterator[None]:
    """Around modules inside a model whose weights come from a package, and so do not lie in the model's own file."""
    _PAUSED.value = True
    try:
        yield
    finally:
        _PAUSED.value = False


class _Sketch(TorchFunctionMode):
    """Inside, new weights (`torch.empty`) have no memory, and nothing is made beyond the number and size of ``shapes``.

    Everything else is computed as usual: on the meta device, even `torch.arange` imports a compiler for seconds.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.tensors = len(shapes) + 8  # a module may make a weight and replace it
        self.values = sum(math.prod(shape) for shape in shapes.values()) + (1 << 20)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _FACTORIES and not getattr(_PAUSED, "value", False):
            size = kwargs.get("size", args[0] if args and isinstance(args[0], tuple | list) else args)
            values = math.prod(max(int(side), 0) for side in size if isinstance(side, int | float))
            if func is torch.empty:
                self.tensors, self.values = self.tensors - 1, self.values - values
                kwargs["device"] = "meta"
            if min(self.tensors, self.values) < 0 or values > self.values + (1 << 20):
                raise _TooLarge
        return func(*args, **kwargs)


_FACTORIES = {torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, torch.full, torch.arange, torch.linspace}
