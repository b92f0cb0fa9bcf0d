# `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
PORT ?= 8000
export VENV
# The folder of another service, for demo, run, churn and faults.
export ROOT

# One command per recipe line, so that make starts it without a shell and forwards SIGTERM.
RUN = $(VENV)/bin/python -m
SETUP = @$(SYSTEM_PYTHON) -m infra.local.setup
SERVICE = $(if $(ROOT),service)
ROOTED = $(if $(ROOT),--root "$(ROOT)")

# Checked here, because an older Python cannot parse the setup.
SYSTEM_PYTHON = $(if $(shell "$(PYTHON)" -c "import sys; print(sys.version_info >= (3, 11) or '')" 2>&1 \
	| grep -x True),,$(error PYTHON=$(PYTHON) is not Python 3.11 or later. \
	Set another, as in: make $@ PYTHON=python3.13))"$(PYTHON)"

.PHONY: help doctor demo run new update migration add up down invoke logs image psql console status test coverage churn examine recipes bench faults soak mutations compliance machines budget lint fmt docs archive deploy verify administer destroy requirements clean
.PHONY: prepare
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -n "s/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p" Makefile

doctor: ## what this machine lacks, and which tests are skipped without it
	@$(SYSTEM_PYTHON) -m infra.local.doctor

demo: ## one order through the runtime client, PgBouncer and Postgres, cold and warm; ends by itself
	$(SETUP) local $(SERVICE)
	@$(RUN) infra.local demo $(ROOTED)

run: ## the same stack, running on http://127.0.0.1:8000 (PORT=8000) until Ctrl-C
	$(SETUP) local $(SERVICE)
	@$(RUN) infra.local run --port $(PORT) $(ROOTED)

new: ## create your own service (DEST=../inventory NAME=inventory), see docs/copy.md
	$(SETUP) copier
	@$(VENV)-copier/bin/python -m infra.service new "$(DEST)" "$(NAME)"

update: ## update the engine of a service that `make new` created (ROOT=../inventory)
	$(SETUP) copier
	@$(VENV)-copier/bin/python -m infra.service update "$(ROOT)"

prepare: # for a service's own Makefile: install the lab and the service's packages, or GROUPS
	$(SETUP) $(or $(GROUPS),local $(SERVICE))

migration: ## create a revision from the changes of the models (MESSAGE="add a column", ROOT=../inventory)
	$(SETUP) local $(SERVICE)
	@$(RUN) infra.local owner $(ROOTED) -- -m alembic revision --autogenerate --message "$(MESSAGE)"

add: ## add a package to the image and pin all of them (PACKAGE="httpx>=0.28")
	$(SETUP) local
	@$(VENV)/bin/uv add --quiet --frozen "$(PACKAGE)"
	@$(MAKE) --no-print-directory requirements

# The Lambda image on the emulator, PgBouncer and Postgres: docker-compose.yml.
COMPOSE = docker compose --profile "*"
HANDLER_PORT ?= 9000
# The version is the newest tag's, and is written nowhere else.
VERSION = $(or $(patsubst v%,%,$(shell git describe --tags --match 'v*' --dirty 2>/dev/null)),dev)
EVENT ?= infra/local/event.json

up: export HANDLER_PORT := $(HANDLER_PORT)
up: ## the same as containers, with the Lambda image (HANDLER_PORT=9000), until `make down`
	@docker compose up --build --wait

down: ## remove these containers and their data
	@$(COMPOSE) down --volumes

invoke: ## send an event to the Lambda container of `make up` (EVENT=infra/local/event.json)
	@curl -fsS -d @$(EVENT) http://127.0.0.1:$(HANDLER_PORT)/2015-03-31/functions/function/invocations
	@echo

logs: ## follow the logs of `make up`, until Ctrl-C
	@$(COMPOSE) logs --follow

# --provenance=false: Lambda does not accept an image with an attestation.
image: ## the Lambda image, as warm-engine-handler:VERSION, by the git tag (TAG=dev)
	docker build --provenance=false --platform linux/amd64 -f handler/Dockerfile --build-arg VERSION="$(VERSION)" \
		--build-arg REVISION="$$(git rev-parse HEAD 2>/dev/null)" -t warm-engine-handler:$(or $(TAG),$(VERSION)) .

psql: ## psql on the Postgres of `make up` if that is running, else of `make run`
	@if [ -n "$$($(COMPOSE) ps --quiet --status running postgres 2>/dev/null)" ]; then \
		exec $(COMPOSE) exec $$(test -t 0 || echo -T) postgres psql -U postgres storefront; \
	fi; $(SYSTEM_PYTHON) -m infra.local.setup local && exec $(RUN) infra.local psql

console: ## psql on PgBouncer's console (STACK=run or up, if both are running)
	$(SETUP) local
	@$(RUN) infra.local console $(if $(STACK),--stack $(STACK))

status: ## connections and locks in PgBouncer and Postgres, refreshed on a terminal (STACK=run or up, if both are running)
	$(SETUP) local
	@$(RUN) infra.local status $(if $(STACK),--stack $(STACK))

HANDLER_TESTS = tests/unit tests/integration tests/runtime

test: ## run the tests of the handler and of its lab (ALL=1 for all tests, ARGS="tests/faults -k reloaded" for some)
	$(SETUP) tests
	@$(RUN) pytest -n auto --maxprocesses=4 --max-worker-restart=0 $(ARGS) $(if $(ALL)$(ARGS),,$(HANDLER_TESTS))

# `make test` without it keeps its timing; with it a few bounds of `tests/runtime` would be too tight.
coverage: ## branch coverage of handler/, also in the processes that tests start; fails below 95 %
	$(SETUP) tests
	@$(VENV)/bin/coverage erase
	@$(RUN) coverage run -m pytest -n auto --maxprocesses=4 --max-worker-restart=0 tests/unit tests/integration $(ARGS)
	@$(VENV)/bin/coverage combine --quiet
	@$(VENV)/bin/coverage report

churn: ## a fleet under churn, direct and through PgBouncer: table, plot, exit status; four minutes
	$(SETUP) reports $(SERVICE)
	@$(RUN) infra.local churn $(ROOTED)

# PYTHON is the examined function's here, and not what the virtual environment is made with.
examine: SETUP = @python3 -m infra.local.setup
examine: ## what a function does to its database (HANDLER= ROOT= PYTHON= IMAGE= EVENT= ENV= SCHEMA= ONLY= REQUIRE=all FAST=1)
	$(SETUP) local
	@$(RUN) infra.local examine

recipes: ## what the web recommends, each examined: reports/recipes.md; a quarter of an hour
	$(SETUP) tests
	$(SETUP) stac
	@$(RUN) tests.examine

faults: ## inject each fault under traffic for ten seconds: reports/faults.md; five minutes
	$(SETUP) tests $(SERVICE)
	@$(RUN) tests.faults $(ARGS)

soak: ## faults in random order for ten minutes, no write lost or doubled (SEED=1 MINUTES=10)
	$(SETUP) tests
	@$(RUN) tests.faults.soak "$(SEED)" $(MINUTES)

bench: ## what this handler costs, beside other recipes; eight minutes (FAST=1 compares with the report, FULL=1 adds Pythons, a storm, 10,000 clients)
	$(SETUP) $(if $(FULL),tests,reports)
	@$(RUN) tests.benchmarks

mutations: ## apply each mutation and check that the named test fails (ARGS=no_poll for one)
	$(SETUP) tests
	@$(RUN) pytest tests/mutations/run_mutations.py -v -n auto --maxprocesses=4 $(if $(ARGS),-k "$(ARGS)")

compliance: ## SQLAlchemy's tests on the stock dialect and on this one, direct and pooled; ten minutes
	$(SETUP) tests
	@$(RUN) tests.compliance

machines: ## demo and tests on bare Debian machines, in containers (MACHINES="trixie forky-root")
	$(SETUP) tests
	@$(RUN) tests.machines

budget: ## check whether the fleet on AWS could exhaust its database (ARGS=ReservedConcurrency=6000)
	$(SETUP) tests
	@$(RUN) infra.aws.budget $(ARGS)

lint: ## ruff, mypy --strict, import-linter, cfn-lint, checkov, sam validate, codespell, the documents, and the connection budget of the defaults
	$(SETUP) tests
	$(SETUP) checkov
	$(SETUP) aws
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .
	@$(RUN) mypy
	@$(VENV)/bin/lint-imports --no-cache
	@$(VENV)/bin/cfn-lint infra/aws/*.yaml infra/aws/github/*.yaml
	@$(VENV)-checkov/bin/checkov --directory infra/aws --framework cloudformation --skip-download --compact --quiet
	@AWS_DEFAULT_REGION=eu-central-1 SAM_CLI_TELEMETRY=0 sh -ec 'for each in template function migration; do \
		$(VENV)-aws/bin/sam validate --lint --template infra/aws/$$each.yaml; done'
	@$(RUN) infra.aws.budget
	@$(VENV)/bin/codespell
	@$(RUN) tests.documents.prose
	@NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --strict

fmt: ## ruff's format and its safe fixes, and the generated tables in the documents
	$(SETUP) tests
	@$(RUN) ruff format .
	@$(RUN) ruff check --fix .
	@$(RUN) tests.documents.tables

docs: ## the documents as a site with search, on http://127.0.0.1:8001 (DOCS_PORT=8001) until Ctrl-C
	$(SETUP) tests
	@NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs serve --dev-addr 127.0.0.1:$(or $(DOCS_PORT),8001)

# -n: gzip writes no time, so that a tag is the same archive wherever it is made.
archive: ## the source archive of a tag, its checksum and its section of CHANGELOG.md, into dist/ (TAG=v1.2.3)
	@sh -ec 'version=$${1#v}; name="warm-engine-$$version"; rm -rf dist; mkdir dist; \
		sed -n "/^## \\[$$version\\]/,/^## \\[/{/^## \\[/!p}" CHANGELOG.md > dist/notes.md; \
		grep -q . dist/notes.md || { echo "archive: CHANGELOG.md has no section [$$version]" >&2; exit 1; }; \
		git archive --prefix="$$name/" --output="dist/$$name.tar" "$$1"; gzip -9n "dist/$$name.tar"; \
		cd dist; sha256sum *.tar.gz | tee SHA256SUMS' archive "$(TAG)"

deploy verify administer destroy: export STACK := $(STACK)
deploy: export PLAN := $(PLAN)
deploy: ## deploy to the AWS account of the credentials (ARGS="MultiAz=false …", see docs/aws.md)
	$(SETUP) aws
	@$(VENV)-aws/bin/python -m infra.aws.deploy $(ARGS)

verify: export CHANGES := $(CHANGES)
verify: ## check that deployment: table, reports/aws.json (STACK=, CHANGES=1 adds checks that change it)
	$(SETUP) aws
	@$(VENV)-aws/bin/python -m infra.aws.verify

destroy: export FORCE := $(FORCE)
destroy: ## delete that deployment after listing what is deleted and kept (STACK=, FORCE=1 does not ask)
	$(SETUP) aws
	@$(VENV)-aws/bin/python -m infra.aws.destroy

administer: ## run SQL="SELECT 1" as the administrator of the database on AWS, or the migrations (STACK=)
	$(SETUP) aws
	@$(VENV)-aws/bin/python -m infra.aws.administer $${SQL:+"$$SQL"}

# --universal: for every platform and Python; without index lines, so that the installer chooses.
COMPILE = $(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-header $(UPGRADE)

requirements: ## pin the packages with hashes (UPGRADE=--upgrade for the newest)
	$(SETUP) local
	$(COMPILE) pyproject.toml -o handler/requirements.txt
	$(COMPILE) --group database -c handler/requirements.txt -o infra/database/requirements.txt
	$(COMPILE) --group local -c handler/requirements.txt -c infra/database/requirements.txt -o infra/local/requirements.txt
	$(COMPILE) --group reports -c handler/requirements.txt -o infra/local/requirements-reports.txt
	$(COMPILE) --group tests -c handler/requirements.txt -c infra/local/requirements.txt -c infra/local/requirements-reports.txt -o tests/requirements.txt
	$(COMPILE) --group checkov -o infra/aws/requirements-checkov.txt
	$(COMPILE) --group aws -o infra/aws/requirements.txt
	$(COMPILE) --group copier -c handler/requirements.txt -c infra/local/requirements.txt -o infra/service/requirements.txt
	$(COMPILE) --group service -c handler/requirements.txt -c infra/local/requirements.txt -c tests/requirements.txt -o infra/service/requirements-dev.txt
	$(COMPILE) --group stac -o tests/examine/recipes/stac_fastapi/requirements.txt

clean: ## remove what these targets created
	rm -rf .coverage* $(VENV) $(VENV).lock $(VENV)-checkov $(VENV)-checkov.lock $(VENV)-aws $(VENV)-aws.lock $(VENV)-copier $(VENV)-copier.lock $(VENV)-stac $(VENV)-stac.lock .tools .site dist .stack .hypothesis .mypy_cache .pytest_cache .ruff_cache
