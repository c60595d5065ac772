# make demo    install fedvlm and run the main job on the embedded default (no GPU, no model download)
# make test    install what development needs and run every check
# make test-long               the tests that take long
# make docs      the documentation as a site, in site/
# make federation            a server and three sites on this machine: Flower, TLS, registered nodes
# make federation-nvflare    the same by NVFlare
# make test-networks         the tests that need Flower and NVFlare, and those that kill processes
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

NETWORK ?= .venv-federation
NETWORK_PIP := $(NETWORK)/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints-federation.txt

.PHONY: demo test test-long docs lint install install-dev federation federation-nvflare test-networks clean

demo: install
	$(BIN)/fedvlm run quickstart --overwrite --processes 2

test: install-dev lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-long: install-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m long

docs: install-dev
	$(BIN)/python recipes/site_pages.py
	$(BIN)/zensical build --strict --clean

lint: install-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[dev,docs,tensorboard,mlflow,wandb]'
	touch $@ $(VENV)/.installed

federation: $(NETWORK)/.installed-federation
	rm -rf runs/trial-flower
	OMP_NUM_THREADS=1 $(NETWORK)/bin/python recipes/try_federation.py flower --out runs/trial-flower

federation-nvflare: $(NETWORK)/.installed-nvflare
	rm -rf runs/trial-nvflare
	OMP_NUM_THREADS=1 $(NETWORK)/bin/python recipes/try_federation.py nvflare --out runs/trial-nvflare

test-networks: $(NETWORK)/.installed-federation-simulation,nvflare,dev
	OMP_NUM_THREADS=1 $(NETWORK)/bin/python -m pytest -m network tests

# Flower caps some packages (typer, rich), so networks have an environment of their own.
$(NETWORK)/.installed-%: pyproject.toml constraints-federation.txt
	test -x $(NETWORK)/bin/python || $(PYTHON) -m venv $(NETWORK)
	$(NETWORK_PIP) --editable '.[$*]'
	touch $@

clean:
	rm -rf $(VENV) $(NETWORK) build dist site .cache .mypy_cache .ruff_cache .pytest_cache
