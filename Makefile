PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
EXTRAS := test,examples,dev,docs
OLDEST_TRITON := 3.6.0
# Of the tests, each with one thread.
PROCESSES ?= 2
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist worksteal

# The corpus beside the checkout, where it is and nobody said otherwise.
ifndef NLTK_DATA
ifneq ($(wildcard ../shared/nltk_data),)
export NLTK_DATA := $(abspath ../shared/nltk_data)
endif
endif

.PHONY: demo quick test oldest lint docs hub benchmark static gpu-report clean

demo: $(VENV)/installed
	$(BIN)/python examples/paper/reproduce_reuters.py $(ARGS)

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What to run while working: all but the tests that take long or start several processes.
quick: lint
	$(PYTEST) tests -m "not slow and not distributed" $(ARGS)

test: lint
	$(PYTEST) tests --durations 20 $(ARGS)

# The kernels with the oldest Triton that pyproject.toml allows; all other tests have the newest.
oldest: build/triton-$(OLDEST_TRITON)
	PYTHONPATH=$(abspath $<) $(PYTEST) tests/backends/test_static.py tests/backends/test_triton_launch.py \
		tests/optim/test_static_update.py $(ARGS)

build/triton-$(OLDEST_TRITON): $(VENV)/installed
	$(BIN)/python -m pip install --quiet --no-deps --target $@ triton==$(OLDEST_TRITON)

docs: $(VENV)/installed
	$(BIN)/python -m sphinx -n -W --keep-going docs build/docs

# The layout of Hugging Face's kernel Hub, in build/hub. Needs Python alone.
hub:
	$(PYTHON) hub_build.py $(ARGS)

benchmark: $(VENV)/installed
	$(BIN)/python -m pytest benchmarks $(ARGS)

static: $(VENV)/installed
	$(BIN)/python benchmarks/static_figures.py

# Needs torch and triton alone, as they are on a machine with a GPU.
gpu-report:
	$(PYTHON) benchmarks/gpu_report.py $(ARGS)

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache
