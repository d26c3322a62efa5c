"""What the reproduction of SDXL measures, one function a cell."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ... import grids
from ...interop.refined import TRAINED
from ...interop.schedulers import path_of_products
from ...lab.targets import GaussianTarget
from ...paths import VP
from ...randomness import Noise
from ...relay import Relay, through
from ...samplers import plan, run, sampler, solve
from .networks import SMALL, build, digest

# height × width, appendix I; mirrored but for 704 × 1344 and the square
_TALL = (
    (512, 2048), (512, 1984), (512, 1920), (512, 1856), (576, 1792), (576, 1728), (576, 1664), (640, 1600),
    (640, 1536), (704, 1472), (704, 1408), (768, 1344), (768, 1280), (832, 1216), (832, 1152), (896, 1152),
    (896, 1088), (960, 1088), (960, 1024),
)  # fmt: skip
FORMATS = (*_TALL, (704, 1344), (1024, 1024), *((width, height) for height, width in _TALL))
POOLED, SINUSOID = 64, 8  # of the small U-Net
LEVELS = 1000


def network(part: str) -> dict[str, Any]:
    """Counts and names of one network in its full size, without a number of its weights."""
    net = build(part)
    state = net.state_dict()
    out: dict[str, Any] = {
        "parameters": sum(tensor.numel() for tensor in state.values()),
        "tensors": len(state),
        "digest": digest(state),
    }
    if part in ("base", "refiner"):
        levels: list[Any] = [getattr(block, "attentions", ()) for block in net.down_blocks]
        widths = [int(width) for width in net.config.block_out_channels]
        out |= {
            "depths": [len(slots[0].transformer_blocks) if len(slots) else 0 for slots in levels],
            "multipliers": [width // widths[0] for width in widths],
            "context": int(net.mid_block.attentions[0].transformer_blocks[0].attn2.to_k.in_features),
            "label": int(net.add_embedding.linear_1.in_features),
            "sinusoid": int(net.add_time_proj.num_channels),
        }
    return out


def sizes() -> dict[str, float]:
    """Whether each of the six numbers changes its own sinusoid alone, and how far that is from the closed form."""
    net = build("small")
    heard: list[Tensor] = []
    net.add_embedding.register_forward_pre_hook(lambda _, given: heard.append(given[0].clone()))
    plain = torch.tensor([[768.0, 1024.0, 3.0, 5.0, 832.0, 1216.0]])
    changed = [plain + torch.eye(6)[k] for k in range(6)]
    for numbers in (plain, *changed):
        state, context = torch.zeros(1, 4, 8, 8), torch.zeros(1, 77, SMALL["cross_attention_dim"])
        with torch.no_grad():
            net(state, 500.0, context, added_cond_kwargs={"text_embeds": torch.zeros(1, POOLED), "time_ids": numbers})
    own = 0
    for k, vector in enumerate(heard[1:]):
        parts = (vector != heard[0])[0, POOLED:].reshape(6, SINUSOID).any(1).tolist()
        own += parts == [i == k for i in range(6)] and bool((vector == heard[0])[0, :POOLED].all())
    half = SINUSOID // 2
    rates = torch.exp(-math.log(10_000.0) * torch.arange(half, dtype=torch.float64) / half)
    phases = plain.double()[0, :, None] * rates
    exact = torch.cat([phases.cos(), phases.sin()], 1).flatten()
    return {"own": own, "gap": float((heard[0][0, POOLED:].double() - exact).abs().max())}


def formats() -> dict[str, float]:
    """The forty formats: their areas, and how many come back from a U-Net of the base's structure in their own size."""
    net = build("small").to("meta")
    kept = 0
    with torch.device("meta"), torch.no_grad():
        for height, width in FORMATS:
            state = torch.empty(1, 4, height // 8, width // 8)
            context = torch.empty(1, 77, SMALL["cross_attention_dim"])
            beside = {"text_embeds": torch.empty(1, POOLED), "time_ids": torch.empty(1, 6)}
            kept += net(state, torch.empty(1), context, added_cond_kwargs=beside).sample.shape == state.shape
    areas = [height * width / 1024**2 for height, width in FORMATS]
    whole = sum(height % 64 == 0 and width % 64 == 0 for height, width in FORMATS)
    return {"formats": len(set(FORMATS)), "whole": whole, "kept": kept, "least": min(areas), "most": max(areas)}


def table() -> VP:
    """The noise levels of SDXL: √β in equal steps from √.00085 to √.012, over 1,000 levels."""
    betas = torch.linspace(math.sqrt(0.00085), math.sqrt(0.012), LEVELS, dtype=torch.float64) ** 2
    return path_of_products(torch.cumprod(1.0 - betas, 0))


def handed_over(rule: str, grid: str, steps: int) -> dict[str, float]:
    """A relay whose halves are one denoiser beside that denoiser alone, on one grid that holds the level."""
    path, target = table(), GaussianTarget([0.3], [4.0])
    one, other = target.denoiser(path), target.denoiser(path)
    relay = Relay(one, other, below=path.log_snr(TRAINED))
    family = {"uniform": grids.uniform, "karras": grids.karras}[grid]
    times = through(family, steps, relay.info.handovers)(path)
    noise = Noise.of(0, range(8), dtype=torch.float64)
    start = target.start(noise, path, times[0])
    chosen = sampler(rule)
    whole = run(solve(chosen, path, start, times, noise), one)
    both = run(solve(chosen, path, start, times, noise, relay.info.handovers), relay)
    asked = plan(chosen, path, times, handovers=relay.info.handovers)
    late = [t for t in asked if relay.side(t) is other]
    return {
        "gap": float((both - whole).abs().max()),
        "first": len(asked) - len(late),
        "second": len(late),
        "alone": len(plan(chosen, path, times)),
        "ratio": path.sigma(relay.level) / path.alpha(relay.level),
        "number": float(path.timestep_of(max(late))),
    }


__all__ = ["FORMATS", "formats", "handed_over", "network", "sizes", "table"]
