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
.PHONY: help demo test lint constraints clean

# The environment finds its packages in itself alone, whatever the user's shell has set.
export PYTHONNOUSERSITE = 1
unexport PYTHONPATH

heading = printf '\n\033[1m== %s\033[0m\n'

help: ## this list
	@sed -nE 's/^([a-z]+):.*## /make \1\t/p' Makefile | expand -t 20

# ---- the environment -----------------------------------------------------------------------------

$(VENV)/installed: requirements.txt constraints.txt
	@$(heading) 'The environment: $(VENV) (1 GB of packages on first use)'
	@$(PYTHON) -m venv $(VENV) || { echo 'error: no environment; on Debian: apt install python3-venv' >&2; exit 1; }
	$(PIP) install --quiet -r requirements.txt
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.txt
	@$(heading) 'The tools of the tests'
	$(PIP) install --quiet -r requirements-dev.txt
	@touch $@

# A clean installation of the requirements without constraints, written down.
PINS = build/constraints
constraints: ## choose the versions of indirect requirements anew: constraints.txt
	rm -rf $(PINS)
	mkdir -p $(PINS)
	for file in requirements.txt requirements-dev.txt; do \
		grep -v '^-c' $$file > $(PINS)/$$file; \
	done
	$(PYTHON) -m venv $(PINS)/venv
	$(PINS)/venv/bin/pip install --quiet --upgrade -r $(PINS)/requirements-dev.txt setuptools
	{ sed -n '/^#/p' constraints.txt; \
	  { $(PINS)/venv/bin/pip freeze --all | grep -v '^pip=='; \
	    grep 'sys_platform' constraints.txt; } | LC_ALL=C sort -f; } > $(PINS)/constraints.txt
	if grep -nE '://| @ ' $(PINS)/constraints.txt; then echo 'error: not a plain pin' >&2; exit 1; fi
	mv $(PINS)/constraints.txt constraints.txt

# ---- tests ---------------------------------------------------------------------------------------

lint: $(VENV)/installed-dev ## ruff, on modules and notebooks
	@$(heading) 'Lint'
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

test: lint ## lint and all tests
	@$(heading) 'Tests'
	$(RUN) -m pytest

clean: ## remove the environment, the demo and all caches; data, prepared folders and weights stay
	rm -rf $(VENV) demo build .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
