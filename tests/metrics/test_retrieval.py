"""Whether pictures show their captions: laws of the rank, and the command on captioned data."""

import json

import numpy as np
import pytest

from ornstein.cli.main import main
from ornstein.errors import UsageError
from ornstein.metrics.retrieval import retrieval


def test_real_pictures_have_rank_one_and_others_that_of_chance() -> None:
    rng = np.random.default_rng(0)
    captions = [f"caption {i % 100}" for i in range(400)]
    rows = rng.standard_normal((400, 8))
    found = retrieval(rows, captions, rows, captions)
    assert (found.first, found.top, found.median, found.chance, found.captions) == (1.0, 1.0, 1.0, 0.05, 100)
    mixed = retrieval(rng.standard_normal((400, 8)), captions, rows, captions)
    assert mixed.top == pytest.approx(mixed.chance, abs=4 * (0.05 * 0.95 / 400) ** 0.5)
    assert mixed.median == pytest.approx(50, abs=12)


def test_the_rank_counts_the_captions_that_are_nearer() -> None:
    others = np.array([[0.0], [1.0], [2.0], [3.0], [3.1]])
    names = ["a", "b", "c", "d", "d"]
    found = retrieval(np.array([[0.1], [0.1], [2.9]]), ["a", "d", "d"], others, names, k=2)
    assert found.ranks.tolist() == [1, 4, 1]
    order = [4, 2, 0, 3, 1]  # the order of the data says nothing
    again = retrieval(np.array([[0.1], [0.1], [2.9]]), ["a", "d", "d"], others[order], [names[i] for i in order], k=2)
    assert again.ranks.tolist() == found.ranks.tolist()


def test_what_cannot_be_retrieved_is_refused() -> None:
    rows = np.eye(8)
    names = list("abcdefgh")
    with pytest.raises(UsageError, match="no picture of the data has the caption 'z'"):
        retrieval(rows, [*names[:7], "z"], rows, names)
    with pytest.raises(UsageError, match="more than k = 5 captions to choose from, got 1"):
        retrieval(rows, ["a"] * 8, rows, ["a"] * 8)


def test_the_command_retrieves_captioned_data(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["eval", "critters:24", "critters:24", "--metrics", "retrieval", "--n", "24", "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["retrieval-lite0 top-1"] == 1.0
    assert found["retrieval-lite0 median rank"] == 1.0
    assert 0.0 < found["retrieval-lite0 top-5 by chance"] < 0.5
