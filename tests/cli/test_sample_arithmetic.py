"""`ornstein sample` draws what `ornstein.sample` draws of the same words, at every batch and first number."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import ornstein as orn
from ornstein import grids, guidance, guides, sampling
from ornstein.cli.main import main
from ornstein.data import save_grid, save_png
from ornstein.interpolation import Between, Varied
from ornstein.runs import TrainedModel, open_own


def call(capsys: pytest.CaptureFixture[str], run: object, *args: object) -> tuple[int, str, str]:
    status = main(["sample", str(run), *map(str, args)])
    return status, *capsys.readouterr()


def drawn(capsys: pytest.CaptureFixture[str], run: object, out: Path, *args: object) -> dict[str, Any]:
    """The JSON of a call that succeeds."""
    status, said, err = call(capsys, run, *args, "--out", out, "--json")
    assert status == 0, err
    return json.loads(said)


def same(result: dict[str, Any], images: torch.Tensor, folder: Path, first: int = 0) -> None:
    """The files hold these images, with their numbers in the stream as names, in order."""
    assert [Path(file).name for file in result["images"]] == [f"{first + i:06d}.png" for i in range(len(images))]
    for file, image in zip(result["images"], images, strict=True):
        assert Path(file).read_bytes() == save_png(image, folder / "expected.png").read_bytes(), file


def refused(capsys: pytest.CaptureFixture[str], words: str, run: object, *args: object) -> None:
    status, out, err = call(capsys, run, *args)
    assert (status, out) == (2, ""), (out, err)
    assert re.search(words, err), err
    assert err.count("\n") == 1


@pytest.fixture(scope="module")
def run(bold_run: Path) -> TrainedModel:
    return open_own(bold_run)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_labels_and_noise_follow_the_number_of_the_image(
    capsys: pytest.CaptureFixture[str], run: TrainedModel, tmp_path: Path, batch: int
) -> None:
    names = run.classes[:3]
    words = ("--n", 5, "--first", 4, "--seed", 6, "--steps", 3, "--batch", batch, "--strict", "--label", *names)
    result = drawn(capsys, run.folder, tmp_path / "out", *words)
    labels = [names[i % 3] for i in range(4, 9)]
    expected = sampling.sample(run.denoiser, 5, first=4, seed=6, steps=3, cond=run.cond(labels=labels), strict=True)
    same(result, expected, tmp_path, first=4)
    plain = sampling.sample(run.denoiser, 5, first=4, seed=6, steps=3, cond=run.cond(labels=names[:1] * 5), strict=True)
    changed = [not torch.equal(one, other) for one, other in zip(expected, plain, strict=True)]
    assert changed == [label != names[0] for label in labels], "each label is visible"
    assert {
        key: result[key]
        for key in ("run", "sampler", "seed", "first", "prior_scale", "skip_steps", "resample", "guides")
    } == {
        "run": str(run.folder),
        "sampler": "dpmpp-2m",
        "seed": 6,
        "first": 4,
        "prior_scale": 1.0,
        "skip_steps": 0,
        "resample": 1,
        "guides": [],
    }
    assert not {"interpolate", "resample_level", "keep_noise", "posterior"} & result.keys()
    assert result["seconds_per_image"] > 0.0


@pytest.mark.parametrize("scale", [0.5, 0.0, -1.0, 3.0])
def test_a_scale_of_guidance_is_that_weight_also_below_one(
    capsys: pytest.CaptureFixture[str], run: TrainedModel, tmp_path: Path, scale: float
) -> None:
    words = ("--n", 3, "--steps", 3, "--batch", 2, "--strict", "--label", 0, 2)
    result = drawn(capsys, run.folder, tmp_path / "out", *words, "--guidance-scale", scale)
    model = guidance.CFG(weight=scale, null=run.null())(run.denoiser)
    cond = run.cond(labels=[0, 2, 0])
    expected = sampling.sample(model, 3, steps=3, cond=cond, strict=True)
    same(result, expected, tmp_path)
    assert result["guidance_scale"] == scale
    assert not torch.equal(expected, sampling.sample(run.denoiser, 3, steps=3, cond=cond, strict=True))


def test_a_caption_is_repeated_for_every_image(
    capsys: pytest.CaptureFixture[str], text_run: Path, tmp_path: Path
) -> None:
    run = open_own(text_run)
    words = ("--n", 3, "--steps", 2, "--strict", "--batch", 2, "--caption", "an orange critter")
    cond = run.cond(captions=["an orange critter"] * 3)
    expected = sampling.sample(run.denoiser, 3, steps=2, cond=cond, strict=True)
    same(drawn(capsys, text_run, tmp_path / "out", *words), expected, tmp_path)
    model = guidance.CFG(weight=0.5, null=run.null())(run.denoiser)
    result = drawn(capsys, text_run, tmp_path / "out", *words, "--guidance-scale", 0.5)
    same(result, sampling.sample(model, 3, steps=2, cond=cond, strict=True), tmp_path)
    empty = sampling.sample(run.denoiser, 3, steps=2, cond=run.cond(captions=[""] * 3), strict=True)
    assert not torch.equal(empty, expected)


def test_guides_see_the_guided_answer_or_the_bare_model(
    capsys: pytest.CaptureFixture[str], run: TrainedModel, tmp_path: Path
) -> None:
    words = ("--n", 2, "--steps", 4, "--strict", "--label", 1, "--guidance-scale", 2, "--guide", "colour:navy:300")
    more = ("--differentiate-through", "estimate", "--backward", "2:0.05", "--guide-window", "0.01:500")
    cfg = guidance.CFG(weight=2.0, null=run.null())
    found = [sampling.sample(cfg(run.denoiser), 2, steps=4, cond=run.cond(labels=[1, 1]), strict=True)]
    for placement, null in (("joint", None), ("separate", run.null())):
        result = drawn(capsys, run.folder, tmp_path / placement, *words, *more, "--guide-placement", placement)
        options = guides.GuidanceOptions(differentiate_through="estimate", backward=guides.backward_of("2:0.05"),
                               window=guides.window_of("0.01:500"), placement=placement)  # fmt: skip
        ready = guides.make(["colour:navy:300"], shape=run.denoiser.shape)
        model = guides.compose(ready, options, cfg, null)(run.denoiser)
        expected = sampling.sample(model, 2, steps=4, cond=run.cond(labels=[1, 1]), strict=True)
        same(result, expected, tmp_path)
        assert (result["differentiate_through"], result["placement"]) == ("estimate", placement)
        assert (result["backward"], result["window"]) == ("2:0.05", [0.01, 500.0])
        found.append(expected)
    assert len({str(images.sum().item()) for images in found}) == 3, "the guide acts, and elsewhere where it is apart"


FAMILIES = {"karras": grids.karras, "log-snr": grids.log_snr, "uniform": grids.uniform, "quadratic": grids.power,
            "default": lambda steps: grids.Grid("default", lambda path: grids.default(path, steps)(path))}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_the_times_are_those_of_the_grid_and_its_evaluations_are_counted(
    capsys: pytest.CaptureFixture[str], run: TrainedModel, tmp_path: Path, family: str
) -> None:
    path = run.denoiser.path

    def found(*args: object) -> tuple[tuple[float, ...], int]:
        result = drawn(capsys, run.folder, tmp_path, "--n", 1, "--label", 0, "--grid", family, *args)
        return tuple(result["times"]), result["evaluations"]

    def times(steps: int, recur: int = 1) -> tuple[float, ...]:
        grid = FAMILIES[family](steps)
        return (grids.resample(grid, recur) if recur > 1 else grid)(path)

    assert found() == (times(20), 20)
    assert found("--steps", 4, "--sampler", "dpmpp-2s") == (times(4), 7)
    assert found("--steps", 4, "--skip-steps", 1) == (times(4)[1:], 3)
    assert found("--steps", 3, "--resample", 3) == (times(3, 3), 9)
    # It asks twice a step but for the last: with 9 evaluations 5 steps, or 2 steps three times, 6 + 3.
    assert found("--evaluations", 9, "--sampler", "dpmpp-2s") == (times(5), 9)
    assert found("--evaluations", 9, "--sampler", "dpmpp-2s", "--resample", 3) == (times(2, 3), 9)
    assert found("--evaluations", 9, "--resample", 2) == (times(4, 2), 8)
    if family != "default":  # auto's own grid otherwise
        assert found("--sampler", "auto") == (times(20), 20)
        assert found("--sampler", "auto", "--steps", 3) == (times(3), 3)
        assert found("--sampler", "auto", "--evaluations", 8, "--resample", 3) == (times(2, 3), 6)
        assert found("--sampler", "auto", "--evaluations", 3, "--resample", 3) == (times(1, 3), 3)


def test_auto_takes_its_own_grid_and_a_budget_is_shared_by_repetitions(
    capsys: pytest.CaptureFixture[str], run: TrainedModel, tmp_path: Path
) -> None:
    path, size = run.denoiser.path, 3 * 16 * 16

    def found(*args: object) -> tuple[tuple[float, ...], int]:
        result = drawn(capsys, run.folder, tmp_path, "--n", 1, "--label", 0, "--sampler", "auto", *args)
        return tuple(result["times"]), result["evaluations"]

    def times(steps: int, recur: int = 1) -> tuple[float, ...]:
        _, grid = orn.samplers.auto(path, steps, size, run.denoiser.info.data_std)
        return (grids.resample(grid, recur) if recur > 1 else grid)(path)

    assert found() == (times(20), 20)
    assert found("--steps", 6) == (times(6), 6)
    assert found("--evaluations", 6) == (times(6), 6)
    assert found("--steps", 3, "--resample", 3) == (times(3, 3), 9)
    # n steps taken K times cost n·K: a budget of 6, 8 and 9 buys 2, 2 and 3 steps taken three times.
    for budget, steps in ((3, 1), (5, 1), (6, 2), (8, 2), (9, 3), (11, 3), (12, 4)):
        assert found("--evaluations", budget, "--resample", 3) == (times(steps, 3), steps * 3), budget
    files = [drawn(capsys, run.folder, tmp_path / name, "--n", 2, "--label", 0, "--strict", "--sampler", name,
                   "--steps", 6)["images"] for name in ("auto", "dpmpp-2m")]  # fmt: skip
    expected = sampling.sample(run.denoiser, 2, sampler="auto", steps=6, cond=run.cond(labels=[0, 0]), strict=True)
    same({"images": files[0]}, expected, tmp_path)


def test_a_consistency_model_climbs_on_its_own_grid(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = orn.load("critters-ect")
    own = model.info.grid
    assert own is not None
    assert own(None)(model.path) == own(1)(model.path) != own(2)(model.path)
    for words, grid in (
        ((), own(None)),
        (("--steps", 2), own(2)),
        (("--sampler", "auto"), own(None)),
        (("--sampler", "auto", "--steps", 2), own(2)),
        (("--evaluations", 2, "--sampler", "ddim"), own(2)),
        (("--resample", 2), grids.resample(own(None), 2)),
        (("--steps", 2, "--resample", 2), grids.resample(own(2), 2)),
        (("--grid", "karras", "--steps", 2), grids.karras(2)),
        (("--grid", "karras"), grids.karras(20)),
    ):
        result = drawn(capsys, "critters-ect", tmp_path, "--n", 1, *words)
        assert tuple(result["times"]) == grid(model.path), words


def test_a_louder_start_and_fewer_steps(capsys: pytest.CaptureFixture[str], run: TrainedModel, tmp_path: Path) -> None:
    words = ("--n", 3, "--steps", 5, "--batch", 2, "--strict", "--sampler", "ddpm", "--label", 1)
    result = drawn(capsys, run.folder, tmp_path / "out", *words, "--prior-scale", 1.5, "--skip-steps", 2)
    cond = run.cond(labels=[1] * 3)
    how: dict[str, Any] = {"steps": 5, "sampler": "ddpm", "cond": cond, "strict": True, "skip_steps": 2}
    same(result, sampling.sample(run.denoiser, 3, prior_scale=1.5, **how), tmp_path)
    assert (result["prior_scale"], result["skip_steps"], result["evaluations"]) == (1.5, 2, 3)
    assert not torch.equal(
        *(sampling.sample(run.denoiser, 3, prior_scale=prior_scale, **how) for prior_scale in (1.0, 1.5))
    )
    refused(capsys, "2 of 2 steps cannot be skipped", run.folder, "--steps", 2, "--skip-steps", 2, "--label", 1)


def test_images_between_images_at_every_batch(
    capsys: pytest.CaptureFixture[str], run: TrainedModel, tmp_path: Path
) -> None:
    words = ("--n", 5, "--steps", 2, "--seed", 3, "--batch", 2, "--strict", "--label", 1)
    result = drawn(capsys, run.folder, tmp_path / "out", *words, "--interpolate", 7, 2, "--first", 1)
    cond = run.cond(labels=[1] * 5)
    noise = Between(a=7, b=2, frames=5, seed=3)
    same(result, sampling.sample(run.denoiser, 5, steps=2, noise=noise, cond=cond, strict=True), tmp_path, first=1)
    assert result["interpolate"] == [7, 2]
    assert not {"resample_level", "keep_noise", "posterior"} & result.keys()


def test_variations_of_a_level_and_its_posterior(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from dataclasses import replace

    model = orn.load("critters-udpm").denoiser
    words = ("--n", 3, "--batch", 2, "--strict", "--seed", 5, "--first", 8)
    result = drawn(capsys, "critters-udpm", tmp_path / "a", *words, "--resample-level", 2, "--keep-noise", 0.6)
    noise = Varied(image=8, key=0, keep=0.6, seed=5)
    same(result, sampling.sample(model, 3, noise=noise, strict=True), tmp_path, first=8)
    assert (result["resample_level"], result["keep_noise"]) == (2, 0.6)
    assert drawn(capsys, "critters-udpm", tmp_path / "a", "--n", 1, "--resample-level", 1)["keep_noise"] == 0.0
    exact, published = (replace(model, path=replace(model.path, rule=rule)) for rule in ("exact", "published"))
    for rule, ruled in (("exact", exact), ("published", published)):
        result = drawn(capsys, "critters-udpm", tmp_path / rule, *words, "--posterior", rule)
        same(result, sampling.sample(ruled, 3, first=8, seed=5, strict=True), tmp_path, first=8)
        assert result["posterior"] == rule
    assert (tmp_path / "exact" / "000008.png").read_bytes() != (tmp_path / "published" / "000008.png").read_bytes()


@pytest.mark.parametrize(("n", "columns", "wide"), [(1, 0, 1), (3, 0, 2), (7, 0, 3), (5, 2, 2), (3, 8, 3)])
def test_the_overview_shows_the_images_in_order(
    capsys: pytest.CaptureFixture[str], run: TrainedModel, tmp_path: Path, n: int, columns: int, wide: int
) -> None:
    words = ("--n", n, "--steps", 1, "--batch", 2, "--strict", "--label", 0, 1, "--columns", columns)
    result = drawn(capsys, run.folder, tmp_path / "out", *words)
    cond = run.cond(labels=[i % 2 for i in range(n)])
    images = sampling.sample(run.denoiser, n, steps=1, cond=cond, strict=True)
    assert result["grid"] == str(tmp_path / "out" / "grid.png")
    assert Path(result["grid"]).read_bytes() == save_grid(images, tmp_path / "grid.png", wide).read_bytes()


def test_the_overview_ends_after_256_images(capsys: pytest.CaptureFixture[str], tiny_run: Path, tmp_path: Path) -> None:
    words = ("--n", 258, "--steps", 1, "--batch", 100, "--label", 0, "--out", tmp_path)
    status, out, err = call(capsys, tiny_run, *words)
    assert status == 0
    assert err == "100 of 258 images\n200 of 258 images\n258 of 258 images\n"
    assert re.fullmatch(rf"258 images, 1 evaluation each, \d+\.\d{{3}} s an image: {tmp_path}/grid.png\n", out)
    run = open_own(tiny_run)
    images = torch.cat([sampling.sample(run.denoiser, n, first=first, steps=1, cond=run.cond(labels=[0]))
                        for first, n in ((0, 100), (100, 100), (200, 58))])  # fmt: skip
    assert (tmp_path / "grid.png").read_bytes() == save_grid(images[:256], tmp_path / "g.png", 16).read_bytes()
    assert len(list(tmp_path.glob("0*.png"))) == 258


def test_the_sentence_names_evaluations_and_the_pace(
    capsys: pytest.CaptureFixture[str], run: TrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.perf_counter", itertools.count(10.0, 6.0).__next__)
    for words, said in ((("--n", 2, "--steps", 3), "2 images, 3 evaluations each, 3.000 s an image: "),
                        (("--n", 3, "--steps", 1), "3 images, 1 evaluation each, 2.000 s an image: ")):  # fmt: skip
        status, out, _ = call(capsys, run.folder, *words, "--label", 0, "--out", tmp_path)
        assert (status, out) == (0, f"{said}{tmp_path / 'grid.png'}\n")
    assert drawn(capsys, run.folder, tmp_path, "--n", 4, "--label", 0)["seconds_per_image"] == 1.5


def test_an_image_of_no_numbers_is_named_by_its_number(
    capsys: pytest.CaptureFixture[str], run: TrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[range] = []

    def spoiled(model: object, n: int, *, first: int, **how: object) -> torch.Tensor:
        calls.append(range(first, first + n))
        images = torch.zeros(n, 3, 16, 16)
        images[[i for i, number in enumerate(calls[-1]) if number in (8, 9)], 1, 2, 3] = torch.inf
        return images

    monkeypatch.setattr(sampling, "sample", spoiled)
    status, out, err = call(capsys, run.folder, "--n", 6, "--first", 5, "--batch", 2, "--label", 0, "--out", tmp_path)
    assert (status, out) == (2, "")
    assert err.startswith("2 of 6 images\nornstein: image 8 came out as no numbers: ")
    assert calls == [range(5, 7), range(7, 9)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000005.png", "000006.png"]


WRONG: Sequence[tuple[str, tuple[object, ...]]] = (
    ("--n must be at least 1, got 0", ("--n", 0)),
    ("--batch must be at least 1, got 0", ("--batch", 0)),
    ("--columns must be at least 0, got -1", ("--columns", -1)),
    ("--prior-scale must be positive, got 0", ("--prior-scale", 0)),
    ("--prior-scale must be a finite number, got inf", ("--prior-scale", "inf")),
    ("--prior-scale must be a finite number, got nan", ("--prior-scale", "nan")),
    ("--skip-steps must be at least 0, got -1", ("--skip-steps", -1)),
    ("--resample must be at least 1, got 0", ("--resample", 0)),
    ("give --interpolate or --resample-level, not both", ("--interpolate", 1, 2, "--resample-level", 1)),
    (r"--keep-noise 0\.5 belongs to --resample-level", ("--keep-noise", 0.5)),
    ("VP has no levels", ("--resample-level", 1)),
    ("leave --resample out", ("--resample-level", 1, "--resample", 2)),
    ("--posterior exact: a VP has one alone", ("--posterior", "exact")),
    ("at least 2 frames", ("--interpolate", 1, 2, "--n", 1)),
    ("give --steps or --evaluations, not both", ("--steps", 3, "--evaluations", 3, "--label", 0)),
    ("not enough for one step", ("--evaluations", 2, "--resample", 3, "--sampler", "auto", "--label", 0)),
    (r"unknown label 'criter'", ("--label", "criter")),
    ("takes no captions", ("--caption", "a critter")),
    ("is a file: name a folder", ("--out", __file__)),
)


@pytest.mark.parametrize(("words", "args"), WRONG, ids=lambda value: value[:30] if isinstance(value, str) else "")
def test_what_does_not_fit_is_refused(
    capsys: pytest.CaptureFixture[str], bold_run: Path, words: str, args: tuple[object, ...]
) -> None:
    refused(capsys, words, bold_run, *args)
