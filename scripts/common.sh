# What scripts/setup and scripts/lock share: words on the screen, a Python, a pinned uv, and the source of the CPU torch wheel.
# shellcheck shell=bash

UV_VERSION=$(sed -n 's/^uv==\([0-9.]*\).*/\1/p' locks/uv.txt)
# Every file that is installed has one of the hashes of its lock, and what a package is built with has one of build.txt.
# shellcheck disable=SC2034  # scripts that source this file use it
HASHED=(--require-hashes --require-build-hashes --preview-features build-dependency-hashes --build-constraints locks/build.txt)

say() { printf 'densepath: %s\n' "$*"; }
die() { printf 'densepath: %s\n' "$*" >&2; exit 1; }

# Prints the first interpreter that runs and is 3.11 or 3.12 with venv; PYTHON names the only one to try.
# Inside an activated environment that is the interpreter that the environment was made with.
find_python() {
  local candidate candidates=(python3 python3.12 python3.11)
  if [[ -n ${PYTHON:-} ]]; then candidates=("$PYTHON"); fi
  for candidate in "${candidates[@]}"; do
    if "$candidate" -c 'import sys, venv, ensurepip
assert (3, 11) <= sys.version_info < (3, 13); print(sys._base_executable)' 2>/dev/null; then
      return
    fi
  done
  die "needs Python 3.11 or 3.12 with its venv module; found none among: ${candidates[*]}." \
    "Install one, or name it: PYTHON=/path/to/python3.12 make setup"
}

# A driver's /proc entry alone does not mean that this machine, or this container, was given the GPU.
has_nvidia_gpu() {
  [[ $(nvidia-smi --list-gpus 2>/dev/null) == GPU* ]] || [[ -d /proc/driver/nvidia/gpus && -e /dev/nvidiactl ]]
}

# Prints how many packages these locks pin.
count_pins() { cat "$@" | grep -o '^[a-z0-9][^=]*==' | sort -u | wc -l; }

# Sets UV: a pinned uv in its own small environment, so that syncing the project's never removes it.
get_uv() { # get_uv PYTHON DIR
  UV=$2/bin/uv
  if [[ $("$UV" --version 2>/dev/null) != "uv $UV_VERSION "* ]]; then
    say "fetching uv $UV_VERSION"
    "$1" -m venv "$2"
    "$2/bin/python" -m pip install --quiet --quiet --disable-pip-version-check \
      --require-hashes --requirement locks/uv.txt ||
      die "could not fetch uv $UV_VERSION with pip: see the lines above"
  fi
}

# Sets FIND_LINKS to uv's options for the folders or pages that pip is configured with: uv does not read pip's settings.
get_find_links() { # get_find_links DIR_OF_UV
  local links link
  links=${PIP_FIND_LINKS:-$("$1/bin/python" -m pip config get global.find-links 2>/dev/null || true)}
  FIND_LINKS=()
  for link in $links; do FIND_LINKS+=(--find-links "$link"); done
}

# Sets TORCH_SOURCE to the options that make `torch==X+cpu` installable: pip's find-links, else PyTorch's own CPU index.
get_torch_source() { # get_torch_source PYTHON TORCH_PIN
  local try=("$UV" pip install --quiet --dry-run --no-deps --python "$1" "$2") why_links why_index
  TORCH_SOURCE=("${FIND_LINKS[@]}")
  if why_links=$("${try[@]}" "${TORCH_SOURCE[@]}" 2>&1); then return; fi
  TORCH_SOURCE=(--torch-backend cpu)
  if why_index=$("${try[@]}" "${TORCH_SOURCE[@]}" 2>&1); then return; fi
  printf '%s\n' "$why_links" "$why_index" >&2
  die "found no wheel of $2 for $("$1" --version): not where pip's find-links points" \
    "(${FIND_LINKS[*]:-pip has none}), and not on PyTorch's CPU index." \
    "Let this machine reach that index, or put the wheel into a folder and set PIP_FIND_LINKS to it," \
    "or use a Python that has one: PYTHON=python3.11 make setup"
}
