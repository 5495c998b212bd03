# make alone lists the targets. PYTHON is what .venv is made with; CONSTRAINTS pins every package.
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
VENV := .venv
BIN := $(VENV)/bin
DEMO := outputs/demo
MODALITY ?= all

.DEFAULT_GOAL := help
.PHONY: help install demo demo-image demo-audio demo-text test lint types wheel clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

install: $(VENV)/installed  ## install into .venv, from the constraints file

$(VENV)/installed: pyproject.toml $(CONSTRAINTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[dev]'
	touch $@

demo: install $(if $(filter all,$(MODALITY)),demo-image demo-audio demo-text,demo-$(MODALITY))  ## train, sample at scales below and above 1, evaluate; MODALITY=image, audio or text: one part

demo-image: install
	$(BIN)/polyguide train data=digits out=$(DEMO)/run resume=true
	$(BIN)/polyguide evaluate run=$(DEMO)/run out=$(DEMO) overwrite=true n=300 'scales=[-2,-1,0,1,1.5,2,4]'

demo-audio: install
	$(BIN)/polyguide train modality=audio data=notes out=$(DEMO)/audio/run resume=true
	$(BIN)/polyguide sample run=$(DEMO)/audio/run out=$(DEMO)/audio/flute overwrite=true n=8 \
		condition.instrument=flute condition.pitch=67 guidance.scale=3 sampler=dpm
	$(BIN)/polyguide sample run=$(DEMO)/audio/run out=$(DEMO)/audio/not-flute overwrite=true n=8 \
		condition.instrument=flute condition.pitch=67 guidance.scale=-1 sampler=dpm
	$(BIN)/polyguide evaluate run=$(DEMO)/audio/run out=$(DEMO)/audio overwrite=true n=200 given=train 'scales=[-1,0,1,2,3]'

demo-text: install
	$(BIN)/polyguide train modality=text data=trec out=$(DEMO)/text/run resume=true
	$(BIN)/polyguide sample run=$(DEMO)/text/run out=$(DEMO)/text/location overwrite=true n=8 condition.topic=location guidance.scale=3
	$(BIN)/polyguide sample run=$(DEMO)/text/run out=$(DEMO)/text/not-location overwrite=true n=8 condition.topic=location guidance.scale=-1
	$(BIN)/polyguide sample run=$(DEMO)/text/run out=$(DEMO)/text/infill overwrite=true n=8 condition.infill="What is the ____ of ..." guidance.scale=2
	$(BIN)/polyguide evaluate run=$(DEMO)/text/run out=$(DEMO)/text overwrite=true n=50 'scales=[-1,0,1,3]'

test: install  ## run the tests
	$(BIN)/python -m pytest

lint: install  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install  ## mypy, strict for guidance/
	$(BIN)/mypy

wheel: install  ## build the wheel, install it into an empty environment, use it there
	BIN=$(abspath $(BIN)) PYTHON=$(PYTHON) CONSTRAINTS=$(abspath $(CONSTRAINTS)) bash tests/wheel.sh

clean:  ## remove what was built and drawn
	rm -rf $(VENV) dist build outputs .pytest_cache .mypy_cache .ruff_cache
