"""The sentences and documents of tune-steps, score, train, train-guide, guides and eval of a codec, in numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import ornstein as orn
from ornstein import guides, metrics, rarity, runs, sampling, training
from ornstein.cli import tune_steps
from ornstein.cli.main import main
from ornstein.cli.tune_steps import Search, TuneStepsArgs, distance_to_data
from ornstein.data import open_source, to_uint8
from ornstein.guides.own import training as guide_training
from ornstein.metrics.frechet import frechet_distance
from ornstein.metrics.reconstruction import Reconstruction
from ornstein.rarity import Recipe
from ornstein.runs import export, open_own


def call(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    status = main([str(arg) for arg in args])
    return status, *capsys.readouterr()


# -------------------------------------------------------------------------------------------------------------- middle


def test_the_search_tries_what_it_says() -> None:
    """Candidates from below, then the middle towards the better neighbour; nothing twice; the next level lies below."""
    tried: list[tuple[float, ...]] = []

    def score(levels: tuple[float, ...]) -> float:
        tried.append(levels)
        return sum(abs(math.log(level / best)) for level, best in zip(levels, (0.9, 0.3), strict=False))

    search = Search(score=score, candidates=(2.0, 0.5, 0.125, 0.5), refine=2)
    found = search.find(2)
    # .5 is nearest to .9; of its neighbours .125 and 2 the latter is better, √(.5·2) = 1; between 1 and .5: √.5.
    half = math.sqrt(0.5)
    first = [(0.125,), (0.5,), (2.0,), (1.0,), (half,)]
    assert tried[:5] == first
    assert found[0] == 1.0
    # Below 1: .125 and .5, then √(.125·.5) = .25, then √(.25·.5).
    assert tried[5:] == [(1.0, level) for level in (0.125, 0.5, 0.25, math.sqrt(0.125))]
    assert found == (1.0, math.sqrt(0.125))
    assert search.tried == {levels: score(levels) for levels in tried[:9]}
    assert Search(score=lambda _: 0.0, candidates=(3.0,), refine=5).find(1) == (3.0,), "one level has no neighbour"
    assert Search(score=lambda _: 1.0, candidates=(3.0, 1.0)).refine == 0
    assert Search(score=lambda _: 1.0, candidates=(3.0, 1.0)).find(1) == (1.0,), "of equals the lowest"


@pytest.fixture
def ect(tmp_path: Path) -> Path:
    return export(open_own("critters-ect"), tmp_path / "ect")


def test_middle_keeps_and_says_the_levels(
    capsys: pytest.CaptureFixture[str], ect: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def distance(args: TuneStepsArgs, run: runs.TrainedModel, spec: object) -> Any:
        asked.append((args.reference, run.folder, spec is run.spec))
        return lambda levels: 100.0 + sum(abs(math.log(level / 0.7)) for level in levels) - 50.0 * len(levels)

    monkeypatch.setattr(tune_steps, "distance_to_data", distance)
    words = (ect, "--candidates", 0.5, 1.0, "--refine", 1, "--evaluations", 3, "--n", 7, "--reference", "critters:9")
    status, out, _ = call(capsys, "tune-steps", *words)
    assert status == 0
    assert asked == [("critters:9", ect, True)]
    half = math.sqrt(0.5)
    best = abs(math.log(half / 0.7)) + abs(math.log(0.5 / 0.7))
    kept = ect / "sampling.json"
    assert out == f"0.707, 0.5: FD-lite0 {best:.4g}, 100 with one evaluation; {kept} keeps it\n"
    stored = json.loads(kept.read_text("utf-8"))
    status, out, _ = call(capsys, "tune-steps", *words, "--json", "--dry")
    found = json.loads(out)
    assert stored == {key: value for key, value in found.items() if key != "run"}
    assert found["run"] == str(ect)
    assert (found["reference"], found["features"], found["n"]) == ("critters:9", "lite0", 7)
    assert found["middle"] == [half, 0.5]
    assert (found["distance"], found["distance_of_one_evaluation"]) == (pytest.approx(best), 100.0)
    levels = [one["levels"] for one in found["tried"]]
    assert levels == sorted(levels)
    assert {tuple(one) for one in levels} == {(0.5,), (1.0,), (half,), (half, 0.5)}
    assert all(one["distance"] == pytest.approx(100 + sum(abs(math.log(x / 0.7)) for x in one["levels"])
                                                - 50 * len(one["levels"])) for one in found["tried"])  # fmt: skip
    kept.unlink()
    status, out, _ = call(capsys, "tune-steps", *words, "--dry")
    assert out == f"0.707, 0.5: FD-lite0 {best:.4g}, 100 with one evaluation\n"
    assert not kept.exists()


def test_edges_of_tune_steps(capsys: pytest.CaptureFixture[str], ect: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune_steps, "distance_to_data", lambda *_: lambda levels: float(len(levels)))
    for words, said in (
        (("--evaluations", 1), "--evaluations must be at least 2, got 1"),
        (("--refine", -1), "--refine must be at least 0, got -1"),
        (("--n", 1), "--n must be at least 2, got 1"),
        (("--batch", 0), "--batch must be at least 1, got 0"),
        (("--candidates", 0.002), "--candidates must lie between 0.002 and 80"),
        (("--candidates", 1.0, 80.0), "--candidates must lie between 0.002 and 80"),
    ):
        status, out, err = call(capsys, "tune-steps", ect, *words)
        assert (status, out) == (2, "")
        assert said in err
    assert (
        call(capsys, "tune-steps", ect, "--n", 2, "--batch", 1, "--refine", 0, "--candidates", 0.0021, "--dry")[0] == 0
    )
    status, _, err = call(capsys, "tune-steps", "critters", "--dry")
    assert (status, "critters is no consistency model" in err) == (2, True)
    status, _, err = call(capsys, "tune-steps", "critters-ect")
    assert (status, "comes with the library and stays as it is" in err) == (2, True)


def test_the_distance_of_levels_is_that_of_their_samples(
    ect: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Mean:
        name, width, heads = "mean", 3, ("pooled",)

        def outputs(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"pooled": images.float().mean((2, 3))}

    monkeypatch.setattr(metrics, "features", lambda name, weights=None, device="cpu": Mean())
    run: Any = open_own(ect)
    args = TuneStepsArgs(run=str(ect), reference="critters:6", n=4, seed=3, batch=3)
    score = distance_to_data(args, run, run.spec)
    real = metrics.statistics(open_source("critters:4", size=64), Mean())  # type: ignore[arg-type]
    for levels, name in (((), "one evaluation"), ((0.7, 0.2), "0.7, 0.2")):
        grid = run.spec.multistep(*levels)
        images = [sampling.sample(run.denoiser, n, sampler="ddim", grid=grid, seed=3, first=first)
                  for first, n in ((0, 3), (3, 1))]  # fmt: skip
        drawn = metrics.statistics(list(to_uint8(torch.cat(images))), Mean())  # type: ignore[arg-type]
        expected = frechet_distance(drawn.moments, real.moments)
        assert score(levels) == pytest.approx(expected, rel=1e-9)
        assert capsys.readouterr().err.endswith(f"\n{name}: {expected:.4g}\n")


# --------------------------------------------------------------------------------------------------------------- score


def test_score_says_the_mean_and_the_rarest(
    capsys: pytest.CaptureFixture[str], tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    scores = np.array([1.0, math.nan, 4.0, 2.0, 4.0, 3.0, 0.5, 0.25, 6.0, 0.125, 5.0, 0.0625, 7.5])

    class Table:
        def __init__(self) -> None:
            self.names, self.scores = [f"i{i}" for i in range(13)], scores
            self.header = {"distance": "squared-x", "draws": 2}

        def __len__(self) -> int:
            return 13

    def score(run: runs.TrainedModel, source: Any, out: Path, recipe: Recipe, **how: Any) -> Any:
        how.pop("progress")(3, 13)
        asked.append((run.folder, len(source), source[0].image.shape, out, recipe, how))
        return None if how["shard"] == (1, 4) else Table()

    monkeypatch.setattr(rarity, "score", score)
    out = tmp_path / "s.csv"
    words = ("score", tiny_run, "--out", out, "--log-snr", -2, "--draws", 3, "--seed", 9, "--distance", "squared")
    status, said, err = call(capsys, *words, "--batch", 5)
    assert (status, err) == (0, "3 of 13 images\n")
    mean = np.nanmean(scores)
    assert said == f"12 of 13 images (1 unreadable), mean squared-x {mean:.4g}, rarest i12, i8, i10: {out}\n"
    recipe = Recipe(log_snr=-2.0, distance="squared", draws=3, seed=9)
    assert asked == [(tiny_run, 64, (3, 16, 16), out, recipe, {"shard": (0, 1), "batch": 5})]
    status, said, _ = call(capsys, *words, "--json", "--data", "critters:7")
    assert asked[-1][1] == 7
    assert json.loads(said) == {
        "out": str(out), "shard": "0/1", "finished": True, "distance": "squared-x", "draws": 2, "mean": mean,
        "unreadable": 1, "rarest": [["i12", 7.5], ["i8", 6.0], ["i10", 5.0], ["i2", 4.0], ["i4", 4.0], ["i5", 3.0],
                                       ["i3", 2.0], ["i0", 1.0], ["i6", 0.5], ["i7", 0.25]],
    }  # fmt: skip
    status, said, err = call(capsys, *words, "--shard", "1/4")
    assert (status, err) == (0, "3 images of shard 1/4 (of 13)\n")
    assert said == f"shard 1/4 is done; {out} is written when all are, or by a call without --shard\n"
    assert asked[-1][-1]["shard"] == (1, 4)
    assert json.loads(call(capsys, *words, "--shard", "1/4", "--json")[1]) == {
        "out": str(out),
        "shard": "1/4",
        "finished": False,
    }
    scores[:] = math.nan
    assert json.loads(call(capsys, *words, "--json")[1])["mean"] is None
    for wrong in ("1", "1/", "/2", "a/2", "1/b", "-1/2"):
        status, _, err = call(capsys, *words, "--shard", wrong)
        assert (status, f"--shard {wrong!r} must read I/N" in err) == (2, True)


# --------------------------------------------------------------------------------------------------- train, train-guide


def test_train_says_what_came_of_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    summary = SimpleNamespace(out="runs/x", images=640, loss=0.123456, images_per_second=12.345, skipped_count=0,
                              finished_before=False)  # fmt: skip
    asked: list[Any] = []
    monkeypatch.setattr(training, "train", lambda config, **_: asked.append(config) or summary)
    words = ("train", "ddpm", "--data", "critters:8", "--out", tmp_path / "x", "--images", 99)
    assert call(capsys, *words) == (0, "640 images, loss 0.1235, 12.3 images/s: ornstein sample runs/x\n", "")
    assert (asked[0].data, asked[0].images) == ("critters:8", 99)
    summary.skipped_count = 3
    assert ", 3 files skipped: ornstein sample runs/x\n" in call(capsys, *words)[1]
    summary.finished_before = True
    assert call(capsys, *words)[1] == "runs/x has seen its 640 images already: raise --images or --minutes to go on\n"

    def diverged(config: object, **_: object) -> None:
        raise training.DivergedError("the loss is not finite")

    monkeypatch.setattr(training, "train", diverged)
    assert call(capsys, *words) == (1, "", "ornstein: the loss is not finite\n")


@pytest.mark.parametrize(("words", "noted"), [((), True), (("--init-from", "critters-64"), False)])
def test_ect_says_that_it_begins_from_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: Any, noted: bool
) -> None:
    summary = SimpleNamespace(out="x", images=1, loss=1.0, images_per_second=1.0, skipped_count=0, finished_before=True)
    monkeypatch.setattr(training, "train", lambda config, **_: summary)
    status, _, err = call(capsys, "train", "ect", "--data", "critters:8", "--out", tmp_path / "x", *words)
    assert (status, "begins with a random network" in err) == (0, noted)


def test_train_guide_says_how_good_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock, asked = iter([100.0, 103.0, 106.0, 106.0, 107.0, 107.0, 109.0]), []
    monkeypatch.setattr("ornstein.cli.train_guide.time.monotonic", lambda: next(clock))

    def train(how: Any, out: Path, report: Any, drawing: Any) -> dict[str, Any]:
        asked.append((how, out))
        for done in (511, 512, 513, 1024):
            drawing(done, 2048)
        report(30, 99, 2.0)  # three seconds after the start: too soon
        report(60, 99, 1.0)  # six seconds: said
        report(70, 99, 0.75)  # a second later
        report(99, 99, 0.5)  # the end is always said
        return {"quality": {"accuracy": 0.98765, "error": 12.5}, "parameters": 1234}

    monkeypatch.setattr(guide_training, "train", train)
    out = tmp_path / "g.safetensors"
    words = ("train-guide", "text", "--out", out, "--images", 99, "--drawings", 32, "--seed", 4)
    status, said, err = call(capsys, *words)
    assert status == 0
    assert said == f" 0.9877  accuracy\n12.5000  error\n1234 weights in {out}\n"
    assert err.splitlines() == [
        "512 of 2048 drawings",
        "1024 of 2048 drawings",
        "60 of 99 images, loss 1.0000, 10 images/s",
        "99 of 99 images, loss 0.5000, 11 images/s",
    ]
    (how, where) = asked[0]
    assert (how.kind, how.seed, how.images, how.drawings, how.start, where) == ("text", 4, 99, 32, "", out)


# -------------------------------------------------------------------------------------------------- guides, eval CODEC


def test_guides_says_which_network_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    listed = json.loads(call(capsys, "guides", "--json")[1])
    kinds = guides.kinds()
    assert [row["name"] for row in listed] == list(kinds)
    status, out, _ = call(capsys, "guides")
    assert status == 0
    words = iter(out.split())
    for row, kind in zip(listed, kinds.values(), strict=True):
        used = guides.source_of(kind)
        assert row["source"] == (None if used is None else used.name)
        assert row["weight"] == kind.weight_with(used)
        assert (row["takes"], row["what"], row["yields"], row["example"]) == (
            *(kind.takes, kind.what, kind.yields),
            kind.example,
        )
        assert row["sources"] == [
            {"name": one.name, "what": one.what, "weight": kind.weight_with(one), "missing": one.missing()}
            for one in kind.sources
        ]
        told = [f"{kind.name}:{kind.takes}[:WEIGHT]", kind.what, f"example: {kind.example}"]
        if row["classes"]:
            shown, more = row["classes"], len(row["classes"]) - 24
            long = more > 1
            end = f" and {more} more (all with --json)" if long else ""
            told.append("classes: " + ", ".join(shown[:24] if long else shown) + end)
        for one in row["sources"]:
            state = f"needs {one['missing']}" if one["missing"] else "ready here"
            state = "used here" if one["name"] == row["source"] and not one["missing"] else state
            told.append(f"{one['name']}: {one['what']}; weight {one['weight']:g} ({state})")
        if not row["sources"]:
            told.append(f"no network; weight {kind.weight:g}")
        for word in " ".join(told).split():
            assert next(words) == word, row["name"]
    assert next(words, None) is None
    assert max(map(len, out.splitlines())) <= 80, "long lines are folded"
    named = {row["name"]: row["classes"] for row in listed}
    assert named["segmentation"] == ["background", "body", "top", "eyes", "mouth"]
    assert named["text"] == named["colour"] == []


def test_a_codec_is_measured_by_its_reconstructions(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def reconstruction(codec: Any, source: Any, **how: Any) -> Reconstruction:
        asked.append((codec.factor, len(source), source[0].image.shape[-1], how["count"], how["batch"],
                      how["metric"].name, str(how["device"])))  # fmt: skip
        return Reconstruction(count=4, psnr=30.5, l1=0.25, perceptual=0.125, metric="lite0", latent_std=0.5)

    monkeypatch.setattr("ornstein.metrics.reconstruction.reconstruction", reconstruction)
    status, out, err = call(capsys, "eval", "critters-latents", "critters:6", "--n", 4, "--batch", 3, "--json")
    assert (status, err) == (0, "reconstructing 4 images of critters:6\n")
    assert asked == [(8, 6, 64, 4, 3, "lite0", "cpu")]
    assert json.loads(out) == {
        "what": "critters-latents",
        "reference": "critters:6",
        "count": 4,
        "psnr": 30.5,
        "l1": 0.25,
        "perceptual": 0.125,
        "metric": "lite0",
        "latent_std": 0.5,
        "resolution": [64, 64],
        "factor": 8,
        "channels": 8,
    }
    status, out, err = call(capsys, "eval", "critters-latents", "--reference", "critters:6", "--size", 32)
    assert (status, err) == (0, "reconstructing 6 images of critters:6\n")
    assert asked[-1] == (8, 6, 32, 1000, 16, "lite0", "cpu")
    rows = [line.split(None, 1) for line in out.splitlines()]
    assert rows[:4] == [["what", "critters-latents"], ["reference", "critters:6"], ["count", "4"], ["psnr", "30.5"]]
    assert all(line.index(line.split(None, 1)[1], 10) == 17 for line in out.splitlines())
    for words, said in (
        (("--n", 0), "--n must be at least 2, got 0"),
        (("--batch", 0), "--batch must be at least 1, got 0"),
        (("--size", 12), "--size 12 does not divide by 8"),
        (("critters", "--reference", "discs"), "the data is named twice, critters and --reference discs"),
    ):
        status, _, err = call(capsys, "eval", "critters-latents", *words)
        assert (status, said in err) == (2, True), err


def test_overlong_budgets_are_refused_before_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert orn.load("critters-udpm").shape == (3, 32, 32)
    status, _, err = call(capsys, "sample", "critters-udpm", "--evaluations", 2)
    assert (status, err.startswith("ornstein: ")) == (2, True)
