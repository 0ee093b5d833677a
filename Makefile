# Everything runs from a virtual environment beside this file; nothing is installed elsewhere.
#
#   make run                      the burst scenario on an embedded Ray of three target raylets
#   make run SCENARIO=x ARGS=..   another scenario (catalogue name, file, replay:RUN), more options; with --address in ARGS
#                                 on that cluster instead; NODES=5 for five target raylets
#   make test                     the whole suite; PYTEST_ARGS="tests/unit -k lease" for a part of it
#   make check                    what a commit must pass: lint, format, types
#   make soak                     the long forms of the tests
#   make simulate SEEDS=2000      the control plane on virtual time, with this many seeds
#   make bench                    speed and memory, with peers where there are some; all of them, failures named at the end
#   make coverage                 lines and branches of the loads of concurrency and exhaustion that their tests run
#   make mutation                 which share of small faults in that code its fast tests find; takes root, and half an hour
#   make dashboards               the Grafana dashboard, made from the catalogue of metrics
#   make constraints              resolve all dependencies afresh and pin what was found
#   make clean                    remove what these targets made, except results in runs/

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SCENARIO ?= burst
ARGS ?=
NODES ?= 3
PYTEST_ARGS ?=
SEEDS ?= 200

# ARGS that say where to run take the place of the embedded Ray's raylets.
WHERE = $(if $(filter --address --address=% --nodes --nodes=%,$(ARGS)),,--nodes $(NODES))

# Files whose change asks for a new installation.
PINS := pyproject.toml constraints.txt

.DEFAULT_GOAL := run
.PHONY: run test check soak simulate bench coverage mutation dashboards constraints clean
.DELETE_ON_ERROR:

run: $(VENV)/.installed
	$(BIN)/stress-cluster run "$(SCENARIO)" $(WHERE) $(ARGS)

# Compiled once: a run starts a dozen processes and a test session some thousand, which may not be allowed to write what they compiled.
COMPILE = $(BIN)/python -m compileall -q actors cluster scenarios

# Tests that hold promised times to the machine run one at a time, after all others, which share its cores: three, for each of them waits at
# times. Those of them that wait for most of their time, and compare nothing with the machine as it was before, run in between, four at once.
# Named ones run as named.
PAIRED := $(addprefix tests/death/test_,guardian_death.py guardian_extremes.py export_end.py export_memory.py) \
	$(addprefix tests/load/test_,blocks_taken.py concurrency_load.py contests_here.py disk_io.py exhaustion.py leak_found.py \
	memory_fragment.py release_steps.py shell.py stress_ng.py vm_pressure.py)
TIMED := $(addprefix tests/,death/test_memory_release.py load hosts ray)
SPREAD := --dist worksteal

test: $(VENV)/.installed-test
	@$(COMPILE)
ifneq ($(findstring tests/,$(PYTEST_ARGS)),)
	$(BIN)/python -m pytest -rfEs $(PYTEST_ARGS)
else
	export SUITE_BEGUN_S=$$(date +%s); \
	$(BIN)/python -m pytest -rfEs -n 3 $(SPREAD) tests $(PAIRED:%=--ignore=%) $(TIMED:%=--ignore=%) $(PYTEST_ARGS); untimed=$$?; \
	$(BIN)/python -m pytest -rfEs -n 4 $(SPREAD) $(PAIRED) $(PYTEST_ARGS); paired=$$?; \
	$(BIN)/python -m pytest -rfEs $(TIMED) $(PAIRED:%=--ignore=%) $(PYTEST_ARGS); timed=$$?; \
	case $$untimed,$$paired,$$timed in 5,5,5) exit 1;; *[!05,]*) exit 1;; esac # 5: the arguments chose none of these
endif

check: $(VENV)/.installed-test
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

dashboards: $(VENV)/.installed
	$(BIN)/python -m cluster.exporters.grafana > $@.tmp
	mv $@.tmp deploy/grafana/dashboards/stress-cluster.json

soak: $(VENV)/.installed-test
	$(BIN)/python -m pytest -rfEs --soak -m soak --timeout 0 $(PYTEST_ARGS)

simulate: $(VENV)/.installed-test
	$(BIN)/python -m pytest -rfEs tests/simulation --seeds "$(SEEDS)" --timeout 0 $(PYTEST_ARGS)

bench: $(VENV)/.installed-bench
	@failed=; for bench in benchmarks/bench_*.py; do \
	  echo "== $$bench"; $(BIN)/python "$$bench" $(ARGS) || failed="$$failed $$bench"; \
	done; \
	if [ -n "$$failed" ]; then echo "failed:$$failed" >&2; exit 1; fi

coverage: $(VENV)/.installed-test
	$(BIN)/python benchmarks/covered.py $(ARGS)

mutation: $(VENV)/.installed-test
	$(BIN)/python benchmarks/mutants.py $(ARGS)

# The stamps are written last, so an interrupted installation is repeated.
$(VENV)/.installed: $(PINS) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@$(COMPILE)
	@touch $@

$(VENV)/.installed-test: $(PINS) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-bench: $(PINS) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,bench]'
	@touch $@ $(VENV)/.installed $(VENV)/.installed-test

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "'$(PYTHON)' is missing or older than 3.11; name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
	  echo "'$(PYTHON)' comes without its venv module (on Debian: the package python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

constraints:
	rm -rf build/pins
	$(PYTHON) -m venv build/pins
	build/pins/bin/python -m pip install --quiet --editable '.[test,bench]'
	grep "^#" constraints.txt > build/pins/constraints.txt
	build/pins/bin/python -m pip freeze --exclude-editable >> build/pins/constraints.txt
	mv build/pins/constraints.txt constraints.txt
	rm -rf build/pins

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find actors scenarios cluster tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
