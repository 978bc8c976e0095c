# make demo   an environment in .venv, then a training run on small data
# make test   the same with the developers' tools, then lint and tests
# make quick  lint and the tests of the model alone, in three minutes
# make reference  pages of the API in docs/reference, from the docstrings
# make clean  removes what the two made
#
# Any variable can be given on the command line, for instance
#   make demo PYTHON=python3.12 TORCH='torch torchvision'
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.14.1 torchvision==0.29.1
# Two tests at a time, each with one thread.
JOBS ?= 2
PYTEST_ARGS ?=

# What a person calls from Python.
ROOMS := analysis apis backbones benchmark checkpoint deploy graphs hooks hub \
  hub.mixin hub.timm_models layers ops optim run

BIN := $(VENV)/bin
# One pip call for everything: in a second call openmim's dependencies would
# be free to change what the first one chose.
INSTALL := $(BIN)/python -m pip install --no-input $(TORCH)

.PHONY: demo test quick lint env reference clean

demo: $(VENV)/.ready-demo
	$(BIN)/python tools/misc/demo.py

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadscope \
	  $(PYTEST_ARGS)

quick: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadscope \
	  -m 'not (kernels or hosts or docs or paper)' $(PYTEST_ARGS)

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

env: $(VENV)/.ready-dev

reference: $(VENV)/.ready-dev
	$(BIN)/pdoc -d google -o docs/reference evmamba_mm $(ROOMS:%=evmamba_mm.%)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready-demo: pyproject.toml setup.py | $(BIN)/python
	$(INSTALL) -e '.[lite]'
	$(BIN)/python -m pip check
	touch $@

$(VENV)/.ready-dev: pyproject.toml setup.py | $(BIN)/python
	$(INSTALL) -e '.[lite,dev]'
	$(BIN)/python -m pip check
	touch $@ $(VENV)/.ready-demo

clean:
	rm -rf $(VENV) build dist docs/reference *.egg-info .pytest_cache .ruff_cache
