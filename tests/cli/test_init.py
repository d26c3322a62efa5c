"""`ornstein sample --init`: pictures to begin from, masks, and what cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ornstein.cli.main import main
from ornstein.data import open_source, save_png


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    file = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file)
    return file


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    values = np.zeros((16, 16), dtype=np.uint8)
    values[:8] = 255
    file = tmp_path / "mask.png"
    Image.fromarray(values).save(file)
    return file


def drawn(capsys: pytest.CaptureFixture[str], out: Path, *words: object) -> tuple[dict[str, Any], torch.Tensor]:
    assert main(["sample", *map(str, words), "--out", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    return result, torch.stack([torch.from_numpy(np.array(Image.open(file))) for file in result["images"]])


def test_little_strength_keeps_a_picture(capsys, tmp_path):
    shown = open_source("critters:1", size=64)[0].image
    file = save_png(shown.float() / 127.5 - 1.0, tmp_path / "critter.png")
    words = ("critters", "--n", 1, "--steps", 2, "--init", file)
    result, near = drawn(capsys, tmp_path / "near", *words, "--strength", 0.02)
    assert (result["init"], result["strength"], result["evaluations"]) == ([str(file)], 0.02, 2)
    _, far = drawn(capsys, tmp_path / "far", *words, "--strength", 0.97)
    errors = [(images.float() - shown.permute(1, 2, 0)).abs().mean().item() for images in (near, far)]
    assert errors[0] < 0.3 * errors[1]


def test_the_mask_keeps_its_black_part_to_the_bit(capsys, bold_run, picture, mask, tmp_path):
    start = torch.from_numpy(np.array(Image.open(picture)))
    words = (bold_run, "--n", 3, "--steps", 4, "--label", 1, "--init", picture, "--mask", mask)
    result, kept = drawn(capsys, tmp_path / "kept", *words)
    assert (result["strength"], result["mask"]) == (1.0, str(mask))
    assert torch.equal(kept[:, 8:], start[8:].expand(3, 8, 16, 3))
    assert not torch.equal(kept[:, :8], start[:8].expand(3, 8, 16, 3))


def test_the_times_begin_at_the_noise_level_for_every_way_to_choose_them(capsys, bold_run, picture, tmp_path):
    words = (bold_run, "--n", 1, "--label", 0, "--init", picture, "--strength", 0.5)
    firsts = set()
    for more in (
        ("--steps", 3),
        ("--evaluations", 3),
        ("--grid", "karras", "--steps", 3),
        ("--sampler", "auto", "--steps", 3),
        ("--resample", 2, "--steps", 3),
    ):
        result, _ = drawn(capsys, tmp_path / "out", *words, *more)
        firsts.add(result["times"][0])
        assert max(result["times"]) == result["times"][0]
    assert len(firsts) == 1


def test_pictures_are_cycled_over_the_stream_whatever_the_batch(capsys, bold_run, picture, tmp_path):
    other = tmp_path / "other.png"
    Image.fromarray(255 - np.array(Image.open(picture))).save(other)
    words = (bold_run, "--label", 0, "--steps", 2, "--strict", "--init", picture, "--init", other)
    _, whole = drawn(capsys, tmp_path / "whole", *words, "--n", 5)
    _, parts = drawn(capsys, tmp_path / "parts", *words, "--n", 5, "--batch", 2)
    _, later = drawn(capsys, tmp_path / "later", *words, "--n", 2, "--first", 3)
    assert torch.equal(whole, parts)
    assert torch.equal(whole[3:], later)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--strength", "0.5"), "need --init"),
        (("--mask", "MASK"), "need --init"),
        (("--init", "nowhere.png"), "does not exist"),
        (("--init", "."), "is a folder"),
        (("--init", "JUNK"), "cannot be read"),
        (("--init", "PICTURE", "--strength", "0"), "above 0"),
        (("--init", "PICTURE", "--strength", "1.5"), "--strength"),
        (("--init", "PICTURE", "--strength", "nan"), "--strength"),
        (("--init", "PICTURE", "--mask", "nowhere.png"), "does not exist"),
        (("--init", "PICTURE", "--prior-scale", "2"), "--prior-scale"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(words, said, capsys, bold_run, picture, mask, tmp_path):
    junk = tmp_path / "junk.png"
    junk.write_bytes(b"no picture")
    places = {"PICTURE": picture, "MASK": mask, "JUNK": junk}
    assert (
        main(["sample", str(bold_run), "--n", "1", "--label", "0", *(str(places.get(word, word)) for word in words)])
        == 2
    )
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_a_black_mask_redraws_nothing_and_is_refused(capsys, bold_run, picture, tmp_path):
    black = tmp_path / "black.png"
    Image.new("L", (16, 16)).save(black)
    assert main(["sample", str(bold_run), "--label", "0", "--init", str(picture), "--mask", str(black)]) == 2
    assert "black everywhere" in capsys.readouterr().err
