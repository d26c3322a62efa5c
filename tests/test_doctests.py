"""Every example in a docstring runs."""

import doctest
import importlib
import importlib.util
import pkgutil
from types import ModuleType

import ornstein


def modules() -> list[ModuleType]:
    """The package's modules whose source has an example; the others need not be imported."""
    found = []
    for info in pkgutil.walk_packages(ornstein.__path__, "ornstein.", onerror=lambda name: None):
        spec = importlib.util.find_spec(info.name)
        if spec is not None and spec.loader is not None and ">>>" in (spec.loader.get_source(info.name) or ""):  # type: ignore[attr-defined]
            found.append(importlib.import_module(info.name))
    return found


def test_docstring_examples() -> None:
    counts = {module.__name__: doctest.testmod(module, optionflags=doctest.ELLIPSIS) for module in modules()}
    assert not {name: result.failed for name, result in counts.items() if result.failed}
    assert sum(result.attempted for result in counts.values()) >= 8
