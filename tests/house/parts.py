"""A part of every kind as CONTRIBUTING says it is added: the files, and what is written into them.

A text is that of a new file; pairs are (the place, what is put before it). A path is a file that is copied.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
Edit = str | Path | tuple[tuple[str, str], ...]
Files = Mapping[str, Edit]

CODE = re.search(r"^```python\n(.*?)^```$", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
assert CODE is not None
SAMPLER: Files = {
    "src/ornstein/samplers/trapezoid.py": '"""The example of CONTRIBUTING under another name."""\n\n'
    "from dataclasses import dataclass\n\nfrom ..paths.base import AffinePath\nfrom .base import Query\n\n\n"
    + CODE[1].replace("Heun", "Trapezoid"),
    "src/ornstein/samplers/named.py": (
        ("from .unipc import", "from .trapezoid import Trapezoid\n"),
        ('        "dpmpp-1":', '        "trapezoid": Trapezoid,\n'),
        ('    "UniPC",\n', '    "Trapezoid",\n'),
    ),
    "docs/reference/samplers.md": (
        ("| `heun` |", "| `trapezoid` | `Trapezoid()` | 2 | `AffinePath` | 2n − 1 | no | as `heun` |\n"),
    ),
}
GUIDANCE: Files = {
    "src/ornstein/guidance/shrunk.py": '''"""The clean estimate shrunk toward zero."""

from dataclasses import dataclass

from ..estimates import Estimate
from .base import Rule


@dataclass(frozen=True, slots=True)
class Shrunk(Rule):
    """(1 − s)·D; 0 is none."""

    scale: float = 0.1

    def estimate(self, inner, x, t) -> Estimate:
        """One evaluation."""
        found = inner(x, t)
        return found if self.scale == 0.0 else found.replace(clean=(1.0 - self.scale) * found.clean)
''',
    "src/ornstein/guidance/registry.py": (
        ("from .threshold import", "from .shrunk import Shrunk\n"),
        (
            ")\n\nGUIDANCES: Mapping[str, GuidanceType]",
            (
                '    GuidanceType(\n        name="shrunk", what="shrunk toward zero; 0 is none", make=Shrunk,\n'
                '        number="scale", default=0.1,\n    ),\n'
            ),
        ),
        ('    "SkipLayer",\n', '    "Shrunk",\n'),
    ),
    "docs/reference/guidance.md": (
        ("| `NoisyClassifier(", "| `Shrunk(scale=0.1)` | (1 − s)·D | 1 | – |\n"),
        (
            "\n```\nornstein sample critters --guidance pag:3",
            "| `shrunk[:SCALE][,sigma=…]` | shrunk toward zero; 0 is none | – | `shrunk:0.2` |\n",
        ),
    ),
}
METRIC: Files = {
    "src/ornstein/metrics/shift.py": '''"""The distance of the mean features."""

import numpy as np

from ornstein.metrics.sets import Statistics


def shift(a: Statistics, b: Statistics) -> float:
    """|μ₁ − μ₂|."""
    return float(np.linalg.norm(a.moments.mean - b.moments.mean))
''',
    "src/ornstein/metrics/measure.py": (
        ("from ornstein.metrics.vectors import", "from ornstein.metrics.shift import shift\n"),
        ('    "prdc": Metric(', '    "shift": Metric(what="distance of the means", measure=single("shift", shift)),\n'),
    ),
    "docs/reference/metrics.md": (
        ("| `avgknn` |", "| `shift` | shift-NET | two sets | 0 … ∞ | small | 2 images a side | none |\n"),
    ),
    "tests/metrics/test_shift.py": '''"""The distance of the mean features."""

import numpy as np
import torch

from ornstein import metrics


class Mean:
    name, width = "mean", 3

    def __call__(self, images):
        return images.float().mean((2, 3))


def test_the_shift_of_two_greys():
    dark, light = (metrics.statistics(torch.full((4, 3, 8, 8), v, dtype=torch.uint8), Mean()) for v in (10, 14))
    found = metrics.measure(dark, light, ["shift"]).numbers
    np.testing.assert_allclose(list(found.values()), [4.0 * 3**0.5])
    assert list(found) == ["shift-mean"]
''',
}
PAGE = (ROOT / "docs" / "guides" / "super-resolution.md").read_text("utf-8")
GUIDE: Files = {
    "src/ornstein/guides/pictures.py": (
        (
            "KINDS = (",
            (
                "def _thumbnail(job: GuideContext) -> Any:\n    wanted, factor = targets.small(job.arg, job.shape)\n"
                "    return energies.super_resolution(wanted, factor, std=1.0)\n\n\n"
            ),
        ),
        (
            ")\n\n__all__",
            (
                '    GuideType(\n        name="thumbnail", takes="SMALL", what="a small picture", weight=3.0,\n'
                '        make=_thumbnail, example="thumbnail:small.png",\n    ),\n'
            ),
        ),
    ),
    "docs/guides/thumbnail.md": PAGE.replace("super-resolution", "thumbnail"),
    "docs/guides/figures/thumbnail.png": ROOT / "docs" / "guides" / "figures" / "super-resolution.png",
    "docs/reference/guides.md": (
        (
            "\nThree more are guidances",
            "| [`thumbnail`](../guides/thumbnail.md) | a small picture | as `super-resolution` | 3 | – |\n",
        ),
    ),
}
METHOD: Files = {
    "src/ornstein/training/heavy.py": '''"""A denoiser whose loss counts more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..denoisers import Denoiser
from ..errors import ConfigError
from ..models.spec import ModelSpec
from ..objectives import Losses, Objective
from .config import TrainConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class HeavyConfig(TrainConfig):
    """Train a diffusion model by a loss that counts more.

    Example: ornstein train heavy --data critters --out runs/heavy --factor 3
    """

    kind: ClassVar[str] = "heavyconfig"

    factor: float = 2.0
    """The loss is so many times that of ddpm."""

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        if not self.factor > 0.0:
            raise ConfigError(f"factor must be positive, got {self.factor}")

    def make_objective(self, spec: ModelSpec, device: torch.device, averages: Mapping[str, Denoiser]) -> Objective:
        """The loss of ddpm, times the factor."""
        inner = TrainConfig.make_objective(self, spec, device, averages)

        def heavy(model, batch, noise, progress) -> Losses:
            found = inner(model, batch, noise, progress)
            return Losses(terms={k: self.factor * v for k, v in found.terms.items()}, times=found.times)

        return heavy
''',
    "src/ornstein/training/methods.py": (
        (
            '    "udpm": Method(',
            (
                '    "heavy": Method(\n        what="ddpm with a larger loss", module=".heavy", config="HeavyConfig",\n'
                '        kind="heavyconfig",\n    ),\n'
            ),
        ),
    ),
    "docs/reference/command.md": (
        (
            "### `ornstein train cas-dm`",
            (
                "### `ornstein train heavy`\n\n| option | value | default | meaning |\n|---|---|---|---|\n"
                "| `--factor` | FLOAT | 2.0 | The loss is so many times that of ddpm. |\n\n"
            ),
        ),
    ),
    "tests/training/test_heavy.py": '''"""A denoiser whose loss counts more."""

import json

from ornstein.training import METHODS, Every, Optimizer, train
from ornstein.networks import UNetConfig


def test_three_times_the_loss_is_three_times_the_loss(tmp_path):
    found = []
    for name, more in (("ddpm", {}), ("heavy", {"factor": 3.0})):
        out = tmp_path / name
        few = Every(log=4, checkpoint=4, samples=0)
        network = UNetConfig(width=8, multipliers=(1,), blocks=1, attention=(), head_width=8, patch=2)
        train(METHODS[name].configuration(
            data="critters:8", out=str(out), size=16, images=4, batch=4, every=few, workers=0, device="cpu",
            network=network, tensorboard=False, optimizer=Optimizer(warmup=0), **more), quiet=True)
        found.append(json.loads((out / "metrics.jsonl").read_text().splitlines()[0])["loss"])
    assert abs(found[1] / found[0] - 3.0) < 1e-5
''',
}
