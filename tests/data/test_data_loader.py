"""Laws of the stream of batches: it is a function of (source, seed, start) and of nothing else."""

from __future__ import annotations

import itertools
import multiprocessing
import time
from dataclasses import dataclass

import pytest
import torch

from ornstein.data import Batch, Example, Order, UnreadableError, batches, open_source
from ornstein.data.loader import read_example
from ornstein.errors import ConfigError, DataError


@dataclass(frozen=True)
class Numbers:
    """Example i is a picture filled with i; the indices in ``bad`` cannot be read."""

    length: int
    bad: tuple[int, ...] = ()
    name: str = "numbers"
    classes: tuple[str, ...] = ()
    size: int = 4
    fingerprint: str = "numbers"

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Example:
        if index in self.bad:
            raise UnreadableError(f"n{index}", "broken")
        image = torch.arange(48, dtype=torch.uint8).reshape(3, 4, 4)
        image[:, 0, 0] = index
        return Example(image=image, label=index, caption=f"number {index}", name=f"n{index}")


def take(count: int, source: object, **options: object) -> list[Batch]:
    stream = batches(source, **options)  # type: ignore[arg-type]
    found = list(itertools.islice(stream, count))
    stream.close()  # type: ignore[attr-defined]
    return found


def same(left: list[Batch], right: list[Batch]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a.images, b.images)
        and torch.equal(a.labels, b.labels)
        and (a.captions, a.positions, a.skipped) == (b.captions, b.positions, b.skipped)
        for a, b in zip(left, right, strict=True)
    )


def test_an_epoch_is_a_permutation_and_epochs_differ() -> None:
    order = Order(seed=3, length=101)
    first = [order.index(p) for p in range(101)]
    second = [order.index(p) for p in range(101, 202)]
    assert sorted(first) == sorted(second) == list(range(101))
    assert first != second
    assert first != [Order(seed=4, length=101).index(p) for p in range(101)]
    assert [Order(3, 101, shuffle=False).index(p) for p in range(99, 104)] == [99, 100, 0, 1, 2]


def test_the_order_and_the_mirrors_are_those_of_every_machine() -> None:
    """Runs resume elsewhere: which example stands at a position, and whether it is mirrored, are numbers for good."""
    assert [Order(seed=0, length=7).index(p) for p in range(14)] == [4, 5, 3, 2, 6, 0, 1, 2, 5, 3, 1, 6, 0, 4]
    assert [Order(seed=-1, length=3).index(p) for p in range(6)] == [0, 1, 2, 2, 1, 0]
    batch = take(1, Numbers(24), batch=24, seed=3, flip=True, shuffle=False)[0]
    assert "".join(str(int(x[0, 1, 0] > x[0, 1, 1])) for x in batch.images) == "111001001110111110101000"


def test_a_mirror_belongs_to_the_visit_and_not_to_the_example() -> None:
    (plain,) = take(1, Numbers(1), batch=64, seed=0, flip=False)
    mirrored = []
    for seed in (0, 1):
        (batch,) = take(1, Numbers(1), batch=64, seed=seed, flip=True)
        mirrored.append([not torch.equal(x, y) for x, y in zip(batch.images, plain.images, strict=True)])
        assert 12 < sum(mirrored[-1]) < 52  # 64 fair coins: five standard deviations are 20
    assert mirrored[0] != mirrored[1]


def test_batch_has_the_stated_form() -> None:
    batch = take(1, Numbers(7), batch=4, seed=0)[0]
    assert batch.images.shape == (4, 3, 4, 4)
    assert batch.images.dtype == torch.float32
    assert batch.labels.dtype == torch.int64
    assert batch.positions == (0, 1, 2, 3)
    assert batch.captions == [f"number {i}" for i in batch.labels.tolist()]
    # 0 … 255 maps to −1 … 1 exactly at both ends.
    assert torch.equal(batch.images[:, 0, 0, 0], batch.labels.float() / 127.5 - 1.0)


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_no_bit(workers: int) -> None:
    source = Numbers(23, bad=(2, 3, 11))
    options = {"batch": 6, "seed": 5, "flip": True, "start": 17}
    assert same(take(9, source, **options), take(9, source, workers=workers, **options))


def test_starting_late_is_skipping() -> None:
    source = Numbers(10)
    assert same(take(6, source, batch=4, seed=1, flip=True)[2:], take(4, source, batch=4, seed=1, flip=True, start=8))
    whole = torch.cat([b.images for b in take(6, source, batch=4, seed=1, flip=True)])
    odd = torch.cat([b.images for b in take(3, source, batch=5, seed=1, flip=True, start=3)])
    assert torch.equal(whole[3:18], odd)  # neither the start nor the batch size need fit


def test_ranks_are_chunks_of_the_batch() -> None:
    source = Numbers(10, bad=(4,))
    whole = take(5, source, batch=6, seed=2, flip=True)
    parts = [take(5, source, batch=6, seed=2, flip=True, rank=r, world=3) for r in range(3)]
    for step, batch in enumerate(whole):
        assert torch.equal(batch.images, torch.cat([p[step].images for p in parts]))
        assert batch.positions == tuple(i for p in parts for i in p[step].positions)


def test_flips_are_mirrors_by_position() -> None:
    plain, flipped = (take(20, Numbers(10), batch=10, seed=0, flip=f) for f in (False, True))
    mirrored = 0
    for a, b in zip(plain, flipped, strict=True):
        for x, y in zip(a.images, b.images, strict=True):
            assert torch.equal(x, y) or torch.equal(x.flip(-1), y)
            mirrored += not torch.equal(x, y)
    assert 70 < mirrored < 130  # 200 fair coins: five standard deviations are 35


def test_unreadable_examples_are_replaced_by_the_next_and_reported() -> None:
    batch = take(1, Numbers(6, bad=(0, 4, 5)), batch=6, seed=0, shuffle=False)[0]
    assert batch.labels.tolist() == [1, 1, 2, 3, 1, 1]
    assert batch.skipped == (("n0", "broken"), ("n4", "broken"), ("n5", "broken"))
    assert take(1, Numbers(6), batch=6, seed=0)[0].skipped == ()


@pytest.mark.parametrize("workers", [0, 2])
def test_every_file_skipped_on_the_way_is_reported_once(workers: int) -> None:
    stream = batches(Numbers(5, bad=(2, 3, 4)), batch=3, seed=0, shuffle=False, workers=workers)
    first, second = itertools.islice(stream, 2)
    stream.close()  # type: ignore[attr-defined]
    assert (first.labels.tolist(), first.skipped) == ([0, 1, 0], (("n2", "broken"), ("n3", "broken"), ("n4", "broken")))
    assert (second.labels.tolist(), second.skipped) == ([0, 0, 0], (("n3", "broken"), ("n4", "broken")))
    assert second.captions == ["number 0"] * 3
    assert read_example(Numbers(5, bad=(2, 3)), 2)[0].name == "n4"
    assert read_example(Numbers(5, bad=(2, 3)), 2)[1] == [("n2", "broken"), ("n3", "broken")]
    with pytest.raises(DataError, match=r"^none of the 3 images of numbers can be read; for example n2: broken$"):
        read_example(Numbers(3, bad=(0, 1, 2)), 2)


@dataclass(frozen=True)
class Floating(Numbers):
    """As a source of latents: floating point beyond [−1, 1]."""

    def __getitem__(self, index: int) -> Example:
        return Example(image=torch.full((4, 2, 2), 3.5 + index), label=-1)


def test_latents_pass_as_they_are() -> None:
    batch = take(1, Floating(3), batch=3, seed=0, shuffle=False)[0]
    assert batch.images[:, 0, 0, 0].tolist() == [3.5, 4.5, 5.5]
    assert batch.labels.tolist() == [-1, -1, -1]
    assert batch.captions == ["", "", ""]


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_readable_is_one_clear_error(workers: int) -> None:
    with pytest.raises(DataError, match=r"^none of the 3 images of numbers can be read; for example n\d: broken$"):
        take(1, Numbers(3, bad=(0, 1, 2)), batch=2, seed=0, workers=workers)


def test_impossible_numbers_are_refused_at_once() -> None:
    for wrong in (
        {"batch": 0},
        {"batch": 3, "world": 2},
        {"batch": 2, "world": 0},
        {"batch": 2, "world": -1},
        {"batch": 2, "rank": 2, "world": 2},
        {"batch": 2, "rank": -1, "world": 2},
        {"batch": 1, "start": -1},
        {"batch": 1, "workers": -1},
    ):
        with pytest.raises(ConfigError):
            batches(Numbers(3), seed=0, **wrong)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="holds no examples"):
        batches(Numbers(0), batch=1, seed=0)


def test_workers_start_late_and_end_with_the_iterator() -> None:
    before = set(multiprocessing.active_children())
    stream = batches(Numbers(50), batch=4, seed=0, workers=2)
    assert set(multiprocessing.active_children()) == before
    next(stream)
    assert len(set(multiprocessing.active_children()) - before) == 2
    began = time.perf_counter()
    stream.close()  # type: ignore[attr-defined]
    assert time.perf_counter() - began < 5.0
    assert set(multiprocessing.active_children()) == before


def test_the_global_generator_is_not_touched() -> None:
    state = torch.get_rng_state()
    take(3, Numbers(9), batch=3, seed=0, workers=1)
    assert torch.equal(state, torch.get_rng_state())


def test_real_pictures_through_workers() -> None:
    source = open_source("critters:24", size=16)
    assert same(take(5, source, batch=8, seed=0), take(5, source, batch=8, seed=0, workers=2))


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_is_read_ahead_of_the_last_batch(tmp_path, workers):
    """Workers read ahead, but not beyond the ``count`` batches that are wanted."""
    log = tmp_path / "read"

    class Logged:
        name, fingerprint = "logged", "0"

        def __len__(self):
            return 64

        def __getitem__(self, index):
            with log.open("a") as file:
                file.write(f"{index}\n")
            return Example(image=torch.zeros(3, 2, 2, dtype=torch.uint8), label=-1, caption="")

    found = list(batches(Logged(), batch=4, seed=0, workers=workers, count=3))
    assert [batch.positions[0] for batch in found] == [0, 4, 8]
    assert len(log.read_text().split()) == 12
