#!/bin/sh
# Installs vramblk-swap with its man page, its systemd units and examples of its settings and of rights, or removes them.
#
#   host/install.sh install|uninstall
#
# DESTDIR is put before every path, for packages; PREFIX is /usr/local unless set. Without DESTDIR and with systemd
# running the units are enabled, or disabled first. Swap that is on is neither started nor stopped by an install;
# an uninstall is refused while it is on. /etc/default/vramblk is never overwritten, and removed only if nobody changed it.
#
# SERVER_UNIT is the unit before whose stop vramblk-swap.service takes swap off, or none. Unless set it is
# docker.service, but none on a running host that has no such unit: what is required but not there keeps the unit from
# starting, and no drop-in can take a Requires= away.
set -eu

cd "$(dirname "$0")"
destination=${DESTDIR:-}
sbindir=${PREFIX:-/usr/local}/sbin
libdir=${PREFIX:-/usr/local}/lib/vramblk-swap
mandir=${PREFIX:-/usr/local}/share/man/man8
docdir=${PREFIX:-/usr/local}/share/doc/vramblk-swap
unitdir=${UNITDIR:-/etc/systemd/system}
units='vramblk-swap.service vramblk-swap-sleep.service'
# Installed, but enabled only by whoever wants it.
auto_unit=vramblk-swap-auto.service
# Another root directory is used in the tests only.
run=${VRAMBLK_TEST_ROOT-}/run
defaults=$destination${VRAMBLK_TEST_ROOT-}/etc/default/vramblk

live_systemd() { [ -z "$destination" ] && [ -d "$run/systemd/system" ]; }

choose_server_unit() {
    server_unit=${SERVER_UNIT:-docker.service}
    if [ -z "${SERVER_UNIT:-}" ] && live_systemd && ! systemctl cat docker.service >/dev/null 2>&1; then
        server_unit=none
        echo 'vramblk-swap: there is no docker.service here, so vramblk-swap.service waits for no other unit; if a unit' \
            'runs the server: sudo make install-host SERVER_UNIT=NAME.service'
    fi
    case $server_unit in
    none) tie='/^Requires=docker\.service$/d; s/^After=docker\.service /After=/' ;;
    *[!A-Za-z0-9:_.@-]*) tie='' ;;
    *.service) tie="/^[A-Z][a-z]*=docker\\.service/s/docker\\.service/$server_unit/" ;;
    *) tie='' ;;
    esac
    if [ -z "$tie" ]; then
        echo "SERVER_UNIT=$server_unit: allowed are NAME.service and none" >&2
        exit 2
    fi
}

case ${1:-} in
install)
    choose_server_unit
    install -D -m 755 vramblk-swap "$destination$sbindir/vramblk-swap"
    # Parts that an earlier version had must not stay.
    rm -rf "$destination$libdir"
    install -d -m 755 "$destination$libdir"
    install -m 644 lib/*.sh "$destination$libdir"
    install -D -m 644 ../share/man/man8/vramblk-swap.8 "$destination$mandir/vramblk-swap.8"
    [ -e "$defaults" ] || [ -L "$defaults" ] || install -D -m 644 vramblk.default "$defaults"
    install -d -m 755 "$destination$unitdir"
    for unit in $units $auto_unit; do
        sed -e "s|@sbindir@|$sbindir|" -e "$tie" "systemd/$unit" >"$destination$unitdir/$unit"
        chmod 644 "$destination$unitdir/$unit"
    done
    install -d -m 755 "$destination$docdir"
    for example in examples/*; do
        sed -e "s|@sbindir@|$sbindir|g" "$example" >"$destination$docdir/${example#*/}"
        chmod 644 "$destination$docdir/${example#*/}"
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
    if [ -z "$destination" ] && [ -s "$run/vramblk-swap/records" ]; then
        echo "vramblk-swap: swap is on; type first: sudo $sbindir/vramblk-swap down" >&2
        exit 1
    fi
    if live_systemd; then
        # shellcheck disable=SC2086
        systemctl disable --now $auto_unit || true
        # shellcheck disable=SC2086
        systemctl disable $units || true
    fi
    for unit in $units $auto_unit; do rm -f "$destination$unitdir/$unit"; done
    rm -rf "$destination$libdir" "$destination$docdir"
    rm -f "$destination$sbindir/vramblk-swap" "$destination$mandir/vramblk-swap.8"
    if cmp -s vramblk.default "$defaults"; then
        rm -f "$defaults"
    elif [ -e "$defaults" ]; then
        echo "vramblk-swap: kept $defaults, which differs from the example"
    fi
    if live_systemd; then systemctl daemon-reload; fi
    ;;
*)
    echo 'usage: host/install.sh install|uninstall (DESTDIR, PREFIX, UNITDIR and SERVER_UNIT from the environment)' >&2
    exit 2
    ;;
esac
