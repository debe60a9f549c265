# make help   says what there is to make.
#
# Everything runs in an environment of its own, .venv, made on first use by $(PYTHON) and brought
# up to date whenever a requirement changes. Another Python: make PYTHON=python3.12 test

PYTHON = python3
VENV = .venv
RUN = $(VENV)/bin/python
PIP = $(RUN) -m pip --disable-pip-version-check

SHELL = /bin/bash
.SHELLFLAGS = -euo pipefail -c
.DEFAULT_GOAL = help
.PHONY: help demo web notebooks test lint bench torture fuzz audit constraints clean

# Packages and the notebooks' kernel come from the environment alone, whatever the user's shell has set.
export PYTHONNOUSERSITE = 1
unexport PYTHONPATH JUPYTER_PATH

heading = printf '\n\033[1m== %s\033[0m\n'

help: ## this list
	@sed -nE 's/^([a-z]+):.*## /make \1\t/p' Makefile | expand -t 20

# ---- the environment -----------------------------------------------------------------------------

$(VENV)/installed: requirements.txt constraints.txt
	@$(heading) 'The environment: $(VENV) (minutes on first use: some 800 MB are downloaded)'
	@$(PYTHON) -m venv $(VENV) || { echo 'error: no environment; on Debian: apt install python3-venv' >&2; exit 1; }
	$(PIP) install --quiet -r requirements.txt
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.txt
	@$(heading) 'The tools of the tests'
	$(PIP) install --quiet -r requirements-dev.txt
	@touch $@

# A clean installation of the requirements without constraints, written down.
PINS = build/constraints
constraints: ## update the pinned versions of indirect requirements: constraints.txt
	rm -rf $(PINS)
	mkdir -p $(PINS)
	for file in requirements.txt requirements-dev.txt; do \
		grep -v '^-c' $$file > $(PINS)/$$file; \
	done
	$(PYTHON) -m venv $(PINS)/venv
	$(PINS)/venv/bin/pip install --quiet --upgrade -r $(PINS)/requirements-dev.txt setuptools
	{ sed -n '/^#/p' constraints.txt; \
	  { $(PINS)/venv/bin/pip freeze --all | grep -v '^pip=='; \
	    grep ' ; ' constraints.txt; } | LC_ALL=C sort -f; } > $(PINS)/constraints.txt
	if grep -nE '://| @ ' $(PINS)/constraints.txt; then echo 'error: not a plain pin' >&2; exit 1; fi
	mv $(PINS)/constraints.txt constraints.txt

# ---- the four steps on the drawn data set --------------------------------------------------------

DEMO_TEST = data/sample/Flickr8k_text/Flickr_8k.testImages.txt
PRETRAINED = data/pretrained/captioner.safetensors
# Bars in notebooks cannot be disabled, but be delayed until the end; their widgets would be saved.
NO_BARS = TQDM_DISABLE=1 TQDM_DELAY=9999
# If a cell of a notebook fails, show the last paragraph of papermill's output: the error message.
PAPERMILL = $(NO_BARS) $(RUN) -m papermill --log-level ERROR
MESSAGE = 2> demo/log || { awk -v RS= 'END { print }' demo/log >&2; exit 1; }

demo: $(VENV)/installed ## the four steps on the drawn data set, into demo/: about three minutes
	@rm -rf demo
	@mkdir demo
	@$(heading) 'Step 1 of 4: captions -> words, ids and word vectors (seconds)'
	$(PAPERMILL) caption_extraction.ipynb demo/caption_extraction.ipynb \
		-p dataset data/sample -p prepared demo/prepared $(MESSAGE)
	@$(heading) 'Step 2 of 4: images -> features (half a minute)'
	$(PAPERMILL) image_extraction.ipynb demo/image_extraction.ipynb \
		-p dataset data/sample -p prepared demo/prepared -p encoder efficientnet_lite2 $(MESSAGE)
	@$(heading) 'Step 3 of 4: training, 300 pictures, 20 epochs (a minute or two)'
	$(RUN) train.py --data demo/prepared --output demo/weights --epochs 20 --batch-size 50 \
		--attention grid --units 256 --dropout 0.3 --learning-rate 0.002
	@$(heading) 'Step 4 of 4: captions of pictures that training has not seen'
	$(RUN) test.py --split test --data demo/prepared --model demo/weights/best.safetensors \
		--report demo/report.html
	@echo
	$(RUN) test.py --model demo/weights/best.safetensors --save demo/captioned.png \
		--image $$(head -n 5 $(DEMO_TEST) | sed 's|^|data/sample/Flicker8k_Dataset/|')
	@if [ -f $(PRETRAINED) ]; then \
		$(heading) 'And photographs, with the captioner that ships with the project'; \
		$(RUN) test.py --beam-width 5 --names --save demo/photographs.png \
			--image $(wildcard images/*.jpg); \
	fi
	@$(heading) 'Done. Look at'
	@echo '  demo/captioned.png              the five pictures with their captions'
	@echo '  demo/report.html                all test pictures, captions and scores, for a browser'
	@echo '  demo/caption_extraction.ipynb   the notebooks as they ran, with their plots'
	@echo '  demo/image_extraction.ipynb'
	@echo '  demo/weights/                   one checkpoint per epoch, best.safetensors, history.csv, curves.png'
	@if [ -f demo/photographs.png ]; then \
		echo '  demo/photographs.png            the photographs with their captions, good and bad'; \
	fi

web: $(VENV)/installed ## a web page that captions photographs, on this machine
	$(RUN) -m captioning web

CLEAN = --ExecutePreprocessor.record_timing=False --ClearMetadataPreprocessor.enabled=True \
	--ClearMetadataPreprocessor.clear_cell_metadata=False \
	--ClearMetadataPreprocessor.preserve_nb_metadata_mask='{"kernelspec", ("language_info", "name")}'
notebooks: $(VENV)/installed ## run both notebooks again, in place, as they are committed: two minutes
	$(NO_BARS) $(RUN) -m nbconvert --to notebook --execute --inplace $(CLEAN) \
		caption_extraction.ipynb image_extraction.ipynb

# ---- tests ---------------------------------------------------------------------------------------

lint: $(VENV)/installed-dev ## ruff, on modules and notebooks
	@$(heading) 'Lint'
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

test: lint ## lint and all tests
	@$(heading) 'Tests'
	$(RUN) -m pytest -n 2 --dist loadfile

bench: $(VENV)/installed ## speed and memory against the usual way: docs/performance.md; QUICK=1 for less
	@$(heading) 'Benchmark'
	$(RUN) -m tests.benchmarks.bench $(if $(QUICK),--quick)

KILLS = 30
torture: $(VENV)/installed-dev ## kill, interrupt and fill up runs, 30 times each: half an hour
	@$(heading) 'Torture: $(KILLS) kills'
	KILLS=$(KILLS) $(RUN) -m pytest -s tests/test_killed.py tests/test_full_disk.py tests/test_memory.py

INPUTS = 500000
fuzz: $(VENV)/installed-dev ## mutated files for every reader, half a million of another seed each time
	@$(heading) 'Fuzzing: $(INPUTS) inputs; what fails is kept in build/fuzz'
	$(RUN) tests/fuzz.py --inputs $(INPUTS) --seed $${SEED:-$$RANDOM}

# The tools live in an environment of their own, apart from what they look at.
AUDIT = build/audit
audit: $(VENV)/installed ## known holes and the licences of all that is installed (needs the network)
	@$(heading) 'Audit'
	@mkdir -p $(AUDIT)
	@{ [ -x $(AUDIT)/venv/bin/pip-licenses ] || { $(PYTHON) -m venv $(AUDIT)/venv && \
		$(AUDIT)/venv/bin/pip install --quiet pip-audit pip-licenses; }; } 2> $(AUDIT)/log \
		|| { echo 'error: the tools cannot be installed; is there a network? See $(AUDIT)/log' >&2; exit 1; }
	$(AUDIT)/venv/bin/pip-licenses --python $(RUN) --format=plain-vertical --no-license-path \
		> $(AUDIT)/licences.txt
	@$(AUDIT)/venv/bin/pip-licenses --python $(RUN) --summary --order=count
	@echo 'every package with its licence: $(AUDIT)/licences.txt'
	$(RUN) -m pip freeze --all --disable-pip-version-check | grep -v ' @ \|^-e' > $(AUDIT)/installed.txt
	@$(AUDIT)/venv/bin/pip-audit --strict --requirement $(AUDIT)/installed.txt --no-deps \
		--disable-pip > $(AUDIT)/holes.txt 2> $(AUDIT)/log && tail -n 1 $(AUDIT)/log \
		|| { cat $(AUDIT)/holes.txt; [ -s $(AUDIT)/holes.txt ] || \
		echo 'error: known holes cannot be looked up; is there a network? See $(AUDIT)/log' >&2; exit 1; }

clean: ## remove the environment, the demo and all caches; data, prepared folders and weights stay
	rm -rf $(VENV) demo build .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
