"""The house: no circles, light doors, and names in files that outlive the names of classes."""

from __future__ import annotations

import ast
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

import ornstein as orn
from ornstein.errors import CheckpointError, ConfigError
from ornstein.models.card import read_document, read_spec
from ornstein.models.registry import MODELS, spec_class
from ornstein.models.spec import DenoiserSpec
from ornstein.runs import WEIGHTS, shipped
from ornstein.storage.configs import from_dict, kind_of, to_dict
from ornstein.storage.weights import read_tensors
from ornstein.training import METHODS, read_config


def circles(nodes: list[str], arrows: set[tuple[str, str]]) -> list[set[str]]:
    place = {name: i for i, name in enumerate(nodes)}
    rows, columns = zip(*((place[a], place[b]) for a, b in arrows), strict=True)
    _, part = connected_components(
        coo_array((np.ones(len(rows)), (rows, columns)), shape=(len(nodes), len(nodes))), connection="strong"
    )
    groups = [{nodes[i] for i in np.flatnonzero(part == number)} for number in range(part.max() + 1)]
    return [group for group in groups if len(group) > 1]


def test_circles_are_found():
    assert circles(["a", "b", "c"], {("a", "b"), ("b", "c"), ("c", "b")}) == [{"b", "c"}]
    assert circles(["a", "b", "c"], {("a", "b"), ("b", "c"), ("a", "c")}) == []


def test_no_two_modules_or_packages_import_each_other():
    """Deferred imports and those for type checkers count."""
    grimp = pytest.importorskip("grimp")
    graph = grimp.build_graph("ornstein", exclude_type_checking_imports=False, cache_dir=None)
    files = {
        (a, b)
        for a in graph.modules
        for b in graph.find_modules_directly_imported_by(a)
        if not a.startswith(b + ".")  # a package is there before its modules
    }
    assert circles(sorted(graph.modules), files) == []
    rooms = {(a.split(".")[1], b.split(".")[1]) for a, b in files if a.count(".") and b.count(".")}
    assert circles(sorted({r for pair in rooms for r in pair}), {(a, b) for a, b in rooms if a != b}) == []


def test_opening_a_model_imports_neither_the_trainer_nor_the_command():
    heavy = ("accelerate", "matplotlib", "tensorboard", "ornstein.training", "ornstein.cli", "ornstein.lab")
    code = f"import sys, ornstein; ornstein.load('critters'); print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_every_reader_of_json_is_the_bounded_one():
    """A plain json.loads believes any depth, any number and any encoding; a plain json.load also waits for a FIFO."""
    root = Path(orn.__file__).parent
    plain: list[str] = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            called = isinstance(node, ast.Attribute) and node.attr in {"load", "loads"}
            if called and isinstance(node.value, ast.Name) and node.value.id == "json":
                plain.append(f"{name}:{node.lineno}")
            if isinstance(node, ast.ImportFrom) and node.module == "json":
                plain.append(f"{name}:{node.lineno}")
    assert [place.partition(":")[0] for place in plain] == ["storage/reading.py"], plain


def written() -> dict[type, str]:
    """Every dataclass that a run's config.json can hold, with its kind."""
    found: dict[type, str] = {}

    def walk(hint: Any) -> None:
        if isinstance(hint, type) and dataclasses.is_dataclass(hint) and hint not in found:
            found[hint] = kind_of(hint)
            hints = get_type_hints(hint)
            for field in dataclasses.fields(hint):
                walk(hints[field.name])
        for argument in get_args(hint):
            walk(argument)

    for method in METHODS.values():
        walk(method.configuration)
    for kind in MODELS:
        walk(spec_class(kind))
    return found


def test_every_class_in_a_file_has_a_kind_of_its_own():
    found = written()
    assert len(found) > 30
    kinds = sorted(found.values())
    assert kinds == sorted(set(kinds))
    assert {kind: kind_of(spec_class(kind)) for kind in MODELS} == {kind: kind for kind in MODELS}
    assert {name: kind_of(method.configuration) for name, method in METHODS.items()} == {
        name: method.kind for name, method in METHODS.items()
    }


def test_a_class_without_a_kind_is_not_written():
    @dataclasses.dataclass
    class Nameless:
        a: int = 1

    with pytest.raises(TypeError, match="Nameless cannot be written to a file: it needs kind"):
        to_dict(Nameless())


@pytest.mark.parametrize("name", shipped())
def test_shipped_cards_are_read_and_written_alike(name: str):
    """Cards of every age keep their kinds; keys that were renamed are read under their old names."""
    path = Path(WEIGHTS) / name / "config.json"
    found = read_document(path)
    spec = read_spec(found, path)
    assert from_dict(type(spec), json.loads(json.dumps(to_dict(spec)))) == spec
    assert to_dict(spec)["kind"] == found["model"]["kind"]
    config = read_config(found["train"])
    assert read_config(json.loads(json.dumps(to_dict(config)))) == config
    with pytest.raises(ConfigError, match="unknown key 'nonsense'"):
        read_config(found["train"] | {"nonsense": 1})


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_holds_only_what_it_is_made_of(kind: str):
    """No field that means nothing; keys of older files that are no field any more are named, and read."""
    spec = spec_class(kind)
    fields = {field.name for field in dataclasses.fields(spec)}
    assert not fields & set(spec.retired)
    if not issubclass(spec, DenoiserSpec):
        assert not fields & {"predicts", "sigma_data", "text"}
        newer = {"data_std"}  # in no file from before these models had specs of their own
        old = {field.name for field in dataclasses.fields(DenoiserSpec)} - newer
        assert old <= fields | set(spec.retired)


def test_a_file_that_is_none_says_why_in_one_line(tmp_path: Path):
    (tmp_path / "w.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(
        CheckpointError, match=r"w\.safetensors is not a readable safetensors file \(.*header.*\)"
    ) as told:
        read_tensors(tmp_path / "w.safetensors")
    assert "\n" not in str(told.value)
    with pytest.raises(CheckpointError, match="is missing: copy it again, or train again"):
        read_tensors(tmp_path / "nothing.safetensors")
