# syntax=docker/dockerfile:1
# Three images of one source, all as user 10001 on a root filesystem that may be read-only (/data and /tmp are written):
#   docker build --target service    -t sam3-lora-service .        API, reconciler, migrations; without PyTorch
#   docker build --target worker-cpu -t sam3-lora-worker:cpu .     every kind of worker, PyTorch for the CPU
#   docker build --target worker-gpu -t sam3-lora-worker:gpu .     every kind of worker, PyTorch with CUDA
# Dependencies and source are layers of their own: a change of the source moves a megabyte, not PyTorch.

FROM python:3.11.14-slim-trixie AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/sam3
ENV PATH=/opt/sam3/bin:$PATH
WORKDIR /src
COPY pyproject.toml requirements.lock LICENSE ./
RUN touch README.md

# Without the packages' folders, pip installs what they need and an empty shell of them.
FROM build AS service-needs
RUN pip install --constraint requirements.lock '.[service,tracing]'

FROM build AS worker-cpu-needs
# PyPI's PyTorch for Linux brings gigabytes of CUDA; the one without is only on the project's own index, which is asked
# for these two packages alone. Its versions end in +cpu, which `==` of the lock accepts.
RUN pip install --constraint requirements.lock --no-deps --index-url https://download.pytorch.org/whl/cpu \
        torch torchvision \
    && pip install --constraint requirements.lock '.[service,train,tracing]'

FROM build AS worker-gpu-needs
RUN pip install --constraint requirements.lock '.[service,train,tracing]'

FROM build AS wheel
COPY README.md ./
COPY sam3_lora sam3_lora
COPY service service
COPY worker worker
COPY migrations migrations
RUN pip wheel --no-deps --wheel-dir /wheel .

FROM python:3.11.14-slim-trixie AS runtime
# tini reaps what a killed trainer leaves, and passes SIGTERM on. Debian keeps one version of a package for a release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 sam3 \
    && useradd --uid 10001 --gid 10001 --home-dir /data --no-create-home --shell /usr/sbin/nologin sam3 \
    && install --directory --owner=sam3 --group=sam3 --mode=0750 /data
ENV PATH=/opt/sam3/bin:$PATH \
    HOME=/data \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    SAM3_DATA_DIR=/data \
    SAM3_PULSE_FILE=/tmp/pulse
# Not /data: Python looks for modules in the folder that it is started in.
WORKDIR /
VOLUME /data
STOPSIGNAL SIGTERM
ENTRYPOINT ["tini", "--"]
LABEL org.opencontainers.image.title="SAM3 LoRA training service" \
      org.opencontainers.image.description="LoRA fine-tuning of SAM3 on COCO-format data" \
      org.opencontainers.image.licenses="LicenseRef-SAM"

FROM runtime AS service
COPY --from=service-needs /opt/sam3 /opt/sam3
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    pip install --no-cache-dir --no-deps --force-reinstall /wheel/*.whl
USER 10001:10001
EXPOSE 8000
# Of the API. Whoever runs the reconciler instead gives it the workers' check.
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/readyz', timeout=8)"]
CMD ["sam3-service", "api"]

FROM runtime AS worker-cpu
COPY --from=worker-cpu-needs /opt/sam3 /opt/sam3
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    pip install --no-cache-dir --no-deps --force-reinstall /wheel/*.whl
USER 10001:10001
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s --retries=3 \
    CMD ["python", "-m", "service.shared.pulse", "/tmp/pulse"]
CMD ["python", "-m", "worker.app", "--queue", "cpu"]

FROM runtime AS worker-gpu
# Triton compiles the launchers of its kernels, SAM3's focal loss among them, when they first run.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
COPY --from=worker-gpu-needs /opt/sam3 /opt/sam3
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    pip install --no-cache-dir --no-deps --force-reinstall /wheel/*.whl
# nvidia-smi's library, which tells the memory of a GPU, besides CUDA's.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s --retries=3 \
    CMD ["python", "-m", "service.shared.pulse", "/tmp/pulse"]
CMD ["python", "-m", "worker.app", "--queue", "gpu"]
