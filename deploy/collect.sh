#!/bin/sh
# Runs in the image's build: copies files, and every shared object that they need and the base lacks, to a folder
# that becomes part of the image.
#
#   collect.sh OUT "PACKAGE..." FILE...
#
# Installs the packages (in a build stage that is thrown away), then copies the FILEs (a trailing * is a pattern) with
# their closure of shared objects. Debian's own packages of these runtimes cannot be installed side by side
# (rocm-opencl-icd breaks mesa-opencl-icd) and bring compilers, headers and drivers of other programs along.
# Each package from which a file came leaves its copyright file and its entry in /var/lib/dpkg/status.d, where
# scanners of distroless images look for it.
set -eu

out=$1
packages=$2
shift 2

mkdir -p "$out/var/lib/dpkg/status.d"
find /usr/lib -name '*.so*' | sort >/tmp/in-base
apt-get update -q
# shellcheck disable=SC2086  # a list of package names
apt-get install -qy --no-install-recommends $packages
rm -rf /var/lib/apt/lists/*

copy() {
    [ -e "$out$1" ] && return 0
    mkdir -p "$out$(dirname "$1")"
    cp -L --preserve=mode,timestamps "$1" "$out$1"
    owner=$(dpkg-query -S "$(realpath "$1")" 2>/dev/null | head -n 1 | cut -d: -f1)
    if [ -n "$owner" ] && ! [ -e "$out/var/lib/dpkg/status.d/$owner" ]; then
        dpkg-query -s "$owner" >"$out/var/lib/dpkg/status.d/$owner"
        mkdir -p "$out/usr/share/doc/$owner"
        cp -L "/usr/share/doc/$owner/copyright" "$out/usr/share/doc/$owner/copyright"
    fi
}

for pattern in "$@"; do
    found=no
    for file in $pattern; do
        [ -f "$file" ] || continue
        found=yes
        copy "$file"
        # ldd resolves the whole closure at once; data files make it fail, which is no fault.
        for object in $(ldd "$file" 2>/dev/null | sed -n 's/.* => \(\/[^ ]*\) .*/\1/p'); do
            object=$(realpath -s "$(echo "$object" | sed 's|^/lib/|/usr/lib/|')")
            grep -qxF "$object" /tmp/in-base || copy "$object"
        done
    done
    if [ "$found" = no ]; then
        printf 'collect: no file matches %s\n' "$pattern" >&2
        exit 1
    fi
done
