"""Small right things for the fuzz run to spoil."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from ornstein.networks import UNetConfig
from ornstein.runs import export, open_own
from ornstein.training import TrainConfig, train
from ornstein.training.config import Every


def fill(here: Path) -> None:
    """RUN, CARD, TEXT: trained models; FOLDER, OTHER, SHARD: pictures; EMPTY, LOOP, JUNK: what is no such thing."""
    network = UNetConfig(width=8, multipliers=(1,), blocks=1, attention=())
    for name, condition in (("RUN", "label"), ("TEXT", "text")):
        own = (
            network
            if condition == "label"
            else UNetConfig(width=8, multipliers=(1,), blocks=1, attention=(0,), head_width=8)
        )
        config = TrainConfig(
            data="critters:16",
            out=str(here / name),
            size=8,
            images=16,
            batch=8,
            condition=condition,
            network=own,
            every=Every(log=8, samples=0),
            tensorboard=False,
        )
        train(config, quiet=True)
    export(open_own(here / "RUN"), here / "CARD", half=False)
    draw = np.random.default_rng(0)
    (here / "SHARD").mkdir()
    with tarfile.open(here / "SHARD" / "x.tar", "w") as tar:
        for name in ("FOLDER", "OTHER"):
            for number in range(8):
                folder = here / name / ("a" if number % 2 else "b")
                folder.mkdir(parents=True, exist_ok=True)
                file = folder / f"{number}.png"
                Image.fromarray(draw.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(file)
                if name == "OTHER":
                    _member(tar, f"{number}.png", file.read_bytes())
                    _member(tar, f"{number}.txt", b"a picture")
    lines = [{"file_name": f"{'a' if n % 2 else 'b'}/{n}.png", "text": f"picture {n}"} for n in range(8)]
    (here / "FOLDER" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (here / "EMPTY").mkdir()
    (here / "LOOP").symlink_to("LOOP")
    (here / "JUNK").write_bytes(draw.bytes(3000))


def _member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
