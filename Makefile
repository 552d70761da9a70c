# Everything here is also a plain command: `make -n serve` prints them, and each has --help.
#
# WEIGHTS  state dict of DenseNet-121 (.pth or .safetensors); without it torchvision's own, cached or downloaded
# PHOTOS   folder of photographs for the parity check and the tests
# HOST, PORT   where `make serve` listens; by default 127.0.0.1 and 5000
# MODEL    densenet121, efficientnet_lite0 or a file; by default the first if it can be had, else the second
# MODEL_VARIANT  int8 or fp32; by default int8 where its export let it pass
# PYTHON   a Python 3.11 or newer
# TORCH_INDEX  package index with CPU builds of torch; on Linux by default PyTorch's own, "none" for the build with CUDA
# IMAGE    what `make image` calls the container image; by default densenet-server

WEIGHTS ?=
PHOTOS ?=
# Not taken from the environment, where compilers' activation scripts leave a HOST that is no address.
HOST =
PORT ?=
MODEL ?=
MODEL_VARIANT ?=
PYTHON ?= python3
TORCH_INDEX ?=
IMAGE ?= densenet-server
DOCKER ?= docker
BUILD_FLAGS ?=
FUZZ_SECONDS ?= 60
SOAK_MINUTES ?= 30

export ORT_DISABLE_TELEMETRY = 1
export WEIGHTS PHOTOS
export DOCKER_BUILDKIT = 1
unexport MODEL MODEL_VARIANT PORT

model := models/densenet121.onnx
runtime := .venv/runtime/bin/python
exporter := .venv/export/bin/python
install := $(PYTHON) requirements/install.py
install_runtime = $(install) .venv/runtime requirements/runtime.txt
install_export = $(install) .venv/export $(if $(TORCH_INDEX),--torch-index '$(TORCH_INDEX)') \
	requirements/export.txt requirements/test.txt requirements/dev.txt requirements/container.txt
run_export = $(exporter) export/export_onnx.py --output $(model) \
	$(if $(WEIGHTS),--weights '$(WEIGHTS)') $(if $(PHOTOS),--photos '$(PHOTOS)')

.DEFAULT_GOAL := help
.PHONY: help serve export embedded bench image image-test hostile overload soak check-clients check-proxies check-kubernetes browser-test scale-test fuzz mutants test test-serve test-export check format lock clean

help: ## print this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@sed -n '/^# WEIGHTS/,/^$$/s/^# /  /p' $(MAKEFILE_LIST)

.DEFAULT: # whatever else was typed
	@echo "There is no target '$@': make alone prints those that there are." >&2; exit 2

serve: ## serve; without a DenseNet-121 export it first, or fall back to the embedded model
	@$(install_runtime)
	@need=$$($(PYTHON) -m export.prepare $(if $(MODEL),--model '$(MODEL)') $(if $(WEIGHTS),--weights '$(WEIGHTS)')) \
		|| exit $$?; test "$$need" = serve || { $(install_export) && $(run_export); }
	@exec $(runtime) -m serve $(if $(MODEL),--model '$(MODEL)') $(if $(MODEL_VARIANT),--model-variant '$(MODEL_VARIANT)') \
		$(if $(HOST),--host '$(HOST)') $(if $(PORT),--port '$(PORT)')

export: ## export DenseNet-121, fp32 and int8, checked against PyTorch, and print what that gained
	@$(install_export)
	$(run_export)

embedded: ## make models/efficientnet_lite0.onnx anew, the model that comes with the project
	@$(install_export) requirements/embedded.txt
	$(exporter) export/export_onnx.py --model efficientnet_lite0 --output build/efficientnet_lite0.onnx \
		$(if $(PHOTOS),--photos '$(PHOTOS)') $(embedded_flags)
	mv build/efficientnet_lite0.int8.onnx models/efficientnet_lite0.onnx
	mv build/efficientnet_lite0.json models/efficientnet_lite0.json

bench: ## measure the engines, and the server beside Flask and PyTorch; benchmarks/README.md has more
	@$(install_runtime)
	@$(install_export) requirements/benchmark.txt
	$(PYTHON) benchmarks/latency.py

fuzz_flags = -max_total_time=$(FUZZ_SECONDS) -max_len=8192 -timeout=10 -rss_limit_mb=2048 -verbosity=0 \
	-print_final_stats=1 -artifact_prefix=build/fuzz/finding-

version = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
# The commit, marked where files differ from it.
revision = $(shell git describe --always --abbrev=40 --dirty --exclude '*' 2>/dev/null)
SOURCE ?= $(filter https://%,$(shell git config --get remote.origin.url | sed 's,//[^/]*@,//,'))
# An engine without a bridge to the outside builds on the host's network.
build_image = $(DOCKER) build $$($(DOCKER) network inspect bridge >/dev/null 2>&1 || echo --network host) \
	$(if $(MODEL),--build-arg MODEL='$(MODEL)') $(if $(MODEL_VARIANT),--build-arg MODEL_VARIANT='$(MODEL_VARIANT)') \
	$(if $(WEIGHTS),--build-arg WEIGHTS='$(notdir $(WEIGHTS))') \
	$(if $(TORCH_INDEX),--build-arg TORCH_INDEX='$(TORCH_INDEX)') \
	--build-arg VERSION='$(version)' --build-arg REVISION='$(revision)' --build-arg SOURCE='$(SOURCE)'

image: ## build the container image; docs/container.md has more
	@$(DOCKER) info >/dev/null 2>&1 || { echo "make image: no Docker engine answers '$(DOCKER) info'" >&2; exit 1; }
	@$(if $(WEIGHTS),mkdir -p models/weights; staged='models/weights/$(notdir $(WEIGHTS))'; \
		test '$(WEIGHTS)' -ef "$$staged" || cp '$(WEIGHTS)' "$$staged")
	$(build_image) --target runtime $(BUILD_FLAGS) -t '$(IMAGE)' .

image-test: MODEL =
image-test: MODEL_VARIANT =
image-test: image ## run the image as an operator would, test it over HTTP, and print what it weighs
	@$(install_runtime) requirements/test.txt
	IMAGE='$(IMAGE)' DOCKER='$(DOCKER)' BUILD_FLAGS='$(BUILD_FLAGS)' $(runtime) -m pytest tests/container

hostile: ## send a hundred thousand requests that mean harm to a server of their own, and print what came of them
	@$(install_runtime) requirements/test.txt
	$(runtime) -m tests.hostile

overload: ## send a server of its own four times what it can do, for five minutes, and print what it kept of its promises
	@$(install_runtime) requirements/test.txt
	$(runtime) -m tests.hostile.overload

soak: ## half an hour (SOAK_MINUTES) of good, bad, huge, aborted and slow requests; ends with an account of them
	@$(install_runtime) requirements/test.txt
	$(runtime) -m tests.hostile.soak --minutes $(SOAK_MINUTES)

check-clients: ## run stock clients (tritonclient, schemathesis, ...) against the real process; print what each did
	@$(install_runtime)
	@$(install) .venv/clients requirements/clients.txt
	.venv/clients/bin/python -m pytest tests/clients

check-proxies: ## put the nginx of SECURITY.md in front of the real process; needs nginx
	@$(install_runtime) requirements/test.txt
	$(runtime) -m pytest tests/proxies

check-kubernetes: ## hold deploy/kubernetes against published schemas, itself and the real process
	@$(install_runtime)
	@$(install) .venv/kubernetes requirements/kubernetes.txt
	@# cloudcoil's plug-in wants a package that only its own tests need
	.venv/kubernetes/bin/python -m pytest -p no:cloudcoil tests/kubernetes

scale-test: ## a Ray cluster of two nodes under load: kill a replica and a node, update the model; print what came of it
	@$(install_runtime)
	@$(install) .venv/ray requirements/ray.txt requirements/test.txt
	.venv/ray/bin/python -m pytest tests/scale
	.venv/ray/bin/python -m tests.scale

browser-test: ## test the page in the Chromium that is installed; SCREENSHOTS=DIR keeps pictures of it
	@$(install_runtime)
	@$(install) .venv/browser requirements/browser.txt
	.venv/browser/bin/python -m pytest tests/browser

fuzz: ## fuzz decoding, multipart and tensor parsing, guided by coverage, for FUZZ_SECONDS each
	@$(install) .venv/fuzz requirements/runtime.txt requirements/fuzz.txt
	@mkdir -p build/fuzz/picture build/fuzz/multipart build/fuzz/inference
	.venv/fuzz/bin/python -m fuzz picture $(fuzz_flags) build/fuzz/picture tests/data/pictures
	.venv/fuzz/bin/python -m fuzz multipart $(fuzz_flags) build/fuzz/multipart fuzz/corpus/multipart
	.venv/fuzz/bin/python -m fuzz inference $(fuzz_flags) build/fuzz/inference fuzz/corpus/inference

mutants: ## change the source a line at a time and see that tests fail; ONLY='PART PART' tries those parts alone
	@$(install_runtime) requirements/test.txt
	@$(install_export)
	$(runtime) -m tests.mutants $(if $(ONLY),--only $(ONLY))

test: test-serve test-export ## run all tests; WEIGHTS and PHOTOS add those on real ones

test-serve: ## run the tests of the server and the benchmarks, which need no torch
	@$(install_runtime) requirements/test.txt
	$(runtime) -m pytest tests/serve tests/benchmarks

test-export: ## run the tests that need torch
	@$(install_runtime)
	@$(install_export)
	$(exporter) -m pytest tests/export

check: ## lint, format and types, as CI checks them
	@$(install_export)
	.venv/export/bin/ruff check .
	.venv/export/bin/ruff format --check .
	.venv/export/bin/mypy
	@# Those left out are about to be replaced, and go from this list with that.
	@find serve export -name '*.py' ! -path serve/imaging/avif.py ! -path serve/server/protocol.py -exec wc -l {} + | \
		awk '$$1 > 250 && $$2 != "total" { print $$2 " has " $$1 " lines; the limit is 250"; long = 1 } END { exit long }'
	@# hadolint is published for Linux only
	if test -x .venv/export/bin/hadolint; then .venv/export/bin/hadolint Dockerfile; fi

format: ## format the code
	@$(install_export)
	.venv/export/bin/ruff format .
	.venv/export/bin/ruff check --fix .

lock := .venv/export/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --fork-strategy fewest \
	--generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --no-header

lock: ## resolve pyproject.toml anew into requirements/*.txt
	@$(install_export)
	$(lock) pyproject.toml -o requirements/runtime.txt
	$(lock) pyproject.toml --extra export -c requirements/runtime.txt -o requirements/export.txt
	$(lock) --group test -c requirements/export.txt -o requirements/test.txt
	$(lock) pyproject.toml --extra ray -c requirements/runtime.txt -c requirements/test.txt -o requirements/ray.txt
	$(lock) --group fuzz -c requirements/export.txt -o requirements/fuzz.txt
	$(lock) --group clients -c requirements/export.txt -o requirements/clients.txt
	@# kserve wants an older protobuf than the export has
	$(lock) --group kubernetes -o requirements/kubernetes.txt
	$(lock) --group browser -c requirements/export.txt -o requirements/browser.txt
	$(lock) --group container -c requirements/export.txt -o requirements/container.txt
	$(lock) --group embedded -c requirements/export.txt -o requirements/embedded.txt
	$(lock) --group dev -c requirements/export.txt -o requirements/dev.txt
	$(lock) requirements/benchmark.in -c requirements/export.txt -o requirements/benchmark.txt
	for peer in requirements/peers/*.in; do $(lock) $$peer -o $${peer%.in}.txt; done

clean: ## remove the environments and the exported model
	rm -rf .venv build models/densenet121.*
