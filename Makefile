# Each target installs what it needs into .venv, from pinned versions. Python >= 3.11, git and make are required.
PYTHON ?= python3
BIN := .venv/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable
PINS := pyproject.toml constraints.txt

.PHONY: setup demo test test-all docs clean

.venv/.demo: $(PINS)  # prediction only, without PyTorch
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; $(PYTHON) is older. Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) .
	@touch $@

.venv/.dev: .venv/.demo
	$(PIP) '.[dev]'
	@touch $@

.venv/.docs: .venv/.demo
	$(PIP) '.[docs]'
	@touch $@

setup: .venv/.dev

demo: .venv/.demo
	@$(BIN)/recombinator demo $(if $(PHOTO),--photo "$(PHOTO)")

test-all: SELECT = -m "slow or not slow"
test-all: export RECOMBINATOR_RAY_PHOTOGRAPHS = 5000
# one thread for each test process
test test-all: export OMP_NUM_THREADS = 1
test test-all: .venv/.dev
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy --no-error-summary
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 $(SELECT)

docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "the site is in out/site"

clean:
	rm -rf .venv out
