"""A guide whose network knows drawings alone says so, once, on a model of something else."""

from dataclasses import replace
from pathlib import Path

import pytest

from ornstein.cli.guides import read_guides
from ornstein.runs import open_own


@pytest.mark.parametrize(
    ("data", "guides", "said"),
    [
        ("photos", ["text:a cat", "text:a dog"], 1),
        ("photos", ["colour:navy"], 0),
        ("critters:64", ["text:a cat"], 0),
        ("critters:9+planets:3", ["text:a cat"], 0),
        ("critters:9+photos", ["text:a cat"], 1),
    ],
)
def test_one_line_where_the_network_knows_critters(
    tiny_run: Path, capsys: pytest.CaptureFixture[str], data: str, guides: list[str], said: int
) -> None:
    run = open_own(tiny_run)
    run = replace(run, details={**run.details, "train": {**run.details["train"], "data": data}})
    read_guides(
        run,
        guide=guides,
        sources=(),
        differentiate_through="network",
        backward=None,
        window=None,
        placement="joint",
        resample=1,
    )
    lines = [line for line in capsys.readouterr().err.splitlines() if "knows critters" in line]
    assert len(lines) == said
    assert all("--guide text" in line and data in line for line in lines)
