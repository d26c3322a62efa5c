"""CLIP score: how well pictures fit their captions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as fn

from ornstein.errors import CheckpointError, UsageError
from ornstein.metrics.blocks import BLOCK, Block, padded
from ornstein.metrics.features import resized
from ornstein.storage.hub import digest_of, find_folder, load_pretrained

REPOSITORY = "openai/clip-vit-base-patch32"
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


class Clip:
    """A CLIP network with its tokenizer: the cosine between an image and a caption.

    ``weights`` is the folder of a transformers ``CLIPModel`` with its tokenizer, or the name of a repository in the
    Hugging Face cache; None means openai/clip-vit-base-patch32, the network of the CLIP score. Nothing is downloaded.
    ``name`` holds width, patch and the first digits of the weights' SHA-256, e.g. "clip-768-p32-3ab1c2d4".

    Images are stretched to the network's side by `resized` (they are square in practice, so that CLIP's centre crop
    would change nothing) and normalised as CLIP was trained. Captions beyond its length (77 tokens) are cut.
    """

    def __init__(self, weights: str | Path | None = None, device: torch.device | str = "cpu") -> None:
        what = "CLIP network"
        folder = find_folder(weights or REPOSITORY, what)
        model = load_pretrained("CLIPModel", folder, what)
        self.device = torch.device(device)
        self.model: Any = model.eval().requires_grad_(False).to(self.device)
        self._tokenizer = _tokenizer(folder)
        vision = model.config.vision_config
        self.name = f"clip-{vision.hidden_size}-p{vision.patch_size}-{digest_of(folder)}"
        self._side = vision.image_size
        self._length = model.config.text_config.max_position_embeddings
        self._mean = 255.0 * torch.tensor(_MEAN, device=self.device).reshape(-1, 1, 1)
        self._std = 255.0 * torch.tensor(_STD, device=self.device).reshape(-1, 1, 1)

    def cosines(self, images: Tensor, captions: Sequence[str]) -> npt.NDArray[np.float64]:
        """The cosine of each uint8 image (B, 3, H, W), B ≤ 32, with its caption: (B,) float64 in [−1, 1]."""
        if len(captions) != len(images):
            raise UsageError(f"{len(images)} images need as many captions, got {len(captions)}")
        texts = [*captions, *[""] * (BLOCK - len(captions))]
        with torch.inference_mode(), torch.backends.cudnn.flags(benchmark=False, deterministic=True, allow_tf32=False):
            seen, read = self.images(padded(images).to(self.device)), self.texts(texts)
            cosines = fn.cosine_similarity(seen.double(), read.double(), dim=1)
        return cosines[: len(images)].cpu().numpy()

    def images(self, pixels: Tensor) -> Tensor:
        """The vectors (B, D) of images (B, 3, H, W) in [0, 255], bytes or floats; differentiable in floats."""
        x = (resized(pixels, self._side) - self._mean) / self._std
        return self.model.visual_projection(self.model.vision_model(pixel_values=x).pooler_output)

    def texts(self, captions: Sequence[str]) -> Tensor:
        """The vectors (K, D) of captions."""
        # Always to full length: a batch's longest caption must not reach the last bits of another one.
        tokens = self._tokenizer(
            list(captions), padding="max_length", truncation=True, max_length=self._length, return_tensors="pt"
        ).to(self.device)
        text = self.model.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        return self.model.text_projection(text.pooler_output)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClipScore:
    """The mean over n captioned images of 100 · max(cosine, 0), its standard error, and each image's own score."""

    name: str
    value: float
    error: float | None  # standard error; None for a single image
    scores: npt.NDArray[np.float64]  # (n,) in [0, 100], in the order of `indices`
    indices: npt.NDArray[np.int64]  # numbers of the images, ascending


class ClipMeter:
    """Gathers the CLIP score from blocks of captioned images: 100 · E max(cos(image, caption), 0).

    Hessel et al. 2021 (arXiv 2104.08718), with the weight 100 that implementations use instead of 2.5. Range 0 to 100;
    about 20 for unrelated and 30 for fitting pairs with the published networks. Memory: 16 bytes an image, for
    the scores of single images. Images without a caption are refused.
    """

    def __init__(self, clip: Clip) -> None:
        self.clip = clip
        self._found: list[tuple[int, float]] = []

    def update(self, block: Block) -> None:
        """Take in a block."""
        if not block.images:
            return
        for index, caption, name in zip(block.indices, block.captions, block.names, strict=True):
            if not caption:
                raise UsageError(
                    f"image {name or index} has no caption, and the CLIP score compares pictures with captions: "
                    "put them into metadata.jsonl, or leave the metric out"
                )
        cosines = self.clip.cosines(block.stack(), block.captions)
        self._found += zip(block.indices, (100.0 * np.maximum(cosines, 0.0)).tolist(), strict=True)

    def merge(self, other: ClipMeter) -> None:
        """Take in what another process has seen."""
        if other.clip.name != self.clip.name:
            raise UsageError(f"cannot merge scores of {self.clip.name} and {other.clip.name}: use one network")
        self._found += other._found

    def result(self) -> ClipScore:
        """The score of all that was seen. The sum is correctly rounded (`math.fsum`), hence the same in any order."""
        if not self._found:
            raise UsageError("the CLIP score needs at least one image")
        found = sorted(self._found)
        scores = np.array([score for _, score in found])
        mean = math.fsum(scores) / len(scores)
        error = None
        if len(scores) > 1:
            error = math.sqrt(math.fsum((scores - mean) ** 2) / (len(scores) - 1) / len(scores))
        indices = np.array([index for index, _ in found], dtype=np.int64)
        return ClipScore(name=self.clip.name, value=mean, error=error, scores=scores, indices=indices)


def _tokenizer(folder: Path) -> Any:
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{folder} lacks the tokenizer of CLIP ({' '.join(str(error).split())[:120]}): "
            "give the whole folder of the published network"
        ) from error
