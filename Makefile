# Every target sets up $(VENV) by itself, once. Choose with: make test PYTHON=/path/to/python3.13 VENV=.venv-3.13
VENV ?= .venv
VERSIONS ?= 3.14 3.13 3.12
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# One worker per core, four at most; an idle one takes tests from another. ARGS="-n 0" runs all in one process, as a
# debugger needs.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal
BENCHMARKS := step_time rules online live memory credit overhead feed seeds devices allocator start peers

.DEFAULT_GOAL := help
.PHONY: help copy test test-all test-long smoke durations lint docs release-check bench clean which-python venv

help:
	@echo "make copy [ARGS='...']   train a GRU on the copying task with D-RTRL (ARGS='--help' shows the options)"
	@echo "make test [ARGS='...']   the quick tests (5 minutes on two cores)"
	@echo "make test-all            these and all others but the long ones (20 minutes)"
	@echo "make test-long           exhaustive products and walks, fuzzers, leaks, long streams (90 minutes)"
	@echo "make durations           make test-all, and write the CPU minutes of each test file to tests/durations.tsv"
	@echo "make lint                ruff and pyright"
	@echo "make docs                the documentation site, into site/; open site/index.html"
	@echo "make release-check       build the package, install the wheel in a new environment, train from an empty folder"
	@echo "make bench               the benchmarks, onto docs/performance.md; BENCHMARKS='start memory' chooses, ARGS='...'"
	@echo "                         goes to each"
	@echo "make clean               remove $(VENV), site/ and caches; runs under checkpoints/ stay"
	@echo "PYTHON=... and VENV=... choose the interpreter ($(VERSIONS)) and the virtual environment"

copy: $(READY)
	$(BIN)/python recipes/copy_gru.py --strategy drtrl --preset short $(ARGS)

test: $(READY)
	$(PYTEST) -m "not full and not long" $(ARGS)

test-all: $(READY)
	$(PYTEST) -m "not long" --guard $(ARGS)

test-long: $(READY)
	$(PYTEST) -m long --optimized --long-record tests/long.tsv $(ARGS)

# What another Python or another version of a dependency breaks first; compiled as for users.
smoke: $(READY)
	$(PYTEST) --optimized tests/test_smoke.py tests/test_readme.py tests/faults/test_release.py $(ARGS)

durations: $(READY)
	$(PYTEST) -m "not long" --costs tests/durations.tsv $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/.docs
	$(BIN)/python docs/theme/notebooks.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "open site/index.html"

$(VENV)/.docs: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs,notebooks]'
	@touch $@

release-check: $(READY)
	@set -e; folder="$$(mktemp -d)"; trap 'rm -rf "$$folder"' EXIT; \
	$(BIN)/python -m build --outdir "$$folder/dist" . >"$$folder/log" 2>&1 || { cat "$$folder/log"; exit 1; }; \
	$(BIN)/python -m twine check --strict "$$folder"/dist/*; \
	$(BIN)/python -m venv "$$folder/venv"; \
	"$$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$$folder"/dist/*.whl; \
	mkdir "$$folder/empty"; cp recipes/copy_gru.py "$$folder/"; cd "$$folder/empty"; \
	"$$folder/venv/bin/jaxtrain" --version; \
	"$$folder/venv/bin/python" "$$folder/copy_gru.py" --time-lag 3 --hidden 8 --max-steps 20 --no-progress; \
	"$$folder/venv/bin/jaxtrain" info checkpoints/copy_gru/0001-*

# step_time has a budget: it takes all its points unless ARGS chooses among them.
bench: $(READY)
	@set -e; for name in $(BENCHMARKS); do \
	  case $$name in step_time) full="$(if $(findstring --only,$(ARGS)),,--full)" ;; *) full= ;; esac; \
	  echo "== benchmarks/$$name.py"; \
	  $(BIN)/python benchmarks/$$name.py $$full --json benchmarks/results/$$name.json $(ARGS); \
	done; $(BIN)/python benchmarks/page.py

clean:
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache .hypothesis dist site *.egg-info
	find jaxtrain recipes tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

venv: $(READY)

$(READY): pyproject.toml
	@set -e; if [ ! -x $(BIN)/python ]; then \
	  python="$$($(FIND_PYTHON))"; echo "making $(VENV) with $$python"; "$$python" -m venv $(VENV); fi
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

which-python:
	@$(FIND_PYTHON)

# An interpreter fits if it starts (pyenv's shims may not), is one of VERSIONS, and can make virtual environments.
# Looked for in this order: PYTHON, the PATH, pyenv's versions, plain python3.
define FIND_PYTHON
fits() { "$$1" -c 'import ensurepip, sys, venv; \
sys.exit("%d.%d" % sys.version_info[:2] not in sys.argv[1].split())' "$(VERSIONS)" >/dev/null 2>&1; }; \
if [ -n "$(PYTHON)" ]; then \
  if "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1; then echo "$(PYTHON)"; exit 0; fi; \
  echo "PYTHON=$(PYTHON) does not start or is older than Python 3.12" >&2; exit 1; \
fi; \
pyenv="$$(pyenv root 2>/dev/null || echo "$$HOME/.pyenv")"; \
for version in $(VERSIONS); do \
  for python in "$$(command -v python$$version)" "$$pyenv"/versions/$$version*/bin/python; do \
    if fits "$$python"; then echo "$$python"; exit 0; fi; \
  done; \
done; \
if fits python3; then command -v python3; exit 0; fi; \
echo "no Python found: jaxtrain needs one of $(VERSIONS) with venv and ensurepip, on the PATH or under $$pyenv/versions;" \
  "install one (Debian: python3-venv, too) or say where it is: make PYTHON=/path/to/python3.12" >&2; exit 1
endef
