"""Every option of every command against values that mean nothing: refused in one line, or listed here as meaningful."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import MISSING
from pathlib import Path
from typing import Any, get_args

import pytest

from ornstein.cli.main import COMMANDS
from ornstein.cli.parameters import Parameter, parameters
from ornstein.cli.parser import parse
from ornstein.errors import UsageError
from ornstein.training.methods import METHODS

NUMBERS = ("nan", "inf", "-inf", "-1", "0", "1e308", "1" + 30 * "0")
TEXTS = ("", "  ", "a\x1b[31m", "a\x00b", "a\nb")
NONSENSE = (*NUMBERS, *TEXTS)
# Options of numbers for which zero means something: "none", "never", or the beginning.
ZERO = [
    "--columns", "--first", "--skip-steps", "--images", "--keep", "--interpolate", "--refine", "--guidance-scale",
    "--log-snr", "--seed", "--workers", ".attention", ".norm-size", ".dropout", ".time-scale", ".vector-width",
    ".label-dropout", "--keep-noise",
    ".text-width", ".classes", ".blocks", ".mean", ".betas", ".weight-decay", ".warmup", ".decay", ".clip",
    ".seconds", ".samples", ".metric-weight", ".gradients", ".kl", ".adversarial", ".adversarial-from", ".over",
    "--validation-fraction", "--minutes", ".smooth",
    "--curriculum", "--sigma-min", ".slope", ".offset", ".diffusion", ".low-noise-fraction", ".target", ".outlier",
    ".fidelity", ".perceptual", ".penalty", ".level-probabilities", ".instance-noise",
]  # fmt: skip
# And those that may be negative.
NEGATIVE = ["--seed", "--guidance-scale", "--log-snr", ".mean", ".slope", ".offset", ".time-scale", ".over", ".kernel"]
# The empty text is a condition: none.
EMPTY = ["--prompt", "--negative-prompt", "--label"]


def meant(one: Parameter) -> set[str]:
    """The values that look like nonsense and mean something."""
    end = one.flag if "." not in one.flag else "." + one.flag.rpartition(".")[2]
    if any(kind in (str, Path) or get_args(kind)[:1] in ((str,), (Path,)) for kind in one.alternatives):
        return {*NUMBERS, *({"", "  "} if one.flag in EMPTY else ())}
    return {*({"0"} if end in ZERO else ()), *({"0", "-1"} if end in NEGATIVE else ())}


def commands() -> Iterator[tuple[str, Any, dict[tuple[str, ...], str]]]:
    for name, (module, kind, *_) in COMMANDS.items():
        if name != "train":
            yield name, getattr(importlib.import_module(f"ornstein.cli.{module}"), kind), {}
    for name, method in METHODS.items():
        yield f"train {name}", method.configuration, {}
    yield "train ddpm", METHODS["ddpm"].configuration, {("network",): "dit"}
    yield "train cas-dm", METHODS["cas-dm"].configuration, {("back",): "unet"}
    yield "train rarity-classifier", METHODS["rarity-classifier"].configuration, {("network",): "unet"}


def options() -> Iterator[tuple[str, Any, dict[tuple[str, ...], str], Parameter]]:
    """Every option once: most methods of training share most of theirs."""
    seen = set()
    for name, kind, chosen in commands():
        for one in parameters(kind, chosen):
            key = (name.split()[0], one.flag, repr(one.hint), repr(one.default))
            if one.most and key not in seen and (not chosen or any(one.path[: len(path)] == path for path in chosen)):
                seen.add(key)
                yield name, kind, chosen, one


OPTIONS = list(options())


def words_of(name: str, kind: Any, one: Parameter, chosen: dict[tuple[str, ...], str], value: str) -> list[str]:
    """A command that is right but for this value."""
    found: list[str] = []
    for other in parameters(kind, chosen):
        if other.default is MISSING and other.path != one.path:
            word = "x.safetensors" if other.path[-1] == "out" else "critters"
            found += [word] if other.option.positional else [other.flag, word]
    for path, choice in chosen.items():
        if path != one.path:
            found += [f"--{path[0]}", choice]
    least = max(one.least, 1)
    if one.option.positional:
        return [*found, *[value] * least]
    return [*found, f"{one.flag}={value}"] if least == 1 else [*found, one.flag, *[value] * least]


@pytest.mark.parametrize(
    ("name", "kind", "chosen", "one"), OPTIONS, ids=[f"{name} {one.flag}" for name, _, _, one in OPTIONS]
)
def test_nonsense_is_refused_where_it_is_defined(
    name: str, kind: Any, chosen: dict[tuple[str, ...], str], one: Parameter
) -> None:
    accepted = set()
    for value in NONSENSE:
        said = ""
        try:
            parse(kind, f"ornstein {name}", words_of(name, kind, one, chosen, value))
        except UsageError as error:
            said = str(error)
        if not said:
            accepted.add(value)
        assert "\n" not in said
        assert said.isprintable()
    assert accepted <= meant(one), f"{one.flag} accepts {accepted}"
