"""What `ornstein eval` understands by its words, which images it takes, and how it writes single images down."""

from __future__ import annotations

import json
import math
import re
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ornstein import metrics, sampling
from ornstein.cli.eval_args import EvalArgs
from ornstein.cli.image_sets import ImageSet, Sampling, open_data, open_measured, open_samples
from ornstein.cli.main import main, parse
from ornstein.cli.request import INSISTING, ON_IMAGES, SINGLE, read_request, weights_of
from ornstein.cli.set_statistics import Evaluators, compute_statistics, load_evaluators, write_images
from ornstein.data import UnreadableError
from ornstein.data.base import Example
from ornstein.errors import ConfigError, DataError, UsageError


def request(**words: Any):
    return read_request(EvalArgs(what="a", **words))


def test_tables_of_metrics() -> None:
    assert INSISTING == {"fid": "fd", "sfid": "sfd"}
    assert ON_IMAGES == ("diversity", "clip", "retrieval")
    assert SINGLE == ("avgknn", "lof", "rarity", "clip")


def test_metrics_are_read_in_order_and_once() -> None:
    plain = request()
    assert (plain.metrics, plain.insisting, dict(plain.ks)) == (("fd", "kid"), (), {})
    assert (plain.where, plain.store, plain.compares) == ("critters", False, True)
    found = request(metrics=" FID, sfid,is,,fd , diversity,clip")
    assert found.metrics == ("fd", "sfd", "is", "diversity", "clip")
    assert found.insisting == ("fid", "sfid")
    assert found.on_statistics == found.measured == ("fd", "sfd", "is")
    alone = request(metrics="is,diversity")
    assert (alone.on_statistics, alone.compares) == (("is",), False)
    assert dict(request(metrics="prdc,avgknn,lof,rarity").ks) == {
        "precision": 3,
        "density": 5,
        "avgknn": 5,
        "lof": 20,
        "rarity": 3,
    }
    assert set(request(metrics="prdc,lof", k=7).ks.values()) == {7}


def test_where_the_data_come_from(tmp_path: Path) -> None:
    file = tmp_path / "r.safetensors"
    assert request(other="b").where == request(reference="b").where == "b"
    assert request(reference_statistics=file).where is None
    stored = request(statistics_out=file, metrics="fd,is,prdc")
    assert (stored.where, stored.store, stored.measured, stored.compares) == (None, True, ("is",), False)
    assert stored.on_statistics == ("fd", "is", "prdc")
    both = request(statistics_out=file, other="b")
    assert (both.where, both.store, both.compares) == ("b", False, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"k": 0, "metrics": "prdc"}, "k must be at least 1, got 0"),
        ({"metrics": "zzz"}, r"unknown metric 'zzz': choose from fd, sfd, .*rarity, diversity, clip, retrieval$"),
        ({"metrics": "sfdd"}, "unknown metric 'sfdd': did you mean sfd"),
        ({"metrics": "diversty"}, "did you mean diversity"),
        ({"metrics": "sfidd"}, "did you mean sfid"),
    ],
)
def test_edges_of_the_words(words: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        request(**words)


@pytest.mark.parametrize(("option", "least"), [("n", 2), ("batch", 1), ("size", 4), ("k", 1)])
def test_numbers_at_their_least(option: str, least: int) -> None:
    def read(value: int) -> EvalArgs:
        return parse(EvalArgs, "ornstein eval", ["a", f"--{option}", str(value)])

    with pytest.raises(UsageError, match=rf"^--{option} must be at least {least}, got {least - 1}$"):
        read(least - 1)
    assert getattr(read(least), option) == least
    assert read_request(read(least)).metrics == ("fd", "kid")


def test_counts_at_their_edges() -> None:
    def small(metrics: str, ours: int, theirs: int | None, **words: Any) -> str:
        try:
            request(metrics=metrics, **words).check_counts(ours, theirs)
        except UsageError as error:
            return str(error)
        return ""

    assert small("is", 10, None) == ""
    assert "needs 10 images, got 9" in small("is", 9, None)
    assert small("fd", 2, 2) == ""
    assert "at least 2 images on each side, got 1" in small("fd", 1, 5)
    assert "at least 2 images on each side, got 1" in small("fd", 5, 1)
    assert small("clip", 1, None) == ""
    assert "got 1" in small("diversity", 1, None)
    assert "got 1" in small("fd", 1, None, statistics_out=Path("x"))
    # Precision takes neighbours in both sets, the others in the data.
    assert small("prdc", 6, 6) == small("prdc", 4, 6) == small("lof", 2, 21) == ""
    assert "k = 3 neighbours (precision) need at least 4 images, got 3" in small("prdc", 3, 6)
    assert "k = 5 neighbours (density) need at least 6 images, got 5" in small("prdc", 9, 5)
    assert "k = 20 neighbours (lof) need at least 21 images, got 20" in small("lof", 99, 20)
    assert small("avgknn", 2, 8, k=7) == ""
    assert "k = 8 neighbours (avgknn)" in small("avgknn", 20, 8, k=8)


def test_weights_for_the_networks_that_load_some() -> None:
    assert weights_of(None, ["inception"]) == {}
    assert weights_of("p", ["lite0", "dinov2"]) == {"dinov2": "p"}
    assert weights_of("a=b", ["inception"]) == {"inception": "a=b"}
    assert weights_of("inception=a/b,dinov2=c", ["lite0", "inception", "dinov2"]) == {"inception": "a/b", "dinov2": "c"}
    assert weights_of("p", ["lite0"]) == {"lite0": "p"}  # refused where the network is loaded
    for wrong in ("p", "inception=a,other=b", "inception=,dinov2=b"):
        with pytest.raises(ConfigError, match="NAME=PATH for inception and dinov2"):
            weights_of(wrong, ["inception", "dinov2"])


def pictures(folder: Path, *sizes: tuple[int, int]) -> Path:
    folder.mkdir()
    for i, (height, width) in enumerate(sizes):
        shade = np.full((height, width, 3), 20 * i, np.uint8)
        shade[: height // 2, :, i % 3] = 255
        Image.fromarray(shade).save(folder / f"{i}.png")
    return folder


def test_the_resolution_is_that_of_the_measured_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    even = pictures(tmp_path / "even", (8, 12), (8, 12))
    mixed = pictures(tmp_path / "mixed", (10, 12), (8, 8), (9, 30))
    side = open_measured(str(even), 9, None, "auto")
    assert (side.resolution, side.count, side.about["preprocessing"]) == ((8, 12), 2, "as it is")
    assert side.images[0].image.shape == (3, 8, 12)
    assert capsys.readouterr().err == ""
    sized = open_measured(str(even), 9, 6, "auto")
    assert (sized.resolution, sized.about["preprocessing"]) == (
        (6, 6),
        "centre square, bicubic with antialiasing, 6 px",
    )
    brought = open_measured(str(mixed), 9, None, "auto")
    assert brought.resolution == (10, 10)
    assert capsys.readouterr().err == f"{mixed} holds images of 3 resolutions: brought to 10×10\n"
    drawn = open_measured("critters:3", 9, None, "auto")
    assert (drawn.resolution, drawn.count, drawn.about["preprocessing"]) == ((64, 64), 3, "as for training, 64 px")
    assert open_measured("critters:3", 2, 16, "auto").resolution == (16, 16)
    with pytest.raises(UsageError, match="is not of 8×12 pixels throughout"):
        open_data(str(mixed), 9, (8, 12), "auto")


def test_a_part_of_the_data_is_spread_over_all_of_it(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "all", *[(8, 8)] * 7)
    for how in ("auto", "lanczos"):
        for target, way in (((8, 8), "as it is"), ((4, 4), "for training, 4 px" if how == "lanczos" else "bicubic")):
            side = open_data(str(folder), 3, target, how)  # type: ignore[arg-type]
            assert way in side.about["preprocessing"]
            assert [side.images[i].name for i in range(3)] == ["0.png", "2.png", "4.png"]
            assert side.count == 3
            assert side.about["source"] == side.name == str(folder)
            assert side.about["source fingerprint"] == side.source.fingerprint
    whole = open_data(str(folder), 7, (8, 8), "auto")
    assert whole.about["source fingerprint"] != side.about["source fingerprint"]
    # Drawings are in no order of classes: the first ones are as good.
    critters = open_data("critters:9", 3, (16, 16), "auto")
    assert [critters.images[i].name for i in range(critters.count)] == ["critters/0", "critters/1", "critters/2"]


def model_of(condition: str, classes: tuple[str, ...] = ()) -> Any:
    return SimpleNamespace(folder=Path("runs/x"), weights=Path("w/ema.safetensors"), condition=condition,
                           classes=classes, denoiser="denoiser", picture=(3, 8, 10),
                           cond=lambda **given: given)  # fmt: skip


class Source:
    """Labelled examples, some of which cannot be read."""

    name, classes = "somewhere", ("x", "y", "z")

    def __init__(self, broken: tuple[int, ...] = (), captions: bool = True, silent: tuple[int, ...] = ()) -> None:
        self.broken, self.captions, self.silent = broken, captions, silent

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Example:
        if index in self.broken:
            raise UnreadableError(f"number {index}", "damaged")
        caption = f"caption {index}" if self.captions and index not in self.silent else ""
        return Example(image=torch.zeros(3, 2, 2, dtype=torch.uint8), label=index % 4 - 1, caption=caption, name="")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []

    def sample(model: object, n: int, **how: Any) -> torch.Tensor:
        made.append({"model": model, "n": n, **how})
        shades = torch.arange(how["first"], how["first"] + n).reshape(-1, 1, 1, 1)
        return (shades / 127.5 - 1.0).expand(n, 3, 8, 10)

    monkeypatch.setattr(sampling, "sample", sample)
    return made


HOW = Sampling(sampler="heun", steps=7, seed=3, batch=3)


def test_samples_of_a_run_batch_by_batch(calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    side = open_samples(model_of("none"), 7, HOW, None)
    assert (side.name, side.count, side.resolution, side.source) == ("runs/x", 7, (8, 10), None)
    assert side.about == {
        "source": "runs/x",
        "weights": "ema.safetensors",
        "preprocessing": "samples rounded to bytes",
        "sampler": "heun",
        "steps": "7",
        "seed": "3",
        "condition": "none",
    }
    found = list(side.images)
    common = {"model": "denoiser", "sampler": "heun", "steps": 7, "seed": 3, "cond": None}
    assert calls == [{**common, "n": n, "first": first} for first, n in ((0, 3), (3, 3), (6, 1))]
    assert [one.name for one in found] == [f"{i:06d}" for i in range(7)]
    assert [int(one.image[0, 0, 0]) for one in found] == list(range(7))
    assert capsys.readouterr().err == "sampled 3 of 7\nsampled 6 of 7\nsampled 7 of 7\n"
    # Data beside a run without conditions tell it nothing.
    assert open_samples(model_of("none"), 7, HOW, Source()).about["condition"] == "none"  # type: ignore[arg-type]


def test_labels_and_captions_are_those_of_the_data_in_order(calls: list[dict[str, Any]]) -> None:
    side = open_samples(model_of("label", ("x", "y", "z")), 7, HOW, Source(broken=(2,)))  # type: ignore[arg-type]
    assert side.about["condition"] == "the labels of somewhere"
    found = list(side.images)
    # Numbers ⌊5 i / 7⌋ = 0 0 1 2 2 3 4; number 2 cannot be read, so 3 stands for it. Labels are −1 0 1 2 −1.
    labels = ["", "", "x", "z", "z", "z", ""]
    assert [call["cond"]["labels"] for call in calls] == [labels[:3], labels[3:6], labels[6:]]
    assert {one.caption for one in found} == {""}
    calls.clear()
    side = open_samples(model_of("text"), 4, HOW, Source(broken=(3, 4)))  # type: ignore[arg-type]
    assert side.about["condition"] == "the captions of somewhere"
    captions = ["caption 0", "caption 1", "caption 2", "caption 0"]  # after the last the first
    assert [one.caption for one in side.images] == captions
    assert [call["cond"]["captions"] for call in calls] == [captions[:3], captions[3:]]


def test_data_that_cannot_say_the_condition_are_refused(calls: list[dict[str, Any]]) -> None:
    with pytest.raises(UsageError, match="is conditional: name the data whose labels it is given"):
        open_samples(model_of("label", ("x",)), 2, HOW, None)
    for bare in (Source(captions=False), Source(silent=(2,))):  # one without is enough
        with pytest.raises(UsageError, match="takes captions and somewhere lacks some"):
            list(open_samples(model_of("text"), 2, HOW, bare).images)
        bare.classes = ()
        with pytest.raises(UsageError, match="takes labels and somewhere has none"):
            open_samples(model_of("label", ("x",)), 2, HOW, bare)
        with pytest.raises(UsageError, match="not one image of somewhere can be read"):
            list(open_samples(model_of("text"), 2, HOW, Source(broken=tuple(range(5)))).images)  # type: ignore[arg-type]
        assert not calls


def test_single_images_are_rows_with_gaps(tmp_path: Path) -> None:
    columns = {"name": {0: "a,b", 2: "ü"}, "LOF": {2: 1.5, 0: math.nan}, "rarity": {10: 0.25, 2: math.nan}}
    write_images(tmp_path / "t.csv", columns)
    assert (tmp_path / "t.csv").read_bytes().decode() == 'index,name,LOF,rarity\n0,"a,b",,\n2,ü,1.5,\n10,,,0.25\n'
    write_images(tmp_path / "t.jsonl", columns)
    assert [json.loads(line) for line in (tmp_path / "t.jsonl").read_text("utf-8").splitlines()] == [
        {"index": 0, "name": "a,b", "LOF": None, "rarity": None},
        {"index": 2, "name": "ü", "LOF": 1.5, "rarity": None},
        {"index": 10, "name": None, "LOF": None, "rarity": 0.25},
    ]
    assert "ü" in (tmp_path / "t.jsonl").read_text("utf-8")
    with pytest.raises(DataError, match=r"--per-image .*t\.csv.x cannot be written \(file exists\)"):
        write_images(tmp_path / "t.csv" / "x", columns)


def test_every_instrument_sees_every_image_once() -> None:
    images = [torch.full((3, 8, 8), 6 * i, dtype=torch.uint8) for i in range(40)]

    class Meter:
        name, width, heads = "meter", 3, ("pooled",)

        def outputs(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"pooled": batch.float().mean((2, 3))}

    side = ImageSet(name="s", images=[Example(image=image, label=-1, caption="", name=f"n{i}")
                                  for i, image in enumerate(images)], count=40, resolution=(8, 8))  # fmt: skip
    meter: Any = Meter()
    found = compute_statistics(side, Evaluators(features=(meter,)), (), names=True)
    assert (found.census.count, found.statistics[0].count) == (40, 40)
    assert found.images == {"name": {i: f"n{i}" for i in range(40)}}
    assert found.numbers == {}
    assert compute_statistics(side, Evaluators(), ()).images == {"name": {}}
    assert found.statistics[0].moments.mean.mean() == pytest.approx(6 * 19.5)


def test_networks_are_loaded_for_what_needs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None, str]] = []

    def features(name: str, weights: str | None = None, device: str = "cpu") -> Any:
        asked.append((name, weights, device))
        return SimpleNamespace(name=f"{name}!")

    monkeypatch.setattr(metrics, "features", features)
    args = EvalArgs(what="a", metrics="fd,is", features="lite0, dinov2", weights="w")
    found = load_evaluators(read_request(args), args)
    assert [one.name for one in found.features] == ["lite0!", "dinov2!"]
    assert (found.distance, found.clip, found.device) == (None, None, "cpu")
    assert asked == [("lite0", None, "cpu"), ("dinov2", "w", "cpu")]
    args = EvalArgs(what="a", metrics="diversity")
    found = load_evaluators(read_request(args), args)
    assert found.features == ()
    assert found.distance is not None
    assert found.distance.name == "lite0"
    for features_, metric in (("lite0,lite0", "fd"), (",", "fd")):
        args = EvalArgs(what="a", metrics=metric, features=features_)
        with pytest.raises(ConfigError, match="at most once"):
            load_evaluators(read_request(args), args)
    args = EvalArgs(what="a", metrics="sfid")
    with pytest.raises(UsageError, match=r"sfid is defined on .* not on lite0!: .* or ask for sfd"):
        load_evaluators(read_request(args), args)


@pytest.mark.parametrize(
    ("model", "words", "sampler", "steps"),
    [
        ("tiny", (), "dpmpp-2m", 20),
        ("tiny", ("--steps", "3", "--sampler", "heun"), "heun", 3),
        ("critters-ect", (), "dpmpp-2m", 1),
        ("critters-ect", ("--steps", "2"), "dpmpp-2m", 2),
        ("critters-udpm", (), "ancestral", 3),
    ],
)
def test_a_run_is_sampled_as_usual_for_it(
    capsys: pytest.CaptureFixture[str],
    tiny_run: Path,
    calls: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    words: tuple[str, ...],
    sampler: str,
    steps: int,
) -> None:
    size = {"tiny": 16, "critters-ect": 64, "critters-udpm": 32}[model]
    shown = sampling.sample

    def sample(model: Any, n: int, **how: Any) -> torch.Tensor:
        shown(model, n, **how)
        return torch.rand(n, 3, size, size)

    monkeypatch.setattr(sampling, "sample", sample)
    what = str(tiny_run) if model == "tiny" else model
    args = ("eval", what, "critters:8", "--metrics", "diversity", "--n", "5", "--seed", "7", "--batch", "4", *words)
    assert main(args) == 0
    out, err = capsys.readouterr()
    told = {line.split()[0]: line.split(None, 1)[1] for line in out.splitlines()}
    assert [(call["sampler"], call["steps"], call["seed"]) for call in calls] == [(sampler, steps, 7)] * 2
    assert (told["sampler"], told["steps"], told["seed"]) == (sampler, str(steps), "7")
    assert told["condition"] == ("the labels of critters:8" if model == "tiny" else "none")
    assert (told["what"], told["resolution"], told["images"]) == (what, f"[{size}, {size}]", "[5]")
    assert (
        re.search(rf"^looking at 5 images of {re.escape(str(calls and what))}", err, re.MULTILINE) or "looking" in err
    )


def test_a_size_beside_a_run_must_be_its_own(capsys: pytest.CaptureFixture[str], tiny_run: Path) -> None:
    assert main(["eval", str(tiny_run), "critters:8", "--size", "32", "--n", "4"]) == 2
    assert "--size 32 differs from the run's 16" in capsys.readouterr().err
    assert main(["eval", str(tiny_run), "critters:8", "--metrics", "clip", "--n", "4"]) == 2
    assert "the metric clip compares with captions" in capsys.readouterr().err


def test_a_reference_of_other_features_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Mean:
        width, heads = 3, ("pooled",)

        def __init__(self, name: str) -> None:
            self.name = name

        def outputs(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"pooled": images.float().mean((2, 3))}

    names = iter("aab")
    monkeypatch.setattr(metrics, "features", lambda name, weights=None, device="cpu": Mean(next(names)))
    folder, kept = pictures(tmp_path / "p", *[(8, 8)] * 4), tmp_path / "r.safetensors"
    assert main(["eval", str(folder), "--metrics", "fd", "--statistics-out", str(kept)]) == 0
    assert main(["eval", str(folder), "--metrics", "fd", "--reference-statistics", str(kept), "--json"]) == 0
    found = capsys.readouterr().out
    tree = json.loads(found[found.index("{") :])
    assert (tree["reference"], tree["features"], tree["images"]) == (str(folder), "a", [4, 4])
    assert tree["FD-a"] == pytest.approx(0.0, abs=1e-9)
    assert (tree["reference_statistics"], tree["skipped"]) == (str(kept), 0)
    assert any("the same images" in caution for caution in tree["cautions"])
    assert main(["eval", str(folder), "--metrics", "fd", "--reference-statistics", str(kept)]) == 2
    assert "was made with a, not with b: make one with it" in capsys.readouterr().err


def test_what_guides_say_is_said_once_and_other_warnings_pass(capsys: pytest.CaptureFixture[str]) -> None:
    from ornstein.cli.guides import guide_warnings_once
    from ornstein.guidance import GuideWarning

    with warnings.catch_warnings(record=True) as log:
        warnings.simplefilter("always")
        with guide_warnings_once():
            for message, category in (
                ("a", GuideWarning),
                ("a", GuideWarning),
                ("b", GuideWarning),
                ("c", UserWarning),
            ):
                warnings.warn(message, category, stacklevel=1)
        warnings.warn("d", GuideWarning, stacklevel=1)
    assert capsys.readouterr().err == "a\nb\n"
    assert [str(one.message) for one in log] == ["c", "d"]
