"""Runs, checkpoints and cards as they are opened: which weights and conditions, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import ornstein as orn
from ornstein.errors import CheckpointError, UsageError
from ornstein.runs import (
    TrainedModel,
    export,
    is_run,
    open_own,
    open_run,
    read_run,
    resolve_model_path,
    shipped,
    usable_device,
)

SHIPPED = ("critters", "critters-64", "critters-ect", "critters-latents", "critters-udpm")
WEIGHTS = Path(orn.__file__).parent / "weights"


@pytest.fixture(scope="module")
def run(tiny_run: Path) -> TrainedModel:
    return open_own(tiny_run)


def test_names_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shipped() == SHIPPED
    monkeypatch.chdir(tmp_path)
    assert resolve_model_path("critters") == WEIGHTS / "critters"
    assert resolve_model_path("no-such") == Path("no-such")
    assert is_run("critters")
    assert not is_run("no-such")
    (tmp_path / "critters").mkdir()
    assert resolve_model_path("critters") == Path("critters"), "a folder of that name comes first"
    for name in ("config.json", "ema.safetensors", "model_index.json"):
        assert not is_run("critters")
        (tmp_path / "critters" / name).write_text("{}")
        assert is_run("critters")
        (tmp_path / "critters" / name).unlink()


def test_what_is_known_of_a_run(run: TrainedModel, tiny_run: Path) -> None:
    assert (run.folder, run.images, run.condition) == (tiny_run, 64, "label")
    assert run.weights == tiny_run / "checkpoints" / run.weights.parent.name / "ema.safetensors"
    assert (run.picture, run.denoiser.shape, run.codec) == ((3, 16, 16), (3, 16, 16), None)
    assert len(run.classes) == 12
    assert run.parameters == sum(value.numel() for value in load_file(run.weights).values())
    assert run.details["train"]["data"] == "critters:64"
    assert not run.model.training
    assert not any(weight.requires_grad for weight in run.model.parameters())
    latent = open_own("critters-ect")
    assert latent.codec is not None
    assert (latent.denoiser.shape, latent.picture, latent.condition) == ((8, 8, 8), (3, 64, 64), "none")
    assert latent.null(3) == {}


def test_labels_by_number_and_name(run: TrainedModel) -> None:
    names = run.classes
    found = run.cond(labels=[names[2], "3", 4, -1, "", "-1", len(names) - 1, 0])["label"]
    assert found.dtype == torch.int64
    assert found.tolist() == [2, 3, 4, -1, -1, -1, len(names) - 1, 0]
    assert run.null(3)["label"].tolist() == [-1] * 3
    assert run.null()["label"].tolist() == [-1]
    for wrong, said in (
        (len(names), f"unknown label {len(names)} of 12 classes: choose 0 … 11 or a name"),
        (-2, "unknown label -2"),
        (2.7, r"unknown label 2\.7 of 12 classes: choose 0 … 11 or a name"),
        (True, "unknown label True"),
        (None, "unknown label None"),
        ("1.5", "unknown label '1.5'"),
        (names[5] + "x", f"did you mean {names[5]!r}"),
    ):
        with pytest.raises(UsageError, match=said):
            run.cond(labels=[wrong])
    for words in ({}, {"labels": [0], "captions": ["a"]}):
        with pytest.raises(UsageError, match="give either captions or labels"):
            run.cond(**words)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"takes no captions \(its condition is label\)"):
        run.cond(captions=["a"])
    with pytest.raises(UsageError, match=r"takes no labels \(its condition is none\)"):
        open_own("critters-udpm").cond(labels=[0])


def test_captions_become_text(text_run: Path) -> None:
    run = open_own(text_run)
    assert run.condition == "text"
    found = run.cond(captions=["an orange critter", ""])
    assert set(found) == {"text", "text_mask"}
    assert found["text"].shape[0] == found["text_mask"].shape[0] == 2
    assert not found["text"].requires_grad
    null = run.null(2)
    assert torch.equal(null["text_mask"][0], found["text_mask"][1])
    assert not torch.equal(null["text_mask"][0], found["text_mask"][0])
    with pytest.raises(UsageError, match=r"takes no labels \(its condition is text\)"):
        run.cond(labels=[0])


def test_the_newest_checkpoint_its_average_and_its_own_weights(tiny_run: Path, tmp_path: Path) -> None:
    home = tmp_path / "run"
    shutil.copytree(tiny_run, home)
    *_, last = sorted((home / "checkpoints").iterdir())
    assert read_run(home).weights == last / "ema.safetensors"
    assert read_run(home, ema=False).weights == last / "model.safetensors"
    plain, mean = orn.load(home, ema=False), orn.load(home)
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    label = {"label": torch.tensor([1])}
    assert not torch.equal(plain.with_condition(label)(x, 0.5).clean, mean.with_condition(label)(x, 0.5).clean)
    assert read_run(last).home == home
    assert read_run(last).weights == last / "ema.safetensors"
    with pytest.raises(UsageError, match=r"has no average 0\.9; it has none: see --ema\.also"):
        read_run(home, ema=0.9)
    for name in ("0.5", "0.95"):
        shutil.copy(last / "ema.safetensors", last / f"ema-{name}.safetensors")
    assert read_run(home, ema=0.5).weights == last / "ema-0.5.safetensors"
    with pytest.raises(UsageError, match=r"has no average 0\.9; it has 0\.5, 0\.95"):
        read_run(home, ema=0.9)
    later = last.with_name(f"{int(last.name) + 10:0{len(last.name)}d}")
    shutil.copytree(last, later)
    assert read_run(home).weights == later / "ema.safetensors"
    (home / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has lost its run: .*config\.json is missing"):
        read_run(last)


def test_what_is_no_run_is_told_apart(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    known = "a folder made by `ornstein train`, or a shipped model \\(critters, critters-64, "
    with pytest.raises(CheckpointError, match=f"empty is no run, checkpoint or model card: give {known}"):
        open_run(tmp_path / "empty")
    with pytest.raises(CheckpointError, match=f"absent does not exist: give {known}"):
        open_run(tmp_path / "absent")
    shutil.copy(tiny_run / "config.json", tmp_path / "empty")
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        open_run(tmp_path / "empty")
    with pytest.raises(UsageError, match="device 'quantum' cannot be used here"):
        open_run(tiny_run, device="quantum")
    assert usable_device("cpu") == torch.device("cpu")
    card = tmp_path / "latent"
    shutil.copytree(WEIGHTS / "critters-ect", card)
    shutil.rmtree(card / "codec")
    with pytest.raises(CheckpointError, match="has lost its codec"):
        open_run(card)


def test_a_card_holds_the_weights_and_nothing_else(run: TrainedModel, tmp_path: Path) -> None:
    whole, half = export(run, tmp_path / "a" / "whole", half=False), export(run, tmp_path / "half")
    for card, dtype in ((whole, torch.float32), (half, torch.float16)):
        assert sorted(path.name for path in card.iterdir()) == ["config.json", "ema.safetensors"]
        tensors = load_file(card / "ema.safetensors")
        assert {value.dtype for value in tensors.values()} == {dtype}
        for name, value in run.model.state_dict().items():
            assert torch.equal(tensors[name], value.to(dtype))
        with safe_open(card / "ema.safetensors", framework="pt") as file:
            assert file.metadata() == {"images": "64"}
        details = json.loads((card / "config.json").read_text("utf-8"))
        assert details["images"] == 64
        assert details["train"] == run.details["train"]
        assert details["model"]["classes"] == list(run.classes)
        again = open_own(card)
        assert (again.images, again.spec) == (64, run.spec)
        assert {weight.dtype for weight in again.model.parameters()} == {torch.float32}
    for metadata, images in (({}, 0), ({"images": "many"}, 0), ({"images": "7"}, 7)):
        save_file(load_file(whole / "ema.safetensors"), whole / "ema.safetensors", metadata or None)
        assert open_own(whole).images == images
    with pytest.raises(UsageError, match="other is no run of ours: share its own folder"):
        export(SimpleNamespace(name="other"), tmp_path / "no")  # type: ignore[arg-type]
    assert not (tmp_path / "no").exists()


def test_a_card_of_latents_takes_its_codec_along(tmp_path: Path) -> None:
    run: Any = open_own("critters-ect")
    named = export(run, tmp_path / "named")
    assert set(load_file(named / "codec" / "codec.safetensors")) == {"shift", "scale"}
    assert torch.equal(orn.sample(orn.load(named), 1, steps=1), orn.sample(run.denoiser, 1, steps=1))
