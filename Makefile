PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT := demo-output

.PHONY: demo test slow lint types clean

demo: $(VENV)/.demo-installed  ## set up and run the main job on the model that ships with the project
	$(BIN)/paramerge demo -o $(OUT)

test: $(VENV)/.test-installed lint types  ## set up and run the tests (the default set)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

slow: $(VENV)/.test-installed  ## the full-size tests: about 30 GB of disk for a while
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test-installed
	$(BIN)/python tools/check_types.py

clean:
	rm -rf $(VENV) $(OUT) build dist *.egg-info

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo-installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[generate]'
	touch $@

$(VENV)/.test-installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test,dev]'
	touch $@
