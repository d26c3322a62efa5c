"""The networks of a diffusers folder: built without memory, compared with their files name by name, then mapped.

diffusers itself fills weights that a file lacks with random numbers, and says so in a log only.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError, UsageError
from ..progress import Progress, counted
from ..storage.reading import load_json
from ..storage.tensor_files import TensorFile, build_from, open_tensors
from .captions import CLIP_ENCODERS
from .loading import diffusers_library, silenced

_GIVE = "copy the folder again"
_BUFFERS = re.compile(r".*(position_ids|logit_scale)")
_OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""Names of attention in autoencoders that were saved before 2023."""
_TEXT = re.compile(r"(text_encoder|tokenizer|image_encoder|feature_extractor)(_\d)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Network:
    """A network of a folder: how it is made and the file of its weights."""

    make: Callable[[], Any]
    file: TensorFile

    def build(self, dtype: torch.dtype, tick: Callable[[], object]) -> Any:
        """The network with its weights."""
        return build_from(
            self.make,
            self.file,
            lambda module: {name: self._known(name) for name in module.state_dict()},
            dtype=dtype,
            unexpected=lambda name: not _BUFFERS.fullmatch(name),
            tick=tick,
        )

    def _known(self, name: str) -> str:
        """The name that a weight has in the file, of those it may have had in older versions of the libraries."""
        shapes = self.file.shapes
        others = [name, f"text_model.{name}", name.removeprefix("text_model.")]
        others += [name.replace(f".{new}.", f".{old}.") for new, old in _OLD.items() if f".{new}." in name]
        return next((other for other in others if other in shapes), name)


def networks_of(
    folder: Path, index: Mapping[str, Any], *, dtype: torch.dtype, without: tuple[str, ...], progress: Progress
) -> dict[str, Any]:
    """Parts of the pipeline in ``folder`` for diffusers' ``from_pretrained``: networks, and None for what is left out.

    Args:
        folder: of a pipeline.
        index: its model_index.json.
        dtype: of the weights.
        without: names of text encoders to leave out.
        progress: see `ornstein.sample`; counts tensors.

    Raises:
        CheckpointError: weights that are missing, left over or damaged, by name.
        UsageError: something to leave out that is no text encoder of the pipeline.
    """
    for name in without:
        if not _TEXT.fullmatch(name) or name not in index:
            known = [one for one in index if one.startswith("text_encoder")]
            raise UsageError(
                f"without={name!r} is no text encoder of this pipeline: {', '.join(known) or 'it has none'}"
            )
    lost = _left_out(folder, index, without)
    networks = {name: network for name, network in _networks(folder, index) if name not in lost}
    total = sum(len(network.file.shapes) for network in networks.values())
    out: dict[str, Any] = dict.fromkeys(lost)
    with ExitStack() as stack:
        tick = stack.enter_context(counted(progress, lambda: total, "loading", " tensors"))
        stack.enter_context(silenced())
        out |= {name: network.build(dtype, tick) for name, network in networks.items()}
    return out


def _left_out(folder: Path, index: Mapping[str, Any], without: tuple[str, ...]) -> list[str]:
    """Text encoders that are to be left out or are not there, with their tokenizers."""
    named = [name for name, kind in index.items() if _TEXT.fullmatch(name) and isinstance(kind, list) and kind[0]]
    gone = [name for name in named if not (folder / name).is_dir()]
    for name in gone:
        if name.startswith("text_encoder") and name not in without:
            warnings.warn(f"{folder} has no {name}: prompts are read without it", stacklevel=5)
    lost = {*gone, *without}
    lost |= {name.replace("text_encoder", "tokenizer") for name in lost if name.startswith("text_encoder")} & set(index)
    return sorted(lost)


def _networks(folder: Path, index: Mapping[str, Any]) -> Iterator[tuple[str, _Network]]:
    library = diffusers_library()
    for name, kind in index.items():
        if not isinstance(kind, list) or len(kind) != 2 or not (folder / name / "config.json").is_file():
            continue
        part, config = folder / name, load_json(folder / name / "config.json", CheckpointError, _GIVE)
        if kind[0] == "diffusers":
            found = getattr(library, str(kind[1]), None)
            if not isinstance(found, type) or not issubclass(found, library.ModelMixin):
                continue
            make, stem = _maker(found, config), "diffusion_pytorch_model"
        elif kind[0] == "transformers" and kind[1] in CLIP_ENCODERS:
            make, stem = _clip(str(kind[1]), config), "model"
        else:
            continue
        if (weights := _weights(part, stem)) is not None:
            yield name, _Network(make=make, file=open_tensors(weights, _GIVE))


def _maker(kind: Any, config: Any) -> Callable[[], Any]:
    return lambda: kind.from_config(config)


def _clip(name: str, config: Any) -> Callable[[], Any]:
    import transformers

    return lambda: getattr(transformers, name)(transformers.CLIPTextConfig.from_dict(config))


def _weights(part: Path, stem: str) -> Path | None:
    """The weights of a part: the plain ones before a variant (``.fp16``), one file before an index of several."""
    found = [path for path in part.glob(f"{stem}*") if path.name.endswith(".safetensors")]
    whole = sorted((path for path in found if "-of-" not in path.name), key=lambda path: len(path.name))
    indices = sorted(part.glob(f"{stem}*.index*.json"), key=lambda path: len(path.name))
    indices = [path for path in indices if "safetensors" in path.name]
    return (whole or indices or [None])[0]
