# The front door: one-word verbs. Needs Python and make; everything else comes from requirements/*.txt.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help setup demo test check fmt bench chaos model mutants lock clean

PYTHON_IN_VENV := .venv/bin/python
MINUTES ?= 5
SEEDS ?= 3000

help:  ## say what the verbs do
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' Makefile

setup:  ## .venv with all groups and extras, as pinned in requirements/all.txt
	@sh scripts/setup all

demo:  ## three nodes, a storm of starts, a kill -9, a freeze, a drain (STORE=redis|postgres|url AGENT=openhands|module:function)
	@sh scripts/setup $(if $(filter-out sqlite%,$(STORE))$(filter openhands%,$(AGENT)),all,core)
	@$(PYTHON_IN_VENV) -m tenure demo $(if $(STORE),--store '$(STORE)') $(if $(AGENT),--agent '$(AGENT)') $(ARGS)

test: setup  ## all suites, and the time each took (SUITE=unit ARGS="-k lease")
	@$(PYTHON_IN_VENV) scripts/run-suites $(SUITE) -- $(ARGS)

check: setup  ## format, lint, types, arrows between modules
	@$(PYTHON_IN_VENV) -m ruff format --check --quiet .
	@$(PYTHON_IN_VENV) -m ruff check --quiet .
	@$(PYTHON_IN_VENV) -m pyright
	@.venv/bin/lint-imports --no-logo

fmt: setup  ## format, and fix what ruff can fix
	@$(PYTHON_IN_VENV) -m ruff format .
	@$(PYTHON_IN_VENV) -m ruff check --fix .

bench:  ## measure, beside raw floors and peers, into docs/benchmarks (ARGS="--quick --only append --store URL")
	@sh scripts/setup bench
	@.tools/bench/bin/python -m tenure bench --out docs/benchmarks $(ARGS)

chaos: setup  ## chaos for longer, then every fault at once (MINUTES=5 per store, SEED=7 FAULTS=1000 STORE=postgres)
	@TENURE_SIM_SEEDS=$(SEEDS) TENURE_SIM_STORE_SEEDS=$$(( ($(SEEDS) + 9) / 10 )) TENURE_CHAOS_SECONDS=$$(( $(MINUTES) * 60 )) \
	    TENURE_START_MATRIX=whole \
	    $(if $(STORE),TENURE_CHAOS_STORE=$(STORE)) \
	    $(PYTHON_IN_VENV) scripts/run-suites simulation chaos -- --timeout=$$(( $(MINUTES) * 60 + 900 )) $(ARGS)
	@$(PYTHON_IN_VENV) tests/chaos/combined.py --minutes $(MINUTES) \
	    $(if $(STORE),--store $(STORE)) $(if $(SEED),--seed $(SEED)) $(if $(FAULTS),--faults $(FAULTS))
	@$(PYTHON_IN_VENV) -m tenure demo --agent openhands $(if $(STORE),--store $(STORE))
	@$(PYTHON_IN_VENV) tests/chaos/agent_crashes.py $(if $(STORE),--store $(STORE))
	@$(PYTHON_IN_VENV) tests/chaos/client_crashes.py
	@TENURE_FUZZ_EXAMPLES=100 $(if $(SEED),TENURE_FUZZ_SEED=$(SEED)) $(PYTHON_IN_VENV) -m pytest tests/server/test_fuzz.py -q
	@TENURE_BENCH_ROWS=all $(PYTHON_IN_VENV) -m pytest tests/conformance/test_bench.py -q -k every_row

model: setup  ## every interleaving of the protocol within large bounds (ARGS="zombies --limit 500000")
	@$(PYTHON_IN_VENV) -m tenure.testing.model $(ARGS)

mutants: setup  ## break each rule on purpose and see which test goes red (ARGS="M07 sqlite --jobs 2")
	@$(PYTHON_IN_VENV) tests/mutants/run.py $(ARGS)

lock: setup  ## pin pyproject.toml anew into requirements/*.txt (ARGS=--upgrade for the newest releases)
	@sh scripts/lock $(ARGS)

clean:  ## remove .venv and everything else that was built
	@rm -rf .venv .tools .hypothesis .pytest_cache .ruff_cache .import_linter_cache dist build
	@find src tests scripts -type d -name __pycache__ -prune -exec rm -rf {} +
