# Two commands do everything on a fresh machine: make demo, make test. Each target installs what it needs.
PYTHON ?= python3
BIN := .venv/bin
SEED ?=
STATE ?= asynchealth-state

.DEFAULT_GOAL := help
.PHONY: help setup demo test kafka truth corrected equality equality-short soak fuzz bench bench-live bench-day bench-report screens evidence notebooks notebook-pictures lint lock clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: .venv/installed  ## .venv with everything and .venv/bin/asynchealth

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch .venv/installed

demo: setup  ## an hour of a simulated fleet through the live system, and replayed: both give the morning report below
	@$(BIN)/asynchealth chaos fleet demo-tape
	@mkdir -p demo-state
	@$(BIN)/asynchealth replay demo-tape --state demo-state --fresh > demo-state/replay.txt & \
		$(BIN)/asynchealth up demo-tape --state demo-live && wait $$! && cat demo-state/replay.txt
	@$(BIN)/asynchealth report --state demo-live | sed 's/demo-live/demo-state/g' > demo-live/report.txt
	@$(BIN)/asynchealth report --state demo-state > demo-state/report.txt
	@diff demo-live/report.txt demo-state/report.txt && echo 'The live system reports what replay reports, line for line:'
	@cat demo-state/report.txt

test: setup  ## the whole test suite
	POLARS_MAX_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadgroup

.venv/jupyter: deploy/jupyter.lock .venv/installed
	$(BIN)/python -m pip install --quiet --require-hashes -r deploy/jupyter.lock
	JUPYTER_CONFIG_DIR=.venv/jupyter $(BIN)/jupytext-config set-default-viewer python

notebooks: .venv/jupyter  ## Jupyter Lab with notebooks/ on your state (STATE=demo-state, or a bundle)
	ASYNCHEALTH_STATE=$(abspath $(STATE)) JUPYTER_CONFIG_DIR=.venv/jupyter $(BIN)/jupyter lab notebooks

notebook-pictures: setup  # docs/notebooks, from what make demo leaves
	$(BIN)/python -m tests.notebooks demo-state

kafka: setup  ## Apache Kafka 4 on 127.0.0.1:9092, from Maven's artifacts; Ctrl-C ends it
	$(BIN)/python -m tests.kafka

truth: setup  ## findings against the labels of 5 fault hours and 10 calm ones (SEED=7 for one)
	$(BIN)/python -m tests.truth $(if $(SEED),--seed $(SEED),)

corrected: setup  ## error bars of corrected times against the true times of 3 hours (SEED=7 for one)
	$(BIN)/python -m tests.corrected $(if $(SEED),--seed $(SEED),)

equality: setup  ## 300,000 labelled events through a real Kafka, under 32 faults: replay's answer? half an hour
	$(BIN)/python -m tests.equality
	$(BIN)/python -m tests.equality.append_time

equality-short: setup  ## the same in a few minutes, each kind of fault once; CI does this
	$(BIN)/python -m tests.equality --scale 1 --pace 20 --faults 8 --only-faults

soak: setup  ## the same under 100 faults, in twenty minutes
	$(BIN)/python -m tests.equality --scale 1 --pace 2.5 --faults 100 --seed 2 --only-faults

fuzz: setup  ## a million broken records of every format (SEED=2 for others): what breaks a rule becomes a case
	$(BIN)/python -m tests.fuzz $(if $(SEED),--seed $(SEED),)

bench: setup  ## events per second, memory, and the same work in DuckDB and polars
	$(BIN)/python -m bench
	$(BIN)/python -m bench.formats

bench/peers/.venv/installed: bench/peers/peers.lock
	$(PYTHON) -m venv bench/peers/.venv
	bench/peers/.venv/bin/python -m pip install --quiet --require-hashes -r bench/peers/peers.lock
	@touch bench/peers/.venv/installed

bench-live: setup bench/peers/.venv/installed  ## a worker on a real Kafka, beside stock Faust and bare clients; then ten steady minutes
	$(BIN)/python -m bench.live
	$(BIN)/python -m bench.steady

bench-day: setup  ## a day of landed tables: the published file and a publication at its end (half an hour)
	$(BIN)/python -m bench.day

bench-report: setup  ## the morning report over 100 million landed events and the timeline of one incident (8 GB)
	$(BIN)/python -m bench.report

screens: setup  ## after `make demo`: its pages in Chromium, and the review of its storm, into docs/
	$(BIN)/python -m tests.screens demo-state

evidence: setup  ## runs what shows that it holds, and writes the outputs to docs/
	$(MAKE) --silent demo > docs/demo.txt
	$(MAKE) --silent screens
	$(MAKE) --silent notebook-pictures
	ASYNCHEALTH_SEEDS=3 POLARS_MAX_THREADS=1 $(BIN)/python -m pytest -n 2 -vv tests/detectors/test_laws.py tests/test_ahead.py | grep -oE '(PASSED|FAILED|SKIPPED).*|=+ .* =+' \
		| LC_ALL=C sort > docs/laws.txt
	$(BIN)/python -m tests.truth > docs/truth.txt
	$(BIN)/python -m tests.corrected > docs/corrected.txt
	POLARS_MAX_THREADS=1 $(BIN)/python -m pytest -n 2 -vv tests/streams/report/test_sql_shut_in.py | grep -oE '(PASSED|FAILED|SKIPPED).*|=+ .* =+' \
		| LC_ALL=C sort > docs/sql.txt
	$(BIN)/python -m tests.fuzz > docs/fuzz.txt
	$(BIN)/python -m bench > docs/bench.md
	$(BIN)/python -m bench.formats > docs/bench-formats.md
	$(MAKE) --silent bench-live > docs/bench-live.md
	$(BIN)/python -m bench.day > docs/bench-day.md
	$(BIN)/python -m bench.report > docs/bench-report.md

lint: setup  ## ruff, mypy --strict, the arrow between the packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

lock: setup  # after a change of the dependencies in pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --extra dev --no-header --no-annotate \
		--python-version 3.11 pyproject.toml --output-file requirements.lock
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --constraint requirements.lock \
		--python-version 3.11 deploy/jupyter.in --output-file deploy/jupyter.lock
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate \
		--python-version 3.11 bench/peers/peers.in --output-file bench/peers/peers.lock

clean:  ## removes what the other targets made
	rm -rf .venv bench/peers/.venv demo-tape demo-state demo-live .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
