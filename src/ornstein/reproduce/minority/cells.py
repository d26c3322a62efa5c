"""What `ornstein.reproduce.minority` trains: a model of the joined data, its scores, and the classifier of rarity.

The data are drawings of which most are critters; planets and landscapes are rare and known to be. A training lies in
the folder ``files`` under a name made of its settings and goes on there if it was killed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ... import rarity
from ...data import open_source
from ...data.joined import Joined
from ...runs import TrainedModel, open_own
from ...storage.files import digest
from ...training import Every, Optimizer, TrainConfig, train
from ...training.rarity import LinearDecayAdamW, RarityConfig, RarityLoss
from ..arms import SMALL

COUNTS: Mapping[str, int] = {"critters": 3800, "planets": 120, "landscape": 180}
"""The parts of the data; the first is common, the others are the known rare classes."""
DATA = "+".join(f"{name}:{count}" for name, count in COUNTS.items())
RARE = tuple(COUNTS)[1:]
SIZE, BATCH, RARITIES = 32, 32, 10

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What one seed's model is: part of every cell's settings."""

    data: str
    size: int
    seed: int
    images: int  # that the model is trained on
    log_snr: float
    distance: str
    draws: int
    taught: int  # images that the classifier is trained on

    @staticmethod
    def of(row: Mapping[str, Any]) -> Setting:
        """From a cell's settings, which may hold more."""
        return Setting(**{name: row[name] for name in Setting.__slots__})

    def folder(self, files: Path, what: str) -> Path:
        """Where a training lies."""
        known: tuple[Any, ...] = (self.data, self.size, self.seed, self.images)
        if what != "base":
            known += (self.log_snr, self.distance, self.draws)
        if what == "classifier":
            known += (self.taught,)
        return files / f"{what}-{self.seed}-{digest(*known)[:12]}"


# ------------------------------------------------------------------------------------------------------- the model


def based(*, data: str, size: int, seed: int, images: int, files: Path) -> Json:
    """Train the model of a seed: ``{"parameters", "seconds", "loss"}``."""
    config = TrainConfig(
        data=data,
        out=str(files / f"base-{seed}-{digest(data, size, seed, images)[:12]}"),
        size=size,
        images=images,
        batch=BATCH,
        seed=seed,
        network=SMALL,
        optimizer=Optimizer(lr=1e-3, warmup=min(2048, images // 4)),
        every=Every(log=max(images // 8, 1), checkpoint=4096, seconds=0, samples=0),
        keep=1,
        workers=0,
        device="cpu",
        tensorboard=False,
    )
    summary = train(config, quiet=True)
    return {"parameters": summary.parameters, "seconds": summary.seconds, "loss": summary.loss}


@lru_cache(maxsize=2)
def model(setting: Setting, files: Path) -> TrainedModel:
    """The trained model, trained again if its folder was lost."""
    folder = setting.folder(files, "base")
    if not folder.is_dir():
        based(data=setting.data, size=setting.size, seed=setting.seed, images=setting.images, files=files)
    return open_own(folder)


@lru_cache(maxsize=2)
def source(data: str, size: int) -> Joined:
    """The joined data."""
    found = open_source(data, size=size)
    assert isinstance(found, Joined)
    return found


# ------------------------------------------------------------------------------------------------------- the scores


def table(setting: Setting, files: Path) -> rarity.Table:
    """The scores of every training image, computed once."""
    recipe = rarity.Recipe(log_snr=setting.log_snr, distance=setting.distance, draws=setting.draws, seed=setting.seed)
    out = setting.folder(files, "scores").with_suffix(".csv")
    found = rarity.score(model(setting, files), source(setting.data, setting.size), out, recipe)
    assert found is not None
    return found


def scored(*, files: Path, **row: Any) -> Json:
    """How well the scores tell the known rare classes from the common one.

    ``{"auc": {part: area, "rare": area}, "share": {part: part of it in the rarest class}}``; an area is the probability
    that a rare image scores higher than a common one.
    """
    setting = Setting.of(row)
    found = table(setting, files)
    common = found.scores[found.labels == 0]
    classes = rarity.quantile_classes(found.scores, RARITIES)
    auc, share = {}, {}
    for number, name in enumerate(found.classes[1:], 1):
        own = found.labels == number
        auc[name], share[name] = area(found.scores[own], common), float((classes[own] == RARITIES - 1).mean())
    auc["rare"] = area(found.scores[found.labels > 0], common)
    return {"auc": auc, "share": share}


def area(above: npt.NDArray[np.float64], below: npt.NDArray[np.float64]) -> float:
    """P(a > b) + ½·P(a = b) for a of one sample and b of the other: the area under the ROC curve.

    >>> area(np.array([2.0, 3.0]), np.array([1.0, 2.0]))
    0.875
    """
    ordered = np.sort(below)
    wins = np.searchsorted(ordered, above, "left") + np.searchsorted(ordered, above, "right")
    return float(wins.mean() / (2.0 * len(below)))


# --------------------------------------------------------------------------------------------------- the classifier


def taught(*, files: Path, **row: Any) -> Json:
    """Train the noise-conditioned classifier: ``{"seconds", "log_snr", "accuracy", "loss"}`` on held-out images."""
    import torch

    setting = Setting.of(row)
    table(setting, files)
    config = teaching(setting, files)
    summary = train(config, quiet=True)
    run = open_own(config.out)
    held = config.select(source(setting.data, setting.size), torch.device("cpu")).validation
    assert held is not None
    found = held(run.denoiser)
    return {"seconds": summary.seconds, **{name: found[name] for name in ("log_snr", "accuracy", "loss")}}


def teaching(setting: Setting, files: Path) -> RarityConfig:
    """The classifier's training: the encoder half of the model's own network."""
    return RarityConfig(
        data=setting.data,
        scores=str(setting.folder(files, "scores").with_suffix(".csv")),
        out=str(setting.folder(files, "classifier")),
        size=setting.size,
        classes=RARITIES,
        validation_fraction=0.1,
        images=setting.taught,
        batch=BATCH,
        seed=setting.seed,
        network=SMALL,
        objective=RarityLoss(),
        optimizer=LinearDecayAdamW(lr=1e-3, warmup=min(1024, setting.taught // 4)),
        every=Every(log=max(setting.taught // 4, 1), checkpoint=4096, seconds=0, samples=0),
        validate=10**9,
        keep=1,
        workers=0,
        device="cpu",
        tensorboard=False,
    )


@lru_cache(maxsize=2)
def classifier(setting: Setting, files: Path) -> rarity.RarityClassifier:
    """The trained classifier."""
    folder = setting.folder(files, "classifier")
    if not folder.is_dir():
        table(setting, files)
        train(teaching(setting, files), quiet=True)
    return rarity.load(folder)
