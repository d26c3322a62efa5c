"""The minority score: how far one step of a denoiser, from a noisy copy, lands from the image (Um et al. 2024).

    l(x_0) = mean over draws z of  d(x_0, x̂_0(α·x_0 + σ·z)),      at one noise level, given as its log-SNR.

A denoiser averages over the data that a noisy image may come from. Rare images weigh little in that average, so their
reconstructions are pulled towards common ones: a large distance means a rare image. With the squared distance and no
clamp l = (σ/α)²·E‖ẑ − z‖². The score is no density: for Gaussian data of variances v_i it weighs direction i by
(σ²/(α²·v_i + σ²))².

The noise of draw j of image i is a function of (seed, i, j), and the network sees images in fixed groups of 16. So the
scores do not depend on how the work is split, down to the last bit.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..data.base import Example, Source, UnreadableError
from ..denoisers import DenoiserLike
from ..errors import ConfigError, UsageError
from ..guidance.base import affine_path
from ..metrics.pairs import PLAIN, Distance
from ..metrics.pairs import distance as distance_named
from ..paths.base import AffinePath
from ..randomness import Noise, mix
from ..runs import TrainedModel
from ..scalars import sigmoid
from ..storage.files import digest, read_json, write_json
from .table import FORMAT, VERSION, Table, suffix_of

if TYPE_CHECKING:
    from ..latents import Codec

LSUN_LOG_SNR = -3.703
"""Where the paper scores LSUN: index 60 of 100 steps of the linear schedule, ᾱ = 0.0241, σ/α = 6.37."""

GROUP = 16  # images that the network sees at a time, whatever the batch

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How images are scored: everything that changes a number. ``clamp`` bounds the clean estimate, None does not."""

    log_snr: float = LSUN_LOG_SNR
    distance: str = "lite0"
    draws: int = 5
    seed: int = 0
    clamp: float | None = 1.0

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise ConfigError(f"at least one draw of the noise is needed, got {self.draws}")
        if not math.isfinite(self.log_snr):
            raise ConfigError(f"the log-SNR of the score must be finite, got {self.log_snr}")


def one_step(denoiser: DenoiserLike, clean: Tensor, noise: Tensor, log_snr: float) -> Tensor:
    """x̂_0(α·x_0 + σ·z) of images x_0 and noise z, both (B, *event), at a log-SNR, without gradients.

    Raises `UsageError` for a log-SNR that the path does not reach, `PathError` for a path without one.
    """
    path, t = _level(denoiser, log_snr)
    with torch.no_grad():
        return denoiser(path.diffuse(clean, t, noise), t).clean


def _level(denoiser: DenoiserLike, log_snr: float) -> tuple[AffinePath, float]:
    path = affine_path(denoiser.path, "the minority score")
    low, high = path.log_snr(path.t_range[1]), path.log_snr(path.t_min)
    if not low <= log_snr <= high:
        raise UsageError(
            f"log-SNR {log_snr:g} is outside of what this model was trained on, {low:.4g} to {high:.4g}: choose another"
        )
    return path, path.time_of(log_snr)


def rarities(denoiser: DenoiserLike, clean: Tensor, noise: Noise, recipe: Recipe, distance: Distance) -> Tensor:
    """The scores (B,) float64 on the host of images ``clean`` (B, *event), in [−1, 1] for a clamped score.

    Draw j uses ``noise.normal(("rarity", j))``.
    """
    total = torch.zeros(len(clean), dtype=torch.float64)
    for draw in range(recipe.draws):
        z = noise.normal(("rarity", draw), clean.shape[1:]).to(clean)
        found = one_step(denoiser, clean, z, recipe.log_snr)
        if recipe.clamp is not None:
            found = found.clamp(-recipe.clamp, recipe.clamp)
        with torch.no_grad():
            total += distance(clean, found).to("cpu", torch.float64)
    return total / recipe.draws


def score(
    run: TrainedModel,
    source: Source,
    out: str | Path,
    recipe: Recipe | None = None,
    *,
    shard: tuple[int, int] = (0, 1),
    batch: int = 256,
    progress: Progress | None = None,
) -> Table | None:
    """Score every image of ``source`` by a trained run and write the table ``out``; None while shards are missing.

    What is done is kept in the folder OUT.parts, in files that appear whole every ``batch`` images, so a killed call
    goes on where it was. ``shard=(i, n)`` does part i of n and leaves the rest to other calls; whoever finishes last,
    or a call without a shard, puts the table together and removes the folder. No split changes a bit.

    A class- or text-conditional model gets the label or caption of each image as its condition. Unreadable images get
    NaN. A model of latents reconstructs the encoded image, without clamp; "squared" and "absolute" compare latents, the
    others what is decoded.

    Raises:
        UsageError: data of another kind than the run's, a log-SNR beyond the path, or a table or parts made otherwise.
    """
    recipe = Recipe() if recipe is None else recipe
    out = Path(out)
    suffix_of(out)
    index, count = shard
    if not 0 <= index < count:
        raise UsageError(f"shard {index}/{count} is none: number the shards 0/{count} … {count - 1}/{count}")
    if batch < 1:
        raise UsageError(f"batch must be at least 1, got {batch}")
    _check_data(run, source)
    _level(run.denoiser, recipe.log_snr)
    name, distance = distance_named(recipe.distance, run.denoiser.device)
    if run.codec is not None:
        recipe = replace(recipe, clamp=None)
        distance = distance if name in PLAIN else _decoded(run.codec, distance)
    header = _header(run, source, recipe, name)
    finished = _finished(out, header)
    if finished is not None:
        return finished
    parts = _Parts(out.with_name(f"{out.name}.parts"), header)
    blocks = -(-len(source) // GROUP)
    mine = [b for b in range(index * blocks // count, (index + 1) * blocks // count) if b not in parts.done()]
    each = -(-batch // GROUP)
    for begin in range(0, len(mine), each):
        chunk = mine[begin : begin + each]
        parts.keep({block: _block(run, source, block, recipe, distance) for block in chunk})
        if progress is not None:
            progress(min((begin + each) * GROUP, len(mine) * GROUP, len(source)), len(source))
    found = parts.done()
    if len(found) < blocks:
        return _finished(out, header)  # another shard may have put it together in the meantime
    rows = [row for block in range(blocks) for row in found[block]]
    table = Table(
        header=header,
        names=tuple(row[0] for row in rows),
        scores=np.array([math.nan if row[1] is None else row[1] for row in rows], dtype=np.float64),
        labels=np.array([row[2] for row in rows], dtype=np.int64),
    )
    table.write(out)
    parts.remove()
    return table


Row = tuple[str, float | None, int]


def _block(run: TrainedModel, source: Source, block: int, recipe: Recipe, distance: Distance) -> list[Row]:
    """Name, score and label of the images of one group. The network always sees a full group."""
    indices = range(block * GROUP, min((block + 1) * GROUP, len(source)))
    found = [_read(source, i) for i in indices]
    readable = [example for example in found if isinstance(example, Example)]
    if not readable:
        return [(example, None, -1) for example in found if isinstance(example, str)]
    full = [example if isinstance(example, Example) else readable[0] for example in found]
    full += full[-1:] * (GROUP - len(full))
    device = run.denoiser.device
    clean = torch.stack([example.image for example in full]).to(device, torch.float32).div_(127.5).sub_(1.0)
    noise = Noise.of(mix(recipe.seed, "rarity"), range(block * GROUP, (block + 1) * GROUP), device=device)
    if run.codec is not None:
        with torch.no_grad():
            clean = run.codec.encode(clean)
    values = rarities(_told(run, full), clean, noise, recipe, distance).tolist()
    return [
        (example.name, value, example.label) if isinstance(example, Example) else (example, None, -1)
        for example, value in zip(found, values, strict=False)
    ]


def _decoded(codec: Codec, distance: Distance) -> Distance:
    """A distance of pictures as one of latents, with pictures in their range."""
    return lambda a, b: distance(codec.decode(a).clamp(-1, 1), codec.decode(b).clamp(-1, 1))


def _read(source: Source, index: int) -> Example | str:
    """The example, or the name of one that cannot be read."""
    try:
        return source[index]
    except UnreadableError as error:
        return error.name


def _told(run: TrainedModel, examples: list[Example]) -> DenoiserLike:
    """The denoiser under the conditions of the images."""
    if run.condition == "label":
        return run.denoiser.with_condition(run.cond(labels=[example.label for example in examples]))
    if run.condition == "text":
        return run.denoiser.with_condition(run.cond(captions=[example.caption for example in examples]))
    return run.denoiser


def _check_data(run: TrainedModel, source: Source) -> None:
    """Raise `UsageError` for data of another size or other labels than the run's."""
    if not isinstance(run, TrainedModel):  # pyright: ignore[reportUnnecessaryIsInstance] - a pipeline, from the command line
        raise UsageError("only runs of ornstein train can score images: give one of them")
    if run.picture[1:] != (source.size, source.size):
        raise UsageError(f"{run.folder} makes images of {run.picture[-1]} pixels, not {source.size}: open the data so")
    if run.classes and run.classes != tuple(source.classes):
        raise UsageError(f"{run.folder} knows other labels than {source.name}: score the data it was trained on")


def _header(run: TrainedModel, source: Source, recipe: Recipe, distance: str) -> dict[str, Any]:
    """Description of the table: data, model and recipe."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "data": {
            "name": source.name,
            "fingerprint": source.fingerprint,
            "examples": len(source),
            "classes": list(source.classes),
        },
        "run": {
            "name": run.folder.name,
            "images": run.images,
            "weights": _weights(run),
            "path": run.details["model"]["path"],
            "condition": run.condition,
        },
        "log_snr": recipe.log_snr,
        "alpha_bar": sigmoid(recipe.log_snr),
        "distance": distance,
        "draws": recipe.draws,
        "seed": recipe.seed,
        "size": source.size,
        "clamp": recipe.clamp,
    }


def _weights(run: TrainedModel) -> str:
    """Digest of the weights."""
    state = hashlib.blake2b(digest_size=16)
    for name, value in run.model.state_dict().items():
        state.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return state.hexdigest()


def _same(a: Mapping[str, Any], b: Mapping[str, Any]) -> str | None:
    """The first key whose values differ; names may change."""
    for key in {**a, **b}:
        one, two = a.get(key), b.get(key)
        if isinstance(one, Mapping) and isinstance(two, Mapping):
            within = _same({**one, "name": ""}, {**two, "name": ""})
            if within is not None:
                return f"{key}.{within}"
        elif one != two:
            return key
    return None


def _finished(out: Path, header: Mapping[str, Any]) -> Table | None:
    """The table if it is there already; `UsageError` for one that was made otherwise."""
    if not out.is_file():
        return None
    table = Table.read(out)
    differs = _same(table.header, header)
    if differs is not None:
        raise UsageError(f"{out} holds scores with another {differs}: name another file, or delete it")
    return table


class _Parts:
    """The folder of finished groups."""

    def __init__(self, folder: Path, header: Mapping[str, Any]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        known = read_json(folder / "header.json")
        if isinstance(known, dict):
            differs = _same(known, header)
            if differs is not None:
                raise UsageError(f"{folder} was begun with another {differs}: name another file, or delete that folder")
        else:
            write_json(folder / "header.json", dict(header))

    def done(self) -> dict[int, list[Row]]:
        """The finished groups by number."""
        found: dict[int, list[Row]] = {}
        for path in sorted(self.folder.glob("*-*.json")):
            document = read_json(path)
            if isinstance(document, dict):  # what is not, was damaged: its groups are scored again
                found |= {int(block): [(n, s, k) for n, s, k in rows] for block, rows in document.items()}
        return found

    def keep(self, groups: Mapping[int, list[Row]]) -> None:
        """Write some groups, all or none of them."""
        numbers = sorted(groups)
        name = f"{numbers[0]:08d}-{numbers[-1]:08d}-{digest(json.dumps(numbers))[:8]}.json"
        write_json(self.folder / name, {str(block): rows for block, rows in groups.items()})

    def remove(self) -> None:
        """The table is written: nothing here is needed any more."""
        with contextlib.suppress(OSError):
            shutil.rmtree(self.folder)
