"""Any network as a denoiser: what it is fed, how conditions bind, many at once, and memory."""

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from ornstein.denoisers import CachedDenoiser, Denoiser
from ornstein.errors import ConfigError, UsageError
from ornstein.paths import VE, VP, ShiftedPath
from ornstein.randomness import Noise

X = Noise.of(0, range(3)).normal("x", (2, 4, 4))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.seen: list[tuple[torch.dtype, list[float]]] = []

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        self.seen.append((x.dtype, time.tolist()))
        out = self.conv(x) + time.to(x.dtype)[:, None, None, None]
        return out if label is None else out + label[:, None, None, None].to(x.dtype)


def net() -> Net:
    torch.manual_seed(0)
    return Net().requires_grad_(False)


def test_functions_modules_and_diffusers_answers() -> None:
    module = net()
    forms = [module, lambda x, time: module(x, time), lambda x, time: SimpleNamespace(sample=module(x, time))]
    answers = [Denoiser(f, VP())(X, 0.5).noise for f in forms]
    assert all(torch.equal(a, answers[0]) for a in answers)
    assert module.seen[0][1] == [500.0] * 3
    with pytest.raises(UsageError, match="tuple"):
        Denoiser(lambda x, time: (x,), VP())(X, 0.5)
    with pytest.raises(ConfigError, match="epsilons"):
        Denoiser(module, VP(), "epsilons")


@pytest.mark.parametrize("state", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weights", [torch.float64, torch.float32, torch.bfloat16])
def test_the_network_keeps_its_precision_and_the_state_its_own(state: torch.dtype, weights: torch.dtype) -> None:
    module = net().to(weights)
    found = Denoiser(module, VE(), "edm")(X.to(state), 0.5).clean
    assert module.seen[0][0] == weights
    assert found.dtype == state


def test_the_clock_can_be_replaced() -> None:
    module = net()
    model = Denoiser(module, VP.table(), timestep_of=lambda path, t: path.sigma(t))
    model(X, 0.5)
    assert module.seen[0][1] == pytest.approx([VP.table().sigma(0.5)] * 3)
    model(X, torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64))
    assert module.seen[1][1] == pytest.approx([VP.table().sigma(t) for t in (0.1, 0.2, 0.3)])


def test_given_binds_replaces_and_copies() -> None:
    module = net()
    cond = {"label": torch.ones(1)}
    bound = Denoiser(module, VP()).with_condition({"label": torch.zeros(3)}).with_condition(cond)
    cond["label"] = torch.full((1,), 9.0)
    assert torch.equal(bound(X, 0.5).noise, module(X, torch.full((3,), 500.0), torch.ones(3)))
    path = ShiftedPath(shift=lambda clean, c, t: clean * c["label"])
    assert torch.equal(Denoiser(module, path, "clean").with_condition(cond).path.cond["label"], cond["label"])  # type: ignore[attr-defined]


@pytest.mark.parametrize("t", [0.5, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)], ids=["float", "tensor"])
def test_many_is_separate_calls(t: float | Tensor) -> None:
    conds = [{"label": torch.tensor([1.0])}, {"label": torch.tensor([2.0, 3.0, 4.0])}, {"label": torch.tensor([5.0])}]
    model = Denoiser(net(), VP())
    for together, cond in zip(model.predict_conditions(X, t, conds), conds, strict=True):
        torch.testing.assert_close(together.noise, model.with_condition(cond)(X, t).noise, rtol=1e-6, atol=1e-6)
    calls: list[int] = []

    def pointwise(x: Tensor, time: Tensor, label: Tensor) -> Tensor:
        calls.append(len(x))
        return x * label[:, None, None, None] + time[:, None, None, None]

    model = Denoiser(pointwise, VP())
    for together, cond in zip(model.predict_conditions(X, t, conds), conds, strict=True):
        assert torch.equal(together.noise, model.with_condition(cond)(X, t).noise)
    assert calls == [9, 3, 3, 3]
    assert [len(e.noise) for e in model.predict_conditions(X[:0], 0.5, conds[::2])] == [0, 0]
    assert torch.equal(model.predict_conditions(X, t, conds[:1])[0].noise, model.with_condition(conds[0])(X, t).noise)


def test_wrong_conditions_are_refused() -> None:
    model = Denoiser(net(), VP())
    with pytest.raises(UsageError, match=r"'label'.*3 rows"):
        model.with_condition({"label": torch.zeros(2)})(X, 0.5)
    with pytest.raises(UsageError, match="'label'"):
        model.with_condition({"label": torch.tensor(1.0)})(X, 0.5)
    with pytest.raises(UsageError, match="'label' is a str"):
        model.with_condition({"label": "cat"})(X, 0.5)  # type: ignore[dict-item]
    with pytest.raises(UsageError, match="same keys"):
        model.predict_conditions(X, 0.5, [{"label": torch.zeros(1)}, {}])
    with pytest.raises(UsageError, match="at least one"):
        model.predict_conditions(X, 0.5, [])


def test_denoisers_travel() -> None:
    model = Denoiser(net(), VP(), "v", shape=(2, 4, 4), cond={"label": torch.ones(1)})
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(X, 0.5).clean, model(X, 0.5).clean)
        assert twin != model  # by identity: networks have no other equality
        hash(twin)
    assert model.device == torch.device("cpu")


def test_memo_asks_once() -> None:
    module = net()
    memo = CachedDenoiser(Denoiser(module, VP()))
    first = memo(X, 0.5)
    assert memo(X, 0.5) is first
    assert len(module.seen) == 1
    times = torch.full((3,), 0.5, dtype=torch.float64)
    assert memo(X, times) is memo(X, times)
    assert len(module.seen) == 2
    for x, t in ((X, 0.4), (X.clone(), 0.4), (X, 0.5)):
        memo(x, t)
    assert len(module.seen) == 5
    with torch.no_grad():
        memo(X, 0.5)  # an answer without a graph is no answer to a question with gradients
    assert len(module.seen) == 6
    bound = memo.with_condition({"label": torch.ones(1)})
    assert not torch.equal(bound(X, 0.5).noise, first.noise)
    assert len(memo.predict_conditions(X, 0.5, [{"label": torch.ones(1)}] * 2)) == 2
