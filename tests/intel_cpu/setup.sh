#!/bin/bash
# Unpacks Intel's OpenCL runtime to build/intel-cpu, a virtual environment of its own, with Python $1.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=build/intel-cpu

[[ -e $folder/bin/python ]] || "$1" -m venv "$folder"
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes \
    --only-binary :all: -r tests/intel_cpu/requirements.txt
echo "$PWD/$folder/lib/libintelocl.so" >"$folder/intel-cpu.icd"
