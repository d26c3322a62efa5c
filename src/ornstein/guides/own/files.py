"""Files of guide networks: safetensors whose header says what the network is; a card in JSON beside it for readers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ornstein.errors import CheckpointError, OrnsteinError
from ornstein.guides.own.networks import GUIDES, Classifier, Guide
from ornstein.guides.own.towers import MapOf, Summary
from ornstein.storage.files import atomic
from ornstein.storage.reading import parse_json
from ornstein.storage.weights import build_like, read_with_metadata

FOLDER = Path(__file__).parents[2] / "weights" / "guides"
FORMAT = "ornstein-guide-1"


def shipped(kind: str) -> Path:
    """The file of the network that comes with the library."""
    return FOLDER / f"{kind}.safetensors"


def make(kind: str, settings: Mapping[str, Any], seed: int = 0) -> Guide:
    """A network of this kind with first weights that are a pure function of ``seed``."""
    from ornstein.networks.building import initialise

    with torch.random.fork_rng(devices=[]):
        net = GUIDES[kind](**settings)
    return initialise(net, seed)  # type: ignore[return-value]


def begin(net: Guide, source: Classifier) -> None:
    """Start ``net`` where ``source`` has arrived: with all its layers but the last, or with its tower alone."""
    learned = source.summary.seen()
    tower = {name: value for name, value in learned.items() if name.startswith("tower.")}
    for module in net.modules():
        if isinstance(module, Summary | MapOf):
            module.load_state_dict(learned if isinstance(module, Summary) else tower, strict=False)


def frozen(net: Guide) -> Guide:
    """The network in evaluation mode, its weights taking no gradient."""
    return net.eval().requires_grad_(requires_grad=False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def write(net: Guide, path: Path, card: Mapping[str, Any]) -> None:
    """Write the weights in half precision, and ``card`` beside them as ``NAME.json``; both whole or not at all.

    Raises `OSError` where that is impossible.
    """
    from safetensors.torch import save

    path.parent.mkdir(parents=True, exist_ok=True)
    header = {"format": FORMAT, "kind": net.kind, "settings": json.dumps(net.settings)}
    state = {name: tensor.detach().half().contiguous() for name, tensor in net.state_dict().items()}
    data = save(state, metadata=header)
    with atomic(path) as file:
        file.write(data)
    with atomic(path.with_suffix(".json")) as file:
        file.write((json.dumps(dict(card), indent=1, ensure_ascii=False) + "\n").encode())


def read_network(kind: str, path: str | Path | None = None) -> Guide:
    """The network of ``kind`` in ``path``, by default the shipped one: frozen, in evaluation mode, float32, on the CPU.

    Raises `CheckpointError` for a file that is missing, damaged, or holds something else.
    """
    path = shipped(kind) if path is None else Path(path)
    if not path.exists():
        raise CheckpointError(f"no weights at {path}: train some with ornstein train-guide {kind} --out {path}")
    state, header = read_with_metadata(path, remedy="train it again")
    if header.get("format") != FORMAT or header.get("kind") != kind:
        holds = header.get("kind") or "no guide network"
        raise CheckpointError(f"{path} holds {holds}, not {kind}: name a file of ornstein train-guide {kind}")
    try:
        settings = parse_json(header["settings"])
        net = build_like(lambda: make(kind, settings), path)
        _fill(net, state)
    except (OrnsteinError, RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} does not fit its own header ({reason}): train it again") from None
    return frozen(net)


def _fill(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    if not all(bool(tensor.isfinite().all()) for tensor in state.values()):
        raise CheckpointError("a weight is not finite")
    net.load_state_dict({name: tensor.float() for name, tensor in state.items()})
