"""`ornstein eval` of a codec: how much of the pictures is left after encoding and decoding."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from ..errors import UsageError
from .output import emit_json, note, say

if TYPE_CHECKING:
    from .eval_args import EvalArgs


def reconstruct(args: EvalArgs) -> int:
    """Measure PSNR, absolute error and the perceptual distance of reconstructions, and print them."""
    from ..data import open_source
    from ..metrics.perceptual import lpips
    from ..metrics.reconstruction import reconstruction
    from ..runs import open_codec, usable_device

    if args.other is not None and args.reference is not None:
        raise UsageError(f"the data is named twice, {args.other} and --reference {args.reference}: name it once")
    device = usable_device(args.device)
    codec = open_codec(args.what, device=device)
    where = args.other or args.reference or "critters"
    size = args.size or _size(args.what)
    if size % codec.factor:
        raise UsageError(f"--size {size} does not divide by {codec.factor}, as the codec needs")
    source = open_source(where, size=size)
    note(f"reconstructing {min(args.n, len(source))} images of {where}")
    metric = lpips(args.lpips).to(device)
    found = reconstruction(codec, source, count=args.n, batch=args.batch, metric=metric, device=device)
    result = {"what": args.what, "reference": where, **asdict(found)}
    result |= {"resolution": [size, size], "factor": codec.factor, "channels": codec.channels}
    if args.json:
        emit_json(result)
        return 0
    for key, value in result.items():
        say(f"{key:<16} {value}")
    return 0


def _size(what: str) -> int:
    """The side that an autoencoder of ours was trained on; 64 for others."""
    from ..errors import CheckpointError
    from ..runs import read_run

    try:
        return read_run(what).spec.shape[-1]
    except CheckpointError:
        return 64
