"""Podell et al. 2023 (arXiv 2307.01952), part one: what of SDXL can be tested without its weights.

The networks are built in their full size on the meta device, without numbers, or small with random ones. What needs
the published weights, or people, has no verdict and names the command that would test it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..cells import Cells
from ..orders import verdict
from ..record import Budget, Claim, Finding, Findings, Table
from . import cells as measure
from .claims import CLAIMS, STRUCTURE
from .networks import PARTS

SOURCE = "arXiv 2307.01952"
DIGESTS = {"base": "9556a38d644b6b53", "refiner": "33876647fb4e4a93", "autoencoder": "600696bc94ffc80f"}
"""Of the names and shapes of the published files (`networks.digest`)."""
RULES, GRIDS, COUNTS = ("ddim", "euler"), ("uniform", "karras"), (50, 40, 30, 25)
MISSING = "needs the packages diffusers and transformers: pip install 'ornstein[diffusers]'"
_SAMPLE = 'ornstein sample sd_xl_base_1.0.safetensors --size 1024x1024 --guidance-scale 5 --prompt "…"'
_REFINED = f"{_SAMPLE} --refiner sd_xl_refiner_1.0.safetensors"
_SIZED = "model.cond([…], {}) of ornstein.load('sd_xl_base_1.0.safetensors'), for two values and one seed"

Facts = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SDXLExperiment:
    """The experiment; see the module's text."""

    name: str = "sdxl"
    title: str = "SDXL, without its weights"
    arxiv: str = "2307.01952"
    version: int = 1

    @property
    def claims(self) -> Mapping[str, Claim]:
        """What is known of every claim beforehand."""
        return CLAIMS

    def run(self, cells: Cells, budget: Budget) -> Findings:
        """All claims; every budget measures all of them, which takes a minute or two."""
        del budget
        rows = [{"rule": rule, "grid": grid, "steps": n} for rule in RULES for grid in GRIDS for n in COUNTS]
        relays = cells.map(measure.handed_over, rows)
        joined, tables = [_levels(relays), _handover(relays)], [_relay_table(rows, relays)]
        if any(importlib.util.find_spec(package) is None for package in ("diffusers", "transformers")):
            known = [one.claim for one in joined]
            left = [text for text in STRUCTURE if not any(claim.startswith(text) for claim in known)]
            return Findings(findings=[*map(_missing, left), *joined, *_outcomes()], tables=tables)
        measured: Any = cells.map(measure.network, [{"part": part} for part in PARTS])
        nets: dict[str, Facts] = dict(zip(PARTS, measured, strict=True))
        findings = [
            _parameters(nets),
            _depths(nets),
            _encoders(nets),
            _context(nets),
            _sizes(nets, cells(measure.sizes)),
        ]
        findings += [_formats(cells(measure.formats)), _autoencoder(nets), *joined, *_outcomes()]
        return Findings(findings=findings, tables=[_network_table(nets), *tables], notes=_notes())


def _parameters(nets: Mapping[str, Facts]) -> Finding:
    base = nets["base"]
    good = round(base["parameters"] / 1e9, 1) == 2.6 and base["digest"] == DIGESTS["base"]
    return Finding(
        claim="The U-Net has 2.6 billion parameters",
        source=f"{SOURCE}, table 1",
        expected="2.6 billion to two digits, with the names and shapes of the published file",
        measured=f"{base['parameters']:,} in {base['tensors']} tensors, digest {base['digest']}",
        **verdict(good, "another count, or other names"),
        value=float(base["parameters"]),
    )


def _depths(nets: Mapping[str, Facts]) -> Finding:
    base = nets["base"]
    return Finding(
        claim="Its transformer blocks lie at the lower resolutions, none at the full one: 0, 2 and 10 in each slot, at "
        "widths of 1, 2 and 4 times 320",
        source=f"{SOURCE}, table 1",
        expected="[0, 2, 10] blocks and multipliers [1, 2, 4], read from the network that has the published names",
        measured=f"blocks {list(base['depths'])}, multipliers {list(base['multipliers'])}",
        **verdict(list(base["depths"]) == [0, 2, 10] and list(base["multipliers"]) == [1, 2, 4], "they differ"),
        value=float(base["depths"][-1]),
    )


def _encoders(nets: Mapping[str, Facts]) -> Finding:
    first, second = (nets[part]["parameters"] for part in ("clip-l", "clip-g"))
    return Finding(
        claim="The two text encoders have 817 million parameters together",
        source=f"{SOURCE}, section 2.1",
        expected="817 million, without what follows the point",
        measured=f"{first:,} of CLIP ViT-L and {second:,} of OpenCLIP ViT-bigG: {first + second:,}",
        **verdict(int((first + second) / 1e6) == 817, "another count"),
        value=float(first + second),
    )


def _context(nets: Mapping[str, Facts]) -> Finding:
    base, refiner = nets["base"], nets["refiner"]
    good = (base["context"], refiner["context"]) == (768 + 1280, 1280)
    return Finding(
        claim="The context of a token joins both encoders, 768 and 1280 numbers",
        source=f"{SOURCE}, table 1",
        expected="cross-attention that reads 2048 numbers in the base, and 1280 of the second encoder in the refiner",
        measured=f"{base['context']} and {refiner['context']}",
        **verdict(good, "another width"),
        value=float(base["context"]),
    )


def _sizes(nets: Mapping[str, Facts], found: Facts) -> Finding:
    base, refiner = nets["base"], nets["refiner"]
    wide = base["label"] == 1280 + 6 * base["sinusoid"] and refiner["label"] == 1280 + 5 * refiner["sinusoid"]
    good = wide and found["own"] == 6 and found["gap"] < 1e-3
    return Finding(
        claim="Size, crop and target size enter as sinusoids of each number, joined to the pooled text and added to "
        "the embedding of time",
        source=f"{SOURCE}, section 2.2, algorithm 1",
        expected="1280 + 6·256 numbers in the base and 1280 + 5·256 in the refiner; each number changes its own "
        "sinusoid alone, within .001 of the closed form",
        measured=f"{base['label']} and {refiner['label']} numbers; {found['own']:g} of 6 change their own alone; gap "
        f"{found['gap']:.1e}",
        **verdict(good, "another width, another place or another form"),
        value=float(base["label"]),
    )


def _formats(found: Facts) -> Finding:
    good = found["formats"] == found["whole"] == found["kept"] == 40 and 0.9 < found["least"] <= found["most"] <= 1.0
    return Finding(
        claim="Forty formats of about a megapixel, from 512 × 2048 to 2048 × 512, go through one network",
        source=f"{SOURCE}, section 2.3 and appendix I",
        expected="40 formats, their sides multiples of 64 and their areas .9 to 1 of 1024², each kept by a U-Net of "
        "the base's structure",
        measured=f"{found['formats']:g} formats, {found['whole']:g} of whole multiples, {found['kept']:g} kept; areas "
        f"{found['least']:.3f} to {found['most']:.3f} of 1024²",
        **verdict(good, "a format is missing, is changed or has another area"),
        value=float(found["kept"]),
    )


def _autoencoder(nets: Mapping[str, Facts]) -> Finding:
    found = nets["autoencoder"]
    return Finding(
        claim="The autoencoder has the architecture of Stable Diffusion's",
        source=f"{SOURCE}, section 2.4",
        expected="Stable Diffusion's configuration gives the names and shapes of SDXL's published autoencoder",
        measured=f"{found['parameters']:,} parameters in {found['tensors']} tensors, digest {found['digest']}",
        **verdict(found["digest"] == DIGESTS["autoencoder"], "other names or shapes"),
        value=float(found["parameters"]),
    )


def _levels(relays: Sequence[Facts]) -> Finding:
    last = max(run["number"] for run in relays)
    split = all(run["first"] + run["second"] == run["alone"] and run["second"] for run in relays)
    return Finding(
        claim="The refiner works on the first 200 of 1,000 noise levels, and the base on all above them",
        source=f"{SOURCE}, section 2.5",
        expected="no evaluation of the refiner above level 199, and those of both add up to those of one network",
        measured=f"{len(relays)} runs, highest level of the refiner {last:.6g}",
        **verdict(split and last < 199.5, "the refiner is evaluated outside its levels, or evaluations are lost"),
        value=last,
    )


def _handover(relays: Sequence[Facts]) -> Finding:
    gap, ratios = max(run["gap"] for run in relays), [run["ratio"] for run in relays]
    spread = max(ratios) - min(ratios)
    return Finding(
        claim="Beside: the hand-over is a noise level, and with one network on both sides it changes nothing",
        source="beyond the paper",
        expected="the same σ/α on every grid, and the samples of the undivided run to the bit, by DDIM and by Euler",
        measured=f"σ/α = {ratios[0]:.5f} on {len(relays)} grids, spread {spread:.1e}; largest difference {gap:.1e}",
        **verdict(gap == 0.0 and spread == 0.0, "the level moves with the grid, or the samples differ"),
        value=gap,
    )


def _outcomes() -> list[Finding]:
    """The claims on what the trained model does."""
    two, cocos = "ornstein eval FOLDER --reference COCO --metrics fid", "of 30,000 captions of COCO"
    vae = "ornstein eval FOLDER/vae --reference COCO --size 256"
    return [
        _untested(
            "Users prefer SDXL with its refiner to SDXL without it, and both to Stable Diffusion 1.5 and 2.1",
            "figure 1",
            "shares of a vote among four models",
            f"the weights, and people who vote: `{_REFINED}`",
        ),
        _untested(
            "Users prefer SDXL to Midjourney 5.1 for what follows the prompt",
            "section 3 and appendix",
            "more than half of the votes on the prompts of PartiPrompts",
            f"the weights, the pictures of Midjourney, and people who vote: `{_SAMPLE}`",
        ),
        _untested(
            "The autoencoder reconstructs better than those of Stable Diffusion",
            "table 3",
            "PSNR, SSIM, LPIPS and FID of reconstructions of COCO at 256 × 256",
            f"the weights and COCO: `{vae}` gives PSNR and LPIPS",
        ),
        _untested(
            "Conditioning on the size of a picture improves a model of classes over leaving small pictures out and "
            "over no such condition",
            "table 2",
            "FID and IS of three models of ImageNet at 512 × 512, each with 5,000 pictures",
            "three trainings on ImageNet, which no weights were published of, and no training of SDXL is here yet",
        ),
        _untested(
            "A larger size as the condition gives pictures of more detail",
            "figure 3",
            "the energy at high frequencies rises with the size that is given",
            f"the weights: {_SIZED.format('original=(h, w)')}",
        ),
        _untested(
            "A crop of (0, 0) as the condition centres the subject, and other values cut it",
            "figures 4 and 5",
            "the subject moves with the crop that is given",
            f"the weights: {_SIZED.format('crop=(top, left)')}",
        ),
        _untested(
            "The refiner improves local detail",
            "figure 6",
            "pictures with the refiner against those without it, of equal seeds",
            f"the weights: `{_REFINED}`, with and without --refiner",
        ),
        _untested(
            "The FID on COCO is worse than that of Stable Diffusion, while people prefer SDXL",
            "appendix F",
            "FID of three models on captions of COCO",
            f"the weights and COCO: `{_SAMPLE}` {cocos}, then `{two}`",
        ),
    ]


def _untested(claim: str, where: str, expected: str, needs: str) -> Finding:
    return Finding(
        claim=claim,
        source=f"{SOURCE}, {where}",
        expected=expected,
        measured="",
        verdict="not testable here",
        reason=f"needs {needs}",
    )


def _missing(claim: str) -> Finding:
    return Finding(claim=claim, source=SOURCE, expected="", measured="", verdict="not testable here", reason=MISSING)


def _network_table(nets: Mapping[str, Facts]) -> Table:
    names = {"clip-l": "CLIP ViT-L, text", "clip-g": "OpenCLIP ViT-bigG, text"}
    rows: list[list[str | float | int | None]] = [
        [names.get(part, part), f"{net['parameters']:,}", f"{net['tensors']}", str(net["digest"])]
        for part, net in nets.items()
    ]
    return Table(
        title="The networks in their full size",
        head=["network", "parameters", "tensors", "digest of names and shapes"],
        rows=rows,
        note="Built without numbers. Digests of base, refiner and autoencoder are compared with the published files'.",
    )


def _relay_table(rows: Sequence[Facts], relays: Sequence[Facts]) -> Table:
    return Table(
        title="Evaluations of base and refiner",
        head=["run", "steps", "base", "refiner", "σ/α at the hand-over"],
        rows=[
            [f"{row['rule']}, {row['grid']}", row["steps"], run["first"], run["second"], run["ratio"]]
            for row, run in zip(rows, relays, strict=True)
        ],
        note="One exact denoiser stands in the place of both. The level is one of the times of each grid.",
    )


def _notes() -> list[str]:
    return [
        '"Not testable here" needs the published weights, people or trainings that are not here, as each reason says.',
        "The networks are those of diffusers and transformers; agreement with their pipelines is tested elsewhere.",
    ]


EXPERIMENT = SDXLExperiment()
