"""What `import ornstein` costs, and what it must not drag in."""

import subprocess
import sys

HEAVY = (
    "torchvision",
    "diffusers",
    "transformers",
    "datasets",
    "matplotlib",
    "accelerate",
    "pandas",
    "sklearn",
)


def test_import_time_is_under_one_and_a_half_times_torch() -> None:
    code = (
        "from time import perf_counter as now; a = now(); import torch; b = now(); import ornstein; c = now(); "
        "print((c - a) / (b - a))"
    )
    ratios = [float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout) for _ in "12"]
    assert min(ratios) < 1.5


def test_import_is_light() -> None:
    code = "import sys, ornstein; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not set(loaded) & set(HEAVY)
