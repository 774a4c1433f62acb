# make demo: train on the phantom, evaluate, register its testing pairs, write the reports.
# make weights MONAI_JSM_DATA=DIR: train the released weights again, and print their figures on the validation split.
# make comparators MONAI_JSM_DATA=DIR: train the comparing networks whose weights are missing (many hours).
# make benchmark MONAI_JSM_DATA=DIR [SUITES=2d JOBS=2]: every method on every pair, into runs/benchmark and docs/benchmark.md.
# make results MONAI_JSM_DATA=DIR: print the figures of docs/results.md, on published data in DIR.
# make examples MONAI_JSM_DATA=DIR: register a histology, a DICOM and a tumour pair of DIR, as docs/results.md shows them.
# make test: lint, types, doctests, tests. Both make the environment themselves.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO := runs/demo
BUNDLE := $(BIN)/python -W ignore -m monai.bundle run
TRAIN := bundle/configs/train.json
EPOCHS ?= 60

.PHONY: demo weights comparators benchmark results examples test lint clean runs/cine-data runs/known-field-data

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

runs/cine-data: $(VENV)/installed
	rm -rf $@
	$(BIN)/monai-jsm prepare sunnybrook $(MONAI_JSM_DATA)/sunnybrook_cine $@

runs/known-field-data: $(VENV)/installed
	rm -rf $@
	$(BIN)/monai-jsm prepare known-field $(MONAI_JSM_DATA)/known_field $@

weights: runs/cine-data
	rm -rf runs/cine runs/cine-validation
	$(BUNDLE) training --config_file $(TRAIN) --dataset_dir runs/cine-data --output_dir runs/cine --max_epochs 150
	$(BUNDLE) evaluating --config_file "['$(TRAIN)','bundle/configs/evaluate.json']" --section validation \
		--dataset_dir runs/cine-data --ckpt_path runs/cine/model.pt --output_dir runs/cine-validation
	$(BIN)/monai-jsm report runs/cine-validation
	sha256sum runs/cine/model.pt

# As many steps of four pairs as the released weights had at most: 150 epochs of cine, 13 of digits.
COMPARATORS := bundle/models/comparators
ABLATIONS := dirnet voxelmorph_mse voxelmorph_ncc published ours_plain ours_trust ours_both
comparators: $(ABLATIONS:%=$(COMPARATORS)/cine/%.pt) $(ABLATIONS:%=$(COMPARATORS)/digits/%.pt) \
		$(COMPARATORS)/digits/ours_saliency.pt

$(COMPARATORS)/cine/published.pt: LOSS := --loss::gradient_weight 20
$(COMPARATORS)/cine/%.pt: | $(VENV)/installed
	test -d runs/cine-data || $(BIN)/monai-jsm prepare sunnybrook $(MONAI_JSM_DATA)/sunnybrook_cine runs/cine-data
	rm -rf runs/comparators/cine/$*
	$(BUNDLE) training --config_file "['$(TRAIN)','bundle/configs/comparators/$*.json']" --dataset_dir runs/cine-data \
		--output_dir runs/comparators/cine/$* --max_epochs 150 $(LOSS)
	mkdir -p $(@D)
	cp runs/comparators/cine/$*/model.pt $@

$(COMPARATORS)/digits/%.pt: | $(VENV)/installed
	test -d runs/digits-data || $(BIN)/monai-jsm prepare mnist $(MONAI_JSM_DATA)/mnist runs/digits-data
	rm -rf runs/comparators/digits/$*
	$(BUNDLE) training --config_file "['$(TRAIN)','bundle/configs/comparators/$*.json']" --dataset_dir runs/digits-data \
		--output_dir runs/comparators/digits/$* --max_epochs 13 --val_interval 1
	mkdir -p $(@D)
	cp runs/comparators/digits/$*/model.pt $@

SUITES ?= 2d
JOBS ?= 2
benchmark: $(VENV)/installed
	$(BIN)/monai-jsm benchmark --suite $(SUITES) --methods all --jobs $(JOBS) --data $(MONAI_JSM_DATA) \
		--output runs/benchmark > /dev/null
	$(BIN)/monai-jsm benchmark --suite published --jobs $(JOBS) --data $(MONAI_JSM_DATA) \
		--output runs/benchmark/published > /dev/null
	$(BIN)/python docs/fill_benchmark.py runs/benchmark

results: runs/cine-data runs/known-field-data
	rm -rf runs/results
	for suite in cine known-field; do \
		$(BUNDLE) evaluating --config_file "['$(TRAIN)','bundle/configs/evaluate.json']" \
			--dataset_dir runs/$$suite-data --output_dir runs/results/$$suite > /dev/null \
		&& $(BIN)/monai-jsm report runs/results/$$suite || exit 1; \
	done
	$(BIN)/monai-jsm benchmark --suite speed --output runs/results/speed

STAIN := $(MONAI_JSM_DATA)/histology/lung_lesion_3/29-041-Izd2-w35
examples: $(VENV)/installed
	rm -rf runs/examples
	$(BIN)/monai-jsm register --output runs/examples/histology \
		--fixed $(STAIN)-CD31-3-les3.jpg --fixed-landmarks $(STAIN)-CD31-3-les3.csv \
		--moving $(STAIN)-Cc10-5-les3.jpg --moving-landmarks $(STAIN)-Cc10-5-les3.csv
	$(BIN)/monai-jsm register --output runs/examples/dicom --formats dicom --dicom-out \
		--fixed $(MONAI_JSM_DATA)/dicom/pgbm003_t1pre_registered --moving $(MONAI_JSM_DATA)/dicom/pgbm003_t1post
	$(BIN)/monai-jsm register --output runs/examples/tumour \
		--fixed $(MONAI_JSM_DATA)/brain_tumour/healthy_ch2_in_SRI24.nii.gz \
		--moving $(MONAI_JSM_DATA)/brain_tumour/TCGA-DU-7294_t1.nii.gz

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest

clean:
	rm -rf runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
