"""What is measured, read or opened cannot be changed by mistake: records are frozen, and their fields are named."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil

import pytest

POSITIONAL = {
    "Entry",
    "Order",
    "_Steps",
    "Block",
    "Shown",
    "_Pass",
    "_Place",
    "_Hook",
    "Tower",
    "_Both",
    "Lora",
    "_Delta",
    "Place",
}
CHANGING = {"Block", "_Pass", "Lora"}  # filled image by image, and feature by feature; a scale that is set
OPEN = {"Joined"}  # it remembers where its examples come from
# Tensors and arrays have no one truth of being equal, so these are equal to themselves alone.
IDENTICAL = {
    "Joined",
    "Shown",
    "OpenedModel",
    "RefinedModel",
    "GuiderGuidance",
    "_Both",
    "Lora",
    "_Delta",
    "BlockDenoiser",
    "_Options",
    "_Part",
    "_Found",
    "PlainModel",
    "_Pass",
    "DiffusersModel",
    "ClipScore",
    "Measured",
    "Rarity",
    "Statistics",
    "Meeting",
    "Normalisation",
    "KLCodec",
}


def records(package: str) -> list[type]:
    home = importlib.import_module(package)
    modules = [importlib.import_module(f"{package}.{found.name}") for found in pkgutil.iter_modules(home.__path__)]
    return [
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and dataclasses.is_dataclass(value) and value.__module__ == module.__name__
    ]


@pytest.mark.parametrize("package", ["data", "interop", "latents", "metrics"])
def test_records_are_frozen_and_their_fields_are_named(package: str) -> None:
    found = records(f"ornstein.{package}")
    assert found
    for record in found:
        name, how = record.__name__, record.__dataclass_params__  # type: ignore[attr-defined]
        assert how.frozen == (name not in CHANGING), name
        assert how.eq == (name not in IDENTICAL), name
        assert ("__slots__" in vars(record)) == (name not in OPEN), name
        assert all(field.kw_only for field in dataclasses.fields(record)) == (name not in POSITIONAL), name
