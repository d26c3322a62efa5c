"""The pictures that `ornstein sample --init` begins from, and the mask of what is drawn anew."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .sample_args import SampleArgs

if TYPE_CHECKING:
    from torch import Tensor

    from ..denoisers import DenoiserLike


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InitialPictures:
    """Pictures (k, 3, H, W) in [−1, 1] for the images of a stream, in turn; the mask is (H, W)."""

    pictures: Tensor
    strength: float
    mask: Tensor | None
    record: dict[str, Any]

    def arguments(self, numbers: range) -> dict[str, Any]:
        """The arguments of `ornstein.sample` for these images of the stream."""
        rows = [number % len(self.pictures) for number in numbers]
        return {"start": self.pictures[rows], "strength": self.strength, "mask": self.mask}


def read_initial(args: SampleArgs, model: DenoiserLike) -> InitialPictures | None:
    """The pictures of --init and --mask at the size of the model's pictures; None without --init.

    Raises:
        UsageError: a file that is no picture, a model whose samples are no pictures of one size, or an empty mask.
    """
    level = args.noise_level
    if level is None:
        return None
    import torch

    from ..denoisers import info_of

    info = info_of(model)
    shape = info.shape
    if shape is None or len(shape) != 3 or (info.codec is None and shape[0] != 3) or shape[1] != shape[2]:
        raise UsageError(f"--init needs a model of square colour pictures, {args.run} makes samples of {shape}")
    size = shape[1] * (1 if info.codec is None else info.codec.factor)
    pictures = torch.stack([_picture("--init", path, size) for path in args.init]) / 127.5 - 1.0
    mask = None
    if args.mask is not None:
        mask = (_picture("--mask", args.mask, size).float().mean(0) >= 127.5).float()
        if not bool(mask.any()):
            raise UsageError(f"--mask {args.mask} is black everywhere: what is white there is drawn anew")
    record: dict[str, Any] = {"init": [str(path) for path in args.init], "strength": level}
    record |= {} if args.mask is None else {"mask": str(args.mask)}
    return InitialPictures(pictures=pictures, strength=level, mask=mask, record=record)


def _picture(option: str, path: Path, size: int) -> Tensor:
    """uint8 (3, size, size)."""
    from ..data.decode import UnreadableError, decode_file

    if path.is_dir():
        raise UsageError(f"{option} {path} is a folder: name a picture")
    if not path.exists():
        raise UsageError(f"{option} {path} does not exist: name a picture")
    try:
        return decode_file(path, size, str(path))
    except UnreadableError as error:
        raise UsageError(f"{option} {path} cannot be read: {error.reason}") from None
