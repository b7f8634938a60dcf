# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# A process per core, each with one thread: twice as fast as one process with many.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

.PHONY: setup demo test slow lint type ci bench wheel clean
setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e ".[train,factory,app,browser,dev]"
	touch $(READY)

demo: setup          ## simulate a factory, train a small system, score it, print the table
	$(BIN)/python -m benchmarks.quickstart --seeds 0 --output_dir runs/quickstart --demo_dir runs/demo

test: setup          ## the default test suite
	$(PYTEST)

slow: setup          ## the tests over 20 s
	$(PYTEST) -m "slow and not gpu and not network"

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports

type: setup
	$(BIN)/mypy

ci: lint type test slow

bench: setup         ## time and memory of training at base size
	$(BIN)/python -m benchmarks.training --recipes beats_arcface --updates 1 --output_dir runs/training

wheel: setup
	$(BIN)/python -m pip wheel --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) runs scores dist
