#!/bin/bash
# Unpacks Oclgrind to build/oclgrind, with the virtual environment's pip.
# Exit status 0 also where PyPI cannot be reached: the group's tests skip by its name.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${VENV:-.venv}/bin/python
folder=build/oclgrind

if [[ ! -d $folder/pyopencl ]]; then
  rm -rf "$folder"
  "$python" -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary :all: \
    --target "$folder" -r tests/oclgrind/requirements.txt ||
    { echo "Oclgrind could not be fetched from PyPI, so the tests that need it are skipped"; exit 0; }
fi
echo "$PWD"/"$folder"/pyopencl/.libs/liboclgrind-rt-icd-*.so >"$folder/oclgrind.icd"
