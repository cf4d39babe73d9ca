# Everything installs into .venv; the only needs are Python 3.11+, make and a C++17 compiler.
SHELL  := /bin/bash
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: help setup demo test drills nightly lint docs screenshots wheel system image bench pets clean

help:
	@echo "make demo    set up, segment the example photos, write demo/sheet.png"
	@echo "make test    set up and run the tests, at most 8 minutes on two cores; ends with what was skipped and how to get it"
	@echo "make drills  what kills, fills and cuts off the real thing: nodes, disks, stores, servers, trainings; ten minutes"
	@echo "make nightly the drills that take minutes each or resemble others, property tests with all their examples, make system"
	@echo "make lint    ruff, mypy and clang-format"
	@echo "make docs    the pages of docs/ as a site, build/site/index.html"
	@echo "make screenshots  the pictures of the docs, taken again: Prefect's pages, the report, a sheet (docs/images/*.webp)"
	@echo "make wheel   dist/....whl, tried in empty environments from another folder"
	@echo "make system  the whole system as processes of this machine: database, server, store, cluster; about 3 minutes"
	@echo "make image   infra/Dockerfile built and used without a registry or a daemon (root, buildah, mmdebstrap); 20 minutes or more"
	@echo "make bench   the benchmarks that the README's figures come from"
	@echo "make pets    train the bundled model again (DATASET=... INIT=...)"
	@echo "make clean   remove .venv, build/, dist/ and demo/"

setup: $(READY)

$(READY): pyproject.toml constraints.txt build-constraints.txt CMakeLists.txt $(wildcard deeplab/crf/src/* deeplab/scoring/native/src/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.3'
	$(BIN)/python -m pip install --quiet --build-constraint build-constraints.txt -c constraints.txt -e '.[dev,docs,pydensecrf]'
	touch $@

demo: $(READY)
	$(BIN)/deeplab segment examples/photos demo/results
	$(BIN)/deeplab show demo/results -n 12 -o demo/sheet.png
	@echo "look at demo/sheet.png; the masks are in the table demo/results (docs/results-table.md)"

# Two processes take the folders in this order, those of the longest tests first.
PYTEST := $(BIN)/python -m pytest -n 2 --no-loadscope-reorder

test: $(READY)
	$(PYTEST) -m 'not drill and not nightly' tests/pipelines tests/flows tests/deeplab tests/infra tests/test_layers.py tests/test_docs.py

drills: $(READY)
	$(PYTEST) -m 'drill and not nightly' tests/flows tests/system tests/pipelines tests/deeplab

nightly: $(READY)
	$(BIN)/python -m pytest -m nightly tests/system tests/flows
	$(PYTEST) -m 'hypothesis and not nightly' --hypothesis-profile=all-examples tests/pipelines tests/deeplab
	$(MAKE) system

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror deeplab/crf/src/* deeplab/scoring/native/src/*

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "open build/site/index.html"

screenshots: $(READY)
	$(BIN)/python -m tests.screenshots

wheel: $(READY)
	rm -f dist/*.whl
	$(BIN)/python -m build --wheel
	DEEPLAB_WHEEL=$$(ls dist/*.whl) $(BIN)/python -m pytest tests/infra/test_wheel.py tests/deeplab/crf/test_wheel.py

# The log is build/system.log as well.
system: $(READY)
	@mkdir -p build
	@set -o pipefail; $(BIN)/python -m tests.nightly.whole_system 2>&1 | tee build/system.log

# IMAGE='--build-arg TORCH_INDEX=...' passes arguments of the Dockerfile. The log is build/image.log as well.
image: $(READY)
	@mkdir -p build
	@set -o pipefail; $(BIN)/python -m tests.nightly.image $(IMAGE) 2>&1 | tee build/image.log

bench: $(READY)
	$(BIN)/python benchmarks/pipeline.py
	$(BIN)/python benchmarks/stream.py
	$(BIN)/python benchmarks/planning.py
	$(BIN)/python benchmarks/crf.py
	$(BIN)/python benchmarks/prefect_cost.py

# The bundled model's training (docs/models.md).
DATASET ?= ../shared/data/pets
INIT    ?= ../shared/weights/mobilenet_v2_imagenet.safetensors
pets: $(READY)
	$(BIN)/deeplab train $(DATASET) build/pets --preset pets --init $(INIT) --licence 'CC BY-SA 4.0'

clean:
	rm -rf $(VENV) build dist demo
