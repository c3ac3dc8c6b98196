# Two commands do everything: `make run` and `make test`. The rest is for people who change the code.
PYTHON ?= python3.11
# An index with CPU wheels of torch, for machines whose usual index serves the CUDA build: make run TORCH_INDEX=URL
TORCH_INDEX ?=
# Test processes; empty for one. Threads that wait sleep, so that processes can share the cores.
WORKERS ?= 2

BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps
CODE := recsys embeddings pipelines benchmarks tests requirements

.PHONY: setup run test quality bench lint clean

run: .venv/installed
	$(BIN)/recsys run configs/experiments/quickstart.yaml

setup: .venv/installed .venv/installed-dev

test: setup
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest $(if $(WORKERS),-n $(WORKERS) --dist worksteal) -q --durations=15

quality: setup
	$(BIN)/python -m pytest -q -m quality --durations=15

bench: setup
	for name in cluster auc topk bpr ctr table ingest lightgcn ials rqkmeans seqloader sasrec beam experts refresh sparse_bytes sparse_step; do $(BIN)/recsys bench $$name || exit 1; done
	$(BIN)/python -m benchmarks.tables

lint: setup
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/codespell README.md CONTRIBUTING.md CHANGELOG.md docs configs $(filter-out tests,$(CODE))

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: requirements/cpu.txt pyproject.toml | .venv/bin/python
	@echo "Installing the locked environment into .venv (once; about 2 GB on disk)"
	$(if $(TORCH_INDEX),$(INSTALL) --index-url $(TORCH_INDEX) $$(grep '^torch==' requirements/cpu.txt))
	$(INSTALL) -r requirements/cpu.txt
	@$(BIN)/python -c "import torch" || { echo "This torch is the CUDA build and needs CUDA's libraries, which come now. For the small CPU build: rm -r .venv; make run TORCH_INDEX=<the CPU index of PyTorch's install page>"; \
	  $(BIN)/python -m pip install --quiet $$(grep '^torch==' requirements/cpu.txt); }
	$(INSTALL) --no-build-isolation --editable .
	@touch $@

.venv/installed-dev: requirements/dev.txt .venv/installed
	$(INSTALL) -r requirements/dev.txt
	@touch $@

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find recsys embeddings pipelines -name '*.nb[ic]' -delete  # numba does not see a change in a file that another one calls
