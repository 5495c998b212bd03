# make alone lists the targets. PYTHON is what .venv is made with; CONSTRAINTS pins every package.
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
VENV := .venv
BIN := $(VENV)/bin
DEMO := outputs/demo
MODALITY ?= all

.DEFAULT_GOAL := help
.PHONY: help install demo demo-image demo-audio demo-text test bench faults lint types docs wheel clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

install: $(VENV)/installed  ## install into .venv, from the constraints file

$(VENV)/installed: pyproject.toml $(CONSTRAINTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[dev]'
	touch $@

demo: install $(if $(filter all,$(MODALITY)),demo-image demo-audio demo-text,demo-$(MODALITY))  ## three models, inverse guidance and the trade-off, one page; MODALITY=image, audio or text: one part

# What is done is kept: a demo that was interrupted goes on where it was.
REPORT = $(BIN)/polyguide report $$(dirname $(DEMO)/*/run/experiments/*/experiment.json) out=$(DEMO) title="Guidance in three modalities"

demo-image: install
	$(BIN)/polyguide train data=digits out=$(DEMO)/image/run resume=true
	$(BIN)/polyguide experiment run=$(DEMO)/image/run experiment=tradeoff n=300 'experiment.scales=[0,1,1.5,2,4]'
	$(BIN)/polyguide experiment run=$(DEMO)/image/run experiment=inverse n=200 'experiment.scales=[-2,-1,0,1]'
	$(REPORT)

demo-audio: install
	$(BIN)/polyguide train modality=audio data=notes out=$(DEMO)/audio/run resume=true
	$(BIN)/polyguide experiment run=$(DEMO)/audio/run experiment=tradeoff n=100 'experiment.scales=[0,1,2,4]' experiment.given=train
	$(BIN)/polyguide experiment run=$(DEMO)/audio/run experiment=inverse n=100 'experiment.scales=[-2,-1,0,1]' \
		'experiment.ordered_scales=[-2,-1,0,1]'
	$(REPORT)

demo-text: install
	$(BIN)/polyguide train modality=text data=trec out=$(DEMO)/text/run resume=true
	$(BIN)/polyguide sample run=$(DEMO)/text/run out=$(DEMO)/text/infill overwrite=true n=8 condition.infill="What is the ____ of ..." guidance.scale=2
	$(BIN)/polyguide experiment run=$(DEMO)/text/run experiment=tradeoff n=60 'experiment.scales=[0,1,2,4]'
	$(BIN)/polyguide experiment run=$(DEMO)/text/run experiment=inverse n=60 'experiment.scales=[-2,-1,0,1]' \
		'experiment.ordered_scales=[-2,-1,0,1]'
	$(REPORT)

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
