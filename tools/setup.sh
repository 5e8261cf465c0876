#!/usr/bin/env bash
# Make the project's Python environment: tools/setup.sh VENV
# PYTHON names the interpreter to build it with (default python3). Safe to run again: what works is kept, and a set-up that
# was interrupted starts afresh, because pip takes a half unpacked package for an installed one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

TORCH=2.13.0
CPU_INDEX=https://download.pytorch.org/whl/cpu
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { echo "setup: $*"; }
die() { say "$*" >&2; exit 1; }

# Run a command with its output in the log, which is shown only if the command fails
logged() {
    if "$@" >"$log" 2>&1; then return; fi
    tail -n 30 "$log" >&2
    return 1
}

pip_install() { "$venv/bin/python" -m pip install "$@"; }

# What torch of the environment was built for: `cpu`, a CUDA version, or nothing where there is no torch
torch_build() { "$venv/bin/python" -c 'import torch; print(torch.version.cuda or "cpu")' 2>/dev/null || true; }

has_nvidia() { nvidia-smi -L 2>/dev/null | grep -q GPU; }

# --- What the machine offers

[ $# -eq 1 ] || die "usage: tools/setup.sh VENV"
venv=$1
python=${PYTHON:-python3}
need=$(sed -n 's/^min_python *= *//p' settings.ini)

found=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) ||
    die "no Python found as '$python': install Python $need or newer, or name yours with PYTHON=..."
if [ "$(printf '%s\n' "$need" "$found" | sort -V | head -n 1)" != "$need" ]; then
    die "'$python' is Python $found, but Python $need or newer is needed: name another with PYTHON=..."
fi
"$python" -c 'import ensurepip, venv' >/dev/null 2>&1 ||
    die "Python $found cannot make virtual environments here: install its package, on Debian 'apt install python$found-venv'."

# --- The environment itself

if [ -e "$venv" ] && [ ! -e "$venv/pyvenv.cfg" ] && [ -n "$(ls -A "$venv")" ]; then
    die "'$venv' is there already and is no virtual environment: move it away or name another."
fi
if [ ! -e "$venv/.unfinished" ] && "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    say "keep $venv"
else
    say "make $venv with Python $found"
    rm -rf "$venv"
    mkdir -p "$venv"
    "$python" -m venv "$venv" || die "could not make $venv."
fi
touch "$venv/.unfinished"
log=$venv/setup.log

# --- torch first, so that nothing else can choose its build

if has_nvidia; then
    build=$(torch_build)
    if [ "$build" = cpu ]; then
        say "keep the CPU build of torch; to use the NVIDIA GPU remove $venv and run this again"
    elif [ -n "$build" ]; then
        say "keep torch for CUDA $build"
    else
        say "install torch for the NVIDIA GPU (some gigabytes, takes minutes)"
        logged pip_install "torch>=2.11" || die "torch could not be installed."
    fi
else
    if [ "$(torch_build)" = cpu ]; then
        say "keep torch for the CPU"
    elif [ "$(uname -s)" = Linux ]; then
        # The plain name brings CUDA along on Linux. "+cpu" is the build without it: ask the sources pip already knows, which
        # costs a second, and then the index of PyTorch.
        say "install torch $TORCH for the CPU, as no NVIDIA driver was found (about 200 MB)"
        pip_install "torch==$TORCH+cpu" >"$log" 2>&1 ||
            logged pip_install "torch==$TORCH+cpu" --extra-index-url "$CPU_INDEX" --retries 2 --timeout 15 ||
            die "no CPU build of torch $TORCH could be installed: is $CPU_INDEX within reach, and Python $found not too new for it?"
    else
        say "install torch $TORCH"
        logged pip_install "torch==$TORCH" || die "torch $TORCH could not be installed."
    fi
    build=$(torch_build)
    [ "$build" = cpu ] || die "torch in $venv is built for '${build:-nothing: it cannot be imported}', not for the CPU."
fi

# --- All the rest, with torch held as it is

"$venv/bin/python" -c 'from importlib.metadata import version as v; print("torch==" + v("torch"))' >"$venv/torch.txt"
say "install maou_nb and what it needs (about 120 packages)"
logged pip_install --use-pep517 -c "$venv/torch.txt" -e ".[dev]" || die "the packages of settings.ini could not be installed."

rm "$venv/.unfinished"
say "ready: $venv with $(cat "$venv/torch.txt")"
