"""The networks behind guides: those that can be had here against their own packages, the others against a stub."""

from __future__ import annotations

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ornstein import guides
from ornstein.errors import CheckpointError, ConfigError, UsageError
from ornstein.guidance.energies import slope
from ornstein.guides import sources


def pictures(n: int = 2, side: int = 24, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def check_rows(network, x: Tensor) -> Tensor:
    """Row i depends on image i alone, and gradients reach the images."""
    whole = network(x)
    for i in range(len(x)):
        torch.testing.assert_close(network(x[i : i + 1]), whole[i : i + 1], rtol=1e-4, atol=1e-4)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(network(leaf)[0].square().sum(), leaf)
    assert float(gradient[0].abs().max()) > 0.0
    assert float(gradient[1:].abs().max()) == 0.0
    return whole


# ----------------------------------------------------------------------------------------------------------------- CLIP


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory):
    transformers = pytest.importorskip("transformers")
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
    config = transformers.CLIPConfig(
        text_config=small | text, vision_config=small | {"image_size": 32, "patch_size": 8}, projection_dim=8
    )
    transformers.utils.logging.disable_progress_bar()
    transformers.CLIPModel(config).save_pretrained(folder)
    yield folder
    transformers.utils.logging.enable_progress_bar()


def test_clip_is_that_of_the_metric_and_differentiable(clip_folder) -> None:
    from ornstein.guides.clip import ClipTextImage

    network = ClipTextImage(str(clip_folder))
    assert isinstance(network, guides.TextImage)
    assert network.scale == pytest.approx(14.2857, rel=1e-3)
    check_rows(network.image, pictures())
    bytes_ = ((pictures() + 1) * 127.5).round()
    words = ["a cat", "red"]
    seen, read = network.image(bytes_ / 127.5 - 1), network.text(words)
    cosines = network._clip.cosines(bytes_.to(torch.uint8), words)
    expected = torch.cosine_similarity(seen, read).detach().double()
    torch.testing.assert_close(torch.from_numpy(cosines), expected, rtol=1e-4, atol=1e-5)


def test_text_and_style_by_clip_from_the_users_folder(clip_folder, tmp_path) -> None:
    from ornstein.data import save_png

    path = save_png(pictures(1)[0], tmp_path / "a.png")
    words = ["text:a cat:3", f"style:{path}"]
    ready = guides.make(
        words, shape=(3, 24, 24), choices=[f"text=standard:{clip_folder}", f"style=standard:{clip_folder}"]
    )
    (_, text), (_, style) = ready.energies
    assert [row["source"] for row in ready.records] == ["standard", "standard"]
    assert text.network is style.network, "one folder is loaded once"
    gradient, values = slope(ready.energies, pictures())
    assert values.shape == (2,)
    assert float(gradient.abs().min(0).values.max()) > 0.0


# ------------------------------------------------------------------------------------------------------------- packages


def test_lite0_is_the_network_of_the_metric() -> None:
    from ornstein.guides.package import Lite0Classifier
    from ornstein.metrics.features import CLASSES, lite0

    network = Lite0Classifier()
    x = ((pictures(side=64) + 1) * 127.5).round()
    expected = lite0().outputs(x.to(torch.uint8))[CLASSES]
    torch.testing.assert_close(network(x / 127.5 - 1), expected, rtol=1e-3, atol=1e-3)
    check_rows(network, pictures(side=32))
    with pytest.raises(ConfigError, match="own weights"):
        guides.make(["classifier:3"], shape=(3, 8, 8), choices=["classifier=package:x.pth"])


@pytest.fixture(scope="module")
def hed_file(tmp_path_factory: pytest.TempPathFactory):
    """The layout of the published file with small random numbers."""
    h5py = pytest.importorskip("h5py")
    path = tmp_path_factory.mktemp("hed") / "hed.h5"
    g = torch.Generator().manual_seed(0)
    with h5py.File(path, "w") as file:

        def put(place: str, inputs: int, outputs: int, side: int) -> None:
            spread = (2.0 / (inputs * side * side)) ** 0.5
            file[f"{place}/vars/0"] = (torch.randn(side, side, inputs, outputs, generator=g) * spread).numpy()
            file[f"{place}/vars/1"] = torch.zeros(outputs).numpy()

        inputs = 3
        for block, (outputs, depth) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)), 1):
            for layer in range(depth):
                put(f"block{block}/layers/conv2d" + (f"_{layer}" if layer else ""), inputs, outputs, 3)
                inputs = outputs
            put(f"dsn{block}", outputs, 1, 1)
        put("fuse", 5, 1, 1)
    return path


def test_hed_from_a_file_of_arrays(hed_file, tmp_path) -> None:
    from ornstein.guides.hed import Hed, HedFeatures

    network = Hed(str(hed_file), side=32)
    x = pictures(2, 24)
    edges = network(x)
    assert edges.shape == (2, 1, 32, 32)
    assert bool(((edges >= 0) & (edges <= 1)).all())
    torch.testing.assert_close(network(x[:1]), edges[:1], rtol=1e-3, atol=1e-4)
    features = HedFeatures(network).features(x)
    assert [tuple(f.shape[1:]) for f in features] == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]
    # The first convolution by hand: blue, green, red, of 255, without the mean.
    y = torch.nn.functional.interpolate(x, size=(32, 32), mode="bilinear", align_corners=False)
    bgr = ((y + 1) * 127.5)[:, [2, 1, 0]] - torch.tensor([104.00699, 116.66877, 122.67892]).reshape(1, 3, 1, 1)
    first = torch.conv2d(bgr, network.blocks[0][0].weight, network.blocks[0][0].bias, padding=1).relu()
    torch.testing.assert_close(network.blocks[0][1](first).relu(), features[0], rtol=1e-4, atol=1e-3)
    (tmp_path / "broken.h5").write_bytes(b"nothing")
    for path in (tmp_path / "broken.h5", tmp_path / "none.h5"):
        with pytest.raises(CheckpointError, match=path.name):
            Hed(str(path))


def test_the_published_hed_sees_the_edge_of_a_square() -> None:
    if sources._hed_missing():
        pytest.skip(sources._hed_missing())
    from ornstein.guides.hed import Hed

    x = -torch.ones(1, 3, 96, 96)
    x[..., 24:72, 24:72] = 1.0
    edges = Hed(side=96)(x)[0, 0]
    assert float(edges[46:50, 22:26].max()) > 0.5
    assert float(edges[46:50, 44:52].max()) < 0.2
    assert float(edges[8:12, 8:12].max()) < 0.2


# --------------------------------------------------------------------------- torchvision and facenet, by stubs of the
# same signatures: the true ones cannot be installed beside every build of torch, and their weights are the user's.


class _Lraspp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        assert x.shape[-2:] == (520, 520)
        return {"out": self.head(x)}


class _ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-2:] == (224, 224)
        return self.fc(x.mean((2, 3)))


class _Rcnn(nn.Module):
    """Losses that depend on the boxes in pixels, on a random draw, and on the mode of its parts."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm2d(3), nn.Conv2d(3, 1, 1)

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        assert self.training
        assert not self.norm.training
        assert len(images) == 1
        x0, y0, x1, y1 = targets[0]["boxes"][0].round().int().tolist()
        assert targets[0]["labels"].dtype == torch.int64
        seen = self.head(self.norm(images[0][None]))[0, 0]
        draw = torch.rand(())
        inside = seen[y0:y1, x0:x1].mean()
        return {
            "loss_classifier": inside * draw,
            "loss_box_reg": torch.tensor(1e6),
            "loss_objectness": seen.square().mean(),
            "loss_rpn_box_reg": (inside - 1).square(),
        }


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    def weights(*names: str) -> SimpleNamespace:
        return SimpleNamespace(DEFAULT=SimpleNamespace(meta={"categories": list(names)}))

    def builder(kind: type[nn.Module]):
        def build(*, weights: None, weights_backbone: None = None, num_classes: int = 0) -> nn.Module:
            assert weights is None
            assert weights_backbone is None
            return kind()

        return build

    content = {
        "torchvision": {},
        "torchvision.models": {"resnet50": builder(_ResNet), "ResNet50_Weights": weights("a", "b", "c", "d")},
        "torchvision.models.segmentation": {
            "lraspp_mobilenet_v3_large": builder(_Lraspp),
            "LRASPP_MobileNet_V3_Large_Weights": weights("__background__", "cat", "dog"),
        },
        "torchvision.models.detection": {
            "fasterrcnn_resnet50_fpn_v2": builder(_Rcnn),
            "FasterRCNN_ResNet50_FPN_V2_Weights": weights("__background__", "person"),
        },
    }
    for name, members in content.items():
        module = ModuleType(name)
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, module)


def stored(module: nn.Module, path) -> str:
    save_file(module.state_dict(), path)
    return str(path)


@pytest.mark.usefixtures("torchvision")
def test_lraspp_and_resnet(tmp_path) -> None:
    from ornstein.guides.standard import LRASPP, ResNet50

    torch.manual_seed(0)
    segmenter = LRASPP(stored(_Lraspp(), tmp_path / "a.safetensors"))
    assert segmenter.classes == ("__background__", "cat", "dog")
    assert check_rows(segmenter, pictures(2, 16)).shape == (2, 3, 520, 520)
    classifier = ResNet50(stored(_ResNet(), tmp_path / "b.safetensors"))
    x = torch.zeros(1, 3, 16, 16)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(classifier(x)[0], classifier.net.fc((0.5 - mean) / std))
    check_rows(classifier, pictures(2, 16))
    with pytest.raises(CheckpointError, match="does not fit"):
        ResNet50(stored(_Lraspp(), tmp_path / "c.safetensors"))


@pytest.mark.usefixtures("torchvision")
def test_the_detectors_loss_is_that_of_training_without_box_regression_and_draws_the_same(tmp_path) -> None:
    from ornstein.guides.standard import FasterRCNN

    torch.manual_seed(0)
    detector = FasterRCNN(stored(_Rcnn(), tmp_path / "a.safetensors"))
    x, boxes, labels = pictures(3, 16), torch.tensor([[0.0, 0.0, 0.5, 1.0]]), torch.tensor([1])
    before = torch.random.get_rng_state()
    values = detector.loss(x, boxes, labels)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(detector.loss(x, boxes, labels), values)
    assert float(values.max()) < 1e5, "the regression of the head is left out"
    check_rows(lambda y: detector.loss(y, boxes, labels), x)
    ready = guides.make(
        ["boxes:person@0,0,0.5,1"], shape=(3, 16, 16), choices=[f"boxes=standard:{tmp_path / 'a.safetensors'}"]
    )
    assert torch.equal(ready.energies[0][1](x), values)


class _Mtcnn:
    def __init__(self, device: object) -> None:
        del device

    def detect(self, image):
        assert image.shape == (256, 256, 3)
        if image.mean() < 20:
            return None, [None]
        return torch.tensor([[-3.0, 10.2, 200.0, 300.0], [0, 0, 9, 9]]).numpy(), [0.9, 0.5]


class _Resnet(nn.Module):
    def __init__(self, pretrained: None, classify: bool) -> None:
        super().__init__()
        assert pretrained is None
        assert not classify
        self.last = nn.Linear(3, 512)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape == (1, 3, 160, 160)
        return torch.nn.functional.normalize(self.last(x.mean((2, 3))), dim=1)


def test_faces_that_are_not_there_are_rows_of_nan(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    from ornstein.guides.faces import FaceNet

    module = ModuleType("facenet_pytorch")
    module.__dict__.update(MTCNN=_Mtcnn, InceptionResnetV1=_Resnet)
    monkeypatch.setitem(sys.modules, "facenet_pytorch", module)
    state = _Resnet(None, False).state_dict() | {"logits.weight": torch.zeros(2, 2)}
    torch.save(state, tmp_path / "face.pt")
    network = FaceNet(str(tmp_path / "face.pt"))
    x = pictures(3, 20)
    x[1] = -1.0
    found = network(x)
    assert found.shape == (3, 512)
    assert torch.isnan(found).any(1).tolist() == [False, True, False]
    check_rows(network, x[[0, 2]])
    face = torch.nn.functional.interpolate((x[:1] + 1) / 2, size=(256, 256), mode="bicubic", align_corners=False)
    cut = torch.nn.functional.interpolate(
        face[..., 10:256, 0:200], size=(160, 160), mode="bicubic", align_corners=False
    )
    torch.testing.assert_close(network._net((255 * cut - 127.5) / 128), found[:1])


# ---------------------------------------------------------------------------------------------------- what is not there


@pytest.mark.parametrize(
    ("words", "choice"),
    [
        ("segmentation:a.png", "segmentation=standard:no/such.pth"),
        ("boxes:person@0,0,1,1", "boxes=standard:no/such.pth"),
        ("classifier:cat", "classifier=standard:no/such.pth"),
        ("text:a cat", "text=standard:no/such/folder"),
        ("identity:a.png", "identity=standard:no/such.pt"),
        ("edges:a.png", "edges=package:no/such.h5"),
        ("style:a.png", "style=package:no/such.h5"),
        ("edges:a.png", "edges=own:weights"),
        ("colour:red", "colour=own"),
        ("text:a cat", "text=package"),
    ],
)
def test_what_cannot_be_loaded_costs_one_line(words: str, choice: str) -> None:
    with pytest.raises(UsageError) as caught:
        guides.make([words], shape=(3, 8, 8), choices=[choice])
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("torchvision")
def test_weights_that_would_run_code_are_refused(tmp_path) -> None:
    class Evil:
        def __reduce__(self):
            return (exec, ("raise SystemExit('ran')",))

    torch.save({"head.weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="cannot be read"):
        guides.make(["segmentation:a.png"], shape=(3, 8, 8), choices=[f"segmentation=standard:{tmp_path / 'evil.pth'}"])
