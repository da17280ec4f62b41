# LCL-Composer with its pinned environment. Build: docker build -t lcl-composer . ; run: launch/docker.sh
# The torch wheels bring CUDA, cuDNN and NCCL themselves, so the small base image is enough.
FROM nvidia/cuda:12.6.3-base-ubuntu22.04 AS base

ENV DEBIAN_FRONTEND=noninteractive \
    PYTHONUNBUFFERED=1 \
    MPLBACKEND=Agg \
    VIRTUAL_ENV=/opt/venv \
    PATH=/opt/venv/bin:$PATH

# gcc and Python's headers: Triton compiles a small launcher for each kernel. git: the run folder notes the commit.
# Versions are not pinned: Ubuntu removes an old one from its archive when it mends it, and the build would break.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc git libc6-dev python3-dev \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /workspace

# What builds the environment stays behind in this stage: pip, uv and their caches.
FROM base AS environment

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/uv \
    && /opt/uv/bin/pip install --no-cache-dir uv==0.13.9 \
    && /opt/uv/bin/uv venv --python /usr/bin/python3 "$VIRTUAL_ENV"

# Dependencies before the source: this layer, several GB, is built again only when the pins change.
COPY pyproject.toml constraints.txt ./
RUN /opt/uv/bin/uv pip install --no-cache --compile-bytecode --requirements pyproject.toml --constraints constraints.txt

COPY . .
RUN /opt/uv/bin/uv pip install --no-cache --no-deps --editable .

FROM base

# .git comes along, so that a run's folder names the commit it was trained with.
COPY --from=environment /opt/venv /opt/venv
COPY --from=environment /workspace /workspace
RUN git config --system --add safe.directory /workspace

# Nobody needs root to train. runs/ and data/ are where launch/docker.sh mounts the host's folders; home is open
# to any user id: Triton and torch.compile keep their kernels there, and --user brings the host's id.
RUN useradd --create-home --uid 1000 lcl \
    && mkdir -p runs data \
    && chown lcl:lcl runs data \
    && chmod 1777 /home/lcl
ENV HOME=/home/lcl \
    USER=lcl
USER 1000

# A rank that waits for another one for good dies of no error; it writes nothing either.
HEALTHCHECK --start-period=60m --interval=10m --timeout=60s --retries=1 CMD ["launch/healthy.sh"]

# The data loaders and NCCL share memory through /dev/shm, which Docker limits to 64 MB: run with --shm-size.
CMD ["launch/node.sh", "yamls/quickstart.yaml"]
