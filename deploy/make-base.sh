#!/bin/sh
# Makes the base image from Debian's packages, for a host that reaches a Debian mirror but no image registry.
#
#   deploy/make-base.sh [IMAGE]        IMAGE is debian:trixie-slim unless given
#
# DEBIAN_MIRROR            http://deb.debian.org/debian unless set
# PIP_CERT, SSL_CERT_FILE  the first that is set and readable is copied into the base and named there by PIP_CERT,
#                          so that pip works in the build behind a TLS-intercepting proxy
set -eu

image=${1:-debian:trixie-slim}
suite=trixie
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
bundle_in_image=/etc/ssl/certs/build-host.crt

fail() {
    printf 'make-base: %s\n' "$1" >&2
    exit "${2:-78}"
}

[ "$(id -u)" = 0 ] || fail "debootstrap needs root; type: sudo $0 $image"
docker version >/dev/null 2>&1 || fail 'the Docker daemon does not answer; type: systemctl start docker'
"$(dirname "$0")/packages.sh" make-base debootstrap:debootstrap gpg:gnupg gpgv:gpgv \
    '/usr/share/keyrings/debian-archive-keyring.gpg|/usr/share/keyrings/debian-archive-keyring.pgp:debian-archive-keyring' ||
    exit 78

# A keyring older than the suite does not know its signing key, and Ubuntu ships Debian's beside its own.
for keyring in /usr/share/keyrings/debian-archive-keyring.pgp /usr/share/keyrings/debian-archive-keyring.gpg; do
    [ ! -r "$keyring" ] || break
done

root=$(mktemp -d "${TMPDIR:-/tmp}/vramblk-base.XXXXXX")
log=$root.log
trap 'rm -rf "$root"' EXIT
trap 'exit 130' INT TERM HUP

# Without --force-check-gpg debootstrap takes unsigned packages if it lacks the keyring, and only warns.
printf '+ debootstrap --variant=minbase --force-check-gpg --keyring=%s %s %s\n' "$keyring" "$suite" "$mirror"
debootstrap --variant=minbase --force-check-gpg "--keyring=$keyring" "$suite" "$root" "$mirror" >"$log" 2>&1 || {
    tail -n 5 "$log" >&2
    fail "debootstrap failed: the whole log is $log. Check that $mirror is reachable and that $keyring knows the key of $suite; \
apt-get install debian-archive-keyring brings a newer one" 1
}
if grep '^W: ' "$log" >&2; then
    printf 'make-base: debootstrap warned; the whole log is %s\n' "$log" >&2
else
    rm -f "$log"
fi

cat >"$root/etc/apt/sources.list.d/debian.sources" <<SOURCES
Types: deb
URIs: $mirror
Suites: $suite $suite-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: ${mirror%/debian}/debian-security
Suites: $suite-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
SOURCES
rm -f "$root/etc/apt/sources.list"

# What the official slim image leaves out, now and for every package installed on top of it.
cat >"$root/etc/dpkg/dpkg.cfg.d/slim" <<'SLIM'
path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
path-exclude /usr/share/info/*
path-exclude /usr/share/locale/*
path-exclude /usr/share/man/*
path-exclude /usr/share/lintian/*
SLIM
find "$root/usr/share/doc" -type f ! -name copyright -delete
find "$root/usr/share/doc" -depth -type d -empty -delete
rm -rf "$root"/usr/share/info/* "$root"/usr/share/locale/* "$root"/usr/share/man/* "$root"/usr/share/lintian \
    "$root"/var/cache/apt/archives/*.deb "$root"/var/cache/apt/*.bin "$root"/var/lib/apt/lists/* \
    "$root"/var/log/*.log "$root"/var/log/apt/* "$root/var/cache/ldconfig/aux-cache"
: >"$root/etc/machine-id"
rm -f "$root/etc/resolv.conf" "$root/etc/hostname"

set -- --change 'CMD ["bash"]' --change 'ENV DEBIAN_FRONTEND=noninteractive' \
    --change 'LABEL org.opencontainers.image.description="Debian trixie, made by debootstrap"'
for bundle in "${PIP_CERT:-}" "${SSL_CERT_FILE:-}"; do
    if [ -n "$bundle" ] && [ -r "$bundle" ]; then
        mkdir -p "$root/etc/ssl/certs"
        cp "$bundle" "$root$bundle_in_image"
        chmod 644 "$root$bundle_in_image"
        set -- "$@" --change "ENV PIP_CERT=$bundle_in_image"
        printf '+ CA bundle %s -> %s\n' "$bundle" "$bundle_in_image"
        break
    fi
done

printf '+ docker import %s\n' "$image"
tar -C "$root" --numeric-owner --sort=name -c . | docker import "$@" - "$image" >/dev/null
docker image inspect --format '{{.RepoTags}} {{.Size}} bytes' "$image"
