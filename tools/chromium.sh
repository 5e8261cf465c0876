#!/usr/bin/env bash
# What the browser tests need of the system: Chromium, and a font with Japanese letters. Root installs it on Debian; others are told how.
set -u
if command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null; then exit 0; fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "setup: install Chromium for the browser tests"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-ipafont-gothic; } >/dev/null 2>&1 && exit 0
    echo "setup: Chromium could not be installed; the browser tests will be left out" >&2
else
    echo "setup: there is no Chromium, so the browser tests are left out; on Debian 'sudo apt-get install chromium fonts-ipafont-gothic' installs it" >&2
fi
