"""Files of published weights: their names, and where they are looked for."""

from __future__ import annotations

from pathlib import Path

import torch

from ..errors import CheckpointError


def weights_file(given: str | None, name: str, what: str) -> Path:
    """The file that was given, or the published one in torch hub's cache.

    Raises `CheckpointError` where there is none.
    """
    if given is not None:
        path = Path(given).expanduser()
        if not path.is_file():
            raise CheckpointError(f"no weights of {what} at {given!r}: give the path of {name}")
        return path
    found = hub_file(name)
    if found is None:
        raise CheckpointError(
            f"no weights of {what}: download {name} and give its path (KIND=standard:PATH), or put it into "
            f"{Path(torch.hub.get_dir()) / 'checkpoints'}"
        )
    return found


LRASPP_FILE = "lraspp_mobilenet_v3_large-d234d4ea.pth"


FASTER_RCNN_FILE = "fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth"


RESNET_FILE = "resnet50-11ad3fa6.pth"


FACENET_FILE = "20180402-114759-vggface2.pt"


def hub_file(name: str) -> Path | None:
    """A published file in torch hub's cache, or None."""
    for folder in (Path(torch.hub.get_dir()) / "checkpoints", Path("~/.cache/torch/checkpoints").expanduser()):
        if (folder / name).is_file():
            return folder / name
    return None
