"""A sampler of one's own by its import path: from the command line and from calls, never from a file."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import pytest
import torch

import ornstein as orn
from ornstein.cli.main import main
from ornstein.errors import ConfigError, UsageError
from ornstein.lab.rates import measure
from ornstein.runs import export, open_own, open_run
from ornstein.samplers import SAMPLERS, sampler

# The first-order rule of DDIM on a variance-exploding path, written by a stranger.
STRANGER = """
from dataclasses import dataclass

from ornstein.paths.base import AffinePath
from ornstein.samplers import Query


@dataclass(frozen=True)
class Mine:
    factor: float = 1.0
    order = 1
    needs = AffinePath

    def step(self, path, x, step, noise, memory):
        estimate = yield Query(x, step.t)
        return x + self.factor * (step.s - step.t) * estimate.velocity


class Wanting(Mine):
    def __init__(self, tau, kappa, beta=1.0):
        pass


class Failing(Mine):
    def __init__(self):
        raise ValueError("no licence\\nsecond line")


class Orderless:
    needs = AffinePath
    step = Mine.step


class Wordy(Mine):
    order = "second"


halved = Mine(factor=0.5)
number = 3
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the stranger's modules, which is not on sys.path; what is imported there is forgotten again."""
    folder = tmp_path / "here"
    (folder / "strange").mkdir(parents=True)
    (folder / "strange" / "__init__.py").touch()
    (folder / "strange" / "rules.py").write_text(STRANGER)
    (folder / "strange" / "broken.py").write_text("raise RuntimeError('cannot reach the server\\nsecond line')")
    (folder / "strange" / "quitting.py").write_text("import sys\nsys.exit('bye')")
    (folder / "strange" / "hungry.py").write_text("import no_such_dependency")
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in [name for name in sys.modules if name.partition(".")[0] == "strange"]:
        monkeypatch.delitem(sys.modules, name)
    return folder


@pytest.fixture
def importable(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(here)
    return here


MODEL = orn.Denoiser(lambda x, time: 0.5 * x, path=orn.VE(), predicts="clean", shape=(1, 4, 4))


@pytest.mark.usefixtures("importable")
def test_a_class_or_an_instance_is_the_sampler_of_a_call() -> None:
    known = orn.sample(MODEL, 2, steps=4, sampler="euler", dtype=torch.float64)
    assert torch.equal(orn.sample(MODEL, 2, steps=4, sampler="strange.rules:Mine", dtype=torch.float64), known)
    from strange.rules import halved  # pyright: ignore[reportMissingImports]

    words = {"steps": 4, "dtype": torch.float64}
    half = orn.sample(MODEL, 2, sampler=halved, **words)
    assert not torch.equal(half, known)
    assert torch.equal(orn.sample(MODEL, 2, sampler="strange.rules:halved", **words), half)
    assert torch.equal(list(orn.stream(MODEL, 2, sampler="strange.rules:halved", **words))[-1].x, half)
    by_cost = orn.sample(MODEL, 2, evaluations=4, sampler="strange.rules:Mine", dtype=torch.float64)
    assert torch.equal(by_cost, known)


def test_the_command_finds_it_in_the_current_folder(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, here: Path, tiny_run: Path, tmp_path: Path
) -> None:
    monkeypatch.chdir(here)
    words = ["sample", str(tiny_run), "--n", "1", "--evaluations", "2", "--strict", "--json"]
    for name, rule in (("mine", "strange.rules:Mine"), ("euler", "euler")):
        assert main([*words, "--out", str(tmp_path / name), "--sampler", rule]) == 0
        assert json.loads(capsys.readouterr().out)["sampler"] == rule
    pictures = [(tmp_path / name / "000000.png").read_bytes() for name in ("mine", "euler")]
    assert pictures[0] == pictures[1]
    assert sys.path[0] != str(here), "it comes after everything that is installed"


def test_a_named_sampler_leaves_the_search_path_alone(
    monkeypatch: pytest.MonkeyPatch, here: Path, tiny_run: Path, tmp_path: Path
) -> None:
    monkeypatch.chdir(here)
    before = list(sys.path)
    words = ["sample", str(tiny_run), "--n", "1", "--steps", "1", "--out", str(tmp_path / "out")]
    assert main([*words, "--sampler", "ddim"]) == 0
    assert sys.path == before


@pytest.mark.usefixtures("importable")
def test_its_order_is_measured_like_that_of_any_other() -> None:
    mine, known = (measure([name], ["G8"], "ve", counts=(16, 32, 64, 128)) for name in ("strange.rules:Mine", "euler"))
    assert [one.sampler for one in mine.series] == ["strange.rules:Mine"] * len(known.series)
    assert [one.errors for one in mine.series] == [one.errors for one in known.series]
    assert mine.passed


REFUSED = {
    "no_such_package.rules:Mine": "there is no module 'no_such_package': install it, or run where it lies",
    "strange.no_such:Mine": "there is no module 'strange.no_such': install it",
    "strange.rules:Mien": "strange.rules has no 'Mien': did you mean Mine",
    "strange.rules:Zq": "strange.rules has no 'Zq': check the spelling",
    "strange.rules:number": "strange.rules:number is no sampler: it lacks step(path, x, step, noise, memory)",
    "strange.rules:Orderless": "strange.rules:Orderless is no sampler: it lacks order (see",
    "strange.rules:Wordy": "strange.rules:Wordy is no sampler: order must be a number and needs a class of paths",
    "pathlib:Path": "pathlib:Path is no sampler: it lacks step(",
    "strange.rules:Wanting": "Wanting needs arguments (tau, kappa): give them defaults, or name an instance",
    "strange.rules:Failing": "Failing() failed: ValueError: no licence",
    "strange.broken:Mine": "importing strange.broken failed: RuntimeError: cannot reach the server",
    "strange.quitting:Mine": "importing strange.quitting failed: SystemExit: bye",
    "strange.hungry:Mine": "importing strange.hungry failed: ModuleNotFoundError: No module named 'no_such_dependency'",
    "strange.rules:": "'strange.rules:' is no import path: write package.module:Class",
    ":Mine": "':Mine' is no import path",
    ".rules:Mine": "'.rules:Mine' is no import path",
    "strange:rules:Mine": "'strange:rules:Mine' is no import path",
    "my rules/x:Mine": "'my rules/x:Mine' is no import path",
}


@pytest.mark.usefixtures("importable")
@pytest.mark.parametrize("where", REFUSED)
def test_what_is_no_sampler_costs_one_line(where: str) -> None:
    with pytest.raises(ConfigError) as refused:
        orn.sample(MODEL, 1, steps=2, sampler=where)
    assert REFUSED[where] in str(refused.value)
    assert "second line" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_command_ends_with_status_2_and_that_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, here: Path, tiny_run: Path
) -> None:
    monkeypatch.chdir(here)
    out = ["--out", str(here / "out")]
    for words in (["sample", str(tiny_run), *out, "--sampler"], ["rates", "--targets", "G8", "--samplers"]):
        assert main([*words, "strange.rules:Mien"]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err == "ornstein: sampler 'strange.rules:Mien': strange.rules has no 'Mien': did you mean Mine?\n"
    assert not (here / "out").exists()


# ---------------------------------------------------------------------------------------------------- never from a file


@pytest.mark.usefixtures("importable")
def test_the_registry_by_itself_imports_nothing() -> None:
    assert all(":" not in name for name in SAMPLERS)
    with pytest.raises(ConfigError, match="an import path, which is read from the command line and from calls"):
        sampler("strange.rules:Mine")
    assert "strange" not in sys.modules


@pytest.mark.usefixtures("importable")
def test_a_sampler_named_in_a_card_is_not_imported(tiny_run: Path, tmp_path: Path) -> None:
    card = export(open_own(tiny_run), tmp_path / "card")
    plain = orn.sample(open_run(card).denoiser, 1, steps=2, strict=True)
    details = json.loads((card / "config.json").read_text())
    where = "strange.rules:Mine"
    details |= {"sampler": where, "grid": where, "samplers": [where]}
    details["train"] |= {"sampler": where}
    (card / "config.json").write_text(json.dumps(details))
    (card / "sampling.json").write_text(json.dumps({"sampler": where, "middle": []}))
    assert torch.equal(orn.sample(open_run(card).denoiser, 1, steps=2, strict=True), plain)
    assert "strange" not in sys.modules


@pytest.mark.usefixtures("importable")
def test_no_word_of_a_card_is_an_import_path(tiny_run: Path, tmp_path: Path) -> None:
    """Each string of the model's description in turn becomes one: refused or ignored, and nothing is imported."""
    card = export(open_own(tiny_run), tmp_path / "card")
    details = json.loads((card / "config.json").read_text())
    strings = [key for key, value in details["model"].items() if isinstance(value, str)]
    assert strings
    for key in strings:
        changed = {**details, "model": {**details["model"], key: "strange.rules:Mine"}}
        (card / "config.json").write_text(json.dumps(changed))
        with contextlib.suppress(UsageError):
            open_run(card)
        assert "strange" not in sys.modules, key
