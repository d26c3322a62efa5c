"""Exit statuses 0, 1, 2, 130 and 141, the words of the parser, and the default of every option of every command."""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import runpy
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import ornstein
from ornstein.cli import catalog
from ornstein.cli.main import COMMANDS, main, parse
from ornstein.cli.output import emit_json, make_folder, refuse_file, refuse_target
from ornstein.errors import UsageError
from ornstein.methods import PAPERS
from ornstein.storage.files import write_text


def call(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    status = main(args)
    return status, *capsys.readouterr()


def test_without_a_command_the_overview_is_shown_and_the_status_is_2(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = call(capsys)
    assert (status, err) == (2, "")
    for word in ("-h", "--help", "help"):
        assert call(capsys, word) == (0, out, "")
    head, blank, *rows = out.splitlines()
    assert head.startswith("usage: ornstein COMMAND [options]")
    assert blank == ""
    assert [row.split()[0] for row in rows] == list(COMMANDS)
    column = 2 + max(map(len, COMMANDS)) + 2
    for row, (name, (*_, what)) in zip(rows, COMMANDS.items(), strict=True):
        assert row[:column].strip() == name
        assert row[column:] == what


def test_the_version_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("-V", "--version", "version"):
        assert call(capsys, word) == (0, ornstein.__version__ + "\n", "")


def test_the_module_is_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for words, status in ((["--version"], 0), ([], 2)):
        monkeypatch.setattr(sys, "argv", ["ornstein", *words])
        with pytest.raises(SystemExit) as stop:
            runpy.run_module("ornstein", run_name="__main__")
        assert stop.value.code == status
    assert capsys.readouterr().out.startswith(ornstein.__version__ + "\nusage: ")


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (UsageError("two\n  lines"), 2, "two lines"),
        (OSError(28, "No space left\non device"), 1, "[Errno 28] No space left on device"),
        (RuntimeError("Could not determine home directory."), 2, "a path begins with ~ and the name of no user"),
    ],
)
def test_what_ends_a_command_is_its_status_and_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, said: str
) -> None:
    def stopped(args: object) -> int:
        raise error

    monkeypatch.setattr(catalog, "methods", stopped)
    found, out, err = call(capsys, "methods")
    assert (found, out) == (status, "")
    assert err.startswith(f"ornstein: {said}")
    assert err.endswith("\n")
    assert err.count("\n") == 1


def test_a_fault_of_the_library_is_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(args: object) -> int:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(catalog, "methods", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        main(["methods"])


def test_a_reader_that_has_gone_is_no_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w", buffering=1) as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert main(["methods"]) == 141
        sys.stdout.write("nobody reads this\n")  # and nothing is raised at exit
        monkeypatch.undo()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("methds", "unknown command 'methds': did you mean 'methods'?"),
        ("qqq", f"unknown command 'qqq': choose one of {', '.join(COMMANDS)}"),
        ("train sdxl", "training method 'sdxl' is not ready yet: choose one of ddpm, autoencoder, "),
        ("train foo", "training method 'foo' is unknown: choose one of ddpm, autoencoder, "),
        ("sample x --step 1", "unknown option --step: did you mean --steps? (see ornstein sample --help)"),
        ("sample x y", "unexpected word 'y' (see ornstein sample --help)"),
        ("score", "MODEL is missing: a run folder, a checkpoint folder, or the name of a shipped model (see "),
        ("sample x --n", "--n: give INT, not nothing (see ornstein sample --help)"),
        ("sample x --n 2.5", "--n: give INT, not '2.5' (see ornstein sample --help)"),
        ("sample x --interpolate", "--interpolate: give INT INT, not nothing (see ornstein sample --help)"),
        ("reproduce --budget much", "--budget: give FLOAT, not 'much' (see ornstein reproduce --help)"),
        ("rates --path vq", "--path: 'vq' is unknown: choose one of vp, ve, flow (see ornstein rates --help)"),
        ("train ddpm --out x --lr 3", "unknown option --lr: did you mean --optimizer.lr? (see ornstein train "),
        ("train ddpm --out x network:dit", "unexpected word 'network:dit': write --network dit (see ornstein train "),
        ("sample x --n 3 --n 4", "--n is given twice: give it once (see ornstein sample --help)"),
        ("train ddpm --out x --every.lgo 3", "unknown option --every.lgo: did you mean --every.log? (see "),
    ],
)  # fmt: skip
def test_the_parser_complains_in_our_words(capsys: pytest.CaptureFixture[str], words: str, said: str) -> None:
    status, out, err = call(capsys, *words.split())
    assert (status, out) == (2, "")
    assert err.startswith(f"ornstein: {said}")
    assert err == f"ornstein: {said}\n" or not said.endswith(")")
    assert err.count("\n") == 1


def test_train_without_a_method_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    from ornstein.training.methods import METHODS as TRAINED

    texts = []
    for words, status in ((("train",), 2), (("train", "-h"), 0), (("train", "--help"), 0)):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == status
        texts.append(capsys.readouterr().out)
    assert len(set(texts)) == 1
    assert re.findall(r"^  (\S+)", texts[0], re.MULTILINE) == list(TRAINED)
    said = " ".join(texts[0].split())
    assert all(f" {name} {method.what} " in said for name, method in TRAINED.items())


OUT = Path("x.safetensors")
DEFAULTS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "methods": ([], {"json": False}),
    "guides": ([], {"json": False}),
    "demo": ([], {"out": Path("demo"), "model": "critters", "images": 4096, "n": 6, "seed": 0, "json": False}),
    "sample": (
        ["r"],
        {
            "interpolate": None,
            "init": (),
            "strength": None,
            "mask": None,
            "resample_level": None,
            "keep_noise": 0.0,
            "posterior": None,
            "run": "r",
            "out": Path("out/samples"),
            "n": 16,
            "sampler": None,
            "steps": None,
            "evaluations": None,
            "grid": "default",
            "seed": 0,
            "first": 0,
            "batch": 16,
            "label": (),
            "prompt": (),
            "prompts": None,
            "negative_prompt": None,
            "size": None,
            "refiner": None,
            "lora": (),
            "guidance_scale": 1.0,
            "guidance": (),
            "guide": (),
            "guide_source": (),
            "differentiate_through": "network",
            "guide_window": None,
            "guide_placement": "joint",
            "backward": None,
            "resample": 1,
            "ema": None,
            "prior_scale": 1.0,
            "skip_steps": 0,
            "columns": 0,
            "strict": False,
            "device": "cpu",
            "json": False,
        },
    ),
    "eval": (
        ["r"],
        {
            "what": "r",
            "other": None,
            "reference": None,
            "metrics": "fd,kid",
            "n": 1000,
            "k": None,
            "features": "lite0",
            "weights": None,
            "lpips": "lite0",
            "clip": None,
            "reference_statistics": None,
            "statistics_out": None,
            "per_image": None,
            "resize": "auto",
            "sampler": None,
            "steps": None,
            "ema": None,
            "seed": 0,
            "batch": 16,
            "size": None,
            "device": "cpu",
            "json": False,
        },
    ),
    "score": (
        ["r"],
        {
            "run": "r",
            "data": "",
            "out": Path("scores.csv"),
            "log_snr": -3.703,
            "draws": 5,
            "distance": "lite0",
            "seed": 0,
            "shard": "0/1",
            "batch": 256,
            "device": "cpu",
            "json": False,
        },
    ),
    "tune-steps": (
        ["r"],
        {
            "run": "r",
            "reference": "critters",
            "evaluations": 2,
            "n": 500,
            "refine": 3,
            "features": "lite0",
            "candidates": (0.1, 0.2, 0.35, 0.6, 1.0, 2.0, 5.0),
            "ema": None,
            "seed": 0,
            "batch": 50,
            "dry": False,
            "device": "cpu",
            "json": False,
        },
    ),
    "rates": (
        [],
        {
            "samplers": "",
            "targets": "G8,M1",
            "path": "vp",
            "grid": "log-snr",
            "quick": False,
            "score_error": "",
            "dimension": False,
            "precision": False,
            "jobs": None,
            "json": False,
            "plot": None,
        },
    ),
    "reproduce": (
        [],
        {
            "methods": (),
            "out": Path("runs/reproduce"),
            "budget": 1.0,
            "longer": 1,
            "jobs": 1,
            "fresh": False,
            "json": False,
        },
    ),
    "train-guide": (
        ["segmentation", "--out", str(OUT)],
        {
            "kind": "segmentation",
            "out": OUT,
            "seed": 0,
            "images": 16_000,
            "drawings": 2048,
            "start": None,
            "json": False,
        },
    ),
}


def test_every_command_has_a_row_of_defaults() -> None:
    assert {*DEFAULTS, "train"} == set(COMMANDS)


@pytest.mark.parametrize("command", DEFAULTS)
def test_defaults(command: str) -> None:
    words, expected = DEFAULTS[command]
    module, kind, *_ = COMMANDS[command]
    found = parse(getattr(importlib.import_module(f"ornstein.cli.{module}"), kind), f"ornstein {command}", words)
    assert asdict(found) == expected


METHODS = {
    "sdxl": ("2307.01952", "parts"),
    "slct": ("2502.01441", "ready"),
    "udpm": ("2305.16269", "ready"),
    "universal-guidance": ("2302.07121", "ready"),
    "minority-guidance": ("2301.12334", "ready"),
    "contextdiff": ("2402.16627", "parts"),
    "cas-dm": ("2401.02414", "ready"),
    "dmfft": ("", "parts"),
    "accelerated-ode": ("2403.03852", "ready"),
    "randomized-midpoint": ("2410.13738", "ready"),
    "exponential-integrator": ("2410.14237", "ready"),
}


def test_every_method_has_its_paper_and_a_command_that_parses() -> None:
    from ornstein.cli import train
    from ornstein.samplers import sampler

    assert {method.name: (method.arxiv, method.state) for method in PAPERS} == METHODS
    for method in PAPERS:
        assert bool(method.command) == (method.state == "ready")
        if not method.command:
            continue
        program, command, *words = method.command.split()
        assert program == "ornstein"
        if command == "train":
            assert train.parse(words).config.out.startswith("runs/")
            continue
        module, kind, *_ = COMMANDS[command]
        found = parse(getattr(importlib.import_module(f"ornstein.cli.{module}"), kind), f"ornstein {command}", words)
        assert found.run == "critters"
        if getattr(found, "sampler", None) is not None:
            sampler(found.sampler)


def test_methods_as_text_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = call(capsys, "methods")
    assert (status, err) == (0, "")
    for method, part in zip(PAPERS, re.split(r"\n(?=\S)", out.rstrip()), strict=True):
        assert part.splitlines()[0] == f"{method.name}  ({method.state})"
        said = " ".join([method.what, "here:", method.here, *(["run:", method.command] if method.command else [])])
        assert " ".join(part.split()).endswith(said)
    status, out, err = call(capsys, "methods", "--json")
    assert (status, err) == (0, "")
    assert json.loads(out) == [asdict(method) for method in PAPERS]


def test_a_json_document_has_no_nan_and_plain_letters(capsys: pytest.CaptureFixture[str]) -> None:
    for bad in (math.nan, math.inf, [{"a": -math.inf}]):
        with pytest.raises(ValueError, match="JSON"):
            emit_json(bad)
    assert capsys.readouterr().out == ""
    emit_json({"ünï": [1, None]})
    assert capsys.readouterr().out == '{\n  "ünï": [\n    1,\n    null\n  ]\n}\n'


def test_what_cannot_be_written_is_refused_beforehand(tmp_path: Path) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder"
    write_text(file, "a\nü\n")
    assert file.read_bytes() == "a\nü\n".encode()
    folder.mkdir()
    with pytest.raises(UsageError, match="is a file: name a folder"):
        refuse_file(file)
    refuse_file(folder)
    refuse_file(tmp_path / "absent")
    with pytest.raises(UsageError, match=r"^--table .*folder is a folder: name a file"):
        refuse_target("--table", folder)
    with pytest.raises(UsageError, match=r"^--table .* cannot be written \(.*/file is no folder for it\)"):
        refuse_target("--table", file / "a" / "b")
    refuse_target("--table", file)
    refuse_target("--table", tmp_path / "a" / "b" / "c.csv")
    assert not (tmp_path / "a").exists()
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    with pytest.raises(UsageError, match=r"cannot be made \(not a directory\)"):
        make_folder(file / "a")
    write_text(tmp_path / "deep" / "er" / "file", "x")
    write_text(tmp_path / "deep" / "er" / "file", "y")
    assert [path.name for path in (tmp_path / "deep" / "er").iterdir()] == ["file"], "no temporary file is left"
    assert (tmp_path / "deep" / "er" / "file").read_text("utf-8") == "y"


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_without_the_right_to_write_is_refused(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    with pytest.raises(UsageError, match="cannot be written"):
        refuse_target("--table", closed / "t.csv")
