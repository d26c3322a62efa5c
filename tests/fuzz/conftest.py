"""Makes the modules of the fuzz run importable by its tests, and the places that its cases spoil."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what `places.fill` makes."""
    from places import fill

    here = tmp_path_factory.mktemp("fuzz")
    fill(here)
    return here
