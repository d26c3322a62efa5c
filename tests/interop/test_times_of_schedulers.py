"""n different falling noise levels for n steps, for every scheduler of diffusers and every spacing, or one refusal."""

import inspect
import itertools
from typing import Any

import diffusers
import pytest

from ornstein.errors import UsageError
from ornstein.interop.schedulers import from_scheduler_config, times_of_pipeline
from ornstein.samplers import Problem
from ornstein.samplers.exponential import DPMSolver

SWITCHES = (
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_lu_lambdas",
    "use_flow_sigmas",
    "rescale_betas_zero_snr",
)
SPACINGS = ("linspace", "leading", "trailing")
NAMES = sorted(n for n in dir(diffusers.schedulers) if n.endswith("Scheduler") and hasattr(diffusers, n))
pytestmark = pytest.mark.filterwarnings("ignore")


def made(name: str) -> list[Any]:
    """A scheduler for every spacing and for each of its switches alone."""
    kind = getattr(diffusers, name)
    known = inspect.signature(kind.__init__).parameters
    spacings = [{"timestep_spacing": spacing} for spacing in SPACINGS] if "timestep_spacing" in known else [{}]
    switches = [{}, *({switch: True} for switch in SWITCHES if switch in known)]
    if name == "PNDMScheduler":
        switches += [{"skip_prk_steps": True}, {"steps_offset": 1, "skip_prk_steps": True}]
    found: list[Any] = []
    for one, two in itertools.product(spacings, switches):
        try:
            found.append(kind(**one, **two))
        except (ValueError, TypeError, ImportError, NotImplementedError):  # diffusers has no such scheduler here
            continue
    return found


def check(scheduler: Any, steps: int) -> bool:
    """Whether it makes the steps; False where it is refused, in one line."""
    try:
        path = from_scheduler_config(scheduler).path
        times = times_of_pipeline(scheduler, path, steps)
    except UsageError:
        return False
    assert len(times) == steps + 1
    assert all(t > s for t, s in itertools.pairwise(times))
    assert Problem(DPMSolver(), path, times).times == times  # no two of them nearer than rounding
    return True


def climbs(name: str) -> bool:
    """Consistency models and distilled ones sample on climbing grids of their own."""
    return any(part in name for part in ("LCM", "TCD", "CMStochastic"))


@pytest.mark.parametrize("name", [name for name in NAMES if not climbs(name)])
def test_as_many_falling_levels_as_steps(name: str) -> None:
    few = 4 if name.startswith("KDPM2") else 1  # their construction is slow: of those, one a spacing
    for scheduler in made(name)[::few]:
        done = [check(scheduler, steps) for steps in ((1, 10) if name.startswith("KDPM2") else (1, 2, 3, 10, 25))]
        # RePaint's long lists climb, and those of the inverse schedulers always do: one step at most.
        assert any(done) == done[-1] or name == "RePaintScheduler" or "Inverse" in name, scheduler.config


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if not climbs(name)])
def test_as_many_falling_levels_as_steps_up_to_a_thousand(name: str) -> None:
    for scheduler in made(name):
        for steps in (*range(1, 60, 3), 99, 100, 250, 333, 499, 500, 501, 750, 998, 999, 1000):
            check(scheduler, steps)


def test_two_stages_and_runge_kutta_starts_count_once() -> None:
    for name in ("KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "HeunDiscreteScheduler", "PNDMScheduler"):
        kind = getattr(diffusers, name)
        scheduler = kind(timestep_spacing="leading", steps_offset=1)
        path = from_scheduler_config(scheduler).path
        euler = diffusers.EulerDiscreteScheduler(timestep_spacing="leading", steps_offset=1)
        wanted = times_of_pipeline(euler, path, 10)
        assert times_of_pipeline(scheduler, path, 10)[:-1] == pytest.approx(wanted[:-1])


def test_what_cannot_be_made_is_refused_in_one_line() -> None:
    unclip = diffusers.UnCLIPScheduler()
    path = from_scheduler_config(unclip).path
    with pytest.raises(UsageError, match="UnCLIPScheduler cannot make 1 step: "):
        times_of_pipeline(unclip, path, 1)
    inverse = diffusers.DDIMInverseScheduler()
    with pytest.raises(UsageError, match="falling noise levels for 5 steps"):
        times_of_pipeline(inverse, from_scheduler_config(inverse).path, 5)
    for steps in (0, -1, 2.5, True, "4"):
        with pytest.raises(UsageError, match="whole number"):
            times_of_pipeline(unclip, path, steps)  # type: ignore[arg-type]
    # Rescaled to zero terminal SNR, Euler's table ends in 2⁻²⁴, more than the step before, and is read as zero.
    euler = diffusers.EulerDiscreteScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    assert from_scheduler_config(euler).path.alpha(1.0) == 0.0
