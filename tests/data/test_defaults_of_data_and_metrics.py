"""What is taken where nothing is said: one table for data, latents, metrics and other people's models.

A default is part of a published number: who changes one changes every result that did not name it. Numbers of metrics
are those of their papers: KID of Bińkowski et al. 2018 and Parmar et al. 2022, IS of Salimans et al. 2016, LPIPS
diversity of Zhu et al. 2017, precision and recall of Kynkäänniemi et al. 2019, density and coverage of Naeem et al.
2020, the rarity score of Han et al. 2022; latents have the deviation 0.5 of Karras et al. 2022.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

TABLE = """
    data.base.Example: label=-1
    data.decode.decode: name='image'
    data.embedded.open_drawn: count=4096
    data.folder.Entry: label=-1
    data.loader.Order: shuffle=True
    data.loader.batches: start=0, workers=0, rank=0, world=1, flip=False, shuffle=True
    data.pictures.grid: gap=2
    data.remembered.Remembered: limit=1073741824
    interop.consistency.LatentConsistency: scaling=10.0
    interop.consistency.few_step_grids: gamma=0.3
    interop.diffusers.from_pipeline: bound=True, progress=False
    interop.diffusers.DiffusersModel.cond: crop=(0, 0), score=6.0
    interop.diffusers.DiffusersModel.null: rows=1, score=2.5
    interop.diffusers.DiffusersModel: images=0
    interop.lora.load_lora: scale=1.0
    interop.memory.weights_in: dtype=torch.float32
    interop.modular.loop: sampler='dpmpp-2m'
    interop.opened.OpenedModel.null: rows=1
    interop.opened.OpenedModel: images=0
    interop.opened.PlainModel.null: rows=1
    interop.opened.PlainModel: images=0, labels=0
    interop.pipeline_networks.state_shape: patch=1
    interop.refined.RefinedModel.cond: crop=(0, 0), score=6.0
    interop.refined.RefinedModel.null: rows=1, score=2.5
    interop.refined.RefinedModel: images=0
    interop.schedulers.Bounded: bound=1.0, most=1.0
    interop.schedulers.from_scheduler_config: bound=True
    interop.seeds.noise_of: shared=0
    interop.single_file.open_single_file: dtype=torch.float32, progress=False
    interop.udpm.load_denoiser: rule='published', device='cpu'
    interop.udpm.open_checkpoint: device='cpu'
    latents.codec.Identity: factor=1, channels=3, fingerprint='identity'
    latents.codec.Normalisation.of: shift=0.0, scale=1.0
    latents.codec.KLCodec.tiled: side=64, overlap=16
    latents.codec.normalisation: std=0.5
    latents.dataset.latents: by='element', std=0.5, draws=True, device='cpu'
    latents.tiles.Tiles: side=64, overlap=16
    metrics.blocks.Block: skipped=0
    metrics.blocks.blocks: rank=0, world=1
    metrics.catalogue.features: name='lite0', device='cpu'
    metrics.classes.InceptionScoreSums: splits=10
    metrics.clip.Clip: device='cpu'
    metrics.dino.dinov2: device='cpu'
    metrics.diversity.DiversityMeter: pairs=500
    metrics.diversity.DiversityMeter.result: device='cpu'
    metrics.features.NetworkFeatures: heads=('pooled',), device='cpu'
    metrics.features.lite0: device='cpu'
    metrics.features.inception: device='cpu'
    metrics.inceptionv3.Conv: stride=1, padding=0
    metrics.kernel.Sample: capacity=5000
    metrics.manifold.manifold: k_precision=3, k_density=5
    metrics.manifold.expected_coverage: k=5
    metrics.measure.needs: side='ours'
    metrics.pairs.distance: name='lite0', device='cpu'
    metrics.perceptual.PerceptualDistance: normalise=True, side=64, scales=1
    metrics.perceptual.PerceptualDistance.train: mode=True
    metrics.perceptual.lpips: backbone='lite0', side=64, scales=1
    metrics.perceptual.matching: mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), normalise=False, side=64, \
scales=1
    metrics.rarity.rarity: k_average=5, k_outlier=20, k_rarity=3
    metrics.reconstruction.reconstruction: count=256, batch=16, device='cpu'
    metrics.retrieval.retrieval: k=5
    metrics.score.Report: skipped=0
    metrics.sets.Statistics: skipped=0, parts=frozenset({0}), world=1
    metrics.sets.statistics: rank=0, world=1, capacity=5000
    metrics.sets.Collector: rank=0, world=1, capacity=5000
    metrics.vectors.nearest: same=False
    storage.reading.Clamped.read: size=-1
    storage.reading.Clamped.seek: whence=0
    storage.reading.lines_of: limit=1073741824
    storage.reading.load_json: limit=16777216, must_hold=<class 'dict'>
    storage.reading.read_text: limit=16777216
    storage.reading.unreadable: what='cannot be read'
    storage.weights.fill: exact=False
    storage.weights.read_arrays: remedy='copy it again'
    storage.weights.read_tensors: error=<class 'ornstein.errors.CheckpointError'>, remedy='copy it again'
    storage.weights.read_with_metadata: error=<class 'ornstein.errors.CheckpointError'>, remedy='copy it again'
    runs.codecs.open_codec: device='cpu', dtype=torch.float32
    runs.codecs.save_codec: named=False
    runs.formats.ModelFormat: averages=False, local=True
    runs.formats.load: ema=True
    runs.formats.open_run: ema=True
    runs.open.TrainedModel.null: rows=1
    runs.open.open_own: ema=True, device='cpu'
    runs.open.export: half=True
    runs.open.TrainedModel: images=0
    runs.places.read_run: ema=True
    runs.places.exists: file=False
    runs.rarity.load: ema=True, device='cpu'
"""


def stated(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Functions, classes and methods that a module defines for others."""
    for name, value in vars(module).items():
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__:
            yield name, value
            if inspect.isclass(value):
                yield from ((f"{name}.{part}", one) for part, one in vars(value).items() if not part.startswith("_"))


def takes_what_builtins_take(thing: Any) -> bool:
    """Whether it is an exception or a dictionary that is made as the built-in one is, which has no signature."""
    return inspect.isclass(thing) and issubclass(thing, Exception | dict) and not inspect.isfunction(thing.__init__)


def defaults(package: str) -> Iterator[str]:
    """One line for each of them that takes something where nothing is said; messages and absent things left out."""
    home = importlib.import_module(f"ornstein.{package}")
    for found in pkgutil.iter_modules(home.__path__):
        for name, value in stated(importlib.import_module(f"ornstein.{package}.{found.name}")):
            thing = getattr(value, "__func__", value)
            if not callable(thing) or takes_what_builtins_take(thing):
                continue
            parameters = inspect.signature(thing).parameters.values()
            said = {
                p.name: p.default for p in parameters if p.default is not p.empty and p.name not in ("give", "where")
            }
            said = {
                key: one
                for key, one in said.items()
                if one not in (None, "", ()) and not re.search("factory|<lambda>", repr(one))
            }
            if said:
                yield f"{package}.{found.name}.{name}: " + ", ".join(f"{key}={one!r}" for key, one in said.items())


@pytest.mark.parametrize("package", ["data", "interop", "latents", "metrics", "storage", "runs"])
def test_what_is_taken_where_nothing_is_said(package: str) -> None:
    expected = [line.strip() for line in TABLE.replace("\\\n", "").strip().splitlines()]
    assert sorted(defaults(package)) == sorted(line for line in expected if line.startswith(f"{package}."))
