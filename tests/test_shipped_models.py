"""The models in the package: made by the command on their card, small, drawing in as few evaluations as promised."""

import importlib.util
import json
import shlex
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch

import ornstein as orn
from ornstein.cli.train import parse
from ornstein.data import open_source
from ornstein.training import from_dict, to_dict

WEIGHTS = Path(str(files("ornstein"))) / "weights"
CARDS = sorted(WEIGHTS.glob("*/config.json"))


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.parent.name)
def test_the_command_of_a_card_is_the_training_that_made_it(card: Path) -> None:
    details = json.loads(card.read_text("utf-8"))
    program, word, *rest = shlex.split(details["card"]["command"])
    assert (program, word) == ("ornstein", "train")
    config = parse(rest).config
    said, made = flat(to_dict(config)), flat(to_dict(from_dict(type(config), details["train"])))
    # Where files lie and how often something is written changes no weights; the budget may have been cut.
    free = ("every.", "images", "tensorboard", "keep", "workers", "device", "kind")
    differ = {key for key in made if said.get(key) != made[key] and not key.startswith(free)}
    assert not differ, {key: (made[key], said.get(key)) for key in differ}
    assert 0 <= details["images"] - int(rest[rest.index("--images") + 1]) < made["batch"]


@pytest.mark.parametrize(
    "words",
    [
        "ddpm --flip --objective.no-stratified --optimizer.betas 0.5 0.9 --network unet --network.width 16",
        "ect --init-from critters-64 --codec critters-latents --latents.no-draw --size 64",
        "udpm --init-from runs/last --objective.level-probabilities 1 1 6 --objective.r1-interval 4",
    ],
)
def test_the_command_that_is_written_is_the_one_that_was_typed(words: str) -> None:
    place = Path(__file__).parents[1] / "tools" / "ship.py"
    spec = importlib.util.spec_from_file_location("ship", place)
    assert spec is not None
    assert spec.loader is not None
    ship = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ship)
    method, *rest = words.split()
    made = to_dict(parse([method, "--data", "critters", "--out", "runs/x", "--images", "64", *rest]).config)
    written = shlex.split(ship.command({"train": made}, 64))
    assert to_dict(parse(written[2:]).config) == made


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.parent.name)
def test_weights_are_small(card: Path) -> None:
    assert (card.parent / "ema.safetensors").stat().st_size <= 10 * 2**20


def spread(images: torch.Tensor) -> torch.Tensor:
    """Mean and deviation over images of their 8 × 8 pixels."""
    small = torch.nn.functional.adaptive_avg_pool2d(images.clamp(-1, 1), 8)
    return torch.stack((small.mean(0), small.std(0)))


def real(size: int) -> torch.Tensor:
    source = open_source("critters:96", size=size)
    return spread(torch.stack([source[i].image for i in range(96)]).float() / 127.5 - 1)


def far(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).square().mean().sqrt())


def test_one_evaluation_draws_what_a_diffusion_model_draws_in_many() -> None:
    """On 8 × 8 pixels it has the mean and the deviation of the data, which one evaluation of diffusion misses."""
    once = far(spread(orn.sample(orn.load("critters-ect"), 96, steps=1, seed=0)), real(64))
    blurred = orn.sample(orn.load("critters-64"), 96, sampler="ddim", steps=1, seed=0)
    assert once < 0.08
    assert far(spread(blurred), real(64)) > 2 * once


def test_three_evaluations_of_a_pyramid_have_the_spread_of_the_data() -> None:
    """On 8 × 8 pixels, where other pictures of the data are 0.04 away, and one picture again and again 0.3."""
    images = orn.sample(orn.load("critters-udpm"), 96, seed=0)
    assert far(spread(images), real(32)) < 0.08
    assert far(spread(images[:1].expand_as(images)), real(32)) > 0.2
