"""Files of a checkpoint: every byte counts, the newest are kept, and an optimizer comes back as it was."""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from ornstein.errors import CheckpointError
from ornstein.networks import DiTConfig
from ornstein.storage.weights import fill
from ornstein.training import Every, Optimizer, TrainConfig, checkpoint, train
from ornstein.training.config import Averaging
from ornstein.training.slct import Averages, RAdam, SLCTConfig

BATCH = 4
STATE = {"step": 3, "logged": 16, "seconds": 1.5, "tally": {}, "skipped": {}}


def options(out: Path, **changes) -> dict:
    return {
        "data": "critters:8",
        "out": str(out),
        "size": 16,
        "images": 2 * BATCH,
        "batch": BATCH,
        "network": DiTConfig(width=16, depth=1, head_width=16, patch=8),
        "every": Every(log=BATCH, checkpoint=BATCH, seconds=0, samples=0),
        "tensorboard": False,
        "workers": 0,
    } | changes


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run with as many kinds of files as there are without a discriminator."""
    out = tmp_path_factory.mktemp("files") / "run"
    train(SLCTConfig(**options(out, ema=Averages(also=(0.05, 0.9)), optimizer=RAdam(lr=1e-3))), quiet=True)
    return out


PARTS = ["model", "ema", "optimizer", "ema-0.05", "ema-0.9"]


def test_all_files_are_listed_with_size_and_checksum(run):
    folder = checkpoint.complete(run)[-1]
    state = json.loads((folder / "state.json").read_text())
    expected = {}
    for part in PARTS:
        data = (folder / f"{part}.safetensors").read_bytes()
        expected[f"{part}.safetensors"] = {"bytes": len(data), "crc32": zlib.crc32(data)}
        with safe_open(folder / f"{part}.safetensors", framework="pt") as file:
            assert file.metadata() == {"images": "8"}
    assert state["files"] == expected
    told = {key: state[key] for key in ("format", "version", "images", "step", "logged", "skipped", "scaler")}
    assert told == {
        "format": "ornstein-checkpoint", "version": 1, "images": 8, "step": 2, "logged": 8, "skipped": {},
        "scaler": None,
    }  # fmt: skip
    assert state["tally"]["steps"] == 0  # a line of the log was just written
    assert state["guard"]["settled"] == 1  # each of the two steps is a stage of its own
    assert checkpoint.read_state(folder) == state


@pytest.mark.parametrize("part", PARTS)
def test_one_flipped_bit_is_found_and_its_file_named(run, part, tmp_path):
    folder = Path(shutil.copytree(checkpoint.complete(run)[-1], tmp_path / "one"))
    file = folder / f"{part}.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 16  # in the middle of the last number
    file.write_bytes(data)
    with pytest.raises(CheckpointError) as error:
        checkpoint.read_state(folder)
    assert str(error.value).startswith(f"{file} differs from what was written ({len(data)} of {len(data)} bytes)")
    assert f"delete {folder} to go on" in str(error.value)
    file.write_bytes(data[:-1])
    with pytest.raises(CheckpointError, match=rf"\({len(data) - 1} of {len(data)} bytes\)"):
        checkpoint.read_state(folder)
    file.unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        checkpoint.read_state(folder)


def test_a_resumed_run_reads_the_checksums(run, tmp_path):
    out = Path(shutil.copytree(run, tmp_path / "run"))
    file = checkpoint.complete(out)[-1] / "ema-0.9.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 16
    file.write_bytes(data)
    config = SLCTConfig(
        **options(out, images=4 * BATCH, ema=Averages(also=(0.05, 0.9)), optimizer=RAdam(lr=1e-3), curriculum=8)
    )
    with pytest.raises(CheckpointError, match=r"ema-0\.9\.safetensors differs"):
        train(config, quiet=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "is not the state of an ornstein checkpoint"),
        ({"version": 2}, r"has version 2, this library reads 1: use the library"),
        ({"images": "8"}, "lacks a valid 'images'"),
        ({"step": 2.0}, "lacks a valid 'step'"),
        ({"logged": None}, "lacks a valid 'logged'"),
        ({"seconds": 1}, "lacks a valid 'seconds'"),
        ({"tally": []}, "lacks a valid 'tally'"),
        ({"skipped": []}, "lacks a valid 'skipped'"),
        ({"files": None}, "lacks a valid 'files'"),
        ({"files": {"model.safetensors": 3}}, "lists its files without their sizes"),
        ({"files": {"model.safetensors": {"bytes": 3}}}, "lists its files without their sizes"),
        ({"files": {"other.safetensors": {"bytes": 3, "crc32": 1}}}, r"other\.safetensors is missing"),
    ],
)
def test_a_state_that_lacks_something_is_refused(run, tmp_path, change, message):
    folder = Path(shutil.copytree(checkpoint.complete(run)[-1], tmp_path / "one"))
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(state | change))
    with pytest.raises(CheckpointError, match=message):
        checkpoint.read_state(folder)
    for junk in ("[1]", "{", "\xff"):
        (folder / "state.json").write_text(junk, "latin-1")
        with pytest.raises(CheckpointError, match=r"state\.json"):
            checkpoint.read_state(folder)


# ----------------------------------------------------------------------------------------------------- writing, keeping


def weights(value: float = 1.0, size: int = 3) -> dict[str, dict[str, torch.Tensor]]:
    return {"model": {"w": torch.full((size,), value)}}


def test_the_newest_are_kept_by_number_and_none_is_written_twice(tmp_path):
    for images in (999_999_999_999, 8, 1_000_000_000_000):
        folder = checkpoint.save(tmp_path, images, weights(), STATE, keep=3)
        assert folder == tmp_path / "checkpoints" / f"{images:012d}"
    root = tmp_path / "checkpoints"
    for name in ("notes", "000000000007", ".writing-000000000009"):
        (root / name).mkdir()
    names = ["000000000008", "999999999999", "1000000000000"]
    assert [path.name for path in checkpoint.complete(tmp_path)] == names
    before = (folder / "model.safetensors").stat()
    assert checkpoint.save(tmp_path, 1_000_000_000_000, weights(2.0), STATE, keep=3) == folder
    after = (folder / "model.safetensors").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    checkpoint.save(tmp_path, 9, weights(), STATE, keep=2)
    assert [path.name for path in checkpoint.complete(tmp_path)] == names[1:]
    checkpoint.sweep(tmp_path)
    left = sorted(path.name for path in root.iterdir())
    assert left == sorted(["notes", "000000000007", *names[1:]])
    assert checkpoint.complete(tmp_path / "nowhere") == []
    checkpoint.sweep(tmp_path / "nowhere")


def test_the_checksum_is_that_of_the_whole_file_however_large(tmp_path):
    folder = checkpoint.save(tmp_path, 8, weights(size=1_500_000), STATE, keep=1)
    file = folder / "model.safetensors"
    assert file.stat().st_size > 5_000_000
    listed = json.loads((folder / "state.json").read_text())["files"]["model.safetensors"]
    assert listed == {"bytes": file.stat().st_size, "crc32": zlib.crc32(file.read_bytes())}


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_everything_is_on_the_disk_before_the_checkpoint_appears(tmp_path, monkeypatch):
    flushed = []

    def note(handle):
        path = Path(f"/proc/self/fd/{handle}").readlink()
        flushed.append((path.name, path.exists(), (tmp_path / "checkpoints" / "000000000008").exists()))

    monkeypatch.setattr("os.fsync", note)
    before = len(list(Path("/proc/self/fd").iterdir()))
    checkpoint.save(tmp_path, 8, weights() | {"ema": {"w": torch.zeros(2)}}, STATE, keep=1)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    hidden = ["model.safetensors", "ema.safetensors", "state.json", ".writing-000000000008"]
    assert flushed == [*((name, True, False) for name in hidden), ("checkpoints", True, True)]


def test_what_was_left_half_written_does_not_end_up_in_the_next_one(tmp_path):
    hidden = tmp_path / "checkpoints" / ".writing-000000000008"
    hidden.mkdir(parents=True)
    (hidden / "junk").write_text("half")
    folder = checkpoint.save(tmp_path, 8, weights(), STATE, keep=1)
    assert sorted(path.name for path in folder.iterdir()) == ["model.safetensors", "state.json"]


# ----------------------------------------------------------------------------------------------- weights and optimizers


def test_weights_are_copied_into_the_module_as_it_is(tmp_path):
    net, path = nn.Linear(3, 2).half(), tmp_path / "x.safetensors"
    given = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2)}
    weight = net.weight
    fill(net, given, path)
    assert net.weight is weight
    assert net.weight.dtype == torch.float16
    assert torch.equal(net.weight.float(), given["weight"])
    for change, message in (
        ({"bias": torch.ones(3)}, r"'bias' has shape \(3,\), not \(2,\)"),
        ({name: torch.ones(3) for name in "zyxwvuts"}, "holds a tensor 's' that the network does not have"),
        ({"bias": None}, "lacks the tensor 'bias': it belongs to another network"),
    ):
        wrong = {name: value for name, value in (given | change).items() if value is not None}
        with pytest.raises(CheckpointError, match=message) as error:
            fill(net, wrong, path)
        assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
        lambda p: torch.optim.AdamW(p, lr=0.1),
        lambda p: torch.optim.RAdam(p, lr=0.1),
    ],
    ids=["fused", "adamw", "radam"],
)
def test_an_optimizer_goes_on_as_if_it_had_not_stopped(make, tmp_path):
    def begun():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 3), nn.Conv2d(2, 2, 3).to(memory_format=torch.channels_last))
        return net, make(net.parameters())

    def step(net, optimizer, number):
        for i, parameter in enumerate(net.parameters()):
            parameter.grad = torch.full_like(parameter, 0.3 * number - i).sin()
        optimizer.step()

    (one, first), (two, second) = begun(), begun()
    for number in range(3):
        step(one, first, number)
    names = [{p: name for name, p in net.named_parameters()} for net in (one, two)]
    tensors = checkpoint.optimizer_tensors(first, names[0])
    assert {name.split("/")[1] for name in tensors} == {"0.weight", "0.bias", "1.weight", "1.bias"}
    stored = {name: value.clone() for name, value in tensors.items()}
    two.load_state_dict(one.state_dict())
    checkpoint.fill_optimizer(second, stored, names[1], tmp_path / "o")
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert first.state[a].keys() == second.state[b].keys()
        for key, value in first.state[a].items():
            assert second.state[b][key].dtype == value.dtype
            assert second.state[b][key].stride() == value.stride()
    for number in range(3, 6):
        step(one, first, number)
        step(two, second, number)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    slot = next(name for name in stored if name.endswith("0.weight") and not name.startswith("step"))
    for wrong, message in (
        ({slot.replace("0.weight", "7.weight"): stored[slot]}, "belongs to no weight of this network"),
        ({slot: torch.zeros(3)}, r"has shape \(3,\), not \(3, 4\)"),
    ):
        with pytest.raises(CheckpointError, match=message):
            checkpoint.fill_optimizer(second, wrong, names[1], tmp_path / "o")


def test_gains_and_biases_are_not_decayed_and_frozen_weights_not_trained(tmp_path):
    from ornstein.training.optimizers import adam

    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.GroupNorm(1, 3), nn.Linear(4, 2), nn.Linear(2, 2))
    net[3].requires_grad_(False)
    settings = Optimizer(lr=0.25, betas=(0.5, 0.75), eps=1e-3, weight_decay=0.125)
    for options_, kind in ((settings, torch.optim.AdamW), (RAdam(lr=0.25, weight_decay=0.125), torch.optim.RAdam)):
        optimizer = adam(options_, net, torch.device("cpu"))
        assert type(optimizer) is kind
        decayed, plain = optimizer.param_groups
        assert [id(p) for p in decayed["params"]] == [id(net[0].weight), id(net[2].weight)]
        assert [id(p) for p in plain["params"]] == [id(p) for p in (net[0].bias, *net[1].parameters(), net[2].bias)]
        assert (decayed["weight_decay"], plain["weight_decay"]) == (0.125, 0.0)
        for group in (decayed, plain):
            assert (group["lr"], group["betas"], group["eps"]) == (0.25, options_.betas, options_.eps)
    assert adam(RAdam(rule="adamw"), net, torch.device("cpu")).defaults["fused"]
    assert type(adam(RAdam(rule="adamw"), net, torch.device("cpu"))) is torch.optim.AdamW


def test_the_average_follows_by_its_width(tmp_path):
    """Two runs that differ in the width alone have the same weights and other averages: by the closed form."""
    kept: dict[float, list] = {}
    for width in (0.05, 0.2):
        seen = kept.setdefault(width, [])
        config = TrainConfig(**options(tmp_path / str(width), images=4 * BATCH, ema=Averaging(sigma_rel=width)))
        train(
            config,
            quiet=True,
            after_step=lambda s, seen=seen: seen.append(
                [module.net.head.bias.detach().double().clone() for module in (s.model, s.average)]
            ),
        )
    from ornstein.training.ema import exponent

    for width, seen in kept.items():
        power = exponent(width) + 1
        # Step k of n has the weight (k/n)^(γ+1) − ((k−1)/n)^(γ+1).
        share = [(k / 4) ** power - ((k - 1) / 4) ** power for k in range(1, 5)]
        expected = sum(part * model for part, (model, _) in zip(share, seen, strict=True))
        torch.testing.assert_close(seen[-1][1], expected, rtol=1e-5, atol=1e-8)
    assert torch.equal(kept[0.05][-1][0], kept[0.2][-1][0])
    assert not torch.allclose(kept[0.05][-1][1], kept[0.2][-1][1], rtol=1e-3, atol=0)
