"""Plant random one-line faults in the package, one at a time, and say which of them no test notices.

    python tools/mutants.py cover                      # which test runs which line (once; minutes)
    python tools/mutants.py run paths samplers --n 30 --seed 1 [--tests tests/laws/test_new.py] [--json out.json]
    python tools/mutants.py table                      # docs/mutants.md from benchmarks/results/mutants.json

A mutant lives in a private copy of the package made of links, which comes first on the import path; the working tree
is never touched. Of the tests that run the mutated line, those of the package's own folder come first, then the
quickest. Known mutation tools mutate only bodies of functions (not the defaults of dataclasses, where half of a
method's published numbers stand) or start one interpreter a mutant; here a warm process is forked.
"""

from __future__ import annotations

import argparse
import collections
import importlib
import json
import multiprocessing
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mutations import Mutant, mutants_of

if TYPE_CHECKING:
    import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "ornstein"
CACHE = ROOT / ".mutants"
RECORD = ROOT / "benchmarks" / "results" / "mutants.json"
EQUIVALENT = ROOT / "tools" / "equivalent_mutants.json"
PACKAGES = ("randomness", "scalars", "estimates", "paths", "parameterizations", "grids", "denoisers", "sampling",
            "interpolation", "cascade", "samplers", "guidance", "objectives", "networks", "models", "training",
            "rarity", "runs", "storage", "data", "metrics", "latents", "interop", "guides", "cli", "page", "lab",
            "reproduce")  # fmt: skip
BUDGET = 90.0  # seconds of tests a mutant, as they ran when the coverage was taken
HOMES = {"paths": "laws", "parameterizations": "laws", "estimates": "laws", "denoisers": "laws", "grids": "laws",
         "randomness": "laws", "cascade": "laws", "scalars": "laws"}  # fmt: skip
SELECT = "not slow and not gpu and not network"
WARM = ("accelerate", "diffusers", "matplotlib.pyplot", "pytest", "safetensors.torch", "scipy.stats",
        "sklearn.neighbors", "torch", "torchmetrics", "transformers")  # fmt: skip
PLAIN = ("-q", "-x", "-m", SELECT, "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:cov", "--no-header",
         "-W", "ignore::pytest.PytestAssertRewriteWarning")  # fmt: skip
NOTICED = ("killed", "hung")
LEAD = """# What the tests notice

Random one-line faults were planted in the source, one at a time, and the tests that run the changed line were run. The
record is `benchmarks/results/mutants.json`; `make mutants` makes it again (hours), and
`python tools/mutants.py run PACKAGE --n 30 --seed 1` plants some in one package. Faults are changed comparisons, signs,
operators, constants, defaults, conditions, calls, order of arguments, dropped statements and keywords. A test that
never ends counts as noticing. Mutants are the same for a seed and a tree. What was not noticed is listed as it was
found; tests for some of it were added afterwards.
"""
LANE: dict[str, Any] = {}  # what a worker process holds


def environment() -> dict[str, str]:
    """One thread, no network, no window."""
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg", "TQDM_DISABLE": "1"}
    return {**os.environ, **quiet}


def cover() -> None:
    """Run the suite with a coverage context for every test."""
    CACHE.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-m", SELECT, f"--cov={SOURCE}", "--cov-context=test",
               "--cov-report=", f"--junitxml={CACHE / 'durations.xml'}", "-o", "junit_family=xunit1"]  # fmt: skip
    env = {**environment(), "COVERAGE_FILE": str(CACHE / "coverage")}
    subprocess.run(command, cwd=ROOT, env=env, check=False)


class Cover:
    """Which tests run a line, and how long they take."""

    def __init__(self) -> None:
        from coverage import CoverageData

        if not (CACHE / "coverage").is_file():
            sys.exit("no coverage yet: run tools/mutants.py cover, or give --only --tests FILES")
        self.data = CoverageData(str(CACHE / "coverage"))
        self.data.read()
        self.seconds: dict[str, float] = collections.defaultdict(lambda: 0.1)
        for case in ET.parse(CACHE / "durations.xml").iter("testcase"):
            file, name = case.get("file", ""), case.get("name", "")
            inner = case.get("classname", "").removeprefix(file.removesuffix(".py").replace("/", "."))
            self.seconds["::".join(filter(None, (file, inner.strip("."), name)))] = float(case.get("time", 0))
        self.lines: dict[str, dict[int, set[str]]] = {}

    def tests(self, mutant: Mutant, package: str) -> list[str]:
        """Tests in the order in which they are to be tried, within the budget of time."""
        file = str(SOURCE / mutant.path)
        if file not in self.lines:
            known = self.data.contexts_by_lineno(file)
            self.lines[file] = {n: {c.split("|")[0] for c in cs if c} for n, cs in known.items()}
        lines = self.lines[file]
        found = lines.get(mutant.line, set())
        for first, last in mutant.scopes:  # a line that runs at import belongs to what encloses it
            found = found or set().union(*(names for n, names in lines.items() if first <= n <= last))
        found = found or set().union(*lines.values())
        if not lines.get(mutant.line):  # defaults are read from classes, and no test runs their lines
            found = found | {str(file.relative_to(ROOT)) for file in (ROOT / "tests").rglob("test_*default*.py")}
        home = f"tests/{HOMES.get(package, package)}/"
        ordered = sorted(found, key=lambda name: (not name.startswith(home), self.seconds[name]))
        total, chosen = 0.0, []
        for name in ordered:
            total += self.seconds[name]
            if chosen and total > BUDGET:
                break
            chosen.append(name)
        return chosen


class Chosen:
    """A pytest plugin: only these tests, in this order; a name without :: stands for all tests of a file."""

    def __init__(self, names: list[str]) -> None:
        self.place = {name: i for i, name in enumerate(names)}

    def _at(self, item: pytest.Item) -> int | None:
        return self.place.get(item.nodeid, self.place.get(item.nodeid.split("::")[0]))

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Keep and sort."""
        items[:] = sorted((item for item in items if self._at(item) is not None), key=self._at)  # type: ignore[arg-type]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write down the failure that ends the run."""
        if report.failed:
            Path(os.environ["MUTANT_VERDICT"]).write_text(report.nodeid)


def stages(names: list[str], files: list[str]) -> list[list[str]]:
    """The named files, then the covering tests of three files at a time: reading a test file costs, too."""
    modules: dict[str, list[str]] = {}
    for name in names:
        modules.setdefault(name.split("::")[0], []).append(name)
    known = [tests for module, tests in modules.items() if (ROOT / module).is_file()]
    threes = ([name for tests in known[i : i + 3] for name in tests] for i in range(0, len(known), 3))
    return [*([files] if files else []), *threes]


def overlay(folder: Path) -> Path:
    """The package as links in ``folder``."""
    for here, _, files in os.walk(SOURCE):
        if "__pycache__" not in here:
            there = folder / "ornstein" / Path(here).relative_to(SOURCE)
            there.mkdir(parents=True, exist_ok=True)
            for name in files:
                (there / name).symlink_to(Path(here) / name)
    return folder


def trial(mutant: Mutant, names: list[str], files: list[str], folder: Path, limit: float) -> dict[str, object]:
    """Run the tests against one mutant in a forked process."""
    target, verdict, log = folder / "ornstein" / mutant.path, folder / "verdict", folder / "log"
    target.unlink()
    target.write_text(mutant.text)
    stamp = time.time_ns()
    os.utime(target, ns=(stamp, stamp))  # compiled files go by size and time
    verdict.unlink(missing_ok=True)
    start = time.monotonic()
    process = os.fork()
    if process == 0:
        os.setsid()
        with log.open("wb") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        os.environ.update(PYTHONPATH=str(folder), MUTANT_VERDICT=str(verdict))
        sys.path.insert(0, str(folder))
        pytest = importlib.import_module("pytest")
        code = 5
        try:
            for some in stages(names, files):
                modules = sorted({name.split("::")[0] for name in some})
                verdict.with_name("tmp").mkdir(exist_ok=True)
                temporary = ["--basetemp", str(verdict.with_name("tmp"))]
                plugins = [Chosen(some)]
                last = int(pytest.main([*PLAIN, *temporary, *modules], plugins=plugins))
                code = last if last != 5 else code
                if code not in (0, 5):
                    break
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    code = None
    while code is None and time.monotonic() - start < limit:
        done, status = os.waitpid(process, os.WNOHANG)
        code = os.waitstatus_to_exitcode(status) if done else None
        time.sleep(0.05)
    if code is None:
        os.killpg(process, signal.SIGKILL)
        os.waitpid(process, 0)
    target.unlink()
    target.symlink_to(SOURCE / mutant.path)
    words = {None: "hung", 0: "survived", 1: "killed", 2: "killed", 5: "no test"}
    said = log.read_text(errors="replace")
    by = verdict.read_text() if verdict.is_file() else "collection" if "ERROR collecting" in said else ""
    word = words.get(code, "broken") if by or code not in (1, 2) else "broken"
    by = said[-800:] if word == "broken" else by
    return {**mutant.described(), "verdict": word, "by": by, "seconds": round(time.monotonic() - start, 1)}


def known_equivalent() -> dict[tuple[str, str, str], str]:
    """(file, line before, line after) → why nothing changes."""
    rows = json.loads(EQUIVALENT.read_text("utf-8")) if EQUIVALENT.is_file() else []
    return {(row["path"], row["before"], row["after"]): row["reason"] for row in rows}


def files_of(package: str) -> list[Path]:
    """Python files of a package or module, relative to the source."""
    place = SOURCE / package
    found = sorted(place.rglob("*.py")) if place.is_dir() else [place if place.suffix else place.with_suffix(".py")]
    if not all(file.is_file() for file in found) or not found:
        sys.exit(f"{package} is neither a package nor a module of src/ornstein: name one, such as paths or grids")
    return [file.relative_to(SOURCE) for file in found]


def run(options: argparse.Namespace) -> None:
    """Sample mutants of every package, try them, report."""
    os.chdir(ROOT)
    os.environ.update(environment())
    covered = None if options.only else Cover()
    equivalent = known_equivalent()
    work: list[tuple[str, Mutant, list[str], float]] = []
    for package in PACKAGES if options.all else options.packages:
        possible = [m for file in files_of(package) for m in mutants_of(SOURCE, file)]
        possible = [m for m in possible if m.key not in equivalent]
        picked = random.Random(f"{options.seed} {package}").sample(possible, min(options.n, len(possible)))
        for mutant in picked:
            names = covered.tests(mutant, package) if covered else []
            limit = 120 + 10 * sum(covered.seconds[name] for name in names) if covered else 600
            work.append((package, mutant, names, limit))
    if options.list:
        for package, mutant, names, _ in work:
            print(f"{package}: {mutant.summary()} [{len(names)} tests]")
        return
    for name in WARM:
        importlib.import_module(name)
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    rows = []
    with (
        tempfile.TemporaryDirectory(prefix="mutants-") as base,
        multiprocessing.get_context("fork").Pool(
            options.jobs, initializer=begin, initargs=(Path(base), options.tests)
        ) as pool,
    ):
        for package, row in pool.imap_unordered(one, work):
            counts[package][str(row["verdict"])] += 1
            rows.append({"package": package, **row})
            if row["verdict"] in NOTICED:
                print(f"  {row['verdict']} {row['path']}:{row['line']} by {row['by']} [{row['seconds']} s]", flush=True)
            else:
                print(f"{str(row['verdict']).upper()} {row['path']}:{row['line']} [{row['seconds']} s]")
                print(f"  - {row['before']}\n  + {row['after']}\n{row['by']}".rstrip(), flush=True)
    for package, count in counts.items():
        noticed = sum(count[word] for word in NOTICED)
        print(f"{package}: {noticed} of {count.total()} noticed, {noticed / count.total():.1%}", flush=True)
    if options.json:
        keep(Path(options.json), rows, options)


def keep(file: Path, rows: list[dict[str, object]], options: argparse.Namespace) -> None:
    """Put the rows of this run into a record, in place of those of the same packages and seed."""
    old = json.loads(file.read_text("utf-8")) if file.is_file() else {"runs": []}
    new = {"seed": options.seed, "n": options.n, "machine": platform.machine(), "python": platform.python_version()}
    kept = [r for r in old["runs"] if r["seed"] != options.seed or r["package"] not in {row["package"] for row in rows}]
    for package in dict.fromkeys(str(row["package"]) for row in rows):
        mine = [
            {k: v for k, v in row.items() if k not in ("package", "seconds")}
            for row in rows
            if row["package"] == package
        ]
        missed = [row for row in mine if row["verdict"] not in NOTICED]
        kept.append(
            {"package": package, **new, "planted": len(mine), "noticed": len(mine) - len(missed), "missed": missed}
        )
    file.write_text(json.dumps({"runs": kept}, indent=1, ensure_ascii=False) + "\n", "utf-8")


def stands(row: dict[str, str]) -> bool:
    """Whether the line that a mutant changes still stands in its file."""
    file = SOURCE / row["path"]
    return file.is_file() and row["before"] in (line.strip() for line in file.read_text("utf-8").splitlines())


def page() -> str:
    """docs/mutants.md from the record, the list of equivalent mutants and the lines of today's source."""
    runs, same = json.loads(RECORD.read_text("utf-8"))["runs"], known_equivalent()
    for r in runs:
        missed = [m for m in r["missed"] if (m["path"], m["before"], m["after"]) not in same]
        r["planted"], r["missed"] = r["planted"] - len(r["missed"]) + len(missed), missed
    lines = [LEAD, "| package | planted | noticed | share | seeds |", "|---|---|---|---|---|"]
    for package in [p for p in PACKAGES if any(r["package"] == p for r in runs)]:
        mine = [r for r in runs if r["package"] == package]
        planted, noticed = sum(r["planted"] for r in mine), sum(r["noticed"] for r in mine)
        seeds = ", ".join(str(r["seed"]) for r in mine)
        lines.append(f"| {package} | {planted} | {noticed} | {noticed / planted:.0%} | {seeds} |")
    planted, noticed = sum(r["planted"] for r in runs), sum(r["noticed"] for r in runs)
    lines += [f"| all | {planted} | {noticed} | {noticed / planted:.0%} | |"]
    missed = [(m, f"* `{m['path']}`, {m['kind']}: `{m['before']}` → `{m['after']}`") for r in runs for m in r["missed"]]
    equal = [
        (m, f"* `{m['path']}`: `{m['before']}` → `{m['after']}`: {m['reason']}")
        for m in json.loads(EQUIVALENT.read_text("utf-8"))
    ]
    lines += ["", "## Not noticed", "", *(text for m, text in missed if stands(m))]
    lines += ["", "## Equivalent", "", "Changes that change nothing; they do not count.", ""]
    lines += [text for m, text in equal if stands(m)]
    gone = [text for m, text in [*missed, *equal] if not stands(m)]
    if gone:
        lines += ["", "## In lines that are gone", "", "Listed as above, in lines that have changed since.", "", *gone]
    return "\n".join(lines) + "\n"


def table(check: bool) -> None:
    """Write docs/mutants.md, or exit with a line if it is not as it would be written."""
    file = ROOT / "docs" / "mutants.md"
    if not check:
        file.write_text(page(), "utf-8")
    elif file.read_text("utf-8") != page():
        raise SystemExit("docs/mutants.md quotes lines that have changed: run python tools/mutants.py table")


def begin(base: Path, files: list[str]) -> None:
    """Give a worker a copy of the package of its own."""
    LANE.update(folder=overlay(base / str(os.getpid())), files=files)


def one(task: tuple[str, Mutant, list[str], float]) -> tuple[str, dict[str, object]]:
    """Try a mutant in this worker."""
    package, mutant, names, limit = task
    return package, trial(mutant, names, LANE["files"], LANE["folder"], limit)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("cover", help="run the suite once and keep which test runs which line")
    verb = verbs.add_parser("table", help="write docs/mutants.md from the record")
    verb.add_argument("--check", action="store_true", help="compare it instead")
    runner = verbs.add_parser("run", help="plant mutants")
    runner.add_argument("packages", nargs="*", help="packages, modules or files below src/ornstein")
    runner.add_argument("--all", action="store_true", help="every package of the table")
    runner.add_argument("--n", type=int, default=30, help="mutants a package")
    runner.add_argument("--seed", type=int, default=0)
    runner.add_argument("--jobs", type=int, default=1)
    runner.add_argument("--tests", nargs="*", default=[], help="test files that are tried first, all of their tests")
    runner.add_argument("--only", action="store_true", help="try the files of --tests alone")
    runner.add_argument("--list", action="store_true", help="only say which mutants would be planted")
    runner.add_argument("--json", help="write the rows there")
    options = parser.parse_args()
    {"cover": lambda _: cover(), "run": run, "table": lambda o: table(o.check)}[options.verb](options)


if __name__ == "__main__":
    main()
