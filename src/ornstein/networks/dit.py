"""A small transformer over patches, so that nothing can silently assume a U-Net.

Sites, in the order of a forward pass, for each block i < depth: ``block.i.query``, ``block.i.value`` and
``block.i.attended`` of its self-attention, then ``block.i.hidden``, the tokens after it; all laid out as a feature
(B, width, H / patch, W / patch).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ornstein.errors import ConfigError
from ornstein.networks import checks
from ornstein.networks.blocks import AttentionSites, TextKeys, attend, zeroed
from ornstein.networks.embeddings import ConditionEmbedding, TimeFeatures, positions_2d
from ornstein.networks.sites import Site
from ornstein.options import HIDDEN, Count, Index, Part, check_fields
from ornstein.typed import typed

TokenNorm = Literal["token", "nonscaling"]


@typed()
@dataclass(frozen=True, slots=True, kw_only=True)
class DiTConfig:
    """What a `DiT` is built from.

    * ``channels``, ``out_channels``: of the image in and out; ``out_channels=None`` means as many as ``channels``.
    * ``width``: channels of a token; ``depth``: blocks; ``head_width``: channels of an attention head.
    * ``expansion``: width of a block's hidden layer as a multiple of ``width``.
    * ``patch``: a token stands for ``patch`` × ``patch`` pixels. Height and width must divide by it.
    * ``norm``: ``token`` normalises every token by itself; ``nonscaling`` all tokens jointly, with a learned bias.
      Neither has a learned gain. ``qk_norm``: queries and keys are normalised in every head, again without a gain,
      which bounds the attention's logits.
    * ``classes``, ``text_width``, ``vector_width``, ``time_features``, ``time_scale``: as in `UNetConfig`.
    """

    kind: ClassVar[str] = "dit"

    channels: Annotated[Count, HIDDEN] = 3
    """Channels of the image, which follow from the data."""
    out_channels: Annotated[int | None, HIDDEN] = None
    """Channels of the output; as many as of the image."""
    width: Count = 192
    """Channels of a token."""
    depth: Count = 6
    """Blocks."""
    head_width: Count = 64
    """Channels of an attention head."""
    expansion: Count = 4
    """Width of a block's hidden layer, as a multiple of the width."""
    patch: Count = 4
    """A token stands for patch × patch pixels."""
    classes: Annotated[Index, HIDDEN] = 0
    """Number of labels, which follows from --condition and the data."""
    text_width: Annotated[Index, HIDDEN] = 0
    """Channels of a word, which follow from --condition and the data."""
    vector_width: Annotated[Index, HIDDEN] = 0
    """Length of a vector condition."""
    norm: TokenNorm = "token"
    """Normalisation: every token by itself, or all jointly with a learned bias; neither has a gain."""
    qk_norm: bool = False
    """Normalise queries and keys in every head, without a gain."""
    dropout: Part = 0.0
    """Part of the features dropped in training."""
    time_features: TimeFeatures = "sinusoidal"
    """How the time number becomes features: sinusoidal for times of 0 … 1000, fourier for log σ/4."""
    time_scale: float = 1.0
    """Factor on the time number; 16 is usual with fourier features of log(σ)/4."""

    def __post_init__(self) -> None:
        checks.positive(channels=self.channels, out_channels=self.outputs, width=self.width, depth=self.depth)
        checks.positive(head_width=self.head_width, expansion=self.expansion, patch=self.patch)
        checks.multiple(4, "positions need a sine and a cosine of row and column", width=self.width)
        checks.not_negative(classes=self.classes, text_width=self.text_width, vector_width=self.vector_width)
        checks.choice(("sinusoidal", "fourier"), time_features=self.time_features)
        checks.choice(("token", "nonscaling"), norm=self.norm)
        checks.dropout_rate(self.dropout)
        if self.width % self.head_width:
            raise ConfigError(f"head_width={self.head_width} does not divide width={self.width}: change one of them")
        check_fields(self)

    @property
    def outputs(self) -> int:
        """Channels of the output."""
        return self.channels if self.out_channels is None else self.out_channels

    @property
    def factor(self) -> int:
        """What height and width of an image must divide by."""
        return self.patch

    @classmethod
    def small(
        cls, *, channels: int = 3, classes: int = 0, text_width: int = 0, vector_width: int = 0, dropout: float = 0.0
    ) -> DiTConfig:
        """The default for drawings of 64 × 64 pixels on a CPU: 256 tokens, about 4 million parameters."""
        return cls(
            channels=channels,
            classes=classes,
            text_width=text_width,
            vector_width=vector_width,
            dropout=dropout,
        )


class DiTBlock(nn.Module):
    """Attention, cross-attention where there is text, and a two-layer map, each behind a norm and a gate (adaLN-zero).

    x + gate · f((1 + scale) · norm(x) + shift), with shift, scale and gate read from the embedding; gates start at
    zero, so the block starts as the identity (Peebles & Xie 2023, section 3.2).
    """

    def __init__(self, config: DiTConfig, site: str) -> None:
        super().__init__()
        width = config.width
        self.heads, self.qk_norm = width // config.head_width, config.qk_norm
        joint = config.norm == "nonscaling"
        self.joint_in, self.joint_map = (JointNorm(width) if joint else None for _ in range(2))
        self.joint_text = JointNorm(width) if joint and config.text_width else None
        self.modulate = zeroed(nn.Linear(width, 6 * width))
        self.qkv = nn.Linear(width, 3 * width)
        self.sites = AttentionSites(site)
        self.attended = nn.Linear(width, width)
        self.query = nn.Linear(width, width) if config.text_width else None
        self.text = TextKeys(config.text_width, width) if config.text_width else None
        self.crossed = zeroed(nn.Linear(width, width)) if config.text_width else None
        self.expand = nn.Linear(width, config.expansion * width)
        self.contract = nn.Linear(config.expansion * width, width)
        self.dropout = nn.Dropout(config.dropout)
        self.hidden = Site(f"{site}.hidden")

    def forward(
        self,
        x: Tensor,
        embedding: Tensor,
        text: Tensor | None,
        mask: Tensor | None,
        size: tuple[int, int],
        time: Tensor,
    ) -> Tensor:
        """Tokens (B, N, width), embedding (B, width), text (B, L, D) and mask (B, L) to (B, N, width).

        ``size`` is (rows, columns) of the tokens; ``time`` (B,) is passed to the sites.
        """
        shift, scale, gate, shift_map, scale_map, gate_map = self.modulate(embedding)[:, None].chunk(6, dim=2)
        own = self.qkv.weight.dtype
        h = normalised(x, own, self.joint_in) * (1 + scale) + shift
        q, k, v = self.qkv(h).chunk(3, dim=2)
        if self.qk_norm:
            q, k = (normalised(part.unflatten(2, (self.heads, -1)), own).flatten(2).to(v.dtype) for part in (q, k))
        x = x + gate * self.attended(self.sites(q, k, v, self.heads, size, time))
        if self.query is not None and self.text is not None and self.crossed is not None:
            keys, values, mask = self.text(text, mask, len(x))
            query = self.query(normalised(x, own, self.joint_text))
            x = x + self.crossed(attend(query, keys, values, self.heads, mask))
        h = normalised(x, own, self.joint_map) * (1 + scale_map) + shift_map
        h = self.contract(self.dropout(functional.gelu(self.expand(h), approximate="tanh")))
        return x + gate_map * h


class JointNorm(nn.Module):
    """Tokens (B, N, C) normalised over N and C jointly, in float32 or more, with a bias a channel and no gain."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, C) in and out."""
        tokens = tokens.to(torch.promote_types(self.bias.dtype, torch.float32))
        return functional.layer_norm(tokens, tokens.shape[1:], eps=1e-5) + self.bias


def normalised(tokens: Tensor, own: torch.dtype, joint: JointNorm | None = None) -> Tensor:
    """Each token (…, C) with mean 0 and variance 1, without gain or bias; or all jointly.

    Computed in float32, returned in ``own``, the type of the network's weights.
    """
    if joint is not None:
        return joint(tokens).to(own)
    tokens = tokens.to(torch.promote_types(own, torch.float32))
    return functional.layer_norm(tokens, tokens.shape[-1:], eps=1e-6).to(own)


class DiT(nn.Module):
    """``net(x, time, label=…, text=…, text_mask=…, vector=…)``: a transformer over patches, for any size of image.

    The diffusion transformer of Peebles & Xie (2023) with adaLN-zero, positions computed for the size at hand, and
    optional cross-attention to text. The output starts at exactly zero.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = ConditionEmbedding(
            config.width,
            features=max(64, config.width),
            kind=config.time_features,
            scale=config.time_scale,
            classes=config.classes,
            vector_width=config.vector_width,
        )
        self.stem = nn.Linear(config.channels * config.patch**2, config.width)
        self.blocks = nn.ModuleList(DiTBlock(config, f"block.{i}") for i in range(config.depth))
        self.joint = JointNorm(config.width) if config.norm == "nonscaling" else None
        self.modulate = zeroed(nn.Linear(config.width, 2 * config.width))
        self.head = zeroed(nn.Linear(config.width, config.outputs * config.patch**2))

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        *,
        label: Tensor | None = None,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
        vector: Tensor | None = None,
    ) -> Tensor:
        """Image x (B, C, H, W) and time (B,) to (B, C_out, H, W), in the dtype of x; conditions as in `UNet`."""
        config = self.config
        checks.input_fits(x, config.channels, config.patch)
        checks.text_fits(text, config.text_width)
        embedding = self.embedding(time, label, vector)
        height, width = x.shape[2] // config.patch, x.shape[3] // config.patch
        patches = functional.pixel_unshuffle(x, config.patch).flatten(2).transpose(1, 2)  # (B, N, C · patch²)
        h = self.stem(patches) + positions_2d(height, width, config.width, like=x)
        for block in self.blocks:
            h = block(h, embedding, text, text_mask, (height, width), time)
            feature = block.hidden(h.transpose(1, 2).unflatten(2, (height, width)), time)  # type: ignore[operator]
            h = feature.flatten(2).transpose(1, 2)
        shift, scale = self.modulate(embedding)[:, None].chunk(2, dim=2)
        h = self.head(normalised(h, self.stem.weight.dtype, self.joint) * (1 + scale) + shift)
        h = h.transpose(1, 2).unflatten(2, (height, width))
        return functional.pixel_shuffle(h, config.patch).to(x.dtype)
