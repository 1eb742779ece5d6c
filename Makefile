# make tour      set up, run the tour (a minute or two); its last line names the page to open
# make reports   set up, run the notebook series (profile quick), print the results
# make test      lint, types, unit tests, every notebook under the smoke profile
# make lab       JupyterLab in notebooks/ with the right kernel
# make format    format code and notebooks (also: lint, types, spell, strip: one check each)
# make hooks     run the checks before each commit

PYTHON  ?= python3
PROFILE ?= quick
VENV    := .venv
BIN     := $(VENV)/bin
READY   := $(VENV)/ready
NOTEBOOKS := notebooks/*.ipynb notebooks/solutions/*.ipynb

# Without cached byte code, importing lightning alone takes half a minute in every kernel.
unexport PYTHONDONTWRITEBYTECODE
# Threads that spin on while they wait slow down all others.
export GOMP_SPINCOUNT ?= 1000
export PYTHONPATH :=

.PHONY: tour reports test lab format lint types spell strip hooks clean
.DELETE_ON_ERROR:

tour: $(READY)
	$(BIN)/omni-lab run 00_tour --profile $(PROFILE)

reports: $(READY)
	$(BIN)/omni-lab run --profile $(PROFILE)
	$(BIN)/omni-lab report --profile $(PROFILE)

test: lint types spell
	$(BIN)/nbstripout --verify $(NOTEBOOKS)
	$(BIN)/python -m pytest -n 2 --dist loadfile

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

spell: $(READY)
	$(BIN)/codespell

strip: $(READY)
	$(BIN)/nbstripout $(NOTEBOOKS)

hooks: $(READY)
	$(BIN)/pre-commit install

lab: $(READY)
	$(BIN)/jupyter lab --notebook-dir=notebooks

$(READY): pyproject.toml constraints.txt worlds.txt
	@if command -v uv >/dev/null 2>&1; then \
	  echo "installing with uv"; \
	  uv venv --quiet --allow-existing --python "$(PYTHON)" $(VENV) && \
	  VIRTUAL_ENV="$(CURDIR)/$(VENV)" uv pip install --quiet --constraint constraints.txt --editable ".[dev]" && \
	  VIRTUAL_ENV="$(CURDIR)/$(VENV)" uv pip install --quiet --no-deps --require-hashes --requirement worlds.txt; \
	else \
	  echo "installing with pip (uv would be faster)"; \
	  $(PYTHON) -m venv $(VENV) && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]" && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement worlds.txt; \
	fi
	$(BIN)/python -m ipykernel install --prefix $(VENV) --name omni-lab --display-name "omni-lab" --env GOMP_SPINCOUNT 1000
	@if git rev-parse --is-inside-work-tree >/dev/null 2>&1; then git status >/dev/null; git config filter.nbstripout.clean "$(CURDIR)/$(BIN)/nbstripout"; fi
	touch $(READY)

clean:
	rm -rf $(VENV) data/stores data/checkpoints
