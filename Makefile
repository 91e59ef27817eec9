# Everything runs from here, on a developer's machine and in CI alike. `make` lists the targets.

PYTHON ?= python3

# A uv on the PATH is used; without one, a private copy is put in .uv/.
UV := $(shell uv --version >/dev/null 2>&1 && echo uv || echo .uv/bin/uv)
UV_BOOTSTRAP := $(filter .uv/bin/uv,$(UV))

# Every worker and every command that a test starts imports large packages: compiled once, not each time.
unexport PYTHONDONTWRITEBYTECODE

FULL := .venv/.refdiff-stamp
LEAN := .venv-demo/.refdiff-stamp
LOWEST := .venv-lowest/.refdiff-stamp
PINS := pyproject.toml constraints.txt

# The variable hides a notice about MkDocs 2.0, which the pins exclude.
MKDOCS := NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs

# A worker gets whole files, in the order of tests/conftest.py, so that none makes the other's fixtures.
WORKERS ?= 2
PYTEST := .venv/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-quick test-lowest check format-check lint types imports docs docs-check format gpu bench miniature clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(LEAN) ## see it work, offline, in the lean environment (no torch)
	.venv-demo/bin/refdiff demo --output demo-out

test: $(FULL) ## run all tests, in WORKERS=2 processes
	$(PYTEST)

test-quick: $(FULL) ## run the tests that are short and need no torch
	$(PYTEST) -m "not slow and not needs_torch"

# Older packages warn about what newer ones have dropped: here a warning is no error.
test-lowest: $(LOWEST) ## run the short tests with the lowest versions that pyproject.toml allows
	.venv-lowest/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -W default -m "not slow"

check: $(FULL) ## what CI runs: format, lint, types, import contracts, documentation, tests
	@$(MAKE) --no-print-directory format-check
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory types
	@$(MAKE) --no-print-directory imports
	@$(MAKE) --no-print-directory docs-check
	@$(MAKE) --no-print-directory test

format-check: $(FULL)
	.venv/bin/ruff format --check .

lint: $(FULL)
	.venv/bin/ruff check .

types: $(FULL)
	.venv/bin/mypy

imports: $(FULL)
	.venv/bin/lint-imports

docs: docs-check ## build the documentation and serve it on localhost, rebuilding on changes
	$(MKDOCS) serve

docs-check: $(FULL) ## build the documentation into site/; warnings are errors
	$(MKDOCS) build --strict

format: $(FULL) ## rewrite the sources in the house format
	.venv/bin/ruff check --select I --fix .
	.venv/bin/ruff format .

gpu: $(FULL) ## measure this machine's GPU; skipped, with the reason, where there is none
	.venv/bin/python -m benchmarks.gpu

bench: $(FULL) ## compare the pipeline with the original arithmetic, in turns; at full size too with BUNDLE=, SMALL= and PHOTO=
	.venv/bin/python -m benchmarks.bench
	$(if $(BUNDLE),.venv/bin/python -m benchmarks.bench "$(BUNDLE)" $(if $(SMALL),--small "$(SMALL)") --photo "$(PHOTO)")
	.venv/bin/python -m benchmarks.tables

miniature: $(FULL) ## retrain the built-in models and export their bundles (hours)
	.venv/bin/python -m refdiff.miniature.train
	.venv/bin/refdiff export mini --output src/refdiff/miniature/bundle --overwrite
	.venv/bin/refdiff eval src/refdiff/miniature/bundle --fit-confidence --count 2400
	.venv/bin/refdiff export mini-edge --output src/refdiff/miniature/bundle-edge --overwrite

clean: ## remove environments, caches and outputs
	rm -rf .venv .venv-demo .venv-lowest .uv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	rm -rf build dist demo-out site
	find src tests -type d -name __pycache__ -prune -exec rm -rf {} +

# Environments are brought up to date when the project file or the pins change. One that is already there
# is kept; the lean one also loses whatever it should not hold (--exact).

$(FULL): $(PINS) | $(UV_BOOTSTRAP)
	test -x .venv/bin/python || $(UV) venv --no-python-downloads --python "$$(command -v $(PYTHON))" .venv
	$(UV) pip install --python .venv/bin/python -e ".[cpu,export,dev,docs]" -c constraints.txt
	@touch $@

$(LEAN): $(PINS) | $(UV_BOOTSTRAP)
	test -x .venv-demo/bin/python || $(UV) venv --no-python-downloads --python "$$(command -v $(PYTHON))" .venv-demo
	$(UV) pip install --exact --python .venv-demo/bin/python -e ".[cpu]" -c constraints.txt
	@touch $@

$(LOWEST): $(PINS) | $(UV_BOOTSTRAP)
	test -x .venv-lowest/bin/python || $(UV) venv --no-python-downloads --python "$$(command -v $(PYTHON))" .venv-lowest
	$(UV) pip install --exact --resolution lowest-direct --python .venv-lowest/bin/python -e ".[cpu,export,eval,dev]"
	@touch $@

.uv/bin/uv:
	$(PYTHON) -m venv .uv || { rm -rf .uv; echo "install uv, or your system's python3-venv package" >&2; exit 1; }
	.uv/bin/python -m pip install --quiet uv
