"""Turn a run into a model that ships with the library: half-precision weights, a card, and its loss curves.

    python tools/ship.py runs/critters critters ["a remark for the card"]

Writes src/ornstein/weights/NAME/{config.json, ema.safetensors, history.json}; refuses weights over 10 MB.
"""

from __future__ import annotations

import itertools
import json
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ornstein.runs import CARD, export, open_run
from ornstein.storage.files import write_text
from ornstein.training import from_dict, to_dict
from ornstein.training.methods import METHODS

LIMIT = 10 * 2**20
NEUTRAL = ("data", "out", "images", "seed", "size", "every", "workers", "keep", "tensorboard", "device", "curriculum")
"""Options that are said already, or change no weights."""


def main(source: str, name: str, note: str = "") -> int:
    """Export, describe, and say how large it became."""
    run = open_run(source)
    target = Path(__file__).parents[1] / "src" / "ornstein" / "weights" / name
    export(run, target)
    (target / CARD).chmod(0o644)
    size = (target / CARD).stat().st_size
    if size > LIMIT:
        (target / CARD).unlink()
        print(f"{size / 2**20:.1f} MB of weights, over {LIMIT / 2**20:.0f}: train a smaller network", file=sys.stderr)
        return 1
    log = (run.folder / "metrics.jsonl").read_text("utf-8").splitlines()
    lines = [line for line in map(json.loads, log) if line["images"] <= run.images]
    card = {
        "command": command(run.details, run.images),
        "data": f"DiceBear critters (CC0), seeds 0 to 4095, rendered at {run.details['train']['size']} px",
        "licence": "Apache-2.0",
        "machine": f"one thread of a shared two-core {platform.machine()} CPU",
        "note": note,
        "images_per_second": round(sum(line["time"]["images_per_second"] for line in lines) / len(lines), 1),
    }
    config = json.loads((target / "config.json").read_text("utf-8"))
    write_text(target / "config.json", json.dumps({**config, "card": card}, indent=1) + "\n")
    write_text(target / "history.json", json.dumps(history(lines)) + "\n")
    print(f"{target}: {size / 2**20:.1f} MB, {run.images} images")
    return 0


def command(details: Mapping[str, Any], images: int) -> str:
    """The options that differ from the defaults. A run that was stopped is one of the images that it has seen."""
    name, method = next((n, m) for n, m in METHODS.items() if m.config.lower() == details["train"]["kind"])
    ours = to_dict(from_dict(method.configuration, details["train"]))  # under the fields' names of today
    images = min(images, ours["images"])
    given = {key: ours[key] for key in ("out", "images", "init_from") if ours.get(key)}
    plain = to_dict(method.configuration(**given))
    words = [f"ornstein train {name} --data {ours['data']} --out {ours['out']} --images {images}"]
    words += [f"--size {ours['size']}", f"--seed {ours['seed']}"]
    words += [_option("init-from", ours["init_from"])] if ours.get("init_from") else []
    last: list[str] = []

    def differ(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str, words: list[str]) -> None:
        for key, value in a.items():
            option = f"{prefix}{key}".replace("_", "-")
            if isinstance(value, dict):
                differ(value, b.get(key, {}), f"{prefix}{key}.", last if key == "network" else words)
            elif value != b.get(key) and not option.startswith(NEUTRAL):
                words.append(_option(option, value))

    differ(ours, plain, "", words)
    kind = ours["network"]["kind"]  # one network of several is named
    return " ".join(words + ([f"--network {kind}"] if last and kind in ("unet", "dit") else []) + last)


def _option(name: str, value: object) -> str:
    """One option as it is typed."""
    if isinstance(value, bool):
        owner, dot, last = name.rpartition(".")
        return f"--{name}" if value else f"--{owner}{dot}no-{last}"
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"--{name} {text}"


def history(lines: list[dict]) -> dict:
    """Loss by noise level, bin by bin."""
    edges = lines[0]["levels"]["log_snr"]
    names = [
        f"below {edges[0]:g}",
        *(f"{a:g} to {b:g}" for a, b in itertools.pairwise(edges)),
        f"above {edges[-1]:g}",
    ]
    return {
        "images": [line["images"] for line in lines],
        "loss": [line["loss"] for line in lines],
        "levels": {name: [line["levels"]["loss"][i] for line in lines] for i, name in enumerate(names)},
    }


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
