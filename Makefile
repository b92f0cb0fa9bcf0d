# What there is to do: `make help`.
PYTHON ?= python3
VENV ?= .venv
PORT ?= 8000
export VENV

# Each recipe line is one command, so that make itself starts it and hands SIGTERM on to it.
RUN = $(VENV)/bin/python -m
SETUP = @$(PYTHON) -m infra.local.setup

.PHONY: help doctor demo run psql test churn mutations lint fmt requirements clean
.DEFAULT_GOAL := help

help: ## what there is to do
	@sed -n "s/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p" Makefile

doctor: ## what this machine lacks, and what is skipped for it
	@$(PYTHON) -m infra.local.doctor

demo: ## one order through the runtime client, PgBouncer and Postgres, cold and warm; ends by itself
	$(SETUP) local
	@$(RUN) infra.local demo

run: ## the same, kept up on http://127.0.0.1:8000 (PORT=8000) until Ctrl-C
	$(SETUP) local
	@$(RUN) infra.local run --port $(PORT)

psql: ## a prompt on the Postgres of `make run`
	$(SETUP) local
	@$(RUN) infra.local psql

test: ## the tests
	$(SETUP) tests
	@$(RUN) pytest -n auto --maxprocesses=4 $(ARGS)

churn: ## a churning fleet straight to Postgres and through PgBouncer: table, plot, verdict; five minutes
	$(SETUP) reports
	@$(RUN) infra.local churn

mutations: ## breaks the code one way at a time and sees the named test fail (ARGS=no_poll for one)
	$(SETUP) tests
	@$(RUN) tests.mutations $(ARGS)

lint: ## ruff and mypy --strict
	$(SETUP) tests
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .
	@$(RUN) mypy

fmt: ## ruff's format and its safe fixes
	$(SETUP) tests
	@$(RUN) ruff check --fix .
	@$(RUN) ruff format .

# --universal: one file for every platform and Python; no index lines: whoever installs chooses.
COMPILE = $(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-header $(UPGRADE)

requirements: ## pin the packages anew, with hashes (UPGRADE=--upgrade for the newest)
	$(SETUP) local
	$(COMPILE) pyproject.toml -o handler/requirements.txt
	$(COMPILE) --group database -c handler/requirements.txt -o infra/database/requirements.txt
	$(COMPILE) --group local -c handler/requirements.txt -c infra/database/requirements.txt -o infra/local/requirements.txt
	$(COMPILE) --group reports -c handler/requirements.txt -o infra/local/reports.txt
	$(COMPILE) --group tests -c handler/requirements.txt -c infra/local/requirements.txt -c infra/local/reports.txt -o tests/requirements.txt

clean: ## remove what these targets made in this folder
	rm -rf $(VENV) $(VENV).lock .tools .stack .mypy_cache .pytest_cache .ruff_cache
