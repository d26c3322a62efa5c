"""A run that diverges keeps what is good and goes on with a smaller rate; a checkpoint holds all that it must."""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import signal
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ornstein.data import save_png
from ornstein.errors import CheckpointError, ConfigError, DataError, StorageError
from ornstein.networks import DiTConfig
from ornstein.training import DivergedError, Every, Optimizer, TrainConfig, train

BATCH = 4
SMALL = DiTConfig(width=16, depth=1, head_width=16, patch=8)


def configuration(out: Path, lr: float = 1e-3, images: int = 4 * BATCH, every: int = BATCH, **changes) -> TrainConfig:
    given = {
        "data": "critters:8", "out": str(out), "size": 16, "images": images, "batch": BATCH, "network": SMALL,
        "every": Every(log=BATCH, checkpoint=every, seconds=0, samples=0), "tensorboard": False, "workers": 0,
    }  # fmt: skip
    return TrainConfig(**given | changes, optimizer=Optimizer(lr=lr, warmup=0))


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("begun") / "run"
    train(configuration(out), quiet=True)
    return out


def checkpoints(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").iterdir())


def finite(out: Path) -> bool:
    files = [file for file in out.glob("checkpoints/*/*.safetensors") if file.parent.name.isdecimal()]
    return all(bool(torch.isfinite(t).all()) for file in files for t in load_file(file).values())


# ----------------------------------------------------------------------------------------------------------- divergence


@pytest.mark.parametrize("rate", [1e15, 1e18])
@pytest.mark.parametrize("every", [BATCH, 100 * BATCH])
def test_the_last_good_checkpoint_stays_and_the_remedy_works(begun, tmp_path, rate, every):
    """Whatever the rate and the interval: never a weight of NaN, and the same folder goes on as if nothing had been."""
    out = Path(shutil.copytree(begun, tmp_path / "run"))
    document = json.loads((out / "config.json").read_text())
    document["train"]["optimizer"]["lr"] = rate  # as if it had been begun with it
    (out / "config.json").write_text(json.dumps(document))
    for _ in range(2):  # every sitting says the same
        with pytest.raises(DivergedError, match=r"not finite at \d+ images; the last good .*000000000016") as error:
            train(configuration(out, rate, images=12 * BATCH, every=every), quiet=True)
        assert "lower --optimizer.lr, and the same command goes on from there" in str(error.value)
        assert finite(out)
    with pytest.raises(ConfigError, match=r"begun with --optimizer\.lr"):
        train(configuration(out, 2 * rate, images=12 * BATCH, every=every), quiet=True)
    summary = train(configuration(out, images=8 * BATCH, every=every), quiet=True)
    assert (summary.resumed_at, summary.images) == (4 * BATCH, 8 * BATCH)
    assert not (out / "diverged.json").exists()
    assert not [name for name in checkpoints(out) if not name.isdecimal()]
    straight = tmp_path / "straight"
    train(configuration(straight, images=8 * BATCH, every=every), quiet=True)
    newest = f"checkpoints/{8 * BATCH:012d}/ema.safetensors"
    assert (out / newest).read_bytes() == (straight / newest).read_bytes()
    with pytest.raises(ConfigError, match=r"begun with --optimizer\.lr 0\.001"):  # no divergence is on record any more
        train(configuration(out, 1e-4, images=9 * BATCH), quiet=True)


@pytest.mark.parametrize("rate", [1e15, 1e18])
def test_a_run_that_diverges_before_its_first_checkpoint_begins_again(tmp_path, rate):
    out = tmp_path / "run"
    with pytest.raises(DivergedError, match="there was no checkpoint yet"):
        train(configuration(out, rate, every=100), quiet=True)
    assert train(configuration(out, every=100), quiet=True).images == 4 * BATCH


def overflow(session) -> None:
    """A weight that a step has made infinite."""
    with torch.no_grad():
        next(session.model.parameters()).view(-1)[0] = math.inf


@pytest.mark.parametrize("images", [BATCH, 2 * BATCH])
@pytest.mark.parametrize(("rate", "after"), [(1e18, None), (1e-3, overflow)], ids=["the loss", "a weight"])
def test_the_last_weights_of_a_run_are_good_too(tmp_path, rate, after, images):
    """There is no loss after them: they are tried before they are written."""
    with pytest.raises(DivergedError, match="not finite"):
        train(configuration(tmp_path / "run", rate, images=images), quiet=True, after_step=after)
    assert not (tmp_path / "run" / "checkpoints").exists() or finite(tmp_path / "run")


# ---------------------------------------------------------------------------------------------------------- checkpoints


def damaged(begun: Path, to: Path, part: str, change) -> Path:
    """A copy of a run whose newest checkpoint was changed by somebody who makes new checksums."""
    out = Path(shutil.copytree(begun, to))
    folder = out / "checkpoints" / f"{4 * BATCH:012d}"
    state = json.loads((folder / "state.json").read_text())
    if part == "state":
        state = change(state) or state
    else:
        tensors = load_file(folder / f"{part}.safetensors")
        tensors = change(tensors) or tensors
        save_file(tensors, folder / f"{part}.safetensors", {"images": "16"})
        data = (folder / f"{part}.safetensors").read_bytes()
        state["files"][f"{part}.safetensors"] = {"bytes": len(data), "crc32": zlib.crc32(data)}
    text = state if isinstance(state, str) else json.dumps(state)
    (folder / "state.json").write_text(text)
    return out


def pick(tensors, slot=""):
    return next(name for name in sorted(tensors) if name.startswith(slot))


def put(slot, value):
    return lambda tensors: tensors.update({pick(tensors, slot): value(tensors[pick(tensors, slot)])})


def drop(slot):
    return lambda tensors: tensors.pop(pick(tensors, slot)) is None or None


def deep(*keys, value):
    def change(state):
        here = state
        for key in keys[:-1]:
            here = here[key]
        here[keys[-1]] = value

    return change


DAMAGE = {
    "an empty optimizer": ("optimizer", lambda tensors: {"x": torch.zeros(1)}),
    "no moments": ("optimizer", lambda tensors: {k: v for k, v in tensors.items() if k.startswith("step")}),
    "one slot less": ("optimizer", drop("exp_avg_sq/")),
    "one weight less": (
        "optimizer",
        lambda t: {k: v for k, v in t.items() if k.split("/")[1] != pick(t).split("/")[1]},
    ),
    "an unknown slot": (
        "optimizer",
        lambda t: t.update({pick(t).replace("exp_avg/", "momentum/"): t[pick(t)].clone()}),
    ),
    "NaN moments": ("optimizer", put("exp_avg/", lambda v: v * float("nan"))),
    "negative squares": ("optimizer", put("exp_avg_sq/", lambda v: -v - 1)),
    "a negative step": ("optimizer", put("step/", lambda v: -v)),
    "an infinite step": ("optimizer", put("step/", lambda v: v * float("inf"))),
    "moments in half": ("optimizer", put("exp_avg/", lambda v: v.half())),
    "moments of another shape": ("optimizer", put("exp_avg/", lambda v: v[:1])),
    "integer weights": ("model", put("", lambda v: v.to(torch.int64))),
    "weights in half": ("model", put("", lambda v: v.half())),
    "NaN weights": ("model", put("", lambda v: v * float("nan"))),
    "a NaN average": ("ema", put("", lambda v: v * float("nan"))),
    "one weight less in the average": ("ema", drop("")),
    "no checksums": ("state", deep("files", value={})),
    "one checksum less": ("state", lambda s: s["files"].pop("ema.safetensors") and None),
    "a file too many": ("state", lambda s: s["files"].update({"../../config.json": {"bytes": 1, "crc32": 1}})),
    "a negative number of images": ("state", deep("images", value=-16)),
    "other images": ("state", deep("images", value=12)),
    "a negative step of the run": ("state", deep("step", value=-4)),
    "another step": ("state", deep("step", value=7)),
    "a true step": ("state", deep("step", value=True)),
    "a huge step": ("state", deep("step", value=10**19)),
    "a late log": ("state", deep("logged", value=99)),
    "endless seconds": ("state", deep("seconds", value=float("inf"))),
    "junk in the scaler": ("state", deep("scaler", value={"scale": "x"})),
    "no scaler": ("state", lambda s: s.pop("scaler") and None),
    "junk in skipped": ("state", deep("skipped", value={"a.png": 3})),
    "no sums": ("state", deep("tally", value={})),
    "sums of another length": ("state", deep("tally", "counts", value=[0.0])),
    "sums of words": (
        "state",
        deep("tally", value={"terms": {"a": ["x"] * 8}, "counts": [0] * 8, "norm": 0, "steps": 1}),
    ),
    "steps of the sums": ("state", deep("tally", "steps", value=-1)),
    "junk in unmoved": ("state", deep("unmoved", value=3)),
    "deep JSON": ("state", lambda s: "[" * 100_000),
    "a long number": ("state", lambda s: json.dumps(s).replace(": 16", ": " + "1" * 5000)),
    "no JSON": ("state", lambda s: json.dumps(s)[:-9]),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_checkpoint_holds_every_slot_of_every_weight_finite_and_no_other(begun, tmp_path, what):
    out = damaged(begun, tmp_path / "run", *DAMAGE[what])
    before = (out / "metrics.jsonl").read_bytes()
    with pytest.raises(CheckpointError) as error:
        train(configuration(out, images=6 * BATCH), quiet=True)
    assert str(error.value).isprintable()
    assert str(out) in str(error.value)
    assert (out / "metrics.jsonl").read_bytes() == before, "nothing is touched before everything is read"


def test_a_checkpoint_without_the_list_of_unmoved_weights_goes_on(begun, tmp_path):
    """As older versions wrote it."""
    out = damaged(begun, tmp_path / "run", "state", lambda state: state.pop("unmoved") and None)
    assert train(configuration(out, images=5 * BATCH), quiet=True).resumed_at == 4 * BATCH


# --------------------------------------------------------------------------------------------------------- the machine


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs limits")
def test_a_full_disk_is_one_line_and_the_work_before_it_goes_on(begun, tmp_path):
    out = Path(shutil.copytree(begun, tmp_path / "run"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    usual = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # the log fits, the weights do not
        with pytest.raises(
            StorageError, match=r"checkpoint of 20 images cannot be written .*; the newest checkpoint is"
        ):
            train(configuration(out, images=6 * BATCH), quiet=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, usual)
    assert checkpoints(out) == checkpoints(begun)
    assert train(configuration(out, images=6 * BATCH), quiet=True).resumed_at == 4 * BATCH


def test_a_killed_data_worker_ends_the_run_with_a_checkpoint(tmp_path):
    def kill(session):
        if session.step == 2:
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            for child in children:
                if "python" in Path(f"/proc/{child}/cmdline").read_text():
                    os.kill(int(child), signal.SIGKILL)

    config = configuration(tmp_path / "run", images=200 * BATCH, every=10**6, workers=1)
    with pytest.raises(
        StorageError, match=r"a process that reads data has died .*; the last good checkpoint is"
    ) as error:
        train(config, quiet=True, after_step=kill)
    assert str(error.value).isprintable()
    (kept,) = checkpoints(tmp_path / "run")
    assert int(kept) >= 2 * BATCH
    going = replace(config, images=int(kept) + BATCH, workers=0)
    assert train(going, quiet=True).resumed_at == int(kept)


def test_data_that_vanish_leave_the_work_in_a_checkpoint(tmp_path):
    """One line; the same command goes on once they are back."""
    kept, data = tmp_path / "kept", tmp_path / "data"
    for i in range(4 * BATCH):
        save_png(torch.full((3, 16, 16), i / 16), kept / f"{i:02d}.png")
    shutil.copytree(kept, data)

    def gone(session) -> None:
        if session.images == BATCH:
            shutil.rmtree(data)

    def run(out: Path):
        return replace(configuration(out, images=32 * BATCH, every=100 * BATCH), data=str(data), workers=1)

    message = r"none of the 16 images .*; the last good checkpoint is .*: the same command"
    with pytest.raises(DataError, match=message) as error:
        train(run(tmp_path / "run"), quiet=True, after_step=gone)
    assert "\n" not in str(error.value)
    shutil.copytree(kept, data)
    resumed = train(run(tmp_path / "run"), quiet=True)
    assert resumed.resumed_at >= BATCH
    assert resumed.images == 32 * BATCH


def test_a_run_keeps_the_words_that_it_began_with(tmp_path):
    """Older versions read a part of the captions: the words of a run are those in its folder, in their order."""
    out = tmp_path / "run"
    train(configuration(out, images=BATCH, condition="text"), quiet=True)
    document = json.loads((out / "config.json").read_text())
    words = document["model"]["text"]["vocabulary"]
    document["model"]["text"]["vocabulary"] = words[::-1]
    (out / "config.json").write_text(json.dumps(document))
    assert train(configuration(out, images=2 * BATCH, condition="text"), quiet=True).resumed_at == BATCH
    assert json.loads((out / "config.json").read_text())["model"]["text"]["vocabulary"] == words[::-1]
