"""What a budget decides, what a run knows of itself, and what is said before the time is spent."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ornstein.cli.main import main
from ornstein.data import save_png
from ornstein.errors import ConfigError
from ornstein.networks import UNetConfig
from ornstein.training import METHODS, Optimizer, TrainConfig, train
from ornstein.training.config import Every
from ornstein.training.plan import Planner, begun_in, completed, settle
from ornstein.training.session import Session
from ornstein.training.slct import ECTConfig, SLCTConfig

SMALL = ["--network.width", "8", "--network.multipliers", "1", "2", "--network.blocks", "1",
         "--network.attention", "1", "--network.head-width", "8"]  # fmt: skip


class Pictures:
    """A source of which only the description is asked."""

    name, size, classes = "photos", 64, ("cat", "dog")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pictures in two class folders."""
    root = tmp_path_factory.mktemp("data") / "photos"
    for i in range(5):
        save_png(torch.full((3, 20, 20), i / 5), root / ("cat" if i < 2 else "dog") / f"{i}.png")
    return root


@settings(max_examples=200, deadline=None)
@given(images=st.integers(1, 10**7), batch=st.integers(1, 512))
def test_warm_up_and_intervals_lie_inside_every_budget(images: int, batch: int) -> None:
    made = settle(TrainConfig(out="x", images=images, batch=batch))
    assert made.optimizer.warmup is not None
    assert made.every.log is not None
    assert 20 * made.optimizer.warmup <= images
    assert made.every.log <= max(2048, batch)
    assert images < batch or made.every.log <= max(images / 50, batch)
    assert made.every.checkpoint is not None
    assert made.every.checkpoint <= max(images / 10, batch)
    assert settle(made) == made
    said = TrainConfig(out="x", images=images, optimizer=Optimizer(warmup=7), every=Every(log=3, samples=0))
    kept = settle(said)
    assert (kept.optimizer.warmup, kept.every.log, kept.every.samples) == (7, 3, 0)


@settings(max_examples=200, deadline=None)
@given(
    minutes=st.floats(0.01, 1e4),
    start=st.floats(1e-3, 1.0),
    each=st.floats(1e-5, 1.0),
    gain=st.floats(1.0, 4.0),
    size=st.sampled_from([8, 16, 32, 64, 128]),
)
def test_a_plan_fits_into_its_minutes_by_the_measured_time_of_a_step(
    minutes: float, start: float, each: float, gain: float, size: int
) -> None:
    def measure(config: TrainConfig) -> float:
        assert isinstance(config.network, UNetConfig)
        return start + each * config.batch / gain ** (config.network.patch // 4)

    config = TrainConfig(data="x", out="x", size=size, minutes=minutes)
    plan = Planner()(config, Pictures(), measure)  # type: ignore[arg-type]
    made, optimizer = plan.config, plan.config.optimizer
    steps = made.images // made.batch
    assert made.images % made.batch == 0
    assert steps >= 1
    assert steps == 1 or steps * measure(made) <= 60.0 * minutes
    assert optimizer.warmup is not None
    assert optimizer.warmup + optimizer.decay <= made.images
    assert made.condition == "label", "labels are used where the data has them"
    assert size % made.network.factor == 0
    kept = {"batch", "optimizer.decay", "condition", "network.patch"}
    fixed = Planner(given=kept)(config, Pictures(), measure).config  # type: ignore[arg-type]
    assert (fixed.batch, fixed.optimizer.decay, fixed.condition, fixed.network) == (32, 0, "none", config.network)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_can_be_given_another_budget(name: str) -> None:
    needed: dict[str, Any] = {"scores": "s"} if name == "rarity-classifier" else {}
    first = METHODS[name].configuration(out="x", data="x", images=1000, **needed)
    assert first.with_budget(64) == METHODS[name].configuration(out="x", data="x", images=64, **needed)


def test_a_curriculum_of_its_own_stays() -> None:
    assert SLCTConfig(out="x", images=100, curriculum=30).with_budget(50).curriculum == 30


def test_without_data_nothing_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["train", "ddpm", "--out", str(out), "--images", "8"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "--data" in said
    assert not out.exists()
    with pytest.raises(ConfigError, match="data is empty"):
        train(TrainConfig(out=str(out), images=8), quiet=True)


def test_two_budgets_are_one_too_many() -> None:
    with pytest.raises(ConfigError, match="give one of them"):
        completed(TrainConfig(out="x", data="x", minutes=1.0), {"images", "minutes"})


def test_what_was_found_is_said_and_a_run_knows_itself(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", "ddpm", "--data", str(photos), "--size", "8", "--minutes", "0.003", "--no-tensorboard",
             "--every.samples", "0"]  # fmt: skip
    assert main([*words, *SMALL]) == 0
    out = Path("runs/ddpm-photos")
    said = capsys.readouterr().err
    assert f"{photos}: 5 pictures, 2 classes, 8 × 8\n" in said
    assert "plan for 0.003 min: " in said
    assert "parameters on" in said
    assert f"the run is kept in {out}" in said
    # The same folder needs no other word, and nothing is measured again.
    assert main(["train", "ddpm", "--out", str(out)]) == 0
    stdout, said = capsys.readouterr()
    assert "raise --images or --minutes" in stdout
    assert "plan for" not in said
    begun = completed(TrainConfig(out=str(out)), {"out"})
    assert (begun.data, begun.size, begun.condition) == (str(photos), 8, "label")
    assert completed(replace(begun, minutes=0.03), {"minutes"}).images == 10 * begun.images
    again = TrainConfig(data=str(photos), out=str(out), size=8, minutes=0.003, network=begun.network,
                        every=Every(samples=0), tensorboard=False)  # fmt: skip
    assert train(again, quiet=True).finished_before, "from Python too, the plan is that of the first time"
    # A run that begins with it takes its data and its size.
    tuned = completed(ECTConfig(out="runs/tuned", init_from=str(out), images=8), {"out", "init_from", "images"})
    assert (tuned.data, tuned.size) == (str(photos), 8)


def test_minutes_end_a_run_that_the_machine_makes_longer_than_planned(photos: Path, tmp_path: Path) -> None:
    """It is then the run of as many images, to the bit, and of no more; more images or minutes continue it."""
    config = TrainConfig(data=str(photos), out=str(tmp_path / "run"), size=8, minutes=0.05, every=Every(samples=0),
                         network=UNetConfig(width=8, multipliers=(1, 2), blocks=1, attention=(), head_width=8),
                         tensorboard=False, workers=0)  # fmt: skip
    planned: list[int] = []

    def slower(session: Session) -> None:
        planned.append(session.config.images)
        time.sleep(0.1)

    began = time.monotonic()
    summary = train(config, quiet=True, after_step=slower)
    assert time.monotonic() - began < 20.0  # of 3 seconds; as planned it would take a minute
    assert summary.images < planned[0]
    known = begun_in(config.out)
    assert known is not None
    assert known.images == summary.images
    assert train(config, quiet=True).finished_before
    whole = train(replace(known, out=str(tmp_path / "whole"), minutes=0.0), quiet=True)
    weights = f"checkpoints/{summary.images:012d}/ema.safetensors"
    assert (tmp_path / "run" / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()
    assert whole.images == summary.images
    longer = completed(replace(known, minutes=0.5), {"minutes"})
    assert (longer.images, longer.minutes) == (10 * summary.images, 0.5)
    more = completed(replace(known, images=summary.images + known.batch), {"images"})
    assert more.minutes == 0.0, "a budget in images knows no clock"
    assert train(more, quiet=True, after_step=slower).images == summary.images + known.batch
    with pytest.raises(ConfigError, match="has a budget in images: go on with --images, more than"):
        completed(replace(known, minutes=0.5), {"minutes"})


def test_an_interrupted_run_names_the_command_that_goes_on(photos: Path, tmp_path: Path) -> None:
    words = ["train", "ddpm", "--data", str(photos), "--size", "8", "--images", "400", "--batch", "4", "--every.log",
             "40", "--every.samples", "0", "--no-tensorboard"]  # fmt: skip
    stopped, whole = tmp_path / "a run", tmp_path / "whole"
    command = [sys.executable, "-m", "ornstein", *words, "--out", str(stopped), *SMALL]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    log = stopped / "metrics.jsonl"
    while not (log.is_file() and log.stat().st_size) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130, said
    (line,) = [line for line in said.splitlines() if line.startswith("to go on: ")]
    again = shlex.split(line.removeprefix("to go on: "))
    assert again[0] == "ornstein"
    assert str(stopped) in again
    images = max(int(path.name) for path in (stopped / "checkpoints").glob("0*"))
    assert 0 < images < 400
    assert f"stopped at {images} of 400 images" in said
    assert main(again[1:]) == 0
    assert main([*words, "--out", str(whole), *SMALL]) == 0
    last = Path("checkpoints") / f"{400:012d}"
    for part in ("model", "ema", "optimizer"):
        name = f"{part}.safetensors"
        assert (stopped / last / name).read_bytes() == (whole / last / name).read_bytes()
