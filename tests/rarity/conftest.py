from pathlib import Path

import numpy as np
import pytest

from ornstein.data import open_source
from ornstein.rarity import Table


@pytest.fixture(scope="session")
def source():
    return open_source("critters:96", size=16)


@pytest.fixture(scope="session")
def brightness(source, tmp_path_factory) -> Path:
    """A table that calls dark images rare: something that a small network learns in seconds."""
    examples = [source[i] for i in range(len(source))]
    table = Table(
        header={
            "format": "ornstein-rarity",
            "version": 1,
            "data": {
                "name": source.name,
                "fingerprint": source.fingerprint,
                "examples": len(source),
                "classes": list(source.classes),
            },
            "log_snr": -3.7,
            "size": 16,
        },
        names=tuple(example.name for example in examples),
        scores=np.array([-float(example.image.float().mean()) for example in examples]),
        labels=np.array([example.label for example in examples]),
    )
    path = tmp_path_factory.mktemp("scores") / "brightness.csv"
    table.write(path)
    return path
