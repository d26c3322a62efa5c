"""Codecs: normalisation, draws, tiles, gradients, precision, and what can be opened."""

import itertools
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ornstein.errors import CheckpointError, ConfigError, UsageError
from ornstein.interop.vae import wrap_vae
from ornstein.latents import Codec, Identity, KLCodec, Normalisation, Running, Tiles, normalisation
from ornstein.networks.autoencoder import KLAutoencoder, KLConfig
from ornstein.runs import open_codec, save_codec


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


class Shuffled(nn.Module):
    """Pixels become channels and back: it commutes with translations by 2, and loses nothing."""

    def moments(self, image):
        mean = nn.functional.pixel_unshuffle(image, 2)
        return mean, torch.full_like(mean, -2.0)

    def decode(self, latent):
        return nn.functional.pixel_shuffle(latent, 2)


def lossless(**changes) -> KLCodec:
    return KLCodec(net=Shuffled(), factor=2, channels=12, **changes)


def own(**changes) -> KLCodec:
    torch.manual_seed(0)
    net = KLAutoencoder(KLConfig(width=8, multipliers=(1, 2), patch=2))
    return KLCodec(net=net, factor=4, channels=4, **changes)


@pytest.mark.parametrize(
    "by",
    [
        Normalisation.of(shift=0.3, scale=0.18215),
        Normalisation.of(shift=[0.1 * i for i in range(12)], scale=[1.0 + 0.1 * i for i in range(12)]),
        Normalisation(shift=torch.randn(12, 4, 4, generator=rng()), scale=torch.rand(12, 4, 4, generator=rng()) + 0.5),
    ],
    ids=["number", "channel", "element"],
)
def test_a_latent_is_shifted_and_scaled_and_comes_back(by):
    codec = lossless(normalisation=by)
    image = torch.rand(2, 3, 8, 8, generator=rng()) * 2 - 1
    latent = codec.encode(image)
    raw = nn.functional.pixel_unshuffle(image, 2)
    torch.testing.assert_close(latent, (raw - by.shift) * by.scale)
    torch.testing.assert_close(codec.decode(latent), image)
    assert isinstance(codec, Codec)
    assert isinstance(Identity(), Codec)
    assert codec.latent_shape((3, 8, 8)) == (12, 4, 4)


def test_a_draw_has_the_posteriors_moments():
    codec = lossless(normalisation=Normalisation.of(shift=0.3, scale=2.0))
    image = torch.rand(1, 3, 8, 8, generator=rng())
    noise = torch.randn(4000, 12, 4, 4, generator=rng())
    drawn = codec.encode(image.expand(4000, -1, -1, -1), noise)
    mean, logvar = codec.moments(image)
    assert torch.equal(codec.encode(image), mean)
    torch.testing.assert_close(drawn.mean(0), mean[0], atol=0.08, rtol=0)
    torch.testing.assert_close(drawn.std(0), (0.5 * logvar[0]).exp(), atol=0.05, rtol=0)
    # Normalised twice the width is twice the deviation.
    torch.testing.assert_close((0.5 * logvar).exp(), torch.full_like(logvar, 2.0 * 0.36787944))


@pytest.mark.parametrize("by", ["channel", "element"])
@pytest.mark.parametrize("drawn", [False, True])
def test_statistics_bring_the_set_to_zero_and_the_asked_deviation(by, drawn):
    z = 3.0 * torch.randn(300, 4, 2, 2, generator=rng()) + torch.arange(16.0).reshape(4, 2, 2)
    logvar = torch.full_like(z, 0.5)
    seen = Running()
    for part in z.split(77):
        seen.update(part, logvar[: len(part)] if drawn else None)
    found = normalisation(seen, by, std=0.5)
    assert found.by_element == (by == "element")
    latent = found.apply(z).double()
    variance = latent.var(0, unbiased=False) + (((logvar + found.log_scale(z)).exp().mean(0)) if drawn else 0.0)
    if by == "element":
        torch.testing.assert_close(latent.mean(0), torch.zeros(4, 2, 2).double(), atol=1e-5, rtol=0)
        torch.testing.assert_close(variance, torch.full_like(variance, 0.25), atol=1e-5, rtol=0)
    else:
        torch.testing.assert_close(latent.mean((0, 2, 3)), torch.zeros(4).double(), atol=1e-5, rtol=0)
        spread = (latent**2).mean((0, 2, 3)) + (variance - latent.var(0, unbiased=False)).mean((1, 2))
        torch.testing.assert_close(spread, torch.full_like(spread, 0.25), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.undo(found.apply(z)), z)


def test_statistics_take_the_place_of_those_before():
    z, old = torch.randn(50, 2, 1, 1, generator=rng()), Normalisation.of(shift=0.7, scale=3.0)
    seen, plain = Running(), Running()
    seen.update(old.apply(z))
    plain.update(z)
    one, other = normalisation(seen, "element", before=old), normalisation(plain, "element")
    torch.testing.assert_close(one.shift, other.shift)
    torch.testing.assert_close(one.scale, other.scale)
    assert normalisation(seen, "none", before=old) is old
    with pytest.raises(UsageError, match="at least one"):
        normalisation(Running(), "element")


def test_a_constant_element_stays_finite():
    seen = Running()
    z = torch.randn(50, 1, 1, 2, generator=rng())
    z[..., 1] = 0.4
    seen.update(z)
    found = normalisation(seen, "element")
    assert found.scale.isfinite().all()
    assert found.apply(z).abs().max() < 10.0


def test_element_statistics_refuse_another_size():
    codec = lossless(normalisation=Normalisation(shift=torch.zeros(12, 4, 4), scale=torch.ones(12, 4, 4)))
    with pytest.raises(UsageError, match="fit one size only"):
        codec.encode(torch.zeros(1, 3, 16, 16))


# --------------------------------------------------------------------------------------------------------------- tiles


@pytest.mark.parametrize(("side", "overlap"), [(4, 0), (4, 2), (5, 3), (6, 1)])
@pytest.mark.parametrize("size", [(26, 18), (16, 40), (8, 6)])
def test_tiles_change_nothing_where_the_map_commutes_with_translations(side, overlap, size):
    image = torch.rand(2, 3, *size, generator=rng())
    plain, tiled = lossless(), lossless().tiled(side, overlap)
    latent = plain.encode(image)
    torch.testing.assert_close(tiled.encode(image), latent)
    torch.testing.assert_close(tiled.decode(latent), plain.decode(latent))


def test_tiles_cover_everything_once_weighed():
    tiles = Tiles(side=6, overlap=2)
    for length in range(1, 40):
        starts = tiles.starts(length)
        covered = {i for start in starts for i in range(start, start + min(6, length))}
        assert covered == set(range(length))
        assert all(b - a <= 4 for a, b in itertools.pairwise(starts))
    with pytest.raises(ConfigError, match="overlap < side"):
        Tiles(side=4, overlap=4)


def test_tiles_of_a_real_network_come_close():
    codec, latent = own(), torch.randn(1, 4, 24, 24, generator=rng())
    whole = codec.decode(latent)
    gaps = [float((codec.tiled(16, overlap).decode(latent) - whole).abs().mean()) for overlap in (0, 8)]
    assert gaps[1] < 0.6 * gaps[0]
    assert gaps[1] < 0.1 * float(whole.std())


def test_gradients_pass_the_tiles():
    latent = torch.randn(1, 12, 9, 9, generator=rng(), requires_grad=True)
    (grad,) = torch.autograd.grad(lossless().tiled(4, 2).decode(latent).sum(), latent)
    torch.testing.assert_close(grad, torch.ones_like(grad))


# ------------------------------------------------------------------------------------------------- gradients, precision


def test_gradients_reach_the_latent_and_not_the_weights():
    codec, latent = own(), torch.randn(1, 4, 4, 4, generator=rng(), requires_grad=True)
    way = torch.randn(1, 4, 4, 4, generator=rng(1))
    (gradient,) = torch.autograd.grad(codec.decode(latent).sum(), latent)
    with torch.no_grad():
        ends = [float(codec.decode(latent + step * way).double().sum()) for step in (1e-2, -1e-2)]
    assert float((gradient * way).sum()) == pytest.approx((ends[0] - ends[1]) / 2e-2, rel=1e-2)
    assert not any(parameter.requires_grad for parameter in codec.net.parameters())


def test_autocast_does_not_reach_the_codec():
    codec, latent = own(), torch.randn(1, 4, 4, 4, generator=rng())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = codec.decode(latent)
    assert torch.equal(inside, codec.decode(latent))
    assert inside.dtype == torch.float32
    assert codec.decode(latent.to(torch.bfloat16)).dtype == torch.bfloat16


def test_what_does_not_fit_is_refused():
    with pytest.raises(UsageError, match="sides divide by 4"):
        own().encode(torch.zeros(1, 3, 18, 16))
    with pytest.raises(UsageError, match=r"\(B, 4, h, w\)"):
        own().decode(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ConfigError, match="moments"):
        KLCodec(net=nn.Identity(), factor=1, channels=3)
    with pytest.raises(ConfigError, match="positive"):
        Normalisation.of(scale=0.0)


def test_the_fingerprint_is_that_of_weights_and_normalisation():
    one, other = own(), own()
    assert one.fingerprint == other.fingerprint
    assert one.fingerprint != one.normalised(Normalisation.of(scale=2.0)).fingerprint
    changed = KLAutoencoder(KLConfig(width=8, multipliers=(1, 2), patch=2))
    assert KLCodec(net=changed, factor=4, channels=4).fingerprint != one.fingerprint


# ----------------------------------------------------------------------------------------------------------- diffusers


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(1)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        scaling_factor=0.7,
        shift_factor=0.2,
        force_upcast=True,
    )
    folder = tmp_path_factory.mktemp("vae")
    vae.save_pretrained(folder)
    return folder


def test_a_diffusers_autoencoder(vae_folder):
    diffusers = pytest.importorskip("diffusers")
    codec = open_codec(vae_folder)
    vae = diffusers.AutoencoderKL.from_pretrained(vae_folder)
    image = torch.rand(2, 3, 16, 16, generator=rng()) * 2 - 1
    with torch.no_grad():
        posterior = vae.encode(image).latent_dist
        torch.testing.assert_close(codec.encode(image), (posterior.mean - 0.2) * 0.7)
        noise = torch.randn(2, 4, 8, 8, generator=rng())
        torch.testing.assert_close(codec.encode(image, noise), (posterior.mean + posterior.std * noise - 0.2) * 0.7)
        latent = torch.randn(2, 4, 8, 8, generator=rng())
        torch.testing.assert_close(codec.decode(latent), vae.decode(latent / 0.7 + 0.2).sample)
    assert (codec.factor, codec.channels) == (2, 4)
    assert open_codec(vae_folder, dtype=torch.float16).dtype == torch.float32
    vae.register_to_config(force_upcast=False, latents_mean=[0.1] * 4, latents_std=[2.0] * 4)
    by = wrap_vae(vae).normalisation
    torch.testing.assert_close(by.undo(latent), latent * 2.0 / 0.7 + 0.1)


@pytest.mark.parametrize("inside", ["", "vae"], ids=["of its own", "of a pipeline"])
def test_a_name_of_the_hub_is_found_in_its_cache(vae_folder, tmp_path, monkeypatch, inside):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    home = tmp_path / "models--some--vae"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("0" * 40)
    shutil.copytree(vae_folder, home / "snapshots" / ("0" * 40) / inside)
    codec = open_codec("some/vae")
    assert codec.fingerprint == open_codec(vae_folder).fingerprint
    assert codec.about == {"kind": "diffusers", "where": "some/vae"}


def test_codecs_are_saved_with_their_weights(vae_folder, tmp_path):
    by = Normalisation(shift=torch.randn(4, 2, 2, generator=rng()), scale=torch.ones(4, 2, 2))
    codec = open_codec(vae_folder).normalised(by).tiled(8, 2)
    again = open_codec(save_codec(codec, tmp_path / "codec"))
    assert again.fingerprint == codec.fingerprint
    assert again.tiles == codec.tiles
    assert {p.name for p in (tmp_path / "codec").iterdir()} == {"codec.json", "codec.safetensors", "vae"}
    assert load_file(tmp_path / "codec" / "codec.safetensors").keys() == {"shift", "scale"}
    assert open_codec(save_codec(Identity(), tmp_path / "identity")) == Identity()
    with pytest.raises(ConfigError, match="made by hand"):
        save_codec(lossless(), tmp_path / "other")


def test_a_saved_codec_needs_nothing_outside_its_folder(vae_folder, tmp_path):
    place = shutil.copytree(vae_folder, tmp_path / "vae")
    codec = open_codec(place)
    save_codec(codec, tmp_path / "codec")
    shutil.rmtree(place)
    moved = shutil.move(tmp_path / "codec", tmp_path / "elsewhere")
    assert open_codec(moved).fingerprint == codec.fingerprint


@pytest.mark.parametrize("kind", ["diffusers", "autoencoder"])
@pytest.mark.parametrize("where", ["some/vae", "{outside}", "../outside", "critters-latents/../../x", "", None, 3])
def test_a_codec_opens_nothing_outside_its_folder(vae_folder, tmp_path, kind, where, monkeypatch):
    """Neither a name of the Hub nor a folder elsewhere is looked at because a file names it."""
    outside = shutil.copytree(vae_folder, tmp_path / "outside")
    folder = save_codec(open_codec(vae_folder), tmp_path / "codec")
    document = json.loads((folder / "codec.json").read_text())
    shutil.rmtree(folder / "vae")
    document |= {"kind": kind, "about": {"kind": kind, "where": where and str(where).format(outside=outside)}}
    (folder / "codec.json").write_text(json.dumps(document))
    monkeypatch.setattr("ornstein.runs.codecs.open_vae", lambda *_: pytest.fail("opened"))
    with pytest.raises(CheckpointError, match="outside its folder"):
        open_codec(folder)
    (folder / "vae").symlink_to(outside)
    with pytest.raises(CheckpointError, match="outside its folder"):
        open_codec(folder)


def test_another_autoencoder_in_the_same_place_is_noticed(vae_folder, tmp_path):
    save_codec(open_codec(vae_folder), tmp_path / "codec")
    file = tmp_path / "codec" / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["encoder.conv_in.weight"] += 1.0
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match="other weights"):
        open_codec(tmp_path / "codec")


@pytest.mark.parametrize("damage", ["nothing", "empty", "json", "kind", "weights", "tensors", "name"])
def test_what_is_no_codec_costs_one_line(vae_folder, tmp_path, damage, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    where = tmp_path / "codec"
    if damage == "weights":
        where = shutil.copytree(vae_folder, where)
        (where / "diffusion_pytorch_model.safetensors").write_bytes(b"nothing")
    elif damage == "empty":
        where.mkdir()
    elif damage in ("json", "kind", "tensors"):
        save_codec(open_codec(vae_folder), where)
        document = json.loads((where / "codec.json").read_text())
        text = {"json": "{", "kind": json.dumps({"format": "else"}), "tensors": json.dumps(document)}[damage]
        (where / "codec.json").write_text(text)
        if damage == "tensors":
            (where / "codec.safetensors").write_bytes(b"nothing")
    elif damage == "name":
        where = "nobody/has-such-a-codec-anywhere"
    with pytest.raises(CheckpointError) as error:
        open_codec(where)
    assert "\n" not in str(error.value)
