"""The command's contract: one document or one line, the right exit status, and no traceback."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ornstein.cli.main import COMMANDS, main
from ornstein.cli.parameters import parameters


def call(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    try:
        status = main(args)
    except SystemExit as stop:
        status = int(stop.code or 0)
    out, err = capsys.readouterr()
    return status, out, err


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "train"])
def test_help_shows_an_example(capsys: pytest.CaptureFixture[str], command: str) -> None:
    status, out, err = call(capsys, command, "--help")
    assert status == 0
    assert f"Example: ornstein {command}" in " ".join(out.split())
    assert err == ""


@pytest.mark.parametrize("args", [("train", "--help"), ("train", "ddpm", "--help")])
def test_train_help_shows_an_example(capsys: pytest.CaptureFixture[str], args: tuple[str, ...]) -> None:
    status, out, _ = call(capsys, *args)
    assert status == 0
    assert "Example: ornstein train ddpm --data critters" in " ".join(out.split())


BAD = [
    ("no-such-command",),
    ("methds",),
    ("sample",),
    ("sample", "no/such/run"),
    ("sample", "RUN", "--sampler", "dpmp-2m"),
    ("sample", "RUN", "--steps", "0"),
    ("sample", "RUN", "--steps", "five"),
    ("sample", "RUN", "--n", "0"),
    ("sample", "RUN", "--batch", "-3"),
    ("sample", "RUN", "--steps", "5", "--evaluations", "5"),
    ("sample", "RUN", "--columns", "-3"),
    ("sample", "RUN", "--out", "RUN/config.json/below", "--n", "1", "--steps", "1"),
    ("sample", "RUN", "--label", "no-such-class"),
    ("sample", "RUN", "--caption", "a green critter"),
    ("sample", "RUN", "--device", "no-such-device"),
    ("sample", "RUN", "--no-such-option", "1"),
    ("train", "sdxl"),
    ("train", "no-such-method"),
    ("train", "ddpm"),
    ("train", "ddpm", "--out", "", "--data", "critters"),
    ("train", "ddpm", "--out", "OUT", "--data", "no/such/folder"),
    ("train", "ddpm", "--out", "OUT", "--data", "BROKEN"),
    ("train", "ddpm", "--out", "RUN/config.json/below", "--data", "critters:8"),
    ("train", "ddpm", "--out", "OUT", "--path", "vq"),
    ("train", "ddpm", "--out", "OUT", "--objective.gamma", "nan"),
    ("train", "ddpm", "--out", "OUT", "--optimizer.lr", "-1"),
    ("train", "ddpm", "--out", "OUT", "--size", "63"),
    ("train", "ddpm", "--out", "OUT", "--network", "unet", "--network.width", "7"),
    ("eval", "no/such/thing", "--n", "4"),
    ("eval", "RUN", "--reference", "no/such/folder", "--n", "4"),
    ("eval", "RUN", "--features", "resnet", "--n", "4"),
    ("eval", "RUN", "--n", "1"),
    ("rates", "--samplers", "no-such-sampler"),
    ("demo", "--model", "no/such/run", "--out", "OUT"),
    ("demo", "--n", "0", "--out", "OUT"),
]


@pytest.mark.parametrize("args", BAD, ids=" ".join)
def test_bad_input_costs_one_line(
    capsys: pytest.CaptureFixture[str], tiny_run: Path, tmp_path: Path, args: tuple[str, ...]
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "0.png").write_bytes(b"no picture")
    named = {"RUN": tiny_run, "OUT": tmp_path / "out", "BROKEN": broken}
    status, out, err = call(capsys, *(re.sub("RUN|OUT|BROKEN", lambda m: str(named[m[0]]), arg) for arg in args))
    assert status == 2, (out, err)
    assert out == ""
    assert err.startswith("ornstein: ")
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists(), "bad input must leave nothing half-written"


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("--interpolate", "3"), "--interpolate: give INT INT, not '3'"),
        (("--interpolate", "3", "4", "5"), "unexpected word '5'"),
        (("--resample-level", "x"), "--resample-level: give INT, not 'x'"),
        (("--n", "many"), "--n: give INT, not 'many'"),
        (("--keep-noise", "all"), "--keep-noise: give FLOAT, not 'all'"),
    ],
)
def test_a_value_of_the_wrong_kind_is_told_the_kind(
    capsys: pytest.CaptureFixture[str], args: tuple[str, ...], told: str
) -> None:
    status, out, err = call(capsys, "sample", "critters", *args)
    assert (status, out, err) == (2, "", f"ornstein: {told} (see ornstein sample --help)\n")


def test_methods_json_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "methods", "--json")
    methods = json.loads(out)
    assert status == 0
    assert len(methods) == 11
    assert all(method["state"] in {"ready", "parts", "planned"} for method in methods)


def test_sample_writes_what_it_says(capsys: pytest.CaptureFixture[str], tiny_run: Path, tmp_path: Path) -> None:
    out_dir = tmp_path / "images"
    status, out, err = call(
        capsys, "sample", str(tiny_run), "--n", "3", "--steps", "4", "--out", str(out_dir), "--json", "--label", "0"
    )
    result = json.loads(out)
    assert status == 0
    assert [Path(p).name for p in result["images"]] == ["000000.png", "000001.png", "000002.png"]
    assert all(Path(p).is_file() for p in [*result["images"], result["grid"]])
    assert result["evaluations"] == 4
    assert "3 of 3 images" in err


def test_guidance_scale_is_classifier_free_guidance(
    capsys: pytest.CaptureFixture[str], tiny_run: Path, tmp_path: Path
) -> None:
    from ornstein import guidance, runs, sampling
    from ornstein.data import save_png

    def files(name: str, *args: str) -> list[bytes]:
        common = ("--n", "2", "--steps", "3", "--strict", "--label", "0", "--out", str(tmp_path / name))
        assert call(capsys, "sample", str(tiny_run), *common, *args)[0] == 0
        return [path.read_bytes() for path in sorted((tmp_path / name).glob("0*.png"))]

    plain, guided = files("plain"), files("guided", "--guidance-scale", "40")
    assert files("one", "--guidance-scale", "1") == plain
    run = runs.open_run(tiny_run)
    model = guidance.CFG(weight=40.0, null=run.null())(run.denoiser)
    images = sampling.sample(model, 2, steps=3, cond=run.cond(labels=[0, 0]), strict=True)
    expected = [save_png(image, tmp_path / f"{i}.png").read_bytes() for i, image in enumerate(images)]
    assert guided == expected != plain


def test_strict_png_bytes_do_not_depend_on_batch_or_split(
    capsys: pytest.CaptureFixture[str], tiny_run: Path, tmp_path: Path
) -> None:
    def files(name: str, *args: str) -> dict[str, bytes]:
        folder = tmp_path / name
        assert call(capsys, "sample", str(tiny_run), "--steps", "4", "--strict", "--out", str(folder), *args)[0] == 0
        return {file.name: file.read_bytes() for file in folder.glob("0*.png")}

    whole = files("whole", "--n", "5", "--batch", "5", "--sampler", "ddpm")
    small = files("small", "--n", "5", "--batch", "2", "--sampler", "ddpm")
    assert whole == small
    split = files("a", "--n", "2", "--sampler", "ddpm") | files("b", "--n", "3", "--first", "2", "--sampler", "ddpm")
    assert whole == split


def test_the_command_runs_as_a_process(tiny_run: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ornstein", "sample", str(tiny_run / "nothing"), "--out", str(tmp_path / "x")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1


def test_eval_against_a_folder(capsys: pytest.CaptureFixture[str], tiny_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    assert call(capsys, "sample", str(tiny_run), "--n", "4", "--steps", "2", "--out", str(folder))[0] == 0
    status, out, _ = call(capsys, "eval", str(folder), "--reference", "critters:8", "--n", "9", "--json")
    result = json.loads(out)
    assert status == 0
    assert result["FD-lite0"] > 0.0
    assert result["images"] == [4, 8], "the overview grid.png is not a sample"
    assert not any(key.startswith(("FID", "KID ")) for key in result), "only Inception makes it an FID"


def test_options_are_frozen() -> None:
    """Options are debt: a new one is a decision, taken here."""
    found = {}
    for command in ("methods", "sample", "guides", "eval", "rates", "demo"):
        module, kind, *_ = COMMANDS[command]
        options = parameters(getattr(importlib.import_module(f"ornstein.cli.{module}"), kind))
        found[command] = sorted(one.flag for one in options if not one.option.positional)
    assert found == {
        "methods": ["--json"],
        "sample": sorted(
            [
                "--init",
                "--strength",
                "--mask",
                "--out",
                "--interpolate",
                "--resample-level",
                "--keep-noise",
                "--posterior",
                "--n",
                "--sampler",
                "--steps",
                "--evaluations",
                "--grid",
                "--seed",
                "--first",
                "--batch",
                "--label",
                "--prompt",
                "--prompts",
                "--negative-prompt",
                "--refiner",
                "--size",
                "--lora",
                "--guidance-scale",
                "--guidance",
                "--guide",
                "--guide-source",
                "--differentiate-through",
                "--guide-window",
                "--guide-placement",
                "--backward",
                "--resample",
                "--prior-scale",
                "--skip-steps",
                "--ema",
                "--columns",
                "--strict",
                "--device",
                "--json",
            ]
        ),
        "guides": ["--json"],
        "eval": sorted(
            [
                "--reference",
                "--metrics",
                "--n",
                "--k",
                "--features",
                "--weights",
                "--lpips",
                "--clip",
                "--reference-statistics",
                "--statistics-out",
                "--per-image",
                "--resize",
                "--sampler",
                "--steps",
                "--ema",
                "--seed",
                "--batch",
                "--size",
                "--device",
                "--json",
            ]
        ),
        "rates": sorted(
            [
                "--samplers",
                "--targets",
                "--path",
                "--grid",
                "--quick",
                "--score-error",
                "--dimension",
                "--precision",
                "--jobs",
                "--json",
                "--plot",
            ]
        ),
        "demo": sorted(["--out", "--model", "--images", "--n", "--seed", "--json"]),
    }
