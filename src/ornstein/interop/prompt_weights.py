"""Weights inside a prompt: ``a (red:1.3) fox`` says "red" with a weight of 1.3.

    z ← z_∅ + w·(z − z_∅)

for the states z of the words inside the parentheses, z_∅ being the states of the empty prompt at the same places. A
weight of 1 changes nothing, to the bit; 0 takes the words' own states away. Weights inside each other multiply.
Parentheses without a number are ordinary text, and a backslash keeps any parenthesis from being read: ``\\(``.
"""

from __future__ import annotations

import re

from ..errors import UsageError

_TOKEN = re.compile(r"\\[()\\]|\(|:\s*[-+]?\d*\.?\d+\s*\)|\)|[^\\():]+|.", re.DOTALL)
_LARGEST = 100.0


def parse_weights(prompt: str) -> list[tuple[str, float]]:
    r"""The stretches of a prompt and their weights.

    Raises:
        UsageError: a weight of 100 or more in size.

    >>> parse_weights("a (red (small:0.5):1.2) fox (sitting)")
    [('a ', 1.0), ('red ', 1.2), ('small', 0.6), (' fox (sitting)', 1.0)]
    >>> parse_weights(r"\(word:1.2\)")
    [('(word:1.2)', 1.0)]
    """
    levels: list[list[tuple[str, float]]] = [[]]
    for match in _TOKEN.finditer(prompt):
        piece = match[0]
        if piece == "(":
            levels.append([])
        elif piece.startswith(":") and piece.endswith(")") and len(levels) > 1:
            weight = float(piece[1:-1])
            if abs(weight) >= _LARGEST:
                raise UsageError(f"a weight in a prompt lies below {_LARGEST:g} in size, got {piece[1:-1].strip()}")
            inside = levels.pop()
            levels[-1] += [(text, value * weight) for text, value in inside]
        elif piece == ")" and len(levels) > 1:
            inside = levels.pop()
            levels[-1] += [("(", 1.0), *inside, (")", 1.0)]
        else:
            levels[-1].append((piece[1:] if piece[0] == "\\" and len(piece) == 2 else piece, 1.0))
    while len(levels) > 1:  # an opening parenthesis without its end is text
        inside = levels.pop()
        levels[-1] += [("(", 1.0), *inside]
    return _merged(levels[0])


def _merged(parts: list[tuple[str, float]]) -> list[tuple[str, float]]:
    out: list[tuple[str, float]] = []
    for text, weight in parts:
        weight = round(weight, 12)
        if out and out[-1][1] == weight:
            out[-1] = (out[-1][0] + text, weight)
        else:
            out.append((text, weight))
    return out or [("", 1.0)]
