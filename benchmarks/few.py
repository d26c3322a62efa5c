"""Distance to the data of the shipped models at one, two, three and more evaluations, and what the autoencoder allows.

    OMP_NUM_THREADS=1 python benchmarks/few.py --n 1000

Every cell is kept in OUT as soon as it is measured; the same command goes on where it was stopped. The features are
EfficientNet-lite0's, so the numbers are FD-lite0 and KID-lite0, not FID, and models of other sizes have other floors.
A floor compares N pictures the models have not seen with the training pictures; "decoded" ones went through the
autoencoder first. Coverage is the part of the training pictures that have one of the N nearer than their own fifth
neighbour. Ends with the table of docs/reference/models.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ornstein.data import open_source, to_uint8
from ornstein.metrics import Statistics, compare, features, manifold, statistics
from ornstein.runs import open_codec, open_run
from ornstein.sampling import sample
from ornstein.storage.files import write_text
from report import machine

MODELS = (
    ("critters-ect", None, (1, 2)),
    ("critters-64", "auto", (1, 2, 3, 5, 10, 20)),
    ("critters-64", "ddim", (2, 3, 5)),
    ("critters-udpm", None, (3,)),
    ("critters", "auto", (3, 5, 10)),
    ("critters", "ddim", (3, 5)),
)
TRAINED, HELD_OUT = 2048, 4096
"""Training pictures that are compared with, and the first one that no model has seen."""


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", nargs="*", default=[name for name, _, _ in MODELS])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/few.json"))
    args = parser.parse_args()

    wanted = {"n": args.n, "seed": args.seed, "n_data": TRAINED}
    document: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    if document and any(document.get(key) != value for key, value in wanted.items()):
        parser.error(f"{args.out} holds cells of other settings: name another --out")
    document = document or {**wanted, "cells": []}
    document |= {"command": f"python benchmarks/few.py --n {args.n} --seed {args.seed}", "machine": machine()}
    measure = Cells(document, args.out, args.n)
    for name, sampler, evaluations in MODELS:
        if name not in args.models:
            continue
        run = open_run(name)
        model, size = run.denoiser, run.details["train"]["size"]
        for count in evaluations:
            measure(
                {"model": name, "sampler": sampler or "its own", "evaluations": count, "size": size},
                lambda model=model, sampler=sampler, count=count: to_uint8(
                    sample(model, args.n, sampler=sampler, evaluations=count, seed=args.seed, batch=50)
                ),
            )
        floor = {"model": "held-out pictures", "sampler": "", "evaluations": 0, "size": size}
        measure(floor, lambda size=size: held_out(args.n, size))
        if model.codec is not None:
            measure({**floor, "model": "held-out pictures, decoded"}, lambda: decoded(args.n))
    print(table(document["cells"]))


class Cells:
    """Measures a cell unless the document has it, and writes the document."""

    def __init__(self, document: dict[str, Any], out: Path, n: int) -> None:
        self.document, self.out, self.n = document, out, n
        self.network, self.trained = features("lite0"), dict[int, Statistics]()

    def __call__(self, key: dict[str, Any], make: Callable[[], Sequence[Tensor] | Tensor]) -> None:
        """``key`` names the cell; ``make`` returns its uint8 pictures."""
        if any(all(cell[k] == v for k, v in key.items()) for cell in self.document["cells"]):
            return
        size = key["size"]
        if size not in self.trained:
            data = open_source(f"critters:{TRAINED}", size=size)
            self.trained[size] = statistics([data[i].image for i in range(TRAINED)], self.network)
        began = time.process_time()
        images = make()
        seconds = (time.process_time() - began) / self.n
        ours, theirs = statistics(images, self.network), self.trained[size]
        near = manifold(*(side.sample.rows(side.moments.width) for side in (ours, theirs)))
        report = {**compare(ours, theirs).as_dict(), "coverage-lite0": near.coverage}
        self.document["cells"].append({**key, **report, "seconds_per_image": round(seconds, 4)})
        names = [name for name, _, _ in MODELS]

        def place(cell: dict[str, Any]) -> tuple[int, str, int]:
            model = cell["model"]
            return names.index(model) if model in names else len(names), cell["sampler"], cell["evaluations"]

        self.document["cells"].sort(key=place)
        write_text(self.out, json.dumps(self.document, indent=1) + "\n")
        print(f"{key['model']}, {key['evaluations']} evaluations: FD-lite0 {report['FD-lite0']:.1f}", flush=True)


def held_out(n: int, size: int) -> list[Tensor]:
    """Pictures that no model has seen."""
    data = open_source(f"critters:{HELD_OUT + n}", size=size)
    return [data[HELD_OUT + i].image for i in range(n)]


def decoded(n: int) -> Tensor:
    """The same after the autoencoder of the models in latents."""
    codec = open_codec("critters-latents")
    images = torch.stack(held_out(n, 64)).float() / 127.5 - 1.0
    with torch.no_grad():
        return to_uint8(torch.cat([codec.decode(codec.encode(part)) for part in images.split(50)]))


def table(cells: list[dict[str, Any]]) -> str:
    """Markdown, a row a cell."""
    head = ("model", "sampler", "evaluations", "pixels", "FD-lite0", "KID-lite0", "coverage", "s an image")
    rows = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for cell in cells:
        drawn = cell["evaluations"]
        seconds = f"{cell['seconds_per_image']:.3f}" if drawn else "–"
        distances = f"{cell['FD-lite0']:.0f} | {cell['KID-lite0']:.4f} | {cell['coverage-lite0']:.3f}"
        words = (cell["model"], cell["sampler"] or "–", drawn or "–", cell["size"], distances, seconds)
        rows.append(f"| {' | '.join(map(str, words))} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
