"""What a training takes of its process, and gives back: signals, kernels, accelerate's state, other processes."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

import torch
from accelerate import Accelerator

from .config import TrainConfig


@contextlib.contextmanager
def stop_requested(listen: bool) -> Iterator[threading.Event]:
    """An event set by SIGINT or SIGTERM; a second SIGINT ends the program at once."""
    event = threading.Event()
    if not listen or threading.current_thread() is not threading.main_thread():
        yield event
        return

    def stop(number: int, frame: object) -> None:
        del frame
        if event.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        event.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def kernels(strict: bool) -> Iterator[None]:
    """Deterministic kernels if strict, else the fastest; what was set before is set again afterwards."""
    before, matmul = torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()
    benchmark = torch.backends.cudnn.benchmark
    if strict != before:  # the call alone imports torch's compiler, which takes seconds
        torch.use_deterministic_algorithms(strict)
    torch.backends.cudnn.benchmark = not strict
    if not strict and torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        if strict != before:
            torch.use_deterministic_algorithms(before)
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.benchmark = benchmark


def forget_accelerator() -> None:
    """Accelerate keeps its first precision for the life of the process; another run may want another one."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()


def _cores() -> set[int]:
    import os

    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def workers(config: TrainConfig, hardware: Accelerator) -> int:
    """How many processes read data."""
    if config.workers is not None:
        return config.workers
    return min(8, len(_cores()) // 2) if hardware.device.type == "cuda" else 0
