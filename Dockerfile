# docker build --target runtime -t densenet-server .
#
# Stages: base → export (torch; only for DenseNet-121) → model ─┐
#              → deps (packages, interpreter, libraries) ────── runtime → debug
#              → app (the project's own code) ─────────────────┘
# docs/container.md explains the design.

# To pin it by digest: --build-arg PYTHON_IMAGE=python:3.11-slim@sha256:…
ARG PYTHON_IMAGE=python:3.11-slim
# densenet121, or efficientnet_lite0, which is in the repository and needs no torch.
ARG MODEL=densenet121
# auto, int8 or, for DenseNet-121, fp32. auto is int8 or, for labels of your own, fp32 if int8 fails its accuracy gate.
ARG MODEL_VARIANT=auto
# 1 to accept HEIC images, too.
ARG HEIC
# openvino to run DenseNet-121 on OpenVINO where the CPU has AMX; x86-64 only.
ARG ENGINE

FROM ${PYTHON_IMAGE} AS base
ENV PYTHONDONTWRITEBYTECODE=1 ORT_DISABLE_TELEMETRY=1
WORKDIR /build


FROM base AS export
# Index with CPU builds of torch; by default PyTorch's own. "none": CUDA builds from the default index.
ARG TORCH_INDEX
COPY requirements/install.py requirements/environment.py requirements/export.txt requirements/
RUN --mount=type=cache,target=/root/.cache/pip \
    python requirements/install.py /venv requirements/export.txt ${TORCH_INDEX:+--torch-index "$TORCH_INDEX"}
COPY export/ export/
# The export reads images, labels and feature maps and runs models with these; changes to other files of serve/ cause no
# export.
COPY serve/errors.py serve/printable.py serve/
COPY serve/imaging/ serve/imaging/
COPY serve/config/cpus.py serve/config/regular_file.py serve/config/
COPY serve/model/card.py serve/model/features.py serve/model/labels.py serve/model/openvino_plugin.py serve/model/postprocess.py serve/model/
COPY tests/data/photos/ tests/data/photos/
COPY imagenet_class_index.json ./
ARG MODEL_VARIANT
# Name of a state dict in models/weights. By default the only .pth there; if there is none, torchvision's is downloaded.
ARG WEIGHTS
# Names in models/weights of the labels of these weights, if they are not ImageNet's (a file, or a folder with one folder
# for each class), and of a folder of photographs to calibrate int8 on.
ARG LABELS
ARG PHOTOS
# What answers call the model; by default the name of the weights, if they have labels of their own, else densenet121.
ARG NAME
# Further flags of the export, such as "--activation sigmoid --fit-temperature".
ARG EXPORT_FLAGS
# In quotes, an empty ${required:-} would be an argument, and EXPORT_FLAGS one instead of several:
# hadolint ignore=SC2086
RUN --mount=type=bind,source=models,target=/context \
    --mount=type=cache,target=/root/.cache/torch \
    set -- /context/weights/*.pth && \
    if [ -n "$WEIGHTS" ]; then set -- "/context/weights/$WEIGHTS"; fi && \
    if [ "$#" -gt 1 ]; then echo "models/weights has $# .pth files; choose one with --build-arg WEIGHTS=NAME" >&2; exit 1; fi && \
    if [ -z "$WEIGHTS" ] && [ ! -e "$1" ]; then shift; fi && \
    if [ -n "$LABELS" ] && [ -z "$NAME" ]; then NAME=$(basename "${1%.*}"); fi && \
    if [ "$MODEL_VARIANT" = int8 ] || [ "$MODEL_VARIANT$LABELS" = auto ]; then required=--require-int8; fi && \
    /venv/bin/python export/export_onnx.py --output made/model.onnx --name "${NAME:-densenet121}" ${1:+--weights "$1"} \
        ${LABELS:+--labels "/context/weights/$LABELS"} ${PHOTOS:+--photos "/context/weights/$PHOTOS"} ${required:-} ${EXPORT_FLAGS:-}
ARG ENGINE
RUN mkdir models && \
    if [ -n "$ENGINE" ]; then mv made/model.qdq.onnx models/densenet121.qdq.onnx || \
        { echo "ENGINE=$ENGINE: the export made no model for OpenVINO; it says above why" >&2; exit 1; }; \
    elif [ "$MODEL_VARIANT" != fp32 ] && [ -e made/model.int8.onnx ]; then mv made/model.int8.onnx models/densenet121.int8.onnx; \
    else mv made/model.onnx models/densenet121.onnx; fi


FROM scratch AS model-densenet121-auto
COPY --from=export /build/models /app/models

FROM model-densenet121-auto AS model-densenet121-int8

FROM model-densenet121-auto AS model-densenet121-fp32

FROM scratch AS model-efficientnet_lite0-auto
COPY --chmod=0644 models/efficientnet_lite0.onnx models/efficientnet_lite0.json /app/models/

FROM model-efficientnet_lite0-auto AS model-efficientnet_lite0-int8

FROM base AS model-efficientnet_lite0-fp32
RUN echo "efficientnet_lite0 is available in int8 only" >&2 && exit 1

# hadolint ignore=DL3006
FROM model-${MODEL}-${MODEL_VARIANT} AS model


FROM base AS deps
ARG HEIC
ARG ENGINE
ARG MODEL
ARG MODEL_VARIANT
COPY requirements/runtime.txt requirements/heic.txt requirements/openvino.txt requirements/container.txt requirements/
RUN --mount=type=cache,target=/root/.cache/pip \
    case "$HEIC" in 1|"") ;; *) echo "HEIC=$HEIC is not 1 or empty" >&2; exit 1 ;; esac && \
    case "$ENGINE,$MODEL,$MODEL_VARIANT" in ,*) ;; openvino,*,fp32|openvino,efficientnet_lite0,*) \
        echo "ENGINE=openvino runs the int8 model of DenseNet-121, not $MODEL, $MODEL_VARIANT" >&2; exit 1 ;; \
        openvino,*) ;; *) echo "ENGINE=$ENGINE is not openvino or empty" >&2; exit 1 ;; esac && \
    cat requirements/runtime.txt ${HEIC:+requirements/heic.txt} ${ENGINE:+requirements/openvino.txt} \
        > requirements/packages.txt && \
    pip install --no-compile --require-hashes --target /packages -r requirements/packages.txt && \
    pip install --no-compile --require-hashes --target /tools -r requirements/container.txt
COPY container/ container/
RUN python -m container.assemble --packages /packages --output /rootfs && \
    PYTHONPATH=/tools python -m container.sbom --lock requirements/packages.txt --packages /packages --root /rootfs \
        --output /rootfs/usr/share/sbom/densenet-server.cdx.json


FROM base AS app
WORKDIR /app
COPY serve/ serve/
COPY imagenet_class_index.json LICENSE ./
# The image must not depend on the checkout's umask and timestamps.
RUN python -m compileall -q --invalidation-mode checked-hash serve && chmod -R u=rwX,go=rX .


FROM scratch AS runtime
COPY --from=deps /rootfs /
COPY --from=model /app/models /app/models
COPY --from=app /app /app
WORKDIR /app
ARG MODEL
ARG MODEL_VARIANT
ENV PATH=/usr/local/bin \
    LANG=C.UTF-8 \
    ORT_DISABLE_TELEMETRY=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    SERVE_HOST=0.0.0.0 \
    SERVE_MODEL=${MODEL} \
    SERVE_MODEL_VARIANT=${MODEL_VARIANT}
USER 65532:65532
EXPOSE 5000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s CMD ["python", "-m", "serve", "health"]
ENTRYPOINT ["python", "-m", "serve"]
ARG PYTHON_IMAGE
ARG HEIC
ARG VERSION=0.1.0
ARG REVISION
ARG SOURCE
LABEL org.opencontainers.image.title="densenet-server" \
      org.opencontainers.image.description="Image classification over HTTP on an ordinary CPU: DenseNet-121 on ONNX Runtime" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.licenses="Apache-2.0 AND 0BSD AND BSD-2-Clause AND BSD-3-Clause AND CC0-1.0 AND MIT AND MIT-CMU AND PSF-2.0 AND Zlib AND LGPL-2.1-or-later AND (GPL-3.0-or-later WITH GCC-exception-3.1)${HEIC:+ AND LGPL-3.0-or-later}" \
      org.opencontainers.image.base.name="${PYTHON_IMAGE}"


# The same with the whole base image (shell, pip), as root: for debugging, not for serving.
FROM runtime AS debug
# hadolint ignore=DL3002
USER 0:0
ENV PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin
# hadolint ignore=DL3067
COPY --from=base / /


# The default target.
FROM runtime
