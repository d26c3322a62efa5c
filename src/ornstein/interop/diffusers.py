"""A diffusers pipeline as a denoiser, with the pipeline's own text encoders and its autoencoder as a codec.

from ornstein.interop.diffusers import from_pipeline

piped = from_pipeline("path/to/stable-diffusion-xl")            # a folder, a hub name, or a loaded pipeline
guided = orn.guidance.CFG(weight=5.0, null=piped.null())(piped.denoiser)
images = orn.sample(guided, n=2, cond=piped.cond(["a red fox", "a blue fox"]))

The loop, sampler and guidance are ours; from the pipeline come networks, weights and what its configuration says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..denoisers import Denoiser
from ..errors import UsageError
from ..grids import Grid
from ..latents.codec import Codec
from .loading import diffusers_library, silenced
from .schedulers import from_scheduler_config, times_of_pipeline
from .vae import wrap_vae

PipelineKind = Literal["pixels", "text", "text-xl", "labels"]

KNOWN: Mapping[str, PipelineKind] = {
    "DDPMPipeline": "pixels",
    "DDIMPipeline": "pixels",
    "ConsistencyModelPipeline": "pixels",
    "DiTPipeline": "labels",
    "StableDiffusionPipeline": "text",
    "StableDiffusionImg2ImgPipeline": "text",
    "StableDiffusionXLPipeline": "text-xl",
    "StableDiffusionXLImg2ImgPipeline": "text-xl",
}
"""The pipelines that `from_pipeline` takes, by class name."""


class Adapted(nn.Module):
    """A diffusers network under our calling convention: ``net(x, time, label=…, text=…, pooled=…, time_ids=…)``."""

    def __init__(self, net: nn.Module, kind: PipelineKind, labelled: bool) -> None:
        super().__init__()
        self.net, self.kind, self.labelled = net, kind, labelled

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        *,
        label: Tensor | None = None,
        text: Tensor | None = None,
        pooled: Tensor | None = None,
        time_ids: Tensor | None = None,
    ) -> Tensor:
        """x (B, C, H, W), time (B,), label (B,), text (B, L, D), pooled (B, P), time_ids (B, 6) → (B, C', H, W)."""
        if self.labelled and label is None:
            raise UsageError("this network is class-conditional: bind cond(labels=[…]) with with_condition()")
        told: dict[str, Any] = {"class_labels": label} if self.labelled else {}
        if self.kind in ("text", "text-xl"):
            if text is None or (self.kind == "text-xl" and (pooled is None or time_ids is None)):
                raise UsageError("this network takes captions: bind cond([…]) or null() with with_condition()")
            told["encoder_hidden_states"] = text.to(x.dtype)
            if pooled is not None and time_ids is not None:
                told["added_cond_kwargs"] = {"text_embeds": pooled.to(x.dtype), "time_ids": time_ids.to(x.dtype)}
        return self.net(x, timestep=time, return_dict=False, **told)[0]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DiffusersModel:
    """An opened pipeline, with the members of an `ornstein.runs.TrainedModel`.

    ``denoiser`` knows the shape of its samples, its codec and, for text models, is bound to the empty caption.
    """

    pipe: Any
    denoiser: Denoiser
    kind: PipelineKind
    folder: Path
    name: str
    classes: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def codec(self) -> Codec | None:
        """Its autoencoder; None for a pipeline of pixels."""
        return self.denoiser.codec

    @property
    def condition(self) -> Literal["none", "label", "text"]:
        """The kind of condition that the network takes."""
        if self.kind in ("text", "text-xl"):
            return "text"
        return "label" if self._labelled else "none"

    @property
    def weights(self) -> Path:
        """Where the weights came from."""
        return self.folder

    @property
    def images(self) -> int:
        """Unknown: 0."""
        return 0

    @property
    def parameters(self) -> int:
        """Number of weights of the denoising network."""
        assert isinstance(self.denoiser.net, nn.Module)
        return sum(parameter.numel() for parameter in self.denoiser.net.parameters())

    @property
    def picture(self) -> tuple[int, int, int]:
        """(3, H, W) of what is decoded."""
        channels, height, width = self.denoiser.shape or (3, 0, 0)
        if self.codec is None:
            return channels, height, width
        return 3, height * self.codec.factor, width * self.codec.factor

    def grid(self, steps: int) -> Grid:
        """The times that the pipeline's scheduler would use; of a few-step model they climb.

        For other models any grid works, and ours often better.
        """
        if self.denoiser.grid is not None:
            return self.denoiser.grid(steps)
        times = times_of_pipeline(self.pipe.scheduler, self.denoiser.path, steps)  # pyright: ignore[reportArgumentType]
        return Grid(f"{type(self.pipe.scheduler).__name__}({steps})", lambda _: times)

    def cond(
        self,
        captions: Sequence[str] | None = None,
        *,
        labels: Sequence[int | str] | None = None,
        original: tuple[int, int] | None = None,
        crop: tuple[int, int] = (0, 0),
        target: tuple[int, int] | None = None,
    ) -> dict[str, Tensor]:
        """The condition for `Denoiser.with_condition`: captions through the pipeline's own encoders, or labels.

        SDXL also takes the sizes (height, width) of the ``original`` and ``target`` picture, by default the one that
        is made, and the ``crop``'s top left corner. Raises `UsageError` for a condition that the pipeline takes not.
        """
        if (captions is None) == (labels is None):
            raise UsageError("give either captions or labels")
        if labels is not None:
            return {"label": torch.tensor([self._label(one) for one in labels], device=self.denoiser.device)}
        if self.condition != "text":
            raise UsageError(f"{self.name} takes no captions (its condition is {self.condition})")
        if isinstance(captions, str):
            raise UsageError(f"captions are a list, one a sample: write [{captions!r}]")
        return self._told(list(captions or ()), self._sizes(original, crop, target))

    def null(self, rows: int = 1, *, negative: str | None = None) -> dict[str, Tensor]:
        """The empty condition for classifier-free guidance, as the pipeline makes it; or a ``negative`` caption.

        Without one SDXL takes zeros (``force_zeros_for_empty_prompt``), which is not the encoding of "".
        """
        if self.condition == "none":
            return {}
        if self.condition == "label":
            if self.kind != "labels":
                raise UsageError(f"{self.name} knows no empty label, so it has no classifier-free guidance")
            count = int(self.pipe.transformer.config.num_embeds_ada_norm)
            return {"label": torch.full((rows,), count, device=self.denoiser.device)}
        told = self._told([negative or ""] * rows, self._sizes(None, (0, 0), None))
        if self.kind == "text-xl" and negative is None and self.pipe.config.force_zeros_for_empty_prompt:
            told |= {key: torch.zeros_like(told[key]) for key in ("text", "pooled")}
        return told

    @property
    def _labelled(self) -> bool:
        net = self.denoiser.net
        return isinstance(net, Adapted) and net.labelled

    def _label(self, label: int | str) -> int:
        if not self._labelled:
            raise UsageError(f"{self.name} takes no labels (its condition is {self.condition})")
        if isinstance(label, str) and label in self.classes:
            return self.classes.index(label)
        if isinstance(label, str) and not label.isdecimal():
            raise UsageError(f"unknown label {label!r}: give a number" + (" or a name" if self.classes else ""))
        return int(label)

    def _sizes(
        self, original: tuple[int, int] | None, crop: tuple[int, int], target: tuple[int, int] | None
    ) -> tuple[int, ...]:
        own = self.picture[1:]
        return (*(original or own), *crop, *(target or own))

    @torch.no_grad()
    def _told(self, captions: list[str], sizes: tuple[int, ...]) -> dict[str, Tensor]:
        """What the network is told about captions."""
        if not captions:
            raise UsageError("at least one caption is needed")
        device = self.denoiser.device
        asked = {"prompt": captions, "device": device, "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
        with silenced():
            if self.kind == "text":
                return {"text": self.pipe.encode_prompt(**asked)[0]}
            text, _, pooled, _ = self.pipe.encode_prompt(**asked)
        time_ids = torch.tensor([sizes], dtype=text.dtype, device=device).repeat(len(captions), 1)
        return {"text": text, "pooled": pooled, "time_ids": time_ids}


def is_pipeline(where: str | Path) -> bool:
    """Whether the folder holds a diffusers pipeline, of whatever class."""
    return (Path(where).expanduser() / "model_index.json").is_file()


def from_pipeline(
    pipe: Any,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    size: int | tuple[int, int] | None = None,
    bound: bool = True,
) -> DiffusersModel:
    """A diffusers pipeline as a `DiffusersModel`: its ``denoiser`` works with every sampler, guidance and grid of this
    library.

    Args:
        pipe: a folder, a hub name (only then may something be downloaded), or a loaded pipeline, whose modules are
            shared. `KNOWN` lists the classes. Only safetensors are read from a folder.
        device: where to put it; a loaded pipeline stays where it is by default.
        dtype: of the weights, by default float32 for a folder. In float16 an autoencoder that overflows there stays in
            float32.
        size: pixels of the pictures, a side or (height, width), by default what the network was trained on.
        bound: clip clean estimates where the scheduler's configuration says so (``clip_sample``, ``thresholding``).
            False keeps them differentiable everywhere.

    The path is that of the scheduler's betas, exactly (see `ornstein.interop.schedulers.from_scheduler_config`); which
    solver the scheduler stands for does not matter. diffusers' DDIM with ``clip_sample`` mixes the clipped sample with
    the unclipped noise, unless it is called with ``use_clipped_model_output=True``: ours always does the latter.

    Raises `UsageError` for a pipeline of another class, or one whose network needs inputs that are not known here.
    """
    where = ""
    if isinstance(pipe, str | Path):
        where = str(pipe)
        pipe = _loaded(where, torch.float32 if dtype is None else dtype)
    name = type(pipe).__name__
    kind = _kind(name, where or name)
    if device is not None or dtype is not None:
        pipe.to(*([] if device is None else [device]), *([] if dtype is None else [dtype]))
    net = pipe.transformer if kind == "labels" else pipe.unet
    _check(net, kind, name)
    net.eval().requires_grad_(False)
    codec = None if kind == "pixels" else wrap_vae(pipe.vae, where)
    if codec is not None and codec.dtype == torch.float16 and getattr(pipe.vae.config, "force_upcast", False):
        codec.net.to(torch.float32)
    law = from_scheduler_config(pipe.scheduler, bound=bound)
    labelled = kind == "labels" or getattr(net.config, "num_class_embeds", None) is not None
    denoiser = Denoiser(
        Adapted(net, kind, labelled),
        law.path,
        law.predicts,
        shape=_shape(net, codec, size),
        timestep_of=law.timestep_of,
        codec=codec,
        grid=law.grid,
    )
    piped = DiffusersModel(
        pipe=pipe,
        denoiser=denoiser,
        kind=kind,
        folder=Path(where).expanduser() if where else Path(name),
        name=f"{name} {where}".strip(),
        classes=_classes(pipe),
        details={"pipeline": name, "scheduler": type(pipe.scheduler).__name__},
    )
    if piped.condition != "text" or (pipe.tokenizer is None and getattr(pipe, "tokenizer_2", None) is None):
        return piped
    object.__setattr__(piped, "denoiser", denoiser.with_condition(piped.null()))
    return piped


def _kind(name: str, where: str) -> PipelineKind:
    if name not in KNOWN:
        raise UsageError(f"{where} is a {name}, which from_pipeline does not know: it takes {', '.join(KNOWN)}")
    return KNOWN[name]


def _loaded(where: str, dtype: torch.dtype) -> Any:
    """The pipeline of a folder or hub name, without its safety checker (it judges pictures, and none are made here)."""
    library, folder = diffusers_library(), Path(where).expanduser()
    options: dict[str, Any] = {"torch_dtype": dtype, "use_safetensors": True}
    if folder.exists() and not is_pipeline(folder):
        raise UsageError(f"{where} is no diffusers pipeline: it has no model_index.json")
    place = str(folder) if folder.exists() else where
    kind: Any = library.DiffusionPipeline
    try:
        with silenced():
            index = _index(folder) if folder.exists() else kind.load_config(where)
        name = str(index.get("_class_name"))
        _kind(name, where)
        if "safety_checker" in index:
            options |= {"safety_checker": None, "requires_safety_checker": False}
        with silenced():
            return getattr(library, name).from_pretrained(place, **options)
    except UsageError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"the pipeline {where} cannot be loaded: {reason}") from None


def _index(folder: Path) -> dict[str, Any]:
    path = folder / "model_index.json"
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read ({type(error).__name__}): copy it again") from None
    if not isinstance(found, dict):
        raise UsageError(f"{path} does not describe a pipeline: copy it again")
    return found


def _check(net: Any, kind: PipelineKind, name: str) -> None:
    """Refuse networks with inputs that nobody would give them."""
    config = net.config
    if getattr(config, "time_cond_proj_dim", None) is not None:
        raise UsageError(f"the network of this {name} is told a guidance weight (a distilled model): not supported")
    if getattr(config, "encoder_hid_dim_type", None) not in (None, "text_proj"):
        raise UsageError(f"the network of this {name} needs {config.encoder_hid_dim_type}: not supported")
    added = getattr(config, "addition_embed_type", None)
    if (kind == "text" and added is not None) or (kind == "text-xl" and added != "text_time"):
        raise UsageError(f"the network of this {name} has addition_embed_type {added!r}: not supported")


def _shape(net: Any, codec: Any, size: int | tuple[int, int] | None) -> tuple[int, int, int]:
    channels = int(net.config.in_channels)
    if codec is not None and channels != codec.channels:
        raise UsageError(
            f"the network takes {channels} channels and its latents have {codec.channels}: models that are shown a "
            "picture or a mask as well (inpainting, editing) are not supported"
        )
    if size is None:
        own = net.config.sample_size
        if own is None:
            raise UsageError("the network does not say for which size it was trained: give size=")
        height, width = (own, own) if isinstance(own, int) else (int(own[0]), int(own[1]))
        return channels, height, width
    height, width = (size, size) if isinstance(size, int) else size
    factor = 1 if codec is None else codec.factor
    if height % factor or width % factor or min(height, width) < 1:
        raise UsageError(f"a size of {height}×{width} does not divide by {factor}, as the codec needs")
    return channels, height // factor, width // factor


def _classes(pipe: Any) -> tuple[str, ...]:
    """Names of the labels, if the pipeline has them: the first of several names of a class."""
    labels: Any = getattr(pipe, "labels", None)
    if not isinstance(labels, Mapping) or not labels:
        return ()
    names: dict[int, str] = {}
    for name, number in labels.items():
        names.setdefault(int(number), str(name))
    return tuple(names.get(i, str(i)) for i in range(max(names) + 1))
