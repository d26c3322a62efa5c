"""The parts of which networks are made: normalisation, residual block, attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ornstein.networks.sites import Site, bindings

NormKind = Literal["group", "rms", "nonscaling", "none"]
Resample = Literal["down", "up"] | None


class Norm(nn.Module):
    """Normalisation of a feature (B, C, H, W), computed in float32, or in float64 where the weights are.

    * ``group``: groups of at least four channels, learned gain and bias.
    * ``rms``: x / rms(x) over the channels of each pixel, learned gain.
    * ``nonscaling``: over (C, H, W) jointly, learned bias but *no* learned gain, so outlier channels are not amplified
      (Dao et al. 2025, "Improved Training Technique for Latent Consistency Models"). Their bias also depends on the
      pixel: so does ours with a ``size``, the side of the feature; without one any size of image fits.
    * ``none``: the identity.
    """

    def __init__(self, kind: NormKind, channels: int, size: int = 0) -> None:
        super().__init__()
        self.kind: NormKind = kind
        self.groups = math.gcd(32, channels // 4) if kind == "group" else 1
        self.weight = nn.Parameter(torch.ones(channels)) if kind in {"group", "rms"} else None
        shape = (channels, size, size) if kind == "nonscaling" and size else (channels,)
        self.bias = nn.Parameter(torch.zeros(shape)) if kind in {"group", "nonscaling"} else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in and out, computed in float32; a network in half precision gets its own type back."""
        if self.kind == "none":
            return x
        own = (self.bias if self.weight is None else self.weight).dtype  # type: ignore[union-attr]
        x = x.to(torch.promote_types(own, torch.float32))
        weight, bias = (None if one is None else one.to(x.dtype) for one in (self.weight, self.bias))
        if self.kind == "rms":
            out = functional.rms_norm(x.movedim(1, -1), x.shape[1:2], weight, 1e-6).movedim(-1, 1)
        elif self.kind == "nonscaling":  # the bias is added here because group_norm takes it with a gain only
            out = functional.group_norm(x, 1) + (bias if bias.ndim == 3 else bias[:, None, None])  # type: ignore[index, union-attr]
        else:
            # The native kernel: 3 ms forward and backward at (16, 64, 32, 32) where var_mean and arithmetic take 26.
            out = functional.group_norm(x, self.groups, weight, bias)
        return out.to(own)


def zeroed(module: nn.Conv2d | nn.Linear) -> nn.Module:
    """The module with all parameters zero: the map it stands for starts as nothing."""
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module


def shrink(x: Tensor) -> Tensor:
    """The mean of every 2 × 2 pixels."""
    return functional.avg_pool2d(x, 2)


def grow(x: Tensor) -> Tensor:
    """Every pixel becomes 2 × 2 equal pixels."""
    # In channels_last: 34 ms forward and backward at (32, 64, 32, 32); 167 ms in the default memory format.
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")


class ResidualBlock(nn.Module):
    """x + conv(dropout(silu(modulate(norm(conv(silu(norm(x)))), embedding)))), as in ADM (Dhariwal & Nichol 2021).

    ``modulate`` is h · (1 + scale) + shift, both read from the embedding. The last convolution starts at zero, so the
    block starts as its shortcut. ``down`` halves the size before the first convolution; ``up`` doubles it *after* the
    first one, which therefore runs on a quarter of the pixels. ``sizes``: sides of the feature before and after, for
    a `Norm` that has one.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        *,
        norm: NormKind,
        dropout: float = 0.0,
        resample: Resample = None,
        sizes: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__()
        self.resample: Resample = resample
        self.norm_in = Norm(norm, inputs, sizes[0])
        self.conv_in = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.modulate = nn.Linear(embedding, 2 * outputs)
        self.norm_out = Norm(norm, outputs, sizes[1])
        self.dropout = nn.Dropout(dropout)
        self.conv_out = zeroed(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Feature (B, C_in, H, W) and embedding (B, E) to (B, C_out, H', W'), H' being H, H/2 or 2H."""
        h = functional.silu(self.norm_in(x))
        if self.resample == "down":
            h, x = shrink(h), shrink(x)
        h, x = self.conv_in(h), self.shortcut(x)
        if self.resample == "up":
            h, x = grow(h), grow(x)
        scale, shift = self.modulate(embedding)[:, :, None, None].chunk(2, dim=1)
        h = functional.silu(self.norm_out(h) * (1 + scale) + shift)
        return x + self.conv_out(self.dropout(h))


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Multi-head attention of (B, N, C) queries to (B, M, C) keys and values; mask (B, M) is True where to look."""
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))  # (B, heads, N, C / heads)
    # The fused kernel keeps softmax in float32. At heads of 32 or more it is as fast as plain matmuls or faster, also
    # on a CPU and with its backward (64 tokens: 10 against 11 ms; 256 tokens: 72 against 78 ms); at 8 it is not.
    out = functional.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask[:, None, None])
    return out.transpose(1, 2).flatten(2)


class AttentionSites(nn.Module):
    """Sites ``NAME.query``, ``NAME.value`` and ``NAME.attended`` around a self-attention over pixels.

    Tokens (B, H·W, C) pass them as features (B, C, H, W), views of the same numbers. Attention maps never exist as
    tensors in the fused kernel; what guidance wants to do to them (the identity, a blur) it does to these three.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.query, self.value, self.attended = (Site(f"{name}.{part}") for part in ("query", "value", "attended"))

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, heads: int, size: Sequence[int], time: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """`attend` with the three features shown on the way."""
        if bindings() is None:
            return attend(q, k, v, heads, mask)

        def shown(site: Site, tokens: Tensor) -> Tensor:
            return site(tokens.transpose(1, 2).unflatten(2, tuple(size)), time).flatten(2).transpose(1, 2)

        q, v = shown(self.query, q), shown(self.value, v)
        return shown(self.attended, attend(q, k, v, heads, mask))


class SelfAttention(nn.Module):
    """x + linear(attention(norm(x))) over the pixels of a feature, behind `AttentionSites`; starts as the identity."""

    def __init__(self, channels: int, head_width: int, norm: NormKind, site: str = "attention", size: int = 0) -> None:
        super().__init__()
        self.heads = channels // head_width
        self.norm = Norm(norm, channels, size)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.sites = AttentionSites(site)
        self.out = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, C, H, W) in and out; ``time`` (B,) is passed to the sites."""
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, H W, C), a view when x is channels_last
        q, k, v = self.qkv(tokens).chunk(3, dim=2)
        h = self.out(self.sites(q, k, v, self.heads, x.shape[2:], time))
        return x + h.transpose(1, 2).unflatten(2, x.shape[2:])


class TextKeys(nn.Module):
    """Keys and values (B, 1 + L, C) of text tokens (B, L, D), led by a learned null token.

    The null token is what an unconditional row, or one whose mask is False everywhere, attends to.
    """

    def __init__(self, text_width: int, channels: int) -> None:
        super().__init__()
        self.null = nn.Parameter(torch.randn(1, 1, text_width))
        self.keys = nn.Linear(text_width, 2 * channels)

    def forward(self, text: Tensor | None, mask: Tensor | None, batch: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return keys, values (B, 1 + L, C), and the mask (B, 1 + L) or None when every token counts."""
        null = self.null.expand(batch, -1, -1)
        tokens = null if text is None else torch.cat((null, text.to(null.dtype)), dim=1)
        keys, values = self.keys(tokens).chunk(2, dim=2)
        if text is None or mask is None:
            return keys, values, None
        return keys, values, functional.pad(mask.bool(), (1, 0), value=True)


class CrossAttention(nn.Module):
    """x + linear(attention(norm(x), text)); starts as the identity. Padded tokens (mask False) have no influence."""

    def __init__(self, channels: int, head_width: int, norm: NormKind, text_width: int, size: int = 0) -> None:
        super().__init__()
        self.heads = channels // head_width
        self.norm = Norm(norm, channels, size)
        self.query = nn.Linear(channels, channels)
        self.text = TextKeys(text_width, channels)
        self.out = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor, text: Tensor | None, mask: Tensor | None) -> Tensor:
        """Feature (B, C, H, W), text (B, L, D) and mask (B, L) bool to (B, C, H, W)."""
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, H W, C)
        keys, values, mask = self.text(text, mask, len(x))
        h = self.out(attend(self.query(tokens), keys, values, self.heads, mask))
        return x + h.transpose(1, 2).unflatten(2, x.shape[2:])
