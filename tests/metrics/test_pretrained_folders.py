"""DINOv2 and CLIP from local folders: small networks of the same architecture with random weights, never a download."""

import contextlib
import json

import pytest
import torch

from ornstein import metrics
from ornstein.errors import CheckpointError, ConfigError, UsageError
from ornstein.metrics.blocks import Block, blocks
from ornstein.metrics.clip import Clip, ClipMeter
from ornstein.metrics.features import resized

transformers = pytest.importorskip("transformers")
CAPTIONS = ["a cat", "red", "a dog that is very long indeed and longer still", "two"]


@pytest.fixture(scope="module", autouse=True)
def offline():
    from transformers.utils import logging

    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
    )
    transformers.Dinov2Model(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        "vocab_size": len(words),
        "max_position_embeddings": 16,
        "bos_token_id": len(words) - 2,
        "eos_token_id": len(words) - 1,
    }
    vision = {"image_size": 32, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=small | text, vision_config=small | vision, projection_dim=8)
    transformers.CLIPModel(config).save_pretrained(folder)
    return folder


def noise(n, side=40, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, side, side), generator=g, dtype=torch.uint8)


def captioned(images, captions):
    block = Block()
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        block.take(index, image)
        block.captions[-1] = caption
    return block


def test_dinov2_is_the_class_token_under_its_own_name(dino_folder):
    net = metrics.features("dinov2", weights=dino_folder)
    assert net.width == 16
    assert net.name.startswith("dinov2-16-p14-")
    assert metrics.label("fd", net.name) == f"FD-{net.name}"
    model = transformers.Dinov2Model.from_pretrained(dino_folder)
    mean, std = (torch.tensor(v).reshape(-1, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.inference_mode():
        expected = model(pixel_values=(resized(noise(3), 224) / 255 - mean) / std).pooler_output
    torch.testing.assert_close(net(noise(3)), expected, rtol=1e-4, atol=1e-5)
    one = metrics.statistics(noise(9), net)
    assert metrics.measure(one, one, ["fd", "kid"]).numbers.keys() >= {f"FD-{net.name}", f"KID-{net.name}"}
    with pytest.raises(UsageError, match="no classes output"):
        metrics.statistics(noise(9), net, keep=("classes",))


def test_the_name_changes_with_the_weights(dino_folder, tmp_path):
    torch.manual_seed(1)
    transformers.Dinov2Model(transformers.Dinov2Config.from_pretrained(dino_folder)).save_pretrained(tmp_path)
    assert metrics.features("dinov2", weights=tmp_path).name != metrics.features("dinov2", weights=dino_folder).name


def test_clip_is_transformers_own_cosine(clip_folder):
    clip = Clip(clip_folder)
    model = transformers.CLIPModel.from_pretrained(clip_folder).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(clip_folder)(
        CAPTIONS, padding=True, truncation=True, max_length=16, return_tensors="pt"
    )
    mean = torch.tensor((0.48145466, 0.4578275, 0.40821073)).reshape(-1, 1, 1)
    std = torch.tensor((0.26862954, 0.26130258, 0.27577711)).reshape(-1, 1, 1)
    with torch.no_grad():
        found = model(pixel_values=(resized(noise(4), 32) / 255 - mean) / std, **tokens)
    expected = (found.logits_per_image / model.logit_scale.detach().exp()).diag().double()
    torch.testing.assert_close(torch.from_numpy(clip.cosines(noise(4), CAPTIONS)), expected, rtol=1e-4, atol=1e-6)
    # An image beside others, and a caption beside a longer one, change no bit; another place in the block may.
    found, others = clip.cosines(noise(4), CAPTIONS)[1], noise(4).flip(2)
    others[1] = noise(4)[1]
    assert clip.cosines(others, [2 * CAPTIONS[0], CAPTIONS[1], *CAPTIONS[2:]])[1] == found
    assert clip.cosines(others[:2], ["", CAPTIONS[1]])[1] == found
    assert clip.cosines(noise(4)[1:2], CAPTIONS[1:2])[0] == pytest.approx(found, abs=1e-5)


def test_the_score_is_the_mean_of_positive_cosines(clip_folder):
    clip, meter = Clip(clip_folder), ClipMeter(Clip(clip_folder))
    images, captions = noise(4), CAPTIONS
    meter.update(captioned(images, captions))
    expected = 100.0 * clip.cosines(images, captions).clip(min=0)
    found = meter.result()
    assert found.value == pytest.approx(expected.mean(), rel=1e-12)
    assert found.error == pytest.approx(expected.std(ddof=1) / 2, rel=1e-9)
    assert found.scores.tolist() == expected.tolist()
    assert found.name.startswith("clip-16-p8-")


def test_scores_are_in_the_order_of_the_images_whoever_saw_them(clip_folder):
    clip = Clip(clip_folder)
    one, other = ClipMeter(clip), ClipMeter(clip)
    block = captioned(noise(4), CAPTIONS)
    for meter, rows in ((other, (3,)), (one, (2, 0)), (other, (1,))):
        part = Block()
        for row in rows:
            part.take(10 * row, block.images[row])
            part.captions[-1] = CAPTIONS[row]
        meter.update(part)
    other.update(Block())
    one.merge(other)
    found = one.result()
    assert found.indices.tolist() == [0, 10, 20, 30]
    assert found.scores == pytest.approx(100.0 * clip.cosines(noise(4), CAPTIONS).clip(min=0), abs=1e-4)
    alone = ClipMeter(clip)
    alone.update(captioned(noise(1), ["a cat"]))
    assert alone.result().error is None
    assert alone.result().value == alone.result().scores[0]
    torch.testing.assert_close(clip.images(noise(2).float()), clip.images(noise(2)))
    foreign = ClipMeter(clip)
    foreign.clip = type("Other", (), {"name": "clip-x"})()
    with pytest.raises(UsageError, match=rf"scores of {clip.name} and clip-x: use one network"):
        alone.merge(foreign)


def test_half_weights_are_measured_in_float32(dino_folder, tmp_path):
    transformers.Dinov2Model.from_pretrained(dino_folder).to(torch.bfloat16).save_pretrained(tmp_path)
    net = metrics.features("dinov2", weights=tmp_path)
    assert {parameter.dtype for parameter in net.module.parameters()} == {torch.float32}
    assert net(noise(2)).dtype == torch.float32


def test_processes_share_captioned_images(clip_folder):
    clip = Clip(clip_folder)
    items = [type("Item", (), {"image": image, "caption": "a cat", "name": ""})() for image in noise(40, 8)]
    parts = [ClipMeter(clip) for _ in range(2)]
    for rank, part in enumerate(parts):
        for block in blocks(iter(items), rank=rank, world=2):
            part.update(block)
    whole = ClipMeter(clip)
    for block in blocks(iter(items)):
        whole.update(block)
    parts[1].merge(parts[0])
    assert parts[1].result().value == whole.result().value
    assert parts[1].result().scores.tobytes() == whole.result().scores.tobytes()


def test_a_missing_caption_is_refused(clip_folder):
    meter = ClipMeter(Clip(clip_folder))
    with pytest.raises(UsageError, match="has no caption"):
        meter.update(captioned(noise(2), ["a cat", ""]))
    with pytest.raises(UsageError, match="at least one image"):
        meter.result()
    with pytest.raises(UsageError, match="as many captions"):
        meter.clip.cosines(noise(2), ["a cat"])


def test_what_is_not_there_is_said_in_one_line(dino_folder, clip_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for make, name in (
        (lambda: metrics.features("dinov2"), "facebook/dinov2-large"),
        (lambda: Clip(), "openai/clip-vit-base-patch32"),
    ):
        with pytest.raises(CheckpointError, match=rf"Hugging Face cache: `hf download {name}` once") as caught:
            make()
        assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="neither a folder"):
        metrics.features("dinov2", weights=tmp_path / "absent")
    with pytest.raises(CheckpointError, match="a clip network, not DINOv2"):
        metrics.features("dinov2", weights=clip_folder)
    with pytest.raises(CheckpointError, match="a dinov2 network, not CLIP"):
        Clip(dino_folder)
    with pytest.raises(CheckpointError, match=r"no readable config\.json"):
        metrics.features("dinov2", weights=tmp_path)
    (tmp_path / "config.json").write_text((dino_folder / "config.json").read_text())
    with pytest.raises(CheckpointError, match=r"no \.safetensors weights"):
        metrics.features("dinov2", weights=tmp_path)
    (tmp_path / "model.safetensors").write_bytes((dino_folder / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"damaged|cannot be read"):
        metrics.features("dinov2", weights=tmp_path)


def test_code_that_a_folder_brings_is_neither_run_nor_asked_about(tmp_path, monkeypatch):
    import io
    import sys

    (tmp_path / "config.json").write_text('{"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.Theirs"}}')
    (tmp_path / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Theirs: ...\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    for make in (lambda: metrics.features("dinov2", weights=tmp_path), lambda: Clip(tmp_path)):
        with pytest.raises(CheckpointError, match="is of no network that can be read"):
            make()
    (tmp_path / "config.json").write_text('{"model_type": "unheard-of"}')
    with pytest.raises(CheckpointError, match="is of no network that can be read"):
        Clip(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_code_that_a_tokenizer_brings_is_not_run(clip_folder, tmp_path, monkeypatch):
    """The network is CLIP's own; the tokenizer's configuration asks for a class of the folder."""
    import io
    import json
    import shutil
    import sys

    folder = tmp_path / "clip"
    shutil.copytree(clip_folder, folder)
    path = folder / "tokenizer_config.json"
    found = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    found |= {"tokenizer_class": "Theirs", "auto_map": {"AutoTokenizer": ["theirs.Theirs", None]}}
    path.write_text(json.dumps(found))
    (folder / "theirs.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\nfrom transformers import CLIPTokenizer\n"
        "class Theirs(CLIPTokenizer): ...\n"
    )
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    with contextlib.suppress(CheckpointError):  # to take another tokenizer or to refuse are both right
        Clip(folder)
    assert not (tmp_path / "ran").exists()


def test_a_repository_in_the_cache_is_found_without_the_internet(dino_folder, tmp_path, monkeypatch):
    import shutil

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    home = tmp_path / "models--facebook--dinov2-large"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("0" * 40)
    shutil.copytree(dino_folder, home / "snapshots" / ("0" * 40))
    assert metrics.features("dinov2").name == metrics.features("dinov2", weights=dino_folder).name
    assert metrics.features("dinov2", weights="facebook/dinov2-large").width == 16


def test_incomplete_weights_are_refused(dino_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    state = load_file(dino_folder / "model.safetensors")
    del state["layernorm.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((dino_folder / "config.json").read_text())
    with pytest.raises(CheckpointError, match=r"lacks 1 weights of DINOv2 network, such as layernorm\.weight"):
        metrics.features("dinov2", weights=tmp_path)


def test_without_the_package_its_name_is_said(dino_folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ConfigError, match="pip install transformers"):
        metrics.features("dinov2", weights=dino_folder)
