"""Time per step outside the network: our sampling loop against diffusers', same rule, same times, same network.

Both sides ask the same module, which measures its own time; what is left of a run, divided by the number of network
evaluations, is the overhead. Two things are compared:

loop   ours `run(solve(...))` from a ready state; theirs `for t in timesteps: x = scheduler.step(net(x, t), t, x)` from
       a ready state, after an untimed `set_timesteps`. It is the body of every diffusers pipeline, without the rest.
call   ours `ornstein.sample(...)` with grid, prior noise and all; theirs the pipeline (DDIMPipeline, DDPMPipeline;
       progress bar off, output "np"), or, for rules without an unconditional pipeline, `randn`, `set_timesteps`, loop.

Clipping and thresholding are off, as they are no part of the rules. The two sides take turns, so that a busy machine
hits both; quoted are medians, and the median of the ratios of neighbours. Times are processor time on one thread.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import ornstein as orn
from ornstein.samplers import Sampler, run, solve
from report import arguments, spread, table, write

SEED = 0


class Timed(nn.Module):
    """A network that adds up the seconds spent inside it and the number of its evaluations."""

    def __init__(self, inner: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.inner = inner
        self.meter = SimpleNamespace(seconds=0.0, calls=0)  # apart, because a module is slow to set numbers on
        self.config = SimpleNamespace(in_channels=3, sample_size=64)
        self.dtype, self.device = torch.float32, torch.device("cpu")

    def forward(self, x: Tensor, t: Tensor, **_: Any) -> Any:
        began = time.thread_time()
        answer = self.inner(x, t)
        self.meter.calls += 1
        self.meter.seconds += time.thread_time() - began
        return answer


def stub(shape: Sequence[int]) -> Timed:
    """Costs nothing: always the same tensor."""
    answer = SimpleNamespace(sample=torch.randn(*shape, generator=torch.Generator().manual_seed(SEED)))
    return Timed(lambda _x, _t: answer)


def small_unet() -> Timed:
    """A real network, 0.6 million parameters, to see the overhead with caches that a network has just used."""
    torch.manual_seed(SEED)
    unet = diffusers.UNet2DModel(
        sample_size=64,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        add_attention=False,
    )
    return Timed(unet.eval().requires_grad_(False))


@dataclass(frozen=True, kw_only=True)
class Rule:
    """The same update rule twice; ``pipeline`` where diffusers has an unconditional one for it."""

    ours: Sampler
    theirs: Callable[[], Any]
    pipeline: Any = None
    random: bool = False


TABLE = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "timestep_spacing": "trailing"}
RULES = {
    "ddim": Rule(
        ours=orn.samplers.DDIM(),
        theirs=partial(diffusers.DDIMScheduler, **TABLE, clip_sample=False),
        pipeline=diffusers.DDIMPipeline,
    ),
    "dpmpp-2m": Rule(
        ours=orn.samplers.DPMSolver(points=2),
        theirs=partial(diffusers.DPMSolverMultistepScheduler, **TABLE, final_sigmas_type="zero"),
    ),
    "unipc": Rule(
        ours=orn.samplers.UniPC(),
        theirs=partial(diffusers.UniPCMultistepScheduler, **TABLE, final_sigmas_type="zero"),
    ),
    "heun": Rule(ours=orn.samplers.Heun(), theirs=partial(diffusers.HeunDiscreteScheduler, **TABLE)),
    "ddpm": Rule(
        ours=orn.samplers.Ancestral(),
        theirs=partial(diffusers.DDPMScheduler, **TABLE, clip_sample=False),
        pipeline=diffusers.DDPMPipeline,
        random=True,
    ),
}


@dataclass(kw_only=True)
class Contest:
    """One rule, network, shape and number of steps, ready to be run by either side."""

    rule: Rule
    net: Timed
    shape: tuple[int, ...]
    steps: int

    def __post_init__(self) -> None:
        self.scheduler = self.rule.theirs()
        self.scheduler.set_timesteps(self.steps)
        indices = list(dict.fromkeys(int(t) for t in self.scheduler.timesteps))
        self.path = orn.VP.table()
        self.grid = orn.grids.timesteps(indices)
        self.times = self.grid(self.path)
        self.model = orn.Denoiser(self.net, self.path, "noise", shape=self.shape[1:])
        self.x = torch.randn(*self.shape, generator=torch.Generator().manual_seed(SEED + 1))
        self.rows = range(self.shape[0])
        if self.rule.pipeline is not None:
            self.pipe = self.rule.pipeline(unet=self.net, scheduler=self.scheduler)
            self.pipe.set_progress_bar_config(disable=True)

    def our_loop(self) -> Tensor:
        noise = orn.Noise.of(SEED, self.rows)
        return run(solve(self.rule.ours, self.path, self.x, self.times, noise), self.model)

    def our_call(self) -> Tensor:
        return orn.sample(self.model, self.shape[0], sampler=self.rule.ours, grid=self.grid, seed=SEED)

    @torch.no_grad()
    def their_loop(self) -> Tensor:
        scheduler, net = self.scheduler, self.net
        # Heun's scheduler works on x/α and expects a start of that size.
        x = self.x * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            answer = net(scheduler.scale_model_input(x, t), t).sample
            x = scheduler.step(answer, t, x).prev_sample
        return x

    def their_call(self) -> Any:
        if self.rule.pipeline is not None:
            return self.pipe(batch_size=self.shape[0], num_inference_steps=self.steps, output_type="np").images
        self.x = torch.randn(self.shape)
        self.scheduler.set_timesteps(self.steps)
        return self.their_loop()

    def overhead(self, side: Callable[[], Any]) -> float:
        """Microseconds per evaluation outside the network."""
        self.scheduler.set_timesteps(self.steps)
        meter = self.net.meter
        meter.seconds, meter.calls = 0.0, 0
        began = time.thread_time()
        side()
        return (time.thread_time() - began - meter.seconds) / meter.calls * 1e6

    def disagreement(self) -> float | None:
        """Largest difference of the two results from one start, relative to the size of the result."""
        if self.rule.random:
            return None
        self.scheduler.set_timesteps(self.steps)
        ours, theirs = self.our_loop(), self.their_loop()
        return float((ours - theirs).abs().max() / ours.abs().max())


class Passes(TorchDispatchMode):
    """Counts the operations that write a tensor of at least ``size`` elements."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.count = size, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        views = func.is_view or func._schema.name in {"aten::detach", "aten::_reshape_alias"}
        self.count += isinstance(out, Tensor) and out.numel() >= self.size and not views
        return out


def passes(contest: Contest, side: Callable[[], Any]) -> float:
    """Whole-state tensor operations per evaluation (noise drawn by numpy is not seen)."""
    contest.scheduler.set_timesteps(contest.steps)
    contest.net.meter.calls = 0
    with Passes(contest.x.numel()) as counted:
        side()
    return round(counted.count / contest.net.meter.calls, 2)


def compare(contest: Contest, kind: str, pairs: int) -> dict[str, Any]:
    """Both sides in turn."""
    sides = [getattr(contest, f"{who}_{kind}") for who in ("our", "their")]
    for side in sides:
        contest.overhead(side)
    samples = [[contest.overhead(side) for side in sides] for _ in range(pairs)]
    ours, theirs = zip(*samples, strict=True)
    ratio = [a / b for a, b in samples]
    return {"ours_us": spread(ours), "theirs_us": spread(theirs), "ratio": spread(ratio, 4)}


def main() -> None:
    options = arguments(__doc__, "loop_overhead")
    torch.set_num_threads(1)
    pairs = 2 if options.quick else 7
    cases = [("stub", shape, steps) for shape in ((1, 3, 64, 64), (16, 3, 64, 64)) for steps in (20, 50)]
    cases = [("stub", (1, 3, 64, 64), 5)] if options.quick else [*cases, ("unet", (1, 3, 64, 64), 5)]
    results: list[dict[str, Any]] = []
    for network, shape, steps in cases:
        net = stub(shape) if network == "stub" else small_unet()
        for name, rule in RULES.items():
            contest = Contest(rule=rule, net=net, shape=shape, steps=steps)
            found = {
                "rule": name,
                "network": network,
                "shape": list(shape),
                "steps": steps,
                "disagreement": contest.disagreement(),
                "pipeline": None if rule.pipeline is None else rule.pipeline.__name__,
                "loop": compare(contest, "loop", pairs if network == "stub" else 5),
            }
            if network == "stub":
                sides = {"ours": contest.our_loop, "theirs": contest.their_loop}
                found["passes"] = {who: passes(contest, side) for who, side in sides.items()}
                found["call"] = compare(contest, "call", pairs)
            results.append(found)
            print(name, network, shape, steps, found["loop"], file=sys.stderr, flush=True)
    print(show(results))
    write(
        options.out, "loop_overhead", SEED, {"unit": "microseconds per evaluation", "results": results}, options.quick
    )


def show(results: Sequence[dict[str, Any]]) -> str:
    header = (
        "rule",
        "network",
        "batch",
        "steps",
        "loop: ours",
        "theirs",
        "ratio",
        "quartiles",
        "passes",
        "call: ours",
        "theirs",
        "ratio",
    )
    rows: list[tuple[Any, ...]] = []
    for r in results:
        loop, call = r["loop"], r.get("call")
        cells = [f"{loop[side]['median']:.1f}" for side in ("ours_us", "theirs_us")]
        quartiles = f"{loop['ratio']['q1']:.2f}–{loop['ratio']['q3']:.2f}"
        more = ("", "", "")
        if call:
            more = (*(f"{call[s]['median']:.1f}" for s in ("ours_us", "theirs_us")), f"{call['ratio']['median']:.2f}")
        counted = f"{r['passes']['ours']:g} : {r['passes']['theirs']:g}" if "passes" in r else ""
        ratio = f"{loop['ratio']['median']:.2f}"
        rows.append((r["rule"], r["network"], r["shape"][0], r["steps"], *cells, ratio, quartiles, counted, *more))
    return "microseconds per evaluation outside the network (medians)\n" + table(header, rows)


if __name__ == "__main__":
    main()
