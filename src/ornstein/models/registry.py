"""Registry of trained models: kind in a file → class, imported on first use."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .spec import ModelSpec

MODELS: Mapping[str, tuple[str, str]] = {
    "spec": (".spec", "DenoiserSpec"),
    "autoencoderspec": (".autoencoder", "AutoencoderSpec"),
    "rarityspec": (".rarity", "RaritySpec"),
    "cascadespec": (".cascade", "CascadeSpec"),
    "consistencyspec": (".consistency", "ConsistencySpec"),
    "udpmspec": (".pyramid", "UDPMSpec"),
}
"""Kind in a file → (module, class)."""


def spec_class(kind: object) -> type[ModelSpec]:
    """The model class of this ``kind`` in a file; the plain denoiser's for an unknown kind, which it will refuse."""
    module, name = MODELS.get(kind, MODELS["spec"]) if isinstance(kind, str) else MODELS["spec"]
    return getattr(importlib.import_module(module, __package__), name)
