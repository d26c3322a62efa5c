"""What experiments on trained arms share: equal computing, what samples are judged by, and how a run is configured."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..data.base import Source
from ..denoisers import DenoiserLike
from ..errors import DataError, NotFiniteError
from ..metrics import Features, Statistics
from ..networks import UNetConfig
from ..objectives import Losses, TrainBatch
from ..randomness import Noise
from ..storage.files import digest
from ..training import Every, TrainConfig

if TYPE_CHECKING:
    from ..training import Summary
    from ..training.session import Session

KID, FD, PIXELS, RECALL, COVERAGE = "KID-lite0", "FD-lite0", "FD-pixels8", "recall-lite0", "coverage-lite0"
SAMPLE_SEED, SHOWN = 7, 32
SMALL = UNetConfig(width=32, multipliers=(1, 2, 2), blocks=1, attention=(2,), head_width=32, patch=2)
"""A network that trains in minutes."""
_ROWS = (0, 1)

Json = Mapping[str, Any]


def run_options(
    *, data: str, out: Path, size: int, images: int, batch: int, seed: int, logs: int, seconds: float = 120.0
) -> dict[str, Any]:
    """The options of a `TrainConfig` that all arms of a comparison share; ``logs`` lines of the log, and a checkpoint
    at two thirds and at least every ``seconds``, from which a run that was killed goes on.
    """
    return {
        "data": data,
        "out": str(out),
        "size": size,
        "images": images,
        "batch": batch,
        "seed": seed,
        "every": Every(log=max(images // logs, 1), checkpoint=two_thirds(images, batch), seconds=seconds, samples=0),
        "keep": 1,
        "workers": 0,
        "device": "cpu",
        "tensorboard": False,
    }


def two_thirds(images: int, batch: int) -> int:
    """Two thirds of ``images``, in whole batches.

    >>> [two_thirds(images, 32) for images in (960, 1000, 64, 32)]
    [640, 672, 32, 32]
    """
    return max(round(images / batch * 2.0 / 3.0), 1) * batch if images > 2 * batch else batch


def train_arm(config: TrainConfig) -> tuple[Summary, Path | None]:
    """Train, and keep the checkpoint of two thirds of the training: what is measured there says whether the last third
    was still needed. None if the training is too short for one.
    """
    from ..training import train

    mark, out = two_thirds(config.images, config.batch), Path(config.out)
    kept = out / "kept" / f"{mark:012d}"

    def keep(session: Session) -> None:
        found = out / "checkpoints" / kept.name
        # The first step after that checkpoint; a run that goes on from it makes this step too.
        if session.images > mark and found.is_dir() and not kept.is_dir():
            part = kept.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(found, part)
            part.rename(kept)

    summary = train(config, quiet=True, after_step=keep)
    return summary, kept if kept.is_dir() else None


def counted(losses: Callable[[TrainBatch, Noise], Losses | None], shape: tuple[int, ...]) -> float:
    """Floating-point operations of one image in these losses, forward and backward."""
    from torch.utils.flop_counter import FlopCounterMode

    batch = TrainBatch(clean=torch.zeros(len(_ROWS), *shape), cond={}, positions=_ROWS)
    with FlopCounterMode(display=False) as counter:
        found = losses(batch, Noise.of(0, _ROWS))
        assert found is not None
        found.total.backward()
    return counter.get_total_flops() / len(_ROWS)


def operations(config: TrainConfig, source: Source) -> float:
    """Floating-point operations of one image in a step of training: forward, backward, and what the objective adds."""
    spec = config.specify(source)
    model, losses = spec.denoiser(spec.build(0)), config.make_objective(spec, torch.device("cpu"), {})
    return counted(lambda batch, noise: losses(model, batch, noise, 0.5), spec.shape)


def equal_images(images: int, share: float, batch: int) -> int:
    """``images`` times ``share``, in whole batches.

    >>> equal_images(1000, 0.5, 32)
    512
    """
    return max(round(images * share / batch), 1) * batch


@dataclass(frozen=True, slots=True)
class Pixels:
    """Images shrunk to 8 × 8 pixels as `ornstein.metrics.Features`: 192 numbers that know nothing of any network."""

    name: str = "pixels8"
    width: int = 192

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 to (B, 192)."""
        return nn.functional.adaptive_avg_pool2d(images.float() / 255.0, 8).flatten(1)


def pictures(data: Source, first: int, count: int) -> list[Tensor]:
    """uint8 pictures number first, first + 1, …; from the beginning again where the data end."""
    return [data[(first + i) % len(data)].image for i in range(count)]


class Judge:
    """Samples against the data: kernel and Fréchet distances, recall and coverage; and a grid for the eye."""

    def __init__(self, data: Source, samples: int, files: Path) -> None:
        from ..metrics import features

        self.data, self.samples, self.files = data, samples, files
        self.lite0: Features = features("lite0")
        self.pixels: Features = Pixels()

    def __call__(self, model: DenoiserLike, name: str, **how: Any) -> Json | None:
        """The numbers of one way of sampling; None for samples that are not finite."""
        from ..data import save_grid

        try:
            drawn = self.drawn(model, self.samples, **how)
        except NotFiniteError:
            return None
        save_grid(drawn[:SHOWN], self.files / f"{name}.png", 8)
        return self.numbers(drawn)

    def drawn(self, model: DenoiserLike, count: int, **how: Any) -> Tensor:
        """Decoded samples, always of the same noise."""
        from ..sampling import sample

        return sample(model, count, seed=SAMPLE_SEED, batch=50, **how)

    def numbers(self, drawn: Tensor) -> Json:
        """Of pictures in [−1, 1], against as many of the data, the first ones."""
        from ..data import to_uint8
        from ..metrics import measure, statistics

        stack = to_uint8(drawn)
        ours, flat = statistics(stack, self.lite0, keep=("vectors",)), statistics(stack, self.pixels)
        found = dict(measure(ours, self.reference(self.lite0, 0, len(stack)), ("fd", "kid", "prdc")).numbers)
        found |= measure(flat, self.reference(self.pixels, 0, len(stack)), ("fd",)).numbers
        return {name: found[name] for name in (KID, FD, PIXELS, RECALL, COVERAGE)}

    def reference(self, net: Features, first: int, count: int) -> Statistics:
        """The statistics of these pictures of the data, kept in a file for the other cells."""
        from ..metrics import statistics

        name = digest(self.data.fingerprint, self.data.size, net.name, first, count)[:12]
        path = self.files / f"reference-{name}.safetensors"
        if path.is_file():
            try:
                return Statistics.load(path)
            except DataError:
                path.unlink(missing_ok=True)
        keep = ("vectors",) if net.name == self.lite0.name else ()
        found = statistics(pictures(self.data, first, count), net, keep=keep)
        found.save(path)
        return found
