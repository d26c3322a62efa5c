"""Consistency, latent consistency and trajectory consistency models sample by the law of their own schedulers."""

import math

import pytest
import torch

import ornstein as orn
from ornstein.errors import ConfigError, GridError, UsageError
from ornstein.interop.consistency import few_step_grids
from ornstein.interop.diffusers import from_pipeline
from ornstein.interop.schedulers import from_scheduler_config
from ornstein.samplers import DDIM, run, solve

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:__array__ implementation:DeprecationWarning")

SPREAD = 0.5  # of the data, N(0, .25)


def pipeline(scheduler, exact, pixels):
    """A pipeline of pixels whose network is the exact consistency function of N(0, .25)."""
    unet = diffusers.UNet2DModel.from_pretrained(pixels / "unet")

    def forward(sample, timestep, class_labels=None, return_dict=True):
        return (exact(scheduler, sample, timestep.reshape(-1, 1, 1, 1)),)

    unet.forward = forward
    kind = diffusers.ConsistencyModelPipeline if "CM" in type(scheduler).__name__ else diffusers.DDIMPipeline
    pipe = kind(unet, diffusers.DDIMScheduler() if kind is diffusers.DDIMPipeline else scheduler)
    pipe.scheduler = scheduler
    return pipe


def consistent(scheduler, fed, time):
    """F with c_skip·x + c_out·F = x·√((s² + σ_min²)/(s² + σ²)), of fed = x/√(σ² + s²)."""
    sigma, low, s2 = torch.exp(time / 250.0), scheduler.config.sigma_min, SPREAD**2
    x = fed * torch.sqrt(sigma**2 + s2)
    skip = s2 / ((sigma - low) ** 2 + s2)
    out = SPREAD * (sigma - low) / torch.sqrt(sigma**2 + s2)
    end = x * torch.sqrt((s2 + low**2) / (s2 + sigma**2))
    return torch.where(out.abs() > 1e-9, (end - skip * x) / out, 0.0)


def to_the_end(scheduler, x, time):
    """The noise in x_t where the clean sample is x_t·s/√(α²s² + σ²), the end of the exact trajectory."""
    kept = scheduler.alphas_cumprod[time.round().long()]
    clean = x * SPREAD / torch.sqrt(kept * SPREAD**2 + 1.0 - kept)
    return (x - kept.sqrt() * clean) / (1.0 - kept).sqrt()


@pytest.mark.parametrize("how", ["steps", "evaluations", "auto"])
@pytest.mark.parametrize("count", [1, 2, 4, 40])
@pytest.mark.parametrize("kind", ["CMStochasticIterativeScheduler", "LCMScheduler"])
def test_the_exact_function_of_a_gaussian_gives_the_gaussian_for_every_number_of_evaluations(kind, count, how, pixels):
    few = kind == "LCMScheduler"
    scheduler = getattr(diffusers, kind)(**({} if few else {"clip_denoised": False}))
    piped = from_pipeline(pipeline(scheduler, to_the_end if few else consistent, pixels))
    options = {"sampler": "auto", "steps": count} if how == "auto" else {how: count}
    images = orn.sample(piped.denoiser, 400, **options)
    # 76,800 numbers: the standard error of their spread is .0013.
    assert float(images.std()) == pytest.approx(SPREAD, abs=0.006)
    seen = [event for event in orn.stream(piped.denoiser, 1, **options) if not event.final]
    # The last of a consistency scheduler's forty levels is σ_min, where its network is the identity.
    assert len(seen) == (39 if count == 40 and not few else count)


def test_trajectories_of_full_noise_give_the_gaussian_too(pixels):
    scheduler = diffusers.TCDScheduler()
    piped = from_pipeline(pipeline(scheduler, to_the_end, pixels))
    for count in (1, 2, 4, 10):
        own = few_step_grids(scheduler, piped.denoiser.path, gamma=1.0)(count)(piped.denoiser.path)
        assert own[1::2] == (1e-3,) * count  # the scheduler's last step ends where its noise begins, at σ = .029
        grid = [0.0 if t == 1e-3 else t for t in own]
        assert float(orn.sample(piped.denoiser, 400, grid=grid).std()) == pytest.approx(SPREAD, abs=0.006)


class Injected:
    """The numbers that a scheduler draws from this generator, in the same order."""

    def __init__(self, generator):
        self.generator = generator

    def normal(self, key, event):
        return torch.randn(2, *event, generator=self.generator)


def net(x, time):
    return torch.tanh(x + 0.1) * torch.cos(time.float() / 300.0).reshape(-1, 1, 1, 1)


CASES = [
    ("CMStochasticIterativeScheduler", {}, {}),
    ("CMStochasticIterativeScheduler", {"clip_denoised": False, "sigma_max": 20.0, "num_train_timesteps": 18}, {}),
    ("LCMScheduler", {}, {}),
    ("LCMScheduler", {"clip_sample": True, "timestep_scaling": 0.01}, {}),
    ("LCMScheduler", {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, {}),
    ("LCMScheduler", {"prediction_type": "sample", "original_inference_steps": 20}, {}),
    ("FlowMatchLCMScheduler", {"shift": 3.0}, {}),
    ("TCDScheduler", {}, {"eta": 0.3}),
    ("TCDScheduler", {}, {"eta": 0.0}),
    ("TCDScheduler", {"prediction_type": "v_prediction"}, {"eta": 1.0}),
]


@pytest.mark.parametrize("count", [1, 2, 4, 7])
@pytest.mark.parametrize(("name", "config", "options"), CASES, ids=str)
def test_every_step_is_the_schedulers_own(name, config, options, count):
    scheduler = getattr(diffusers, name)(**config)
    law = from_scheduler_config(scheduler)
    grid = few_step_grids(scheduler, law.path, gamma=options.get("eta", 0.3))(count)
    scheduler.set_timesteps(count)
    generator = torch.Generator().manual_seed(3)
    scale = float(getattr(scheduler, "init_noise_sigma", 1.0))
    x = start = scale * torch.randn(2, 3, 4, 4, generator=generator)
    for t in scheduler.timesteps:
        fed = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(net(fed, t.reshape(1)), t, x, generator=generator, **options).prev_sample
    generator = torch.Generator().manual_seed(3)
    torch.randn(2, 3, 4, 4, generator=generator)
    model = orn.Denoiser(net, law.path, law.predicts, timestep_of=law.timestep_of)
    mine = run(solve(DDIM(), law.path, start, grid(law.path), Injected(generator)), model)
    # Their coefficients are float32; and a consistency scheduler climbs by √(σ² − σ_min²), here by σ.
    torch.testing.assert_close(mine, x, rtol=1e-3, atol=1e-3)


def test_any_sampler_takes_the_steps_of_ddim(pixels):
    piped = from_pipeline(pipeline(diffusers.LCMScheduler(), to_the_end, pixels))
    images = [orn.sample(piped.denoiser, 2, steps=3, sampler=name) for name in (None, "ddim", "dpmpp-3m", "unipc")]
    for other in images[1:]:
        torch.testing.assert_close(images[0], other, rtol=0.0, atol=1e-4)
    assert piped.grid(3)(piped.denoiser.path) == piped.denoiser.grid(3)(piped.denoiser.path)
    times = piped.grid(3)(piped.denoiser.path)
    assert times[1::2] == (0.0, 0.0, 0.0)
    assert times[0] == 1.0


def test_numbers_of_evaluations_that_do_not_exist_cost_one_line(pixels):
    piped = from_pipeline(pipeline(diffusers.LCMScheduler(), to_the_end, pixels))
    for count in (0, 51, 2000):
        with pytest.raises((GridError, UsageError)) as error:
            orn.sample(piped.denoiser, 1, steps=count)
        assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=r"gamma lies in \[0, 1\], got nan"):
        few_step_grids(diffusers.TCDScheduler(), piped.denoiser.path, gamma=math.nan)
    with pytest.raises(UsageError, match=r"s_noise 1\.01"):
        from_scheduler_config(diffusers.CMStochasticIterativeScheduler(s_noise=1.01))
    assert few_step_grids(diffusers.DDIMScheduler(), piped.denoiser.path) is None
    assert from_scheduler_config(diffusers.DDIMScheduler()).grid is None
