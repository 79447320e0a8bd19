# `make run` and `make test` do all the set-up by themselves; a second run finds it done.
PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest
# One a core (tests/suite.py); beyond eight each only compiles the same functions again. A suite that loses one ends: begun anew, one has hung.
WORKERS := -n auto --maxprocesses 8 --max-worker-restart 0
# Written once, or each worker, and each of the hundred commands that tests start, compiles all files it imports.
export PYTHONDONTWRITEBYTECODE :=
# Tests that compile the engine, without and with a prefill pool, in a worker each before all others: workers that come to it at once would
# each do so, and counting what lines run makes compiling take half as long again.
COMPILES := tests/unit/test_kill.py::test_a_run_says_what_stopped_and_what_became_of_the_requests \
  tests/unit/test_plan_rows.py::test_a_token_costs_its_share_of_those_that_come_out

.PHONY: run quick test soak check docs pictures release golden moved report calibrate-published bench bench-twin clean

run: .venv/installed
	$(BIN)/moesim run mixtral_vs_llama2

# Unit and contract tests that need no Ray, torch or browser and are soon done: half a minute on two cores, after a first compilation.
quick: .venv/tested
	$(PYTEST) $(WORKERS) --part light tests/unit tests/contracts

# What takes the pages of docs/ at their word: commands and files on them, a reference of everything, the notebook. `make docs` runs it.
FOLLOWS := tests/docs/test_pages.py tests/docs/test_build.py tests/docs/test_notebook.py

# Everything but what only `make soak` and `make docs` run. What share of the code the light tests run is counted, and may not fall; counting makes
# tests take half as long again, for which the rest has no time.
test: .venv/tested .venv/browser
	$(PYTEST) $(WORKERS) --dist loadgroup $(COMPILES) --doctest-modules simulator
	$(PYTEST) $(WORKERS) --part light --cov --cov-report= tests/unit tests/contracts
	@$(BIN)/coverage report --sort=cover --fail-under=0 2>/dev/null | head -n 12
	$(PYTEST) $(WORKERS) --dist loadgroup --part rest $(addprefix --ignore=,$(FOLLOWS)) tests

# Every law on at least ten times as many cases as `make test`, with the bounds of arrays checked in compiled code; Hypothesis draws its own anew for each
# seed, laws by number go on counting.
SEED ?= 1
soak: .venv/tested
	@NUMBA_BOUNDSCHECK=1 NUMBA_CACHE_DIR=$(CURDIR)/.numba_cache/checked $(PYTEST) $(WORKERS) --dist loadgroup -m "soak or hypothesis or seeded" --hypothesis-profile=soak --hypothesis-seed=$(SEED) tests \
	  || { echo "again with the same cases: make soak SEED=$(SEED)"; exit 1; }

check: .venv/tested
	$(BIN)/ruff format --check simulator tests docs .ci
	$(BIN)/ruff check simulator tests docs .ci
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/codespell README.md DESIGN.md CHANGELOG.md CONTRIBUTING.md docs simulator tests workloads cluster_configs

# The written pages with a reference made from the program, as HTML; a warning is an error, and so is a page that cannot be followed.
docs: .venv/docs .venv/tested
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	$(PYTEST) $(WORKERS) --dist loadgroup $(FOLLOWS)
	@echo "docs/_build/html/index.html"

# The pictures of the README, from a committed report.
pictures: .venv/tested .venv/browser
	$(BIN)/python docs/images/shoot.py

# A release but for pushing it (make release VERSION=0.2.0): a clean tree, a green check, pip-audit and licences, the version, changelog and citation, the
# wheel and the sdist in dist/, a commit and a tag.
release: .venv/tested
	@test -n "$(VERSION)" || { echo "say which: make release VERSION=0.2.0"; exit 2; }
	$(BIN)/python .ci/release.py $(VERSION)

# Recompute the committed numbers; read the difference before committing it.
golden: .venv/tested
	$(BIN)/python -m tests.golden.refresh

# What moved since a revision (make moved BASE=v0.9): the golden set and every group of the validation. Some minutes.
moved: .venv/tested
	@test -n "$(BASE)" || { echo "say since when: make moved BASE=REVISION"; exit 2; }
	$(BIN)/python -m tests.golden.moved $(BASE) $(MEASUREMENTS)

# The committed example reports: the page, its numbers, and the resolved scenario.
report: .venv/tested
	for name in mixtral_vs_llama2 deepseek_v3_vs_llama_405b gpt_oss_vs_qwen3_32b rebalancing day scaling offload mixtral_vs_llama2_training deepseek_v3_schedules; do \
	  $(BIN)/moesim run $$name --out reports/out/$$name && mkdir -p reports/$$name && \
	  cp reports/out/$$name/report.html reports/out/$$name/summary.csv reports/out/$$name/run.json reports/$$name/ || exit 1; \
	done
	$(BIN)/moesim claims --out reports/out/claims && mkdir -p reports/claims && \
	  cp reports/out/claims/report.html reports/out/claims/claims.csv reports/out/claims/run.json reports/claims/
	$(BIN)/moesim execute moe_vs_dense_local --out reports/out/moe_vs_dense_local_executed && mkdir -p reports/moe_vs_dense_local && \
	  cd reports/out/moe_vs_dense_local_executed && cp report.html summary.csv run.json ../../moe_vs_dense_local/

# Fit the shipped calibrations anew on tables of measurements: cluster_configs/calibration/*/*.toml. Some minutes.
MEASUREMENTS ?= $(or $(MOESIM_MEASUREMENTS),../shared/measurements)
calibrate-published: .venv/installed
	$(BIN)/moesim calibrate published $(MEASUREMENTS)

# How far predictions are from measurements, for this revision: the generated tables of docs/accuracy.md, and a line more in the history. Minutes for
# what ships; the rest where there is a folder of measurements, about half an hour.
.PHONY: accuracy
accuracy: .venv/installed
	mkdir -p docs
	$(BIN)/moesim validate $(if $(wildcard $(MEASUREMENTS)),--measurements $(MEASUREMENTS)) --accuracy docs/accuracy.md --history reports/history/accuracy.jsonl

# How fast the simulator is here: requests a second, ns a step, bytes a request, exponents; reports/out/bench. Nothing else should run
# meanwhile. About three minutes; BENCH="--quick" takes one, BENCH="--only serving plan" runs what it names. Figures of every call are
# added to reports/history/benchmarks.jsonl.
bench: .venv/tested
	$(BIN)/python -m tests.benchmarks $(BENCH)

# How far the prediction of a MoE layer is from its run on this machine; nothing else should run meanwhile. About ten minutes.
bench-twin: .venv/tested
	$(BIN)/moesim calibrate cpu
	$(BIN)/python tests/benchmarks/twin.py reports/twin.csv

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("moesim needs Python 3.11 or newer, found " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"

.venv/installed: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/tested: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[real]' --group dev
	touch $@

.venv/docs: .venv/installed
	$(BIN)/python -m pip install --quiet --group docs
	touch $@

# A browser for the report's tests: any that is there, else Debian's where this runs as root with apt.
.venv/browser: .venv/bin/python
	@if command -v chromium chromium-browser google-chrome google-chrome-stable chrome >/dev/null 2>&1; then true; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null; \
	else echo "no Chromium or Chrome found: the tests that open the report in a browser will be skipped"; fi
	@touch $@

clean:
	rm -rf .venv reports/out docs/_build docs/reference/generated build dist .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis .numba_cache
