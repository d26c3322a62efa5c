"""What a new part costs: CONTRIBUTING's instructions, carried out in a copy of the tree, and the files they touch.

All parts are added to one copy. There the tests that compare documentation and registries, or run over every registered
part, are run on the new ones; without the documentation they fail.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def recipes() -> Any:
    """The module beside this one."""
    spec = importlib.util.spec_from_file_location("parts", Path(__file__).with_name("parts.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


made = recipes()
Files = Mapping[str, Any]
PARTS: Mapping[str, tuple[Files, int, tuple[str, ...]]] = {
    "sampler": (
        made.SAMPLER,
        3,
        (
            "tests/docs/test_docs.py::test_the_table_of_samplers_is_the_registry",
            "tests/docs/test_docs.py::test_a_row_of_the_table_of_samplers[trapezoid]",
            "tests/samplers/test_published_defaults.py::test_names_and_their_settings",
        ),
    ),
    "guidance": (
        made.GUIDANCE,
        3,
        (
            "tests/cli/test_guidance_option.py::test_help_and_the_page_name_every_guidance",
            "tests/cli/test_guidance_option.py::test_a_row_of_the_registry_is_complete",
            "tests/guidance/test_guidance_defaults.py::test_a_guidance_named_without_a_number_has_the_published_one",
        ),
    ),
    "metric": (made.METRIC, 4, ("tests/metrics/test_measure.py", "tests/metrics/test_shift.py")),
    "kind of guide": (
        made.GUIDE,
        4,
        (
            "tests/docs/test_guide_pages.py::test_every_kind_has_a_page_and_a_figure",
            "tests/docs/test_guide_pages.py::test_the_table_of_guides_is_the_registry",
            "tests/docs/test_guide_pages.py::test_the_weights_of_the_tables_are_the_registry",
            "tests/docs/test_guide_pages.py::test_the_commands_differ_in_the_guide_alone[thumbnail]",
            "tests/docs/test_guide_pages.py::test_the_table_says_that_the_guide_worked[thumbnail]",
            "tests/docs/test_docs.py::test_the_index_names_every_page",
            "tests/guides/test_guides_registry.py::test_every_kind_is_whole",
            "tests/guides/test_guides_closed_forms.py::test_published_weights_and_sources",
        ),
    ),
    "training method": (
        made.METHOD,
        5,
        (
            "tests/docs/test_docs.py::test_the_tables_of_options_are_those_of_the_command",
            "tests/training/test_cas_dm.py::test_every_method_reads_back_what_it_writes[heavy]",
            "tests/training/test_method_defaults.py::test_methods_and_their_kinds",
            "tests/house/test_structure.py::test_every_class_in_a_file_has_a_kind_of_its_own",
            "tests/training/test_heavy.py",
        ),
    ),
}


def copied(where: Path) -> Path:
    """The tree, of links to this one."""
    for name in ("src", "tests", "docs", "tools"):
        shutil.copytree(
            ROOT / name, where / name, copy_function=os.symlink, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "pyproject.toml"):
        (where / name).symlink_to(ROOT / name)
    return where


def carry_out(files: Files, tree: Path) -> None:
    """Make the files of a part."""
    for name, edit in files.items():
        path = tree / name
        if isinstance(edit, tuple):
            text = path.read_text("utf-8")
            for before, new in edit:
                assert text.count(before) == 1, f"{name} has {before!r} {text.count(before)} times"
                text = text.replace(before, new + before)
            path.unlink()
            path.write_text(text, "utf-8")
        elif isinstance(edit, Path):
            shutil.copyfile(edit, path)
        else:
            assert not path.exists()
            path.write_text(edit, "utf-8")


def run_in(tree: Path, tests: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """The run of these tests in a tree."""
    env = {**os.environ, "PYTHONPATH": str(tree / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests]
    return subprocess.run(words, cwd=tree, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("part", PARTS)
def test_the_files_of_a_new_part(part: str) -> None:
    files, most, _ = PARTS[part]
    assert len(files) <= most


def test_every_kind_of_part_can_be_added(tmp_path: Path) -> None:
    tree = copied(tmp_path / "tree")
    for files, _, _ in PARTS.values():
        carry_out(files, tree)
    found = run_in(tree, tuple(test for _, _, tests in PARTS.values() for test in tests))
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-1000:]


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_no_file_of_a_new_part_can_be_left_out(part: str, tmp_path: Path) -> None:
    """Documentation and registries hold each other: with the code alone the tests fail."""
    files, _, tests = PARTS[part]
    code = {name: edit for name, edit in files.items() if name.startswith("src/")}
    tree = copied(tmp_path / "tree")
    carry_out(code, tree)
    assert run_in(tree, tests).returncode != 0
    for left in files:
        if left.startswith("docs/"):
            tree = copied(tmp_path / left.replace("/", "-"))
            carry_out({name: edit for name, edit in files.items() if name != left}, tree)
            assert run_in(tree, tests).returncode != 0, left
