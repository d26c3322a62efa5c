"""The tables of docs/reference/command.md, from the parser: names, values, defaults and sentences of all options.

    python tools/command_page.py            write them again
    python tools/command_page.py --check    name the first difference, and end with 1

What stands between the tables is written by hand. So is the order of the rows; a new option becomes the last row of the
table of its section, and one that is gone loses its row.
"""

from __future__ import annotations

import importlib
import re
import sys
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from ornstein.cli.main import COMMANDS
from ornstein.cli.parameters import Parameter, parameters
from ornstein.training.methods import METHODS

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "command.md"
SECTIONS: dict[str, list[str]] = {  # section: words before --help
    "ornstein methods": ["methods"],
    "ornstein demo": ["demo"],
    "ornstein train METHOD": ["train", "ddpm"],
    "--network unet": ["train", "ddpm", "--network", "unet"],
    "--network dit": ["train", "ddpm", "--network", "dit"],
    # ict, cm and ect are slct with other defaults.
    **{f"ornstein train {name}": ["train", name] for name in METHODS if name not in {"ddpm", "ict", "cm", "ect"}},
    "ornstein score RUN": ["score"],
    "ornstein train-guide KIND": ["train-guide"],
    "ornstein sample RUN": ["sample"],
    "ornstein guides": ["guides"],
    "ornstein eval WHAT": ["eval"],
    "ornstein tune-steps RUN": ["tune-steps"],
    "ornstein rates": ["rates"],
    "ornstein reproduce": ["reproduce"],
}
NOTES = {  # by section and option, what the page adds to the sentence of the help
    "ornstein train METHOD": {
        "--minutes": "The plan is said and written into the run: [minutes](../how-to/train-on-your-images.md).",
        "--codec": "See [latents](../how-to/train-in-latents.md).",
    },
    "ornstein train slct": {
        "--init-from": "Its path, predicts, network and condition are then used.",
        "--sigma-min": "0 needs `--objective.spacing ratio`.",
    },
    "ornstein train cas-dm": {
        "--front": "A pipeline must be one of pixels. Its path, predicts, network and condition are then used.",
    },
    "ornstein train rarity-classifier": {"--head": "The Gaussian keeps the order of the classes."},
    "ornstein score RUN": {"--shard": "The call that finishes last puts the table together."},
    "ornstein sample RUN": {
        "--sampler": "See [samplers](samplers.md) and [one of your own](../how-to/add-a-sampler.md).",
        "--interpolate": "The first and the last are those images.",
        "--resample-level": "See [udpm](../methods/udpm.md).",
        "--label": '`--label ""` draws without a label. Images of `--interpolate` and `--resample-level` have none by '
        "default.",
        "--prompt": "`--caption` is the same.",
        "--guidance-scale": "Other numbers evaluate the network twice. See [guidance](../how-to/guide-a-model.md).",
        "--guidance": "See [the list](guidance.md#on-the-command-line).",
        "--guide": 'Such as `segmentation:mask.png:400` or `text:"a green critter":10`; see [guides](guides.md).',
        "--prior-scale": "See [Boost-and-Skip](../methods/minority-guidance.md#without-a-classifier).",
        "--init": "See [edit pictures](../how-to/edit-pictures.md).",
    },
    "ornstein eval WHAT": {
        "--n": "They are spread evenly over the set.",
        "--k": "Precision and recall take 3, density and coverage 5.",
        "--reference-statistics": "With DATA as well, the file is compared with it.",
    },
}
CELL = re.compile(r"(?<!\\)\|")
HEAD = "| option | value | default | meaning |"


def kind_of(command: str) -> Any:
    """The options of a command as a dataclass."""
    module, name, *_ = COMMANDS[command]
    return getattr(importlib.import_module(f"ornstein.cli.{module}"), name)


def shown(words: list[str]) -> dict[str, Parameter]:
    """The options of a command that its help shows, by their names."""
    command, *rest = words
    kind = METHODS[rest[0]].configuration if command == "train" else kind_of(command)
    chosen = {("network",): rest[2]} if rest[2:] else {}
    return {one.flag: one for one in parameters(kind, chosen) if not one.option.positional and not one.option.hidden}


def options_of(title: str) -> dict[str, Parameter]:
    """The options whose rows a section holds."""
    found = shown(SECTIONS[title])
    if title.startswith("--network"):
        return {flag: one for flag, one in found.items() if flag.startswith("--network.")}
    if title == "ornstein train METHOD":
        return {flag: one for flag, one in found.items() if not flag.startswith("--network.")}
    if title.startswith("ornstein train "):  # what it has beside the options of ddpm
        plain = shown(SECTIONS["ornstein train METHOD"])
        own = title == "ornstein train autoencoder"  # its network is no U-Net
        return {
            flag: one for flag, one in found.items() if flag not in plain or (own and flag.startswith("--network."))
        }
    return found


def row(one: Parameter, title: str) -> str:
    """The line of an option."""
    value = ", ".join(one.allowed) or re.sub("(?<=[A-Z])…$", " …", one.value) or "flag"
    default = "required" if one.default is MISSING else one.standard or ("–" if one.most else "off")
    text = " ".join([sentence(one.text), *filter(None, [NOTES.get(title, {}).get(one.flag)])])
    return f"| `{one.flag}` | {escaped(value)} | {default} | {escaped(text)} |"


def sentence(text: str) -> str:
    """A sentence of the help in Markdown: options and import paths are code."""
    return re.sub(r"(?<![`\w-])(--[a-z][\w-]*(?:\.[\w-]+)*|package\.module:Class)", r"`\1`", text)


def escaped(cell: str) -> str:
    """A cell that is not two."""
    return re.sub(r"(?<!\\)\|", r"\|", cell)


def flag_of(line: str) -> str:
    """The option of a row; empty for other lines."""
    return CELL.split(line)[1].strip().strip("`") if line.startswith("| `--") else ""


def written(text: str) -> str:
    """The page with its rows as the parser has them."""
    parts = [part.splitlines() for part in re.split(r"(?m)^(?=##+ )", text)]
    homes: dict[str, list[int]] = {}  # the parts of each section: subheadings without options of their own belong to it
    title = ""
    for i, lines in enumerate(parts):
        heading = lines[0].lstrip("#").strip().replace("`", "")
        own = [name for name in SECTIONS if heading == name or heading.startswith((f"{name} ", f"{name}:"))]
        title = own[0] if own else "" if lines[0].startswith("## ") else title
        if title:
            homes.setdefault(title, []).append(i)
    for title, places in homes.items():
        left = options_of(title)
        for i in places:
            kept = [(line, flag_of(line)) for line in parts[i]]
            parts[i] = [row(left.pop(flag), title) if flag else line for line, flag in kept if not flag or flag in left]
        if left:
            last = max(i for i in places if HEAD in parts[i])
            end = max(i for i, line in enumerate(parts[last]) if line.startswith("|"))
            parts[last][end + 1 : end + 1] = [row(one, title) for one in left.values()]
    return "\n".join(line for lines in parts for line in lines) + "\n"


def main() -> int:
    """Write or check."""
    before = PAGE.read_text("utf-8")
    after = written(before)
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(after, "utf-8")
        return 0
    for old, new in zip(before.splitlines(), after.splitlines(), strict=False):
        if old != new:
            print(f"{PAGE} has\n  {old}\nand the help says\n  {new}\nwrite it again: python tools/command_page.py")
            return 1
    return int(before != after)


if __name__ == "__main__":
    raise SystemExit(main())
