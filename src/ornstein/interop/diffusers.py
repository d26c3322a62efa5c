"""A diffusers pipeline as a denoiser, with the pipeline's own text encoders and its autoencoder as a codec.

from ornstein.interop.diffusers import from_pipeline

piped = from_pipeline("path/to/stable-diffusion-xl")            # a folder, a hub name, or a loaded pipeline
guided = orn.guidance.CFG(weight=5.0, null=piped.null())(piped.denoiser)
images = orn.sample(guided, n=2, cond=piped.cond(["a red fox", "a blue fox"]))

The loop, sampler and guidance are ours; from the pipeline come networks, weights and what its configuration says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..denoisers import Denoiser
from ..errors import UsageError
from ..grids import Grid
from ..paths.base import Cond
from ..progress import Progress
from ..storage.reading import load_json
from .captions import can_encode, encode_captions
from .flow_text import FlowText, encode_flow_captions, flow_times
from .folders import networks_of
from .inpainting import shown_picture, shows_picture
from .loading import diffusers_library, offline, silenced
from .networks import Adapted, PipelineKind, guidance_width, has_learned_variance
from .opened import Condition, OpenedModel, check_condition, label_numbers
from .pipeline_networks import channels_of, check_network, state_shape, trained_size
from .schedulers import from_scheduler_config, times_of_pipeline
from .single_file import Predicts, is_single_file, open_single_file
from .vae import wrap_vae

KNOWN: Mapping[str, PipelineKind] = {
    "DDPMPipeline": "pixels",
    "DDIMPipeline": "pixels",
    "ConsistencyModelPipeline": "pixels",
    "DiTPipeline": "labels",
    "FluxPipeline": "flux",
    "StableDiffusion3Pipeline": "sd3",
    "LatentConsistencyModelPipeline": "text",
    "LatentConsistencyModelImg2ImgPipeline": "text",
    "StableDiffusionPipeline": "text",
    "StableDiffusionImg2ImgPipeline": "text",
    "StableDiffusionInpaintPipeline": "text",
    "StableDiffusionPAGPipeline": "text",
    "StableDiffusionXLPipeline": "text-xl",
    "StableDiffusionXLImg2ImgPipeline": "text-xl",
    "StableDiffusionXLInpaintPipeline": "text-xl",
    "StableDiffusionXLPAGPipeline": "text-xl",
}
"""The pipelines that `from_pipeline` takes, by class name."""

_GUIDANCE: Mapping[str, float] = {
    "LatentConsistencyModelPipeline": 8.5,
    "LatentConsistencyModelImg2ImgPipeline": 8.5,
    "FluxPipeline": 3.5,
    "StableDiffusionXLPipeline": 5.0,
    "StableDiffusionXLImg2ImgPipeline": 5.0,
    "StableDiffusionXLPAGPipeline": 5.0,
}
"""The guidance weight that a distilled network is given unless another is: the pipeline's default, else 7.5."""


_PATCH: Mapping[str, int] = {"flux": 2}
"""Latent pixels along a side of a token, where the adapter makes the tokens."""


class EmptyCondition(dict[str, Tensor]):
    """The empty condition of a pipeline. Beside a condition, in `ornstein.guidance.CFG`, it takes over what both halves
    share: SDXL's sizes, unless negative ones were given, and the guidance weight of a distilled network."""

    shared: tuple[str, ...] = ()

    def beside(self, cond: Cond) -> Cond:
        """Itself, with what it shares with ``cond``."""
        out = dict(self)
        for key in self.shared:
            if key in cond and key in out:
                value = cond[key]
                if key.endswith("time_ids") and value.shape[1] == 5:  # the refiner's last one is a score, and differs
                    value = torch.cat((value[:, :4], out[key][:1, 4:].expand(len(value), 1)), dim=1)
                out[key] = value
        return out


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class DiffusersModel(OpenedModel):
    """An opened pipeline. Of text models ``denoiser`` is bound to the empty caption until another is given."""

    pipe: Any
    kind: PipelineKind
    title: str
    labels: tuple[str, ...] = ()
    clip_skip: int | None = None

    @property
    def name(self) -> str:
        """Class and place."""
        return self.title

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels, if the pipeline has them."""
        return self.labels

    @property
    def condition(self) -> Condition:
        """The kind of condition that the network takes."""
        if self.kind in ("text", "text-xl", "flux", "sd3"):
            return "text"
        return "label" if self._labelled else "none"

    @property
    def sizes(self) -> int:
        """How many sizes a network of SDXL takes beside its captions: 6, of the refiner 5; 0 of any other."""
        if self.kind != "text-xl":
            return 0
        return 5 if getattr(self.pipe.config, "requires_aesthetics_score", False) else 6

    def sized(self, height: int, width: int) -> DiffusersModel:
        """The same for pictures of another size, in pixels; its size conditions follow."""
        channels = (self.shape or (0,))[0]
        other = replace(
            self,
            denoiser=replace(
                self.denoiser, shape=state_shape(channels, self.codec, (height, width), _PATCH.get(self.kind, 1))
            ),
        )
        if self.condition != "text" or not can_encode(self.pipe):
            return other
        return replace(other, denoiser=other.denoiser.with_condition(other.null()))

    def grid(self, steps: int | None = None) -> Grid:
        """The times that the pipeline's scheduler would use; of a few-step model they climb.

        For other models any grid works, and ours often better.
        """
        if self.denoiser.grid is not None:
            return self.denoiser.grid(steps)
        steps = 20 if steps is None else steps
        if self.kind in ("flux", "sd3"):
            affine: Any = self.denoiser.path
            shifted = flow_times(self.pipe, self.kind, affine, steps, self.shape or (0, 0))
            return Grid(f"{type(self.pipe.scheduler).__name__}({steps})", lambda _: shifted)
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
        score: float = 6.0,
        guidance: float | None = None,
        second: Sequence[str] | None = None,
        picture: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The condition for `Denoiser.with_condition`: captions through the pipeline's own encoders, or labels.

        Args:
            captions: one a sample, of any length: `ornstein.interop.captions.encode_captions`.
            labels: numbers from 0 to the number of classes − 1, or names.
            original: of SDXL, (height, width) of the original picture, by default of the one that is made.
            crop: of SDXL, (top, left) of the crop.
            target: of SDXL, (height, width) of the target, by default of the picture that is made.
            score: the aesthetic score that SDXL's refiner takes instead of the target.
            guidance: the weight that a distilled network takes as an input, by default the pipeline's own.
            second: of SDXL, captions for its second encoder, by default the same.
            picture: what an inpainting network is shown, (n or 1, 3, H, W) in [−1, 1] of the size of the pictures.
            mask: 1 where it draws the picture anew, (H, W) or (n or 1, 1, H, W); without both it draws all of it.

        Raises:
            UsageError: a condition that the pipeline does not take, or one that cannot be read.
        """
        check_condition(self, captions, labels)
        if labels is not None:
            numbers = label_numbers(labels, self.labels, self._count, empty=False)
            return {"label": torch.tensor(numbers, device=self.device)}
        assert captions is not None
        found = self._encoded(list(captions), self._sizes(original, crop, target, score), guidance, second)
        if self.is_shown:
            found["shown"] = self._shown(picture, mask, len(captions))
        elif picture is not None or mask is not None:
            raise UsageError(
                f"{self.name} is no inpainting network and is shown no picture: use start= and mask= of ornstein.sample"
            )
        return found

    def null(
        self,
        rows: int = 1,
        *,
        negative: str | None = None,
        original: tuple[int, int] | None = None,
        crop: tuple[int, int] | None = None,
        target: tuple[int, int] | None = None,
        score: float = 2.5,
        second: str | None = None,
    ) -> dict[str, Tensor]:
        """The empty condition for classifier-free guidance, as the pipeline makes it; or a ``negative`` caption.

        ``second`` is the negative caption of SDXL's second encoder, by default the same, or "" beside none.

        Without one SDXL takes zeros (``force_zeros_for_empty_prompt``), which is not the encoding of "". In
        `ornstein.guidance.CFG` it has the sizes of the condition that it stands beside, unless negative sizes are given
        here: ``original``, ``crop`` or ``target``.
        """
        if self.condition == "none":
            return {}
        if self.condition == "label":
            if self.kind != "labels":
                raise UsageError(f"{self.name} knows no empty label, so it has no classifier-free guidance")
            return {"label": torch.full((rows,), self._count, device=self.device)}
        sizes = self._sizes(original, crop or (0, 0), target, score)
        others = None if second is None else [second] * rows
        null = EmptyCondition(self._encoded([negative or ""] * rows, sizes, None, others))
        if (
            self.kind == "text-xl"
            and negative is None
            and second is None
            and self.pipe.config.force_zeros_for_empty_prompt
        ):
            null.update({key: torch.zeros_like(null[key]) for key in ("text", "pooled")})
        own = any(given is not None for given in (original, crop, target))
        if self.is_shown:
            null["shown"] = self._shown(None, None, rows)
        null.shared = ("guidance", "shown") if own else ("time_ids", "guidance", "shown")
        return null

    @property
    def is_shown(self) -> bool:
        """Whether it is an inpainting network, which is shown a mask and a picture beside the state."""
        net = getattr(self.pipe, "unet", None)
        return net is not None and shows_picture(int(net.config.in_channels), self.codec)

    def _shown(self, picture: Tensor | None, mask: Tensor | None, rows: int) -> Tensor:
        assert self.codec is not None
        return shown_picture(self.codec, self.picture[1:], picture, mask, rows, self.device)

    @property
    def _labelled(self) -> bool:
        net = self.denoiser.net
        return isinstance(net, Adapted) and net.labelled

    @property
    def _count(self) -> int:
        """The number of classes."""
        if self.kind == "labels":
            return int(self.pipe.transformer.config.num_embeds_ada_norm)
        return int(self.pipe.unet.config.num_class_embeds)

    def _sizes(
        self, original: tuple[int, int] | None, crop: tuple[int, int], target: tuple[int, int] | None, score: float
    ) -> tuple[float, ...]:
        own = self.picture[1:]
        if self.sizes == 5:
            return (*(original or own), *crop, score)
        return (*(original or own), *crop, *(target or own))

    def _encoded(
        self,
        captions: list[str],
        sizes: tuple[float, ...],
        guidance: float | None,
        second: Sequence[str] | None,
    ) -> dict[str, Tensor]:
        """Captions, with sizes in float32: half precision knows no 1023."""
        rows = len(captions)
        if self.kind in ("flux", "sd3"):
            out = encode_flow_captions(self.pipe, self.kind, captions, self.device)
        else:
            out = encode_captions(
                self.pipe, captions, self.device, xl=self.kind == "text-xl", second=second, clip_skip=self.clip_skip
            )
        if self.kind == "text-xl":
            out["time_ids"] = torch.tensor([sizes], dtype=torch.float32, device=self.device).repeat(rows, 1)
        net = self.denoiser.net
        guided = net.guided if isinstance(net, FlowText) else guidance_width(self.pipe.unet) is not None
        if guided:
            weight = _GUIDANCE.get(type(self.pipe).__name__, 7.5) if guidance is None else float(guidance)
            out["guidance"] = torch.full((rows,), weight, dtype=torch.float32, device=self.device)
        elif guidance is not None:
            raise UsageError(f"{self.name} takes no guidance weight as an input: guide it with ornstein.guidance.CFG")
        return out


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
    clip_skip: int | None = None,
    without: Sequence[str] = (),
    vocabulary: str | Path | None = None,
    predicts: Predicts | None = None,
    progress: Progress = False,
) -> DiffusersModel:
    """A diffusers pipeline as a `DiffusersModel`: its ``denoiser`` works with every sampler, guidance and grid of this
    library.

    Args:
        pipe: a folder, a single file of SDXL, a hub name (only then may something be downloaded), or a loaded pipeline,
            whose modules are shared. `KNOWN` lists the classes. Only safetensors are read from a folder.
        device: where to put it; a loaded pipeline stays where it is by default.
        dtype: of the weights, by default float32 for a folder. In float16 an autoencoder that overflows there stays in
            float32.
        size: pixels of the pictures, a side or (height, width), by default what the network was trained on.
        bound: clip clean estimates where the scheduler's configuration says so (``clip_sample``, ``thresholding``).
            False keeps them differentiable everywhere.
        clip_skip: layers of CLIP's encoders to leave out beyond those that the model leaves out, in both halves of
            guidance.
        without: text encoders of a folder that are not to be loaded, such as "text_encoder_3"; a warning says what is
            lost where a prompt is read. One whose folder is missing is left out as well.
        vocabulary: of a single file, see `ornstein.interop.single_file.open_single_file`.
        predicts: of a single file, "epsilon" or "v_prediction".
        progress: True for a bar on stderr while the weights are read, or a function of (tensors read, all of them).

    The path is that of the scheduler's betas, exactly (see `ornstein.interop.schedulers.from_scheduler_config`); which
    solver the scheduler stands for does not matter. diffusers' DDIM with ``clip_sample`` mixes the clipped sample with
    the unclipped noise, unless it is called with ``use_clipped_model_output=True``: ours always does the latter.

    Raises `UsageError` for a pipeline of another class, or one whose network needs inputs that are not known here.
    """
    where = ""
    if isinstance(pipe, str | Path):
        where, kept = str(pipe), torch.float32 if dtype is None else dtype
        if is_single_file(where):
            pipe = open_single_file(where, dtype=kept, vocabulary=vocabulary, predicts=predicts, progress=progress)
        else:
            pipe = _loaded(where, kept, tuple(without), progress)
    name = type(pipe).__name__
    kind = _kind(name, where or name)
    if device is not None or dtype is not None:
        pipe.to(*([] if device is None else [device]), *([] if dtype is None else [dtype]))
    net = pipe.transformer if kind in ("labels", "flux", "sd3") else pipe.unet
    parts = {"network": net, "scheduler": pipe.scheduler, "autoencoder": kind == "pixels" or pipe.vae}
    lost = [part for part, found in parts.items() if found is None]
    if lost:
        raise UsageError(f"this {name} was loaded without its {lost[0]}: load it")
    check_network(net, kind, name, pipe)
    net.eval().requires_grad_(False)
    codec = None if kind == "pixels" else wrap_vae(pipe.vae, where)
    if codec is not None and codec.dtype == torch.float16 and getattr(pipe.vae.config, "force_upcast", False):
        codec.net.to(torch.float32)
    spec = from_scheduler_config(pipe.scheduler, bound=bound)
    labelled = kind == "labels" or getattr(net.config, "num_class_embeds", None) is not None
    channels = channels_of(net, codec)
    denoiser = Denoiser(
        FlowText(net, kind) if kind in ("flux", "sd3") else Adapted(net, kind, labelled),
        spec.path,
        spec.predicts,
        shape=(channels, *trained_size(net))
        if size is None
        else state_shape(channels, codec, size, _PATCH.get(kind, 1)),
        timestep_of=spec.timestep_of,
        learned_variance=has_learned_variance(net.config),
        codec=codec,
        grid=spec.grid,
    )
    folder = Path(where).expanduser() if where else Path(name)
    piped = DiffusersModel(
        pipe=pipe,
        denoiser=denoiser,
        kind=kind,
        folder=folder,
        weights=folder,
        title=f"{name} {where}".strip(),
        clip_skip=clip_skip,
        labels=_classes(pipe),
        details={"pipeline": name, "scheduler": type(pipe.scheduler).__name__},
    )
    if piped.condition != "text" or not can_encode(pipe):
        return piped
    return replace(piped, denoiser=denoiser.with_condition(piped.null()))


def _kind(name: str, where: str) -> PipelineKind:
    if name not in KNOWN:
        raise UsageError(f"{where} is a {name}, which from_pipeline does not know: it takes {', '.join(KNOWN)}")
    return KNOWN[name]


def _loaded(where: str, dtype: torch.dtype, without: tuple[str, ...], progress: Progress) -> Any:
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
        if folder.exists():
            options |= networks_of(folder, index, dtype=dtype, without=without, progress=progress)
        with silenced():
            return getattr(library, name).from_pretrained(place, **options)
    except UsageError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if not folder.exists() and offline():
            reason = (
                "there is no such folder, and HF_HUB_OFFLINE is set, so that the Hugging Face Hub is not asked: "
                "give the path of a folder, or unset it"
            )
        elif not folder.exists():
            reason = f"there is no such folder, and the Hugging Face Hub does not give it ({reason})"
        raise UsageError(f"the pipeline {where} cannot be loaded: {reason}") from None


def _index(folder: Path) -> dict[str, Any]:
    path = folder / "model_index.json"
    found = load_json(path, UsageError, "copy it again", must_hold=None)
    if not isinstance(found, dict):
        raise UsageError(f"{path} does not describe a pipeline: copy it again")
    return found


def _classes(pipe: Any) -> tuple[str, ...]:
    """Names of the labels, if the pipeline has them: the first of several names of a class."""
    labels: Any = getattr(pipe, "labels", None)
    if not isinstance(labels, Mapping) or not labels:
        return ()
    names: dict[int, str] = {}
    for name, number in labels.items():
        names.setdefault(int(number), str(name))
    return tuple(names.get(i, str(i)) for i in range(max(names) + 1))
