"""Flow transformers with text: Flux and Stable Diffusion 3, under our calling convention, with their text encoders.

They predict the velocity on `ornstein.paths.Flow` and take 1000·t. A text encoder may be absent: its numbers are zero,
as Stable Diffusion 3 was trained to bear, and a warning says what is lost.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..paths.base import AffinePath
from ..paths.times import normalised
from .captions import Tower
from .loading import silenced
from .prompt_weights import parse_weights

FlowKind = Literal["flux", "sd3"]
T5_TOKENS = {"flux": 512, "sd3": 256}


class FlowText(nn.Module):
    """A transformer of Flux or Stable Diffusion 3: ``net(x, time, text=…, pooled=…, guidance=…)``.

    Flux sees squares of 2 × 2 latent pixels as tokens, with their places.
    """

    labelled = False

    def __init__(self, net: nn.Module, kind: FlowKind) -> None:
        super().__init__()
        self.net, self.kind = net, kind

    @property
    def guided(self) -> bool:
        """Whether the network is distilled and takes its guidance weight."""
        return bool(getattr(self.net.config, "guidance_embeds", False))

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        *,
        text: Tensor | None = None,
        pooled: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """x (B, C, H, W), time (B,), text (B, L, D), pooled (B, P), guidance (B,) → (B, C, H, W)."""
        if text is None or pooled is None:
            raise UsageError("this network takes captions: bind cond([…]) or null() with with_condition()")
        words: dict[str, Any] = {"encoder_hidden_states": text.to(x.dtype), "pooled_projections": pooled.to(x.dtype)}
        if self.kind == "sd3":
            return self.net(hidden_states=x, timestep=time, return_dict=False, **words)[0]
        if self.guided:
            if guidance is None:
                raise UsageError("this network takes a guidance weight: bind cond([…]) with with_condition()")
            words["guidance"] = guidance.float()
        rows, channels, height, width = x.shape
        places = torch.zeros(height // 2, width // 2, 3, device=x.device, dtype=x.dtype)
        places[..., 1] += torch.arange(height // 2, device=x.device)[:, None]
        places[..., 2] += torch.arange(width // 2, device=x.device)
        tokens = x.reshape(rows, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
        out = self.net(
            hidden_states=tokens.reshape(rows, -1, 4 * channels),
            timestep=time / 1000.0,
            txt_ids=torch.zeros(text.shape[1], 3, device=x.device, dtype=x.dtype),
            img_ids=places.reshape(-1, 3),
            return_dict=False,
            **words,
        )[0]
        squares = out.reshape(rows, height // 2, width // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
        return squares.reshape(x.shape)


@torch.no_grad()
def encode_flow_captions(pipe: Any, kind: FlowKind, captions: Sequence[str], device: torch.device) -> dict[str, Tensor]:
    """``text`` (B, L, D) and ``pooled`` (B, P).

    CLIP's encoders read 75 tokens of a caption, T5 all of it.

    Raises:
        UsageError: no text encoder at all, something else than text, or a caption of which words would be lost; they
            are named.
    """
    for caption in captions:
        if not isinstance(caption, str):  # pyright: ignore[reportUnnecessaryIsInstance] - users pass what they like
            raise UsageError(f"a caption is text, got {caption!r}")
        if any(weight != 1.0 for _, weight in parse_weights(caption)):
            raise UsageError("weights such as (word:1.2) are for Stable Diffusion 1, 2 and XL: leave them out")
    numbers = ("", "_2") if kind == "flux" else ("", "_2", "_3")
    there = {number: getattr(pipe, f"text_encoder{number}", None) for number in numbers}
    if not any(encoder is not None for encoder in there.values()):
        raise UsageError(f"this {type(pipe).__name__} has no text encoder: load one, or bind encoded captions")
    reader = numbers[-1] if there[numbers[-1]] is not None else next(n for n in numbers if there[n] is not None)
    _refuse_loss(pipe, reader, captions, T5_TOKENS[kind] if reader == numbers[-1] else None)
    config, rows, dtype = pipe.transformer.config, len(captions), next(pipe.transformer.parameters()).dtype

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(rows, *shape, device=device, dtype=dtype)

    words, width, total = list(captions), int(config.joint_attention_dim), int(config.pooled_projection_dim)
    lost = [f"text_encoder{number}" for number, encoder in there.items() if encoder is None]
    if lost:
        warnings.warn(
            f"without {' and '.join(lost)} a part of what prompts say is zero in this {type(pipe).__name__}",
            stacklevel=3,
        )
    with silenced():
        found = {number: _clip(pipe, number, words, kind == "sd3", device) for number in numbers[:-1]}
        last, long = numbers[-1], T5_TOKENS[kind]
        text = zeros(long, width)
        encoder = there[last]
        if encoder is not None:
            text = pipe._get_t5_prompt_embeds(words, 1, long, device, encoder.dtype)
    if kind == "flux":
        one = found[""]
        return {"text": text, "pooled": zeros(total) if one is None else one[1]}
    known = [one for one in found.values() if one is not None]
    if not known:
        return {"text": text, "pooled": zeros(total)}
    rest = total - sum(vector.shape[-1] for _, vector in known)  # of the one that is missing
    pairs = [(zeros(known[0][0].shape[1], rest), zeros(rest)) if one is None else one for one in found.values()]
    states = torch.cat([state for state, _ in pairs], dim=-1)
    states = nn.functional.pad(states, (0, width - states.shape[-1]))
    return {"text": torch.cat([states, text], dim=1), "pooled": torch.cat([vector for _, vector in pairs], dim=-1)}


def _clip(pipe: Any, number: str, words: list[str], inner: bool, device: torch.device) -> tuple[Tensor, Tensor] | None:
    """The states and the pooled vectors of a CLIP encoder for what it reads at once; None where it is missing."""
    encoder = getattr(pipe, f"text_encoder{number}")
    if encoder is None:
        return None
    tower = Tower(number, getattr(pipe, f"tokenizer{number}"), encoder, inner)
    rows = [tower.tokens(pipe, one)[: tower.length] for one in words]
    return tower.encoded(rows, 1, device, None)


def flow_times(pipe: Any, kind: FlowKind, path: AffinePath, steps: int, shape: Sequence[int]) -> tuple[float, ...]:
    """The times that the pipeline's own loop would use: shifted toward noise, the more the larger the picture."""
    own, options = copy.deepcopy(pipe.scheduler), dict[str, Any]()
    if dict(own.config).get("use_dynamic_shifting"):
        config = dict(own.config)
        low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        least, most = config.get("base_shift", 0.5), config.get("max_shift", 1.15 if kind == "flux" else 1.16)
        patch = 2 if kind == "flux" else int(pipe.transformer.config.patch_size)
        tokens = (shape[-2] // patch) * (shape[-1] // patch)
        options["mu"] = least + (most - least) * (tokens - low) / (high - low)
    if kind == "flux":
        options["sigmas"] = torch.linspace(1.0, 1.0 / steps, steps, dtype=torch.float64).tolist()
    try:
        own.set_timesteps(**({"num_inference_steps": steps} if "sigmas" not in options else {}), **options)
    except (ValueError, TypeError, IndexError, ArithmeticError) as error:
        raise UsageError(f"{type(own).__name__} cannot make {steps} steps: {str(error).splitlines()[0]}") from None
    return normalised([float(sigma) for sigma in own.sigmas], path)


def _refuse_loss(pipe: Any, number: str, captions: Sequence[str], most: int | None) -> None:
    """Refuse a caption that the encoder that reads most of it would cut."""
    tokenizer = getattr(pipe, f"tokenizer{number}", None)
    if tokenizer is None:
        raise UsageError(f"this {type(pipe).__name__} has no vocabulary for its text_encoder{number}: load it")
    limit = (int(tokenizer.model_max_length) if most is None else most) - int(tokenizer.num_special_tokens_to_add())
    for caption in captions:
        tokens = tokenizer(caption, add_special_tokens=False).input_ids
        if len(tokens) > limit:
            raise UsageError(
                f"the text encoders of this {type(pipe).__name__} read {limit} tokens of a caption, and would lose "
                f"{tokenizer.decode(tokens[limit:])!r}: shorten it"
            )
