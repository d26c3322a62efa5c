"""What the noise costs: microseconds a sample a step, beside a small U-Net's forward pass on the same core."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from ornstein.networks import UNet, UNetConfig
from ornstein.randomness import Noise
from report import arguments, write

GOAL = 0.02


def seconds(f: Callable[[int], object], repeats: int, rounds: int = 5) -> float:
    """The best of some rounds, in processor seconds a call: other programs on the machine only ever add."""
    f(0)
    best = float("inf")
    for _ in range(rounds):
        start = time.process_time()
        for i in range(repeats):
            f(i)
        best = min(best, (time.process_time() - start) / repeats)
    return best


def measure(side: int, batch: int) -> dict[str, float | int]:
    """One size: noise, torch's own generator, and the network."""
    event, noise = (3, side, side), Noise.of(0, range(batch))
    net, x, t = UNet(UNetConfig.small()).eval(), torch.zeros(batch, 3, side, side), torch.zeros(batch)
    with torch.no_grad():
        forward = seconds(lambda _: net(x, t), 1, rounds=3) / batch
    z = seconds(lambda i: noise.normal(i, event), max(2, 64 // batch)) / batch
    randn = seconds(lambda _: torch.randn(batch, *event), max(2, 64 // batch)) / batch
    return {
        "side": side,
        "batch": batch,
        "white_us": round(z * 1e6, 1),
        "torch_randn_us": round(randn * 1e6, 1),
        "forward_us": round(forward * 1e6, 1),
        "ratio": round(z / forward, 5),
    }


def main() -> None:
    options = arguments(__doc__ or "", "noise_cost")
    torch.set_num_threads(1)
    rows = [measure(side, batch) for side in (32, 64) for batch in ((1,) if options.quick else (1, 8, 32))]
    for row in rows:
        print(
            f"3×{row['side']}×{row['side']}, batch {row['batch']:2}: white {row['white_us']} µs a sample a step "
            f"(torch.randn {row['torch_randn_us']}), U-Net {row['forward_us']} µs, ratio {row['ratio']:.2%}"
        )
    result = {"goal": GOAL, "met": all(row["ratio"] <= GOAL for row in rows), "results": rows}
    write(options.out, "noise_cost", 0, result, options.quick)


if __name__ == "__main__":
    main()
