"""Every option of a scheduler's configuration: estimates, times and whole runs equal the library's own, in float64."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch

import ornstein as orn
from ornstein.errors import UsageError
from ornstein.interop.schedulers import (
    Bounded,
    Counted,
    LogNoise,
    Negated,
    from_scheduler_config,
    path_of_products,
    times_of_pipeline,
)
from ornstein.parameterizations import EDM, Consistency, NoisePrediction, V
from ornstein.paths import VE, VP, Flow
from ornstein.randomness import Noise
from ornstein.samplers import DDIM, DPMSolver, Heun, run, solve

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:__array__ implementation:DeprecationWarning")
QUIET = Noise.of(0, range(2))
QUANTILE = 1e-5  # a threshold is found in single precision, and a run carries its rounding on

BETAS = {
    "linear": {},
    "latent": {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "fewer": {"num_train_timesteps": 300, "beta_start": 0.001, "beta_end": 0.05},
    "given": {"trained_betas": np.linspace(0.003, 0.2, 40).tolist(), "num_train_timesteps": 40},
}
PREDICTIONS = ("epsilon", "sample", "v_prediction")
BOUNDS = {
    "none": {"clip_sample": False},
    "clip": {"clip_sample": True},
    "wide": {"clip_sample": True, "clip_sample_range": 1.7},
    "narrow": {"clip_sample": True, "clip_sample_range": 0.4},
    "threshold": {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.3},
    "open threshold": {"thresholding": True, "dynamic_thresholding_ratio": 0.6, "sample_max_value": 99.0},
    "both": {"thresholding": True, "clip_sample": True, "sample_max_value": 2.0, "dynamic_thresholding_ratio": 0.8},
}


def doubled(scheduler):
    """Coefficients in double precision, which its configuration does not give; the path has read the same numbers."""
    for name in ("alphas_cumprod", "final_alpha_cumprod", "alphas", "betas", "one"):
        if isinstance(value := getattr(scheduler, name, None), torch.Tensor):
            setattr(scheduler, name, value.double())
    return scheduler


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def net(x, time, **_):
    """Something that depends on everything: smooth, and of another size in each sample and channel."""
    gain = torch.linspace(0.3, 1.4, x.shape[1], dtype=x.dtype).reshape(1, -1, *(1,) * (x.ndim - 2))
    phase = torch.as_tensor(time, dtype=x.dtype).reshape(-1, *(1,) * (x.ndim - 1)) / 300.0
    return gain * torch.tanh(x) + 0.3 * torch.cos(x + phase)


def model_of(scheduler, bound=True):
    law = from_scheduler_config(scheduler, bound=bound)
    return orn.Denoiser(net, law.path, law.predicts, timestep_of=law.timestep_of)


# ----------------------------------------------------------------------------------------------------------- estimates


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler"])
def test_the_clean_sample_is_theirs(name, prediction):
    raw, x = 1.5 * randn(2, 3, 4, 5), 1.2 * randn(2, 3, 4, 5, seed=1) * torch.tensor([1.0, 2.5]).reshape(2, 1, 1, 1)
    for (kind, betas), (bound, options) in itertools.product(BETAS.items(), BOUNDS.items()):
        scheduler = getattr(diffusers, name)(**betas, **options, prediction_type=prediction)
        law = from_scheduler_config(scheduler)
        steps = scheduler.config.num_train_timesteps
        doubled(scheduler).set_timesteps(steps)
        for k in (0, steps // 3, steps - 2):
            theirs = scheduler.step(raw, k, x).pred_original_sample
            ours = law.predicts.to_estimate(law.path, x, (k + 1) / steps, raw).clean
            bits = QUANTILE if "thresholding" in options else 1e-9
            torch.testing.assert_close(ours, theirs, rtol=bits, atol=1e-9, msg=f"{kind} {bound} {k}")
        free = from_scheduler_config(scheduler, bound=False).predicts.to_estimate(law.path, x, 0.5, raw).clean
        plain = from_scheduler_config(
            getattr(diffusers, name)(**betas, clip_sample=False, prediction_type=prediction)
        ).predicts
        assert torch.equal(free, plain.to_estimate(law.path, x, 0.5, raw).clean)


@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
def test_the_clean_sample_at_a_terminal_ratio_of_zero(prediction):
    raw, x = randn(2, 3, 4, 5), randn(2, 3, 4, 5, seed=1)
    scheduler = diffusers.DDIMScheduler(
        prediction_type=prediction, rescale_betas_zero_snr=True, clip_sample=False, timestep_spacing="trailing"
    )
    law = from_scheduler_config(scheduler)
    doubled(scheduler).set_timesteps(1000)
    for k in (0, 500, 998, 999):
        ours = law.predicts.to_estimate(law.path, x, (k + 1) / 1000, raw).clean
        torch.testing.assert_close(ours, scheduler.step(raw, k, x).pred_original_sample, rtol=1e-7, atol=1e-9)


def test_a_learned_variance_is_split_off():
    scheduler = diffusers.DDPMScheduler(variance_type="learned_range", clip_sample=False)
    raw, x, law = randn(2, 6, 4, 5), randn(2, 3, 4, 5, seed=1), from_scheduler_config(scheduler)
    doubled(scheduler).set_timesteps(1000)
    ours = law.predicts.to_estimate(law.path, x, 0.5, raw)
    torch.testing.assert_close(ours.clean, scheduler.step(raw, 499, x).pred_original_sample, rtol=1e-9, atol=1e-9)
    assert torch.equal(ours.extras["variance"], raw[:, 3:])


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])  # it refuses the third
def test_eulers_clean_sample_in_its_own_scale(prediction):
    """Euler's state is x/α: the same estimate of the same picture."""
    raw, x = randn(2, 3, 4, 5), randn(2, 3, 4, 5, seed=1)
    for betas in BETAS.values():
        scheduler = diffusers.EulerDiscreteScheduler(**betas, prediction_type=prediction, timestep_spacing="trailing")
        law, steps = from_scheduler_config(scheduler), scheduler.config.num_train_timesteps
        scheduler.set_timesteps(10)
        for index, k in enumerate(scheduler.timesteps):
            scheduler._step_index = index
            t = (float(k) + 1) / steps
            theirs = scheduler.step(raw, k, x / law.path.alpha(t)).pred_original_sample
            ours = law.predicts.to_estimate(law.path, x, t, raw).clean
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)  # its sigmas are single precision


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_edm_preconditioning_is_theirs(kind):
    options = {"sigma_min": 0.01, "sigma_max": 50.0, "sigma_data": 0.8, "prediction_type": kind}
    raw, x = randn(2, 3, 4, 5), randn(2, 3, 4, 5, seed=1)
    for name in ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"):
        scheduler = getattr(diffusers, name)(**options)
        law = from_scheduler_config(scheduler)
        assert law.path == VE(sigma_min=0.01, sigma_max=50.0)
        assert law.timestep_of is None
        for sigma in (0.01, 0.3, 0.8, 7.0, 50.0):
            level = torch.tensor(sigma, dtype=torch.float64)
            ours = law.predicts.to_estimate(law.path, x, sigma, raw).clean
            torch.testing.assert_close(ours, scheduler.precondition_outputs(x, raw, level), rtol=1e-9, atol=1e-9)
            fed = law.predicts.precondition(law.path, x, sigma)
            torch.testing.assert_close(fed, scheduler.precondition_inputs(x, level), rtol=1e-9, atol=1e-9)
            assert law.path.timestep_of(sigma) == pytest.approx(float(scheduler.precondition_noise(level)), rel=1e-6)
    with pytest.raises(UsageError, match=r"EDMEulerScheduler has prediction_type 'sample': known are epsilon, sample"):
        from_scheduler_config(type("EDMEulerScheduler", (), {"config": options | {"prediction_type": "sample"}})())
    assert from_scheduler_config(diffusers.EDMEulerScheduler()).predicts == EDM(sigma_data=0.5)
    bare = {"sigma_min": 0.002, "sigma_max": 80.0}
    assert from_scheduler_config(type("EDMEulerScheduler", (), {"config": bare})()).predicts == EDM(sigma_data=0.5)


def test_consistency_boundaries_are_theirs():
    scheduler = diffusers.CMStochasticIterativeScheduler(sigma_min=0.01, sigma_max=50.0, sigma_data=0.8)
    law = from_scheduler_config(scheduler, bound=False)
    assert law.path == VE(sigma_min=0.01, sigma_max=50.0)
    raw, x = randn(2, 3, 4, 5), randn(2, 3, 4, 5, seed=1)
    for sigma in (0.01, 0.02, 0.8, 50.0):
        skip, out = scheduler.get_scalings_for_boundary_condition(torch.tensor(sigma, dtype=torch.float64))
        ours = law.predicts.to_estimate(law.path, x, sigma, raw).clean
        torch.testing.assert_close(ours, skip * x + out * raw, rtol=1e-9, atol=1e-9)
    scheduler.set_timesteps(7)
    for sigma, time in zip(scheduler.sigmas[:-1], scheduler.timesteps, strict=True):
        assert law.timestep_of(law.path, float(sigma)) == pytest.approx(float(time), rel=1e-4, abs=1e-3)
        scheduler._step_index = None
        fed = law.predicts.precondition(law.path, x, float(sigma))
        torch.testing.assert_close(fed, scheduler.scale_model_input(x, time), rtol=1e-5, atol=1e-6)
    assert LogNoise()(law.path, math.e) == pytest.approx(250.0)
    torch.testing.assert_close(
        LogNoise()(law.path, torch.tensor([1.0, math.e], dtype=torch.float64)), torch.tensor([0.0, 250.0]).double()
    )
    bare = type("CMStochasticIterativeScheduler", (), {"config": {"sigma_min": 0.002, "sigma_max": 80.0}})()
    assert from_scheduler_config(bare).predicts == Consistency(sigma_data=0.5, sigma_min=0.002)


# ---------------------------------------------------------------------------------------------------------------- laws


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("name", ["HeunDiscrete", "LMSDiscrete", "DEISMultistep", "DPMSolverSinglestep"])
def test_every_scheduler_of_betas_has_their_products(name, betas):
    scheduler = getattr(diffusers, f"{name}Scheduler")(**BETAS[betas])
    law = from_scheduler_config(scheduler)
    products = scheduler.alphas_cumprod.double()
    count = len(products)
    for k in (0, 1, count // 2, count - 1):
        assert law.path.alpha((k + 1) / count) ** 2 == pytest.approx(float(products[k]), rel=1e-11)
        assert law.path.timestep_of((k + 1) / count) == pytest.approx(k, abs=1e-9)
    assert law.timestep_of is None
    assert law.predicts == NoisePrediction()


@pytest.mark.parametrize(
    ("make", "steps"),
    [
        (lambda: diffusers.FlowMatchEulerDiscreteScheduler(), 1000),
        (lambda: diffusers.FlowMatchHeunDiscreteScheduler(num_train_timesteps=250), 250),
        (lambda: diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True, num_train_timesteps=500), 500),
        (lambda: diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True), 1000),
        (lambda: diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction"), 1000),
    ],
)
def test_flow_matching_has_its_own_floor_and_clock(make, steps):
    law = from_scheduler_config(make())
    assert law.path == Flow(t_min=1.0 / steps)
    assert type(law.predicts).__name__ == "Velocity"
    assert law.timestep_of == (None if steps == 1000 else Counted(steps=float(steps)))
    if law.timestep_of is not None:
        assert law.timestep_of(law.path, 0.3) == pytest.approx(0.3 * steps)
        assert law.path.timestep_of(0.3) == pytest.approx(300.0)


def test_wrapped_parameterizations_read_what_they_aim_at():
    path, t = VP.table("scaled-linear"), 0.437
    clean, noise = 0.2 * randn(2, 3, 4, 4).clamp(-3, 3), randn(2, 3, 4, 4, seed=1)
    x = path.alpha(t) * clean + path.sigma(t) * noise
    for reading in (
        Negated(inner=EDM(sigma_data=0.7)),
        Negated(inner=V()),
        Bounded(inner=V(), bound=0.7),
        Bounded(inner=EDM(sigma_data=0.7), quantile=0.5, most=2.0),
        Bounded(inner=NoisePrediction()),
    ):
        raw = reading.target(path, clean, noise, x, t)
        torch.testing.assert_close(reading.to_estimate(path, x, t, raw).clean, clean, rtol=1e-9, atol=1e-9)
        assert torch.equal(reading.precondition(path, x, t), reading.inner.precondition(path, x, t))
    inner = EDM(sigma_data=0.7)
    assert torch.equal(Negated(inner=inner).target(path, clean, noise, x, t), -inner.target(path, clean, noise, x, t))
    assert torch.equal(Bounded(inner=inner).target(path, clean, noise, x, t), inner.target(path, clean, noise, x, t))
    assert (Bounded(inner=inner).bound, Bounded(inner=inner).quantile, Bounded(inner=inner).most) == (1.0, None, 1.0)


def test_a_threshold_is_of_each_sample_and_never_below_one():
    """The quantile of |x̂₀| between 1 and the most, divided by it."""
    path = Flow()
    clean = torch.stack([torch.linspace(-a, a, 11, dtype=torch.float64) for a in (0.5, 2.0, 40.0)])[:, None]
    for quantile, most, bounds in (
        (0.8, 3.0, (1.0, 1.6, 3.0)),
        (1.0, 0.5, (1.0, 1.0, 1.0)),
        (0.4, 99.0, (1.0, 1.0, 16.0)),
    ):
        found = Bounded(inner=orn.parameterizations.Clean(), quantile=quantile, most=most).to_estimate(
            path, clean, 0.5, clean
        )
        bound = torch.tensor(bounds, dtype=torch.float64).reshape(3, 1, 1)
        torch.testing.assert_close(found.clean, clean.clamp(-bound, bound) / bound, rtol=1e-6, atol=1e-9)


def test_what_a_configuration_does_not_say_is_as_usual():
    def law(name="SomeScheduler", **config):
        return from_scheduler_config(type(name, (), {"config": config, "alphas_cumprod": torch.tensor([0.9, 0.5])})())

    assert law().predicts == NoisePrediction()
    assert law(clip_sample=True).predicts == Bounded(inner=NoisePrediction(), bound=1.0)
    assert law(clip_sample=False, thresholding=False).predicts == NoisePrediction()
    both = {"clip_sample": True, "thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 3.0}
    assert law(**both).predicts == Bounded(inner=NoisePrediction(), quantile=0.9, most=3.0)
    assert law("FlowMatchAnyScheduler").path == Flow(t_min=1e-3)
    assert law("FlowMatchAnyScheduler").timestep_of is None
    assert law(use_flow_sigmas=False).predicts == NoisePrediction()


def test_what_has_no_law():
    for scheduler, message in (
        (diffusers.EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction"), "has no betas"),
        (diffusers.IPNDMScheduler(), "IPNDMScheduler has no betas"),
        (diffusers.KarrasVeScheduler(), "has no betas"),
    ):
        with pytest.raises(UsageError, match=message):
            from_scheduler_config(scheduler)
    odd = diffusers.DDIMScheduler()
    odd.register_to_config(prediction_type="score")
    with pytest.raises(UsageError, match=r"DDIMScheduler has prediction_type 'score': known are"):
        from_scheduler_config(odd)
    for products in ([1.0, 0.5], [0.5, 0.5], [0.5, -0.1], [0.0, 0.0]):
        with pytest.raises(UsageError, match="do not fall from below 1 to 0 or above"):
            path_of_products(torch.tensor(products))
    last = path_of_products(torch.tensor([0.9, 0.3, 0.0]))
    assert (last.alpha(1.0), last.alpha(2 / 3) ** 2) == (0.0, pytest.approx(0.3, rel=1e-6))


# --------------------------------------------------------------------------------------------------------------- times


def ends(scheduler):
    """Where a pipeline ends: clean, or at the first trained step."""
    config = scheduler.config
    if getattr(scheduler, "sigmas", None) is not None:
        return 0.0 if config.get("final_sigmas_type", "zero") == "zero" else 1.0
    return 1.0 if config.get("set_alpha_to_one", True) is False else 0.0


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("betas", ["latent", "fewer", "given"])
def test_times_are_the_timesteps(spacing, betas):
    common = {**BETAS[betas], "timestep_spacing": spacing}
    made = [
        diffusers.DDIMScheduler(**common),
        diffusers.DDIMScheduler(**common, set_alpha_to_one=False, steps_offset=int(spacing == "leading")),
        diffusers.DDPMScheduler(**common),
        diffusers.EulerDiscreteScheduler(**common, steps_offset=int(spacing == "leading")),
        diffusers.EulerDiscreteScheduler(**common, final_sigmas_type="sigma_min"),
        diffusers.LMSDiscreteScheduler(**common),
        diffusers.DPMSolverMultistepScheduler(**common),
        diffusers.DPMSolverMultistepScheduler(**common, final_sigmas_type="sigma_min"),
        diffusers.UniPCMultistepScheduler(**common),
    ]
    for scheduler in made:
        path, count = from_scheduler_config(scheduler).path, scheduler.config.num_train_timesteps
        before = copy.deepcopy(scheduler.__dict__.get("num_inference_steps"))
        times = times_of_pipeline(scheduler, path, 7)
        assert scheduler.num_inference_steps == before  # the pipeline's own scheduler is left alone
        scheduler.set_timesteps(7)
        steps = [float(k) for k in scheduler.timesteps]
        end = ends(scheduler) / count
        expected = [step for step in steps if (step + 1) / count > end + 1e-12]
        assert [path.timestep_of(t) for t in times[:-1]] == pytest.approx(expected, abs=1e-6), type(scheduler).__name__
        assert times[-1] == pytest.approx(end, abs=1e-15)
        assert list(times) == sorted(set(times), reverse=True)


@pytest.mark.parametrize("option", ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"])
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
def test_respaced_times_are_the_noise_levels(option, final):
    classes = ["DPMSolverMultistepScheduler"]
    if option != "use_lu_lambdas":
        classes += ["EulerDiscreteScheduler", "UniPCMultistepScheduler"]
    if option == "use_beta_sigmas":
        pytest.importorskip("scipy")
    for name in classes:
        scheduler = getattr(diffusers, name)(**BETAS["latent"], **{option: True}, final_sigmas_type=final)
        path = from_scheduler_config(scheduler).path
        times = times_of_pipeline(scheduler, path, 6)
        scheduler.set_timesteps(6)
        sigmas = [float(s) for s in scheduler.sigmas]
        if final == "zero":
            assert (times[-1], sigmas[-1]) == (0.0, 0.0)
            times, sigmas = times[:-1], sigmas[:-1]
        found = [path.sigma_bar(t) for t in times]
        # A level that is there twice but for rounding, as the last of some lists is, is one.
        once = [s for i, s in enumerate(sigmas) if i == 0 or sigmas[i - 1] - s > 1e-6 * s]
        assert found == pytest.approx(once, rel=1e-5), name


def test_other_paths_list_their_noise_levels():
    for scheduler in (
        diffusers.EDMEulerScheduler(sigma_min=0.02, sigma_max=40.0),
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    ):
        times = times_of_pipeline(scheduler, from_scheduler_config(scheduler).path, 5)
        scheduler.set_timesteps(5)
        assert list(times) == pytest.approx([float(s) for s in scheduler.sigmas], rel=1e-7)
        assert len(times) == 6
    with pytest.raises(UsageError, match="DDIMScheduler lists no noise levels: give a grid of your own"):
        times_of_pipeline(diffusers.DDIMScheduler(), VE(), 5)
    with pytest.raises(UsageError, match="DDIMScheduler cannot make 2000 steps: "):
        times_of_pipeline(diffusers.DDIMScheduler(), VP(), 2000)


# ---------------------------------------------------------------------------------------------------------- whole runs


def looped(scheduler, x, steps, **options):
    """The pipeline's own loop."""
    scheduler.set_timesteps(steps)
    for k in scheduler.timesteps:
        raw = net(scheduler.scale_model_input(x, k), k)
        x = scheduler.step(raw, k, x, **options).prev_sample
    return x


def drawn(scheduler, x, steps, method):
    model = model_of(scheduler)
    return run(solve(method, model.path, x, times_of_pipeline(scheduler, model.path, steps), QUIET), model)


@pytest.mark.parametrize(("spacing", "steps"), [("leading", 7), ("trailing", 5)])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_runs_of_ddim(prediction, spacing, steps):
    """Every option together, with a network that no clipping leaves alone.

    (With other spacings and numbers of steps their DDIM goes on from another step than the next one of its list.)
    """
    x = randn(2, 3, 4, 5)
    for bound, one, offset in itertools.product(BOUNDS, (True, False), (0, 1) if spacing == "leading" else (0,)):
        scheduler = diffusers.DDIMScheduler(
            **BETAS["latent" if bound in ("none", "wide", "both") else "fewer"],
            **BOUNDS[bound],
            prediction_type=prediction,
            timestep_spacing=spacing,
            set_alpha_to_one=one,
            steps_offset=offset,
        )
        mine = drawn(scheduler, x, steps, DDIM())
        theirs = looped(doubled(scheduler), x, steps, use_clipped_model_output=True)
        bits = QUANTILE if "thresholding" in BOUNDS[bound] else 1e-9
        torch.testing.assert_close(mine, theirs, rtol=bits, atol=bits, msg=f"{bound} {one} {offset}")


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_runs_of_dpm_solver(prediction, spacing):
    x = randn(2, 3, 4, 5)
    for betas, order in itertools.product(("linear", "latent"), (1, 2)):
        scheduler = diffusers.DPMSolverMultistepScheduler(
            **BETAS[betas],
            prediction_type=prediction,
            timestep_spacing=spacing,
            solver_order=order,
            euler_at_final=True,
        )
        mine = drawn(scheduler, x, 9, DPMSolver(points=order))
        theirs = looped(scheduler, x, 9)
        torch.testing.assert_close(mine, theirs, rtol=2e-4, atol=2e-4)  # its sigmas are single precision


def test_runs_of_flow_matching_and_edm():
    x = randn(2, 3, 4, 5)
    for scheduler in (
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=500),
    ):
        model = model_of(scheduler)
        times = times_of_pipeline(scheduler, model.path, 6)
        mine = run(solve(DDIM(), model.path, x, times, QUIET), model)
        scheduler.set_timesteps(6)
        theirs = x
        for k in scheduler.timesteps:
            theirs = scheduler.step(net(theirs, k), k, theirs).prev_sample.double()
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    for kind in ("epsilon", "v_prediction"):
        scheduler = diffusers.EDMEulerScheduler(sigma_data=0.8, prediction_type=kind)
        start = 80.0 * x
        mine = drawn(scheduler, start, 6, DDIM())
        theirs = looped(scheduler, start, 6)
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    assert Heun().order == 2
