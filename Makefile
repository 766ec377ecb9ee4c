# `make help` lists what there is. Everything runs in .venv, which the first target that needs it makes.

SHELL := bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3,$(if $(shell $(p) --version 2>/dev/null),$(p))))
VENV := .venv
READY := $(VENV)/.ready
READY_TESTS := $(VENV)/.ready-tests
EZM := $(VENV)/bin/ezm
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
NEEDED := Python 3.11 or 3.12 is needed; name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3

SWEEP ?= sweeps/task_scaling.yaml
SPEC ?= experiments/quickstart.yaml
SET ?=
RESUME ?=
RUN ?= last
PORT ?= 5000
JOBS ?= auto
SWEEP_OPTIONS = $(if $(filter file,$(origin SPEC)),,--base='$(SPEC)') $(if $(PRESET),--preset='$(PRESET)') \
  $(if $(SEEDS),--seeds='$(SEEDS)') $(foreach setting,$(SET),--set='$(setting)') $(if $(NAME),--name='$(NAME)') \
  $(if $(STORAGE),--storage='$(STORAGE)')

.PHONY: help
help: ## list the targets
	@echo "usage: make TARGET [NAME=value ...]"
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: train
train: $(READY) ## train an experiment: SPEC=experiments/quickstart.yaml SET="a.b=c d.e=f" RESUME=last
	@$(EZM) train "$(SPEC)" $(foreach setting,$(SET),--set '$(setting)') $(if $(RESUME),--resume "$(RESUME)")

.PHONY: eval
eval: $(READY) ## evaluate a checkpoint: RUN=last, a run id or a path
	@$(EZM) eval "$(RUN)"

.PHONY: sweep
sweep: $(READY) ## sweep: TASKS=8,16,29 SWEEP=sweeps/task_scaling.yaml TRIALS= SEEDS= PRESET= SPEC= SET= NAME= STORAGE=
	@$(EZM) sweep run "$(SWEEP)" $(if $(filter undefined,$(origin TASKS)),,--tasks='$(TASKS)') \
	  $(if $(TRIALS),--trials='$(TRIALS)') $(SWEEP_OPTIONS)

.PHONY: ablations
ablations: $(READY) ## parts removed one by one, and the figure: SPEC= PRESET= SEEDS= ONLY=no_path,control SET= NAME= STORAGE=
	@$(EZM) sweep run sweeps/ablations.yaml --report $(if $(ONLY),--only='$(ONLY)') $(SWEEP_OPTIONS)

.PHONY: report
report: $(READY) ## a sweep as a page and figures: NAME=last PUBLISHED="ez-m.json brc.json" OUT=
	@$(EZM) report "$(or $(NAME),last)" $(foreach file,$(PUBLISHED),--published '$(file)') \
	  $(if $(OUT),--out '$(OUT)')

.PHONY: sweep-worker
sweep-worker: $(READY) ## one more worker of a sweep that runs: NAME=task-scaling STORAGE=
	@$(EZM) sweep worker "$(or $(NAME),task-scaling)" $(if $(STORAGE),--storage='$(STORAGE)')

.PHONY: ui
ui: $(READY) ## MLflow's UI on this machine: PORT=5000
	@exec $(EZM) ui --port "$(PORT)"

.PHONY: test
test: $(READY_TESTS) ## the tests (minutes), one process per core: JOBS=auto
	@$(VENV)/bin/python -m pytest -q -m "not slow" -n "$(JOBS)" --dist loadfile --no-loadscope-reorder

.PHONY: test-slow
test-slow: $(READY_TESTS) ## the slow tests
	@$(VENV)/bin/python -m pytest -q -m slow

.PHONY: learn-check
learn-check: $(READY) ## learn three dm_control tasks from scratch and check the returns (up to 20 minutes)
	@$(EZM) train experiments/learn_check.yaml
	@$(EZM) figure last --out mlruns/learn_check.png
	@$(EZM) learn-check

.PHONY: learn-control
learn-control: $(READY) ## the same, but the search's choice is a random candidate: this must not pass
	@$(EZM) train experiments/learn_check.yaml --set name=learn-control --set search.choice=random
	@$(EZM) learn-check; code=$$?; \
	if [ $$code -eq 0 ]; then echo "make: an agent that chooses at random passed" >&2; exit 1; fi; \
	if [ $$code -eq 1 ]; then echo "it fails, as it must"; else exit $$code; fi

.PHONY: bench
bench: $(READY_TESTS) ## the speed benchmarks, with tables, and JSON in mlruns/benchmarks (up to 10 minutes)
	@rm -rf mlruns/benchmarks; mkdir -p mlruns/benchmarks
	@set -e; for run in "search --seconds 8" "decide --seconds 12" "replay --seconds 20" "train --seconds 15 --least 3" \
	  "envs --seconds 3"; do \
	  set -- $$run; echo "benchmarks/$$1.py"; \
	  $(VENV)/bin/python benchmarks/$$1.py $${@:2} --json mlruns/benchmarks/$$1.json; \
	done; \
	echo "all benchmarks in $$((SECONDS / 60)) min $$((SECONDS % 60)) s; their numbers: $$(ls mlruns/benchmarks/*.json | xargs)"

.PHONY: lint
lint: $(READY_TESTS) ## ruff and mypy
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy

.PHONY: clean
clean: ## remove .venv and caches; runs in mlruns stay
	@rm -rf $(VENV) *.egg-info .pytest_cache .mypy_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@if ! $(VENV)/bin/python -m pip --version > /dev/null 2>&1; then \
	  if ! "$(PYTHON)" --version > /dev/null 2>&1; then \
	    echo "make: no Python $(PYTHON) found; $(NEEDED)" >&2; exit 1; \
	  fi; \
	  if ! "$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))'; then \
	    echo "make: $(PYTHON) is $$("$(PYTHON)" --version 2>&1); $(NEEDED)" >&2; exit 1; \
	  fi; \
	  echo "making $(VENV) with $$("$(PYTHON)" --version)"; \
	  "$(PYTHON)" -m venv --clear $(VENV); \
	fi
	@echo "installing the pinned packages (some minutes the first time)"
	@$(PIP) -e .
	@touch $@

$(READY_TESTS): $(READY)
	@echo "installing what the tests need"
	@$(PIP) -e '.[dev,oracle,onnx,postgres,text]'
	@touch $@
