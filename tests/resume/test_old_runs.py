"""Run folders of an earlier library, one of each training method, are opened, sampled and gone on with.

``old_runs.tar.xz`` holds two steps of every method as they were written before options and files had their present
names; only the values of the weights were rounded since, to make the archive small.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ornstein as orn
from ornstein.errors import ConfigError
from ornstein.objectives import Denoising
from ornstein.storage.configs import from_dict, to_dict
from ornstein.training import METHODS, train
from ornstein.training.methods import read_config

ARCHIVE = Path(__file__).with_name("old_runs.tar.xz")
CODEC, CLASSIFIER = "autoencoder", "rarity-classifier"  # neither draws samples of its own


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def runs(written, tmp_path, monkeypatch) -> Path:
    """A copy of the folders, and the current directory: their configurations hold relative paths."""
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def newest(run: Path) -> Path:
    return max((run / "checkpoints").iterdir())


def test_every_method_has_a_stored_run(written):
    assert {path.name for path in written.iterdir() if path.is_dir()} >= set(METHODS)


def test_they_hold_the_old_names(written):
    text = "".join(path.read_text() for path in sorted(written.glob("*/config.json")))
    for old in ("drop", "odds", "lazy", "blur", "quarter", "fade", "hold", "within", "origin", "rival", "critic_lr"):
        assert f'"{old}":' in text
    assert list(written.glob("udpm/checkpoints/*/rival.safetensors"))


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {CODEC, CLASSIFIER}))
def test_it_opens_and_samples(runs, method):
    run = orn.load(method)
    kept = load_file(newest(runs / method) / "ema.safetensors")
    now = run.model.state_dict()
    assert kept.keys() == now.keys()
    assert all(torch.equal(value, now[name]) for name, value in kept.items())
    samples = orn.sample(run.denoiser, 2, steps=None if method == "udpm" else 2, seed=1)
    assert samples.shape == (2, 3, 16, 16)
    assert samples.isfinite().all()


@pytest.mark.parametrize("method", sorted(METHODS))
def test_one_more_step_is_trained(runs, method):
    written = json.loads((runs / method / "config.json").read_text())["train"]
    config = read_config(written)
    assert read_config(to_dict(config)) == config
    summary = train(dataclasses.replace(config, images=config.images + config.batch), quiet=True)
    assert summary.resumed_at == 8
    assert summary.steps == 3
    names = {path.stem for path in newest(runs / method).glob("*.safetensors")}
    assert not {name for name in names if name.startswith("rival")}


def test_two_spellings_of_one_option_are_refused():
    with pytest.raises(ConfigError, match=r"drop.*label_dropout.*once"):
        from_dict(Denoising, {"drop": 0.1, "label_dropout": 0.1})


@pytest.mark.parametrize("method", sorted(METHODS))
def test_renamed_options_exist_and_are_no_longer_fields(method):
    def check(cls: type) -> None:
        names = {f.name for f in dataclasses.fields(cls)}
        for base in cls.__mro__:
            for old, new in base.__dict__.get("renamed", {}).items():
                assert old not in names
                assert new in names
        for f in dataclasses.fields(cls):
            if f.default_factory is not dataclasses.MISSING and dataclasses.is_dataclass(part := f.default_factory()):
                check(type(part))

    check(METHODS[method].configuration)
