"""Samplers as schedulers of diffusers: driven from outside they are what they are in our own loop."""

import copy
import itertools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import ornstein as orn
from ornstein.estimates import Estimate
from ornstein.interop.schedulers import from_scheduler_config
from ornstein.interop.seeds import noise_of
from ornstein.samplers import SAMPLERS, run, solve

STD = 2.0
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
KINDS = sorted({type(make()).__name__ for make in SAMPLERS.values()})
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own
NAMES = [name for name in SAMPLERS if "learned" not in name]
SOURCES: dict[str, Callable[[], Any]] = {
    "sd": lambda: diffusers.PNDMScheduler(**SD, skip_prk_steps=True, steps_offset=1),
    "karras": lambda: diffusers.DPMSolverMultistepScheduler(
        **SD, use_karras_sigmas=True, prediction_type="v_prediction"
    ),
    "flow": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    "wan": lambda: diffusers.UniPCMultistepScheduler(
        use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction"
    ),
    "edm": diffusers.EDMEulerScheduler,
}


def ddim(**changes: Any) -> Any:
    return diffusers.DDIMScheduler(**{**SD, "clip_sample": False, **changes})


def made(name: str, source: Any, **options: Any) -> Any:
    return getattr(orn.schedulers, name).from_config(source.config, **options)


def exact(path: Any, x: Tensor, t: float) -> Estimate:
    """The estimate for data N(0, 2²)."""
    alpha, sigma = path.alpha(t), path.sigma(t)
    return Estimate(x, t, path, clean=alpha * STD**2 / ((STD * alpha) ** 2 + sigma**2) * x)


def driven(scheduler: Any, source: Any, x: Tensor, first: int = 0, generator: Any = None) -> Tensor:
    """The loop of a pipeline, the network being the exact one."""
    spec = from_scheduler_config(source)
    for i, number in enumerate(scheduler.timesteps[first:], first):
        assert torch.allclose(
            scheduler.scale_model_input(x, number), spec.predicts.precondition(spec.path, x, scheduler.evaluations[i])
        )
        found = exact(spec.path, x, scheduler.evaluations[i])
        raw = spec.predicts.target(spec.path, found.clean, found.noise, x, scheduler.evaluations[i])
        x = scheduler.step(raw, number, x, generator=generator, return_dict=False)[0]
    return x


@pytest.mark.parametrize(
    ("name", "law"),
    [
        *((name, law) for name in NAMES for law in ("sd", "flow")),
        *((name, law) for name in ("ddim", "heun", "dpmpp-3m-sde", "unipc-3") for law in ("karras", "wan", "edm")),
    ],
)
def test_a_foreign_loop_gives_what_our_own_gives(name: str, law: str) -> None:
    source = SOURCES[law]()
    scheduler = orn.schedulers.from_sampler(name, source.config)
    scheduler.set_timesteps(7)
    path = from_scheduler_config(source).path
    x = torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = x * scheduler.init_noise_sigma
    generator = torch.Generator().manual_seed(3)
    noise = noise_of(generator, 2, x.device, x.dtype)
    wanted = run(solve(SAMPLERS[name](), path, x, scheduler.times, noise), lambda x, t: exact(path, x, t))
    found = driven(scheduler, source, x.clone(), generator=generator)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("spacing", "wanted"), [("leading", 2.658923), ("linspace", 2.652048), ("trailing", 2.676817)])
def test_ddim_on_every_spacing_goes_from_one_listed_level_to_the_next(spacing: str, wanted: float) -> None:
    """The closed form of DDIM for N(0, 2²): ten steps from 1.5 (diffusers' own step on linspace gives 2.537791)."""
    source = ddim(set_alpha_to_one=True, timestep_spacing=spacing)
    scheduler = made("DDIM", source)
    scheduler.set_timesteps(10)
    x = driven(scheduler, source, torch.full((1, 1), 1.5, dtype=torch.float64))
    assert x.item() == pytest.approx(wanted, abs=5e-7)
    alphas = [float(source.alphas_cumprod[k]) ** 0.5 for k in scheduler.timesteps] + [1.0]
    angle = [torch.atan2(torch.tensor((1 - a * a) ** 0.5), torch.tensor(2.0 * a)).item() for a in alphas]
    del angle
    mean = 1.5
    for a, b in itertools.pairwise(alphas):
        clean = a * 4 / (4 * a * a + 1 - a * a) * mean
        z = (mean - a * clean) / (1 - a * a) ** 0.5
        mean = b * clean + (1 - b * b) ** 0.5 * z
    assert x.item() == pytest.approx(mean, abs=1e-5)


@pytest.mark.parametrize("steps", [1, 7, 13, 1000])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("kind", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_timesteps_fall_on_every_spacing(kind: str, spacing: str, steps: int) -> None:
    source = getattr(diffusers, kind)(**SD, timestep_spacing=spacing)
    if steps == 1000 and kind.startswith("DPM"):
        pytest.skip("its rule has one level too many for 1000 steps")
    scheduler = made("DDIM", source)
    scheduler.set_timesteps(steps)
    numbers = scheduler.timesteps.tolist()
    assert len(numbers) == steps
    assert all(one > two for one, two in itertools.pairwise(numbers))
    assert min(numbers) >= 0
    assert max(numbers) <= 999


def test_karras_levels_stay_apart() -> None:
    source = diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True, beta_schedule="squaredcos_cap_v2")
    scheduler = made("DPMSolver", source)
    scheduler.set_timesteps(20)
    assert len(set(scheduler.timesteps.tolist())) == 20
    assert scheduler.timesteps.dtype == torch.float32


def test_given_timesteps_and_sigmas_are_used_exactly() -> None:
    own = [999, 700, 333, 12]
    scheduler = made("DDIM", ddim(set_alpha_to_one=True))
    scheduler.set_timesteps(timesteps=own)
    assert scheduler.timesteps.tolist() == own
    assert scheduler.timesteps.dtype == torch.int64
    assert scheduler.num_inference_steps == 4
    path = from_scheduler_config(ddim()).path
    sigmas = [10.0, 3.0, 0.5]
    for given in (sigmas, [*sigmas, 0.0]):
        scheduler.set_timesteps(sigmas=given)
        assert [path.sigma_bar(t) for t in scheduler.times] == pytest.approx([*sigmas, 0.0])
    edm = made("Heun", diffusers.EDMEulerScheduler())
    edm.set_timesteps(sigmas=[80.0, 40.0, 20.0])
    assert edm.times == (80.0, 40.0, 20.0, 0.0)
    assert edm.timesteps.tolist() == pytest.approx((0.25 * torch.tensor([80.0, 40.0, 40.0, 20.0, 20.0]).log()).tolist())
    assert edm.sigmas.tolist() == [80.0, 40.0, 40.0, 20.0, 20.0, 0.0]
    flow = made("DDIM", diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    flow.set_timesteps(timesteps=[900.0, 250.0])
    assert flow.times == (0.9, 0.25, 0.0)
    # A flow's sigmas are those before its shift, as in every pipeline.
    flow.set_timesteps(sigmas=[1.0, 0.5])
    assert flow.times == pytest.approx([1.0, 3 * 0.5 / 2.0, 0.0])
    flux = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    flux.set_timesteps(sigmas=[1.0, 0.6, 0.2], mu=0.8)
    ours = made("DDIM", flux)
    ours.set_timesteps(sigmas=[1.0, 0.6, 0.2], mu=0.8)
    assert ours.times == pytest.approx(flux.sigmas.tolist())
    torch.testing.assert_close(ours.timesteps, flux.timesteps)


def test_further_evaluations_are_listed_as_in_heun_of_diffusers() -> None:
    theirs = diffusers.HeunDiscreteScheduler(**SD, timestep_spacing="leading", steps_offset=1)
    theirs.set_timesteps(5)
    ours = made("Heun", theirs)
    ours.set_timesteps(5)
    assert ours.order == theirs.order == 2
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    orders = {"DDIM": 1, "DPMSolver": 1, "UniPC": 1, "DPMSolver2S": 2, "AcceleratedODE": 2, "MidpointSDE": 2}
    assert {name: made(name, theirs).order for name in orders} == orders


@pytest.mark.parametrize("name", NAMES)
def test_a_loop_may_begin_at_any_entry(name: str) -> None:
    """Image-to-image: from every entry on it ends in the law that our own loop on the rest of the grid ends in."""
    source = SOURCES["sd"]()
    scheduler = orn.schedulers.from_sampler(name, source.config)
    scheduler.set_timesteps(12)
    count, path = len(scheduler.timesteps), from_scheduler_config(source).path
    normal = torch.Generator().manual_seed(0)
    clean, z = (torch.randn(1, 100, generator=normal, dtype=torch.float64) for _ in range(2))
    for first in {1, 2, count // 2, count - 1}:
        scheduler.set_timesteps(12)
        scheduler.set_begin_index(first)
        start = scheduler.evaluations[first]
        rest = [start, *(t for t in scheduler.times if t < start)]
        x = scheduler.add_noise(STD * clean, z, scheduler.timesteps[first : first + 1])
        end = driven(scheduler, source, x, first, torch.Generator().manual_seed(first))
        noise = noise_of(torch.Generator().manual_seed(first), 1, x.device, x.dtype)
        steps = solve(SAMPLERS[name](), path, x, rest, noise) if len(rest) > 1 else None
        wanted = x if steps is None else run(steps, lambda x, t: exact(path, x, t))
        assert end.std().item() == pytest.approx(wanted.std().item(), rel=0.2)
        assert scheduler.step_index is None


@pytest.mark.parametrize("name", ["DDIM", "DPMSolver", "UniPC", "AcceleratedODE", "Heun"])
def test_a_begin_is_our_own_loop_on_the_rest_of_the_grid(name: str) -> None:
    source = SOURCES["sd"]()
    scheduler = made(name, source)
    scheduler.set_timesteps(8)
    path = from_scheduler_config(source).path
    at = 3
    first = scheduler.evaluations.index(scheduler.times[at])
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scheduler.set_begin_index(first)
    found = driven(scheduler, source, x, first)
    own = orn.schedulers.from_sampler(scheduler.sampler, source.config).sampler
    wanted = run(
        solve(own, path, x, scheduler.times[at:], noise_of(None, 2, x.device, x.dtype)),
        lambda x, t: exact(path, x, t),
    )
    # The probe of the accelerated sampler looks at the noisier neighbour, which our loop on the rest does not know.
    torch.testing.assert_close(found, wanted, rtol=1e-9 if name != "AcceleratedODE" else 0.05, atol=1e-9)


def test_the_place_is_found_without_set_begin_index() -> None:
    source = SOURCES["sd"]()
    scheduler = made("Heun", source)
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ends: list[Tensor] = []
    for way in ("said", "view", "value"):
        scheduler.set_timesteps(6)
        state = x
        if way == "said":
            scheduler.set_begin_index(4)
        for number in scheduler.timesteps[4:]:
            state = scheduler.step(0.5 * state, int(number) if way == "value" else number, state).prev_sample
        ends.append(state)
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])
    # A loop that begins anew, without set_timesteps, does begin anew.
    state = x
    for number in scheduler.timesteps[:3]:
        state = scheduler.step(0.5 * state, number, state).prev_sample
    state = x
    for number in scheduler.timesteps[4:]:
        state = scheduler.step(0.5 * state, number, state).prev_sample
    assert torch.equal(state, ends[0])


def test_a_state_that_the_pipeline_changes_is_taken_as_it_is() -> None:
    """Inpainting blends between two calls: the next step goes on from the blend."""
    source = ddim(set_alpha_to_one=True)
    scheduler = made("DDIM", source)
    scheduler.set_timesteps(4)
    x = torch.full((1, 1, 2, 2), 0.7, dtype=torch.float64)
    for number in scheduler.timesteps:
        x = scheduler.step(0.1 * x, number, x).prev_sample + 0.5
    alphas = [float(source.alphas_cumprod[k]) ** 0.5 for k in scheduler.timesteps] + [1.0]
    mean = 0.7
    for a, b in itertools.pairwise(alphas):
        z = 0.1 * mean
        mean = b * (mean - (1 - a * a) ** 0.5 * z) / a + (1 - b * b) ** 0.5 * z + 0.5
    torch.testing.assert_close(x, torch.full_like(x, mean), rtol=1e-5, atol=0.0)


def test_what_is_given_is_not_changed() -> None:
    scheduler = made("AcceleratedSDE", ddim())
    scheduler.set_timesteps(4)
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))
    seen: list[tuple[Tensor, Tensor]] = [(x, x.clone())]
    for number in scheduler.timesteps:
        x = scheduler.step(0.5 * x, number, x).prev_sample
        seen.append((x, x.clone()))
        x = x * 1.01
    assert all(torch.equal(one, two) for one, two in seen)


class NoWaiting(TorchDispatchMode):
    """Refuses what makes a host wait for its device: numbers read from tensors, and shapes that depend on values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not any(name in str(func) for name in ("_local_scalar_dense", "nonzero", "equal.default", "unique"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("law", ["sd", "flow", "edm"])
def test_no_step_waits_for_the_device(kind: str, law: str) -> None:
    scheduler = made(kind, SOURCES[law]())
    scheduler.set_timesteps(4)
    x, generator = torch.randn(2, 3, generator=torch.Generator().manual_seed(1)), torch.Generator().manual_seed(2)
    for number in scheduler.timesteps:
        with NoWaiting():
            raw = 0.1 * scheduler.scale_model_input(x, number)
            x = scheduler.step(raw, number, x, generator=generator, return_dict=False)[0]
    assert torch.isfinite(x).all()


# What diffusers' own tests ask of every scheduler, in our words.


@pytest.mark.parametrize("kind", KINDS)
def test_save_and_load(kind: str, tmp_path: Path) -> None:
    scheduler = made(kind, SOURCES["karras"](), seed=5)
    scheduler.save_pretrained(tmp_path)
    again = getattr(orn.schedulers, kind).from_pretrained(tmp_path)
    assert again.sampler == scheduler.sampler
    assert dict(again.config)["_sampler"] == dict(scheduler.config)["_sampler"]
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))
    ends = []
    for one in (scheduler, again, copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler))):
        one.set_timesteps(5)
        state = x
        for number in one.timesteps:
            raw = torch.cat([0.3 * state, state.tanh()], 1) if kind == "Ancestral" else 0.3 * state
            raw = raw[:, :3]
            state = one.step(raw, number, state, generator=torch.Generator().manual_seed(2)).prev_sample
        ends.append(state)
    assert all(torch.equal(ends[0], end) for end in ends)


def test_options_survive_and_belong_to_their_sampler(tmp_path: Path) -> None:
    scheduler = made("AcceleratedODE", ddim(), form="memory")
    scheduler.save_pretrained(tmp_path)
    again = orn.schedulers.AcceleratedODE.from_pretrained(tmp_path)
    assert again.sampler == orn.samplers.AcceleratedODE("memory")
    assert orn.schedulers.AcceleratedODE.from_config(again.config).sampler.form == "memory"
    assert orn.schedulers.AcceleratedODE.from_config(again.config, form="history").sampler.form == "history"
    assert orn.schedulers.UniPC.from_config(again.config).sampler == orn.samplers.UniPC()
    assert again.config.beta_schedule == "scaled_linear"
    assert again.config.num_train_timesteps == 1000


@pytest.mark.parametrize("back", ["EulerDiscreteScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_the_way_back_to_diffusers(back: str, caplog: pytest.LogCaptureFixture) -> None:
    source = ddim(steps_offset=1, timestep_spacing="trailing")
    ours = made("UniPC", source, p=3)
    wanted = getattr(diffusers, back).from_config(source.config)
    found = getattr(diffusers, back).from_config(ours.config)
    wanted.set_timesteps(6)
    found.set_timesteps(6)
    assert found.timesteps.tolist() == wanted.timesteps.tolist()
    assert torch.equal(found.alphas_cumprod, wanted.alphas_cumprod)
    assert not caplog.records


def test_a_source_is_known_by_its_arguments_if_it_does_not_name_itself() -> None:
    for make, kind in (
        (ddim, "DDIMScheduler"),
        (diffusers.EulerDiscreteScheduler, "EulerDiscreteScheduler"),
        (diffusers.FlowMatchEulerDiscreteScheduler, "FlowMatchEulerDiscreteScheduler"),
        (diffusers.FlowMatchHeunDiscreteScheduler, "FlowMatchHeunDiscreteScheduler"),
        (diffusers.UniPCMultistepScheduler, "UniPCMultistepScheduler"),
        (diffusers.EDMEulerScheduler, "EDMEulerScheduler"),
        (diffusers.PNDMScheduler, "PNDMScheduler"),
    ):
        assert made("DDIM", make()).config["_source"] == kind
    assert orn.schedulers.DDIM.from_config({"beta_start": 0.001}).config["_source"] == "DDIMScheduler"
    assert orn.schedulers.DDIM.from_config({"shift": 2.0}).config.shift == 2.0


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_dtypes_and_both_ways_to_return(kind: str) -> None:
    scheduler = made(kind, ddim())
    assert scheduler.init_noise_sigma == 1.0
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        x = torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(1)).to(dtype)
        ends = []
        for as_tuple in (False, True):
            scheduler.set_timesteps(4)
            state = x
            for number in scheduler.timesteps:
                assert scheduler.scale_model_input(state, number) is state
                out = scheduler.step(
                    0.3 * state, number, state, generator=torch.Generator().manual_seed(1), return_dict=not as_tuple
                )
                state = out[0] if as_tuple else out.prev_sample
                assert state.shape == x.shape
                assert state.dtype == dtype
            ends.append(state)
        assert torch.equal(*ends)
        assert torch.isfinite(ends[0]).all()


def test_five_dimensions_and_three() -> None:
    for shape in ((2, 4, 3, 2, 2), (2, 6, 4), (3, 5)):
        scheduler = made("AcceleratedSDE", SOURCES["flow"]())
        scheduler.set_timesteps(4)
        x = torch.randn(shape)
        for number in scheduler.timesteps:
            x = scheduler.step(0.1 * x, number, x, return_dict=False)[0]
        assert x.shape == shape


def test_noise_is_added_as_in_diffusers() -> None:
    clean, noise = torch.randn(2, 3, 2, 2, 2, generator=torch.Generator().manual_seed(0)).unbind()
    numbers = torch.tensor([999, 500, 0])[:2]
    theirs = ddim()
    torch.testing.assert_close(
        made("DDIM", theirs).add_noise(clean[:2], noise[:2], numbers), theirs.add_noise(clean[:2], noise[:2], numbers)
    )
    flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    flow.set_timesteps(5)
    ours = made("DDIM", flow)
    ours.set_timesteps(5)
    for number in flow.timesteps:
        at = number.reshape(1)
        torch.testing.assert_close(ours.scale_noise(clean, at, noise), flow.scale_noise(clean, at, noise))


@pytest.mark.parametrize("name", ["ancestral", "dpmpp-2m-sde", "accelerated-sde", "sa-solver", "dpmpp-2s-sde"])
def test_a_sample_with_its_own_generator_does_not_depend_on_its_batch(name: str) -> None:
    source = ddim()
    x = torch.randn(3, 2, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def sampled(rows: list[int]) -> Tensor:
        scheduler = orn.schedulers.from_sampler(name, source.config)
        scheduler.set_timesteps(6)
        generators = [torch.Generator().manual_seed(10 + row) for row in rows]
        return driven(scheduler, source, x[rows], generator=generators)

    whole = sampled([0, 1, 2])
    torch.testing.assert_close(whole[[2, 0]], sampled([2, 0]), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(whole[0], whole[1])


def test_the_global_seed_and_a_generator_decide_the_noise() -> None:
    source, x = ddim(), torch.ones(2, 2, 2, 2)

    def sampled(generator: torch.Generator | None) -> Tensor:
        scheduler = made("Ancestral", source)
        scheduler.set_timesteps(4)
        return driven(scheduler, source, x, generator=generator)

    torch.manual_seed(4)
    one, two = sampled(None), sampled(None)
    torch.manual_seed(4)
    assert torch.equal(one, sampled(None))
    assert not torch.equal(one, two)
    assert torch.equal(sampled(torch.Generator().manual_seed(1)), sampled(torch.Generator().manual_seed(1)))
    used = torch.Generator().manual_seed(1)
    torch.randn(1, generator=used)
    assert not torch.equal(sampled(torch.Generator().manual_seed(1)), sampled(used))


def test_samplers_that_draw_their_times_have_a_seed() -> None:
    source = ddim()
    lists = []
    for seed in (0, 1):
        scheduler = made("RandomizedMidpoint", source, seed=seed)
        scheduler.set_timesteps(6)
        lists.append(scheduler.timesteps.tolist())
    assert lists[0] != lists[1]
