#!/usr/bin/env bash
# What tests need of the system: Chromium and a font with Japanese letters for those in a browser, two engines for those that
# play against one. Root installs them on Debian; others are told how.
set -u
missing=()
command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null ||
    missing+=(chromium fonts-ipafont-gothic)
[ -x /usr/games/fairy-stockfish ] || command -v fairy-stockfish >/dev/null || missing+=(fairy-stockfish)
[ -x /usr/games/gpsusi ] || command -v gpsusi >/dev/null || missing+=(gpsshogi)
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "setup: install ${missing[*]} for the tests"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"; } \
        >/dev/null 2>&1 && exit 0
    echo "setup: they could not be installed; the tests that need them will be left out" >&2
else
    echo "setup: ${missing[*]} missing, so the tests that need them are left out; on Debian" \
         "'sudo apt-get install ${missing[*]}' installs them" >&2
fi
