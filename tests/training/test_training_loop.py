import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ornstein.errors import CheckpointError, ConfigError, UsageError
from ornstein.networks import DiTConfig
from ornstein.runs import export, is_run, open_run
from ornstein.training import DivergedError, Every, Optimizer, Text, TrainConfig, folder, read_config, train

BATCH = 8


def configuration(out: Path, **changes) -> TrainConfig:
    base = TrainConfig(
        data="critters:16",
        out=str(out),
        size=16,
        images=10 * BATCH,
        batch=BATCH,
        network=DiTConfig(width=32, depth=1, head_width=16),
        optimizer=Optimizer(lr=3e-3, warmup=0),
        every=Every(log=4 * BATCH, checkpoint=4 * BATCH, seconds=0, samples=0),
        tensorboard=False,
        workers=0,
    )
    return replace(base, **changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run of 10 steps, told labels."""
    out = tmp_path_factory.mktemp("runs") / "labels"
    summary = train(configuration(out, condition="label", keep=2), quiet=True)
    assert (summary.images, summary.steps, summary.finished_before) == (80, 10, False)
    return out


@pytest.fixture
def copy(run, tmp_path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


def test_what_a_run_leaves(run):
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["000000000064", "000000000080"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["images"] for line in lines] == [32, 64, 80]
    assert all(sum(line["levels"]["samples"]) == n for line, n in zip(lines, (32, 32, 16), strict=True))
    for line in lines:
        levels = line["levels"]
        total = sum(n * loss for n, loss in zip(levels["samples"], levels["loss"], strict=True) if n)
        assert total / sum(levels["samples"]) == pytest.approx(line["loss"])
    summary = json.loads((run / "summary.json").read_text())
    assert summary["images"] == 80
    assert summary["skipped"] == {}
    assert read_config(json.loads((run / "config.json").read_text())["train"]).out == str(run)


def test_loss_falls(tmp_path):
    # Eight small pictures are soon known by heart; guessing the average, v has a loss of about 0.6.
    config = configuration(
        tmp_path / "run",
        data="critters:8",
        predicts="v",
        images=200 * BATCH,
        every=Every(log=50 * BATCH, checkpoint=10**6, seconds=0, samples=0),
    )
    summary = train(config, quiet=True)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] == summary.loss < 0.45 < losses[0]
    assert losses == sorted(losses, reverse=True)


def test_a_finished_run_says_so(run, capsys):
    summary = train(configuration(run, condition="label"), quiet=True)
    assert summary.finished_before
    assert "is finished" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "--seed 0, not 1"),
        ({"optimizer": Optimizer(lr=1e-3, warmup=0)}, "--optimizer.lr 0.003"),
        ({"condition": "none"}, "--condition label"),
        ({"network": DiTConfig(width=32, depth=2, head_width=16)}, "--network.depth 1"),
        ({"data": "critters:17"}, "the data of"),
    ],
)
def test_another_configuration_is_refused_by_name(copy, changes, message):
    with pytest.raises(ConfigError) as error:
        train(configuration(copy, **{"condition": "label", "images": 160} | changes), quiet=True)
    assert message in str(error.value)


def test_other_folders_are_refused(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ConfigError, match="is not empty and holds no run"):
        train(configuration(tmp_path), quiet=True)
    with pytest.raises(ConfigError, match="is a file"):
        train(configuration(tmp_path / "letter.txt"), quiet=True)


def test_a_second_trainer_is_refused(copy):
    fcntl = pytest.importorskip("fcntl")
    with (copy / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another process"):
            train(configuration(copy, condition="label", images=160), quiet=True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_data_worker_that_outlives_its_trainer_keeps_no_lock(tmp_path):
    started, starting = os.pipe()
    with folder.locked(tmp_path):
        worker = os.fork()
        if worker == 0:
            os.write(starting, b"x")
            time.sleep(20)
            os._exit(0)
        os.read(started, 1)
    try:
        with folder.locked(tmp_path):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)


def test_impossible_conditions_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="has no labels"):
        train(configuration(tmp_path / "a", data="planets:8", condition="label"), quiet=True)
    assert not (tmp_path / "a" / "config.json").exists()


def test_divergence_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    out = tmp_path / "run"
    train(configuration(out, images=4 * BATCH), quiet=True)
    weights = next((out / "checkpoints").iterdir()) / "model.safetensors"
    before = weights.read_bytes()
    document = json.loads((out / "config.json").read_text())
    document["train"]["optimizer"]["lr"] = 1e18
    (out / "config.json").write_text(json.dumps(document))
    with pytest.raises(DivergedError) as error:
        train(configuration(out, optimizer=Optimizer(lr=1e18, warmup=0)), quiet=True)
    assert "\n" not in str(error.value)
    assert "000000000032" in str(error.value)
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["000000000032"]
    assert weights.read_bytes() == before


def test_unreadable_files_are_named_in_the_summary(tmp_path):
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(5):
        Image.new("RGB", (16, 16), (40 * i, 0, 0)).save(folder / f"{i}.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing more")
    summary = train(configuration(tmp_path / "run", data=str(folder), images=4 * BATCH), quiet=True)
    assert summary.skipped_count == 1
    assert list(summary.skipped) == ["broken.png"]


def test_a_torn_checkpoint_is_ignored_and_swept(copy):
    torn = copy / "checkpoints" / ".writing-000000000096"
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"half")
    assert train(configuration(copy, condition="label", images=88), quiet=True).resumed_at == 80
    assert not torn.exists()


@pytest.mark.parametrize("part", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_damaged_checkpoints_are_named(copy, part):
    path = copy / "checkpoints" / "000000000080" / part
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError) as error:
        train(configuration(copy, condition="label", images=160), quiet=True)
    assert str(path) in str(error.value)
    assert "delete" in str(error.value)
    # The remedy works.
    shutil.rmtree(path.parent)
    assert train(configuration(copy, condition="label", images=88), quiet=True).resumed_at == 64


def test_an_interrupt_saves_first(tmp_path):
    import signal

    out = tmp_path / "run"
    every = Every(log=BATCH, checkpoint=10**9, seconds=0, samples=0)
    stop = threading.Thread(target=interrupt, args=(out / "metrics.jsonl", signal.SIGTERM))
    stop.start()
    with pytest.raises(KeyboardInterrupt):
        train(configuration(out, images=10**6, every=every), quiet=True)
    stop.join()
    assert len(list((out / "checkpoints").glob("0*"))) == 1


def interrupt(log: Path, number: int) -> None:
    import time

    while not log.is_file() or not log.stat().st_size:
        time.sleep(0.01)
    os.kill(os.getpid(), number)


def test_runs_checkpoints_and_cards_open(run, tmp_path):
    opened = open_run(run)
    assert (opened.images, opened.condition, opened.denoiser.shape) == (80, "label", (3, 16, 16))
    assert not opened.model.training
    assert is_run(run)
    assert not is_run(tmp_path)
    x = torch.zeros(2, 3, 16, 16)
    model = opened.denoiser.with_condition(opened.cond(labels=[opened.classes[1], 3]))
    card = open_run(export(opened, tmp_path / "card", half=False))
    again = card.denoiser.with_condition(card.cond(labels=[1, 3]))
    assert torch.equal(model(x, 0.5).clean, again(x, 0.5).clean)
    assert card.images == 80
    half = open_run(export(opened, tmp_path / "half"))
    torch.testing.assert_close(half.denoiser(x, 0.5).clean, opened.denoiser(x, 0.5).clean, atol=2e-3, rtol=1e-3)
    before = open_run(run / "checkpoints" / "000000000064")
    assert before.images == 64
    raw = open_run(run, ema=False)
    assert not torch.equal(raw.denoiser(x, 0.5).clean, opened.denoiser(x, 0.5).clean)
    assert torch.equal(opened.null()["label"], torch.tensor([-1]))


def test_what_cannot_be_opened_is_named(run, copy, tmp_path):
    for where, message in ((tmp_path / "none", "does not exist"), (tmp_path, "is no run")):
        with pytest.raises(CheckpointError, match=message):
            open_run(where)
    opened = open_run(run)
    for wrong in ({"labels": ["purple cow"]}, {"labels": [99]}, {"captions": ["a cow"]}, {}):
        with pytest.raises(UsageError):
            opened.cond(**wrong)
    path = copy / "checkpoints" / "000000000080" / "ema.safetensors"
    tensors = load_file(path)
    name = min(tensors)
    save_file({**tensors, name: torch.zeros(7)}, path)
    with pytest.raises(CheckpointError, match=name):
        open_run(copy)
    del tensors[name]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match="lacks the tensor"):
        open_run(copy)


def test_captions(tmp_path):
    config = configuration(tmp_path / "run", condition="text", text=Text(width=32, length=8), images=4 * BATCH)
    summary = train(replace(config, every=Every(log=8, samples=32, seconds=0)), quiet=True)
    assert math.isfinite(summary.loss)
    assert [p.name for p in (tmp_path / "run" / "samples").iterdir()] == ["000000000032.png"]
    opened = open_run(tmp_path / "run")
    cond = opened.cond(captions=["a green critter", ""])
    assert cond["text_mask"].sum(1).tolist() == [3, 0]
    answers = opened.denoiser.predict_conditions(torch.zeros(2, 3, 16, 16), 0.5, [cond, opened.null(2)])
    assert answers[0].clean.shape == (2, 3, 16, 16)
    torch.testing.assert_close(answers[0].clean[1], answers[1].clean[1])


SCRIPT = """
import sys
from accelerate import PartialState
from ornstein.training import read_config, train
import json
train(read_config(json.loads(sys.argv[1])), quiet=True)
print(f"one of {PartialState().num_processes} processes")
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ddpm", "cas-dm"])
def test_two_processes_see_the_same_losses_as_one(tmp_path, method):
    from ornstein.objectives import CascadeLoss
    from ornstein.training import to_dict
    from ornstein.training.cas_dm import CascadeConfig

    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    logs = []
    for processes in (1, 2):
        config = configuration(
            tmp_path / f"run{processes}", condition="label", device="cpu", every=Every(log=BATCH, seconds=0, samples=0)
        )
        if method == "cas-dm":
            shared = {field.name: getattr(config, field.name) for field in fields(config)}
            config = CascadeConfig(**shared | {"objective": CascadeLoss(metric="none", gate="clean")})
        # `accelerate launch --cpu` would run a single one, whatever number it is given.
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command = [sys.executable, *(launch if processes > 1 else []), str(script), json.dumps(to_dict(config))]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(f"one of {processes} processes") == processes
        logs.append([json.loads(line) for line in Path(config.out, "metrics.jsonl").read_text().splitlines()])
    assert len(logs[0]) == len(logs[1]) == 10
    for one, two in zip(*logs, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-5)
        assert one["levels"]["samples"] == two["levels"]["samples"]
