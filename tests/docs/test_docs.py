"""The documentation is true: its snippets run, its links lead somewhere, its lists are those of the code.

A block marked ``python`` is run; the blocks of one page share their names, and ``runs/first`` is a tiny trained run. A
block marked ``python no-run: REASON`` is not.
"""

import importlib
import importlib.util
import inspect
import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import ornstein as orn
from ornstein import samplers
from ornstein.cli.main import COMMANDS
from ornstein.cli.parameters import parameters
from ornstein.models.spec import PATHS
from ornstein.networks import UNetConfig
from ornstein.training import TrainConfig, train
from ornstein.training.config import Every
from ornstein.training.methods import METHODS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")] + sorted(DOCS.rglob("*.md"))
BLOCK = re.compile(r"^```(python[^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CELL = re.compile(r"(?<!\\)\|")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(page.read_text("utf-8"))


def section(page: Path, title: str) -> str:
    """What stands under a heading, down to the next of any level; code in the heading is matched without ticks."""
    parts = re.split(r"^#+ (.+)$", page.read_text("utf-8"), flags=re.MULTILINE)
    for heading, body in zip(parts[1::2], parts[2::2], strict=True):
        if heading.replace("`", "").startswith(title):
            return body
    raise AssertionError(f"{name_of(page)} has no section {title!r}")


def rows(text: str) -> list[list[str]]:
    """Cells of the rows of all tables, heads left out."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    found = [[cell.strip() for cell in CELL.split(line)[1:-1]] for line in lines]
    rules = {i for i, cells in enumerate(found) if set("".join(cells)) <= set("-:")}
    return [cells for i, cells in enumerate(found) if i not in rules and i + 1 not in rules]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny run in runs/first: a second of training."""
    home = tmp_path_factory.mktemp("docs")
    train(
        TrainConfig(
            data="critters:32",
            out=str(home / "runs" / "first"),
            size=16,
            images=32,
            batch=16,
            network=UNetConfig(width=8, multipliers=(1, 2), blocks=1, attention=(), patch=2),
            every=Every(log=16, samples=0),
            tensorboard=False,
        ),
        quiet=True,
    )
    return home


# ------------------------------------------------------------------------------------------------------------ snippets


@pytest.mark.parametrize("page", [p for p in PAGES if p.parent != ROOT and blocks(p)], ids=name_of)
def test_snippets_run(page: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    torch.manual_seed(0)
    names: dict[str, Any] = {"__name__": "snippet"}
    for mark, code in blocks(page):
        if mark != "python":
            assert re.fullmatch(r"python no-run: .+", mark), f"{name_of(page)}: cannot read the mark {mark!r}"
            continue
        if "import diffusers" in code or "from diffusers" in code:
            importlib.import_module("diffusers")
        exec(compile(code, name_of(page), "exec"), names)


def test_snippets_of_the_readme_run() -> None:
    """With a trivial network for the reader's own."""
    names: dict[str, Any] = {"my_module": lambda x, time: 0.1 * x}
    for _, code in blocks(ROOT / "README.md"):
        exec(compile(code, "README.md", "exec"), names)
    assert names["images"].shape == names["at_once"].shape == (16, 3, 64, 64)


def test_the_example_of_contributing_is_the_sampler_that_ships() -> None:
    ((_, code),) = blocks(ROOT / "CONTRIBUTING.md")
    names: dict[str, Any] = {"dataclass": dataclass, "Any": Any, "AffinePath": orn.AffinePath, "Query": samplers.Query}
    exec(compile(code, "CONTRIBUTING.md", "exec"), names)
    model = orn.Denoiser(lambda x, time: 0.1 * x, path=orn.VP(), predicts="noise", shape=(1, 4, 4))
    mine, theirs = (orn.sample(model, n=2, sampler=rule, steps=4) for rule in (names["Heun"](), "heun"))
    assert torch.equal(mine, theirs)


# --------------------------------------------------------------------------------------------------------------- links


def prose(page: Path) -> str:
    """The page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{name_of(page)} links to {link}, which is not there"
        assert not anchor or anchor in anchors(target), f"{name_of(page)}: no heading for {link}"


def test_the_index_names_every_page() -> None:
    index = (DOCS / "README.md").read_text("utf-8")
    missing = [page for page in DOCS.rglob("*.md") if f"({page.relative_to(DOCS).as_posix()})" not in index]
    guides_of = (DOCS / "reference" / "guides.md").read_text("utf-8")  # the index of the pages of guides
    assert [page for page in missing if f"(../{page.relative_to(DOCS).as_posix()})" not in guides_of] == [
        DOCS / "README.md"
    ]


# --------------------------------------------------------------------------------------------------------------- lists


@pytest.fixture(scope="module")
def command_page() -> ModuleType:
    """The tool that writes the tables of command.md."""
    spec = importlib.util.spec_from_file_location("command_page", ROOT / "tools" / "command_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_command_has_a_section(command_page: ModuleType) -> None:
    assert {title.split()[1] for title in command_page.SECTIONS if title.startswith("ornstein")} == set(COMMANDS)


def test_the_tables_of_options_are_those_of_the_command(command_page: ModuleType) -> None:
    """Names, values, defaults and sentences."""
    page = DOCS / "reference" / "command.md"
    for title in command_page.SECTIONS:
        assert section(page, title)
        options = command_page.options_of(title)
        assert options
        assert not set(command_page.NOTES.get(title, {})) - set(options)
    assert page.read_text("utf-8").splitlines() == command_page.written(page.read_text("utf-8")).splitlines()


def test_an_option_that_is_new_gone_or_other_is_noticed(command_page: ModuleType) -> None:
    page = (DOCS / "reference" / "command.md").read_text("utf-8")
    lines = page.splitlines()
    place = next(i for i, line in enumerate(lines) if line.startswith("| `--resample-level`"))
    changed = [
        lines[:place] + lines[place + 1 :],
        [*lines[:place], lines[place].replace("INT", "FLOAT"), *lines[place + 1 :]],
        [*lines[:place], lines[place].replace("fresh", "old"), *lines[place + 1 :]],
        [*lines[:place], "| `--recur` | INT | 1 | Gone. |", *lines[place:]],
    ]
    for other in changed:
        assert command_page.written("\n".join(other)).splitlines() != other
    for other in changed[1:]:
        assert command_page.written("\n".join(other)).splitlines() == lines


OTHERS = {  # of other programs, and in commands that the pages only describe
    "--no-deps", "--help", "--version", "--check", "--seeds", "--jobs",
}  # fmt: skip


def commands_own(command_page: ModuleType) -> set[str]:
    """All names of options, aliases and hidden ones included."""
    found: set[str] = set()
    for title, words in command_page.SECTIONS.items():
        command, *rest = words
        kind = METHODS[rest[0]].configuration if command == "train" else command_page.kind_of(command)
        for one in parameters(kind, {("network",): rest[2]} if rest[2:] else {}):
            found |= set(one.flags) | {"--" + one.flag.removeprefix("--").replace(".no-", ".").removeprefix("no-")}
        assert title
    found |= {flag.replace("--network.", "--back.") for flag in found if flag.startswith("--network.")}
    return found | OTHERS


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_options_in_the_text_exist(page: Path, command_page: ModuleType) -> None:
    own = commands_own(command_page)
    lines = [line for line in page.read_text("utf-8").splitlines() if not re.search(r"tools/|benchmarks/|pip ", line)]
    named = re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*(?:\.[a-z0-9-]+)*(?![\w…-]|\.[…*\w])", "\n".join(lines))
    assert not sorted({name for name in named if name not in own})


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_keywords_in_the_text_exist(page: Path) -> None:
    """Of calls in running text such as `orn.sample(model, steps=4)`."""
    for code in re.findall(r"`((?:orn|ornstein)\.[\w.]+\([^`]*\))`", page.read_text("utf-8")):
        name, _, inside = code.partition("(")
        found: Any = orn
        for part in name.split(".")[1:]:
            found = getattr(found, part)
        known = inspect.signature(found).parameters
        if not any(one.kind == one.VAR_KEYWORD for one in known.values()):
            given = set(re.findall(r"(?:^|[(,]\s*)(\w+)=", re.sub(r"\([^()]*\)", "", inside.removesuffix(")"))))
            assert given <= set(known), f"{name_of(page)}: {code}"


def test_what_a_negated_option_does_is_said(command_page: ModuleType) -> None:
    """`--no-x` stands beside a sentence on x."""
    for title in command_page.SECTIONS:
        for flag, one in command_page.options_of(title).items():
            if flag.rpartition(".")[2].removeprefix("--").startswith("no-"):
                assert flag in one.text, f"{title}: {flag}"


SAMPLERS = {cells[0].strip("`"): cells for cells in rows(section(DOCS / "reference" / "samplers.md", "Samplers"))}


def test_the_table_of_samplers_is_the_registry() -> None:
    assert set(SAMPLERS) == set(samplers.SAMPLERS)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_row_of_the_table_of_samplers(name: str) -> None:
    _, made, order, needs, evaluations, stochastic, _ = SAMPLERS[name]
    rule = samplers.SAMPLERS[name]()
    assert eval(made.strip("`"), vars(samplers)) == rule
    assert float(order) == rule.order
    assert needs.strip("`") == rule.needs.__name__
    # σ/α falls to no less than a half in a step, where some rules would jump with one evaluation.
    path, n = orn.VP(), 64
    times = orn.grids.karras(n)(path)
    count = re.sub(r"(\d)n", r"\1 * n", evaluations).replace("−", "-")
    assert eval(count, {"n": n}) == len(orn.plan(rule, path, times))
    # Half of the output is a variance, for the sampler that reads one.
    model = orn.Denoiser(
        lambda x, time: torch.cat([0.5 * x, 0 * x], 1), path=path, predicts="noise", learned_variance=True
    )
    ends = [orn.run(orn.solve(rule, path, torch.ones(1, 1, 2, 2), times, orn.Noise.of(k, [0])), model) for k in (0, 1)]
    assert stochastic == ("no" if torch.equal(*ends) else "yes")


@pytest.mark.parametrize(("name", "widest", "n"), [("accelerated-ode", 2, 20), ("sde-midpoint", 4, 6)])
def test_a_jump_over_a_wide_step_costs_one_evaluation(name: str, widest: float, n: int) -> None:
    path = orn.VP()
    times = orn.grids.karras(n)(path)
    bars = [path.sigma_bar(t) for t in times[:-1]]
    wide = sum(bar > widest * after for bar, after in itertools.pairwise(bars))
    assert 3 <= wide < n - 1
    count = {"accelerated-ode": 2 * n - 2, "sde-midpoint": 2 * n - 1}[name]
    assert len(orn.plan(samplers.SAMPLERS[name](), path, times)) == count - wide


def test_the_table_of_paths_names_all_that_train() -> None:
    cells = [cells[1] for cells in rows(section(DOCS / "reference" / "paths.md", "Paths"))]
    assert {name for cell in cells for name in re.findall(r"^`([\w-]+)`", cell)} == set(PATHS)


def test_the_page_of_the_run_folder_names_every_key(home: Path) -> None:
    text = (DOCS / "reference" / "run-folder.md").read_text("utf-8")
    out = home / "runs" / "first"
    files = {path for path in out.rglob("*") if path.is_file()}
    documents = [json.loads(path.read_text("utf-8")) for path in files if path.suffix == ".json"]
    documents += [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
    keys = {key for document in documents for key in document}
    assert not {path.name for path in files if path.name not in text}
    assert not {key for key in keys if f"`{key}`" not in text}


def test_the_names_of_the_glossary_exist() -> None:
    cells = [cells[2] for cells in rows((DOCS / "reference" / "glossary.md").read_text("utf-8"))]
    names = [name for cell in cells for name in re.findall(r"`([\w.]+)`", re.sub(r"\([^)]*\)", "", cell))]
    assert len(names) > 60
    for name in names:
        where: Any = orn
        for part in name.split("."):
            if not hasattr(where, part):
                importlib.import_module(f"{where.__name__}.{part}")
            where = getattr(where, part)
