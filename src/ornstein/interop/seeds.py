"""The noise of a foreign loop, from the generators of torch that it is given."""

from __future__ import annotations

import hashlib

import torch

from ..checks import brief
from ..errors import UsageError
from ..randomness import Noise, mix

Generators = torch.Generator | list[torch.Generator] | tuple[torch.Generator, ...] | None


def noise_of(generator: Generators, rows: int, device: torch.device, dtype: torch.dtype, shared: int = 0) -> Noise:
    """The noise of ``rows`` samples: a pure function of the generators' states, which stay as they are.

    One generator gives every row a seed of its own; a list gives each sample the seed of its generator, whatever the
    batch. Without one a number is drawn from torch's global generator. Nothing waits for a device.

    Args:
        generator: one, a list of ``rows`` or of a divisor of it (then repeated), or None.
        rows: the number of samples.
        device: where the noise goes.
        dtype: of the noise.
        shared: the seed of what is drawn for the whole batch.

    Raises:
        UsageError: another number of generators.
    """
    if isinstance(generator, list | tuple):
        if not generator or rows % len(generator):
            raise UsageError(f"{len(generator)} generators for {rows} samples: pass one, or one a sample")
        seeds = [_seed(one) for one in generator] * (rows // len(generator))
    else:
        base = int(torch.randint(2**62, ())) if generator is None else _seed(generator)
        seeds = [mix(base, row) for row in range(rows)]
    return Noise(seeds=tuple(seeds), shared=shared, device=device, dtype=dtype)


def _seed(generator: torch.Generator) -> int:
    if not isinstance(generator, torch.Generator):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"a torch.Generator is needed, got {brief(generator)}")
    state = generator.get_state().numpy().tobytes()
    return int.from_bytes(hashlib.blake2b(state, digest_size=8).digest(), "little")
