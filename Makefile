# The two commands that everybody needs are `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= demo-out
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help install demo test check e2e clean

help: ## Show what can be made
	@grep -E '^[a-z0-9-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

install: $(VENV)/.runtime ## The `ucadi` command, in .venv/bin

demo: $(VENV)/.runtime ## Three hospitals train together, a CT is read (about 7 minutes)
	@$(BIN)/ucadi demo -o $(OUT) --force

test: $(VENV)/.dev ## Fast tests (about 5 minutes)
	@echo "Fast tests: about 5 minutes on two cores."
	@$(BIN)/pytest -q -n 2 --dist worksteal

check: $(VENV)/.dev ## The gate: format, lint, types, fast tests
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(MAKE) --no-print-directory test

e2e: $(VENV)/.dev ## Slow tests with real processes, TLS, a browser and the whole demo (about 35 minutes)
	@echo "Slow and end-to-end tests: about 35 minutes on two cores."
	@$(BIN)/pytest -q -m "slow or e2e" --durations=10

clean: ## Remove the environment and the demo's results
	rm -rf $(VENV) $(OUT)

$(VENV)/.venv:
	@echo "Creating the Python environment in $(VENV) (once)."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ucadi needs Python 3.11 or newer; set PYTHON=python3.11")'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -q -c constraints.txt pip
	@touch $@

$(VENV)/.runtime: $(VENV)/.venv pyproject.toml constraints.txt
	@echo "Installing ucadi and what it needs: 1 to 5 minutes the first time."
	@$(BIN)/pip install -q -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	@echo "Installing the test tools."
	@$(BIN)/pip install -q -c constraints.txt --group dev
	@touch $@
