"""Laws of guidance through named sites."""

import math

import pytest
import torch
from torch import Tensor

from ornstein import guidance as guide
from ornstein.denoisers import CachedDenoiser, Denoiser
from ornstein.errors import ConfigError, UsageError
from ornstein.guidance.checkpointing import blocks_of
from ornstein.guidance.perturbed import blurred
from ornstein.modulation import modulated, sites
from ornstein.networks import DiTConfig, UNetConfig, build
from ornstein.paths import VP
from ornstein.randomness import Noise

X = Noise.of(0, range(2), dtype=torch.float64).normal("x", (3, 8, 8))
UNET = UNetConfig(width=8, multipliers=(1, 2), blocks=1, attention=(1,), head_width=8, classes=3)
DIT = DiTConfig(width=16, depth=3, head_width=8, patch=2)


def network(config) -> torch.nn.Module:
    """With every parameter away from its starting zero, in float64: batches of two, four and six are compared."""
    net = build(config, seed=0).requires_grad_(False).eval()
    torch.manual_seed(0)
    for parameter in net.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    return net.double()


@pytest.fixture(scope="module", params=[UNET, DIT], ids=["unet", "dit"])
def model(request: pytest.FixtureRequest) -> Denoiser:
    return Denoiser(network(request.param), VP(), "v")


def at(model: Denoiser) -> str:
    return "mid.*" if "mid.0.hidden" in sites(model.net) else "block.1"  # type: ignore[arg-type]


def clean(denoiser) -> Tensor:
    return denoiser(X, 0.5).clean


def test_pag_is_the_network_with_identity_attention(model: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = clean(model)
    guided = clean(guide.PAG(scale=2.0, at=at(model))(model))
    weak = plain - (guided - plain) / 2.0

    from ornstein.networks import blocks

    here = at(model).replace("*", "")

    def identity(self, q, k, v, heads, size, time, mask=None):
        return v if self.value.name.startswith(here) else blocks.attend(q, k, v, heads, mask)

    monkeypatch.setattr(blocks.AttentionSites, "forward", identity)
    torch.testing.assert_close(weak, clean(model), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(weak, plain, atol=1e-3)


def test_seg_blurs_the_queries_and_its_limits_are_known(model: Denoiser) -> None:
    plain = clean(model)
    shifts = [
        clean(guide.SEG(scale=1.0, blur=blur, at=at(model))(model)) - plain for blur in (0.05, 1.0, 1e4, math.inf)
    ]
    torch.testing.assert_close(shifts[0], torch.zeros_like(plain), rtol=0, atol=1e-5)
    torch.testing.assert_close(shifts[2], shifts[3], rtol=1e-3, atol=1e-4)
    assert shifts[1].abs().max() > 1e-4


def test_a_blur_is_a_gaussian_that_keeps_constants() -> None:
    ones = torch.ones(1, 2, 5, 7)
    for blur in (0.3, 1.0, 50.0, math.inf):
        torch.testing.assert_close(blurred(ones, blur), ones)
    point = torch.zeros(1, 1, 41, 41)
    point[0, 0, 20, 20] = 1.0
    spread = blurred(point, 2.0)[0, 0]
    torch.testing.assert_close(spread.sum(), torch.tensor(1.0), rtol=1e-4, atol=1e-4)
    rows = torch.arange(41.0) - 20.0
    assert float((spread.sum(1) * rows.square()).sum()) == pytest.approx(4.0, rel=1e-3)


def test_skipping_layers() -> None:
    net = network(DIT)
    model = Denoiser(net, VP(), "v")
    plain = clean(model)
    guided = clean(guide.SkipLayer.blocks(1, 2, scale=1.0)(model))
    forwards = {}
    for i in (1, 2):
        forwards[i] = net.blocks[i].forward
        net.blocks[i].forward = lambda x, *rest: x
    torch.testing.assert_close(plain - (guided - plain), clean(model), rtol=1e-9, atol=1e-9)
    for i, forward in forwards.items():
        net.blocks[i].forward = forward
    unet = Denoiser(network(UNET), VP(), "v")
    middle = guide.SkipLayer(layers=(("mid.0.hidden", "mid.1.hidden"),))
    assert not torch.equal(clean(middle(unet)), clean(unet))
    with pytest.raises(UsageError, match="shape"):
        clean(guide.SkipLayer(layers=(("down.0.0.hidden", "mid.1.hidden"),))(unet))
    with pytest.raises(ConfigError, match="choose among"):
        clean(guide.SkipLayer(layers=(("down.9.hidden", "mid.1.hidden"),))(unet))


def test_damage_is_no_longer_there_afterwards_and_adds_to_cfg_at_three_evaluations() -> None:
    net = network(UNET)
    calls: list[int] = []
    net.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    model = Denoiser(net, VP(), "v").with_condition({"label": torch.tensor([1])})
    null = {"label": torch.tensor([-1])}
    cfg, pag = guide.CFG(weight=3.0, null=null), guide.PAG(scale=2.0)
    plain, with_cfg, with_pag = clean(model), clean(cfg(model)), clean(pag(model))
    calls.clear()
    both = clean(guide.add(cfg, pag)(model))
    assert sum(calls) == 6
    torch.testing.assert_close(both, with_cfg + with_pag - plain, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(clean(guide.add(pag, cfg)(model)), both, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(clean(pag(CachedDenoiser(model))), with_pag, rtol=1e-9, atol=1e-9)
    twice = guide.add(pag, guide.SEG(scale=1.0))
    assert not torch.allclose(clean(twice(model)), with_pag, atol=1e-4)
    assert torch.equal(clean(model), plain)
    calls.clear()
    clean(guide.compose(cfg, guide.Universal(energies=lambda c: c.flatten(1).mean(1)), guide.Threshold())(model))
    assert calls == [4]


def test_perturbations_need_a_network() -> None:
    with pytest.raises(UsageError, match="pass net"):
        clean(guide.PAG(scale=1.0)(Denoiser(lambda x, time: x, VP(), "v")))
    net = network(UNET)
    hidden = Denoiser(lambda x, time: net(x, time), VP(), "v")
    told = clean(guide.PAG(scale=1.0, net=net)(hidden))
    assert torch.equal(told, clean(guide.PAG(scale=1.0)(Denoiser(net, VP(), "v"))))
    with pytest.raises(ConfigError, match="choose among"):
        clean(guide.PAG(scale=1.0, at="no.such")(Denoiser(net, VP(), "v")))


def test_checkpointing_of_real_networks_under_modulations(model: Denoiser) -> None:
    energy = lambda c: c.square().flatten(1).mean(1)  # noqa: E731
    net = model.net
    assert len(blocks_of(net)) >= 3  # type: ignore[arg-type]
    pattern = {sites(net)[0]: lambda feature, site, t: 0.5 * feature}  # type: ignore[arg-type]
    with modulated(net, pattern):  # type: ignore[arg-type]
        plain = clean(guide.Universal(energies=energy, strength=9.0)(model))
        again = clean(guide.Universal(energies=energy, strength=9.0, checkpoint=True)(model))
    torch.testing.assert_close(plain, again, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(plain, clean(guide.Universal(energies=energy, strength=9.0)(model)), atol=1e-4)
    assert all("forward" not in block.__dict__ for block in blocks_of(net))  # type: ignore[arg-type]
