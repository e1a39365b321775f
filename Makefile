# Everything runs in .venv, which uv makes from uv.lock; uv itself is brought when it is missing.
PYTHON ?= python3
VENV ?= .venv
export UV_PROJECT_ENVIRONMENT := $(VENV)
# Tests start hundreds of processes; without compiled modules each takes seven seconds of a core to start, with them one.
export UV_COMPILE_BYTECODE := 1
unexport PYTHONDONTWRITEBYTECODE

# uv where it is installed, else a copy of its own in .uv
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
SYNCED := $(VENV)/.synced
RUN := $(VENV)/bin
LEARN := $(VENV)-learn

# Per cent of lines. What trains models is not run by `make test`; `make test-all` asks for 85.
LEAST_COVERAGE := 75

# A file's tests share what they start. Files begin in the order of tests/conftest.py: long ones first.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder

# Python 3.12 and later count lines themselves, at no cost; tracing them takes a third more time.
COUNTED = COVERAGE_CORE=$(shell $(RUN)/python -c "import sys; print('sysmon' if sys.version_info >= (3, 12) else 'ctrace')")

.PHONY: help setup learn demo test test-all mutants lint format bench bench-bandit bench-convergence bench-embeddings bench-evidence bench-gateway bench-production bench-training users soak faults schemas clean

help:
	@echo "make demo    run the whole loop on this machine and write report.html"
	@echo "make test    run the tests that are quick and need no trainers, with their coverage"
	@echo "make test-all  run all tests: also Kafka at length, faults, and what trains models (6 GB)"
	@echo "make mutants change the code in 2,400 places and count what the tests notice; a quarter of an hour"
	@echo "make learn   set up .venv-learn, which has what trains models (6 GB)"
	@echo "make lint    ruff, mypy --strict, import contracts"
	@echo "make bench   measure, and write the figures to bench-results.json"
	@echo "make bench-bandit  the bandit beside Vowpal Wabbit, and whether its evaluation and gate tell the truth"
	@echo "make bench-embeddings  what embeddings of contexts earn the bandit, and what a decision costs with them"
	@echo "make bench-production  the path of production beside Vowpal Wabbit, on fourteen problems; twenty minutes"
	@echo "make bench-training  what SFT, DPO, GRPO and PPO earn over their parents, on served answers, three seeds each"
	@echo "make bench-gateway  the gateway beside its peers, each in an environment of its own"
	@echo "make bench-evidence  how often gates, trials and watches are wrong in a thousand worlds each; half an hour"
	@echo "make bench-convergence  how many rollouts it takes until the better option serves, in simulated time; three minutes"
	@echo "make users   six users' programs, until the better option serves them; five minutes"
	@echo "make soak    half an hour of everything at once at the gateway, with its memory curve"
	@echo "make faults  kill 120 processes under load, stop Kafka for two minutes; takes a quarter of an hour"
	@echo "make format  let ruff rewrite the sources"
	@echo "make schemas write the JSON Schemas of the events"

setup: $(SYNCED)

$(SYNCED): pyproject.toml uv.lock | $(UV)
	$(UV) sync --locked --python $(PYTHON)
	@touch $@

.uv/bin/uv:
	$(PYTHON) -m venv .uv
	.uv/bin/pip install --quiet --disable-pip-version-check "uv>=0.9"

learn: $(LEARN)/.synced

# What trains has an environment of its own: the core must work without it.
$(LEARN)/.synced: pyproject.toml uv.lock | $(UV)
	UV_PROJECT_ENVIRONMENT=$(LEARN) $(UV) sync --locked --extra learn --python $(PYTHON)
	@touch $@

demo: setup
	$(RUN)/everloop demo

# Tests on Kafka run after the others, alone: brokers and workers wait for what must not starve.
test: setup
	$(COUNTED) $(RUN)/pytest --ignore tests/training --ignore tests/users $(PARALLEL) -m "not kafka and not slow" \
		--cov --cov-report= --cov-fail-under=0
	$(COUNTED) $(RUN)/pytest --ignore tests/training --ignore tests/users -m "kafka and not slow" --cov --cov-append --cov-report=term \
		--cov-fail-under=$(LEAST_COVERAGE)

test-all: setup $(LEARN)/.synced
	$(COUNTED) $(RUN)/pytest --ignore tests/training --ignore tests/users $(PARALLEL) -m "not kafka" \
		--cov --cov-report= --cov-fail-under=0
	$(COUNTED) $(RUN)/pytest --ignore tests/training --ignore tests/users -m kafka --cov --cov-append --cov-report= --cov-fail-under=0
	$(COUNTED) $(LEARN)/bin/pytest tests/training $(PARALLEL) --cov --cov-append --cov-report=term

# A run keeps its results in mutants/ and goes on where it ended, so that it begins without them.
mutants: setup
	rm -rf mutants
	$(RUN)/python -m tests.mutants

lint: setup
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/lint-imports

format: setup
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .

bench: setup
	$(RUN)/python -m tests.benchmarks --out bench-results.json

bench-bandit: setup
	OPENBLAS_NUM_THREADS=1 $(RUN)/python -m tests.benchmarks.bandits --out bench-bandit.json --chart bench-bandit.png

bench-production: setup
	OPENBLAS_NUM_THREADS=1 $(RUN)/python -m tests.benchmarks.production --out bench-production.json --chart bench-production.png

bench-embeddings: setup
	OPENBLAS_NUM_THREADS=1 $(RUN)/python -m tests.benchmarks.embeddings --out bench-embeddings.json

bench-training: $(LEARN)/.synced
	$(LEARN)/bin/pytest -o junit_family=xunit1 --junit-xml=bench-training.xml tests/training/test_methods.py

bench-gateway: setup
	$(RUN)/python -m tests.benchmarks --only gateway switches decisions delays --out bench-gateway.json

bench-evidence: setup
	OPENBLAS_NUM_THREADS=1 $(RUN)/python -m tests.benchmarks.evidence --out bench-evidence.json

bench-convergence: setup
	OPENBLAS_NUM_THREADS=1 $(RUN)/python -m tests.benchmarks.convergence --out bench-convergence.json

# Not among the tests: at ten rollouts a second it takes minutes, and how many rollouts it takes is chance.
users: setup
	$(RUN)/pytest -s tests/users

soak: setup
	$(RUN)/python -m tests.benchmarks.soak

faults: setup
	EVERLOOP_REQUIRE_KAFKA=1 TEST_KILLS=120 TEST_OUTAGE_S=120 $(RUN)/pytest -o junit_family=xunit1 \
		--junit-xml=faults.xml tests/e2e/test_faults.py tests/infra/gateway/test_on_kafka.py \
		tests/e2e/test_on_kafka.py tests/e2e/test_killed_processes.py

schemas: setup
	$(RUN)/python -m schemas.export

clean:
	rm -rf $(VENV) $(LEARN) .uv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage* mutants
