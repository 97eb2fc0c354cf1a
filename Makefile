# make demo: distil a GNN into an MLP.   make test: lint and tests.   Both set up what they need.
PYTHON ?= python3
VENV ?= .venv
READY := $(VENV)/.ready

.PHONY: demo test clean

demo: $(READY)
	$(VENV)/bin/g2m demo

test: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile

# torch first: the pin decides which build, and everything else then fits itself to it.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "g2m needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt torch
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) demo runs
