# make demo: environment and main job on a fresh machine; make test: environment and tests.
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: install demo test slow faults lint mutants docs clean

install: $(VENV)/.dev

$(VENV)/.run: setup.cfg setup.py constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e .
	touch $@

$(VENV)/.dev: $(VENV)/.run
	$(PIP) -e '.[dev]'
	touch $@

# the main job on the embedded digits; run again, it goes on where it was stopped
demo: $(VENV)/.run
	$(VENV)/bin/python run.py model=nvae ensemble.size=5

test: $(VENV)/.dev lint
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -n 2 --dist loadfile -m 'not slow'

slow: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -m slow

# kills at random moments, two commands at once: minutes; one line per kind (docs/faults.md)
faults: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(VENV)/bin/python tests/faults/length.py

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# do the tests notice random one-token changes of the core modules? hours; not in CI
mutants: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(VENV)/bin/python benchmarks/mutants.py --count 60

# the guides as a site in site/, without a network
docs: $(VENV)/.dev
	$(VENV)/bin/mkdocs build --quiet

clean:
	rm -rf $(VENV) outputs site .pytest_cache .mypy_cache .ruff_cache *.egg-info
