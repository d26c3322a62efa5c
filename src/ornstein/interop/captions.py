"""Captions through a pipeline's own tokenizers and text encoders, however long they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from .loading import silenced

_CLIP = ("CLIPTextModel", "CLIPTextModelWithProjection")


@torch.no_grad()
def encode_captions(pipe: Any, captions: Sequence[str], device: torch.device, *, xl: bool) -> dict[str, Tensor]:
    """``text`` (B, L, D), and of SDXL also ``pooled`` (B, P).

    A caption of more tokens than a CLIP encoder reads at once (75, and one at either end) is encoded in pieces of so
    many, whose states are joined one after the other; the pooled vector is that of the first piece.

    Raises:
        UsageError: no caption, something else than text, a pipeline without text encoder, or a caption that an encoder
            of another kind would cut; the words that would be lost are named.
    """
    for caption in captions:
        if not isinstance(caption, str):  # pyright: ignore[reportUnnecessaryIsInstance] - users pass what they like
            raise UsageError(f"a caption is text, got {caption!r}")
    parts = [
        (tokenizer, getattr(pipe, f"text_encoder{number}"))
        for number in ("", "_2")
        if (tokenizer := getattr(pipe, f"tokenizer{number}", None)) is not None
    ]
    if not parts or any(encoder is None for _, encoder in parts):
        raise UsageError(f"this {type(pipe).__name__} has no text encoder: load one, or bind encoded captions")
    with silenced():
        numbers = [[_numbers(pipe, caption, tokenizer) for caption in captions] for tokenizer, _ in parts]
        count = 1
        for (tokenizer, encoder), rows in zip(parts, numbers, strict=True):
            length = _length(tokenizer)
            longest = max(rows, key=len)
            if len(longest) > length and type(encoder).__name__ not in _CLIP:
                lost = tokenizer.decode(longest[length:])
                raise UsageError(
                    f"the {type(encoder).__name__} reads {length} tokens of a caption, and would lose {lost!r}: "
                    "shorten it"
                )
            count = max(count, -(-len(longest) // length))
        if count == 1:
            return _whole(pipe, list(captions), device, xl)
        states = [_pieces(*part, rows, count, device, xl) for part, rows in zip(parts, numbers, strict=True)]
    conditions = {"text": torch.cat([text for text, _ in states], dim=-1)}
    return conditions | {"pooled": states[-1][1]} if xl else conditions


def _whole(pipe: Any, captions: list[str], device: torch.device, xl: bool) -> dict[str, Tensor]:
    """As the pipeline encodes captions that fit."""
    found = pipe.encode_prompt(
        prompt=captions, device=device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    return {"text": found[0], "pooled": found[2]} if xl else {"text": found[0]}


def _numbers(pipe: Any, caption: str, tokenizer: Any) -> list[int]:
    """The tokens of a caption, without those at its ends."""
    convert = getattr(pipe, "maybe_convert_prompt", None)  # textual inversion: one word that stands for several
    return list(
        tokenizer(caption if convert is None else convert(caption, tokenizer), add_special_tokens=False).input_ids
    )


def _length(tokenizer: Any) -> int:
    return int(tokenizer.model_max_length) - int(tokenizer.num_special_tokens_to_add())


def _pieces(
    tokenizer: Any, encoder: Any, rows: list[list[int]], count: int, device: torch.device, xl: bool
) -> tuple[Tensor, Tensor]:
    """The joined states (B, count·L, D), and the first piece's pooled vector."""
    length = _length(tokenizer)
    texts: list[Tensor] = []
    pooled: list[Tensor] = []
    for piece in range(count):
        parts = [numbers[piece * length : (piece + 1) * length] for numbers in rows]
        ends = [[tokenizer.bos_token_id, *part, tokenizer.eos_token_id] for part in parts]
        padded = [end + [tokenizer.pad_token_id] * (length + 2 - len(end)) for end in ends]
        attended = [[1] * len(end) + [0] * (length + 2 - len(end)) for end in ends]
        masked = getattr(encoder.config, "use_attention_mask", False) and not xl
        found = encoder(
            torch.tensor(padded, device=device),
            attention_mask=torch.tensor(attended, device=device) if masked else None,
            output_hidden_states=xl,
        )
        texts.append(found.hidden_states[-2] if xl else found[0])
        pooled.append(found[0])
    return torch.cat(texts, dim=1), pooled[0]
