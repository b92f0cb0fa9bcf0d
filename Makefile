# What there is to do: `make help`.
PYTHON ?= python3
VENV ?= .venv
PORT ?= 8000
export VENV

# Each recipe line is one command, so that make itself starts it and hands SIGTERM on to it.
RUN = $(VENV)/bin/python -m
SETUP = @$(PYTHON) -m infra.local.setup

.PHONY: help doctor demo run up down invoke logs image psql test churn bench faults soak mutations budget lint fmt deploy requirements clean
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

# The Lambda image on the emulator, behind it PgBouncer and Postgres: docker-compose.yml.
COMPOSE = docker compose --profile "*"
HANDLER_PORT ?= 9000
EVENT ?= infra/local/event.json

up: export HANDLER_PORT := $(HANDLER_PORT)
up: ## the same as containers, with the Lambda image, kept up (HANDLER_PORT=9000) until `make down`
	@docker compose up --build --wait

down: ## end these containers, and what they stored
	@$(COMPOSE) down --volumes

invoke: ## send an event to the Lambda container of `make up` (EVENT=infra/local/event.json)
	@curl -fsS -d @$(EVENT) http://127.0.0.1:$(HANDLER_PORT)/2015-03-31/functions/function/invocations
	@echo

logs: ## what the containers of `make up` say, until Ctrl-C
	@$(COMPOSE) logs --follow

# --provenance=false: Lambda takes no image that comes with an attestation beside it.
image: ## the Lambda image, as warm-engine-handler:0.1.0 (TAG=0.1.0)
	docker build --provenance=false --platform linux/amd64 -f handler/Dockerfile \
		--build-arg REVISION="$$(git rev-parse HEAD 2>/dev/null)" -t warm-engine-handler:$(or $(TAG),0.1.0) .

psql: ## a prompt on the Postgres of `make up` where that is up, else of `make run`
	@if [ -n "$$($(COMPOSE) ps --quiet --status running postgres 2>/dev/null)" ]; then \
		exec $(COMPOSE) exec $$(test -t 0 || echo -T) postgres psql -U postgres storefront; \
	fi; $(PYTHON) -m infra.local.setup local && exec $(RUN) infra.local psql

test: ## the tests
	$(SETUP) tests
	@$(RUN) pytest -n auto --maxprocesses=4 --max-worker-restart=0 $(ARGS)

churn: ## a churning fleet straight to Postgres and through PgBouncer: table, plot, verdict; four minutes
	$(SETUP) reports
	@$(RUN) infra.local churn

faults: ## every part broken under traffic, for ten seconds each: reports/faults.md; five minutes
	$(SETUP) tests
	@$(RUN) tests.faults $(ARGS)

soak: ## faults in random order for ten minutes, no write lost or doubled (SEED=1 MINUTES=10)
	$(SETUP) tests
	@$(RUN) tests.faults.soak "$(SEED)" $(MINUTES)

bench: ## what an order costs: this handler, the usual recipes, the bare driver; six minutes
	$(SETUP) reports
	@$(RUN) tests.benchmarks

mutations: ## breaks the code one way at a time and sees the named test fail (ARGS=no_poll for one)
	$(SETUP) tests
	@$(RUN) pytest tests/mutations/noticed.py -v -n auto --maxprocesses=4 $(if $(ARGS),-k "$(ARGS)")

budget: ## whether the fleet on AWS could exhaust its database (ARGS=ReservedConcurrency=6000)
	$(SETUP) tests
	@$(RUN) infra.aws.budget $(ARGS)

lint: ## ruff, mypy --strict, cfn-lint, checkov, and the connection budget of the defaults
	$(SETUP) tests
	$(SETUP) checkov
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .
	@$(RUN) mypy
	@$(VENV)/bin/cfn-lint infra/aws/*.yaml
	@$(VENV)-checkov/bin/checkov --directory infra/aws --framework cloudformation --skip-download --compact --quiet
	@$(RUN) infra.aws.budget

fmt: ## ruff's format and its safe fixes
	$(SETUP) tests
	@$(RUN) ruff check --fix .
	@$(RUN) ruff format .

deploy: ## to the AWS account whose credentials are set (ARGS="MultiAz=false …", see infra/aws/README.md)
	$(SETUP) aws
	@$(VENV)-aws/bin/python -m infra.aws.deploy $(ARGS)

# --universal: one file for every platform and Python; no index lines: whoever installs chooses.
COMPILE = $(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-header $(UPGRADE)

requirements: ## pin the packages anew, with hashes (UPGRADE=--upgrade for the newest)
	$(SETUP) local
	$(COMPILE) pyproject.toml -o handler/requirements.txt
	$(COMPILE) --group database -c handler/requirements.txt -o infra/database/requirements.txt
	$(COMPILE) --group local -c handler/requirements.txt -c infra/database/requirements.txt -o infra/local/requirements.txt
	$(COMPILE) --group reports -c handler/requirements.txt -o infra/local/requirements-reports.txt
	$(COMPILE) --group tests -c handler/requirements.txt -c infra/local/requirements.txt -c infra/local/requirements-reports.txt -o tests/requirements.txt
	$(COMPILE) --group checkov -o infra/aws/requirements-checkov.txt
	$(COMPILE) --group aws -o infra/aws/requirements.txt

clean: ## remove what these targets made in this folder
	rm -rf $(VENV) $(VENV).lock $(VENV)-checkov $(VENV)-checkov.lock $(VENV)-aws $(VENV)-aws.lock .tools .stack .hypothesis .mypy_cache .pytest_cache .ruff_cache
