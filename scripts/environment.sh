# Sourced by the other scripts: sets PYTHON to one that has the pinned versions of requirements files.
#
#   use_environment requirements.lock requirements.txt
#
# Takes the running Python where it has exactly these versions; otherwise makes .venv and installs the lock into it.

satisfies() { # satisfies PYTHON REQUIREMENTS...
    "$1" - "${@:2}" <<'PY'
import importlib.metadata, pathlib, re, sys

def pins(path):
    for line in path.read_text().splitlines():
        if match := re.fullmatch(r"([\w.-]+)==([\w.]+)", line.split("#")[0].strip()):
            yield match.groups()

def installed(name):
    try:
        return importlib.metadata.version(name).split("+")[0]  # without a build mark such as +cpu
    except importlib.metadata.PackageNotFoundError:
        return None

sys.exit(any(installed(name) != version for path in sys.argv[1:] for name, version in pins(pathlib.Path(path))))
PY
}

install_lock() { # install_lock PYTHON LOCK: every package as it is pinned there, and PyTorch, which no lock has
    "$1" -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r "$2"
    # All but PyTorch is there now; its version stands in requirements.txt, the build (CUDA or not) is the user's choice.
    "$1" -m pip install --quiet --disable-pip-version-check -r "$(dirname "$2")/requirements.txt"
}

use_environment() { # use_environment LOCK REQUIREMENTS...
    local root lock requirements
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    lock=$root/$1
    requirements=("${@:2}")
    requirements=("${requirements[@]/#/$root/}")
    PYTHON=${PYTHON:-$(command -v python3 || command -v python)}
    if satisfies "$PYTHON" "${requirements[@]}"; then
        return
    fi
    if [ ! -x "$root/.venv/bin/python" ]; then
        echo "making a Python environment in .venv ..."
        "$PYTHON" -m venv "$root/.venv"
    fi
    PYTHON=$root/.venv/bin/python
    if ! satisfies "$PYTHON" "${requirements[@]}"; then
        echo "installing $1 into .venv (a few minutes the first time) ..."
        install_lock "$PYTHON" "$lock"
    fi
}
