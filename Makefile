# make alone lists the targets. PYTHON is what .venv is made with; CONSTRAINTS pins every package.
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
VENV := .venv
BIN := $(VENV)/bin
DEMO := outputs/demo
MODALITY ?= image,audio,text

.DEFAULT_GOAL := help
.PHONY: help install demo test bench faults lint types docs wheel clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

install: $(VENV)/installed  ## install into .venv, from the constraints file

$(VENV)/installed: pyproject.toml $(CONSTRAINTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[dev]'
	touch $@

demo: install  ## three models, inverse guidance and the trade-off, one page; MODALITY=image, audio or text: one part
	$(BIN)/polyguide demo out=$(DEMO) 'parts=[$(MODALITY)]'

# Hundreds of processes import the same modules: they are compiled once, whatever the environment says.
test: install  ## run the tests
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --dist loadfile

bench: install  ## measure speed and memory against peers, into outputs/bench
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) --no-deps -r benchmarks/requirements.txt
	$(BIN)/python benchmarks/all.py

FAULTS = training_kills sampling_kills sweep_kills checkpoint_bytes fuzz_commands fuzz_files fuzz_configs

faults: install  ## kill, damage and fuzz at length (an hour); make test has small versions of these
	for script in $(FAULTS); do $(BIN)/python tests/faults/$$script.py || exit 1; done

lint: install  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install  ## mypy, strict for guidance/
	$(BIN)/mypy

docs: install  ## the documentation site, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

wheel: install  ## build the wheels, install them into an empty environment, use them there
	BIN=$(abspath $(BIN)) PYTHON=$(PYTHON) CONSTRAINTS=$(abspath $(CONSTRAINTS)) bash tests/wheel.sh

clean:  ## remove what was built and drawn
	rm -rf $(VENV) dist build site outputs .pytest_cache .mypy_cache .ruff_cache
