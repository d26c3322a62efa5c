from pathlib import Path

import numpy as np
import pytest
import torch

from ornstein.data import open_source
from ornstein.rarity import Table


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Nets this small lose more to a second thread than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
