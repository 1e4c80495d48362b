#!/usr/bin/env bash
# See to it that a browser is there for the tests of the page (tests/test_page.py): one that is installed already, else
# Debian's package where this user may install it, else playwright's own. Fails where none can be had; the tests are
# skipped then.
#
#   bash scripts/browser.sh
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}

found() {
    PYTHONPATH=tests "$PYTHON" -c "import sys, browser; sys.exit(browser.find_browser() is None)"
}

found && exit
echo "installing a browser for the tests of the page ..."
if grep -qs '^ID=debian' /etc/os-release && [ "$(id -u)" = 0 ]; then
    (timeout 300 apt-get update -qq && timeout 600 apt-get install -qq --no-install-recommends chromium) > /dev/null || true
fi
found || timeout 600 "$PYTHON" -m playwright install chromium-headless-shell
found
