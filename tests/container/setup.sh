#!/bin/sh
# What the group `container` needs beyond Docker Engine itself: as root installs what is missing, otherwise names it.
# Exit status 0 either way: tests that lack a program skip by its name.
#
# Compose v2, buildx and kustomize are Debian's from trixie where the host has none: unpacked to build/docker-config,
# where the tests point DOCKER_CONFIG, and to build/bin.
set -eu

cd "$(dirname "$0")/../.."
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
plugins=build/docker-config/cli-plugins

command -v docker >/dev/null 2>&1 || {
    echo 'container tests need Docker Engine; install it with: sudo apt-get install docker.io'
    exit 0
}

missing=
for pair in docker-compose:docker-compose openssl:openssl debootstrap:debootstrap dpkg-deb:dpkg xz:xz-utils curl:curl; do
    command -v "${pair%%:*}" >/dev/null 2>&1 || missing="$missing ${pair#*:}"
done
if [ -n "$missing" ]; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
        echo "container tests need these Debian packages, and some will be skipped without:$missing"
        exit 0
    fi
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086  # a list of package names
    apt-get install -qqy --no-install-recommends $missing || { apt-get update -qq && apt-get install -qqy --no-install-recommends $missing; }
fi

# Unpacks file $2 of trixie's package $1 into directory $3.
fetch() {
    path=$(awk -v package="$1" 'BEGIN { RS = ""; FS = "\n" }
        $1 == "Package: " package { for (i = 1; i <= NF; i++) if (sub(/^Filename: /, "", $i)) print $i }' "$work/index")
    curl -fsS -o "$work/package.deb" "$mirror/$path"
    dpkg-deb -x "$work/package.deb" "$work/tree"
    mkdir -p "$3"
    cp "$work/tree/$2" "$3/"
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
present() { docker "$1" version >/dev/null 2>&1 || [ -x "$plugins/docker-$1" ]; }
if ! { present compose && present buildx && { command -v kustomize >/dev/null 2>&1 || [ -x build/bin/kustomize ]; }; }; then
    curl -fsS "$mirror/dists/trixie/main/binary-amd64/Packages.xz" | xz -d >"$work/index"
    present compose || fetch docker-compose usr/libexec/docker/cli-plugins/docker-compose "$plugins"
    present buildx || fetch docker-buildx usr/libexec/docker/cli-plugins/docker-buildx "$plugins"
    command -v kustomize >/dev/null 2>&1 || [ -x build/bin/kustomize ] || fetch kustomize usr/bin/kustomize build/bin
fi
