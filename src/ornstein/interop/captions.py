"""Prompts through a pipeline's own tokenizers and text encoders: of any length, with weights, or with parts missing."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from .loading import silenced
from .prompt_weights import parse_weights

CLIP_ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection")
Tokens = list[tuple[int, float]]
"""The tokens of a prompt with their weights, without those at its ends."""


def can_encode(pipe: Any) -> bool:
    """Whether a pipeline has a text encoder, and a vocabulary for each that it has."""
    pairs = [
        (getattr(pipe, f"text_encoder{number}", None), getattr(pipe, f"tokenizer{number}", None))
        for number in ("", "_2", "_3")
    ]
    there = [tokenizer for encoder, tokenizer in pairs if encoder is not None]
    return bool(there) and None not in there


@torch.no_grad()
def encode_captions(
    pipe: Any,
    captions: Sequence[str],
    device: torch.device,
    *,
    xl: bool,
    second: Sequence[str] | None = None,
    clip_skip: int | None = None,
) -> dict[str, Tensor]:
    """``text`` (B, L, D), and of SDXL also ``pooled`` (B, P).

    A caption of more tokens than a CLIP encoder reads at once (75, and one at either end) is encoded in pieces of so
    many, whose states are joined one after the other; the pooled vector is that of the first piece, at its first end
    token. ``(words:1.2)`` is a weight: `ornstein.interop.prompt_weights`. SDXL's two encoders give their states before
    the last layer and no normalisation, side by side; where one is missing, its numbers are zero and a warning says so.

    Args:
        pipe: a loaded pipeline of Stable Diffusion or SDXL.
        captions: one a sample.
        device: of the encoders.
        xl: whether it is SDXL.
        second: captions for SDXL's second encoder, by default the same.
        clip_skip: layers to leave out at the end of every CLIP encoder, beyond those that the model leaves out anyway.

    Raises:
        UsageError: no caption, something else than text, a pipeline without text encoder or vocabulary, more layers
            left out than there are, or a caption that an encoder of another kind would cut; the words that would be
            lost are named.
    """
    for caption in (*captions, *(second or ())):
        if not isinstance(caption, str):  # pyright: ignore[reportUnnecessaryIsInstance] - users pass what they like
            raise UsageError(f"a caption is text, got {caption!r}")
    if second is not None and (not xl or len(second) != len(captions)):
        need = f"one for each of the {len(captions)} captions, got {len(second)}" if xl else "a model of SDXL"
        raise UsageError(f"second captions need {need}")
    towers = _towers(pipe, xl)
    kinds = {type(tower.encoder).__name__ for tower in towers}
    if not kinds <= set(CLIP_ENCODERS):
        return _whole(pipe, towers, list(captions), device, xl)
    with silenced():
        prompts = [captions if second is None or tower.number == "" else second for tower in towers]
        rows = [[tower.tokens(pipe, one) for one in own] for tower, own in zip(towers, prompts, strict=True)]
        count = max(-(-len(row) // tower.length) for tower, own in zip(towers, rows, strict=True) for row in own) or 1
        found = [tower.encoded(own, count, device, clip_skip) for tower, own in zip(towers, rows, strict=True)]
    conditions = {"text": torch.cat([text for text, _ in found], dim=-1)}
    if not xl:
        return conditions
    return _completed(pipe, towers, conditions | {"pooled": found[-1][1]})


@dataclass(frozen=True, slots=True)
class Tower:
    """A CLIP text encoder and its tokenizer; ``number`` is "" or "_2" in the names of a pipeline's parts.

    With ``xl`` its states are those before the last layer, without normalisation.
    """

    number: str
    tokenizer: Any
    encoder: Any
    xl: bool

    @property
    def length(self) -> int:
        """Tokens that it reads at once, without those at the ends."""
        return int(self.tokenizer.model_max_length) - int(self.tokenizer.num_special_tokens_to_add())

    def tokens(self, pipe: Any, caption: str) -> Tokens:
        """The tokens of a caption."""
        convert = getattr(pipe, "maybe_convert_prompt", None)  # textual inversion: one word that stands for several
        out: Tokens = []
        for text, weight in parse_weights(caption):
            text = text if convert is None else convert(text, self.tokenizer)
            out += [(int(number), weight) for number in self.tokenizer(text, add_special_tokens=False).input_ids]
        return out

    def encoded(
        self, rows: list[Tokens], count: int, device: torch.device, clip_skip: int | None
    ) -> tuple[Tensor, Tensor]:
        """The joined states (B, count·L, D), and the first piece's pooled vector, or its end state without one."""
        texts: list[Tensor] = []
        pooled: list[Tensor] = []
        empty: Tensor | None = None
        for piece in range(count):
            parts = [row[piece * self.length : (piece + 1) * self.length] for row in rows]
            states, vector = self._read(parts, device, clip_skip)
            if any(weight != 1.0 for part in parts for _, weight in part):
                if empty is None:
                    empty = self._read([[]], device, clip_skip)[0]
                weights = torch.ones(states.shape[:2], dtype=torch.float32)
                for row, part in enumerate(parts):
                    weights[row, 1 : len(part) + 1] = torch.tensor([weight for _, weight in part])
                by = weights.to(device)[..., None]
                mixed = (empty.float() + by * (states.float() - empty.float())).to(states.dtype)
                states = torch.where(by == 1.0, states, mixed)
            texts.append(states)
            pooled.append(vector)
        return torch.cat(texts, dim=1), pooled[0]

    def _read(self, parts: list[Tokens], device: torch.device, clip_skip: int | None) -> tuple[Tensor, Tensor]:
        """States (B, L, D) and pooled vectors of pieces that fit."""
        own, size = self.tokenizer, self.length + 2
        ends = [[own.bos_token_id, *(number for number, _ in part), own.eos_token_id] for part in parts]
        padded = [end + [own.pad_token_id] * (size - len(end)) for end in ends]
        attended = [[1] * len(end) + [0] * (size - len(end)) for end in ends]
        masked = getattr(self.encoder.config, "use_attention_mask", False) and not self.xl
        found = self.encoder(
            torch.tensor(padded, device=device),
            attention_mask=torch.tensor(attended, device=device) if masked else None,
            output_hidden_states=self.xl or clip_skip is not None,
        )
        last = found.last_hidden_state
        states = last
        if self.xl or clip_skip is not None:
            back = (clip_skip or 0) + (2 if self.xl else 1)
            if not 1 <= back <= len(found.hidden_states) or (clip_skip or 0) < 0:
                most = len(found.hidden_states) - (2 if self.xl else 1)
                raise UsageError(f"clip_skip lies between 0 and {most} with this text encoder, got {clip_skip}")
            states = found.hidden_states[-back]
            if not self.xl:
                inner = getattr(self.encoder, "text_model", self.encoder)
                states = inner.final_layer_norm(states)
        # The first end token, and not the largest number: added words have larger ones (transformers #24650).
        at = torch.tensor([len(end) - 1 for end in ends], device=last.device)
        vector = last[torch.arange(len(ends), device=last.device), at]
        project = getattr(self.encoder, "text_projection", None)
        return states, vector if project is None else project(vector)


def _towers(pipe: Any, xl: bool) -> list[Tower]:
    """The text encoders that are there.

    Raises:
        UsageError: none is, or its vocabulary is missing.
    """
    name, found = type(pipe).__name__, list[Tower]()
    for number in ("", "_2") if xl else ("",):
        tokenizer, encoder = (getattr(pipe, f"{part}{number}", None) for part in ("tokenizer", "text_encoder"))
        if encoder is not None and tokenizer is None:
            raise UsageError(
                f"this {name} has no vocabulary for its text encoder{number}: give vocabulary= (for example that of "
                "open_clip_torch), or bind encoded captions"
            )
        if encoder is not None:
            found.append(Tower(number, tokenizer, encoder, xl))
    if not found:
        raise UsageError(f"this {name} has no text encoder: load one, or bind encoded captions")
    return found


def _completed(pipe: Any, towers: list[Tower], conditions: dict[str, Tensor]) -> dict[str, Tensor]:
    """SDXL's conditions with zeros in the place of an encoder that is missing."""
    text, wanted = conditions["text"], int(pipe.unet.config.cross_attention_dim)
    if "_2" not in {tower.number for tower in towers}:
        config = pipe.unet.config
        sizes = 5 if getattr(pipe.config, "requires_aesthetics_score", False) else 6
        width = pipe.unet.add_embedding.linear_1.in_features - sizes * int(config.addition_time_embed_dim)
        conditions["pooled"] = text.new_zeros(len(text), width)
    short = wanted - text.shape[-1]
    if short == 0:
        return conditions
    if short < 0:
        raise UsageError(
            f"the text encoders of this {type(pipe).__name__} give {text.shape[-1]} numbers a token and its network "
            f"takes {wanted}: they belong to another model"
        )
    lost, zeros = "first" if towers[0].number else "second", text.new_zeros(*text.shape[:-1], short)
    also = "" if lost == "first" else " and the pooled vector"
    warnings.warn(
        f"without its {lost} text encoder {short} of the {wanted} numbers of a token{also} are zero: prompts say less",
        stacklevel=4,
    )
    conditions["text"] = torch.cat((zeros, text) if lost == "first" else (text, zeros), dim=-1)
    return conditions


def _whole(pipe: Any, towers: list[Tower], captions: list[str], device: torch.device, xl: bool) -> dict[str, Tensor]:
    """As the pipeline encodes captions that fit, through encoders of another kind than CLIP."""
    for tower in towers:
        if type(tower.encoder).__name__ in CLIP_ENCODERS:
            continue
        for caption in captions:
            numbers = [number for number, _ in tower.tokens(pipe, caption)]
            if len(numbers) > tower.length:
                lost = tower.tokenizer.decode(numbers[tower.length :])
                raise UsageError(
                    f"the {type(tower.encoder).__name__} reads {tower.length} tokens of a caption, and would lose "
                    f"{lost!r}: shorten it"
                )
            if any(weight != 1.0 for _, weight in parse_weights(caption)):
                raise UsageError(
                    f"weights such as (word:1.2) are for CLIP's encoders, not for a {type(tower.encoder).__name__}: "
                    "leave them out"
                )
    with silenced():
        found = pipe.encode_prompt(
            prompt=captions, device=device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
    return {"text": found[0], "pooled": found[2]} if xl else {"text": found[0]}
