# Sourced by the other scripts: sets PYTHON to one whose packages satisfy a requirements file.
#
#   use_environment requirements.txt
#
# Takes the running Python where it has exactly the pinned versions; otherwise makes .venv and installs into it.

satisfies() { # satisfies PYTHON REQUIREMENTS
    "$1" - "$2" <<'PY'
import importlib.metadata, pathlib, re, sys

def pins(path):
    for line in path.read_text().splitlines():
        line = line.split("#")[0].strip()
        if line.startswith("-r "):
            yield from pins(path.parent / line[3:].strip())
        elif match := re.fullmatch(r"([\w.-]+)==([\w.]+)", line):
            yield match.groups()

def installed(name):
    try:
        return importlib.metadata.version(name).split("+")[0]  # without a build mark such as +cpu
    except importlib.metadata.PackageNotFoundError:
        return None

sys.exit(any(installed(name) != version for name, version in pins(pathlib.Path(sys.argv[1]))))
PY
}

use_environment() { # use_environment REQUIREMENTS
    local root
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    PYTHON=${PYTHON:-$(command -v python3 || command -v python)}
    if satisfies "$PYTHON" "$root/$1"; then
        return
    fi
    if [ ! -x "$root/.venv/bin/python" ]; then
        echo "making a Python environment in .venv ..."
        "$PYTHON" -m venv "$root/.venv"
    fi
    PYTHON=$root/.venv/bin/python
    if ! satisfies "$PYTHON" "$root/$1"; then
        echo "installing $1 into .venv (a few minutes the first time) ..."
        "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$root/$1"
    fi
}
