"""Laws of the caption encoder."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from ornstein.errors import ConfigError
from ornstein.networks import TextConfig, TextEncoder, vocabulary

CAPTIONS = ["a green critter with three eyes", "a blue critter with a crown", "A navy sky, nothing else"]
CONFIG = TextConfig(vocabulary=vocabulary(CAPTIONS), length=8, width=24, layers=2, heads=2)


def encoder():
    net = TextEncoder(CONFIG)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return net


def test_vocabulary_is_ordered_by_count_then_alphabet_and_limited():
    assert vocabulary(CAPTIONS)[:3] == ("a", "critter", "with")
    assert vocabulary(reversed(CAPTIONS)) == vocabulary(CAPTIONS)
    assert vocabulary(CAPTIONS, limit=2) == ("a", "critter")
    assert vocabulary(["b a", "c b"]) == ("b", "a", "c")
    assert len(vocabulary(f"word{i}" for i in range(5000))) == 4096


def test_ids_tell_known_unknown_and_absent_words_apart():
    ids = CONFIG.encode(["a Critter, zebra", "", "a " * 20])
    assert ids[0, :4].tolist() == [2, 3, CONFIG.vocabulary.index(",") + 2, 1]
    assert ids[0, 4:].tolist() == [0] * 4
    assert ids[1].tolist() == [0] * 8
    assert ids[2].tolist() == [2] * 8


def test_captions_and_their_ids_give_the_same_tokens():
    net = encoder()
    text, mask = net(CAPTIONS)
    other, other_mask = net(CONFIG.encode(CAPTIONS))
    assert text.shape == (3, 8, 24)
    assert torch.equal(text, other)
    assert torch.equal(mask, other_mask)


def test_padding_and_neighbours_have_no_influence():
    net = encoder()
    text, mask = net([*CAPTIONS, ""])
    assert mask.sum(1).tolist() == [6, 6, 6, 0]
    assert bool(text.isfinite().all())
    for i, caption in enumerate(CAPTIONS):
        alone, _ = net(CONFIG.encode([caption])[:, :6])  # the same words without the padding
        torch.testing.assert_close(alone[0], text[i, :6], rtol=0, atol=1e-5)


def test_order_of_words_matters():
    text, _ = encoder()(["a green critter", "critter green a"])
    assert (text[0, 1] - text[1, 1]).abs().max() > 1e-3


def test_gradients_reach_every_parameter():
    net = encoder()
    text, mask = net(CAPTIONS)
    (text * torch.randn_like(text) * mask[..., None]).sum().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)] == []


def test_weights_are_a_function_of_the_seed_and_the_configuration_survives_json():
    again = TextConfig(
        **{
            k: tuple(v) if k == "vocabulary" else v
            for k, v in json.loads(json.dumps(dataclasses.asdict(CONFIG))).items()
        }
    )
    assert again == CONFIG
    before = torch.random.get_rng_state()
    one, two = TextEncoder(CONFIG, seed=1).state_dict(), TextEncoder(again, seed=1).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocabulary": ()}, "vocabulary is empty"),
        ({"vocabulary": ("a", "b", "a")}, "vocabulary holds 'a' twice"),
        ({"heads": 5}, "heads=5 does not divide width=24"),
        ({"length": 0}, "length=0"),
        ({"width": 0}, "width=0"),
        ({"layers": 0}, "layers=0"),
        ({"heads": 0}, "heads=0"),
    ],
)
def test_bad_configurations_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(CONFIG, **change)
