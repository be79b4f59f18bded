# `make serve` and `make test` need Python 3.11, make and a C++ compiler, nothing else.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= serve_config.yaml
TORCH := $(shell grep '^torch==' requirements.lock 2>/dev/null)
# PyTorch's own index, for machines whose configured indexes have no CPU build.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
SOURCES := app deployments autoscaler storage tests

.PHONY: help setup models serve serve-s3 test check format lock clean bench-throughput bench-coldstart bench-many-models bench-storage bench-storage-gpu bench-migration bench-partings bench-replay bench-forecast bench-autoscale bench-tenants bench-lora bench-cluster bench-cluster-decisions bench-cluster-replicas bench-feed bench-observability screenshots stress stress-sleep stress-machines
.DEFAULT_GOAL := help

help: ## say what there is
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.ready ## create .venv from the lock file and install the project

$(VENV)/.ready: requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed and '$(PYTHON)' is not there: install it, or say make PYTHON=/path/to/python3.11."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "Python 3.11 is needed: say make PYTHON=/path/to/python3.11."; exit 1; }
	@command -v $${CXX:-g++} >/dev/null || { echo "A C++ compiler is needed and '$${CXX:-g++}' is not there: install g++, or set CXX."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "Installing about 200 packages (4 GB) into $(VENV); this takes a few minutes, once."
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps '$(TORCH)' 2>/dev/null \
		|| { echo "The configured package indexes have no $(TORCH); taking it from $(TORCH_CPU_INDEX)."; \
		     $(BIN)/pip install --disable-pip-version-check --no-deps --index-url $(TORCH_CPU_INDEX) '$(TORCH)'; }
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

models: setup ## fetch and prepare the demo models, once
	@$(BIN)/python -m app.demo.prepare

serve: models ## serve CONFIG (serve_config.yaml) until Ctrl-C
	@$(BIN)/flashserve serve $(CONFIG)

serve-s3: models ## serve CONFIG with its models on an S3 server of its own, until Ctrl-C
	@$(BIN)/python tests/support/demo_s3.py $(CONFIG)

test: models ## run the whole suite
	$(BIN)/pytest -n 2 --dist loadscope --max-worker-restart 0

check: setup ## formatting, lint, types, import rules
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## format and fix what can be fixed
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

bench-throughput: models ## throughput and latency beside stock vLLM and Ray Serve LLM (about half an hour)
	$(BIN)/python tests/bench/throughput.py

bench-coldstart: models ## first tokens from every degree of cold, beside stock vLLM (half an hour)
	$(BIN)/python tests/bench/coldstart.py

bench-many-models: models ## eight models where two fit, beside first come, first served (about twenty minutes)
	$(BIN)/python tests/bench/many_models.py

bench-migration: models ## gaps that clients feel when streams move or lose their replica (about ten minutes)
	$(BIN)/python tests/bench/migration.py

bench-tenants: models ## what a tenant feels of another that floods the service (a quarter of an hour)
	$(BIN)/python tests/bench/tenants.py

# ONLY=swap,first,throughput,memory,own,preload says which parts.
bench-lora: models ## what many adapters cost an engine, beside stock vLLM, ONLY=part (an hour; ONLY=served another)
	$(BIN)/python tests/bench/lora.py $(if $(ONLY),--only $(ONLY)) $(if $(POPULARITY),--popularity $(POPULARITY))

bench-partings: models ## how often resumed answers part from undisturbed ones in bfloat16 (a few minutes)
	$(BIN)/python tests/bench/partings.py

bench-cluster: setup ## how long groups of nodes take to have a snapshot, from S3 and from each other (about twenty minutes)
	$(BIN)/python tests/bench/cluster.py

bench-cluster-decisions: setup ## what choices, plans and replays cost as a cluster grows, FULL=--full for a day of 2,000 models
	$(BIN)/python tests/bench/cluster_decisions.py $(FULL)

screenshots: models ## pictures of the status page and the terminal, from a service of their own (needs Chromium)
	$(BIN)/python tests/support/screenshots.py

bench-cluster-replicas: setup ## fifty real replicas: the controller's work, and how old is what gateways know (ten minutes)
	PYTHONPATH=. RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP=0 $(BIN)/python tests/bench/cluster_replicas.py

bench-feed: setup ## what a token costs on its way to the gateway, by a Serve handle and on the feed (a few minutes)
	PYTHONPATH=. $(BIN)/python tests/bench/feed.py

bench-observability: models ## what metrics, logs and traces cost, by switching them off (about a quarter of an hour)
	$(BIN)/python tests/bench/observability.py

stress: models ## 500 streams under 100 kills and 100 migrations, compared token by token (about half an hour)
	$(BIN)/python tests/stress/streams.py

stress-machines: models ## nodes that are lost under load and join, a head that is lost, a pool that grows ahead (a quarter of an hour, as root)
	$(BIN)/pytest tests/stress

stress-sleep: models ## a thousand sleeps and wakes of one engine: the same answers, no memory kept (about half an hour)
	FLASHSERVE_SLEEP_CYCLES=1000 $(BIN)/pytest tests/contract/test_sleep.py -k cycles -s

# Without TRACES: the samples in tests/data/traces.
bench-autoscale: setup ## every scaling policy on recorded traces, TRACES=directory (about half an hour on one core)
	$(BIN)/python tests/bench/autoscale.py $(TRACES)

bench-replay: models ## ten minutes of a recorded trace, served and replayed (about a quarter of an hour)
	$(BIN)/python tests/bench/replay_validation.py

bench-forecast: setup ## how well forecasters forecast recorded demand, TRACES=directory (a few minutes)
	$(BIN)/python tests/bench/forecast_error.py $(TRACES)

bench-storage: models ## how fast snapshots reach host memory and engines, beside the raw limits and others (ten minutes)
	$(BIN)/python tests/bench/staging.py

# Needs Python, torch and safetensors only: say make bench-storage-gpu BIN=/path/to/such/a/bin where nothing else is.
bench-storage-gpu: ## how fast a snapshot gets from host memory to the GPU
	$(BIN)/python tests/gpu/test_transfer.py
	$(BIN)/python tests/gpu/test_shared_image.py
	$(BIN)/python tests/bench/transfer_gpu.py

# uv is needed for this alone: pip can't overrule what packages wrongly declare. Its finder needs to see the CPU build.
UV := uv pip compile pyproject.toml --python-version 3.11 --custom-compile-command "make lock"
UV_CPU_TORCH := $(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS),--extra-index-url $(TORCH_CPU_INDEX))
lock: ## regenerate both lock files (needs uv)
	$(UV) --extra cpu --group dev $(UV_CPU_TORCH) --no-emit-find-links --no-emit-index-url -o requirements.lock
	$(UV) --extra gpu --no-emit-index-url -o requirements-gpu.lock

clean: ## remove the environment, the demo models and everything generated
	rm -rf $(VENV) .flashserve bench-results *.egg-info
