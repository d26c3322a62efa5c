"""402 square crops of six sample photographs, in one folder for each: data for the first training of a newcomer.

The photographs lie inside the wheels of scikit-image (astronaut, chelsea, coffee, rocket) and scikit-learn (china,
flower); nothing is downloaded.

    pip install scikit-image scikit-learn
    python tools/photo_crops.py photos
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

PHOTOGRAPHS = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "cat": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "temple": ("sklearn", "datasets/images/china.jpg"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
}
CROPS = 67  # of each photograph
SIDES = 0.5, 1.0  # least and greatest side, as parts of the photograph's shorter one
PIXELS = 128


def crops(photograph: Image.Image, count: int, seed: int) -> Iterator[Image.Image]:
    """Squares of random size at random places."""
    draw = np.random.default_rng(seed)
    for _ in range(count):
        side = round(draw.uniform(*SIDES) * min(photograph.size))
        left, top = (int(draw.integers(0, room - side + 1)) for room in photograph.size)
        yield photograph.crop((left, top, left + side, top + side)).resize((PIXELS, PIXELS), Image.Resampling.LANCZOS)


def main() -> None:
    """Write OUT/NAME/00.png …"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args().out
    for seed, (name, (package, file)) in enumerate(PHOTOGRAPHS.items()):
        found = importlib.util.find_spec(package)  # the package's folder: its code is not needed
        if found is None or found.origin is None:
            raise SystemExit("pip install scikit-image scikit-learn")
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        with Image.open(Path(found.origin).parent / file) as opened:
            photograph = opened.convert("RGB")
        for i, crop in enumerate(crops(photograph, CROPS, seed)):
            crop.save(folder / f"{i:02d}.png")


if __name__ == "__main__":
    main()
