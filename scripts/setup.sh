#!/usr/bin/env bash
# Make or refresh the virtual environment: scripts/setup.sh FOLDER [pinned|current].
# Installs this project (editable, with its development tools) at the versions pinned in constraints.txt,
# through uv where it is there or can be installed, else through pip. `current`: at those of torch-current/,
# which Composer does not allow; only uv can overrule it.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:?usage: scripts/setup.sh FOLDER [pinned|current]}
torch=${2:-pinned}
case $torch in
  pinned) oldest=10 versions="3.10, 3.11 or 3.12" pins=(--constraints constraints.txt) ;;
  current) oldest=12 versions="3.12" pins=(--constraints torch-current/constraints.txt --overrides torch-current/overrides.txt) ;;
  *) echo "setup: TORCH is pinned or current, not '$torch'" >&2; exit 1 ;;
esac
chatter='^ *([-+~] |(Using Python|Building|Built|Audited|Downloaded) |Downloading .*[( ]([0-9]{1,2}\.[0-9]MiB|[0-9.]+KiB))'

is_supported() { # a pyenv shim exists without its Python, so run it rather than look for it
  "$1" -c "import sys; raise SystemExit(not (3, $oldest) <= sys.version_info[:2] <= (3, 12))" >/dev/null 2>&1
}

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.11 python3.12 python3.10 python3 python}; do
    if is_supported "$candidate"; then
      echo "$candidate"
      return
    fi
  done
}

find_uv() { # prints a uv that runs: the machine's, or one installed into the environment
  if uv --version >/dev/null 2>&1; then
    echo uv
  elif [ -x "$venv/bin/uv" ]; then
    echo "$venv/bin/uv"
  elif [ -x "$venv/bin/python" ] && "$venv/bin/python" -m pip install --quiet uv >/dev/null 2>&1; then
    echo "$venv/bin/uv"
  fi
}

make_environment() { # an environment of an unsupported or vanished Python is made anew
  is_supported "$venv/bin/python" && return
  local python
  python=$(find_python)
  if uv --version >/dev/null 2>&1; then
    uv venv --quiet --clear --python "${python:->=3.$oldest,<3.13}" "$venv" ||
      { echo "setup: no Python $versions found, and uv could not fetch one; set PYTHON=/path/to/python" >&2; exit 1; }
  elif [ -z "$python" ]; then
    echo "setup: no Python $versions found (tried ${PYTHON:-python3.11, python3.12, python3.10, python3}); install one or set PYTHON=/path/to/python" >&2
    exit 1
  else
    "$python" -m venv --clear "$venv" ||
      { echo "setup: $python cannot make a virtual environment; on Debian and Ubuntu install python3-venv" >&2; exit 1; }
  fi
}

install() {
  local uv
  uv=$(find_uv)
  if [ -n "$uv" ]; then # of uv's many lines, show the large downloads, the counts and the errors
    "$uv" pip install --python "$venv/bin/python" "${pins[@]}" --editable '.[dev]' 2>&1 |
      { grep --line-buffered -vE "$chatter" || true; }
  elif [ "$torch" = current ]; then
    echo "setup: TORCH=current needs uv (pip cannot overrule Composer's pins); install it: pip install uv" >&2
    exit 1
  else
    "$venv/bin/python" -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
  fi
}

start=$SECONDS
echo "setup: installing the $torch environment into $venv (about 3 GB the first time, then seconds from the cache)"
make_environment
install
touch "$venv/.installed"
echo "setup: done in $((SECONDS - start)) s with $("$venv/bin/python" --version)"
