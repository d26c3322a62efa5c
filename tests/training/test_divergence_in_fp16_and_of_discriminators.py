"""What holds for every run that diverges, in fp16 and where it is the discriminator that diverges."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ornstein.errors import ConfigError
from ornstein.networks import UNetConfig
from ornstein.networks.discriminator import DiscriminatorConfig
from ornstein.objectives.pyramid import PyramidLoss
from ornstein.training import DivergedError, Every, Optimizer, TrainConfig, loop, train
from ornstein.training.udpm import UDPMConfig

BATCH = 4
EVERY = Every(log=BATCH, checkpoint=BATCH, seconds=0, samples=0)
SHARED: dict[str, Any] = {
    "data": "critters:8", "size": 8, "batch": BATCH, "every": EVERY, "tensorboard": False, "workers": 0,
}  # fmt: skip
SMALL = UNetConfig(width=8, multipliers=(1,), blocks=1, attention=(), head_width=8, patch=2)


def plain(out: Path, rate: float, images: int, precision: str = "fp16") -> TrainConfig:
    optimizer = Optimizer(lr=rate, warmup=0)
    return TrainConfig(
        **SHARED, out=str(out), images=images, network=SMALL, optimizer=optimizer, precision=precision
    )  # fmt: skip


def adversarial(out: Path, rate: float, images: int, precision: str = "no") -> UDPMConfig:
    """Its discriminator learns at this rate."""
    return UDPMConfig(
        **SHARED, out=str(out), images=images, network=UNetConfig(**{**vars_of(SMALL), "patch": 1}),
        discriminator=DiscriminatorConfig(width=8), objective=PyramidLoss(metric="none"), precision=precision,
        optimizer=Optimizer(lr=1e-3, warmup=0), discriminator_optimizer=Optimizer(lr=rate, warmup=0),
    )  # fmt: skip


def vars_of(config: UNetConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in ("width", "multipliers", "blocks", "attention", "head_width")}


@pytest.fixture
def scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half precision as on a GPU, with the scaler of its gradients."""
    made = loop.accelerator

    def half(config: TrainConfig):
        found = made(replace(config, precision="no"))
        if config.precision == "fp16":
            found.state._mixed_precision = "fp16"  # autocast
            found.native_amp, found.scaler = True, torch.amp.GradScaler("cpu", init_scale=2.0**20)
        return found

    monkeypatch.setattr(loop, "accelerator", half)


def finite(out: Path) -> bool:
    files = [file for file in out.glob("checkpoints/*/*.safetensors") if file.parent.name.isdecimal()]
    return bool(files) and all(bool(torch.isfinite(t).all()) for file in files for t in load_file(file).values())


def begun(document: Path, *keys: str, rate: float) -> None:
    """As if the run had been begun with this rate."""
    whole = json.loads(document.read_text())
    inner = whole["train"]
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = rate
    document.write_text(json.dumps(whole))


CASES = [
    pytest.param(plain, "fp16", ("optimizer", "lr"), "lower --optimizer.lr, and", id="fp16"),
    *(
        pytest.param(
            adversarial, precision, ("discriminator_optimizer", "lr"),
            "lower --optimizer.lr or --discriminator-optimizer.lr, and", id=f"discriminator-{precision}",
        )
        for precision in ("no", "fp16")
    ),
]  # fmt: skip


@pytest.mark.usefixtures("scaled")
@pytest.mark.parametrize(("make", "precision", "keys", "remedy"), CASES)
def test_the_last_good_checkpoint_stays_and_the_remedy_works(tmp_path, make, precision, keys, remedy):
    start, steps = tmp_path / "start", 12 if precision == "fp16" else 3  # the scale falls to what fp16 holds first
    train(make(start, 1e-3, steps * BATCH, precision), quiet=True)
    assert finite(start)
    lines = (start / "metrics.jsonl").read_text().splitlines()
    norms = [json.loads(line, parse_constant=pytest.fail)["grad_norm"] for line in lines]  # no NaN, no Infinity
    assert (None in norms) == (precision == "fp16")
    assert math.isfinite(norms[-1])
    out = Path(shutil.copytree(start, tmp_path / "run"))
    begun(out / "config.json", *keys, rate=1e18)
    for _ in range(2):  # however often it is tried
        with pytest.raises(DivergedError, match=rf"not finite at \d+ images; .*{steps * BATCH:012d}") as error:
            train(make(out, 1e18, 3 * steps * BATCH, precision), quiet=True)
        assert remedy in str(error.value)
        assert finite(out)
    summary = train(make(out, 1e-3, (steps + 2) * BATCH, precision), quiet=True)
    assert (summary.resumed_at, summary.images) == (steps * BATCH, (steps + 2) * BATCH)
    assert finite(out)


@pytest.mark.usefixtures("scaled")
@pytest.mark.parametrize("part", ["model", "discriminator"])
def test_no_weight_that_is_not_finite_is_written(tmp_path, part):
    def overflow(session) -> None:
        if session.images == 3 * BATCH:
            module = session.model if part == "model" else session.discriminator.module
            with torch.no_grad():
                next(module.parameters()).view(-1)[0] = math.inf

    with pytest.raises(DivergedError, match="not finite"):
        train(adversarial(tmp_path, 1e-3, 3 * BATCH), quiet=True, after_step=overflow)
    assert finite(tmp_path)
    assert max(path.name for path in (tmp_path / "checkpoints").iterdir()) == f"{2 * BATCH:012d}"


def test_fp16_is_refused_where_it_would_be_float32_without_a_word(tmp_path):
    """Accelerate takes it on a CPU, and ignores it."""
    for changes in ({"device": "cpu"}, {} if not torch.cuda.is_available() else {"device": "cpu"}):
        config = TrainConfig(**SHARED, out=str(tmp_path / "run"), images=BATCH, precision="fp16", **changes)
        with pytest.raises(ConfigError, match=r"fp16 does not work here \(fp16 needs an accelerator.*: use no or bf16"):
            train(config, quiet=True)
    assert not (tmp_path / "run").exists()
    config = TrainConfig(**SHARED, out=str(tmp_path / "run"), images=BATCH, network=SMALL)
    assert train(config, quiet=True).images == BATCH  # the refusal leaves nothing behind
