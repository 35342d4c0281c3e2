# shellcheck shell=sh disable=SC2034,SC2154
# Attach exports and make them swap: what up and take have in common.

# Attach exports until so much is swap. What was on before stays on, whatever happens here.
put_on() { # KiB, or all
    swap_before=$(ours_by_use)
    swap_before=$(echo "$swap_before" | cut -d ' ' -f 2)
    if [ -n "$swap_before" ] && is_mirrored; then
        up_mirrored
        return
    fi
    [ -z "$swap_before" ] || [ -z "$mirror" ] ||
        fail 1 "$(joined "$swap_before") is swap without a mirror; to take $mirror, type: sudo vramblk-swap down, then up"
    refuse_lost
    [ -n "$dry_run" ] || refuse_lost_devices
    [ -n "$dry_run" ] || finish_interrupted
    if [ -n "$swap_before" ]; then
        ask_server || answer=''
        server_pid=$(was_attached server_pid)
        problem=$(server_problem)
        missing=''
        [ -z "$problem" ] || [ "$command" != take ] || fail 1 "$problem"
        [ -n "$problem" ] || choose_missing "$1"
        if [ -z "$missing" ]; then
            note "$(joined "$swap_before") is swap already${problem:+; $problem}"
            find_cgroup
            check_docker
            return 0
        fi
    fi
    check_server
    [ -n "$swap_before" ] || find_server
    find_cgroup
    check_docker
    choose_missing "$1"
    if [ -z "$missing" ]; then
        note 'there is nothing to attach'
        return 0
    fi
    [ -z "$mirror" ] || check_mirror

    trap 'exit 130' INT HUP TERM
    trap roll_back EXIT
    [ -n "$dry_run" ] || undo_on_exit=yes
    load_module
    [ -n "$dry_run" ] || wait_until 5 test -e "$sys/block/nbd0" || fail 78 'the nbd module made no device'
    attach_missing
    [ -n "$fresh" ] || fail 1 'nothing could be attached (see above)'
    raise_min_free
    # Reading neighbours ahead would cost a copy each and memory that is short.
    change /proc/sys/vm/page-cluster 0 || exit 1
    # A boost raises the reserve to several times its size for a while: the OOM killer then acts although swap is free.
    change /proc/sys/vm/watermark_boost_factor 0 || exit 1
    keep_server_out_of_swap
    remember_server
    turn_on
    [ -n "$swap_now" ] || fail 1 'no device could be made swap (see above)'
    undo_on_exit=''
    [ -z "$not_attached" ] ||
        note "warning: not swap: $not_attached (see above); the others are. To try again: sudo vramblk-swap up"
}

joined() { echo "$*" | tr '\n' ' ' | sed 's/ *$//'; }

# Sets missing, lines of wanted_exports that are not attached: all, or as many as it takes until so much is swap.
choose_missing() { # KiB, or all
    wanted=$(wanted_exports) missing='' missing_number=0 on_kib=0 known=''
    for each in $swap_before; do
        device_facts "$each"
        known="$known
$export"
        ! is_of_gpu "$gpu" || on_kib=$((on_kib + $(sectors "$each") / 2))
    done
    while IFS=$tab read -r kib gpu name; do
        [ -n "$name" ] || continue
        case "$known
" in *"
$name
"*) continue ;; esac
        is_of_gpu "$gpu" || continue
        is_resumed "$name" || continue
        [ "$1" = all ] || [ "$on_kib" -lt "$1" ] || continue
        on_kib=$((on_kib + kib)) missing_number=$((missing_number + 1))
        missing="$missing$kib$tab$gpu$tab$name
"
    done <<END
$wanted
END
    # Attached by an earlier version, which knew no names: one server had one export then.
    case "$known
" in *"
-
"*) missing='' missing_number=0 ;; esac
}

# After a sleep only what was on before it comes back.
is_resumed() { # export
    [ -n "$resumed" ] || return 0
    case "
$resumed
" in *"
$1
"*) return 0 ;; esac
    return 1
}

# Attach what is missing, each to a device of its own. One that fails does not keep the others from being attached.
attach_missing() {
    fresh='' not_attached='' facts=''
    while IFS=$tab read -r kib gpu name <&8; do
        [ -n "$name" ] || continue
        if ! choose_device; then
            not_attached="${not_attached:+$not_attached, }$name"
            continue
        fi
        if connect "$name" && fresh="$fresh $device" && make_swap; then
            facts="$facts$device$tab$uuid$tab$gpu$tab$name
"
            continue
        fi
        fresh=${fresh%" $device"}
        not_attached="${not_attached:+$not_attached, }$name"
        give_up_device
    done 8<<END
$missing
END
}

make_swap() {
    block=/sys/block/${device#/dev/}
    change "$block/queue/read_ahead_kb" 0 && change "$block/queue/scheduler" none || return 1
    uuid=$(cat "$proc/sys/kernel/random/uuid" 2>/dev/null)
    [ -z "$mirror" ] || build_mirror
    if ! act mkswap --label "$label" ${uuid:+--uuid "$uuid"} "$device"; then
        note "mkswap failed on $device"
        return 1
    fi
    uuid=${uuid:--}
}

# All devices have one priority, so the kernel spreads the pages over them.
turn_on() {
    swap_now=''
    while IFS=$tab read -r device uuid gpu name <&8; do
        [ -n "$name" ] || continue
        [ -n "$dry_run" ] || forget_device "$device"
        remember_device "$device" "$uuid" "$label" "$gpu" "$name"
        record swapon "$device"
        if act swapon --priority "$priority" "$device" && { [ -n "$dry_run" ] || swap_line "$device" >/dev/null; }; then
            swap_now="$swap_now $device"
            [ -n "$dry_run" ] || note "$device is swap: $name, $(($(sectors "$device") / 2048)) MiB, priority $priority"
            continue
        fi
        note "swapon failed on $device, or it is not in /proc/swaps after it"
        not_attached="${not_attached:+$not_attached, }$name"
        give_up_device
    done 8<<END
$facts
END
}

# Nothing where all is undone in the end, from the last to the first.
give_up_device() {
    if [ "$missing_number" = 1 ] && [ -z "$swap_before" ]; then return 0; fi
    undo "$device" || note "could not undo everything for $device"
}

# What holds for all devices; the lines of devices that are on stay. wanted tells how much `release` has to reckon with.
remember_server() {
    [ -z "$dry_run" ] || return 0
    {
        printf '%s\n' "socket=$socket" "server_pid=$server_pid" \
            "server_started=$([ -z "$server_pid" ] || started "$server_pid")"
        [ -z "$mirror" ] || printf '%s\n' "mirror=$mirror" "mirror_name=$disk_name" "vram_half=$vram_half"
        printf '%s\n' "$wanted" | sed 's/^/export=/'
        # Of the version before this one: one device, with label and UUID in lines of their own.
        [ ! -e "$attached" ] || sed -n -e '/^device=/p' -e '/^uuid=/p' -e '/^label=/p' "$attached"
    } >"$attached.new" && mv -T -f "$attached.new" "$attached" 2>/dev/null && return 0
    rm -f "$attached.new"
    fail 1 "cannot write $attached"
}

# Pages whose server is gone are nowhere, and a server without its supervisor takes no new client.
refuse_lost() {
    for each in $swap_before; do
        is_connected "$each" ||
            fail 1 "$each is still in /proc/swaps but its server is gone: the pages in it are lost, and a" \
                "new server must not be attached to it. Type: sudo vramblk-swap down (ends the processes that need those" \
                "pages), or reboot"
    done
    [ -z "$swap_before" ] || supervisor_lives ||
        fail 1 "$(joined "$swap_before") is swap and works, but its server has lost its supervisor" \
            'and takes no other client; type: sudo vramblk-swap down, start the server again, and then up'
}

# Undo what a run left that was killed half-way: a device that is attached and no swap, or the settings of an `up` that
# did not come as far as to have a device.
finish_interrupted() {
    pending=''
    for each in $(ours); do
        swap_line "$each" >/dev/null || pending="$pending $each"
    done
    if [ -z "$swap_before" ]; then
        if [ ! -s "$records" ] || { [ -z "$pending" ] && [ -e "$attached" ]; }; then return 0; fi
        note 'an earlier run was interrupted'
        undo || fail 1 'what it left could not be undone'
        return 0
    fi
    for each in $pending; do
        note "an earlier run was interrupted at $each"
        undo "$each" || fail 1 'what it left could not be undone'
    done
}
