# Two commands for a stranger: `make demo` and `make test`. Both install first and are quick when nothing changed.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PY := .venv/bin/python
STAMP := .venv/.stamp
# Test files that run at the same time.
JOBS ?= 2
REQUIREMENTS := requirements.txt requirements-nodeps.txt requirements-dev.txt constraints.txt
export MUJOCO_GL ?= osmesa
export TEMPER_GOLDEN ?= $(abspath ../shared/golden)
export PYRIGHT_PYTHON_IGNORE_WARNINGS ?= 1

.PHONY: setup gl browser images demo test bench chaos fuzz simulators lint format clean

setup: $(STAMP) gl

$(STAMP): $(REQUIREMENTS)
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { \
	  echo "Temper needs Python 3.11, found: $$($(PYTHON) --version 2>&1). Install it (Debian 12: apt-get install python3.11" \
	       "python3.11-venv) or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 2; }
	@[ -x $(PY) ] && $(PY) -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear .venv || { \
	  echo "Could not create .venv. On Debian and Ubuntu: apt-get install python3.11-venv" >&2; exit 2; }
	$(PY) -m pip install --quiet --disable-pip-version-check torch -c constraints.txt
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-dev.txt -c constraints.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-nodeps.txt
	@touch $@

gl: $(STAMP)
	@$(PY) launch.py install gl

demo: setup
	$(PY) launch.py demo

simulators: setup
	@$(PY) launch.py install libero robosuite15 calvin ai2thor

test: setup simulators
	@$(PY) -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder --durations=15 $(PYTEST_ARGS)

bench: setup simulators
	@$(PY) -m benchmarks $(BENCH)

chaos: setup
	$(PY) -m tests.chaos $(CHAOS)

# Over 10,000 changed checkpoints, demonstrations, messages and configurations: about ten minutes.
fuzz: setup
	@$(PY) -m benchmarks.fuzz

# For tests/rl/test_page.py, which is skipped without one.
browser:
	@command -v chromium >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; }

# temper:latest, and one image per simulator on top of it: temper:libero and so on.
images:
	docker build -f docker/base.Dockerfile -t temper:latest .
	for file in $(filter-out docker/base.Dockerfile,$(wildcard docker/*.Dockerfile)); do \
	  docker build -f $$file -t temper:$$(basename $$file .Dockerfile) . || exit 1; done

lint: $(STAMP)
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m pyright

format: $(STAMP)
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

clean:
	rm -rf .venv .pytest_cache .ruff_cache
