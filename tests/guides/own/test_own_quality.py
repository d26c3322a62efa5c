"""The shipped guide networks are good on drawings that no training saw, and their page says how good."""

import json
import re
from pathlib import Path

import pytest
import torch

from ornstein.guides import own
from ornstein.guides.own import drawings, files, training
from ornstein.guides.own.drawings import Drawings
from ornstein.guides.own.training import TASKS, GuideTraining

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "guide-networks.md"
FLOORS: dict[str, dict[str, float]] = {  # chance: under 0.5 for masks and found things, 1/12 … 1/19 for classes, 1/64
    "segmentation": {
        "iou background": 0.88, "iou body": 0.78, "iou top": 0.3, "iou eyes": 0.45, "iou mouth": 0.45,
        "iou body elsewhere": 0.65, "iou body blurred": 0.75, "iou eyes blurred": 0.45,
    },
    "classifier": {
        "colour": 0.8, "background": 0.85, "top": 0.2, "eyes": 0.09, "pattern": 0.4, "shape": 0.6, "style": 0.8,
        "colour blurred": 0.8, "shape blurred": 0.55,
    },
    "identity": {
        "auc": 0.9, "auc same body": 0.6, "auc blurred": 0.85, "creature found": 0.9,
        "nothing found where none is": 0.8,
    },
    "text": {
        "caption of 64": 0.5, "body colour": 0.6, "background colour": 0.6, "top": 0.09, "caption of 64 blurred": 0.45,
    },
    "detection": {
        "recall of things": 0.5, "precision of things": 0.45, "recall of parts": 0.25, "precision of parts": 0.25,
        "recall of things blurred": 0.45,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def unseen() -> Drawings:
    """Seeds far beyond those of training."""
    return drawings.fresh_drawings(100_000, 64, 2)


def card(kind: str) -> dict:
    return json.loads(files.shipped(kind).with_suffix(".json").read_text("utf-8"))


@pytest.mark.parametrize("kind", TASKS)
def test_the_shipped_network_is_good_on_new_drawings(kind: str, unseen: Drawings) -> None:
    found = training.quality(TASKS[kind](), files.read_network(kind), unseen)
    low = {name: (found[name], floor) for name, floor in FLOORS[kind].items() if not found[name] >= floor}
    assert not low


@pytest.mark.parametrize("kind", TASKS)
def test_a_card_says_how_its_network_was_made(kind: str) -> None:
    how = card(kind)
    made = GuideTraining(**how["train"])
    assert how["command"] == training.command(made)
    assert how["parameters"] == files.read_network(kind).parameter_count
    assert set(FLOORS[kind]) <= set(how["quality"])


@pytest.mark.parametrize("kind", TASKS)
def test_the_page_gives_the_figures_of_the_card(kind: str) -> None:
    text = PAGE.read_text("utf-8")
    body = text[text.index(f"\n## {kind.capitalize()}\n") + 1 :].split("\n## ")[0]
    how = card(kind)
    assert how["command"] in body
    rows = re.findall(r"^\| ([^|]+) \| (0\.\d+|1\.0+) \| (0\.\d+|1\.0+) \|$", body, re.MULTILINE)
    assert len(rows) >= 4
    for name, sharp, blurred in rows:
        assert float(sharp) == pytest.approx(how["quality"][name], abs=6e-4)
        assert float(blurred) == pytest.approx(how["quality"][f"{name} blurred"], abs=6e-4)


def test_descending_a_score_changes_the_answer(unseen: Drawings) -> None:
    """A few steps against the gradient make a critter's picture more of what is asked for."""
    colour, coverage, _ = unseen.critters.take(torch.arange(4).numpy())
    start = 2 * (colour + (1 - coverage) * 0.2) - 1
    classifier, fit, detector = own.classifier(), own.text_image(), own.detector()
    crown, text = classifier.classes.index("top/crown"), fit.text(["a critter with a crown"])
    box = torch.tensor([[0.1, 0.1, 0.6, 0.9]]), torch.tensor([0])
    energies = {
        "class": lambda x: -classifier(x)[:, crown],
        "text": lambda x: -(fit.image(x) @ text.T)[:, 0],
        "box": lambda x: detector.loss(x, *box),
    }
    for name, energy in energies.items():
        x = start.clone()
        for _ in range(8):
            x.requires_grad_()
            (slope,) = torch.autograd.grad(energy(x).sum(), x)
            x = (x - 1.5 * slope / slope.flatten(1).norm(dim=1)[:, None, None, None]).detach()
        assert (energy(x) < energy(start)).all(), name
