# LCL-Composer with its pinned environment. Build: docker build -t lcl-composer . ; run: launch/docker.sh
# The torch wheels bring CUDA, cuDNN and NCCL themselves, so the small base image is enough.
FROM nvidia/cuda:12.6.3-base-ubuntu22.04

ENV DEBIAN_FRONTEND=noninteractive \
    PYTHONUNBUFFERED=1 \
    MPLBACKEND=Agg \
    VIRTUAL_ENV=/opt/venv \
    PATH=/opt/venv/bin:$PATH

# gcc and Python's headers: Triton compiles a small launcher for each kernel. git: the run folder notes the commit.
# Versions are not pinned: Ubuntu removes an old one from its archive when it mends it, and the build would break.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc git libc6-dev python3-dev python3-pip python3-venv \
    && rm -rf /var/lib/apt/lists/*

RUN python3 -m pip install --no-cache-dir uv==0.13.9 && uv venv "$VIRTUAL_ENV"

WORKDIR /workspace

# Dependencies first: this layer, several GB, is built again only when the pins change.
COPY pyproject.toml constraints.txt ./
RUN uv pip install --no-cache --compile-bytecode --requirements pyproject.toml --constraints constraints.txt

# .git comes along, so that a run's folder names the commit it was trained with.
COPY . .
RUN git config --system --add safe.directory /workspace \
    && uv pip install --no-cache --no-deps --editable .

# Nobody needs root to train. runs/ and data/ are where launch/docker.sh mounts the host's folders; home is open
# to any user id: Triton and torch.compile keep their kernels there, and --user brings the host's id.
RUN useradd --create-home --uid 1000 lcl \
    && mkdir -p runs data \
    && chown lcl:lcl runs data \
    && chmod 1777 /home/lcl
ENV HOME=/home/lcl \
    USER=lcl
USER 1000

# The data loaders and NCCL share memory through /dev/shm, which Docker limits to 64 MB: run with --shm-size.
CMD ["composer", "train.py", "yamls/quickstart.yaml"]
