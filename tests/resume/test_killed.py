"""A run killed with SIGKILL at any moment resumes bit-exactly: the promise, kept by killing."""

import json
import os
import random
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ornstein.networks import UNetConfig
from ornstein.objectives import CascadeLoss
from ornstein.training import Every, Optimizer, TrainConfig, to_dict
from ornstein.training.cas_dm import CascadeConfig

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")

BATCH = 8


@pytest.fixture(scope="module")
def server():
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("killing.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
    )
    yield process
    process.stdin.close()
    process.stdout.close()
    process.wait(timeout=60)


def ask(server, config: TrainConfig, kills=(), slow: float = 0.0) -> list[int]:
    server.stdin.write(json.dumps({"config": to_dict(config), "kills": list(kills), "slow": slow}) + "\n")
    server.stdin.flush()
    return json.loads(server.stdout.readline())


def configuration(out: Path, **changes) -> TrainConfig:
    base = TrainConfig(
        data="critters:20",  # 20 examples in batches of 8: steps straddle the epochs
        out=str(out),
        size=16,
        images=24 * BATCH,
        batch=BATCH,
        seed=3,
        flip=True,
        condition="label",
        network=UNetConfig(width=8, multipliers=(1,), blocks=1, attention=(), head_width=8, dropout=0.1),
        optimizer=Optimizer(lr=2e-3, warmup=64, clip=0.5),
        every=Every(log=5 * BATCH, checkpoint=2 * BATCH, seconds=0, samples=16 * BATCH),
        tensorboard=False,
        workers=0,
    )
    return replace(base, **changes)


def log_of(out: Path) -> list[dict]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "time"} for line in lines]


def assert_same_weights(a: Path, b: Path) -> None:
    one, two = (max((out / "checkpoints").iterdir()) for out in (a, b))
    assert one.name == two.name
    for part in ("model", "ema", "optimizer"):
        x, y = (load_file(folder / f"{part}.safetensors") for folder in (one, two))
        assert x.keys() == y.keys()
        assert [key for key in x if not torch.equal(x[key], y[key])] == []


def assert_same(a: Path, b: Path) -> None:
    one, two = (sorted(p.name for p in (out / "checkpoints").iterdir()) for out in (a, b))
    assert one == two
    assert_same_weights(a, b)
    assert log_of(a) == log_of(b)
    assert [p.read_bytes() for p in sorted((a / "samples").iterdir())] == [
        p.read_bytes() for p in sorted((b / "samples").iterdir())
    ]


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory) -> Path:
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert ask(server, configuration(out)) == [0]
    return out


def test_killed_at_random_times(server, whole, tmp_path):
    rng = random.Random(0)
    kills = [(0, 0.1), *((BATCH * k, rng.uniform(0.0, 0.15)) for k in (2, 8, 14, 20))]
    codes = ask(server, configuration(tmp_path / "run"), kills)
    assert codes.count(-9) >= 3
    assert codes[-1] == 0
    assert_same(whole, tmp_path / "run")


def test_killed_while_writing_checkpoints(server, whole, tmp_path):
    # Every step writes a checkpoint and every flush takes 20 ms, so nearly all of the time is spent writing.
    rng = random.Random(1)
    every = Every(log=5 * BATCH, checkpoint=BATCH, seconds=0, samples=0)
    config = configuration(tmp_path / "run", images=8 * BATCH, every=every)
    codes = ask(server, config, [(BATCH * k, rng.uniform(0.0, 0.2)) for k in (1, 4, 6)], slow=0.02)
    assert codes.count(-9) >= 2
    assert codes[-1] == 0
    left = [p.name for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.startswith(".")]
    assert left == []
    # Going on to the full budget arrives where the uninterrupted run did.
    assert ask(server, configuration(tmp_path / "run")) == [0]
    assert log_of(whole) == log_of(tmp_path / "run")
    assert_same_weights(whole, tmp_path / "run")


def test_resumed_with_another_number_of_workers(server, whole, tmp_path):
    half = configuration(tmp_path / "run", workers=1, images=11 * BATCH)
    assert ask(server, half) == [0]
    assert ask(server, configuration(tmp_path / "run", workers=0)) == [0]
    assert log_of(whole) == log_of(tmp_path / "run")
    assert_same_weights(whole, tmp_path / "run")


def test_a_cascade_resumes_too(server, tmp_path):
    """Both networks, both averages and the gate's watch go on, told labels, with a metric."""
    base = {field.name: getattr(configuration(tmp_path), field.name) for field in fields(TrainConfig)}
    base |= {"images": 12 * BATCH, "objective": CascadeLoss(metric="lite0", gate="clean")}
    base["every"] = Every(log=5 * BATCH, checkpoint=2 * BATCH, seconds=0, samples=6 * BATCH)
    whole, killed = (CascadeConfig(**base | {"out": str(tmp_path / name)}) for name in ("whole", "killed"))
    assert ask(server, whole) == [0]
    codes = ask(server, killed, [(0, 0.1), (BATCH * 2, 0.05), (BATCH * 6, 0.02)])
    assert codes.count(-9) >= 2
    assert codes[-1] == 0
    assert_same(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_killed_many_times(server, tmp_path, seed):
    rng = random.Random(seed)
    changes = {"images": 80 * BATCH, "every": Every(log=5 * BATCH, checkpoint=7 * BATCH, seconds=0.3, samples=0)}
    changes["network"] = UNetConfig(width=8, multipliers=(1, 2), blocks=1, attention=(1,), head_width=8, dropout=0.1)
    changes["condition"] = ("none", "label", "text")[seed % 3]
    changes["precision"] = ("no", "bf16")[seed % 2]
    assert ask(server, configuration(tmp_path / "whole", **changes)) == [0]
    kills = [(BATCH * 7 * k, rng.uniform(0.0, 0.5)) for k in range(11)]
    workers = rng.choice((0, 1))
    ask(server, configuration(tmp_path / "killed", workers=workers, **changes), kills, slow=rng.choice((0.0, 0.02)))
    assert_same_weights(tmp_path / "whole", tmp_path / "killed")
    assert log_of(tmp_path / "whole") == log_of(tmp_path / "killed")
