#!/usr/bin/env bash
# See to it that there is a browser for the tests of the web page: one that is installed already, else Debian's package
# where this user may install it, else playwright's own. Fails where none can be had; those tests are skipped then.
#
#   PYTHON=.venv/bin/python bash scripts/browser.sh
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}

is_there() {
    PYTHONPATH=tests "$PYTHON" -c "import browser, sys; sys.exit(browser.find_browser() is None)"
}

if is_there; then
    exit
fi
echo "installing a browser for the tests of the web page ..."
if [ "$(id -u)" = 0 ] && grep -qs '^ID=debian' /etc/os-release; then
    { timeout 120 apt-get update -qq && timeout 300 apt-get install -y -qq --no-install-recommends chromium; } > /dev/null || true
fi
is_there || timeout 300 "$PYTHON" -m playwright install --no-shell chromium > /dev/null 2>&1
is_there
