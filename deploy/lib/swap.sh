# shellcheck shell=sh
# The host's side of swap: host/vramblk-swap and its systemd unit. Both need root.

swap_unit=vramblk-swap.service

# Has vramblk-swap turned swap on, as far as its records say?
swap_is_recorded() { [ -s "${VRAMBLK_HOST_ROOT-}/run/vramblk-swap/records" ]; }

# host_script COMMAND: runs vramblk-swap with what this server has elsewhere or otherwise than usual.
host_script() {
    run_dir=$(given VRAMBLK_RUN_DIR)
    export_name=$(given VRAMBLK_EXPORT_NAME)
    set -- host/vramblk-swap "$1"
    [ -z "$export_name" ] || set -- "VRAMBLK_EXPORT_NAME=$export_name" "$@"
    [ -z "$run_dir" ] ||
        set -- "VRAMBLK_NBD_SOCKET=$run_dir/nbd.sock" "VRAMBLK_STATUS_SOCKET=$run_dir/status.sock" "$@"
    case $1 in VRAMBLK_*) set -- env "$@" ;; esac
    as_root "$@"
}

as_root() {
    [ "$(id -u)" = 0 ] || set -- sudo "$@"
    say "+ $*"
    "$@"
}

turn_swap_on() {
    host_script up || fail 1 'the server is healthy, but swap is not on; see above, then: sudo host/vramblk-swap up'
    start_unit
}

# Only while it is active does the unit take swap off before dockerd or the machine stops. It finds swap on and changes
# nothing. It cannot turn swap on here: it does not read .env, and reports a failure to the journal only.
start_unit() {
    systemctl is-enabled --quiet "$swap_unit" 2>/dev/null && ! systemctl is-active --quiet "$swap_unit" || return 0
    as_root systemctl start "$swap_unit" ||
        fail 1 "swap is on, but $swap_unit does not start, which takes it off before Docker stops; see: systemctl status" \
            "$swap_unit"
}

# The unit ends after swap: left active, it would wait for the container at the next restart of dockerd.
take_swap_off() {
    host_script down ||
        fail 1 'swap cannot be taken off, so the container is not stopped; see: sudo host/vramblk-swap status'
    if systemctl is-active --quiet "$swap_unit" 2>/dev/null; then
        as_root systemctl stop "$swap_unit" ||
            fail 1 "swap is off, but $swap_unit does not stop; see: systemctl status $swap_unit"
    fi
}

# Does this project's server report that it is a scratch server? Then the host's records belong to another one.
serves_no_swap() {
    current=$(container 2>/dev/null) && [ -n "$current" ] && (! is_swap "$current") 2>/dev/null &&
        [ "$(mode_of "$current")" = scratch ] || return 1
    say "  swap is on, but this container does not serve it, so it stays on; to take it off: sudo host/vramblk-swap down"
}
