# shellcheck shell=sh disable=SC2034,SC2154
# up, down, sleep and wake.

up() {
    need_root up
    need_tools nbd-client modprobe mkswap swapon swapoff flock
    [ -z "$mirror" ] || need_tools mdadm wipefs
    lock
    note 'tested under real memory pressure: the kernel, its nbd driver, this script, the server on a map: device;' \
        "not tested: a GPU driver's own allocations while memory is being reclaimed (docs/swap.md)"
    put_on all
}

down() {
    need_root down
    need_tools nbd-client swapoff flock
    lock
    trap 'exit 130' INT HUP TERM
    if [ ! -s "$records" ]; then
        note 'no swap of vramblk is on'
        return 0
    fi
    ! grep -q "^mirror$tab" "$records" || need_tools mdadm wipefs
    down_devices=$(joined "$(ours_by_use | cut -d ' ' -f 2)")
    until take_all_off; do
        still=$(joined "$(ours_by_use | cut -d ' ' -f 2)")
        [ -n "$patient" ] || fail 1 "everything stays as it is: $still is still swap, the server must keep running"
        note "still swap: $still; trying again in 10 s"
        sleep 10
    done
    [ "$undo_status" = 0 ] ||
        fail 1 'swap is off, but not everything could be undone (see above); once the reason is gone repeat: down'
    [ -n "$dry_run" ] || note "${down_devices:-what was left} is no longer swap, and every setting is as it was"
}

# False only where swap could not be taken off. Looks first whether all of it can be: what comes out of one device must
# not go into the next.
take_all_off() {
    undo_status=0
    devices='' used_kib=0
    while read -r used each; do
        [ -n "$each" ] || continue
        devices="$devices $each"
        # What is lost is nowhere: it needs no room.
        ! has_pages "$each" || used_kib=$((used_kib + used))
    done <<END
$(ours_by_use)
END
    measure_room "$devices"
    if [ "$used_kib" -gt "$room" ] && [ -z "$force" ]; then
        no_room
        return 1
    fi
    [ -z "$devices" ] || note "moving $((used_kib / 1024)) MiB back from$devices"
    # The last one with everything else.
    # shellcheck disable=SC2086  # a list of devices
    set -- $devices
    while [ "$#" -gt 1 ]; do
        undo "$1"
        undo_status=$?
        [ "$undo_status" -ne 2 ] || return 1
        shift
    done
    undo
    undo_status=$?
    [ "$undo_status" -ne 2 ]
}

no_room() {
    note "$((used_kib / 1024)) MiB are in${devices} and there is room for $((room / 1024)) MiB: end something large first," \
        'or use --force'
}

# Remembered before swap is off, or a failure in the middle would leave it off after waking.
go_to_sleep() {
    asleep_devices=$(ours_by_use | cut -d ' ' -f 2)
    [ -n "$asleep_devices" ] || return 0
    if is_mirrored; then
        need_root sleep
        lock
        read_mirror
        # What was released before stays so.
        [ -n "$dry_run" ] || [ "$mirror_verdict" = released ] || : >"$asleep"
        release_mirror
        return
    fi
    trap forget_sleep EXIT
    [ -n "$dry_run" ] || for each in $asleep_devices; do
        device_facts "$each"
        [ "$export" = - ] || printf '%s\n' "$export"
    done >"$asleep"
    down
}

forget_sleep() {
    for each in $asleep_devices; do
        ! swap_line "$each" >/dev/null || [ -n "$dry_run" ] || rm -f "$asleep"
    done
}

wake() {
    [ -e "$asleep" ] || return 0
    resumed=$(cat "$asleep")
    up
    [ -n "$dry_run" ] || rm -f "$asleep"
}
