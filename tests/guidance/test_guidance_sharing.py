"""What guidances share: an answer serves the question it was given to alone; what is inside a guided denoiser."""

import torch
from torch import Tensor

from ornstein import guidance as guide
from ornstein.denoisers import Denoiser, DenoiserInfo, uncached
from ornstein.estimates import Estimate
from ornstein.guidance.base import CachedEvaluation, condition_of, network_of
from ornstein.guidance.checkpointing import blocks_of, checkpointed
from ornstein.modulation import Site, modulated
from ornstein.paths import VE, VP
from ornstein.randomness import Noise

X = Noise.of(0, range(3), dtype=torch.float64).normal("x", (2, 2, 4))
TOLD = {"label": torch.tensor([1.0, -0.4, 0.3], dtype=torch.float64)}
NULL = {"label": torch.tensor([0.2], dtype=torch.float64)}


class Asked:
    """A denoiser that counts what it is asked."""

    def __init__(self, cond=None) -> None:
        self.path, self.cond, self.calls = VE(), cond, []

    @property
    def info(self) -> DenoiserInfo:
        return DenoiserInfo(cond=self.cond)

    def __call__(self, x: Tensor, t) -> Estimate:
        self.calls.append((x, t))
        scale = 1.0 if not self.cond else self.cond["label"][0]
        return Estimate(x, t, self.path, clean=scale * x)

    def with_condition(self, cond):
        bound = Asked(cond)
        bound.calls = self.calls
        return bound

    def predict_conditions(self, x, t, conds):
        return [self.with_condition(cond)(x, t) for cond in conds]


def test_an_answer_serves_the_same_question_alone():
    """The same tensor, the same time, the same condition, with or without gradients, under the same modulations."""
    inner = Asked(TOLD)
    shared = CachedEvaluation(inner)
    first = shared(X, 1.0)
    assert shared(X, 1.0) is first
    assert shared.with_condition(TOLD)(X, 1.0) is first
    assert shared.with_condition(dict(TOLD))(X, 1.0) is first
    assert len(inner.calls) == 1
    for different in (
        lambda: shared(X.clone(), 1.0),
        lambda: shared(X, 2.0),
        lambda: shared(X, torch.ones(3)),
        lambda: shared.with_condition(NULL)(X, 1.0),
        lambda: shared.with_condition({"label": TOLD["label"].clone()})(X, 1.0),
        lambda: shared.with_condition({**TOLD, "more": X})(X, 1.0),
    ):
        before = len(inner.calls)
        assert different() is not first
        assert len(inner.calls) == before + 1
    times = torch.ones(3)
    assert shared(X, times) is shared(X, times)
    site = torch.nn.Sequential(Site("a"))
    with modulated(site, {"a": lambda feature, name, t: feature}):
        assert shared(X, 1.0) is not first
    assert shared(X, 1.0) is first
    known = len(inner.calls)
    answers = shared.predict_conditions(X, 1.0, [TOLD, NULL, TOLD])
    assert answers[0] is first
    assert answers[2] is first
    assert answers[1] is shared.with_condition(NULL)(X, 1.0)
    assert len(inner.calls) == known
    assert CachedEvaluation.of(shared) is shared
    assert uncached(shared) is inner
    assert (condition_of(shared), shared.path) == (TOLD, inner.path)


def test_without_a_condition_the_denoiser_itself_is_the_question():
    inner = Asked()
    shared = CachedEvaluation(inner)
    assert shared(X, 1.0) is shared(X, 1.0)
    assert len(inner.calls) == 1
    other = CachedEvaluation(Asked())
    assert other(X, 1.0) is not shared(X, 1.0)


def test_an_answer_with_gradients_serves_one_without():
    inner = Asked(TOLD)
    shared = CachedEvaluation(inner)
    with torch.enable_grad():
        leaf, found = shared.differentiable(X, 1.0)
        again, same = shared.differentiable(X, 1.0)
    assert leaf is again
    assert found is same
    assert leaf is not X
    assert leaf.requires_grad
    plain = shared(X, 1.0)
    assert len(inner.calls) == 1
    assert not plain.clean.requires_grad
    assert plain.x is X
    assert torch.equal(plain.clean, found.clean)
    shared(X, 2.0)
    assert len(inner.calls) == 2


def test_what_is_inside_a_guided_denoiser_is_found():
    class Conditioning(torch.nn.Module):
        def forward(self, x: Tensor, time: Tensor, label: Tensor) -> Tensor:
            return x + label[:, None, None, None]

    module = Conditioning()
    inner = Denoiser(module, VP(), "clean", cond=TOLD, shape=(2, 2, 4))
    guided = guide.Threshold()(guide.Threshold()(inner))
    assert network_of(guided) is module
    assert condition_of(guided) is not None
    assert condition_of(guided).keys() == TOLD.keys()  # pyright: ignore[reportOptionalMemberAccess]
    info = guided.info
    assert (info.shape, guided.path, info.device, info.codec) == ((2, 2, 4), inner.path, inner.device, None)
    assert network_of(Denoiser(lambda x, time: x, VP())) is None
    assert condition_of(object()) is None
    unwrapped = uncached(guide.Threshold()(CachedEvaluation(inner)))
    assert unwrapped.inner is inner  # pyright: ignore[reportAttributeAccessIssue]
    assert torch.equal(unwrapped(X, 0.5).clean, guide.Threshold()(inner)(X, 0.5).clean)


def test_the_blocks_of_a_network_are_the_outermost_of_its_lists():
    layer = lambda: torch.nn.Linear(2, 2)  # noqa: E731
    nested = torch.nn.Sequential(layer(), layer())

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = layer()
            self.blocks = torch.nn.ModuleList([layer(), nested, torch.nn.ReLU()])
            self.named = torch.nn.ModuleDict({"a": layer()})
            self.deep = Inner()

    class Inner(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = torch.nn.ModuleList([layer()])

    net = Whole()
    assert blocks_of(net) == [net.blocks[0], *nested, net.named["a"], net.deep.inside[0]]
    assert blocks_of(nested) == [*nested]
    assert blocks_of(layer()) == []
    before = net.blocks[0].forward
    with checkpointed(net):
        assert "forward" in net.blocks[0].__dict__
        with checkpointed(net):  # twice is once
            pass
        assert "forward" in net.blocks[0].__dict__
    assert "forward" not in net.blocks[0].__dict__
    assert net.blocks[0].forward == before
    with checkpointed(None):
        pass
