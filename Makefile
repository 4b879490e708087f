# Two commands on a machine with Python >= 3.11: `make run` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SCENARIO ?= scenarios/llama3-70b-2xh100-64way.yaml

.PHONY: run test lint bench notebooks docs clean

run: $(VENV)/installed
	@$(BIN)/twowalls run $(SCENARIO)

test: $(VENV)/installed
	$(BIN)/python -m pytest -n auto

lint: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/installed
	$(BIN)/python -m pytest -m benchmark -s tests/bench_*.py

# runs every cell of every script and writes what it shows beside it (--update would keep what it showed before); a cell that
# fails ends it
notebooks: $(VENV)/installed
	$(BIN)/jupytext --quiet --to ipynb --execute notebooks/*.py

# writes what the code answers into README.md and the pages of docs/
docs: $(VENV)/installed
	$(BIN)/python docs/refresh.py

# one stamp for the whole environment: made again when the project's dependencies change
$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "twowalls needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev,notebooks]'
	touch $@

clean:
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
