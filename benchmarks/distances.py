"""Distance to the data against network evaluations, for the shipped model: Fréchet and kernel distance, many samples.

    python benchmarks/distances.py --model critters --n 512

Every cell is kept in OUT as soon as it is measured; the same command goes on where it was stopped. The features are
EfficientNet-lite0's, so the numbers are FD-lite0 and KID-lite0, not FID. The floor is the distance between two disjoint
halves of the data, each as large as a cell, as nearly as the data allow.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from ornstein.data import open_source, to_uint8
from ornstein.metrics import compare, features, statistics
from ornstein.runs import open_run
from ornstein.sampling import sample
from report import machine

SAMPLERS = ("ddpm", "ddim", "heun", "dpmpp-2m", "unipc")
EVALUATIONS = (5, 10, 20, 50)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="critters")
    parser.add_argument("--n", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samplers", nargs="*", default=SAMPLERS)
    parser.add_argument("--evaluations", nargs="*", type=int, default=EVALUATIONS)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/distances.json"))
    args = parser.parse_args()

    run, network = open_run(args.model), features("lite0")
    size = run.denoiser.shape[-1]
    wanted = {"model": args.model, "images_trained": run.images, "n": args.n, "seed": args.seed}
    document = json.loads(args.out.read_text()) if args.out.exists() else {}
    if any(document.get(key) != value for key, value in wanted.items()):
        document = {**wanted, "cells": []}
    document["command"] = f"python benchmarks/distances.py --model {args.model} --n {args.n} --seed {args.seed}"
    document["machine"] = machine()

    # Held-out pictures: the model was trained on the first 4,096 seeds.
    data = open_source("critters:8192", size=size)
    train = statistics([data[i].image for i in range(2048)], network)
    document["n_data"] = 2048
    if "floor" not in document:
        fresh = statistics([data[4096 + i].image for i in range(args.n)], network)
        document["floor"] = compare(fresh, train).as_dict()
        _write(args.out, document)
    fd, kid = document["floor"]["FD-lite0"], document["floor"]["KID-lite0"]
    document["floor_text"] = (
        f"{args.n} new pictures of the same kind stand at FD-lite0 {fd:.1f} and KID-lite0 {kid:.4f}: "
        "the best that this number of samples can reach."
    )
    done = {(cell["sampler"], cell["evaluations"]) for cell in document["cells"]}
    for evaluations in args.evaluations:
        for name in args.samplers:
            if (name, evaluations) in done:
                continue
            began = time.perf_counter()
            images = to_uint8(
                sample(run.denoiser, args.n, sampler=name, evaluations=evaluations, seed=args.seed, batch=32)
            )
            report = compare(statistics(images, network), train).as_dict()
            seconds = time.perf_counter() - began
            document["cells"].append(
                {"sampler": name, "evaluations": evaluations, **report, "seconds": round(seconds, 1)}
            )
            document["cells"].sort(key=lambda cell: (SAMPLERS.index(cell["sampler"]), cell["evaluations"]))
            _write(args.out, document)
            print(
                f"{name:<10} {evaluations:>3} evaluations: FD-lite0 {report['FD-lite0']:.1f} ({seconds:.0f} s)",
                flush=True,
            )


def _write(path: Path, document: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(document, indent=1) + "\n")
    temporary.replace(path)


if __name__ == "__main__":
    main()
