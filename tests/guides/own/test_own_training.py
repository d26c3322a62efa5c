"""How the guide networks of our own are made: their drawings, their trainings, the command."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ornstein.cli.main import main
from ornstein.data import embedded
from ornstein.errors import ConfigError
from ornstein.guides import own
from ornstein.guides.own import degrade, detecting, drawings, likeness, scenes, training
from ornstein.guides.own.drawings import Drawings
from ornstein.guides.own.training import TASKS, GuideTraining
from ornstein.randomness import generator


@pytest.fixture(scope="module")
def few() -> Drawings:
    return drawings.fresh_drawings(0, 32, 2)


# ------------------------------------------------------------------------------------------------------------ drawings


def test_a_cut_out_on_its_own_colour_is_the_drawing(few: Drawings) -> None:
    plain = embedded.open_drawn("critters", ("critters",), size=64, count=4)
    colour, coverage, _ = few.critters.take(np.arange(4))
    known = drawings.background_colours()
    for i in range(4):
        background = torch.tensor(known[plain.attributes(i)["background colour"]])[:, None, None]
        again = colour[i] + (1 - coverage[i]) * background
        assert (
            255 * again - plain[i].image
        ).abs().max() <= 4  # the renderer rounds every layer, and the coverage is a number of 255ths


def test_labels_are_the_exact_masks(few: Drawings) -> None:
    plain = embedded.open_drawn("critters", ("critters",), size=64, count=4)
    _, coverage, labels = few.critters.take(np.arange(4))
    for i in range(4):
        assert torch.equal(labels[i] > 0, 255 * coverage[i, 0] >= 127.5)
        for label, part in enumerate(drawings.PARTS[1:], start=2):
            if part in plain.parts(i):
                outside = (labels[i] == label) & ~plain.mask(i, part)
                assert outside.sum() <= 2  # on black a faint edge can show that on colour rounds away
                assert (labels[i] == label).any()
            else:
                assert not (labels[i] == label).any()


def test_recoloured_drawings_show_the_same_creature(few: Drawings) -> None:
    for first, second in zip(few.critters.named, few.recoloured.named, strict=True):
        parts = {k: v for k, v in first.items() if not k.endswith(" colour")}
        assert parts == {k: v for k, v in second.items() if not k.endswith(" colour")}
        assert second["body colour"] in drawings.colours("body")
    assert sum(a != b for a, b in zip(few.critters.named, few.recoloured.named, strict=True)) > 20
    assert np.array_equal(few.critters.labels, few.recoloured.labels)


def test_parts_of_the_drawings_do_not_meet(few: Drawings) -> None:
    seen, held_out = few.part(0, 7), few.part(7, 8)
    assert len(seen.critters) == 28
    assert len(held_out.critters) == 4
    assert np.array_equal(np.concatenate([seen.critters.colour, held_out.critters.colour]), few.critters.colour)
    assert all(len(other) == 1 for other in held_out.others)


# -------------------------------------------------------------------------------------------------------------- scenes


def test_boxes_of_a_scene_hold_what_they_name(few: Drawings) -> None:
    scene = detecting.Detection().scenes(few, generator(0, "scene"), 24)
    held = scene.labels >= 0
    assert held.any(1).all()
    box = scene.boxes[held]
    assert (box[:, 2:] > box[:, :2]).all()
    assert (box >= 0).all()
    assert (box <= 1).all()
    assert set(scene.labels[held].tolist()) >= {0, 1, 2, 3}


def test_extents_of_a_known_mask() -> None:
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[0, 16:32, 8:56] = True
    box, seen = scenes.extents(mask)
    assert box.tolist() == [[8 / 64, 16 / 64, 56 / 64, 32 / 64]]
    assert seen.tolist() == [16 * 48]


def test_a_drawing_in_its_place_is_itself(few: Drawings) -> None:
    rows = np.arange(4)
    layer = scenes.placed(few.critters, rows, generator(0), scale=(1, 1), shift=0.0, mirror=False)
    colour, coverage, labels = few.critters.take(rows)
    torch.testing.assert_close(layer.colour, colour, rtol=0, atol=1e-4)
    torch.testing.assert_close(layer.coverage, coverage, rtol=0, atol=1e-4)
    assert torch.equal(layer.labels, labels)


def test_blur_keeps_the_mean_of_a_ramp_and_flat_pictures() -> None:
    flat = torch.full((2, 3, 64, 64), 0.3)
    torch.testing.assert_close(degrade.blurred(flat, 2.5), flat)
    spot = torch.zeros(1, 3, 64, 64)
    spot[:, :, 32, 32] = 1
    out = degrade.blurred(spot, 2.0)[0, 0]
    at = torch.arange(64.0) - 32
    assert float(out.sum()) == pytest.approx(1, abs=1e-5)
    assert float((out.sum(0) * at**2).sum()) == pytest.approx(4, rel=0.03)  # cut at three sigma


def test_no_degradation_is_the_identity_and_any_other_is_finite(few: Drawings) -> None:
    x = torch.rand(16, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(degrade.degraded(x, generator(0), 0.0), x)
    for seed in range(4):
        out = degrade.degraded(x, generator(seed))
        assert out.shape == x.shape
        assert out.isfinite().all()
        assert torch.equal(out, degrade.degraded(x, generator(seed)))


# ------------------------------------------------------------------------------------------------------------ captions


def test_short_captions_say_what_is_true() -> None:
    facts = {"style": "critters", "body colour": "green", "top": "crown", "background colour": "navy"}
    assert likeness.whole(facts) == "a green critter with a crown on navy"
    assert likeness.phrase({"style": "critters", "top": "crown"}) == "a critter with a crown"
    assert likeness.phrase({"style": "critters", "background colour": "navy"}) == "a critter on navy"
    assert likeness.phrase({"style": "stack"}) == "a stack of stones"


# ------------------------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize("kind", TASKS)
def test_the_same_seed_gives_the_same_bits(kind: str, few: Drawings) -> None:
    how = GuideTraining(kind=kind, images=32, batch=16, drawings=32)
    first, second = (training.fitted_network(how, TASKS[kind](), few) for _ in range(2))
    other = training.fitted_network(GuideTraining(kind=kind, images=32, batch=16, seed=1), TASKS[kind](), few)
    state = first.state_dict()
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in state.items())
    assert any(not torch.equal(value, other.state_dict()[name]) for name, value in state.items())
    assert all(value.isfinite().all() for value in state.values())


@pytest.mark.parametrize(
    "bad",
    [{"kind": "nonsense"}, {"kind": "text", "images": -1}, {"kind": "text", "batch": 3}, {"kind": "text", "lr": 0}],
)
def test_a_bad_training_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        GuideTraining(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [kind for kind in TASKS if kind != "classifier"])
def test_a_training_can_start_from_the_classifier(kind: str) -> None:
    from ornstein.guides.own import files

    settings = own.TextImage(vocabulary=["a"]).settings if kind == "text" else files.read_network(kind).settings
    net, source = files.make(kind, settings), own.classifier()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    files.begin(net, source)
    theirs = source.summary.seen()
    changed = {n for n, v in net.state_dict().items() if not torch.equal(v, before[n])}
    assert any(".stem." in name for name in changed)
    assert not any(name.rsplit(".", 2)[-2] == "out" and "tower" not in name for name in changed)
    for name in changed:
        inner = name.split(".", 1)[1]
        assert torch.equal(net.state_dict()[name], theirs[inner])


def test_a_start_that_is_no_classifier_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ornstein.guides.own import files

    args = ["train-guide", "text", "--out", str(tmp_path / "t.safetensors"), "--start"]
    assert main([*args, str(files.shipped("text"))]) == 2
    assert "holds text, not classifier" in capsys.readouterr().err
    assert main([*args, str(tmp_path / "missing.safetensors")]) == 2
    assert not list(tmp_path.iterdir())


def test_the_command_writes_a_network_and_its_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "s.safetensors"
    args = ["train-guide", "segmentation", "--out", str(out), "--images", "32", "--drawings", "32", "--json"]
    assert main(args) == 0
    said = json.loads(capsys.readouterr().out)
    card = json.loads(out.with_suffix(".json").read_text("utf-8"))
    assert said == {"weights": str(out), **card}
    assert card["train"]["images"] == 32
    assert card["command"].startswith("ornstein train-guide segmentation --out")
    assert all(0 <= value <= 1 for value in card["quality"].values())
    net = own.segmenter(out)
    assert net.parameter_count == card["parameters"]
    assert sorted(p.name for p in out.parent.iterdir()) == ["s.json", "s.safetensors"]


@pytest.mark.parametrize(
    "args",
    [
        ["nonsense", "--out", "OUT/x.safetensors"],
        ["text"],
        ["text", "--out", "OUT/x.pt"],
        ["text", "--out", "OUT"],
        ["text", "--out", "OUT/file/x.safetensors"],
        ["text", "--out", "OUT/x.safetensors", "--images", "-1"],
        ["text", "--out", "OUT/x.safetensors", "--drawings", "1"],
    ],
    ids=" ".join,
)
def test_bad_input_costs_one_line_and_leaves_nothing(
    args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["train-guide", *(arg.replace("OUT", str(tmp_path)) for arg in args)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ornstein: ")
    assert err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_interrupted_training_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training.files, "atomic", stopped)
    monkeypatch.setattr(training, "quality", lambda *_: {})
    args = ["train-guide", "segmentation", "--out", str(tmp_path / "s.safetensors"), "--images", "1"]
    assert main([*args, "--drawings", "32"]) == 130
    assert not list(tmp_path.iterdir())
