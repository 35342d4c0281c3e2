#!/bin/sh
# What the group `container` needs beyond its packages. Docker Engine is only named. Compose v2, buildx and kustomize, if
# the host has none, come from Debian trixie's packages: unpacked to build/docker-config, where the tests point
# DOCKER_CONFIG, and to build/bin.
set -eu

cd "$(dirname "$0")/../.."
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
plugins=build/docker-config/cli-plugins

command -v docker >/dev/null 2>&1 || {
    echo 'container tests need Docker Engine; install it with: sudo apt-get install docker.io'
    exit 0
}

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
