"""`ornstein eval` on two folders, on runs, with references and tables; every refusal in one line, before the work."""

import csv
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ornstein import metrics
from ornstein.cli.main import main
from ornstein.data import open_source
from ornstein.metrics import sets


class Tiny:
    """A random projection in place of EfficientNet-lite0, which tests/metrics measures with: much faster."""

    name, width, heads = "tiny", 12, ("pooled", "spatial", "classes")

    def outputs(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        draw = torch.Generator().manual_seed(0)
        x = torch.nn.functional.adaptive_avg_pool2d(images.float() / 255.0, 4).flatten(1)
        return {name: x @ torch.randn(48, 12, generator=draw) for name in self.heads}

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return self.outputs(images)["pooled"]


@pytest.fixture(scope="module", autouse=True)
def _tiny() -> Iterator[None]:
    real = metrics.features
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            metrics,
            "features",
            lambda name, weights=None, device="cpu": (
                Tiny() if (name, weights) == ("lite0", None) else real(name, weights, device)
            ),
        )
        yield


def call(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    status = main(["eval", *map(str, args)])
    out, err = capsys.readouterr()
    return status, out, err


def result(capsys: pytest.CaptureFixture[str], *args: object) -> dict:
    status, out, err = call(capsys, *args, "--json")
    assert status == 0, err
    return json.loads(out)


def pictures(folder: Path, n: int, seed: int = 0, side: tuple[int, int] = (16, 16), suffix: str = ".png") -> Path:
    """Coloured discs on coloured ground: enough for a network to see differences."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(seed)
    height, width = side
    y, x = np.mgrid[:height, :width]
    for i in range(n):
        ground, disc = draw.integers(0, 256, (2, 3))
        cy, cx, r = draw.uniform(0, height), draw.uniform(0, width), draw.uniform(3, height / 2)
        inside = ((y - cy) ** 2 + (x - cx) ** 2 <= r * r)[..., None]
        Image.fromarray(np.where(inside, disc, ground).astype(np.uint8)).save(folder / f"{i:04d}{suffix}")
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    home = tmp_path_factory.mktemp("folders")
    return pictures(home / "a", 24, 1), pictures(home / "b", 30, 2)


EVERYTHING = "fd,sfd,kid,is,prdc,avgknn,lof,rarity,diversity"
NUMBERS = {
    *("FD-tiny", "sFD-tiny", "KID-tiny", "IS-tiny", "precision-tiny", "recall-tiny", "density-tiny"),
    *("coverage-tiny", "AvgkNN-tiny", "LOF-tiny", "rarity-tiny", "rarity-tiny undefined", "diversity-lite0"),
}


@pytest.fixture(scope="module")
def whole(two: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path, Path]:
    """Everything about the two folders, with a table and a reference."""
    out = tmp_path_factory.mktemp("out")
    capture: list[str] = []
    write, sys.stdout.write = sys.stdout.write, capture.append  # type: ignore[method-assign]
    try:
        table, reference = out / "t.csv", out / "b.safetensors"
        args = ["--metrics", EVERYTHING, "--per-image", table, "--statistics-out", reference, "--json"]
        assert main(["eval", *map(str, (*two, *args))]) == 0
    finally:
        sys.stdout.write = write  # type: ignore[method-assign]
    return json.loads("".join(capture)), table, reference


def test_any_two_folders(whole: tuple[dict, Path, Path], two: tuple[Path, Path]) -> None:
    found, _, _ = whole
    assert found.keys() >= NUMBERS
    assert not {"FID", "sFID", "KID", "IS"} & found.keys(), "only Inception makes them"
    assert (found["images"], found["resolution"], found["skipped"]) == ([24, 30], [16, 16], 0)
    assert found["preprocessing"] == ["as it is", "as it is"]
    assert found["k"] == {"precision": 3, "density": 5, "avgknn": 5, "lof": 20, "rarity": 3}
    assert (found["what"], found["reference"]) == tuple(map(str, two))
    assert "cautions" not in found


def test_the_same_again_and_for_any_batch(
    capsys: pytest.CaptureFixture[str], whole: tuple[dict, Path, Path], two: tuple[Path, Path]
) -> None:
    again = result(capsys, two[0], "--reference", two[1], "--metrics", "fd,prdc,rarity", "--batch", 5)
    assert all(again[name] == value for name, value in whole[0].items() if name in again and name in NUMBERS)
    assert again["fingerprints"] == whole[0]["fingerprints"]


def test_the_table_of_single_images(whole: tuple[dict, Path, Path]) -> None:
    found, table, _ = whole
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["name"] for row in rows] == [f"{i:04d}.png" for i in range(24)]
    assert list(rows[0]) == ["index", "name", "AvgkNN-tiny", "LOF-tiny", "rarity-tiny"]
    assert np.mean([float(row["AvgkNN-tiny"]) for row in rows]) == pytest.approx(found["AvgkNN-tiny"], rel=1e-12)
    assert np.mean([float(row["LOF-tiny"]) for row in rows]) == pytest.approx(found["LOF-tiny"], rel=1e-12)
    defined = [float(row["rarity-tiny"]) for row in rows if row["rarity-tiny"]]
    assert 1 - len(defined) / 24 == pytest.approx(found["rarity-tiny undefined"])


def test_a_reference_stands_for_the_data(
    capsys: pytest.CaptureFixture[str], whole: tuple[dict, Path, Path], two: tuple[Path, Path], tmp_path: Path
) -> None:
    found, _, reference = whole
    some = "fd,sfd,kid,prdc,rarity"
    lines = tmp_path / "t.jsonl"
    again = result(capsys, two[0], "--reference-statistics", reference, "--metrics", some, "--per-image", lines)
    assert all(again[name] == found[name] for name in NUMBERS & again.keys())
    assert again["reference"] == str(two[1])
    assert len([json.loads(line) for line in lines.read_text().splitlines()]) == 24
    assert result(capsys, two[0], two[1], "--reference-statistics", reference)["FD-tiny"] == found["FD-tiny"]
    about = sets.read_statistics(reference)[0].about
    assert about["source"] == str(two[1])
    assert {"source fingerprint", "preprocessing"} <= about.keys()


def test_one_set_alone_becomes_a_reference(
    capsys: pytest.CaptureFixture[str], whole: tuple[dict, Path, Path], two: tuple[Path, Path], tmp_path: Path
) -> None:
    stored = tmp_path / "new" / "b.safetensors"
    found = result(capsys, two[1], "--statistics-out", stored, "--metrics", "fd,kid,is,prdc")
    assert found["images"] == [30]
    assert {"IS-tiny"} == NUMBERS & found.keys(), "nothing is compared"
    again = result(capsys, two[0], "--reference-statistics", stored, "--metrics", "fd,prdc")
    assert all(again[name] == whole[0][name] for name in NUMBERS & again.keys())


def test_one_set_alone_where_no_metric_compares(capsys: pytest.CaptureFixture[str], two: tuple[Path, Path]) -> None:
    found = result(capsys, two[0], "--metrics", "is,diversity")
    assert (found["images"], found["reference"]) == ([24], None)
    assert 1.0 <= found["IS-tiny"] < 24


def test_wrong_references_are_refused(
    capsys: pytest.CaptureFixture[str], whole: tuple[dict, Path, Path], two: tuple[Path, Path], tmp_path: Path
) -> None:
    _, _, reference = whole
    larger = pictures(tmp_path / "larger", 12, 5, (24, 24))
    cubic = tmp_path / "cubic.safetensors"
    assert call(capsys, larger, "--size", 16, "--statistics-out", cubic)[0] == 0
    bare = tmp_path / "bare.safetensors"
    assert call(capsys, two[1], "--statistics-out", bare)[0] == 0
    damaged = tmp_path / "damaged"
    damaged.write_bytes(reference.read_bytes()[:-7])
    for args, words in (
        ((larger, "--reference-statistics", reference), "is of 16×16 pixels and .* of 24×24"),
        ((two[0], two[0], "--reference-statistics", reference), "was not made from these 24 images"),
        ((two[0], "--reference-statistics", bare, "--metrics", "prdc"), "keeps no vectors"),
        (
            (two[0], larger, "--reference-statistics", cubic, "--resize", "lanczos"),
            "bicubic .* 'as for training.*same --resize",
        ),
        ((two[0], "--reference-statistics", damaged), "truncated or damaged"),
        ((two[0], "--reference-statistics", tmp_path / "absent"), "no statistics at"),
        ((two[0], "--reference-statistics", two[0] / "0000.png"), "truncated or damaged"),
        ((two[0], "--reference-statistics", reference, "--statistics-out", bare), "not both"),
    ):
        refused(capsys, words, *args)


def refused(capsys: pytest.CaptureFixture[str], words: str, *args: object) -> None:
    status, out, err = call(capsys, *args)
    assert (status, out) == (2, ""), (out, err)
    assert re.search(words, err), err
    assert err.startswith("ornstein: "), err
    assert err.count("\n") == 1, err


def test_refusals_cost_one_line(capsys: pytest.CaptureFixture[str], two: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = two
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "0.png").write_bytes(b"no picture")
    (tmp_path / "weights.pth").write_bytes(b"no weights")
    few = pictures(tmp_path / "few", 4, 7)
    for args, words in (
        ((tmp_path / "absent", b), "no data source"),
        ((a, tmp_path / "absent"), "no data source"),
        ((tmp_path / "empty", b), "holds no images"),
        ((a, tmp_path / "empty"), "holds no images"),
        ((tmp_path / "broken", b), "no readable image"),
        ((a, b, "--reference", b), "named twice"),
        ((a, b, "--metrics", "fdd"), "unknown metric 'fdd': did you mean fd"),
        ((a, b, "--metrics", ","), "no metric"),
        ((a, b, "--metrics", "fid"), "fid is defined on the standard Inception weights, not on tiny"),
        ((a, b, "--features", "resnet"), "unknown features 'resnet'"),
        ((a, b, "--features", "lite0,lite0"), "at most once"),
        ((a, b, "--features", "inception", "--weights", tmp_path / "weights.pth"), "cannot be read"),
        ((a, b, "--features", "inception", "--weights", tmp_path / "absent.pth"), "no Inception weights at"),
        ((a, b, "--features", "dinov2", "--weights", tmp_path / "absent"), "no DINOv2 network"),
        ((a, b, "--features", "inception,dinov2", "--weights", "x.pth"), "NAME=PATH"),
        ((a, b, "--weights", "x.pth"), "own weights"),
        ((a, b, "--metrics", "diversity", "--lpips", tmp_path / "absent"), "no perceptual network"),
        ((a, b, "--metrics", "clip", "--clip", tmp_path / "absent"), "no CLIP network"),
        ((few, b, "--metrics", "prdc", "--k", 4), r"k = 4 neighbours \(precision\) need at least 5 images, got 4"),
        ((a, few, "--metrics", "lof"), r"k = 20 neighbours \(lof\) need at least 21 images, got 4"),
        ((a, b, "--metrics", "prdc", "--k", 0), "k must be at least 1"),
        ((few, b, "--metrics", "is"), "needs 10 images, got 4"),
        ((a, b, "--n", 1), "--n must be at least 2"),
        ((a, b, "--size", 2), "--size must be at least 4"),
        ((a, b, "--per-image", tmp_path / "t.csv"), "--per-image needs one of"),
        ((a, b, "--metrics", "lof", "--per-image", tmp_path / "t.txt"), r"must end in \.csv or \.jsonl"),
        ((a, "--metrics", "diversity", "--statistics-out", tmp_path / "x"), "measured on statistics"),
        ((a, b, "--metrics", "is", "--statistics-out", tmp_path / "x"), "looks at .*a alone: name one set"),
        ((a, b, "--statistics-out", a), "is a folder: name a file"),
        ((a, b, "--statistics-out", a / "0000.png" / "x"), r"--statistics-out .* cannot be written"),
        ((a, b, "--metrics", "lof", "--per-image", a / "0000.png" / "t.csv"), r"--per-image .* cannot be written"),
        ((a, b, "--device", "cuda:99"), "device 'cuda:99' cannot be used here"),
    ):
        refused(capsys, words, *args)
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "t.csv").exists()


def test_a_folder_of_another_resolution_is_resized_and_says_so(
    capsys: pytest.CaptureFixture[str], two: tuple[Path, Path], tmp_path: Path
) -> None:
    large = pictures(tmp_path / "large", 12, 3, (40, 48))
    cubic = result(capsys, two[0], large)
    assert cubic["preprocessing"] == ["as it is", "centre square, bicubic with antialiasing, 16 px"]
    lanczos = result(capsys, two[0], large, "--resize", "lanczos")
    assert lanczos["preprocessing"][1] == "as for training, 16 px"
    assert lanczos["FD-tiny"] != cubic["FD-tiny"]
    # Pictures that are no squares are compared as they are, and with nothing else.
    wide = pictures(tmp_path / "wide", 12, 4, (40, 48))
    found = result(capsys, large, wide)
    assert (found["resolution"], found["preprocessing"]) == ([40, 48], ["as it is", "as it is"])
    refused(capsys, "give --size", large, two[0])
    assert result(capsys, large, two[0], "--size", "16")["resolution"] == [16, 16]


def test_sides_that_were_resized_apart_are_cautioned_against(
    capsys: pytest.CaptureFixture[str], two: tuple[Path, Path], tmp_path: Path
) -> None:
    larger, made = pictures(tmp_path / "larger", 12, 5, (24, 24)), tmp_path / "made.safetensors"
    assert call(capsys, larger, "--size", 16, "--resize", "lanczos", "--statistics-out", made)[0] == 0
    (caution, *more) = result(capsys, larger, "--size", 16, "--reference-statistics", made)["cautions"]
    assert "one side was resized as 'centre square, bicubic" in caution
    assert not more
    assert "cautions" not in result(capsys, two[0], "--reference-statistics", made)
    again = result(capsys, larger, "--size", 16, "--resize", "lanczos", "--reference-statistics", made)
    assert ["same images" in caution for caution in again["cautions"]] == [True]


def test_jpeg_beside_png_is_cautioned_against(
    capsys: pytest.CaptureFixture[str], two: tuple[Path, Path], tmp_path: Path
) -> None:
    jpeg = pictures(tmp_path / "jpeg", 24, 3, suffix=".jpg")
    status, out, err = call(capsys, two[0], jpeg, "--json")
    assert status == 0
    assert err.count("caution: ") == 2
    assert "one side is JPEG" in json.loads(out)["cautions"][1]


def test_the_part_of_a_sorted_folder_is_not_its_first_class(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for number, name in enumerate("abcd"):
        pictures(tmp_path / "set" / name, 8, number)
    table = tmp_path / "t.csv"
    result(capsys, tmp_path / "set", tmp_path / "set", "--n", 8, "--metrics", "avgknn", "--per-image", table)
    names = [row["name"] for row in csv.DictReader(table.read_text().splitlines())]
    assert [name[0] for name in names] == list("aabbccdd")


def test_a_conditional_run_is_told_the_labels_of_the_data(
    capsys: pytest.CaptureFixture[str], tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ornstein import sampling

    told = []
    sample = sampling.sample

    def spy(model, n, *, cond=None, **how):
        told.append(None if cond is None else cond["label"].tolist())
        return sample(model, n, cond=cond, **how)

    monkeypatch.setattr(sampling, "sample", spy)
    found = result(capsys, tiny_run, "critters:8", "--n", 6, "--steps", 2, "--batch", 4)
    data = open_source("critters:6", size=16)
    labels = [data[i].label for i in range(6)]
    assert len(set(labels)) > 1
    assert told == [labels[:4], labels[4:]]
    assert found["condition"] == "the labels of critters:8"
    assert found["preprocessing"] == ["samples rounded to bytes", "as for training, 16 px"]
    refused(capsys, "takes labels and .* has none", tiny_run, pictures(tmp_path / "bare", 6), "--n", 4, "--steps", 2)
    refused(capsys, "needs captions|takes none", tiny_run, "critters:8", "--metrics", "clip", "--n", 4)
    refused(capsys, "is conditional: name the data", tiny_run, "--statistics-out", tmp_path / "x", "--n", 4)


def test_a_run_with_captions_is_told_those_of_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from ornstein import sampling
    from ornstein.cli.image_sets import Sampling, open_samples

    told = []
    monkeypatch.setattr(sampling, "sample", lambda model, n, **how: told.append(how["cond"]) or torch.zeros(n, 3, 8, 8))
    run = SimpleNamespace(
        folder=Path("runs/words"),
        weights=Path("ema.safetensors"),
        condition="text",
        denoiser=None,
        picture=(3, 8, 8),
        cond=lambda captions: captions,
    )
    data = open_source("critters:4", size=8)
    captions = [data[i].caption for i in range(4)]
    how = Sampling(sampler="ddim", steps=2, seed=0, batch=3)
    side = open_samples(run, 8, how, data)
    found = list(side.images)
    assert [one.caption for one in found] == [caption for caption in captions for _ in range(2)]
    assert [caption for call in told for caption in call] == [one.caption for one in found]
    assert [one.name for one in found[:2]] == ["000000", "000001"]
    assert side.about["condition"] == "the captions of critters:4"


def test_the_same_images_twice_are_cautioned_against(
    capsys: pytest.CaptureFixture[str], two: tuple[Path, Path]
) -> None:
    found = result(capsys, two[0], two[0], "--metrics", "fd,prdc")
    assert "the same images" in found["cautions"][0]
    assert found["FD-tiny"] < 1e-9
    assert (found["precision-tiny"], found["recall-tiny"], found["coverage-tiny"]) == (1.0, 1.0, 1.0)
