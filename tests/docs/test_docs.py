"""The documentation is true: its snippets run, its links lead somewhere, its lists are those of the code.

A block marked ``python`` is run; the blocks of one page share their names, and ``runs/first`` is a tiny trained run. A
block marked ``python no-run: REASON`` is not.
"""

import importlib
import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path
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
HELP = {  # section of command.md: words before --help
    "ornstein methods": ["methods"],
    "ornstein demo": ["demo"],
    "ornstein train METHOD": ["train", "ddpm"],
    "--network unet": ["train", "ddpm", "--network", "unet"],
    "--network dit": ["train", "ddpm", "--network", "dit"],
    # ict, cm and ect are slct with other defaults.
    **{f"ornstein train {name}": ["train", name] for name in METHODS if name not in {"ddpm", "ict", "cm", "ect"}},
    "ornstein score RUN": ["score"],
    "ornstein train-guide KIND": ["train-guide"],
    "ornstein sample RUN": ["sample"],
    "ornstein guides": ["guides"],
    "ornstein eval WHAT": ["eval"],
    "ornstein tune-steps RUN": ["tune-steps"],
    "ornstein rates": ["rates"],
    "ornstein reproduce": ["reproduce"],
}


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


def test_every_command_has_a_section() -> None:
    assert {title.split()[1] for title in HELP if title.startswith("ornstein")} == set(COMMANDS)


def options_of(words: list[str]) -> set[str]:
    """The options of a command that its help shows."""
    command, *rest = words
    if command == "train":
        kind, chosen = METHODS[rest[0]].configuration, {("network",): rest[2]} if rest[2:] else {}
    else:
        module, name, *_ = COMMANDS[command]
        kind, chosen = getattr(importlib.import_module(f"ornstein.cli.{module}"), name), {}
    found = parameters(kind, chosen)
    return {one.flag for one in found if not one.option.positional and not one.option.hidden}


@pytest.mark.parametrize("title", HELP)
def test_the_options_are_those_of_the_command(title: str) -> None:
    options = options_of(HELP[title])
    page = DOCS / "reference" / "command.md"
    if title.startswith("--network"):
        text, options = section(page, title), {option for option in options if option.startswith("--network.")}
    elif title == "ornstein train METHOD":
        whole = page.read_text("utf-8")
        text = whole[whole.index("## `ornstein train") : whole.index("### `--network unet`")]
        options = {option for option in options if not option.startswith("--network.")}
    elif title.startswith("ornstein train "):  # what it has beside the options of ddpm
        text = section(page, title)
        plain = options_of(HELP["ornstein train METHOD"])
        own = title == "ornstein train autoencoder"  # its network is no U-Net
        options -= {option for option in plain if not (own and option.startswith("--network."))}
    else:
        text = section(page, title)
    assert options
    assert {cells[0].strip("`") for cells in rows(text)} == options


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
    # σ/α falls to no less than a quarter in a step, where some rules would jump with one evaluation.
    path, n = orn.VP(), 16
    times = orn.grids.karras(n)(path)
    count = re.sub(r"(\d)n", r"\1 * n", evaluations).replace("−", "-")
    assert eval(count, {"n": n}) == len(orn.plan(rule, path, times))
    # Half of the output is a variance, for the sampler that reads one.
    model = orn.Denoiser(
        lambda x, time: torch.cat([0.5 * x, 0 * x], 1), path=path, predicts="noise", learned_variance=True
    )
    ends = [orn.run(orn.solve(rule, path, torch.ones(1, 1, 2, 2), times, orn.Noise.of(k, [0])), model) for k in (0, 1)]
    assert stochastic == ("no" if torch.equal(*ends) else "yes")


@pytest.mark.parametrize("name", ["accelerated-ode", "sde-midpoint"])
def test_a_jump_over_a_wide_step_costs_one_evaluation(name: str) -> None:
    path, n = orn.VP(), 6
    times = orn.grids.karras(n)(path)
    bars = [path.sigma_bar(t) for t in times[:-1]]
    wide = sum(bar > 4 * after for bar, after in itertools.pairwise(bars))
    assert wide == 3
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
