"""Guides on the shipped model, from the command and in Python: they lower their energies; bad words cost one line."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ornstein as orn
from ornstein import guides
from ornstein.cli.main import main
from ornstein.data import open_source, save_png
from ornstein.errors import UsageError
from ornstein.guides.own.files import shipped
from ornstein.interop.opened import PlainModel


def call(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    try:
        status = main(args)
    except SystemExit as stop:
        status = int(stop.code or 0)
    out, err = capsys.readouterr()
    return status, out, err


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A drawing, its map of parts, its left half, its small version, and things that are none of these."""
    folder = tmp_path_factory.mktemp("guides")
    source = open_source("critters:8", size=64)
    drawing = save_png(source[5].image, folder / "drawing.png")
    parts = np.zeros((64, 64), np.uint8)
    for number, part in enumerate(("body", "top", "eyes", "mouth"), 1):
        parts[source.mask(5, part).numpy()] = number
    half = np.zeros((64, 64), np.uint8)
    half[:, :32] = 255
    Image.fromarray(parts).save(folder / "map.png")
    Image.fromarray(half).save(folder / "half.png")
    with Image.open(drawing) as image:
        image.resize((16, 16), Image.Resampling.BOX).save(folder / "small.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return {name.upper(): str(folder / f"{name}.png") for name in ("drawing", "map", "half", "small", "broken")}


def written(words: str, files: dict[str, str]) -> str:
    return re.sub("|".join(files), lambda m: files[m[0]], words)


EACH = [
    "segmentation:MAP",
    "text:a salmon critter with droopy ears",
    "classifier:0",
    "identity:DRAWING",
    "boxes:eyes@0.3,0.3,0.7,0.5+mouth@0.4,0.6,0.6,0.7",
    "style:DRAWING",
    "edges:DRAWING",
    "colour:navy",
    "palette:navy,white,orange",
    "inpaint:DRAWING@HALF",
    "super-resolution:SMALL",
]


@pytest.fixture(scope="module")
def model() -> orn.Denoiser:
    return orn.load("critters")


@pytest.fixture(scope="module")
def plain(model: orn.Denoiser) -> torch.Tensor:
    return orn.sample(model, n=2, steps=3, seed=3)


def test_every_kind_is_tried_below() -> None:
    listed = [kind.name for kind in guides.kinds().values() if kind.yields == "energy"]
    assert [guides.GuideSpec.read(words).kind for words in EACH] == listed


def energies(words: str, files: dict[str, str], model: orn.Denoiser, share: float, plain: torch.Tensor, **how: Any):
    """(mean energy of the plain samples, that of guided ones); ``share`` is the part of the default weight."""
    kind = guides.kinds()[guides.GuideSpec.read(words).kind]
    if kind.name == "identity" and "untrained" in shipped("identity").with_suffix(".json").read_text("utf-8"):
        pytest.skip("the shipped embedder finds nobody before it is trained")
    weight = share * kind.weight_with(guides.source_of(kind))
    ready = guides.make([f"{written(words, files)}:{weight}"], shape=model.shape)
    ((_, energy),) = ready.energies
    options = guides.GuidanceOptions(backward=guides.backward_of("3:0.1") if share < 1.0 else None)
    guided = orn.sample(guides.compose(ready, options)(model), n=len(plain), seed=3, **how)
    assert bool(torch.isfinite(guided).all())
    before, after = energy(plain), energy(guided)
    assert bool(torch.isfinite(before).any())
    return [float(values[torch.isfinite(before + after)].mean()) for values in (before, after)]


@pytest.mark.filterwarnings("ignore::ornstein.guidance.GuideWarning")  # nobody is found in the noisiest estimates
@pytest.mark.parametrize("words", EACH)
def test_a_guide_lowers_its_energy(words: str, files: dict[str, str], model: orn.Denoiser, plain: torch.Tensor) -> None:
    """In three steps, where a full weight would be too stiff: a part of it, and descent on the clean estimate."""
    steps = 3
    if words.startswith("identity"):  # in three steps there is nobody to be found
        steps = 10
        plain = orn.sample(model, n=2, steps=steps, seed=3)
    before, after = energies(words, files, model, 0.3, plain, steps=steps)
    assert after < before


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ornstein.guidance.GuideWarning")  # nobody is found in the noisiest estimates
@pytest.mark.parametrize("words", EACH)
def test_the_default_weight_works(words: str, files: dict[str, str], model: orn.Denoiser) -> None:
    plain = orn.sample(model, n=4, steps=20, seed=3)
    before, after = energies(words, files, model, 1.0, plain, steps=20)
    assert after < before


@pytest.mark.slow
@pytest.mark.parametrize("words", ["edges:DRAWING", "style:DRAWING"])
def test_a_guide_by_hed_lowers_its_energy(
    words: str, files: dict[str, str], model: orn.Denoiser, plain: torch.Tensor
) -> None:
    kind = guides.kinds()[words.partition(":")[0]]
    package = next(source for source in kind.sources if source.name == "package")
    if package.missing():
        pytest.skip(package.missing())
    ready = guides.make([written(words, files)], shape=model.shape, choices=[f"{kind.name}=package"])
    ((_, energy),) = ready.energies
    options = guides.GuidanceOptions(backward=guides.backward_of("3:0.1"))
    guided = orn.sample(guides.compose(ready, options)(model), n=2, steps=3, seed=3)
    assert float(energy(guided).mean()) < float(energy(plain).mean())


def test_the_command_takes_several_and_writes_down_what_it_did(
    capsys: pytest.CaptureFixture[str], files: dict[str, str], tmp_path: Path
) -> None:
    asked = ["palette:navy,white,orange:50", 'text:"a salmon critter":2', written("segmentation:MAP", files)]
    words = [part for wish in asked for part in ("--guide", wish)]
    status, out, err = call(
        capsys,
        *("sample", "critters", "--n", "1", "--steps", "2", "--resample", "2", "--backward", "1:0.05", "--json"),
        *("--guide-window", "0.01:inf", "--guide-source", "text=own", "--out", str(tmp_path / "a"), *words),
    )
    assert status == 0, err
    result = json.loads(out)
    weight = guides.kinds()["segmentation"].weight
    assert [(row["kind"], row["weight"], row["source"]) for row in result["guides"]] == [
        ("palette", 50.0, None),
        ("text", 2.0, "own"),
        ("segmentation", weight, "own"),
    ]
    assert result["guides"][1]["argument"] == "a salmon critter"
    assert result["resample"] == 2
    assert result["evaluations"] == 4, "every step is taken twice, the last one too"
    assert (result["backward"], result["window"]) == ("1:0.05", [0.01, "inf"])
    assert Path(result["images"][0]).is_file()


def test_weight_zero_is_no_guide_bit_for_bit(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def pixels(name: str, *args: str) -> bytes:
        common = ("sample", "critters", "--n", "1", "--steps", "2", "--out", str(tmp_path / name))
        assert call(capsys, *common, *args)[0] == 0
        return (tmp_path / name / "000000.png").read_bytes()

    assert pixels("zero", "--guide", "colour:navy:0") == pixels("plain") != pixels("one", "--guide", "colour:navy")


def test_recurrence_keeps_to_a_number_of_evaluations(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for sampler in ("auto", "ddim", "heun"):
        words = ("--sampler", sampler, "--evaluations", "7", "--resample", "3", "--json", "--out", str(tmp_path))
        status, out, err = call(capsys, "sample", "critters", "--n", "1", *words)
        assert status == 0, err
        result = json.loads(out)
        assert result["evaluations"] <= 7
        assert any(s > t for t, s in zip(result["times"], result["times"][1:], strict=False)), "it goes up again"


def test_what_is_not_found_is_said_once_on_standard_error(
    capsys: pytest.CaptureFixture[str], files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ornstein.guides import own

    class Blind:
        seen = 0

        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            Blind.seen += 1
            found = images.mean((2, 3))
            return found if Blind.seen == 1 else found * torch.nan

    monkeypatch.setattr(own, "embedder", lambda weights=None: Blind())
    words = ("--guide", written("identity:DRAWING", files), "--out", str(tmp_path), "--n", "2", "--batch", "1")
    status, _, err = call(capsys, "sample", "critters", "--steps", "3", *words)
    assert status == 0
    assert Blind.seen == 7
    assert err.count("found nothing to go by") == 1


def test_the_list_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "guides", "--json")
    listed = json.loads(out)
    assert status == 0
    assert [row["name"] for row in listed] == list(guides.kinds())
    assert all(row["source"] == "own" or not row["sources"] for row in listed)
    assert listed[0]["classes"][:2] == ["background", "body"]
    status, out, _ = call(capsys, "guides")
    assert status == 0
    assert all(f"{row['name']}:" in out and row["example"] in out for row in listed)


def test_a_model_without_an_empty_condition_can_be_guided(model: orn.Denoiser) -> None:
    """Only --guide-placement separate asks for it."""
    from ornstein.cli.prompts import conditions_of
    from ornstein.cli.sample import SampleArgs, _guided, _guides

    class Labelled(PlainModel):
        def null(self, rows: int = 1, *, negative: str | None = None) -> dict[str, torch.Tensor]:
            raise UsageError("no empty label")

    labelled = Labelled(denoiser=model, folder=Path("labelled"), weights=Path("labelled"), labels=3)
    args = SampleArgs(run="labelled", guide=("colour:red",))
    assert conditions_of(labelled, args, (), guided=False) == (None, None)
    guided: Any = _guided(labelled, args, _guides(labelled, args), None, None)
    assert guided(torch.zeros(1, 3, 64, 64), 0.5).clean.isfinite().all()
    args = replace(args, guide_placement="separate")
    with pytest.raises(UsageError, match="no empty label"):
        conditions_of(labelled, args, (), guided=False)


BAD = [
    ("--guide", "segmentation:~no-such-user/map.png"),
    ("--guide", "rare:~no-such-user/lpips.pth"),
    ("--guide", "rare:squared", "--backward", "3"),
    ("--guide", "rare-token:3"),
    ("--guide", "colr:red"),
    ("--guide", "colour"),
    ("--guide", "colour:notacolour"),
    ("--guide", "colour:red:heavy"),
    ("--guide", "segmentation:no/such/file.png"),
    ("--guide", "segmentation:SMALL"),
    ("--guide", "segmentation:HALF@BROKEN"),
    ("--guide", "edges:BROKEN"),
    ("--guide", "inpaint:DRAWING"),
    ("--guide", "inpaint:DRAWING@SMALL"),
    ("--guide", "super-resolution:BROKEN"),
    ("--guide", "classifier:no-such-class"),
    ("--guide", "boxes:eyes@0,0,64,64"),
    ("--guide", "boxes:nothing@0,0,1,1"),
    ("--guide", "text:a critter", "--guide-source", "text=packaged"),
    ("--guide", "text:a critter", "--guide-source", "text=standard:/no/such/folder"),
    ("--guide", "text:a critter", "--guide-source", "text=own:/no/such.safetensors"),
    ("--guide", "colour:red", "--guide-source", "colour=own"),
    ("--guide", "colour:red", "--guide-source", "own"),
    ("--guide", "colour:red", "--guide-source", "text=own:/no/such.safetensors"),
    ("--guide", "colour:red", "--backward", "0"),
    ("--guide", "colour:red", "--backward", "five"),
    ("--guide", "colour:red", "--guide-window", "5:1"),
    ("--guide", "colour:red", "--guide-window", "low"),
    ("--guide", "colour:red", "--guide-placement", "separate"),
    ("--guide", "colour:red", "--guide-placement", "beside"),
    ("--guide", "colour:red", "--differentiate-through", "nothing"),
    ("--backward", "3"),
    ("--guide-window", "0:1"),
    ("--guide-source", "text=own"),
    ("--resample", "0"),
]


@pytest.mark.parametrize("args", BAD, ids=" ".join)
def test_bad_words_cost_one_line(
    capsys: pytest.CaptureFixture[str], files: dict[str, str], tmp_path: Path, args: tuple[str, ...]
) -> None:
    out_dir = tmp_path / "out"
    words = [written(arg, files) for arg in args]
    status, out, err = call(capsys, "sample", "critters", "--n", "1", "--steps", "1", "--out", str(out_dir), *words)
    assert status == 2, (out, err)
    assert out == ""
    assert err.startswith("ornstein: ")
    assert err.count("\n") == 1, err
    assert not out_dir.exists()


def test_pictures_that_are_no_numbers_are_not_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ("--n", "2", "--steps", "3", "--guide", "colour:navy:1e38", "--out", str(tmp_path / "out"))
    status, _, err = call(capsys, "sample", "critters", *words)
    assert status == 2
    assert "gave numbers that are not finite: weaken the guides" in err
    assert err.splitlines()[-1].startswith("ornstein: evaluation ")
    assert not list((tmp_path / "out").iterdir())
