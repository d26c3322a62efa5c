"""Digests of what the library does, to hold against those of another checkout on the same machine.

    python tools/freeze.py make before.json            # minutes; PYTHONPATH=src of the checkout that is meant
    python tools/freeze.py compare before.json after.json

Pictures of the shipped models with ``--strict`` under three samplers and a guide, the loss log of ten steps of every
training method, and the cells of every stored record. The numbers depend on the machine, so none is committed.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "benchmarks" / "results" / "reproduce"
MODELS = {
    "critters": ["--steps", "4"],
    "critters-64": ["--steps", "4"],
    "critters-ect": ["--steps", "2"],
    "critters-udpm": [],
}
SAMPLERS = {"critters-ect": ["multistep-default"], "critters-udpm": ["multistep-default"]}
GUIDE = ["--guide", "colour:#3366cc:20"]
TRAIN = {
    "ddpm": ["--path", "vp-cosine"],
    "cas-dm": ["--objective.metric", "lite0"],
    "slct": [],
    "ict": [],
    "cm": [],
    "ect": ["--init-from", "critters-64", "--codec", "critters-latents", "--size", "64"],
    "udpm": [],
    "autoencoder": [],
}


def run(*words: str) -> None:
    """One command of this checkout."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg"}
    done = subprocess.run(
        [sys.executable, "-m", "ornstein", *words], capture_output=True, text=True, env=env, check=False
    )
    if done.returncode:
        sys.exit(f"ornstein {' '.join(words)} failed: {done.stderr.strip()[-400:]}")


def pictures(folder: Path) -> dict[str, str]:
    """Digests of samples."""
    found = {}
    for model, options in MODELS.items():
        for sampler in SAMPLERS.get(model, ["ddim", "dpmpp-2m", "ancestral"]):
            for guide in ([],) if model == "critters-udpm" else ([], GUIDE):
                name = f"{model} {sampler} {' '.join(guide)}".strip()
                out = folder / name.replace(" ", "-").replace("#", "").replace(":", "-")
                words = [] if sampler == "multistep-default" else ["--sampler", sampler]
                run("sample", model, "--n", "2", "--strict", "--out", str(out), *options, *words, *guide)
                files = sorted(out.glob("0*.png"))
                found[name] = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
    return found


def losses(folder: Path) -> dict[str, list[object]]:
    """The loss at every step of short trainings."""
    found = {}
    for method, options in TRAIN.items():
        out = folder / f"train-{method}"
        words = ["--data", "critters:64", "--size", "32", "--batch", "4", "--images", "40", "--out", str(out)]
        if "--size" in options:
            words = [word for word in words if word not in ("--size", "32")]
        run("train", method, *words, "--every.log", "4", "--every.samples", "0", "--no-tensorboard", *options)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        found[method] = [[line["images"], line["loss"]] for line in lines]
    return found


def cells() -> dict[str, str]:
    """Digests of the cells of every record."""
    out = {}
    for file in sorted(RECORDS.glob("*.json")):
        record = json.loads(file.read_text("utf-8"))
        out[file.stem] = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]
    return out


def main() -> int:
    """Make, or compare."""
    verb, *paths = sys.argv[1:] or ["help"]
    if verb == "make" and len(paths) == 1:
        with tempfile.TemporaryDirectory() as folder:
            found = {"pictures": pictures(Path(folder)), "losses": losses(Path(folder)), "records": cells()}
        Path(paths[0]).write_text(json.dumps(found, indent=1) + "\n")
        return 0
    if verb == "compare" and len(paths) == 2:
        one, two = (json.loads(Path(path).read_text()) for path in paths)
        other = [f"{part} of {key}" for part in one for key in one[part] if one[part][key] != two[part].get(key)]
        print("\n".join(["differs: " + name for name in other]) or "the same")
        return bool(other)
    print(__doc__)
    return 2


if __name__ == "__main__":
    sys.exit(main())
