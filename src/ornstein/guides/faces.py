"""Faces: one network finds them, another tells them apart; facenet-pytorch with the user's weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, ConfigError
from ..storage.statedicts import read_state
from .published import FACENET_FILE, weights_file
from .standard import resized, unit

WIDTH = 512
_DETECTED_AT, _EMBEDDED_AT = 256, 160


class FaceNet:
    """The identity of universal guidance: MTCNN's box (no gradient), then the embedding of InceptionResnetV1.

    Images are brought to 256 pixels, the face is cut out and brought to 160, and enters as (byte − 127.5)/128. A row
    without a face is NaN. MTCNN's weights come with the package, the embedding's are the user's.
    """

    def __init__(self, weights: str | None = None, device: torch.device | str = "cpu") -> None:
        try:
            import facenet_pytorch  # pyright: ignore[reportMissingImports]
        except (ImportError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:120]
            raise ConfigError(
                f"faces need facenet-pytorch and torchvision, which cannot be imported here ({reason}): pip install "
                "--no-deps facenet-pytorch, or use the source own"
            ) from error
        path = weights_file(weights, FACENET_FILE, "InceptionResnetV1")
        self.device = torch.device(device)
        self._detector: Any = facenet_pytorch.MTCNN(device=self.device)
        net: Any = facenet_pytorch.InceptionResnetV1(pretrained=None, classify=False)
        state = {key: value for key, value in read_state(path).items() if not key.startswith("logits.")}
        try:
            net.load_state_dict(state)
        except RuntimeError as error:
            raise CheckpointError(f"{path} does not fit InceptionResnetV1: give {FACENET_FILE}") from error
        self._net: Any = net.float().eval().requires_grad_(False).to(self.device)

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 512), rows of NaN where there is no face."""
        large = resized(unit(images), _DETECTED_AT, "bicubic")
        return torch.cat([self._row(image) for image in large])

    def _row(self, image: Tensor) -> Tensor:
        """One image (3, 256, 256) in [0, 1] to (1, 512)."""
        box = self._box(image.detach())
        if box is None:
            return image.new_full((1, WIDTH), torch.nan)
        left, top, right, bottom = box
        face = resized(image[None, :, top:bottom, left:right], _EMBEDDED_AT, "bicubic")
        return self._net((255.0 * face - 127.5) / 128.0)

    def _box(self, image: Tensor) -> tuple[int, int, int, int] | None:
        """The largest face in whole pixels."""
        pixels = image.clamp(0.0, 1.0).mul(255.0).round().byte().permute(1, 2, 0).cpu().numpy()
        with torch.no_grad():
            boxes, _ = self._detector.detect(pixels)
        if boxes is None or len(boxes) == 0:
            return None
        low, high = [max(0, int(v)) for v in boxes[0][:2]], [min(_DETECTED_AT, round(float(v))) for v in boxes[0][2:]]
        return (low[0], low[1], high[0], high[1]) if high[0] - low[0] > 1 and high[1] - low[1] > 1 else None


__all__ = ["FaceNet"]
