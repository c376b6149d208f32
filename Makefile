# Targets for developers; CI calls the same ones. Requires only make and Python 3.11 or newer.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
TAG ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Idle threads sleep instead of spinning, which would slow down a shared machine
RUN := OMP_WAIT_POLICY=PASSIVE $(BIN)/
PYTEST := $(RUN)python -m pytest

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test test-slow lint format reference docs bench gpu smoke dist

help:  ## print this list of targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20
	@echo "Variables: PYTHON=$(PYTHON) VENV=$(VENV) ARGS=(for pytest and bench)"

install: $(STAMP)  ## create the environment VENV and install quadranas in it, editable, with development tools

$(STAMP): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "quadranas needs Python 3.11 or newer; $(PYTHON) is: $$($(PYTHON) --version 2>&1 | head -1)" >&2; \
	  echo "Name another one, for example: make $(or $(MAKECMDGOALS),install) PYTHON=python3.12" >&2; \
	  exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)  ## search a QuadraNet for 30 ms on the VPU with the built-in data, and export it
	$(BIN)/quadranas search --device vpu --budget 30ms --resume --output runs/demo
	$(BIN)/quadranas export runs/demo --format onnx --force

# One thread each. Some tests wait, so there is one process more than cores, but at most four
test: $(STAMP)  ## run the fast tests
	OMP_NUM_THREADS=1 $(PYTEST) -m "not slow" -n $$($(BIN)/python -c 'import os; print(min(4, os.cpu_count() + 1))') --dist worksteal $(ARGS)

test-slow: $(STAMP)  ## run the slow tests
	$(PYTEST) -m slow $(ARGS)

lint: $(STAMP)  ## check style, types and directions of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)  ## rewrite the sources in the project's style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

reference: $(STAMP)  ## write docs/reference/ from the code, and the page of evidence from the results in experiments/
	PYTHONPATH=. $(RUN)python docs/generate.py
	$(RUN)python docs/evidence.py

$(VENV)/.docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

docs: $(VENV)/.docs  ## run the code on the pages of docs/, build the site in site/, execute the notebooks
	$(PYTEST) tests/test_docs.py tests/test_reference.py tests/test_public_api.py $(ARGS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -f .ci/mkdocs.yml
	PYTHONPATH=. $(RUN)python docs/notebooks.py site/tutorials

bench: $(STAMP)  ## measure the speeds that the README states
	$(RUN)python experiments/benchmark/run.py $(ARGS)
	$(RUN)python experiments/benchmark/processes.py $(ARGS)
	$(RUN)python experiments/benchmark/tables.py $(ARGS)
	$(RUN)python experiments/benchmark/data.py $(ARGS)
	$(RUN)python experiments/benchmark/strategies.py $(ARGS)

gpu: $(STAMP)  ## measure what needs a GPU, in at most nine minutes; ARGS="--data FOLDER" with CIFAR-10's zips
	$(RUN)python experiments/gpu/run.py $(ARGS)

dist: $(STAMP)  ## build wheel and source archive in dist/, and check them; TAG=v1.2.3 must be the version
	rm -rf build dist
	$(BIN)/python -m build --outdir dist
	.ci/check_dist $(BIN) $(TAG)

smoke: $(STAMP)  ## build-lut, search, derive, train and export on the toy space, in two minutes
	@set -ex; folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	q="$$PWD/$(BIN)/quadranas"; cd "$$folder"; \
	"$$q" build-lut --device vpu --space toy --backend analytic; \
	"$$q" search --device vpu --space toy --budget 1ms --output run; \
	"$$q" derive run --device cpu --budget 0.9ms --output derived; \
	"$$q" train derived --epochs 2 --output trained; \
	"$$q" eval trained; \
	"$$q" export trained --format onnx
