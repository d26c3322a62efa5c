"""Networks of transformers from a local folder or the Hugging Face cache: nothing is ever downloaded here."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ornstein.errors import CheckpointError, ConfigError

from .files import read_json


def find_folder(where: str | Path, what: str) -> Path:
    """The folder of ``where``: a path, or the name of a repository (owner/name) that is in the Hugging Face cache."""
    folder = Path(where).expanduser()
    if folder.is_dir():
        return folder
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise ConfigError(f"{what} needs the package transformers: pip install transformers") from error
    try:
        return Path(snapshot_download(str(where), local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        remedy = f"`hf download {where}` once, or give" if str(where).count("/") == 1 else "give"
        raise CheckpointError(
            f"no {what} at {str(where)!r}, neither a folder nor in the Hugging Face cache: "
            f"{remedy} the path of its folder"
        ) from None


def load_pretrained(kind: str, folder: Path, what: str) -> Any:
    """The transformers model of class ``kind`` in ``folder``: float32, from safetensors alone, complete.

    Raises `CheckpointError` where the folder holds another architecture, damaged weights, or not all of them.
    """
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(f"{what} needs the package transformers: pip install transformers") from error
    found = _config(folder) if _has_config(folder) else None
    wanted = getattr(transformers, kind)
    if not isinstance(found, wanted.config_class):
        got = "no readable config.json" if found is None else f"a {found.model_type} network"
        raise CheckpointError(f"{folder} holds {got}, not {what}: give the folder of {wanted.config_class.__name__}")
    if not weight_files(folder):
        raise CheckpointError(f"{folder} holds no .safetensors weights of {what}: only these are loaded")
    log = transformers.logging
    level, bar = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        model, info = wanted.from_pretrained(
            folder,
            config=found,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            dtype="float32",
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"the weights in {folder} cannot be read as {what} ({_line(error)})") from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        raise CheckpointError(f"the weights in {folder} are damaged ({_line(error)})") from error
    finally:
        log.set_verbosity(level)
        if bar:
            log.enable_progress_bar()
    missing = sorted(info["missing_keys"])
    if missing:
        raise CheckpointError(f"{folder} lacks {len(missing)} weights of {what}, such as {missing[0]}")
    return model


def weight_files(folder: Path) -> Sequence[Path]:
    """The safetensors files of a model's folder."""
    return sorted(folder.glob("*.safetensors"))


def digest_of(folder: Path) -> str:
    """The first eight digits of the SHA-256 of a model's weights: what tells two checkpoints of one size apart."""
    state = hashlib.sha256()
    for path in weight_files(folder):
        with path.open("rb") as file:
            while part := file.read(1 << 24):
                state.update(part)
    return state.hexdigest()[:8]


def _config(folder: Path) -> Any:
    """The network's configuration. A folder may name code of its own to be run: it is neither run nor asked about."""
    import transformers

    try:
        return transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"{folder / 'config.json'} is of no network that can be read ({_line(error)})") from error


def _has_config(folder: Path) -> bool:
    found = read_json(folder / "config.json")
    return isinstance(found, dict) and "model_type" in found


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
