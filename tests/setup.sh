#!/bin/sh
# Sets up what test groups need: the packages in tests/GROUP/packages.txt, then tests/GROUP/setup.sh if there is one.
#
#   tests/setup.sh GROUP...
#
# The exit status tells nothing of what is missing: tests that lack a program skip by its name. 2: no such group.
set -eu
cd "$(dirname "$0")/.."

[ $# -gt 0 ] || { echo 'usage: tests/setup.sh GROUP...' >&2; exit 2; }
for group in "$@"; do
    [ -d "tests/$group" ] || { echo "setup.sh: no group $group below tests/" >&2; exit 2; }
    if [ -f "tests/$group/packages.txt" ]; then
        # Lines are 'PROOF PACKAGE', as in deploy/packages.sh.
        awk '{ print $1 ":" $2 }' "tests/$group/packages.txt" | xargs deploy/packages.sh "tests/$group" || true
    fi
    if [ -x "tests/$group/setup.sh" ]; then "tests/$group/setup.sh" || true; fi
done
