# Two images from one file:  docker build --target cpu .   and   docker build --target cuda .
# Packages are installed by scripts/setup, as everywhere else. The digest is that of the tag for all its platforms, and it
# alone counts; Dependabot moves both (docker buildx imagetools inspect IMAGE prints them).

FROM python:3.12.14-slim-bookworm@sha256:782412e85d0f0984994c290652577d4018aff08145c85b262bb63dc0c7522254 AS base
# HOME is the only place, beside /tmp, that the service writes to; the engine's caches live there, in a volume.
RUN useradd --uid 10001 --create-home --home-dir /var/cache/densepath densepath
ENV PATH=/opt/densepath/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/var/cache/densepath \
    XDG_CACHE_HOME=/var/cache/densepath \
    HF_HOME=/var/cache/densepath/huggingface \
    VLLM_CACHE_ROOT=/var/cache/densepath/vllm \
    TORCHINDUCTOR_CACHE_DIR=/var/cache/densepath/inductor \
    TRITON_CACHE_DIR=/var/cache/densepath/triton
WORKDIR /var/cache/densepath
VOLUME /var/cache/densepath
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=15m --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f\"http://127.0.0.1:{os.environ.get('DENSEPATH_PORT', '8000')}/livez\", timeout=4)"]
ENTRYPOINT ["densepath"]
CMD ["serve", "--host", "0.0.0.0"]

# The system libraries that scripts/setup asks for: the CPU engine's libnuma, the CUDA engine's C compiler (Triton).
# Debian's archive keeps only the newest build of each, so a pinned version would not stay installable.
FROM base AS base-cpu
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends libnuma1 && rm -rf /var/lib/apt/lists/*

FROM base AS base-cuda
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*

FROM base-cpu AS build-cpu
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/var/cache/uv UV_CACHE_DIR=/var/cache/uv \
    scripts/setup --engine cpu --venv /opt/densepath --no-dev

FROM base-cuda AS build-cuda
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/var/cache/uv UV_CACHE_DIR=/var/cache/uv \
    scripts/setup --engine cuda --venv /opt/densepath --no-dev

FROM base-cuda AS cuda
# What the NVIDIA container runtime mounts; CUDA's own libraries come with the packages.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=build-cuda /opt/densepath /opt/densepath
USER 10001:10001

FROM base-cpu AS cpu
COPY --from=build-cpu /opt/densepath /opt/densepath
USER 10001:10001
