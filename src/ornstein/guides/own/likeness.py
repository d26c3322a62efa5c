"""What each guide network is trained to do, part two: know a creature again, and words that fit a drawing."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ornstein.data import captions
from ornstein.guides.own import drawings as drawn
from ornstein.guides.own.degrade import degraded
from ornstein.guides.own.drawings import Cutouts, Drawings
from ornstein.guides.own.networks import Embedder, TextImage
from ornstein.guides.own.scenes import flat, over, placed, signed, varied
from ornstein.guides.own.tasks import BLURRY, percent, some, strangers
from ornstein.networks.text import PADDING, UNKNOWN, vocabulary


class Identity:
    """Two pictures of each creature, in different colours, places and backgrounds, find each other in the batch.

    Half the normalised-temperature cross entropy of every pair (Chen et al. 2020, "SimCLR") and half what a linear
    layer on the vector, used in training alone, makes of the parts: the first alone stops at the silhouette.
    """

    temperature = 0.1
    parts = ("body", "top", "eyes", "mouth", "pattern", "cheeks")

    def settings(self, drawings: Drawings) -> dict[str, Any]:
        """Nothing depends on the drawings."""
        del drawings
        return {}

    def helper(self) -> nn.Module | None:
        """From vectors to the variants of all parts."""
        return nn.Linear(Embedder.width, sum(len(drawn.variants(part)) for part in self.parts))

    def views(self, drawings: Drawings, rows: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Two pictures in [−1, 1] of each creature."""
        sources = [drawings.critters, drawings.recoloured]
        first, second = (
            signed(
                over(placed(source, rows, rng, scale=(0.85, 1.2), shift=0.08, mirror=False), flat(rng, len(rows))[0])
            )
            for source in sources
        )
        return first, second

    def loss(self, net: Embedder, helper: Any, drawings: Drawings, rng: np.random.Generator, count: int) -> Tensor:
        """Pairs, parts, and whether there is a creature at all."""
        pairs = count * 3 // 8
        rows = rng.choice(len(drawings.critters), pairs, replace=pairs > len(drawings.critters))
        first, second = self.views(drawings, rows, rng)
        none = self.nothing(drawings, rng, count - 2 * pairs)
        shown = torch.cat([degraded(x, rng, 0.8) for x in (first, second, none)])
        vectors, found = net.parts(shown)
        vectors = vectors[: 2 * pairs]
        alike = vectors @ vectors.T / self.temperature - 1e4 * torch.eye(2 * pairs)
        partner = torch.arange(2 * pairs).roll(pairs)
        variants = torch.split(helper(8 * vectors), [len(drawn.variants(part)) for part in self.parts], dim=1)
        truth = self.truth(drawings.critters, np.concatenate([rows, rows]))
        parts = torch.stack([functional.cross_entropy(v, t) for v, t in zip(variants, truth, strict=True)])
        there = (torch.arange(len(shown)) < 2 * pairs).float()
        exists = functional.binary_cross_entropy_with_logits(found, there)
        return 0.5 * functional.cross_entropy(alike, partner) + 0.5 * parts.mean() + exists

    def truth(self, cutouts: Cutouts, rows: np.ndarray) -> list[Tensor]:
        """The number of the variant of every part."""
        notes = [cutouts.named[row] for row in rows]
        return [
            torch.tensor([drawn.variants(part).index(note.get(part, "none")) for note in notes]) for part in self.parts
        ]

    def nothing(self, drawings: Drawings, rng: np.random.Generator, count: int) -> Tensor:
        """Pictures without a creature: other styles, backgrounds, noise."""
        other, _ = strangers(drawings, rng, count)
        noise = 0.6 * torch.from_numpy(rng.standard_normal((count, 3, 64, 64), dtype=np.float32))
        kinds = torch.stack([other, signed(varied(rng, count)), noise])
        return kinds[torch.from_numpy(rng.choice(3, count, p=[0.6, 0.3, 0.1])), torch.arange(count)]

    def quality(self, net: Embedder, drawings: Drawings, rng: np.random.Generator) -> dict[str, float]:
        """How often a pair of the same creature is more alike than one of two; and whether creatures are found."""
        found: dict[str, float] = {}
        rows = np.arange(min(256, len(drawings.critters)))
        shape = self.truth(drawings.critters, rows)[0]
        for name, strength in (("", 0.0), (" blurred", BLURRY)):
            shown = [degraded(x, rng, strength) for x in self.views(drawings, rows, rng)]
            (first, seen), (second, _) = (net.parts(x) for x in shown)
            cosines = first @ second.T
            other = ~torch.eye(len(rows), dtype=torch.bool)
            sibling = other & (shape[:, None] == shape[None])
            found[f"auc{name}"] = percent(_auc(cosines.diagonal(), cosines[other]))
            found[f"auc same body{name}"] = percent(_auc(cosines.diagonal(), cosines[sibling]))
            found[f"top-1 of {len(rows)}{name}"] = percent(
                (cosines.argmax(1) == torch.arange(len(rows))).float().mean()
            )
            found[f"creature found{name}"] = percent((seen > 0).float().mean())
            nothing = net.parts(degraded(self.nothing(drawings, rng, 128), rng, strength))[1]
            found[f"nothing found where none is{name}"] = percent((nothing <= 0).float().mean())
        return found


def _auc(same: Tensor, different: Tensor) -> Tensor:
    """The chance that a number of the first kind exceeds one of the second."""
    return (same[:, None] > different[None]).float().mean()


class Described(NamedTuple):
    """Pictures in [−1, 1] and what is true of each: pairs of an attribute and its value."""

    pictures: Tensor
    facts: list[dict[str, str]]


class Words:
    """Whole captions and short ones find their pictures, and pictures their whole captions (Radford et al. 2021).

    A caption fits every picture of which all is true that it says, so a short one has several.
    """

    def settings(self, drawings: Drawings) -> dict[str, Any]:
        """The words of all captions."""
        rng = np.random.default_rng(0)
        texts = [whole({"style": "critters", **n, "background colour": "navy"}) for n in drawings.critters.named]
        texts += [f"a {name}" for of in ("body", "background") for name in drawn.colours(of)]
        for other in drawings.others:
            texts += [whole({"style": other.style, **note, "background colour": "teal"}) for note in other.named]
        texts += [short({"style": "critters", **note}, rng) for note in drawings.critters.named[:64]]
        return {"vocabulary": list(vocabulary(texts))}

    def helper(self) -> nn.Module | None:
        """None."""
        return None

    def batch(self, drawings: Drawings, rng: np.random.Generator, count: int, critters: float) -> Described:
        """Pictures, the share ``critters`` of them critters."""
        own = round(critters * count)
        source = drawings.recoloured if rng.random() < 0.5 else drawings.critters
        pictures, facts = [], []
        sizes = rng.multinomial(count - own, np.ones(len(drawings.others)) / len(drawings.others))
        for cutouts, number in zip((source, *drawings.others), (own, *sizes), strict=True):
            if number == 0:
                continue
            rows = some(cutouts, rng, number)
            background, which = flat(rng, number)
            pictures.append(over(placed(cutouts, rows, rng, scale=(0.92, 1.1), shift=0.05, mirror=False), background))
            names = list(drawn.background_colours())
            facts += [
                {"style": cutouts.style, **cutouts.named[row], "background colour": names[k]}
                for row, k in zip(rows, which, strict=True)
            ]
        order = rng.permutation(count)
        return Described(signed(torch.cat(pictures))[torch.from_numpy(order)], [facts[i] for i in order])

    def loss(self, net: TextImage, helper: Any, drawings: Drawings, rng: np.random.Generator, count: int) -> Tensor:
        """The cross entropy of captions → pictures for all, of pictures → captions for the whole ones."""
        del helper
        pictures, facts = self.batch(drawings, rng, count, 0.85)
        chosen = [_some_facts(f, rng) for f in facts]
        texts = [whole(f) for f in facts] + [phrase(f) for f in chosen]
        ids = net.words.config.encode(texts)
        lost = torch.from_numpy(rng.random(tuple(ids.shape))) < 0.04
        ids = torch.where(lost & (ids != PADDING), UNKNOWN, ids)
        logits = net.temperature() * net.image(degraded(pictures, rng)) @ net.encoded(ids).T  # (B, 2 B)
        sets = [frozenset(f.items()) for f in facts]
        said = sets + [frozenset(f.items()) for f in chosen]
        fits = torch.tensor([[text <= picture for text in said] for picture in sets]).float()
        to_picture = -(logits.log_softmax(0) * fits / fits.sum(0)).sum(0).mean()
        full = fits[:, :count]
        to_text = -(logits[:, :count].log_softmax(1) * full / full.sum(1, keepdim=True)).sum(1).mean()
        return to_picture + 0.5 * to_text

    def quality(self, net: TextImage, drawings: Drawings, rng: np.random.Generator) -> dict[str, float]:
        """How often the right caption is the nearest: of 64 whole ones, of all colours, of all tops."""
        found: dict[str, float] = {}
        for name, strength in (("", 0.0), (" blurred", BLURRY)):
            right, total = 0.0, 0
            short_right = {"body colour": 0.0, "top": 0.0, "background colour": 0.0}
            short_total = dict.fromkeys(short_right, 0)
            for _ in range(4):
                pictures, facts = self.batch(drawings, rng, 64, 1.0)
                vectors = net.image(degraded(pictures, rng, strength))
                right += float((vectors @ net.text([whole(f) for f in facts]).T).argmax(1).eq(torch.arange(64)).sum())
                total += 64
                for key in short_right:
                    values = drawn.colours(key.split()[0]) if "colour" in key else drawn.variants(key)
                    values = tuple(value for value in values if value != "none")
                    phrases = net.text([phrase({"style": "critters", key: value}) for value in values])
                    rows = [i for i, f in enumerate(facts) if key in f]
                    guess = (vectors[rows] @ phrases.T).argmax(1)
                    short_right[key] += sum(values[int(g)] == facts[i][key] for g, i in zip(guess, rows, strict=True))
                    short_total[key] += len(rows)
            found[f"caption of 64{name}"] = percent(right / total)
            found |= {f"{key}{name}": percent(short_right[key] / max(1, short_total[key])) for key in short_right}
        return found


def whole(facts: dict[str, str]) -> str:
    """The caption that says all."""
    return captions.caption(facts["style"], {k: v for k, v in facts.items() if k != "style"})


def phrase(facts: dict[str, str]) -> str:
    """The caption of some facts, the style always among them; the colour of the body may be missing."""
    style = facts["style"]
    rest = {k: v for k, v in facts.items() if k != "style"}
    if style != "critters" or "body colour" in rest:
        return captions.caption(style, rest)
    stand_in = captions.caption(style, {**rest, "body colour": "green"})
    return stand_in.replace("a green critter", "a critter", 1)


def short(facts: dict[str, str], rng: np.random.Generator) -> str:
    """A caption of one to three facts."""
    return phrase(_some_facts(facts, rng))


_SPOKEN = ("body colour", "top", "eyes", "mouth", "pattern", "cheeks", "background colour")


def _some_facts(facts: dict[str, str], rng: np.random.Generator) -> dict[str, str]:
    known = [key for key in _SPOKEN if key in facts] if facts["style"] == "critters" else ["background colour"]
    count = int(rng.integers(0 if facts["style"] != "critters" else 1, min(3, len(known)) + 1))
    kept = {known[i] for i in rng.permutation(len(known))[:count]}
    return {key: value for key, value in facts.items() if key in kept or key == "style"}
