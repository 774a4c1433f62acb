# make demo: train on the phantom, evaluate, register its testing pairs, write the reports.
# make results MONAI_JSM_DATA=DIR: print the figures of docs/results.md, on published data in DIR.
# make test: lint, types, doctests, tests. Both make the environment themselves.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO := runs/demo
BUNDLE := $(BIN)/python -W ignore -m monai.bundle run
TRAIN := bundle/configs/train.json
EPOCHS ?= 60

.PHONY: demo results test lint clean

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: $(VENV)/installed
	rm -rf $(DEMO)
	$(BUNDLE) training --config_file $(TRAIN) --output_dir $(DEMO)/training --max_epochs $(EPOCHS)
	$(BUNDLE) evaluating --config_file "['$(TRAIN)','bundle/configs/evaluate.json']" \
		--ckpt_path $(DEMO)/training/model.pt --output_dir $(DEMO)/evaluation
	$(BUNDLE) --config_file bundle/configs/inference.json \
		--ckpt_path $(DEMO)/training/model.pt --output_dir $(DEMO)/pairs
	$(BIN)/monai-jsm report $(DEMO)/evaluation
	$(BIN)/monai-jsm report $(DEMO)/pairs/testing_000

results: $(VENV)/installed
	rm -rf runs/results
	$(BIN)/monai-jsm prepare sunnybrook $(MONAI_JSM_DATA)/sunnybrook_cine runs/results/cine
	$(BIN)/monai-jsm prepare known-field $(MONAI_JSM_DATA)/known_field runs/results/known-field
	for suite in cine known-field; do \
		$(BUNDLE) evaluating --config_file "['$(TRAIN)','bundle/configs/evaluate.json']" \
			--dataset_dir runs/results/$$suite --output_dir runs/results/$$suite-evaluation > /dev/null \
		&& $(BIN)/monai-jsm report runs/results/$$suite-evaluation || exit 1; \
	done
	$(BIN)/monai-jsm benchmark --suite speed --output runs/results/speed

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest

clean:
	rm -rf runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
