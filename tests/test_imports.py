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
    "tyro",
    "pandas",
    "sklearn",
)


def seconds(statement: str) -> float:
    code = f"import time; begin = time.perf_counter(); {statement}; print(time.perf_counter() - begin)"
    runs = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(3)
    ]
    return min(runs)


def test_import_time_is_under_one_and_a_half_times_torch() -> None:
    assert seconds("import ornstein") < 1.5 * seconds("import torch")


def test_import_is_light() -> None:
    code = "import sys, ornstein; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not set(loaded) & set(HEAVY)
