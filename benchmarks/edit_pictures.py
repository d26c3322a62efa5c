"""The figure of docs/how-to/edit-pictures.md: one picture at three strengths, and under a mask.

OMP_NUM_THREADS=1 python benchmarks/edit_pictures.py
"""

from __future__ import annotations

from pathlib import Path

import torch

import ornstein as orn
from ornstein.data import save_grid

OUT = Path(__file__).parents[1] / "docs" / "how-to" / "figures" / "edit-pictures.png"


def main() -> None:
    """Draw it."""
    model = orn.load("critters-64")
    (start,) = orn.sample(model, 1, steps=10, seed=1, first=1)
    mask = torch.zeros(64, 64)
    mask[4:31, 16:49] = 1.0
    rows = [orn.sample(model, 4, start=start, strength=strength, steps=10, seed=3) for strength in (0.3, 0.6, 0.8)]
    rows.append(orn.sample(model, 4, start=start, mask=mask, steps=10, seed=3))
    OUT.parent.mkdir(exist_ok=True)
    save_grid(torch.cat([torch.cat([start[None], row]) for row in rows]), OUT, columns=5)
    print(OUT)


if __name__ == "__main__":
    main()
