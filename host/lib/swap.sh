# shellcheck shell=sh disable=SC2034,SC2154
# up, down, sleep and wake.

up() {
    need_root up
    need_tools nbd-client modprobe mkswap swapon swapoff flock
    lock
    note 'tested under real memory pressure: the kernel, its nbd driver, this script, the server on a map: device;' \
        "not tested: a GPU driver's own allocations while memory is being reclaimed (docs/swap.md)"
    if [ -n "$(was_attached device)" ] && swap_line "$(was_attached device)" >/dev/null; then
        if is_connected "$(was_attached device)"; then
            supervisor_lives || fail 1 "$(was_attached device) is swap and works, but its server has lost its supervisor" \
                'and takes no other client; type: sudo vramblk-swap down, start the server again, and then up'
            note "$(was_attached device) is swap already"
            server_pid=$(was_attached server_pid)
            find_cgroup
            check_docker
            return 0
        fi
        fail 1 "$(was_attached device) is still in /proc/swaps but its server is gone: the pages in it are lost, and a" \
            "new server must not be attached to it. Type: sudo vramblk-swap down (ends the processes that need those" \
            "pages), or reboot"
    fi
    [ -n "$dry_run" ] || refuse_lost_devices
    if [ -s "$records" ] && [ -z "$dry_run" ]; then
        note 'an earlier run was interrupted'
        undo_all || fail 1 'what it left could not be undone'
    fi
    check_server
    find_server
    find_cgroup
    check_docker

    trap 'exit 130' INT HUP TERM
    trap roll_back EXIT
    [ -n "$dry_run" ] || undo_on_exit=yes
    load_module
    [ -n "$dry_run" ] || wait_until 5 test -e "$sys/block/nbd0" || fail 78 'the nbd module made no device'
    choose_device
    connect
    block=/sys/block/${device#/dev/}
    change "$block/queue/read_ahead_kb" 0
    change "$block/queue/scheduler" none
    uuid=$(cat "$proc/sys/kernel/random/uuid" 2>/dev/null)
    act mkswap --label "$label" ${uuid:+--uuid "$uuid"} "$device" || fail 1 "mkswap failed on $device"
    raise_min_free
    # Reading neighbours ahead would cost a copy each and memory that is short.
    change /proc/sys/vm/page-cluster 0
    keep_server_out_of_swap
    remember_attached
    record swapon "$device"
    act swapon --priority "$priority" "$device" || fail 1 "swapon failed on $device"
    [ -n "$dry_run" ] || swap_line "$device" >/dev/null || fail 1 "$device is not in /proc/swaps after swapon"
    undo_on_exit=''
    [ -n "$dry_run" ] || note "$device is swap: $(($(sectors "$device") / 2048)) MiB, priority $priority"
}

remember_attached() {
    [ -z "$dry_run" ] || return 0
    printf '%s\n' "device=$device" "uuid=$uuid" "label=$label" "socket=$socket" "server_pid=$server_pid" \
        "server_started=$([ -z "$server_pid" ] || started "$server_pid")" >"$attached" || fail 1 "cannot write $attached"
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
    down_device=$(was_attached device)
    until take_off; do
        [ -n "$patient" ] || fail 1 "everything stays as it is: $down_device is still swap, the server must keep running"
        note "still swap: $down_device; trying again in 10 s"
        sleep 10
    done
    [ "$undo_status" = 0 ] ||
        fail 1 'swap is off, but not everything could be undone (see above); once the reason is gone repeat: down'
    [ -n "$dry_run" ] || note "${down_device:-what was left} is no longer swap, and every setting is as it was"
}

# False only where swap could not be taken off.
take_off() {
    undo_status=0
    if [ -n "$down_device" ] && line=$(swap_line "$down_device"); then
        used=$(echo "$line" | awk '{ print $4 }') room=$(room_kib "$down_device")
        if [ "$used" -gt "$room" ] && [ -z "$force" ] && is_connected "$down_device"; then
            note "$((used / 1024)) MiB are in $down_device and there is room for $((room / 1024)) MiB: end something" \
                'large first, or use --force'
            return 1
        fi
        note "moving $((used / 1024)) MiB back from $down_device"
    fi
    undo_all
    undo_status=$?
    [ "$undo_status" -ne 2 ]
}

# Remembered before swap is off, or a failure in the middle would leave it off after waking.
go_to_sleep() {
    asleep_device=$(was_attached device)
    [ -n "$asleep_device" ] || return 0
    trap forget_sleep EXIT
    [ -n "$dry_run" ] || : >"$asleep"
    down
}

forget_sleep() {
    ! swap_line "$asleep_device" >/dev/null || [ -n "$dry_run" ] || rm -f "$asleep"
}

wake() {
    [ -e "$asleep" ] || return 0
    up
    [ -n "$dry_run" ] || rm -f "$asleep"
}
