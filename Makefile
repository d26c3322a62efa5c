# Two commands for a newcomer: `make demo` and `make test`. Each sets up what it needs in .venv first.
PYTHON ?= python3
VENV   ?= .venv
# The CPU build of torch is pinned; on a GPU machine: make demo CONSTRAINTS=
CONSTRAINTS ?= -c constraints.txt
BIN = $(VENV)/bin
# Two processes of one thread each beat one of two; no test may reach for the network.
TEST = env OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 MPLBACKEND=Agg $(PROCESSOR) $(BIN)/python -m pytest

.PHONY: demo test test-slow test-portable test-sse41 test-avx2 test-two-threads fuzz check mutants rates clean

demo: $(VENV)/.demo
	$(BIN)/ornstein demo --out demo

test: $(VENV)/.test
	$(TEST) -n 2 -m "not slow and not gpu and not network"

# The same suite as on other processors, which round differently: three times as long.
test-portable: test-sse41 test-avx2 test-two-threads

test-sse41: PROCESSOR = ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41
test-avx2: PROCESSOR = ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2
test-two-threads: PROCESSOR = OMP_NUM_THREADS=2 OMP_WAIT_POLICY=PASSIVE
test-two-threads: JOBS = 1
test-sse41 test-avx2 test-two-threads: $(VENV)/.test
	$(TEST) -n $(or $(JOBS),2) -m "not slow and not gpu and not network" $(ONLY)

test-slow: $(VENV)/.test
	$(TEST) -m "slow and not gpu and not network"

# 2,000 random wrong calls, commands, files and configurations, and right calls with known answers; from fixed seeds.
fuzz: $(VENV)/.test
	ORNSTEIN_FUZZ=2000 $(TEST) -n 2 tests/fuzz

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

# Hours: random one-line faults in every package, and which of them no test notices; then docs/mutants.md.
mutants: $(VENV)/.dev
	$(BIN)/python tools/mutants.py cover
	$(BIN)/python tools/mutants.py run --all --jobs 2 --json benchmarks/results/mutants.json
	$(BIN)/python tools/mutants.py table

rates: $(VENV)/.demo
	$(BIN)/ornstein rates

$(VENV)/bin/python:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'ornstein needs Python 3.11 or newer')"
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -e .
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -e ".[test]"
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) demo out build dist .pytest_cache .ruff_cache
