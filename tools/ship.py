"""Turn a run into a model that ships with the library: half-precision weights, a card, and its loss curves.

    python tools/ship.py runs/critters critters ["a remark for the card"]

Writes src/ornstein/weights/NAME/{config.json, ema.safetensors, history.json}; refuses weights over 10 MB.
"""

from __future__ import annotations

import itertools
import json
import platform
import sys
from pathlib import Path

from ornstein.cli.output import write_text
from ornstein.runs import CARD, export, open_run
from ornstein.training import TrainConfig, to_dict

LIMIT = 10 * 2**20


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
        "data": "DiceBear critters (CC0), seeds 0 to 4095, rendered at 64 px",
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


def command(details: dict, images: int) -> str:
    """The options that differ from the defaults; no schedule looks at the budget, so it may be cut."""
    ours, plain = details["train"], to_dict(TrainConfig(out=details["train"]["out"]))
    words = [
        f"ornstein train ddpm --data {ours['data']} --out {ours['out']} --images {images}",
        f"--seed {ours['seed']}",
    ]

    def differ(a: dict, b: dict, prefix: str) -> None:
        for key, value in a.items():
            if isinstance(value, dict):
                differ(value, b.get(key, {}), f"{prefix}{key}.")
            elif value != b.get(key) and not f"{prefix}{key}".startswith(("data", "out", "images", "seed", "every")):
                words.append(f"--{prefix}{key.replace('_', '-')} {value}")

    differ(ours, plain, "")
    return " ".join(words)


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
