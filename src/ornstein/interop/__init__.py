"""Other people's models as denoisers. Nothing here is imported before it is used.

from ornstein.interop.diffusers import from_pipeline

piped = from_pipeline("stabilityai/stable-diffusion-xl-base-1.0", device="cuda", dtype=torch.float16)
"""

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    if name != "modular":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f".{name}", __name__)
