#!/usr/bin/env bash
# Measure on a machine that has a GPU, Python 3.12, torch and transformers, and no network:
#   scripts/gpu_machine.sh fetch              here: what such a machine lacks, into .gpu/ (20 MB; needs pip)
#   scripts/gpu_machine.sh run [ARGUMENTS]    there, in a copy of this folder with .gpu/: benchmarks/gpu.py ARGUMENTS
# `run` makes an environment on top of the machine's packages, of which nothing is changed, in seconds.
set -euo pipefail
cd "$(dirname "$0")/.."
lacking=(mosaicml mosaicml-cli mosaicml-streaming coolname importlib-metadata torch-optimizer pytorch-ranger backoff
  gql graphql-core prompt-toolkit questionary ruamel-yaml validators websockets opentelemetry-api tenacity paramiko
  bcrypt cffi pycparser cryptography pynacl brotli python-snappy cramjam zstd catalogue omegaconf pydantic
  pydantic-core annotated-types typing-inspection open-clip-torch ftfy wcwidth selectolax)

fetch() {
  local name platforms=()
  mkdir -p .gpu
  for name in "${lacking[@]}"; do # at the versions that TORCH=current has
    grep -iE "^$name==" torch-current/constraints.txt
  done > .gpu/wheels.txt
  sed -nE 's/^bench = \[(.*)\].*/\1/p' pyproject.toml | grep -oE '(cut-cross-entropy|liger-kernel|inf-cl)==[0-9.]+' >> .gpu/wheels.txt
  for name in $(seq 39 -1 5); do platforms+=(--platform "manylinux_2_${name}_x86_64"); done
  "${PYTHON:-python3}" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    "${platforms[@]}" --platform manylinux2014_x86_64 --platform manylinux2010_x86_64 --platform manylinux1_x86_64 \
    --dest .gpu --requirement .gpu/wheels.txt
}

run() {
  local image=${PYTHON:-python3} made=${TMPDIR:-/tmp}/lcl-gpu site
  "$image" -m venv --clear --without-pip "$made"
  site=$("$made/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  # The machine's packages come behind ours, and this folder is found as after an editable installation.
  "$image" -c 'import sysconfig; print(f"import site; site.addsitedir({sysconfig.get_path("purelib")!r})")' > "$site/zz_image.pth"
  pwd > "$site/zz_project.pth"
  "$image" -m pip --python "$made/bin/python" install --quiet --no-index --no-deps --no-compile .gpu/*.whl
  mkdir "$site/lcl_composer-0.1.0.dist-info"
  printf 'Metadata-Version: 2.1\nName: lcl-composer\nVersion: 0.1.0\n' > "$site/lcl_composer-0.1.0.dist-info/METADATA"
  unset PYTHONPATH
  export PATH="$made/bin:$PATH" TOKENIZERS_PARALLELISM=false MPLBACKEND=Agg PYTHONUNBUFFERED=1
  python benchmarks/gpu.py --folder "${OUT:-runs/gpu}" "$@"
}

case ${1:-} in
  fetch) fetch ;;
  run) run "${@:2}" ;;
  *) echo "usage: scripts/gpu_machine.sh fetch | run [ARGUMENTS of benchmarks/gpu.py]" >&2; exit 2 ;;
esac
