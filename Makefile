# Each target runs plain commands: `make -n serve` prints them, and each command has --help.
#
# WEIGHTS        weights of a DenseNet (.pth or .safetensors); default: torchvision's, downloaded if not cached
# LABELS         labels of WEIGHTS, if they are not ImageNet's: a file, or a folder with one folder for each class
# PHOTOS         folder of photographs for the parity check and the tests; int8 of weights of your own is calibrated on them
# HOST, PORT     address of `make serve`; default: 127.0.0.1 and 5000
# MODEL          densenet121, efficientnet_lite0 or a file; default: the first that is available
# MODEL_VARIANT  int8 or fp32; default: int8 if it passed the export's accuracy gate
# OPENVINO       1 for `make serve` to add OpenVINO's plug-in, which is faster on CPUs with AMX
# HEIC           1 for `make serve` and `make image` to add pi-heif, which decodes HEIC images
# PYTHON         interpreter, 3.11 or newer; default: python3
# TORCH_INDEX    index with CPU builds of torch, or "none" for CUDA builds; default on Linux: PyTorch's
# IMAGE          name of the container image; default: densenet-server

WEIGHTS ?=
LABELS ?=
PHOTOS ?=
# Not taken from the environment: conda's compiler packages set HOST there, to a platform's name.
HOST =
PORT ?=
MODEL ?=
MODEL_VARIANT ?=
HEIC ?=
OPENVINO ?=
PYTHON ?= python3
TORCH_INDEX ?=
IMAGE ?= densenet-server
DOCKER ?= docker
BUILD_FLAGS ?=
FUZZ_SECONDS ?= 60
SOAK_MINUTES ?= 30

# A value as one word of the shell, whatever characters it has.
quote = '$(subst ','\'',$(1))'
# These may be paths or addresses: a $ in one begins no reference to a variable.
$(foreach name,PYTHON WEIGHTS LABELS PHOTOS MODEL TORCH_INDEX,$(eval override $(name) := $$(value $(name))))

export ORT_DISABLE_TELEMETRY = 1
export WEIGHTS LABELS PHOTOS
export DOCKER_BUILDKIT = 1
unexport MODEL MODEL_VARIANT PORT

runtime := .venv/runtime/bin/python
exporter := .venv/export/bin/python
install := $(call quote,$(PYTHON)) requirements/install.py
install_runtime = $(install) .venv/runtime requirements/runtime.txt $(if $(filter 1,$(HEIC)),requirements/heic.txt) \
	$(if $(filter 1,$(OPENVINO)),requirements/openvino.txt)
install_export = $(install) .venv/export $(if $(TORCH_INDEX),--torch-index $(call quote,$(TORCH_INDEX))) \
	requirements/export.txt requirements/test.txt requirements/dev.txt requirements/container.txt
run_export = $(exporter) export/export_onnx.py $(if $(WEIGHTS),--weights $(call quote,$(WEIGHTS))) \
	$(if $(LABELS),--labels $(call quote,$(LABELS))) $(if $(PHOTOS),--photos $(call quote,$(PHOTOS)))

.DEFAULT_GOAL := help
.PHONY: help serve export embedded bench image image-test hostile deaths overload soak check-clients check-proxies check-kubernetes check-services dist release-check cpus browser-test scale-test fuzz mutants test test-serve test-heic test-export check format lock clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' Makefile
	@sed -n '/^# WEIGHTS/,/^$$/s/^# /  /p' Makefile

.DEFAULT: # any unknown target
	@printf "There is no target '%s'. Run make without a target to list them.\n" $(call quote,$@) >&2; exit 2

serve: ## serve; export DenseNet-121 or WEIGHTS first if needed, or use the embedded model
	@$(install_runtime)
	@need=$$($(call quote,$(PYTHON)) export/prepare.py $(if $(MODEL),--model $(call quote,$(MODEL))) \
		$(if $(WEIGHTS),--weights $(call quote,$(WEIGHTS))) \
		$(if $(LABELS),--labels $(call quote,$(LABELS)))) || exit $$?; \
		case "$$need" in export*) { $(install_export) && $(run_export); } || exit $$? ;; esac; \
		name=$${need#* }; $(if $(MODEL),test -n "$$name" || name=$(call quote,$(MODEL));) \
		exec $(runtime) -m serve $${name:+--model "$$name"} \
		$(if $(MODEL_VARIANT),--model-variant $(call quote,$(MODEL_VARIANT))) \
		$(if $(HOST),--host $(call quote,$(HOST))) $(if $(PORT),--port $(call quote,$(PORT))) \
		$(if $(filter 1,$(OPENVINO)),--engine-cache build/engine-cache)

export: ## export DenseNet-121 or WEIGHTS, fp32 and int8; print size, speed and accuracy
	@$(install_export)
	$(run_export)

embedded: ## rebuild models/efficientnet_lite0.onnx, the model in the repository
	@$(install_export) requirements/embedded.txt
	$(exporter) export/export_onnx.py --model efficientnet_lite0 --output build/efficientnet_lite0.onnx \
		$(if $(PHOTOS),--photos $(call quote,$(PHOTOS))) $(embedded_flags)
	mv build/efficientnet_lite0.int8.onnx models/efficientnet_lite0.onnx
	mv build/efficientnet_lite0.json models/efficientnet_lite0.json

bench: ## benchmark engines and the server (see benchmarks/README.md)
	@$(install_runtime)
	@$(install_export) requirements/benchmark.txt
	@$(install) .venv/openvino requirements/openvino.txt
	$(call quote,$(PYTHON)) benchmarks/latency.py

fuzz_flags = -max_total_time=$(FUZZ_SECONDS) -max_len=8192 -timeout=10 -rss_limit_mb=2048 -verbosity=0 \
	-print_final_stats=1 -artifact_prefix=build/fuzz/finding-

version = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
# The commit, marked -dirty if files differ from it.
revision = $(shell git describe --always --abbrev=40 --dirty --exclude '*' 2>/dev/null)
SOURCE ?= $(filter https://%,$(shell git config --get remote.origin.url | sed 's,//[^/]*@,//,'))
# An engine without a bridge network builds on the host's network.
build_image = $(DOCKER) build $$($(DOCKER) network inspect bridge >/dev/null 2>&1 || echo --network host) \
	$(if $(MODEL),--build-arg MODEL=$(call quote,$(MODEL))) \
	$(if $(MODEL_VARIANT),--build-arg MODEL_VARIANT=$(call quote,$(MODEL_VARIANT))) \
	$(if $(WEIGHTS),--build-arg WEIGHTS="$$(basename -- "$$WEIGHTS")") \
	$(if $(LABELS),--build-arg LABELS="$$(basename -- "$$LABELS")" \
		$(if $(PHOTOS),--build-arg PHOTOS="$$(basename -- "$$PHOTOS")")) \
	$(if $(TORCH_INDEX),--build-arg TORCH_INDEX=$(call quote,$(TORCH_INDEX))) \
	$(if $(HEIC),--build-arg HEIC=$(call quote,$(HEIC))) \
	$(if $(filter 1,$(OPENVINO)),--build-arg ENGINE=openvino) \
	--build-arg VERSION='$(version)' --build-arg REVISION='$(revision)' --build-arg SOURCE=$(call quote,$(SOURCE))

image: ## build the container image (see docs/container.md)
	@$(DOCKER) info >/dev/null 2>&1 || { echo "make image: no Docker engine answers '$(DOCKER) info'" >&2; exit 1; }
	@mkdir -p models/weights; for path in $(if $(WEIGHTS),"$$WEIGHTS") $(if $(LABELS),"$$LABELS" $(if $(PHOTOS),"$$PHOTOS")); do \
		test "$$path" -ef "models/weights/$$(basename -- "$$path")" || cp -R -- "$${path%/}" models/weights/ || exit 1; done
	$(build_image) --target runtime $(BUILD_FLAGS) -t $(call quote,$(IMAGE)) .

image-test: override MODEL =
image-test: MODEL_VARIANT =
image-test: HEIC =
image-test: OPENVINO =
image-test: image ## build the container image, test it over HTTP, and print its size
	@$(install_runtime) requirements/test.txt
	IMAGE=$(call quote,$(IMAGE)) DOCKER=$(call quote,$(DOCKER)) BUILD_FLAGS=$(call quote,$(BUILD_FLAGS)) $(runtime) -m pytest tests/container

hostile: ## send a server 100,000 malformed and malicious requests, check each answer
	@$(install_runtime) requirements/test.txt
	$(runtime) -m tests.hostile

deaths: ## kill decoders under load, by SIGKILL and by images that crash them, check the answers
	@$(install_runtime) requirements/test.txt
	$(runtime) -m tests.hostile.deaths

overload: ## send a server four times its capacity for five minutes, check its answers
	@$(install_runtime) requirements/test.txt
	$(runtime) -m tests.hostile.overload

soak: ## send mixed requests for SOAK_MINUTES (30), check answers, memory and files
	@$(install_runtime) requirements/test.txt
	$(runtime) -m tests.hostile.soak --minutes $(SOAK_MINUTES)

check-clients: ## run third-party clients against a server: tritonclient, schemathesis, ...
	@$(install_runtime)
	@$(install) .venv/clients requirements/clients.txt
	.venv/clients/bin/python -m pytest tests/clients

check-proxies: ## test a server behind nginx, configured as in SECURITY.md; needs nginx
	@$(install_runtime) requirements/test.txt
	$(runtime) -m pytest tests/proxies

check-kubernetes: ## check deploy/kubernetes against published schemas and a server
	@$(install_runtime)
	@$(install) .venv/kubernetes requirements/kubernetes.txt
	@# cloudcoil's pytest plug-in imports a package that is not installed
	.venv/kubernetes/bin/python -m pytest -p no:cloudcoil tests/kubernetes

dist:
	@$(install) .venv/release requirements/release.txt
	rm -rf build/dist
	.venv/release/bin/python -m build --no-isolation --outdir build/dist

release-check: dist ## build wheel and sdist in build/dist, check them, install the wheel and classify a picture
	.venv/release/bin/python -m twine check --strict build/dist/*
	.venv/release/bin/python -m pytest tests/release

check-services: dist ## run deploy/systemd in a systemd of its own; needs root and systemd-nspawn
	.venv/release/bin/python -m pytest tests/services

cpus: ## show that int8 gives the same integers on x86-64 and arm64 CPUs, emulated; needs root
	@$(install_runtime)
	@$(install_export)
	$(exporter) -m tests.cpus

scale-test: ## load a Ray cluster while nodes, replicas and the model change
	@$(install_runtime)
	@$(install) .venv/ray requirements/ray.txt requirements/test.txt
	.venv/ray/bin/python -m pytest tests/scale
	.venv/ray/bin/python -m tests.scale

browser-test: ## test the pages in Chromium; SCREENSHOTS=DIR keeps screenshots
	@$(install_runtime)
	@$(install) .venv/browser requirements/browser.txt
	.venv/browser/bin/python -m pytest tests/browser

fuzz: ## fuzz decoding, multipart and tensor parsing, FUZZ_SECONDS (60) each
	@$(install) .venv/fuzz requirements/runtime.txt requirements/fuzz.txt
	@mkdir -p build/fuzz/picture build/fuzz/decoder build/fuzz/multipart build/fuzz/inference
	.venv/fuzz/bin/python -m fuzz picture $(fuzz_flags) build/fuzz/picture tests/data/pictures
	.venv/fuzz/bin/python -m fuzz decoder $(fuzz_flags) build/fuzz/decoder tests/data/pictures
	.venv/fuzz/bin/python -m fuzz multipart $(fuzz_flags) build/fuzz/multipart fuzz/corpus/multipart
	.venv/fuzz/bin/python -m fuzz inference $(fuzz_flags) build/fuzz/inference fuzz/corpus/inference

mutants: ## mutation testing: each changed line must fail a test; ONLY='PART PART' limits it
	@$(install_runtime) requirements/test.txt
	@$(install_export)
	$(runtime) -m tests.mutants $(if $(ONLY),--only $(ONLY))

test: test-serve test-heic test-export ## run all tests; WEIGHTS and PHOTOS add those on real weights and photographs

test-serve: ## run the tests that do not need torch: server and benchmarks
	@$(install_runtime) requirements/test.txt
	$(runtime) -m pytest tests/serve tests/field tests/benchmarks

test-heic: ## run the tests of HEIC images, in an environment that has pi-heif
	@$(install) .venv/heic requirements/heic.txt requirements/test.txt
	.venv/heic/bin/python -m pytest tests/heic

test-export: ## run the tests that need torch: export
	@$(install_runtime)
	@$(install_export)
	$(exporter) -m pytest tests/export

check: ## check lint, format, types and file lengths, as CI does
	@$(install_export)
	.venv/export/bin/ruff check .
	.venv/export/bin/ruff format --check .
	$(exporter) -m mypy
	@# The excluded file is about to be replaced.
	@find serve export -name '*.py' ! -path serve/server/protocol.py -exec wc -l {} + | \
		awk '$$1 > 250 && $$2 != "total" { print $$2 " has " $$1 " lines; the limit is 250: split it"; long = 1 } END { exit long }'
	@# hadolint is published for Linux only
	if test -x .venv/export/bin/hadolint; then .venv/export/bin/hadolint Dockerfile; fi

format: ## format the code
	@$(install_export)
	.venv/export/bin/ruff format .
	.venv/export/bin/ruff check --fix .

lock := .venv/export/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --fork-strategy fewest \
	--generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --no-header

lock: ## resolve pyproject.toml into requirements/*.txt, newest versions
	@$(install_export)
	$(lock) pyproject.toml -o requirements/runtime.txt
	$(lock) pyproject.toml --extra heic -c requirements/runtime.txt -o requirements/heic.txt
	$(lock) pyproject.toml --extra openvino -c requirements/runtime.txt -o requirements/openvino.txt
	$(lock) pyproject.toml requirements/gpu.in -c requirements/runtime.txt --no-emit-package onnxruntime -o requirements/gpu.txt
	$(lock) pyproject.toml --group export -c requirements/runtime.txt -o requirements/export.txt
	$(lock) --group test -c requirements/export.txt -o requirements/test.txt
	$(lock) pyproject.toml --extra ray -c requirements/runtime.txt -c requirements/test.txt -o requirements/ray.txt
	$(lock) --group fuzz -c requirements/export.txt -o requirements/fuzz.txt
	$(lock) --group clients -c requirements/export.txt -o requirements/clients.txt
	@# kserve requires an older protobuf than the export has
	$(lock) --group kubernetes -o requirements/kubernetes.txt
	$(lock) --group browser -c requirements/export.txt -o requirements/browser.txt
	$(lock) --group container -c requirements/export.txt -o requirements/container.txt
	$(lock) --group embedded -c requirements/export.txt -o requirements/embedded.txt
	$(lock) --group release -c requirements/export.txt -o requirements/release.txt
	$(lock) --group dev -c requirements/export.txt -o requirements/dev.txt
	$(lock) requirements/benchmark.in -c requirements/export.txt -o requirements/benchmark.txt
	for peer in requirements/peers/*.in; do $(lock) $$peer -o $${peer%.in}.txt; done

clean: ## remove the environments, build/ and the exported model
	rm -rf .venv build models/densenet121.*
