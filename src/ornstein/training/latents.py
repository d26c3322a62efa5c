"""A run on latents: the data is encoded once, and the run keeps what decodes its samples."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..runs import CODEC
from ..storage.console import tell
from .config import TrainConfig

if TYPE_CHECKING:
    from ..data.base import Source
    from ..latents import Codec


def encoded(config: TrainConfig, source: Source, device: torch.device) -> tuple[Codec | None, Source]:
    """The codec of a configuration with the normalisation of this data, and the data's latents; without a codec, the
    data as it is.

    A run that was stopped goes on with the codec in its own folder, wherever the first one has gone.
    """
    if not config.codec:
        return None, source
    from ..latents.dataset import latents

    codec, options = first_codec(config, device), config.latents
    made, codec = latents(
        source, codec, by=options.statistics, std=options.std, draws=options.draw, device=device, progress=_Told()
    )
    return codec, made


def first_codec(config: TrainConfig, device: str | torch.device = "cpu") -> Codec:
    """The codec of a configuration before it has seen the data: that of the run's own folder, if it has begun."""
    from ..runs import open_codec
    from ..runs.codecs import DOCUMENT

    own = Path(config.out) / CODEC
    return open_codec(own if (own / DOCUMENT).is_file() else config.codec, device=device)


def keep_codec(out: Path, codec: Codec | None) -> None:
    """Write the codec into the run's folder, if it is not there yet."""
    from ..runs import save_codec
    from ..runs.codecs import DOCUMENT

    if codec is not None and not (out / CODEC / DOCUMENT).is_file():
        save_codec(codec, out / CODEC)


class _Told:
    """A line on standard error every ten seconds of encoding."""

    def __init__(self) -> None:
        self.since = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() - self.since > 10.0:
            self.since = time.monotonic()
            tell(f"encoded {done} of {total} images")
