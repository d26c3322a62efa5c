"""The configuration of a training run: what `ornstein train` takes, saves in the run, and loads back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch

from ..errors import ConfigError
from ..models.spec import Conditioned, DenoiserSpec, ModelSpec, PathName, Prediction
from ..networks import DiTConfig, NetworkChoice, UNetConfig
from ..objectives import Denoising, Objective
from ..options import Layout, check_fields
from ..parameterizations import SPELLINGS
from ..typed import typed
from .conditions import Text
from .limits import at_least
from .validation import Selection

if TYPE_CHECKING:
    from ..data.base import Source
    from ..denoisers import Denoiser
    from .divergence import DivergenceMonitor

Condition = Literal["none", "label", "text"]
Precision = Literal["no", "bf16", "fp16"]

_WARMUP = 10_000  # images, where no budget is known


@typed()
@dataclass(frozen=True, slots=True, kw_only=True)
class Optimizer:
    """AdamW with a linear warm-up."""

    kind: ClassVar[str] = "optimizer"

    lr: float = 1e-3
    """Learning rate after the warm-up."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay of the two running moments of the gradient."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.0
    """Decoupled decay of matrices and kernels; gains and biases are never decayed."""
    warmup: int | None = None
    """Images over which the learning rate grows from 0; by default a twentieth of the budget, at most 10,000."""
    decay: int = 0
    """After this many images the learning rate falls as 1/√images (EDM2); 0 keeps it constant."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 never clips."""

    def __post_init__(self) -> None:
        at_least(0, optimizer__warmup=self.warmup or 0, optimizer__decay=self.decay, optimizer__clip=self.clip)
        at_least(0, optimizer__weight_decay=self.weight_decay)
        if not 0.0 < self.lr < float("inf") or not 0.0 < self.eps < float("inf"):
            raise ConfigError(f"optimizer.lr and optimizer.eps must be positive numbers, got {self.lr} and {self.eps}")
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ConfigError(f"optimizer.betas must lie in [0, 1), got {self.betas}")
        check_fields(self)

    def make(self, groups: list[dict[str, object]], device: torch.device) -> torch.optim.Optimizer:
        """The optimizer of these groups of weights, each with its decay."""
        # One kernel for all weights, where there is one.
        fused = device.type in {"cpu", "cuda"}
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=fused)

    def rate(self, images: int) -> float:
        """The learning rate of the step that begins after ``images`` images."""
        rate = self.lr
        if self.decay:
            rate /= max(images / self.decay, 1.0) ** 0.5
        warmup = _WARMUP if self.warmup is None else self.warmup
        return rate * min((images + 1) / warmup, 1.0) if warmup else rate


@typed()
@dataclass(frozen=True, slots=True, kw_only=True)
class Averaging:
    """The power-function moving average of the weights (Karras et al. 2024), which samples are drawn from."""

    kind: ClassVar[str] = "averaging"

    sigma_rel: float = 0.1
    """Width of the average, as a part of the training so far: smaller follows more closely."""

    def __post_init__(self) -> None:
        if not 0.0 < self.sigma_rel < 0.28:
            raise ConfigError(f"ema.sigma_rel must lie in (0, 0.28), got {self.sigma_rel}; 0.05 to 0.15 is usual")
        check_fields(self)


@typed()
@dataclass(frozen=True, slots=True, kw_only=True)
class Every:
    """How often, counted in images."""

    kind: ClassVar[str] = "every"

    log: int | None = None
    """Images between two lines of the log; by default a fiftieth of the budget, at most 2,048."""
    checkpoint: int | None = None
    """Images between two checkpoints; by default a tenth of the budget, at most 65,536."""
    seconds: float = 600.0
    """A checkpoint also after this many seconds without one; 0 never (only in runs of one process)."""
    samples: int | None = None
    """Images between two grids of samples; by default a tenth of the budget, at least 4,096 and at most
    65,536; 0 never. The end always has one."""

    def __post_init__(self) -> None:
        at_least(
            1,
            **{f"every__{name}": given for name in ("log", "checkpoint") if (given := getattr(self, name)) is not None},
        )
        at_least(0, every__seconds=self.seconds, every__samples=self.samples or 0)
        check_fields(self)


@typed()
@dataclass(frozen=True, slots=True, kw_only=True)
class LatentOptions:
    """The latents that a model with --codec is trained on."""

    kind: ClassVar[str] = "latentoptions"

    statistics: Literal["element", "channel", "none"] = "element"
    """What brings them to a mean of 0: the data's statistics of each element, of each channel, or only the codec's own
    factor."""
    std: float = 0.5
    """The standard deviation that the statistics bring them to."""
    draw: bool = True
    """Draw from the encoder's posterior at every visit; --latents.no-draw always takes its mean."""

    def __post_init__(self) -> None:
        if not 0.0 < self.std < float("inf"):
            raise ConfigError(f"latents.std must be positive, got {self.std}")
        check_fields(self)


@typed()
@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Train a diffusion model.

    Example: ornstein train ddpm --data critters --out runs/critters --images 500000 --optimizer.lr 1e-3

    The same command continues a run that was stopped, exactly where it was.
    """

    kind: ClassVar[str] = "trainconfig"

    layout: ClassVar[Layout] = {
        "": ("data", "out", "size", "minutes", "images", "batch", "condition", "flip", "seed", "device", "network"),
        "Noise and prediction": ("path", "predicts", "sigma_data"),
        "Latents": ("codec",),
        "Process": ("precision", "workers", "keep", "strict", "tensorboard"),
    }
    takes_latents: ClassVar[bool] = True

    coarser: ClassVar[bool] = True
    """Whether a plan may choose the batch, and a network of coarser patches."""

    data: str = ""
    """What to train on (required, unless the run in OUT or its first weights know): critters, another built-in set, an
    image folder, parquet, hf:OWNER/NAME or shards."""
    out: str
    """Folder of the run."""
    size: int = 64
    """Side of the pictures in pixels."""
    images: int = 1_000_000
    """Budget: how many images the network sees."""
    minutes: float = 0.0
    """Budget in minutes on this machine, instead of images: batch, patches, warm-up, decay and the number of images
    follow from the measured time of a step. On a slower machine the run ends with its minutes. 0: images count."""
    codec: str = ""
    """Train on the latents of this codec: a run of ornstein train autoencoder, or a diffusers AutoencoderKL."""
    latents: LatentOptions = field(default_factory=LatentOptions)
    """The latents of --codec."""
    batch: int = 32
    """Images a step, over all processes."""
    seed: int = 0
    """Every random number of the run is a function of it."""
    flip: bool = False
    """Mirror half of the images."""
    condition: Condition = "none"
    """The condition of the network: none, the label of the image, or its caption."""
    path: PathName = "vp-cosine"
    """The forward law; vp-table is the usual table of 1000 linear betas."""
    predicts: Prediction = "clean"
    """What the network's output means; clean learns drawings soonest."""
    sigma_data: float = 0.5
    """Standard deviation of the data, for --predicts edm."""
    network: NetworkChoice = field(default_factory=UNetConfig.small)
    """The network: a U-Net, or dit, a transformer over patches."""
    text: Text = field(default_factory=Text)
    """The caption encoder."""
    objective: Denoising = field(default_factory=Denoising)
    """The loss."""
    optimizer: Optimizer = field(default_factory=Optimizer)
    """The optimizer."""
    ema: Averaging = field(default_factory=Averaging)
    """The average of the weights."""
    precision: Precision = "no"
    """Mixed precision of the network."""
    every: Every = field(default_factory=Every)
    """Intervals."""
    keep: int = 2
    """Checkpoints to keep, the newest."""
    workers: int | None = None
    """Processes that read data; by default none on a CPU and up to eight on a GPU. Changes no number."""
    device: Literal["auto", "cpu"] = "auto"
    """auto takes the best accelerator there is."""
    strict: bool = False
    """Only deterministic kernels: on a GPU, needed for bit-exact resuming; a CPU is exact without."""
    tensorboard: bool = True
    """TensorBoard files in OUT/tensorboard; --no-tensorboard writes none."""

    def __post_init__(self) -> None:
        at_least(1, size=self.size, images=self.images, batch=self.batch, keep=self.keep)
        object.__setattr__(self, "predicts", SPELLINGS.get(self.predicts, self.predicts))
        if not self.out:
            raise ConfigError("out is empty: name the folder of the run, e.g. --out runs/first")
        if not 0.0 <= self.minutes < float("inf"):
            raise ConfigError(f"minutes must not be negative, got {self.minutes}")
        if not self.sigma_data > 0.0:
            raise ConfigError(f"sigma_data must be positive, got {self.sigma_data}")
        if self.workers is not None and self.workers < 0:
            raise ConfigError(f"workers must not be negative, got {self.workers}")
        if self.path == "ve" and self.predicts != "edm":
            raise ConfigError(
                f"path ve with predicts {self.predicts}: its states reach a size of 80 and only edm scales them for "
                "the network; use --predicts edm"
            )
        if self.codec and not self.takes_latents:
            raise ConfigError(f"--codec {self.codec}: this method works on pictures, not on latents: leave it out")
        if self.codec and self.flip:
            raise ConfigError("--flip mirrors pictures, and the latents of mirrored pictures are others: leave it out")
        require_fit(self.network, "network", None if self.codec else self.size)
        check_fields(self)

    def natural_condition(self, source: Source) -> Condition:
        """The condition where none is named: labels, if the data has them."""
        return "label" if source.classes else "none"

    def with_budget(self, images: int) -> Self:
        """The configuration with another number of images, and whatever was tied to the old one."""
        return replace(self, images=images)

    def specify(self, source: Source) -> ModelSpec:
        """The model on this data: here `plain`."""
        return self.plain(source)

    def plain(self, source: Source) -> DenoiserSpec:
        """The denoiser on this data.

        Raises `ConfigError` where the data lacks the labels or captions that ``condition`` asks for.
        """
        from .conditions import conditioning_of

        known = conditioning_of(self.condition, self.text, source)
        shape = shape_of(source)
        require_fit(self.network, "network", shape[-1])
        return DenoiserSpec(
            shape=shape,
            path=self.path,
            predicts=self.predicts,
            sigma_data=self.sigma_data,
            network=replace(self.network, channels=shape[0], **known.options()),
            text=known.text,
            classes=known.classes,
        )

    def select(self, source: Source, device: torch.device) -> Selection:
        """What of the data is trained on, as the objective needs it, and what is measured on the rest: here all, and
        nothing.
        """
        del device
        return Selection(source)

    def prepare(self, model: Conditioned) -> None:
        """What is done to fresh weights, those of the model and of its average alike: here nothing."""
        del model

    def make_objective(self, spec: ModelSpec, device: torch.device, averages: Mapping[str, Denoiser]) -> Objective:
        """The objective of the model, with whatever it holds on ``device``; ``averages`` are the further ones, as
        denoisers.
        """
        del spec, device, averages
        return self.objective

    def averages(self) -> Mapping[str, Callable[[int], float]]:
        """Further averages of the weights, by name: what each keeps of itself at step 1, 2, …; here none."""
        return {}

    def monitor(self) -> DivergenceMonitor | None:
        """Optional divergence monitor; none by default."""
        return None

    def discriminator_settings(self) -> Optimizer:
        """The optimizer of the discriminator, if the objective has one (`ornstein.objectives.AdversarialObjective`)."""
        return self.optimizer


def shape_of(source: Source) -> tuple[int, int, int]:
    """(C, H, W) of the samples of a model of this data: pictures, or latents."""
    return getattr(source, "shape", (3, source.size, source.size))


def require_fit(network: UNetConfig | DiTConfig, name: str, size: int | None) -> None:
    """Raise `ConfigError` for a network that does not fit the size, or that says what follows from the data."""
    if size is not None and size % network.factor:
        raise ConfigError(f"size {size} does not divide by {network.factor}, as the network needs")
    for key in ("classes", "text_width", "vector_width"):
        if getattr(network, key, 0):
            raise ConfigError(f"{name}.{key} follows from --condition and the data: leave it out")
    if network.channels != 3 or getattr(network, "out_channels", None) is not None:
        raise ConfigError(f"{name}.channels and {name}.out_channels follow from the data: leave them out")
