"""The rarity classifier as a method of the trainer: a class of rarity, or the score itself, from a noisy image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..data.base import Derived, Example, Source
from ..denoisers import Denoiser
from ..errors import ConfigError
from ..models.rarity import LITE0, Head, RaritySpec
from ..models.rarity_network import Lite0Features, RunFeatures
from ..models.spec import Conditioned, DenoiserSpec, ModelSpec, PathName, Prediction
from ..networks import UNetConfig
from ..objectives import Denoising, Losses, Objective, TrainBatch
from ..objectives.denoising import TimeLaw
from ..options import Absent, Choice, Layout, check_fields
from ..randomness import Noise, mix
from ..rarity.classes import held_out, normal_scores, quantile_classes
from ..rarity.table import Table
from ..storage.files import digest
from ..typed import typed
from .conditions import Text
from .config import Condition, Every, Optimizer, TrainConfig
from .validation import Selection

_LEVELS = (-8.0, -5.0, -3.0, -1.0, 1.0, 3.0, 5.0, 8.0)  # log-SNRs of the validation
_VALIDATED = 256


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoredDataset(Derived):
    """The examples of a source that stand in ``rows`` of a table; each one's label is its row."""

    rows: tuple[int, ...]
    about: str

    @property
    def fingerprint(self) -> str:
        """Digest of the source, the scores and what is held out."""
        return digest(self.source.fingerprint, self.about)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        row = self.rows[index]
        return replace(self.source[row], label=row)


@typed()
@dataclass(frozen=True, slots=True, kw_only=True)
class RarityLoss:
    """Cross-entropy of the class of rarity, or −log N(y; μ, s) of the normal score y, at a random noise level."""

    kind: ClassVar[str] = "rarityloss"
    renamed: ClassVar[Mapping[str, str]] = {"drop": "label_dropout"}

    times: TimeLaw = "uniform"
    """Law of the training times on --path: uniform, log-normal, logit-normal, or auto (as for ddpm)."""
    mean: float | None = None
    """Mean of the normal law; by default -1.2 (log-normal) or 0 (logit-normal)."""
    std: float | None = None
    """Standard deviation of the normal law; by default 1.2 (log-normal) or 1 (logit-normal)."""
    stratified: bool = True
    """Spread the times of successive samples evenly; --objective.no-stratified draws each by itself."""
    label_dropout: float = 0.1
    """With --condition label: part of the samples trained without their label."""
    crop: float = 0.8
    """Smallest side of a random crop, as a part of the image, enlarged to the image again; 1 never crops."""

    def __post_init__(self) -> None:
        if not 0.0 < self.crop <= 1.0:
            raise ConfigError(f"objective.crop must lie in (0, 1], got {self.crop}")
        self.posing()
        check_fields(self)

    def posing(self) -> Denoising:
        """The law of times and dropped labels, which is that of denoising."""
        return Denoising(
            times=self.times, mean=self.mean, std=self.std, stratified=self.stratified, label_dropout=self.label_dropout
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class RarityObjective:
    """The `Objective`: the loss and what stands in the table, on the device. Labels −1 are no label."""

    loss: RarityLoss
    head: Head
    classes: Tensor  # (N,) int64
    normal: Tensor  # (N,) float32
    labels: Tensor  # (N,) int64
    conditional: bool

    def __call__(self, model: Denoiser, batch: TrainBatch, noise: Noise, progress: float) -> Losses:
        """One term, ``rarity``, and the ``accuracy`` of the class, watched."""
        del progress
        rows = batch.cond["row"]
        clean = _cropped(batch.clean, noise, self.loss.crop)
        cond = {"label": self.labels[rows]} if self.conditional else {}
        noisy = self.loss.posing().make_noisy_batch(model.path, replace(batch, clean=clean, cond=cond), noise)
        raw = classify(model, noisy.x, noisy.t, noisy.cond)
        terms, right = self.scored(raw, rows)
        return Losses(terms={"rarity": terms}, times=noisy.t, watched={"accuracy": right})

    def scored(self, raw: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(losses (B,), whether the class is right (B,)) of the outputs of the network."""
        if self.head == "classes":
            classes = self.classes[rows]
            return functional.cross_entropy(raw.float(), classes, reduction="none"), (raw.argmax(1) == classes).float()
        mean, log_std = raw.float().unbind(1)
        distance = (self.normal[rows] - mean) * torch.exp(-log_std)
        return 0.5 * distance.square() + log_std, 1.0 - (self.normal[rows] - mean).abs().clamp(max=1.0)


def classify(model: Denoiser, x: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
    """The output of the network at states x (B, C, H, W) at times t (B,) of the model's path."""
    path: Any = model.path
    unit = 1.0 / torch.sqrt(path.alpha(t) ** 2 + path.sigma(t) ** 2)
    return model.net(x * unit.to(x)[:, None, None, None], path.log_snr(t).to(x), **cond)


def _cropped(images: Tensor, noise: Noise, least: float) -> Tensor:
    """A square of side ``least`` … 1 at a random place, enlarged to the whole (bilinear)."""
    if least == 1.0:
        return images
    # 1/side is uniform, as where an image is enlarged first and then cropped to its size.
    side = 1.0 / (1.0 + (1.0 / least - 1.0) * noise.uniform_per_sample("crop side"))
    x, y = ((1.0 - side) * (2.0 * noise.uniform_per_sample(f"crop {axis}") - 1.0) for axis in ("x", "y"))
    zero = torch.zeros_like(side)
    theta = torch.stack((torch.stack((side, zero, x), 1), torch.stack((zero, side, y), 1)), 1).to(images)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


@dataclass(frozen=True, kw_only=True, eq=False)
class RarityValidation:
    """Accuracy and loss by noise level on held-out examples, with noise that is always the same."""

    source: Source
    rows: tuple[int, ...]
    rating: RarityObjective
    seed: int
    every: int

    @cached_property
    def images(self) -> Tensor:
        """(V, 3, R, R) in [−1, 1]."""
        return torch.stack([self.source[row].image for row in self.rows]).float().div(127.5).sub(1.0)

    @torch.no_grad()
    def __call__(self, model: Denoiser) -> dict[str, Any]:
        """The entries of a line of the log."""
        path: Any = model.path
        device, rows = self.rating.classes.device, torch.tensor(self.rows)
        levels = [s for s in _LEVELS if path.log_snr(path.t_range[1]) <= s <= path.log_snr(path.t_min)]
        losses, right = [], []
        for level in levels:
            sums = torch.zeros(2, dtype=torch.float64)
            for begin in range(0, len(rows), 64):
                part = rows[begin : begin + 64]
                noise = Noise.of(mix(self.seed, "validation"), part.tolist())
                clean = self.images[begin : begin + 64].to(device)
                t = torch.full((len(part),), path.time_of(level), dtype=torch.float64)
                x = path.diffuse(clean, t, noise.normal(("validation", str(level)), clean.shape[1:]).to(clean))
                cond = {"label": self.rating.labels[part.to(device)]} if self.rating.conditional else {}
                found = self.rating.scored(classify(model, x, t, cond), part.to(device))
                sums += torch.stack([value.double().sum().cpu() for value in found])
            losses.append(float(sums[0]) / len(rows))
            right.append(float(sums[1]) / len(rows))
        return {"examples": len(rows), "log_snr": levels, "loss": losses, "accuracy": right}


@typed()
@dataclass(frozen=True, slots=True, kw_only=True)
class LinearDecayAdamW(Optimizer):
    """AdamW, its learning rate falling linearly to 0."""

    kind: ClassVar[str] = "falling"

    lr: float = 3e-4
    """Learning rate after the warm-up."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the two running moments of the gradient."""
    weight_decay: float = 0.05
    """Decoupled decay of matrices and kernels; gains and biases are never decayed."""
    warmup: int | None = 0
    """Images over which the learning rate grows from 0."""
    over: int = 0
    """Images over which the learning rate falls linearly to 0; 0 takes --images, -1 never lets it fall."""

    def rate(self, images: int) -> float:
        """The learning rate of the step that begins after ``images`` images."""
        left = max(1.0 - images / self.over, 0.0) if self.over > 0 else 1.0
        return Optimizer.rate(self, images) * left


@typed()
@dataclass(frozen=True, slots=True, kw_only=True)
class RarityConfig(TrainConfig):
    """Train a classifier of rarity on noisy images, for minority guidance.

    Example: ornstein train rarity-classifier --scores scores.csv --data critters --out runs/rarity --classes 10

    --scores is a table of ornstein score for the same data. With --condition label the classes are quantiles within
    each label, and the label is an input of the classifier. The same command continues a run that was stopped.
    """

    kind: ClassVar[str] = "rarityconfig"
    renamed: ClassVar[Mapping[str, str]] = {"hold": "validation_fraction"}

    coarser: ClassVar[bool] = False  # the published batches
    layout: ClassVar[Layout] = {**TrainConfig.layout, "": ("scores", *TrainConfig.layout[""])}

    takes_latents: ClassVar[bool] = False

    scores: str
    """The table of scores, made by ornstein score from the same data."""
    classes: int = 100
    """Number L of classes of rarity, equally large; L - 1 is the rarest."""
    head: Head = "classes"
    """classes: logits of the classes; gaussian: mean and deviation of the score's normal quantile."""
    features: str = ""
    """Frozen network that the classifier looks through: a run (or checkpoint, card, shipped model), or lite0; by
    default none, the classifier sees the image."""
    sites: tuple[str, ...] = ("mid.1.hidden",)
    """Sites of the run in --features whose features are taken."""
    validation_fraction: float = 0.05
    """Part of each class kept for validation."""
    validate: int = 16_384
    """Images between two validations; they come with lines of the log."""
    images: int = 15_360_000
    """Budget: how many images the network sees, over all epochs."""
    batch: int = 256
    """Images a step, over all processes."""
    flip: bool = True
    """Mirror half of the images; --no-flip mirrors none."""
    path: PathName = "vp-linear"
    """Law of the training noise; the time input of the classifier is the log-SNR, so it serves every path."""
    predicts: Absent[Prediction] = "noise"
    sigma_data: Absent[float] = 0.5
    text: Absent[Text] = field(default_factory=Text)
    network: Annotated[UNetConfig, Choice("unet")] | Annotated[None, Choice("auto")] = None
    """The encoder; by default small for images, one level of width 128 for features."""
    objective: RarityLoss = field(default_factory=RarityLoss)  # pyright: ignore[reportIncompatibleVariableOverride]
    """The loss."""
    optimizer: LinearDecayAdamW = field(default_factory=LinearDecayAdamW)
    """The optimizer."""
    every: Every = field(default_factory=lambda: Every(samples=0))
    """Intervals."""

    def __post_init__(self) -> None:
        if self.network is None:
            object.__setattr__(self, "network", _FOR_FEATURES if self.features else UNetConfig.small())
        if self.optimizer.over == 0:
            object.__setattr__(self, "optimizer", replace(self.optimizer, over=self.images))
        TrainConfig.__post_init__(self)
        if self.every.samples:
            raise ConfigError("a rarity classifier draws no samples: leave --every.samples out")
        if self.classes < 2:
            raise ConfigError(f"classes must be at least 2, got {self.classes}")
        if not 0.0 <= self.validation_fraction < 1.0 or self.validate < 1:
            raise ConfigError(
                "validation_fraction must lie in [0, 1) and validate be at least 1, got "
                f"{self.validation_fraction}, {self.validate}"
            )
        if self.condition == "text":
            raise ConfigError("a rarity classifier takes labels or nothing: use --condition none or label")

    def natural_condition(self, source: Source) -> Condition:
        """None: the classifier serves models with and without labels."""
        del source
        return "none"

    def with_budget(self, images: int) -> Self:
        """The learning rate falls over the new budget where it fell over the old one."""
        over = images if self.optimizer.over == self.images else self.optimizer.over
        return replace(self, images=images, optimizer=replace(self.optimizer, over=over))

    def specify(self, source: Source) -> RaritySpec:
        """The classifier on this data, or on the view of it.

        Raises `ConfigError` for labels that are missing, or a feature run of another size.
        """
        if self.condition == "label" and not source.classes:
            raise ConfigError(f"--condition label: {source.name} has no labels; use none")
        known = tuple(source.classes) if self.condition == "label" else ()
        front = self._front() if self.features not in {"", LITE0} else None
        channels = 3 if front is None else _channels(front, self.sites)
        if self.features == LITE0:
            channels = Lite0Features.channels
        assert isinstance(self.network, UNetConfig)
        return RaritySpec(
            shape=(3, self.size, self.size),
            path=self.path,
            network=replace(self.network, channels=channels, classes=len(known)),
            classes=known,
            rarities=self.classes,
            head=self.head,
            seen="" if not self.features else LITE0 if self.features == LITE0 else "run",
            front=front,
            sites=self.sites if front is not None else (),
        )

    def _front(self) -> DenoiserSpec:
        from ..runs import open_own

        spec = open_own(self.features).spec
        if isinstance(spec, RaritySpec):
            raise ConfigError(f"--features {self.features} is a rarity classifier itself: give a run that makes images")
        if not isinstance(spec, DenoiserSpec):
            raise ConfigError(f"--features {self.features} makes no images itself: give a run that does")
        if spec.shape != (3, self.size, self.size):
            raise ConfigError(
                f"--features {self.features} makes images of {spec.shape[-1]} pixels: give --size {spec.shape[-1]}"
            )
        return spec

    def select(self, source: Source, device: torch.device) -> Selection:
        """The scored examples that are not held out; accuracy and loss on the others, every ``validate`` images.

        Raises `DataError` where the scores are those of other data.
        """
        table, classes, held = self._rated()
        table.check(source)
        rows = np.flatnonzero((classes >= 0) & ~held)
        about = digest(table.scores.tolist(), self.classes, self.validation_fraction, self.seed, self.condition)
        trained = ScoredDataset(source=source, rows=tuple(rows.tolist()), about=about)
        rows = np.flatnonzero(held)
        if not len(rows):
            return Selection(trained)
        chosen = rows[np.linspace(0, len(rows) - 1, min(len(rows), _VALIDATED)).round().astype(int)]
        objective, every = self._rating(device), self.validate
        rows = tuple(chosen.tolist())
        return Selection(
            trained, RarityValidation(source=source, rows=rows, rating=objective, seed=self.seed, every=every)
        )

    def _rated(self) -> tuple[Table, Any, Any]:
        table = Table.read(self.scores)
        known = int((~np.isnan(table.scores)).sum())
        if known < self.classes:
            raise ConfigError(f"--classes {self.classes} needs as many images with a score, got {known}: ask for fewer")
        classes = quantile_classes(table.scores, self.classes, self._groups(table))
        return table, classes, held_out(classes, self.validation_fraction, self.seed)

    def _groups(self, table: Table) -> Any:
        return table.labels if self.condition == "label" else None

    def prepare(self, model: Conditioned) -> None:
        """The weights of the frozen feature network."""
        if self.features in {"", LITE0}:
            return
        from ..runs import open_own

        net: Any = model.net
        net.features.net.load_state_dict(open_own(self.features).model.net.state_dict())

    def make_objective(self, spec: ModelSpec, device: torch.device, averages: Mapping[str, Denoiser]) -> Objective:
        """The objective with the table."""
        del spec, averages
        return self._rating(device)

    def _rating(self, device: torch.device) -> RarityObjective:
        table, classes, _ = self._rated()
        normal = np.nan_to_num(normal_scores(table.scores, self._groups(table)))
        return RarityObjective(
            loss=self.objective,
            head=self.head,
            classes=torch.as_tensor(classes, device=device),
            normal=torch.as_tensor(normal, dtype=torch.float32, device=device),
            labels=torch.as_tensor(table.labels, device=device),
            conditional=self.condition == "label",
        )


_FOR_FEATURES = UNetConfig(width=128, multipliers=(1,), blocks=2, attention=(0,), head_width=64)


def _channels(spec: DenoiserSpec, at: tuple[str, ...]) -> int:
    """Channels of the features at these sites."""
    net = spec.build().net
    features = RunFeatures(spec, net, at)
    with torch.no_grad():
        return features(torch.zeros(1, *spec.shape), torch.zeros(1)).shape[1]
