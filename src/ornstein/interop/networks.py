"""Networks of diffusers under our calling convention, with the named sites of ours.

A diffusers module knows nothing of sites. While modulations are bound, `Adapted` watches one pass of it through hooks,
which show each feature to the site of the table in `_places`. Between passes the module is as it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..networks.sites import Site, bindings

PipelineKind = Literal["pixels", "text", "text-xl", "labels", "flux", "sd3"]
Shows = Literal["out", "in", "joined"]

_BLOCKS = ("DownBlock2D", "AttnDownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "AttnUpBlock2D", "CrossAttnUpBlock2D")
_PASS: ContextVar[_Pass | None] = ContextVar("ornstein_diffusers_pass", default=None)


class Adapted(nn.Module):
    """A diffusers network under our calling convention: ``net(x, time, label=…, text=…, pooled=…, time_ids=…)``.

    U-Nets of the usual blocks (`UNet2DModel`, `UNet2DConditionModel` of Stable Diffusion 1, 2 and XL) have the sites
    of `ornstein.networks.UNet`, DiT those of `ornstein.networks.DiT`; where an attention of several layers stands in
    one block, layer k has ``….k.query``, ``….k.value`` and ``….k.attended``. Other networks have none.
    """

    def __init__(self, net: nn.Module, kind: PipelineKind, labelled: bool) -> None:
        super().__init__()
        self.net, self.kind, self.labelled = net, kind, labelled
        self._places = _places(net)
        self.sites = nn.ModuleList(place.site for place in self._places)
        self._kept: list[Any] = []

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        *,
        label: Tensor | None = None,
        text: Tensor | None = None,
        pooled: Tensor | None = None,
        time_ids: Tensor | None = None,
        guidance: Tensor | None = None,
        shown: Tensor | None = None,
    ) -> Tensor:
        """x (B, C, H, W), time (B,), label (B,), text (B, L, D), pooled (B, P), time_ids (B, 6) → (B, C', H, W).

        A distilled network also takes its guidance weight, (B,), and an inpainting network what it is shown beside the
        state, (B, C + 1, H, W). Sizes (``time_ids``) and ``guidance`` reach their
        sinusoids in float32, whatever the precision of the network.
        """
        if self.labelled and label is None:
            raise UsageError("this network is class-conditional: bind cond(labels=[…]) with with_condition()")
        keywords: dict[str, Any] = {"class_labels": label} if self.labelled else {}
        if self.kind in ("text", "text-xl"):
            if text is None or (self.kind == "text-xl" and (pooled is None or time_ids is None)):
                raise UsageError("this network takes captions: bind cond([…]) or null() with with_condition()")
            keywords["encoder_hidden_states"] = text.to(x.dtype)
            if self.kind == "text-xl" and pooled is not None and time_ids is not None:
                keywords["added_cond_kwargs"] = {"text_embeds": pooled.to(x.dtype), "time_ids": time_ids.float()}
            if (width := guidance_width(self.net)) is not None:
                if guidance is None:
                    raise UsageError("this network takes a guidance weight: bind cond([…]) with with_condition()")
                keywords["timestep_cond"] = guidance_embedding(guidance, width).to(x.dtype)
        if shown is not None:
            x = torch.cat([x, shown.to(x.dtype)], dim=1)
        with self._watched(x, time):
            return self.net(x, timestep=time, return_dict=False, **keywords)[0]

    @contextmanager
    def _watched(self, x: Tensor, time: Tensor) -> Iterator[None]:
        """One pass whose features are shown to the sites, if anything is bound to some."""
        for handle in self._kept:
            handle.remove()
        self._kept = []
        if bindings() is None or not self._places:
            yield
            return
        now = _Pass(time, tuple(x.shape[2:]))
        handles = [handle for place in self._places for handle in place.watch(self.net, now)]
        token = _PASS.set(now)
        try:
            yield
        finally:
            _PASS.reset(token)
            if torch.is_grad_enabled() and x.requires_grad:
                self._kept = handles  # a checkpointed block runs again in the backward pass
            else:
                for handle in handles:
                    handle.remove()


def has_learned_variance(config: Mapping[str, Any]) -> bool:
    """Whether a network of this diffusers configuration returns twice its channels, the second half a variance."""
    return config.get("out_channels") == 2 * config["in_channels"]


def guidance_width(net: Any) -> int | None:
    """Width of the embedding of the guidance weight in a distilled network; None in any other."""
    width = getattr(net.config, "time_cond_proj_dim", None)
    return None if width is None else int(width)


def guidance_embedding(weights: Tensor, width: int) -> Tensor:
    """The sinusoids of 1000·(w − 1), (B, width) float32, that latent consistency models are distilled with."""
    half = width // 2
    powers = torch.arange(half, dtype=torch.float32, device=weights.device) / max(half - 1, 1)
    angles = 1000.0 * (weights.float()[:, None] - 1.0) * torch.exp(-math.log(10000.0) * powers)
    return nn.functional.pad(torch.cat((angles.sin(), angles.cos()), dim=1), (0, width % 2))


@dataclass(slots=True, eq=False)
class _Pass:
    """One forward pass: its time, the size of its image, and the sizes of features as attentions were given them."""

    time: Tensor
    size: tuple[int, ...]
    sizes: dict[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])


@dataclass(frozen=True, slots=True)
class _Place:
    """A site, the module whose feature it is, and which: the result, the input, or a part of a joined input.

    ``size`` names the module whose input has the size of a feature that comes as tokens, and ``patch`` is the side of
    a token where that is the network itself. ``skip`` is the number of channels of the skip in a joined input.
    """

    site: Site
    module: str
    shows: Shows = "out"
    size: str | None = None
    patch: int = 1
    skip: int = 0

    def watch(self, net: nn.Module, now: _Pass) -> list[Any]:
        """Hooks for one pass."""
        module, hook = net.get_submodule(self.module), _Hook(self, now)
        if self.shows == "out":
            handles = [module.register_forward_hook(hook.out)]
        else:
            handles = [module.register_forward_pre_hook(hook.before)]
        if self.size:
            handles.append(net.get_submodule(self.size).register_forward_pre_hook(hook.measure, with_kwargs=True))
        return handles


@dataclass(frozen=True, slots=True)
class _Hook:
    """The hooks of a place in one pass; in every other pass, of another thread or another adapter, they do nothing."""

    place: _Place
    now: _Pass

    def measure(self, module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        """Note the size of a feature before it becomes tokens."""
        del module
        if _PASS.get() is self.now and self.place.size is not None:
            feature = args[0] if args else keywords["hidden_states"]
            self.now.sizes[self.place.size] = tuple(feature.shape[2:])

    def out(self, module: nn.Module, args: Any, answer: Any) -> Any:
        """The result as the site leaves it; None for "as it is"."""
        del module, args
        if _PASS.get() is not self.now:
            return None
        return (self._shown(answer[0]), *answer[1:]) if isinstance(answer, tuple) else self._shown(answer)

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """The input as the site leaves it."""
        del module
        if _PASS.get() is not self.now:
            return None
        if self.place.shows == "in":
            return (self._shown(args[0]), *args[1:])
        joined, skip = args[0], self.place.skip
        parts = list(joined.split([joined.shape[1] - skip, skip], dim=1))
        which = int(self.place.site.name.endswith(".skip"))
        changed = self._shown(parts[which])
        if changed is parts[which]:
            return None
        parts[which] = changed
        return (torch.cat(parts, dim=1), *args[1:])

    def _shown(self, feature: Tensor) -> Tensor:
        place, now = self.place, self.now
        if feature.ndim == 4:
            return place.site(feature, now.time)
        size = tuple(side // place.patch for side in now.size) if place.size is None else now.sizes[place.size]
        seen = feature.transpose(1, 2).unflatten(2, size)
        changed = place.site(seen, now.time)
        return feature if changed is seen else changed.flatten(2).transpose(1, 2)


def _places(net: Any) -> tuple[_Place, ...]:
    """The table: where each site of ours lies in a diffusers network, in the order of a pass; empty for others."""
    kind = type(net).__name__
    if kind == "DiTTransformer2DModel":
        patch = int(net.config.patch_size)
        return tuple(
            place
            for i, block in enumerate(net.transformer_blocks)
            for place in (
                *_attention(block.attn1, f"transformer_blocks.{i}.attn1", f"block.{i}", None, patch),
                _Place(Site(f"block.{i}.hidden"), f"transformer_blocks.{i}", patch=patch),
            )
        )
    usual = kind in ("UNet2DModel", "UNet2DConditionModel") and all(
        type(block).__name__ in _BLOCKS for block in (*net.down_blocks, *net.up_blocks)
    )
    return tuple(_unet(net)) if usual else ()


def _unet(net: Any) -> Iterator[_Place]:
    skips, last = [int(net.conv_in.out_channels)], len(net.up_blocks) - 1
    for level, block in enumerate(net.down_blocks):
        yield from _block(block, f"down_blocks.{level}", f"down.{level}", "downsamplers")
        widths = [int(one.out_channels) for one in block.resnets]
        skips += widths + widths[-1:] * bool(block.downsamplers)
    if getattr(net.mid_block, "resnets", None) is not None:
        yield from _block(net.mid_block, "mid_block", "mid", "")
    for number, block in enumerate(net.up_blocks):
        yield from _block(block, f"up_blocks.{number}", f"up.{last - number}", "upsamplers", skips)


def _block(block: Any, at: str, name: str, resamplers: str, skips: list[int] | None = None) -> Iterator[_Place]:
    attentions = list(getattr(block, "attentions", ()))
    for i, _ in enumerate(block.resnets):
        site, module = f"{name}.{i}", f"{at}.resnets.{i}"
        if skips is not None:
            skip = skips.pop()
            yield _Place(Site(f"{site}.backbone"), module, "joined", skip=skip)
            yield _Place(Site(f"{site}.skip"), module, "joined", skip=skip)
        if i < len(attentions) and attentions[i] is not None:
            module = f"{at}.attentions.{i}"
            yield from _attentions(attentions[i], module, site)
        yield _Place(Site(f"{site}.hidden"), module)
    if resamplers and getattr(block, resamplers):
        yield _Place(Site(f"{name}.{len(block.resnets)}.hidden"), f"{at}.{resamplers}.0")


def _attentions(module: Any, at: str, site: str) -> Iterator[_Place]:
    """The sites of the self-attentions of an attention of pixels, or of a transformer of several layers."""
    if type(module).__name__ == "Attention":
        yield from _attention(module, at, site, at)
    if type(module).__name__ != "Transformer2DModel":
        return
    layers = list(module.transformer_blocks)
    for k, layer in enumerate(layers):
        name = site if len(layers) == 1 else f"{site}.{k}"
        yield from _attention(layer.attn1, f"{at}.transformer_blocks.{k}.attn1", name, at)


def _attention(module: Any, at: str, site: str, size: str | None, patch: int = 1) -> Iterator[_Place]:
    if module.is_cross_attention or module.fused_projections or getattr(module, "add_k_proj", None) is not None:
        return
    yield _Place(Site(f"{site}.query"), f"{at}.to_q", size=size, patch=patch)
    yield _Place(Site(f"{site}.value"), f"{at}.to_v", size=size, patch=patch)
    yield _Place(Site(f"{site}.attended"), f"{at}.to_out.0", "in", size=size, patch=patch)


__all__ = ["Adapted", "PipelineKind", "guidance_embedding", "guidance_width"]
