"""The options of `ornstein sample`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from ..errors import UsageError
from ..options import Count, Index, Layout, Option, Positive, Share, check_fields
from .interpolate import LatentArgs


@dataclass(frozen=True, kw_only=True)
class SampleArgs(LatentArgs):
    """Images from a run, a checkpoint folder, or the shipped model ("critters").

    Example: ornstein sample runs/critters --steps 20 --n 16 --out out/critters
    """

    layout: ClassVar[Layout] = {
        "": ("run", "n", "steps", "sampler", "seed", "label", "prompt", "guidance_scale", "guide", "out", "device"),
        "Steps and noise": ("evaluations", "grid", "first", "resample", "prior_scale", "skip_steps", "interpolate"),
        "Begin from a picture": ("init", "strength", "mask"),
        "Few-step models": ("ema", "resample_level", "keep_noise", "posterior"),
        "Text-to-image models": ("size", "refiner", "lora"),
        "Prompts and guidance": ("prompts", "negative_prompt", "guidance"),
        "Guides": ("guide_source", "differentiate_through", "guide_window", "guide_placement", "backward"),
        "Output": ("batch", "columns", "strict", "json"),
    }

    run: Annotated[str, Option(positional=True, value="MODEL")]
    """A run, a checkpoint, an exported folder, a shipped model, a diffusers pipeline (folder or hub name), or a file of
    UDPM."""
    n: Count = 16
    """How many images."""
    steps: Count | None = None
    """Length of the time grid, 20 by default; 1 or 2 of a consistency model."""
    sampler: str | None = None
    """dpmpp-2m by default; auto chooses; an unknown name lists them all. Or package.module:Class of your own."""
    seed: int = 0
    """Image i depends on (seed, i) alone."""
    label: Annotated[tuple[str, ...], Option(value="CLASS…", empty=True)] = ()
    """Class names or numbers, cycled over the images; by default all of the model."""
    prompt: Annotated[tuple[str, ...], Option(value="TEXT", single=True, aliases=("--caption",), empty=True)] = ()
    """A caption. Repeat it for several, cycled over the images."""
    guidance_scale: float = 1.0
    """Weight of classifier-free guidance toward the label or prompt; 1 is none."""
    guide: Annotated[tuple[str, ...], Option(value="KIND:ARG", single=True)] = ()
    """A guide, KIND:ARG[:WEIGHT]; repeat it for several. ornstein guides lists them."""
    out: Path = Path("out/samples")
    """Folder for the PNGs and grid.png."""
    device: str = "cpu"
    """Where to run, e.g. cuda."""

    evaluations: Count | None = None
    """Instead of --steps: as many steps as fit into this number of network evaluations."""
    grid: Literal["default", "karras", "log-snr", "uniform", "quadratic"] = "default"
    """How the times are spread; the default suits the path of the model (and comes from auto with --sampler auto)."""
    first: Index = 0
    """Number of the first image in the stream, to split a large job."""
    resample: Count = 1
    """Take every step so many times, with fresh noise in between: guides get closer, at that many times the cost."""
    prior_scale: Positive = 1.0
    """Start from so many times the usual noise, for rarer images (Boost-and-Skip): with --skip-steps, and a sampler
    with noise."""
    skip_steps: Index = 0
    """Leave out so many steps at the beginning."""
    init: Annotated[tuple[Path, ...], Option(value="FILE", single=True)] = ()
    """A picture to begin from instead of noise; repeat it for several, cycled over the images."""
    strength: Annotated[Share | None, Option(value="0…1")] = None
    """The noise level (2/π)·arctan(σ/α) that --init is taken to: 0.3 keeps most of it, 1 nothing; 0.6 by default, 1
    with
    --mask."""
    mask: Annotated[Path | None, Option(value="FILE")] = None
    """A picture of the size of --init: what is white there is drawn anew, what is black stays."""
    size: Annotated[str | None, Option(value="WIDTHxHEIGHT")] = None
    """Pixels of the pictures of a diffusers pipeline or SDXL, such as 1024x768; by default what it was trained on."""
    refiner: Annotated[str | None, Option(value="MODEL")] = None
    """SDXL's refiner, a folder or one file: it takes over for the last 200 of 1,000 noise levels."""
    lora: Annotated[tuple[str, ...], Option(value="FILE[:SCALE]", single=True)] = ()
    """A LoRA to lay on the model, and its strength, 1 by default; repeat it for several."""
    ema: Positive | None = None
    """A further average of the weights, by its number in --ema.also of the training."""
    prompts: Path | None = None
    """A text file with a prompt on each line, cycled over the images."""
    negative_prompt: Annotated[str | None, Option(value="TEXT", empty=True)] = None
    """What classifier-free guidance leads away from, instead of the empty caption."""
    guidance: Annotated[tuple[str, ...], Option(value="NAME[:NUMBER]", single=True)] = ()
    """A guidance, such as pag:3 or cfg:7,rescale=0.7; --guidance help lists them. Repeat it for several; each acts on
    the estimate of the one before. --guidance-scale is cfg before all others."""
    guide_source: Annotated[tuple[str, ...], Option(value="KIND=SOURCE[:WEIGHTS]", single=True)] = ()
    """The network behind a kind of guide: own, package or standard, with the path of its weights."""
    differentiate_through: Literal["network", "estimate"] = "network"
    """Whether the guides' gradient passes the model, or stops at its clean estimate, which costs half the time."""
    guide_window: Annotated[str | None, Option(value="LOW:HIGH")] = None
    """Noise levels σ/α at which guides act; everywhere by default."""
    guide_placement: Literal["joint", "separate"] = "joint"
    """Guides see the estimate of --guidance-scale and --guidance, or the unconditional model, and both shifts are
    added."""
    backward: Annotated[str | None, Option(value="STEPS[:RATE]")] = None
    """Steps of descent on the clean estimate after the guides' gradient, and their size a pixel (0.01)."""
    batch: Count = 16
    """Images at a time."""
    columns: Index = 0
    """Columns of the grid picture (0: about square)."""
    strict: bool = False
    """One image at a time with deterministic kernels: equal PNG bytes for every batch size and split."""
    json: bool = False
    """Print one JSON document about what was written."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.steps is not None and self.evaluations is not None:
            raise UsageError("give --steps or --evaluations, not both")
        if self.prompt and self.prompts is not None:
            raise UsageError("give --prompt or --prompts, not both")
        if not self.init and (self.strength is not None or self.mask is not None):
            raise UsageError("--strength and --mask need --init: the picture to begin from")
        if self.init and (self.prior_scale != 1.0 or self.skip_steps):
            raise UsageError("--prior-scale and --skip-steps change the start from noise, --init begins at a picture")
        if self.strength == 0.0:
            raise UsageError("--strength 0 changes nothing: give a noise level above 0")
        if self.label and (self.prompt or self.prompts is not None):
            raise UsageError("give --label or --prompt, not both: a model takes one of them")

    @property
    def conditioned(self) -> bool:
        """Whether a label or a prompt is given."""
        return bool(self.label or self.prompt or self.prompts is not None)

    @property
    def noise_level(self) -> float | None:
        """The strength of --init; None without one."""
        if not self.init:
            return None
        return (0.6 if self.mask is None else 1.0) if self.strength is None else self.strength
