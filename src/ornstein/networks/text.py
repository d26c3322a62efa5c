"""A small trainable caption encoder that needs no package: words of a table, positions, a short transformer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ornstein.errors import ConfigError
from ornstein.networks import checks
from ornstein.networks.blocks import attend, zeroed
from ornstein.networks.building import initialise

PADDING, UNKNOWN = 0, 1  # the two ids before the words
_WORD = re.compile(r"[^\W_]+|[^\w\s]")


def words(caption: str) -> list[str]:
    """A caption as lower-case words and punctuation marks.

    >>> words("A green critter, with three eyes")
    ['a', 'green', 'critter', ',', 'with', 'three', 'eyes']
    """
    return _WORD.findall(caption.lower())


def vocabulary(captions: Iterable[str], limit: int = 4096) -> tuple[str, ...]:
    """The words of ``captions``, the commonest first and ties by alphabet, at most ``limit`` of them."""
    counts = Counter(word for caption in captions for word in words(caption))
    return tuple(sorted(counts, key=lambda word: (-counts[word], word))[:limit])


@dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig:
    """What a `TextEncoder` is built from; the vocabulary is part of it, so a saved configuration is enough to encode.

    * ``vocabulary``: the known words, see `vocabulary`; any other word becomes the unknown word.
    * ``length``: words kept of a caption; the rest is cut.
    * ``width``: channels of a token; ``layers``, ``heads``: of the transformer.
    """

    kind: ClassVar[str] = "textconfig"

    vocabulary: tuple[str, ...]
    length: int = 24
    width: int = 96
    layers: int = 1
    heads: int = 3

    def __post_init__(self) -> None:
        checks.positive(length=self.length, width=self.width, layers=self.layers, heads=self.heads)
        if not self.vocabulary:
            raise ConfigError("vocabulary is empty: build it from the captions of the data with vocabulary(captions)")
        if len(set(self.vocabulary)) != len(self.vocabulary):
            twice = next(word for word, count in Counter(self.vocabulary).items() if count > 1)
            raise ConfigError(f"vocabulary holds {twice!r} twice: remove one")
        if self.width % self.heads:
            raise ConfigError(f"heads={self.heads} does not divide width={self.width}: change one of them")

    def unknown(self, captions: Iterable[str]) -> tuple[str, ...]:
        """The words of ``captions`` that the vocabulary lacks, each once; punctuation is no word."""
        found = dict.fromkeys(word for caption in captions for word in words(caption) if word.isalnum())
        return tuple(word for word in found if word not in self.vocabulary)

    def encode(self, captions: Sequence[str]) -> Tensor:
        """Captions to word ids (B, length) int64, with 0 after the last word and 1 for an unknown word."""
        index = {word: i for i, word in enumerate(self.vocabulary, start=2)}
        ids = torch.full((len(captions), self.length), PADDING, dtype=torch.int64)
        for row, caption in zip(ids, captions, strict=True):
            known = [index.get(word, UNKNOWN) for word in words(caption)[: self.length]]
            row[: len(known)] = torch.tensor(known, dtype=torch.int64)
        return ids


class TextEncoder(nn.Module):
    """Captions, or their ids (B, L), to ``text`` (B, L, width) and ``text_mask`` (B, L) as the networks take them.

    An empty caption has an all-False mask: the networks then attend to their null token alone. The weights are a pure
    function of ``seed``.

    >>> captions = ["a red fox", "a blue fox with a hat"]
    >>> encoder = TextEncoder(TextConfig(vocabulary=vocabulary(captions)))
    >>> text, mask = encoder(captions)
    >>> text.shape, mask.sum(1).tolist()
    (torch.Size([2, 24, 96]), [3, 6])
    """

    def __init__(self, config: TextConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):
            self.word = nn.Embedding(len(config.vocabulary) + 2, config.width)
            self.position = nn.Embedding(config.length, config.width)
            self.layers = nn.ModuleList(_Layer(config.width, config.heads) for _ in range(config.layers))
            self.norm = nn.LayerNorm(config.width)
        initialise(self, seed)

    def forward(self, captions: Sequence[str] | Tensor) -> tuple[Tensor, Tensor]:
        """Captions, or ids (B, L ≤ length) made by `TextConfig.encode`, to tokens (B, L, width) and mask (B, L)."""
        ids = captions if isinstance(captions, Tensor) else self.config.encode(captions)
        ids = ids.to(self.word.weight.device)
        mask = ids != PADDING
        h = self.word(ids) + self.position.weight[: ids.shape[1]]
        # A row without any word would leave softmax nothing to sum; it may look at its first place, which no one reads.
        seen = mask | (~mask.any(1, keepdim=True) & (torch.arange(ids.shape[1], device=ids.device) == 0))
        for layer in self.layers:
            h = layer(h, seen)
        return self.norm(h.to(self.norm.weight.dtype)), mask


class _Layer(nn.Module):
    """A pre-norm transformer layer; starts as the identity."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.norm_map = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = zeroed(nn.Linear(width, width))
        self.expand = nn.Linear(width, 4 * width)
        self.contract = zeroed(nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        own = self.norm.weight.dtype  # also under autocast
        q, k, v = self.qkv(self.norm(x.to(own))).chunk(3, dim=2)
        x = x + self.out(attend(q, k, v, self.heads, mask))
        return x + self.contract(functional.gelu(self.expand(self.norm_map(x.to(own)))))
