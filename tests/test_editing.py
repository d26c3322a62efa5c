"""Image-to-image and inpainting: exact on Gaussians, for every sampler, path, batch and kind of model."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import ornstein as orn
from ornstein import grids
from ornstein.editing import below, time_of_strength
from ornstein.errors import GridError, PathError, UsageError
from ornstein.paths import VE, VP, AffinePath, Flow, PyramidPath
from ornstein.samplers import SAMPLERS

SHAPE = (2, 3, 4)
MEAN, STD = 0.3, 0.6
PATHS: dict[str, AffinePath] = {"vp": VP(), "cosine": VP.cosine(), "ve": VE(), "flow": Flow()}
DETERMINISTIC = ("ddim", "heun", "dpmpp-2m", "dpmpp-3m", "unipc", "deis-3")


def exact(path: AffinePath, mean: float = MEAN, std: float = STD) -> orn.Denoiser:
    """The denoiser of N(mean, std²), each number by itself."""

    def net(x: Tensor, time: Tensor) -> Tensor:
        alpha, sigma = (
            x.new_tensor([f(float(t)) for t in time])[:, None, None, None] for f in (path.alpha, path.sigma)
        )
        return mean + alpha * std**2 * (x - alpha * mean) / (alpha**2 * std**2 + sigma**2)

    return orn.Denoiser(net, path, "clean", shape=SHAPE, timestep_of=lambda _, t: t)


def multistep(evaluations: int | None) -> grids.Grid:
    return grids.multistep(*[0.5, 0.2][: (evaluations or 1) - 1])


def pictures(n: int = 3) -> Tensor:
    draw = torch.Generator().manual_seed(7)
    return torch.randn(n, *SHAPE, generator=draw, dtype=torch.float64)


def edited(path: AffinePath, n: int = 3, **options: Any) -> Tensor:
    return orn.sample(exact(path), n, dtype=torch.float64, **options)


@pytest.mark.parametrize("name", PATHS)
@given(strength=st.floats(1e-4, 0.9999))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_strength_is_the_noise_level(name, strength):
    path = PATHS[name]
    t = time_of_strength(path, strength)
    found = 2.0 / math.pi * math.atan(path.sigma_bar(t))
    low, high = (2.0 / math.pi * math.atan(path.sigma_bar(max(end, path.t_min))) for end in path.t_range)
    assert found == pytest.approx(min(max(strength, low), high), abs=1e-9)
    assert time_of_strength(path, 1.0) == path.t_range[1]


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20, 61])
@pytest.mark.parametrize("strength", [0.05, 0.3, 0.6, 0.95])
def test_all_steps_that_were_asked_for_are_taken_below_the_start(name, steps, strength):
    path = PATHS[name]
    start = time_of_strength(path, strength)
    times = grids.times_of(below(lambda count: grids.default(path, count), steps, start, path), path)
    assert times[0] == start
    assert len(times) - 1 == steps
    assert all(a > b for a, b in pairwise(times))


@pytest.mark.parametrize("name", PATHS)
def test_pictures_of_the_data_stay_pictures_of_the_data(name):
    """Noise to any level and back is the identity of the law: here of the map, whose factor is std/√(α²std² + σ²)."""
    path, strength = PATHS[name], 0.6
    t = time_of_strength(path, strength)
    start = pictures()
    found = edited(path, start=start, strength=strength, sampler="dpmpp-3m", steps=400, seed=3)
    z = orn.Noise.of(3, range(3), dtype=torch.float64).normal("prior", SHAPE)
    noisy = path.alpha(t) * start + path.sigma(t) * z
    spread = math.hypot(path.alpha(t) * STD, path.sigma(t))
    wanted = MEAN + STD * (noisy - path.alpha(t) * MEAN) / spread
    assert (found - wanted).abs().max() < 2e-3


@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_little_noise_changes_little_and_much_forgets_the_picture(sampler):
    start = pictures()
    near, far = (edited(Flow(), start=start, strength=s, sampler=sampler, steps=20) for s in (0.02, 1.0))
    assert (near - start).abs().max() < 0.15
    assert torch.equal(far, edited(Flow(), sampler=sampler, steps=20)), "a flow ends in noise alone"


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_the_known_region_stays_and_the_other_is_sampled_as_without_it(name, sampler):
    path, start = PATHS[name], pictures()
    mask = torch.zeros(SHAPE[1:])
    mask[:, 2:] = 1.0
    options: dict[str, Any] = {"sampler": sampler, "steps": 6, "seed": 5, "strength": 0.7, "start": start}
    if sampler == "ancestral-learned":
        pytest.skip("needs a network with a variance")
    found, free = edited(path, mask=mask, **options), edited(path, **options)
    assert torch.equal(found[..., :2], start[..., :2])
    torch.testing.assert_close(found[..., 2:], free[..., 2:], rtol=1e-9, atol=1e-9)


def test_a_mask_alone_redraws_from_noise():
    """Nothing of what is masked out is left, be it ever so bright."""
    start, mask = pictures(), torch.ones(SHAPE[1:])
    mask[0] = 0.0
    loud = start.clone()
    loud[:, :, 1:] = 1e6
    one, other = (edited(VP(), start=picture, mask=mask, steps=6) for picture in (start, loud))
    torch.testing.assert_close(one, other)


def test_the_known_region_is_kept_through_climbing_grids_and_consistency_models():
    path, start, mask = VE(), pictures(), torch.zeros(SHAPE[1:])
    mask[1:] = 1.0
    for grid in (grids.multistep(0.5, 0.2), grids.churn(grids.karras(5)), [80.0, 1.0, 2.0, 0.5, 0.0]):
        for sampler in ("ddim", "ancestral", "dpmpp-2m"):
            found = edited(path, start=start, mask=mask, strength=0.8, sampler=sampler, grid=grid)
            assert torch.equal(found[:, :, :1], start[:, :, :1])
            assert found.isfinite().all()
    model = orn.Denoiser(
        exact(path).net,
        path,
        "clean",
        shape=SHAPE,
        timestep_of=lambda _, t: t,
        grid=multistep,
    )
    for steps in (1, 2, 3):
        found = orn.sample(model, 3, start=start, strength=0.5, steps=steps, dtype=torch.float64)
        assert found.std() > 0.2


def test_rows_batches_and_streams_agree():
    start = pictures(5)
    mask = (torch.arange(5) % 2).reshape(5, 1, 1, 1).expand(5, 1, *SHAPE[1:]).double()
    options: dict[str, Any] = {"start": start, "strength": 0.6, "mask": mask, "steps": 5, "seed": 2}
    whole = edited(VP(), 5, **options)
    torch.testing.assert_close(edited(VP(), 5, batch=2, **options), whole)
    torch.testing.assert_close(edited(VP(), 5, strict=True, **options), whole)
    *_, last = orn.stream(exact(VP()), 5, dtype=torch.float64, **options)
    torch.testing.assert_close(last.x, whole)
    assert torch.equal(whole[::2], start[::2]), "their mask is 0"
    one = edited(VP(), 5, start=start[:1], strength=0.6, steps=5, seed=2)
    assert torch.equal(one[:1], edited(VP(), 1, start=start[:1], strength=0.6, steps=5, seed=2))
    assert torch.equal(one, edited(VP(), 5, start=start[0], strength=0.6, steps=5, seed=2))


class Halved:
    """A codec of factor 2: means of 2 × 2 pixels, shown as squares."""

    factor, channels, fingerprint = 2, 2, "halved"

    def encode(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        return torch.nn.functional.avg_pool2d(image[:, :2], 2)

    def decode(self, latent: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(torch.cat([latent, latent[:, :1]], 1), scale_factor=2)


def test_latents_are_edited_by_pictures():
    plain = exact(Flow())
    model = orn.Denoiser(plain.net, Flow(), "clean", shape=SHAPE, timestep_of=lambda _, t: t, codec=Halved())
    draw = torch.Generator().manual_seed(1)
    start = torch.randn(3, 3, 6, 8, generator=draw, dtype=torch.float64)
    options: dict[str, Any] = {"strength": 0.4, "steps": 6, "dtype": torch.float64}
    found = orn.sample(model, 3, start=start, **options)
    wanted = Halved().decode(orn.sample(plain, 3, start=Halved().encode(start), **options))
    torch.testing.assert_close(found, wanted)
    mask = torch.zeros(6, 8)
    mask[2, 3] = 1.0
    found = orn.sample(model, 3, start=start, mask=mask, **options)
    changed = (found != start).any(1)
    assert changed[:, 2, 3].all()
    assert changed.sum() == 3, "a pixel is redrawn, and no other"


def test_a_pyramid_begins_at_a_level_and_has_no_masks():
    path = PyramidPath()
    model = orn.Denoiser(
        lambda x, t: torch.zeros(len(x), 3, 2 * x.shape[2], 2 * x.shape[3], dtype=x.dtype),
        path,
        "clean",
        shape=(3, 16, 16),
    )
    assert [time_of_strength(path, s) for s in (0.2, 0.5, 1.0)] == [1.0, 2.0, 3.0]
    with pytest.raises(PathError, match="mask"):
        orn.sample(model, start=torch.zeros(3, 16, 16), mask=torch.ones(16, 16))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"strength": 0.5}, "need start"),
        ({"mask": torch.ones(3, 4)}, "need start"),
        ({"start": torch.zeros(3, 3, 4)}, r"\(3, 3, 4\).*\(2, 3, 4\)"),
        ({"start": torch.zeros(2, *SHAPE)}, "2 rows.*3 or 1"),
        ({"start": "cat.png"}, "must be a dense tensor"),
        ({"start": torch.full(SHAPE, math.nan)}, "not finite"),
        ({"start": torch.zeros(SHAPE), "strength": 0.0}, "above 0 and at most 1"),
        ({"start": torch.zeros(SHAPE), "strength": 1.5}, "above 0 and at most 1"),
        ({"start": torch.zeros(SHAPE), "strength": "0.5"}, "above 0 and at most 1"),
        ({"start": torch.zeros(SHAPE), "strength": True}, "above 0 and at most 1"),
        ({"start": torch.zeros(SHAPE), "mask": torch.ones(4, 4)}, r"\(4, 4\)|\(1, 1, 4, 4\)"),
        ({"start": torch.zeros(SHAPE), "mask": torch.full((3, 4), 255.0)}, "from 0 .* to 1"),
        ({"start": torch.zeros(SHAPE), "mask": torch.ones(3, 1)}, "does not fit"),
        ({"start": torch.zeros(SHAPE), "mask": torch.tensor(1.0)}, "dense tensor"),
        ({"start": torch.zeros(SHAPE), "prior_scale": 2.0}, "prior_scale"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(options, said):
    with pytest.raises(UsageError, match=said) as error:
        edited(VP(), **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", [VP(), VP.table(), VP.cosine(), VE(), Flow()], ids=str)
@pytest.mark.parametrize("strength", [1e-300, 1e-9, 1e-4, 1.0001])
def test_hardly_any_noise_is_hardly_any_work(path, strength):
    """At the least noise of a path one step is left, and just above it no more than were asked for, found at once."""
    least = 2.0 / math.pi * math.atan(path.sigma_bar(path.t_min))
    strength = min(strength, least) if strength < 1.0 else strength * least
    looked_at: list[int] = []

    def family(count: int) -> grids.Grid:
        looked_at.append(count)
        return grids.log_snr(count)

    times = below(family, 3, time_of_strength(path, strength), path)(path)
    assert 2 <= len(times) <= 4
    assert times == tuple(sorted(times, reverse=True))
    assert max(looked_at) <= 8192


def test_bytes_are_no_pictures_to_begin_from():
    with pytest.raises(UsageError, match="bytes"):
        edited(VP(), 1, start=torch.full((1, *SHAPE), 200, dtype=torch.uint8), strength=0.5)


@pytest.mark.parametrize("options", [{"steps": 10**9}, {"steps": 10**9, "strength": 0.5, "start": torch.zeros(SHAPE)}])
def test_steps_that_no_memory_holds_are_refused(options):
    with pytest.raises(GridError, match="at most 1,000,000 steps"):
        edited(VP(), 1, **options)
