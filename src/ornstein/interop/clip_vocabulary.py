"""CLIP's byte-pair vocabulary: found on this machine, and made into the two tokenizers of SDXL.

A single file of weights holds no vocabulary. The published one (49,408 tokens) is ``vocab.json`` and ``merges.txt`` of
any pipeline with CLIP, or ``bpe_simple_vocab_16e6.txt.gz``, which the package ``open_clip_torch`` brings.
"""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..storage.reading import MIB, Refused, load_json, read_bytes, read_text, reason_of, text_of, unreadable
from .loading import offline, silenced

START, END, LENGTH = "<|startoftext|>", "<|endoftext|>", 77
_BPE = "bpe_simple_vocab_16e6.txt.gz"
_MERGES = 49152 - 256 - 2
_LARGEST = 16 * MIB
_HUB = "openai/clip-vit-large-patch14"
_REMEDY = f"give vocabulary=, a folder with vocab.json and merges.txt or the file {_BPE}"


def find_vocabulary(beside: Path | None = None) -> str | None:
    """The place of CLIP's vocabulary: a folder ``tokenizer`` beside a file, the package open_clip, or the Hub's name.

    None where there is none, and the Hub is not to be asked.
    """
    if beside is not None:
        for name in ("tokenizer", "tokenizer_2", "."):
            if (beside / name / "vocab.json").is_file() and (beside / name / "merges.txt").is_file():
                return str(beside / name)
    found = importlib.util.find_spec("open_clip")
    for place in [] if found is None else found.submodule_search_locations or []:
        if (Path(place) / _BPE).is_file():
            return str(Path(place) / _BPE)
    return None if offline() else _HUB


def clip_tokenizers(where: str | Path) -> tuple[Any, Any]:
    """The tokenizers of SDXL's first and second text encoder: one vocabulary, padded by its end and by "!" (token 0).

    Args:
        where: a folder with vocab.json and merges.txt, the file of merges (.txt or .txt.gz), or a name on the Hub.

    Raises:
        UsageError: no vocabulary there, or a damaged one.
    """
    from transformers import CLIPTokenizer

    path = Path(where).expanduser()
    if not path.exists():
        try:
            with silenced():
                one = CLIPTokenizer.from_pretrained(str(where))
                return one, CLIPTokenizer.from_pretrained(str(where), pad_token="!")  # noqa: S106 - a word
        except (OSError, ValueError) as error:
            raise UsageError(
                f"no vocabulary of CLIP could be read from {where} ({reason_of(error)}): {_REMEDY}"
            ) from None
    vocabulary, merges = _folder(path) if path.is_dir() else _published(path)
    pairs: Any = merges  # its annotation names strings alone, and it takes pairs
    with silenced():
        return tuple(
            CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=LENGTH, pad_token=pad) for pad in (END, "!")
        )  # type: ignore[return-value]


def _folder(path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    vocabulary = load_json(path / "vocab.json", UsageError, _REMEDY, limit=_LARGEST)
    try:
        merges = _pairs(read_text(path / "merges.txt", _LARGEST))
    except (OSError, ValueError) as error:
        raise unreadable(path / "merges.txt", error, UsageError, _REMEDY) from None
    return vocabulary, merges


def _published(path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The vocabulary that the file of merges stands for: bytes, bytes that end a word, merges, and the two ends."""
    try:
        data = read_bytes(path, _LARGEST)
        if data.startswith(b"\x1f\x8b"):
            with gzip.open(path) as file:
                data = file.read(_LARGEST + 1)
        if len(data) > _LARGEST:
            raise Refused("it unpacks to more than a vocabulary can have")
        merges = _pairs(text_of(data))[:_MERGES]
    except (OSError, ValueError, EOFError) as error:
        raise unreadable(path, error, UsageError, _REMEDY, "is no vocabulary of CLIP") from None
    letters = byte_letters()
    words = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges), START, END]
    return {word: number for number, word in enumerate(words)}, merges


def byte_letters() -> list[str]:
    """A printable letter for each byte in the order of the vocabulary: those that are printable, then the others."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + number) for number in range(len(hidden))]


def _pairs(text: str) -> list[tuple[str, str]]:
    """The merges of a file, without its first line, which is a version."""
    pairs = [tuple(line.split()) for line in text.splitlines()[1:] if line.strip()]
    if any(len(pair) != 2 for pair in pairs):
        raise Refused("a merge is two words")
    return [(pair[0], pair[1]) for pair in pairs]
