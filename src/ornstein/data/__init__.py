"""Data: sources of examples that can be indexed, robust decoding, exact batches, and pictures to files."""

from ornstein.data.base import Example, Source, UnreadableError
from ornstein.data.loader import Batch, Order, batches
from ornstein.data.open import open_source
from ornstein.data.pictures import grid, save_grid, save_png, to_uint8

__all__ = [
    "Batch",
    "Example",
    "Order",
    "Source",
    "UnreadableError",
    "batches",
    "grid",
    "open_source",
    "save_grid",
    "save_png",
    "to_uint8",
]
