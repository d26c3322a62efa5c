"""Training images a second of one U-Net: our pieces against the usual loop of diffusers' unconditional training.

Theirs, rebuilt from what the published example does: image files decoded by PIL in a DataLoader (no workers, the
default), flipped and scaled; `DDPMScheduler.add_noise`, mean squared error, `Accelerator`, clipping, `AdamW`, a
learning rate schedule, `EMAModel` parameter by parameter, and the loss read by the host at every step.
Ours: `ornstein.data.batches` on pictures kept as bytes, `Denoiser` and `Denoising` around the same module, fused AdamW,
one foreach update for the average, losses added up in a `LossStatistics`.

In between, each ingredient alone, put into their loop. The contestants take turns; times are processor time on one
thread, so that a busy machine disturbs them little. bf16 is left out: this processor has no bf16 units and is about ten
times slower with it.
"""

from __future__ import annotations

import gc
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from accelerate import Accelerator
from diffusers.models.attention_processor import Attention, AttnProcessor
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

import ornstein as orn
from ornstein.data import Example, batches
from ornstein.networks import UNetConfig, build
from ornstein.objectives import Denoising, TrainBatch
from ornstein.training import ema
from ornstein.training.statistics import LossStatistics
from report import arguments, spread, table, write

SEED, SIDE = 0, 32


def same_unet(quick: bool) -> nn.Module:
    """About 1.9 million parameters; heads of 8 channels, the default of `UNet2DModel`."""
    torch.manual_seed(SEED)
    return diffusers.UNet2DModel(
        sample_size=SIDE,
        layers_per_block=1,
        block_out_channels=(32, 32, 32) if quick else (32, 64, 96),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    ).train()


def own_unet(quick: bool) -> nn.Module:
    """Another network: ours, of about as many parameters."""
    width = 8 if quick else 32
    config = UNetConfig(width=width, multipliers=(1, 2, 3), blocks=1, attention=(1, 2), head_width=width)
    return build(config, SEED).train()


class Files(Dataset[Tensor]):
    """Their data: PNG files, decoded whenever they are asked for."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.glob("*.png"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.paths[index]) as file:
            picture = file.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        if torch.rand(()) < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float().div(255.0).sub(0.5).div(0.5)


@dataclass(frozen=True)
class Bytes:
    """Our data: the same pictures as one array of bytes."""

    images: Tensor
    name: str = "bytes"
    classes: tuple[str, ...] = ()
    size: int = SIDE
    fingerprint: str = "bytes"

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        return Example(image=self.images[index])


def draw(folder: Path, count: int) -> Bytes:
    """Pictures of coloured noise with some structure, as files and as bytes."""
    rng = np.random.default_rng(SEED)
    coarse = torch.from_numpy(rng.integers(0, 256, (count, 3, 8, 8)).astype(np.float32))
    pictures = functional.interpolate(coarse, size=SIDE, mode="bilinear").to(torch.uint8)
    for i, picture in enumerate(pictures):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / f"{i:05}.png")
    return Bytes(pictures)


def with_attention(net: nn.Module, processor: Any) -> nn.Module:
    """The same arithmetic in another order of computation."""
    for module in net.modules():
        if isinstance(module, Attention):
            module.set_processor(processor)
    return net


def forever(loader: DataLoader[Tensor]) -> Iterator[Tensor]:
    while True:
        yield from loader


@dataclass(kw_only=True)
class Theirs:
    """The example's loop. Each switch replaces one ingredient by ours."""

    net: nn.Module
    folder: Path
    batch: int
    cached: Bytes | None = None
    fused: bool = False
    foreach: bool = False
    silent: bool = False
    losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.accelerator = Accelerator(cpu=True)
        optimizer = torch.optim.AdamW(
            self.net.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8, fused=self.fused or None
        )
        rate = get_scheduler("cosine", optimizer=optimizer, num_warmup_steps=500, num_training_steps=10_000)
        loader = DataLoader(Files(self.folder), batch_size=self.batch, shuffle=True, drop_last=True)
        self.model, self.optimizer, loader, self.rate = self.accelerator.prepare(self.net, optimizer, loader, rate)
        self.average = EMAModel(
            self.model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75, foreach=self.foreach
        )
        self.scheduler = diffusers.DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
        self.stream = forever(loader) if self.cached is None else _images(self.cached, self.batch)

    def loss(self, clean: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
        noisy = self.scheduler.add_noise(clean, noise, steps)
        return functional.mse_loss(self.model(noisy, steps).sample.float(), noise.float())

    def step(self) -> None:
        clean = next(self.stream)
        noise = torch.randn(clean.shape)
        steps = torch.randint(0, 1000, (len(clean),)).long()
        with self.accelerator.accumulate(self.model):
            loss = self.loss(clean, noise, steps)
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients:
                self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.rate.step()
            self.optimizer.zero_grad()
        if self.accelerator.sync_gradients:
            self.average.step(self.model.parameters())
        if not self.silent:
            self.losses.append(loss.detach().item())


def _images(source: Bytes, batch: int) -> Iterator[Tensor]:
    return (found.images for found in batches(source, batch=batch, seed=SEED, flip=True))


@dataclass(kw_only=True)
class Ours:
    """One step of `ornstein.training` around any module."""

    net: nn.Module
    average: nn.Module
    source: Bytes
    batch: int

    def __post_init__(self) -> None:
        self.denoiser = orn.Denoiser(self.net, orn.VP.table(), "noise", shape=(3, SIDE, SIDE))
        self.objective = Denoising()
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-4, betas=(0.9, 0.99), fused=True)
        self.stream = batches(self.source, batch=self.batch, seed=SEED, flip=True)
        self.statistics = LossStatistics(self.denoiser.path, torch.device("cpu"))
        self.gamma, self.count = ema.exponent(0.1), itertools.count(1)

    def step(self) -> None:
        found = next(self.stream)
        examples = TrainBatch(clean=found.images, cond={}, positions=found.positions)
        losses = self.objective(self.denoiser, examples, orn.Noise.of(SEED, found.positions), 0.0)
        losses.total.backward()
        norm = nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        ema.update(self.average, self.net, next(self.count), self.gamma)
        self.statistics.add(losses, norm)


def disagreement(ours: Ours, theirs: Theirs) -> float:
    """Relative difference of the two losses on the same batch, noise and times, from the same weights."""
    found = next(batches(ours.source, batch=ours.batch, seed=SEED + 1))
    noise = orn.Noise.of(SEED + 1, found.positions)
    examples = TrainBatch(clean=found.images, cond={}, positions=found.positions)
    with torch.no_grad():
        one = ours.objective(ours.denoiser, examples, noise, 0.0)
        steps = (one.times * 1000 - 1).round().long()
        other = theirs.loss(found.images, noise.normal("noise", found.images.shape[1:]), steps)
    return abs(float(one.total) / float(other) - 1.0)


def main() -> None:
    options = arguments(__doc__, "train_speed")
    torch.set_num_threads(1)
    batch, rounds = (2, 1) if options.quick else (32, 4)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = draw(folder, batch if options.quick else 512)
        results = contest(folder, source, batch, rounds, options.quick)
    print(show(results))
    write(options.out, "train_speed", SEED, results, options.quick)


def contest(folder: Path, source: Bytes, batch: int, rounds: int, quick: bool) -> dict[str, Any]:
    def theirs(net: nn.Module | None = None, **switches: Any) -> Theirs:
        return Theirs(net=net or same_unet(quick), folder=folder, batch=batch, **switches)

    def ours(make: Callable[[], nn.Module]) -> Ours:
        return Ours(net=make(), average=make().requires_grad_(False), source=source, batch=batch)

    channels_last = same_unet(quick).to(memory_format=torch.channels_last)
    contestants: dict[str, Theirs | Ours] = {
        "theirs": theirs(),
        "+ pictures as bytes": theirs(cached=source),
        "+ fused AdamW": theirs(fused=True),
        "+ foreach average": theirs(foreach=True),
        "+ no loss read": theirs(silent=True),
        "+ channels_last": theirs(channels_last),
        "+ attention by matmuls": theirs(with_attention(same_unet(quick), AttnProcessor())),
        "ours": ours(lambda: same_unet(quick)),
        "ours, attention by matmuls": ours(lambda: with_attention(same_unet(quick), AttnProcessor())),
        "ours, another network (UNet)": ours(lambda: own_unet(quick)),
    }
    if quick:
        contestants = {name: contestants[name] for name in ("theirs", "ours")}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    same = disagreement(contestants["ours"], contestants["theirs"])  # type: ignore[arg-type]
    for _ in range(rounds + 1):
        for name, contestant in contestants.items():
            gc.collect()
            began = time.process_time()
            contestant.step()
            seconds[name].append(time.process_time() - began)
            print(f"{name}: {seconds[name][-1]:.3f} s", file=sys.stderr, flush=True)
    rows: dict[str, Any] = {}
    for name, contestant in contestants.items():
        timed = seconds[name][1:]  # the first step warms up
        ratios = [a / b for a, b in zip(seconds["theirs"][1:], timed, strict=True)]
        rows[name] = {
            "images_per_processor_second": spread([batch / s for s in timed]),
            "times_theirs": spread(ratios, 3),
            "parameters": sum(p.numel() for p in contestant.net.parameters()),
        }
    return {"batch": batch, "side": SIDE, "relative_difference_of_losses": same, "results": rows}


def show(results: dict[str, Any]) -> str:
    rows = [
        (
            name,
            f"{row['images_per_processor_second']['median']:.2f}",
            f"{row['times_theirs']['median']:.2f}",
            f"{row['times_theirs']['q1']:.2f}–{row['times_theirs']['q3']:.2f}",
            row["parameters"],
        )
        for name, row in results["results"].items()
    ]
    return (
        f"batch {results['batch']}, {SIDE}×{SIDE}, one thread; "
        f"losses of both loops on the same batch differ by {results['relative_difference_of_losses']:.1e}\n"
        + table(("", "images/s", "× theirs", "quartiles", "parameters"), rows)
    )


if __name__ == "__main__":
    main()
