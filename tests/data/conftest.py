"""Every test of the data layer has a cache folder of its own session, and pictures of real drawings at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def cache(session_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ORNSTEIN_CACHE", str(session_cache))
    monkeypatch.setenv("HF_HOME", str(session_cache / "hf"))
    return session_cache


def photo(seed: int, width: int, height: int) -> Image.Image:
    """A smooth random RGB picture."""
    rough = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten readable PNG files in a flat folder, of various shapes."""
    root = tmp_path / "images"
    root.mkdir()
    for i in range(10):
        photo(i, 20 + 3 * i, 40 - 2 * i).save(root / f"{i:03d}.png")
    return root
