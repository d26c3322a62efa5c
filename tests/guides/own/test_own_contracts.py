"""The guide networks of our own: what every one of them promises, whatever it was trained on."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ornstein.errors import CheckpointError, UsageError
from ornstein.guides import own
from ornstein.guides.own import boxes, files

Score = Callable[[Tensor], Tensor]
LOADERS = {
    "segmentation": own.segmenter,
    "classifier": own.classifier,
    "identity": own.embedder,
    "text": own.text_image,
    "detection": own.detector,
}
BOX = torch.tensor([[0.1, 0.2, 0.8, 0.95], [0.3, 0.35, 0.7, 0.6]]), torch.tensor([0, 2])


@pytest.fixture(scope="module")
def scores() -> dict[str, Score]:
    """A number or several for each picture, from every network."""
    segmenter, classifier, embedder = own.segmenter(), own.classifier(), own.embedder()
    fit, detector = own.text_image(), own.detector()
    texts = fit.text(["a green critter", "a critter with a crown"])
    return {
        "segmentation": lambda x: segmenter(x).mean((2, 3)),
        "classifier": classifier,
        "identity": lambda x: embedder.parts(x)[0],
        "text": lambda x: (fit.image(x)[:, None] * texts).sum(2),
        "detection": lambda x: detector.loss(x, *BOX)[:, None],
    }


def pictures(count: int, side: tuple[int, int] = (64, 64), seed: int = 0) -> Tensor:
    """Smooth pictures: noise at a few pixels, enlarged."""
    noise = torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(noise, side, mode="bicubic", align_corners=False).clamp(-1, 1)


def test_the_shapes_are_those_of_the_contract() -> None:
    x = pictures(2, (40, 56))
    segmenter = own.segmenter()
    assert segmenter(x).shape == (2, len(segmenter.classes), 40, 56)
    classifier = own.classifier()
    assert classifier(x).shape == (2, len(classifier.classes))
    assert own.embedder()(x).shape == (2, 64)
    fit = own.text_image()
    assert fit.image(x).shape == (2, 128)
    assert fit.text(["a green critter", "a crown", "on navy"]).shape == (3, 128)
    assert isinstance(fit.scale, float)
    assert 1.0 < fit.scale <= 100.0
    detector = own.detector()
    assert detector.loss(x, *BOX).shape == (2,)
    assert len(detector.detect(x)) == 2


@pytest.mark.parametrize("kind", LOADERS)
def test_every_network_is_frozen_and_small(kind: str) -> None:
    net = LOADERS[kind]()
    assert not net.training
    assert all(not p.requires_grad and p.dtype == torch.float32 for p in net.parameters())
    assert 200_000 < net.parameter_count < 700_000


def test_all_files_together_are_small() -> None:
    assert sum(files.shipped(kind).stat().st_size for kind in own.KINDS) < 5 * 2**20


@pytest.mark.parametrize("kind", LOADERS)
def test_gradients_are_those_of_finite_differences(scores: dict[str, Score], kind: str) -> None:
    x = pictures(2, (48, 48)).requires_grad_()
    score = scores[kind]
    score(x)[:, 0].sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    with torch.no_grad():
        for row in range(2):
            # Along the gradient itself, where the difference stands out from the rounding of float32.
            along = torch.zeros_like(x)
            along[row] = x.grad[row] / x.grad[row].norm()
            slopes = [float((score(x + h * along) - score(x - h * along))[row, 0] / (2 * h)) for h in (0.02, 0.04)]
            measured = (4 * slopes[0] - slopes[1]) / 3  # Richardson: what is left is of fourth order
            assert measured == pytest.approx(float(x.grad[row].norm()), rel=0.03)


@pytest.mark.parametrize("kind", LOADERS)
def test_a_row_depends_on_its_picture_alone(scores: dict[str, Score], kind: str) -> None:
    x = pictures(5)
    whole = scores[kind](x)
    alone = torch.cat([scores[kind](row[None]) for row in x])
    torch.testing.assert_close(whole, alone, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(scores[kind](x.flip(0)).flip(0), whole, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", LOADERS)
def test_the_size_of_the_picture_hardly_matters(scores: dict[str, Score], kind: str) -> None:
    small = pictures(4)
    large = torch.nn.functional.interpolate(small, scale_factor=2, mode="nearest")
    same, apart = (scores[kind](large) - scores[kind](small)).norm(), scores[kind](small).std(0).norm()
    assert same < 0.05 * (apart + scores[kind](small).norm())


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_flat_pictures_and_half_precision_give_finite_answers(
    scores: dict[str, Score], kind: str, value: float
) -> None:
    x = torch.full((1, 3, 32, 32), value).requires_grad_()
    answer = scores[kind](x)
    answer.sum().backward()
    assert answer.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert scores[kind](x.detach().to(torch.bfloat16)).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(scores[kind](x), answer)


def test_classes_of_a_group_share_one() -> None:
    classifier = own.classifier()
    logits = classifier(pictures(3))
    assert sum(len(values) for values in classifier.groups.values()) == len(classifier.classes) == logits.shape[1]
    for _, which in classifier.slices():
        torch.testing.assert_close(logits[:, which].exp().sum(1), torch.ones(3))
    # So softmax over all classes is the probability within the group, up to a constant.
    constant = logits.log_softmax(1) - logits
    torch.testing.assert_close(constant, torch.full_like(constant, -torch.tensor(len(classifier.groups)).log().item()))


def test_rows_without_a_creature_are_nan_and_pass_no_gradient() -> None:
    embedder = own.embedder()
    x = torch.cat([torch.zeros(1, 3, 64, 64), pictures(3)]).requires_grad_()
    vectors, (unit, found) = embedder(x), embedder.parts(x)
    assert torch.equal(vectors.isnan().all(1), found <= 0)
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(4))
    vectors.nan_to_num().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert not x.grad[found <= 0].any()


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (1, 3, 0, 64)])
def test_what_is_no_picture_is_refused(scores: dict[str, Score], kind: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="guide networks take float pictures"):
        scores[kind](torch.zeros(shape))


def test_whole_numbers_are_no_picture() -> None:
    with pytest.raises(UsageError, match="uint8"):
        own.classifier()(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("box", "labels"),
    [
        ([[0.1, 0.1, 0.5]], [0]),
        ([[0.1, 0.1, 0.5, 0.5]], [0, 1]),
        ([[0.5, 0.1, 0.5, 0.5]], [0]),
        ([[0.1, 0.1, 0.5, 1.5]], [0]),
        ([[0.1, 0.1, 0.5, float("nan")]], [0]),
        ([[0.1, 0.1, 0.5, 0.5]], [99]),
        ([[0.1, 0.1, 0.5, 0.5]], [-1]),
        ([[0.1, 0.1, 0.5, 0.5]], [0.5]),
    ],
)
def test_boxes_that_are_none_are_refused(box: list[list[float]], labels: list[float]) -> None:
    with pytest.raises(UsageError):
        own.detector().loss(pictures(1), torch.tensor(box), torch.tensor(labels))


def test_texts_without_a_known_word_are_refused() -> None:
    fit = own.text_image()
    for texts in (["xyzzy"], ["a green critter", ""], "a green critter"):
        with pytest.raises(UsageError):
            fit.text(texts)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", LOADERS)
def test_a_file_that_does_not_fit_is_refused(kind: str, tmp_path: Path) -> None:
    good = files.shipped(kind)
    with pytest.raises(CheckpointError, match="train-guide"):
        LOADERS[kind](tmp_path / "missing.safetensors")
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="is not a readable safetensors file"):
        LOADERS[kind](bad)
    other = next(k for k in LOADERS if k != kind)
    with pytest.raises(CheckpointError, match=f"holds {other}, not {kind}"):
        LOADERS[kind](files.shipped(other))
    state = load_file(good)
    save_file(state, bad)
    with pytest.raises(CheckpointError, match="no guide network"):
        LOADERS[kind](bad)
    header = {"format": files.FORMAT, "kind": kind, "settings": json.dumps(LOADERS[kind]().settings)}
    for settings in ('{"classes": 3}', "{", '{"nonsense": []}', "[]"):
        save_file(state, bad, {**header, "settings": settings})
        with pytest.raises(CheckpointError, match="does not fit"):
            LOADERS[kind](bad)
    first = next(iter(state))
    save_file({**state, first: torch.full_like(state[first], torch.nan)}, bad, header)
    with pytest.raises(CheckpointError, match="not finite"):
        LOADERS[kind](bad)
    save_file({k: v for k, v in state.items() if k != first}, bad, header)
    with pytest.raises(CheckpointError, match="does not fit"):
        LOADERS[kind](bad)


def test_an_unwritable_place_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, out = own.segmenter(), tmp_path / "s.safetensors"
    files.write(net, out, {"first": True})
    before = out.read_bytes()

    def broken(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fdopen", broken)
    with pytest.raises(OSError, match="disk full"):
        files.write(net, out, {"first": False})
    assert out.read_bytes() == before


def test_a_file_gives_back_the_network(tmp_path: Path) -> None:
    for kind, load in LOADERS.items():
        net = load()
        files.write(net, tmp_path / "copy.safetensors", {})
        again = load(tmp_path / "copy.safetensors").state_dict()
        assert all(torch.equal(value, again[name]) for name, value in net.state_dict().items()), kind


# --------------------------------------------------------------------------------------------- arithmetic of detection


def test_giou_of_known_boxes() -> None:
    one = torch.tensor([0.0, 0.0, 0.5, 0.5])
    others = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.25, 0.0, 0.75, 0.5], [0.5, 0.5, 1.0, 1.0]])
    torch.testing.assert_close(boxes.giou(one, others), torch.tensor([1.0, 1 / 3, -0.5]))
    torch.testing.assert_close(boxes.iou(one[None], others)[0], torch.tensor([1.0, 1 / 3, 0.0]))


def test_every_box_has_a_place_and_the_smallest_of_its_class_wins() -> None:
    rng = torch.Generator().manual_seed(0)
    low = 0.9 * torch.rand(64, 1, 2, generator=rng)
    box = torch.cat([low, low + 0.02 + (0.98 - low) * torch.rand(64, 1, 2, generator=rng)], 2).clamp(max=1)
    which = boxes.assigned(box, torch.ones(64, 1).long(), 2)
    assert (which[..., 1] == 0).any(1).all()
    assert (which[..., 0] == -1).all()
    assert (boxes.assigned(box, -torch.ones(64, 1).long(), 2) == -1).all()
    nested = torch.tensor([[[0.0, 0.0, 1.0, 1.0], [0.4, 0.4, 0.6, 0.6]]])
    middle = (boxes.centres(nested) - 0.5).abs().amax(1) < 0.05
    rivals = boxes.assigned(nested, torch.tensor([[0, 0]]), 2)[0, :, 0]
    assert (rivals[middle] == 1).all()
    assert (rivals == 0).any()
    apart = boxes.assigned(nested, torch.tensor([[0, 1]]), 2)[0]
    assert (apart[middle] == torch.tensor([0, 1])).all()


def test_the_right_answer_has_the_least_loss() -> None:
    truth = torch.tensor([[[0.1, 0.1, 0.6, 0.7]]])
    labels = torch.tensor([[1]])
    logits = torch.where(boxes.assigned(truth, labels, 3) == 0, 20.0, -20.0)
    exact = truth[:, None].expand(1, 256, 3, 4)
    assert boxes.loss(logits, exact, truth, labels) < 1e-6
    assert boxes.loss(logits, exact + 0.1, truth, labels) > 0.1
    assert boxes.loss(-logits, exact, truth, labels) > 1
    found = boxes.chosen(logits[0], exact[0], 0.5)
    torch.testing.assert_close(found[0], truth[0])
    assert found[1].tolist() == [1]
