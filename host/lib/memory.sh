# shellcheck shell=sh disable=SC2034,SC2154
# The kernel's memory and its swap devices.

# Prints its line of /proc/swaps, whatever directory the kernel saw it in.
swap_line() { # device
    awk -v name="${1##*/}" '{ path = $1; sub(/.*\//, "", path); sub(/\\040.*/, "", path) }
        path == name { print; found = 1 } END { exit !found }' "$proc/swaps"
}

# Starts no process: one that gets no memory must not look like an answer.
is_no_swap() { # device
    swaps_read=''
    while read -r path _; do
        swaps_read=yes
        path=${path##*/}
        [ "${path%%\\040*}" != "${1##*/}" ] || return 1
    done <"$proc/swaps"
    [ -n "$swaps_read" ]
}

meminfo() { awk -v name="$1:" '$1 == name { print $2 }' "$proc/meminfo"; }

# Sets room: KiB of memory that can take back what is in these devices, and free in other swap. MemAvailable leaves the
# high watermark alone, which lies half of min_free_kbytes above the one that swapoff may go down to. What zram takes it
# keeps in RAM, at about half the size. Starts no process: `auto` calls it while memory is short.
measure_room() { # devices
    room=0 kept=0
    while read -r name value _; do
        [ "$name" != MemAvailable: ] || room=$value
    done <"$proc/meminfo"
    read -r kept <"$proc/sys/vm/min_free_kbytes"
    room=$((room + kept / 2))
    while read -r path _ size used _; do
        name=${path##*/} name=${name%%\\040*}
        case " $* " in *" /dev/$name "*) continue ;; esac
        case $name in
        Filename) ;;
        zram*) room=$((room + (size - used) / 2)) ;;
        *) room=$((room + size - used)) ;;
        esac
    done <"$proc/swaps"
}

# The reserve has to carry the socket buffers and requests of the way out while nothing can be reclaimed: 16 MiB were
# seen to be needed at 160 MB of RAM. Big machines have more processors that empty it at once (1 % of RAM), and what
# is locked cannot be reclaimed (1/32 of it). More than 256 MiB or 1/8 of RAM would only take memory away. The server
# warns by the same formula, vramblk/swap/hostmemory.py.
wanted_min_free() { # locked bytes
    awk -v ram="$(meminfo MemTotal)" -v locked="$1" 'BEGIN {
        want = int((ram * 1024 * 32 + locked * 100) / 3276800)
        if (want < 16384) want = 16384
        if (want > 262144) want = 262144
        if (want > ram / 8) want = ram / 8
        printf "%d\n", want }'
}

raise_min_free() {
    [ "$min_free_kbytes" != keep ] || return 0
    want=${min_free_kbytes:-$(wanted_min_free "${locked_bytes:-0}")}
    now=$(value_of /proc/sys/vm/min_free_kbytes)
    [ "${now:-0}" -ge "$want" ] || change /proc/sys/vm/min_free_kbytes "$want" || exit 1
}

keep_server_out_of_swap() {
    if [ -z "$server_cgroup" ]; then
        note "warning: the server's cgroup is not known, so memory.swap.max=0 was not written for it"
    elif [ "$server_cgroup" = / ]; then
        note 'warning: the server runs in the root cgroup, which has no memory.swap.max; start it in one of its own'
    else
        change "/sys/fs/cgroup${server_cgroup%/}/memory.swap.max" 0 || exit 1
    fi
}
