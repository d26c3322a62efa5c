"""The shipped network under diffusers' schedulers and our samplers: distances to its own 1000-step solution, and FD.

    OMP_NUM_THREADS=1 nice -n 5 python benchmarks/practice_critters.py

One thread, one to two hours; every cell is kept in runs/practice/ as soon as it is measured, and the same command goes
on where it was stopped. Distances are root mean squares over pixels (images in [−1, 1]) of 64 images that start from
the same noise as the reference; Fréchet distances (EfficientNet-lite0 features, so no FID) are of 256 images against
2,048 pictures of the training data. The reference is 1000 steps of dpmpp-3m. `--collect` only writes what is there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import practice_theirs as theirs
from ornstein import grids
from ornstein.data import open_source, to_uint8
from ornstein.denoisers import Denoiser
from ornstein.metrics import features
from ornstein.metrics.frechet import Moments, frechet_distance
from ornstein.paths import AffinePath
from ornstein.randomness import Noise
from ornstein.runs import open_run
from ornstein.samplers import run, solve
from ornstein.samplers import sampler as sampler_named
from ornstein.sampling import resolve
from report import RESULTS, write

CACHE = Path("runs/practice")
COUNTS = (5, 8, 10, 15, 20, 30, 50)

N, NEAR, SEED, DATA, BATCH = 256, 64, 0, 2048, 64
FINE, MIDDLE = 1000, 100  # steps of the reference: of the first images, and of the rest

_E = {"use_exponential_sigmas": True}
THEIRS = {
    "diffusers DDIM (trailing)": ("DDIMScheduler", {"timestep_spacing": "trailing"}),
    "diffusers 2M": ("DPMSolverMultistepScheduler", {}),
    "diffusers 2M (exponential)": ("DPMSolverMultistepScheduler", _E),
    "diffusers 3M (exponential)": ("DPMSolverMultistepScheduler", {"solver_order": 3, **_E}),
    "diffusers UniPC": ("UniPCMultistepScheduler", {}),
    "diffusers UniPC-3 (exponential)": ("UniPCMultistepScheduler", {"solver_order": 3, **_E}),
    "diffusers Heun (Karras)": ("HeunDiscreteScheduler", {"use_karras_sigmas": True}),
    "diffusers DEIS": ("DEISMultistepScheduler", {}),
    "diffusers DEIS-3 (exponential)": ("DEISMultistepScheduler", {"solver_order": 3, **_E}),
}
OURS = ("dpmpp-2m", "staggered-midpoint", "unipc-3", "deis-3", "accelerated-ode-memory")
LATER = ("ddim", "accelerated-ode")
CLOSER = ("auto", "dpmpp-2m", "staggered-midpoint", *(name for name in THEIRS if "Heun" not in name))  # of which FDs
Ends = Callable[[range], Tensor]


class Bench:
    """The network, its data and its reference; everything on one thread and in float32."""

    def __init__(self, model: str) -> None:
        self.denoiser: Denoiser = open_run(model).denoiser
        path = self.denoiser.path
        assert isinstance(path, AffinePath)
        assert self.denoiser.shape is not None
        self.path, self.shape = path, self.denoiser.shape
        self.features = features("lite0")
        self.calls = 0

    def normal(self, rows: range) -> Tensor:
        """The same start for everybody."""
        return Noise.of(SEED, rows).normal("prior", self.shape)

    def ours(self, name: str, evaluations: int) -> Ends:
        """One of our samplers on its default grid."""
        request = resolve(self.denoiser, name, None, evaluations, None, None)
        return lambda rows: self.solved(request.sampler, request.times, rows)

    def solved(self, sampler: Any, times: Any, rows: range) -> Tensor:
        """The end states of these images."""
        noise = Noise.of(SEED, rows)
        return run(solve(sampler, self.path, self.path.prior(noise, self.shape), times, noise), self)

    def theirs(self, name: str, evaluations: int) -> Ends:
        """A diffusers scheduler on a table of 1000 times of the network's own path."""
        kind, options = THEIRS[name]
        end = self.path.t_range[1]
        logs = [2.0 * math.log(self.path.alpha(end * k / 1000)) for k in range(1001)]
        betas = [-math.expm1(after - before) for before, after in itertools.pairwise(logs)]
        setting = theirs.Setting(name, kind, (("trained_betas", betas), *options.items()))

        def ends(rows: range) -> Tensor:
            scheduler = setting.build("own")
            return theirs.drive(scheduler, setting.steps(evaluations), self.normal(rows), self.noise)[0]

        return ends

    def noise(self, x: Tensor, bar: float) -> Tensor:
        """The network's noise at the nearest time that it was trained at."""
        t = min(max(self.path.time_of(-2.0 * math.log(bar)), self.path.floor), self.path.t_range[1])
        with torch.no_grad():
            return self(x, t).noise.to(x.dtype)

    def __call__(self, x: Tensor, t: float) -> Any:
        self.calls += 1
        return self.denoiser(x, t)

    def reference(self, count: int) -> Tensor:
        """The first `NEAR` images in `FINE` steps, the others in `MIDDLE`."""
        parts: list[Tensor] = []
        for begin in range(0, count, BATCH):
            part = CACHE / f"critters-reference-{begin}.safetensors"
            if not part.exists():
                rows, near = range(begin, begin + BATCH), begin < NEAR
                times = grids.log_snr(FINE if near else MIDDLE)(self.path)
                solver = sampler_named("dpmpp-3m" if near else "unipc-3")
                save_file({"images": self.solved(solver, times, rows)}, part)
                print(f"reference {begin}", flush=True)
            parts.append(load_file(part)["images"])
        return torch.cat(parts)

    def data(self) -> Moments:
        """Features of the training pictures."""
        file = CACHE / "critters-data.safetensors"
        if not file.exists():
            source = open_source("critters:8192", size=self.shape[-1])
            found = [
                self.features(torch.stack([source[i].image for i in range(b, b + BATCH)]))
                for b in range(0, DATA, BATCH)
            ]
            save_file({"features": torch.cat(found).contiguous()}, file)
        return _moments(load_file(file)["features"])

    def seen(self, images: Tensor) -> Tensor:
        """Features of images in [−1, 1]."""
        return torch.cat([self.features(to_uint8(part)) for part in images.split(BATCH)])


def _moments(rows: Tensor) -> Moments:
    moments = Moments(rows.shape[1])
    moments.update(rows)
    return moments


def _distances(rows: Tensor, data: Moments) -> dict[str, Any]:
    """Fréchet distance of the whole and of its halves, whose difference is the noise between seeds."""
    half = len(rows) // 2
    halves = [frechet_distance(_moments(part), data) for part in (rows[:half], rows[half:])]
    return {"FD": round(frechet_distance(_moments(rows), data), 2), "FD of halves": [round(h, 2) for h in halves]}


def plan() -> Iterator[tuple[str, int, int]]:
    """(sampler, count, images), the most telling first."""
    names = ["auto", *OURS[:2], *THEIRS, *OURS[2:]]
    for count in (10, 20, 5):
        yield from ((name, count, NEAR) for name in names)
    yield from ((name, 10, N) for name in CLOSER)
    for count in (8, 15, 30, 50):
        yield from ((name, count, NEAR) for name in names)
    for count in (20, 5):
        yield from ((name, count, N) for name in CLOSER)
    for name in LATER:
        yield from ((name, count, NEAR) for count in COUNTS)


def measure(bench: Bench, name: str, count: int, size: int) -> dict[str, Any]:
    """One cell."""
    began = time.process_time()
    ends = bench.theirs(name, count) if name in THEIRS else bench.ours(name, count)
    parts: list[Tensor] = []
    for begin in range(0, size, BATCH):
        bench.calls = 0
        parts.append(ends(range(begin, begin + BATCH)).float())
    images = torch.cat(parts)
    gap = (images[:NEAR] - bench.reference(NEAR)).flatten(1).square().mean(1).sqrt()
    cell = {"sampler": name, "count": count, "calls": bench.calls, "images": size}
    cell |= {"mean": round(float(gap.mean()), 5), "median": round(float(gap.median()), 5)}
    if size == N:
        cell |= _distances(bench.seen(images), bench.data())
    return {**cell, "seconds": round(time.process_time() - began, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--auto", action="store_true", help="with the cells of the automatic choice, and first")
    parser.add_argument("--collect", action="store_true", help="write the results that are there, measure nothing")
    parser.add_argument("--minutes", type=float, default=90.0, help="processor time after which no cell is begun")
    parser.add_argument("--out", type=Path, default=RESULTS / "practice-critters.json")
    args = parser.parse_args()
    CACHE.mkdir(parents=True, exist_ok=True)
    journal = CACHE / "critters.jsonl"
    cells = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    if not args.collect:
        cells = _run(args, journal, cells)
    facts = {
        "model": "critters",
        "images": {"distance": NEAR, "FD": N, "data": DATA},
        "reference": f"dpmpp-3m, {FINE} log-SNR steps ({NEAR} images); unipc-3, {MIDDLE} steps (the others, FD only)",
        "not run": "every cell that is missing; Fréchet distances at 8, 15, 30 and 50; other settings",
    }
    write(args.out, "practice_critters", SEED, {**facts, "results": cells}, quick=False)


def _run(args: argparse.Namespace, journal: Path, cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    bench = Bench("critters")
    done = {(cell["sampler"], cell["count"], cell["images"]) for cell in cells}

    def keep(cell: dict[str, Any]) -> None:
        cells.append(cell)
        with journal.open("a") as file:
            file.write(json.dumps(cell) + "\n")
        print(json.dumps(cell), flush=True)

    for name, count, size in plan():
        if (name, count, size) in done or (name == "auto" and not args.auto):
            continue
        if time.process_time() > 60.0 * args.minutes:
            print("out of time", flush=True)
            return cells
        keep(measure(bench, name, count, size))
    if ("reference", FINE, N) not in done:
        seen = _distances(bench.seen(bench.reference(N)), bench.data())
        keep({"sampler": "reference", "count": FINE, "calls": FINE, "images": N, **seen})
    return cells


if __name__ == "__main__":
    main()
