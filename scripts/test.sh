#!/usr/bin/env bash
# Everything a change must pass: installs what is missing, checks style, tries ParlAI's commands in an environment of
# their own, runs the tests (not those marked slow). With arguments: style and tests only.
#
#   bash scripts/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
use_environment requirements-dev.txt
# The reference implementation of the parity tests: without its dependencies, which are in requirements-dev.txt.
"$PYTHON" -c "import pytorch_transformers" 2>/dev/null ||
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-deps pytorch-transformers==1.2.0
# ParlAI, which the evaluation is tested against for real.
satisfies "$PYTHON" requirements-parlai.txt ||
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-parlai.txt
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
# Not beside the tests, some of which take the time.
[ $# -gt 0 ] || PYTHON=$PYTHON bash scripts/check_parlai.sh
# Two at a time; `-n 0` among the arguments runs them in one process, as debuggers need.
"$PYTHON" -m pytest -n 2 --dist loadscope "$@"
