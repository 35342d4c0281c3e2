#!/bin/bash
# Debian packages that the test groups need: as root installs what is missing, otherwise names it.
# Groups name theirs in packages.txt; the container group has a set-up of its own. Exit status 0 either way: tests that lack a program skip by its name.
set -euo pipefail
cd "$(dirname "$0")/.."

# program or file that proves a package is there, then the package
needed=(
  fio:fio
  nbdkit:nbdkit
  nbdcopy:libnbd-bin
  /usr/lib/python3/dist-packages/nbd.py:python3-libnbd
  /usr/sbin/nbd-client:nbd-client
  qemu-img:qemu-utils
  /usr/sbin/mkfs.ext4:e2fsprogs
  certtool:gnutls-bin
  shellcheck:shellcheck
  busybox:busybox
  make:make
)

missing=()
for pair in "${needed[@]}"; do
  proof=${pair%%:*}
  [[ $proof == /* && -e $proof ]] || command -v "$proof" >/dev/null 2>&1 || missing+=("${pair#*:}")
done
mapfile -t listed < <(cat tests/*/packages.txt)
for package in "${listed[@]}"; do
  dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done

install_missing() {
  ((${#missing[@]})) || return 0
  if [[ $(id -u) -ne 0 ]] || ! command -v apt-get >/dev/null; then
    echo "tests need these Debian packages, and some will be skipped without: ${missing[*]}"
    echo "install them with: sudo apt-get install --no-install-recommends ${missing[*]}"
    return 0
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null ||
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null; }
}

install_missing
if compgen -G 'tests/container/test_*.py' >/dev/null; then tests/container/setup.sh; fi
