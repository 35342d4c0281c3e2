#!/bin/sh
# Installs vramblk-swap and its systemd units, or removes them.
#
#   host/install.sh install|uninstall
#
# DESTDIR is put before every path, for packages; PREFIX is /usr/local unless set. Without DESTDIR and with systemd
# running the units are enabled, or disabled first. Swap that is on is neither started nor stopped by an install;
# an uninstall is refused while it is on.
set -eu

cd "$(dirname "$0")"
destination=${DESTDIR:-}
sbindir=${PREFIX:-/usr/local}/sbin
unitdir=${UNITDIR:-/etc/systemd/system}
units='vramblk-swap.service vramblk-swap-sleep.service'

live_systemd() { [ -z "$destination" ] && [ -d /run/systemd/system ]; }

case ${1:-} in
install)
    install -D -m 755 vramblk-swap "$destination$sbindir/vramblk-swap"
    install -d -m 755 "$destination$unitdir"
    for unit in $units; do
        sed "s|@sbindir@|$sbindir|" "systemd/$unit" >"$destination$unitdir/$unit"
        chmod 644 "$destination$unitdir/$unit"
    done
    if live_systemd; then
        systemctl daemon-reload
        # shellcheck disable=SC2086  # a list of units
        systemctl enable $units
    fi
    echo "vramblk-swap: installed $destination$sbindir/vramblk-swap and, in $destination$unitdir: $units"
    if live_systemd; then
        echo 'vramblk-swap: from the next boot on swap comes and goes by itself; for now: sudo systemctl start vramblk-swap'
    fi
    ;;
uninstall)
    if [ -z "$destination" ] && [ -s /run/vramblk-swap/records ]; then
        echo "vramblk-swap: swap is on; type first: sudo $sbindir/vramblk-swap down" >&2
        exit 1
    fi
    if live_systemd; then
        # shellcheck disable=SC2086
        systemctl disable $units || true
    fi
    for unit in $units; do rm -f "$destination$unitdir/$unit"; done
    rm -f "$destination$sbindir/vramblk-swap"
    if live_systemd; then systemctl daemon-reload; fi
    ;;
*)
    echo 'usage: host/install.sh install|uninstall (DESTDIR, PREFIX and UNITDIR from the environment)' >&2
    exit 2
    ;;
esac
