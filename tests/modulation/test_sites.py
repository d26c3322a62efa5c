"""Laws of sites and of `modulated`."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
from torch import nn

from ornstein.errors import ConfigError
from ornstein.modulation import Site, modulated
from ornstein.networks.sites import sites


class Chain(nn.Module):
    """Three sites in a row, each followed by a doubling."""

    def __init__(self):
        super().__init__()
        self.places = nn.ModuleList(Site(name) for name in ("down.0.0.hidden", "up.0.0.skip", "up.0.0.hidden"))

    def forward(self, x, time):
        for place in self.places:
            x = 2 * place(x, time)
        return x


def plus(amount):
    return lambda feature, site, t: feature + amount


def times(amount):
    return lambda feature, site, t: feature * amount


def test_without_modulation_a_site_returns_the_object_it_was_given():
    x = torch.randn(2, 3, 4, 4)
    assert Site("a")(x, 0.0) is x


def test_identity_modulation_is_bit_identical():
    net, x = Chain(), torch.randn(2, 3, 4, 4)
    with modulated(net, {"*": lambda feature, site, t: feature}):
        inside = net(x, torch.zeros(2))
    assert torch.equal(inside, net(x, torch.zeros(2)))


def test_a_modulation_gets_feature_name_and_time_in_order():
    seen = []

    def spy(feature, site, t):
        seen.append((site, t))
        return feature

    net = Chain()
    with modulated(net, {"*": spy}):
        net(torch.ones(1), 0.25)
    assert seen == [(name, 0.25) for name in sites(net)]


def test_patterns_choose_sites():
    net, x = Chain(), torch.ones(1)
    with modulated(net, {"up.*.skip": plus(1.0)}):
        assert net(x, 0.0).item() == ((1 * 2 + 1) * 2) * 2
    with modulated(net, {"up.*": plus(1.0)}):
        assert net(x, 0.0).item() == ((1 * 2 + 1) * 2 + 1) * 2
    with modulated(net, {"down.?.[0-3].hidden": plus(1.0)}):
        assert net(x, 0.0).item() == 16


def test_two_keys_on_one_site_apply_in_the_order_given():
    site = Site("a")
    with modulated(site, {"*": plus(1.0), "a": times(3.0)}):
        assert site(1.0, 0.0) == 6.0
    with modulated(site, {"a": times(3.0), "*": plus(1.0)}):
        assert site(1.0, 0.0) == 4.0


def test_nested_blocks_compose_outer_first_and_are_undone():
    site = Site("a")
    with modulated(site, {"a": plus(1.0)}):
        with modulated(site, {"a": times(3.0)}):
            assert site(1.0, 0.0) == 6.0
        assert site(1.0, 0.0) == 2.0
    assert site(1.0, 0.0) == 1.0


def test_an_exception_undoes_the_block():
    site = Site("a")
    with pytest.raises(RuntimeError), modulated(site, {"a": plus(1.0)}):
        raise RuntimeError
    assert site(1.0, 0.0) == 1.0


def test_a_pattern_without_a_match_names_the_sites_and_binds_nothing():
    net = Chain()
    message = r"'mid\.\*'.*down\.0\.0\.hidden, up\.0\.0\.skip"
    with pytest.raises(ConfigError, match=message), modulated(net, {"*": plus(1.0), "mid.*": plus(1.0)}):
        pass
    assert net(torch.ones(1), 0.0).item() == 8.0


def test_a_network_without_sites_says_so():
    with pytest.raises(ConfigError, match="Linear has no named sites"), modulated(nn.Linear(1, 1), {"*": plus(1.0)}):
        pass


def test_nothing_remains_on_the_module():
    net = Chain()
    before = {name: dict(vars(module)) for name, module in net.named_modules()}
    with modulated(net, {"*": plus(1.0)}):
        assert {name: dict(vars(module)) for name, module in net.named_modules()} == before
        assert net.state_dict() == {}
        twin = pickle.loads(pickle.dumps(net))
        assert twin(torch.ones(1), 0.0).item() == 8.0  # bindings belong to the network named, not to its copies
        assert copy.deepcopy(net)(torch.ones(1), 0.0).item() == 8.0
    assert sites(twin) == sites(net)


def test_another_network_is_not_touched():
    one, other = Chain(), Chain()
    with modulated(one, {"*": plus(1.0)}), modulated(other, {"*": times(0.0)}):
        assert one(torch.ones(1), 0.0).item() == (((1 + 1) * 2 + 1) * 2 + 1) * 2
        assert other(torch.ones(1), 0.0).item() == 0.0


def test_another_thread_is_not_touched():
    net, results = Chain(), []
    with modulated(net, {"*": plus(1.0)}):
        thread = threading.Thread(target=lambda: results.append(net(torch.ones(1), 0.0).item()))
        thread.start()
        thread.join()
    assert results == [8.0]
