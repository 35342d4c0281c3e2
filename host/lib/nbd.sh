# shellcheck shell=sh disable=SC2034,SC2154
# NBD devices: which is free, attach, detach.

nbd_pid() { cat "$sys/block/${1#/dev/}/pid" 2>/dev/null; }

sectors() { cat "$sys/block/${1#/dev/}/size" 2>/dev/null || echo 0; }

# The devices of vramblk-swap, in the order in which they were attached.
# With a mirror it is the array.
ours() {
    [ ! -s "$records" ] || with_tabs <"$records" | awk -F "$tab" '
        $1 == "connect" { found = found $2 "\n" }
        $1 == "mirror" { found = $2 "\n"; exit }
        END { printf "%s", found }'
}

# Those of them that are swap, least used first: KiB used, then the device.
ours_by_use() {
    for each in $(ours); do
        swap_line "$each" | awk -v device="$each" '{ print $4, device }'
    done | sort -n
}

# Of the whole file, or of a device: uuid, label, gpu and name of its export.
was_attached() { sed -n "s/^$1=//p" "$attached" 2>/dev/null; }

device_facts() { # device: uuid, label, GPU and export, each - if it is not known
    uuid=- used_label=- gpu=- export=-
    [ -e "$attached" ] || return 0
    while IFS=$tab read -r first second third fourth fifth; do
        [ "$first" = "device=$1" ] || continue
        if [ -n "$fifth" ]; then
            uuid=$second used_label=$third gpu=$fourth export=$fifth
        else # from before this version, which attached one device
            uuid=$(was_attached uuid) used_label=$(was_attached label)
        fi
    done <"$attached"
}

remember_device() { # device uuid label GPU export, after what is known of all (remember_server)
    [ -n "$dry_run" ] ||
        (IFS=$tab && printf '%s\n' "device=$*") >>"$attached" || fail 1 "cannot write $attached"
}

forget_device() { # device
    [ ! -e "$attached" ] || sed -i -e "\\#^device=$1\$#d" -e "\\#^device=$1$tab#d" "$attached"
}

# Who else owns a process can name it as he likes, and its directory in /proc may show root as the owner.
owned_by() { # uid, directory in /proc: all four uids
    [ "$(awk '$1 == "Uid:" { print $2, $3, $4, $5 }' "$2/status" 2>/dev/null)" = "$1 $1 $1 $1" ]
}

# The kernel goes on showing the pid of a connection that is gone, but nbd-client ends with it.
is_connected() { # device
    pid=$(nbd_pid "$1")
    [ -n "$pid" ] && owned_by 0 "$proc/$pid" && tr '\0' ' ' 2>/dev/null <"$proc/$pid/cmdline" | grep -q " $1 "
}

# Workers and engine serve on without the supervisor that attached them, until swap is off.
supervisor_lives() {
    pid=$(was_attached server_pid)
    [ -z "$pid" ] || [ "$(started "$pid")" = "$(was_attached server_started)" ]
}

# A swap device whose connection is gone keeps its pages nowhere. Nothing may be attached to it: the kernel would read
# zeros as if they were those pages. No record tells of these devices, so all there is to ask is whether the process
# that the kernel shows lives. What that cannot know: another process may have its pid by now, which hides a loss (the
# device itself is still not used, see is_free); and what was attached over netlink, which vramblk-swap never does, shows
# a client that has ended although the kernel serves on. The kernel's pid is the initial namespace's, as is this script.
refuse_lost_devices() {
    lost=''
    while read -r path _; do
        is_number "${path#/dev/nbd}" || continue
        pid=$(nbd_pid "$path")
        if [ -z "$pid" ] || [ ! -e "$proc/$pid" ]; then lost="$lost $path"; fi
    done <"$proc/swaps"
    [ -z "$lost" ] || fail 1 "${lost# } is still in /proc/swaps but its server is gone: the pages in it are lost," \
        "and a new server must not be attached to it. Type: sudo swapoff${lost} (ends the processes that need" \
        "those pages), then sudo nbd-client -d for each, or reboot"
}

is_free() { # device
    [ -e "$sys/block/${1#/dev/}" ] && [ -z "$(nbd_pid "$1")" ] && [ "$(sectors "$1")" = 0 ] &&
        [ -z "$(ls "$sys/block/${1#/dev/}/holders" 2>/dev/null)" ] && ! swap_line "$1" >/dev/null
}

load_module() {
    if [ -e "$sys/module/nbd" ] || [ -e "$sys/block/nbd0" ]; then
        max_part=$(cat "$sys/module/nbd/parameters/max_part" 2>/dev/null)
        [ "${max_part:-0}" = 0 ] ||
            note "warning: the nbd module was loaded with max_part=$max_part, so the kernel looks for partitions in" \
                'what is swapped out; better, when no device is in use: modprobe -r nbd, then up again'
        return 0
    fi
    record modprobe nbd
    [ "$nbds_max" -ge "$missing_number" ] || nbds_max=$missing_number
    act modprobe nbd "nbds_max=$nbds_max" max_part=0 ||
        fail 78 "the kernel module nbd cannot be loaded; type: sudo modprobe nbd, and see the kernel's log"
}

# Sets device. The first export gets the one of VRAMBLK_NBD_DEVICE.
choose_device() {
    device=''
    if [ -n "$named_device" ] && [ -z "$fresh$swap_before" ]; then
        device=$named_device
        if [ -n "$dry_run" ] || is_free "$device"; then return 0; fi
        [ -e "$sys/block/${device#/dev/}" ] ||
            fail 1 "$device (VRAMBLK_NBD_DEVICE) does not exist: there are $(count_devices) NBD devices here"
        ! swap_line "$device" >/dev/null || fail 1 "$device (VRAMBLK_NBD_DEVICE) is swap already, and not of vramblk-swap"
        fail 1 "$device (VRAMBLK_NBD_DEVICE) is attached to something else; type: nbd-client -c $device"
    fi
    number=0
    while [ -e "$sys/block/nbd$number" ]; do
        device=/dev/nbd$number
        number=$((number + 1))
        case " $fresh " in *" $device "*) continue ;; esac
        ! is_free "$device" || return 0
    done
    if [ -n "$dry_run" ]; then
        # shellcheck disable=SC2086  # a list of devices
        device=/dev/nbd$(set -- $fresh && echo $#)
        return 0
    fi
    note "none of the $number NBD devices is free; type: nbd-client -c /dev/nbd0, and so on, then nbd-client -d"
    return 1
}

count_devices() {
    number=0
    while [ -e "$sys/block/nbd$number" ]; do number=$((number + 1)); done
    echo "$number"
}

# A hostile server could put a link in the place of its socket after it was looked at, and mkswap would write to another
# server's disk. So nbd-client gets a second name of the socket, which only root can change. Elsewhere than on the file
# system of /run there is none.
pin_socket() {
    pinned=${private#"$root"}/nbd.sock
    [ -z "$dry_run" ] || return 0
    rm -f "$private/nbd.sock"
    if ! ln "$root$socket" "$private/nbd.sock" 2>/dev/null; then
        # Or the server could have it fail, by another file in its place, and put a link there later.
        [ "$(stat -c %d "$root${socket%/*}/.")" != "$(stat -c %d "$private")" ] ||
            fail 1 "cannot make a second name of $socket in $state_dir/private; is it a socket, or its directory mounted?" \
                'Set VRAMBLK_NBD_SOCKET to a socket below /run'
        pinned=$socket
    fi
    if [ -L "$root$pinned" ] || [ ! -S "$root$pinned" ]; then
        fail 1 "$socket is no longer a socket; something has put another file in its place"
    fi
}

# In a scope of its own no stop of a unit, and no failed one, can end nbd-client; outside systemd it is one already.
connect() { # export; false if it cannot be attached to device
    pin_socket
    export=$1
    set -- nbd-client -unix "$pinned" "$device" -name "$export" -nonetlink -swap -systemd-mark -b 4096
    # Safe with a mirror alone: without one a late answer would be a lost page.
    [ -z "$mirror" ] || set -- "$@" -timeout "$mirror_timeout_s"
    if [ -d "$root/run/systemd/system" ] && command -v systemd-run >/dev/null 2>&1; then
        oomd=''
        [ "$(systemd_version)" -lt 248 ] || oomd=--property=ManagedOOMPreference=omit
        set -- systemd-run --quiet --collect --scope --unit="vramblk-swap-${device#/dev/}-$$" \
            --property=DefaultDependencies=no ${oomd:+"$oomd"} -- "$@"
    fi
    record connect "$device"
    act_printable "$timeout_s" "$@" && acted=0
    [ -n "$dry_run" ] || rm -f "$private/nbd.sock"
    if [ "$acted" != 0 ]; then
        # It has attached nothing, so there is nothing to detach: the device may be somebody else's by now.
        sed -i '$d' "$records"
        [ "$acted" != 124 ] || note "$socket did not answer nbd-client within $timeout_s s"
        note "nbd-client could not attach $device to $socket; is the server's socket there, its export called" \
            "$export (VRAMBLK_EXPORT_NAME), a connection free (--workers), and enough memory on the GPU (vramblk status)?"
        return 1
    fi
    if [ -n "$dry_run" ]; then
        write_value "/proc/PID of nbd-client/oom_score_adj" -1000
        return 0
    fi
    # Not at once: with -nonetlink the client returns before the kernel knows the size.
    if ! wait_until "$timeout_s" has_size; then
        note "$device has no size ${timeout_s} s after nbd-client attached it"
        return 1
    fi
    client=$(nbd_pid "$device")
    [ -z "$client" ] || [ ! -e "$proc/$client/oom_score_adj" ] || write_value "/proc/$client/oom_score_adj" -1000 ||
        note "warning: the OOM killer may choose nbd-client (pid $client): its oom_score_adj could not be set"
    return 0
}

# Before 248 systemd-run refuses the property.
systemd_version() {
    systemctl --version 2>/dev/null | awk '$1 == "systemd" { print int($2); found = 1 } END { if (!found) print 0 }'
}

has_size() { [ "$(sectors "$device")" != 0 ]; }
is_disconnected() { [ -z "$(nbd_pid "$gone_device")" ]; }

# A record can outlive the connection that it stands for, and its device is free for everybody then. A pid alone shows
# nothing: the kernel goes on showing that of a connection that is gone.
is_foreign() { # device
    ! swap_line "$1" >/dev/null || return 0
    pid=$(nbd_pid "$1")
    case $(tr '\0' ' ' 2>/dev/null <"$proc/${pid:-none}/cmdline") in
    *' -nonetlink -swap -systemd-mark '*) return 1 ;;
    *"$1 "*) return 0 ;;
    esac
    return 1
}

disconnect() { # device
    gone_device=$1
    if [ -z "$dry_run" ] && [ -z "$(nbd_pid "$1")" ]; then return 0; fi
    if [ -z "$dry_run" ] && is_foreign "$1"; then
        note "$1 is attached to something else by now: left as it is"
        return 0
    fi
    act nbd-client -d "$1" || return 1
    [ -n "$dry_run" ] || wait_until 30 is_disconnected
}
