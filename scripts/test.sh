#!/usr/bin/env bash
# Everything a change must pass: installs what is missing, checks style and types, tries ParlAI's commands in an environment of
# their own, runs the tests (not those marked slow). With arguments: style, types and tests only.
#
#   bash scripts/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
use_environment requirements-dev.lock requirements.txt requirements-hub.txt requirements-gguf.txt requirements-dev.txt
# ParlAI, which the evaluation is tested against for real.
satisfies "$PYTHON" requirements-parlai.txt || install_lock "$PYTHON" requirements-parlai.lock
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m mypy
# For the tests of the web page, which say what they lack where this fails.
PYTHON=$PYTHON bash scripts/browser.sh || echo "there is no browser, and none could be installed"
# Not beside the tests, some of which take the time.
[ $# -gt 0 ] || PYTHON=$PYTHON bash scripts/check_parlai.sh
# Two at a time; `-n 0` among the arguments runs them in one process, as debuggers need.
"$PYTHON" -m pytest -n 2 --dist loadscope "$@"
