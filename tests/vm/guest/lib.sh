# shellcheck shell=sh disable=SC2154,SC2034,SC2086,SC2046,SC3045
# What the cases share. A case is a list of commands; the first promise that does not hold ends it.
# Lines for the rig begin with "@@ ": PASS text, FAIL text, NOTE text, DONE.

status_socket=/run/vramblk/status.sock
server_log=${VM_LOG:-/run/server.log}
faults=/run/faults

pass() { echo "@@ PASS $*"; }
note() { echo "@@ NOTE $*"; }

fail() {
    echo "@@ FAIL $*"
    if [ -p "$server_log" ]; then # one that nobody has read
        dd if="$server_log" iflag=nonblock bs=65536 count=1 status=none
    else
        tail -n 30 "$server_log"
    fi
    cat /proc/swaps
    exit 1
}

finish() { echo '@@ DONE'; }

# expect STATUS TEXT COMMAND...: runs it, its exit status must be STATUS.
expect() {
    wanted=$1 text=$2
    shift 2
    "$@"
    got=$?
    [ "$got" = "$wanted" ] || fail "$text: exit status $got, expected $wanted"
    pass "$text"
}

until_true() { # seconds command...
    tries=$1
    shift
    until "$@"; do
        [ "$tries" -gt 0 ] || return 1
        tries=$((tries - 1))
        sleep 1
    done
}

# ---------------------------------------------------------------- the server

ask() { curl --silent --fail --max-time 20 --unix-socket "$status_socket" "http://localhost$1"; }

metric() { ask /metrics | awk -v name="$1" '$1 == name { print int($2); found = 1 } END { if (!found) print -1 }'; }

is_ready() { ask /readyz >/dev/null; }

swap_options="--mode swap --device map:/dev/mmapper --size ${VM_SWAP_MIB}M --listen-addr unix:/run/vramblk/nbd.sock"

# VM_WITHOUT names the safeguards that this run leaves out, separated by commas.
left_out() { case ",${VM_WITHOUT-}," in *,"$1",*) ;; *) return 1 ;; esac }

start_server() { # [options]
    [ -z "${VM_WITHOUT-}" ] || {
        start_altered_server "$@"
        return
    }
    # shellcheck disable=SC2086  # a list of words
    start_program "$VM_ROOT/.venv/bin/vramblk" $swap_options "$@"
}

# With faults on demand, and without the safeguards of VM_WITHOUT: see altered_server.py.
start_altered_server() { # [options]
    # shellcheck disable=SC2086
    start_program "$VM_ROOT/.venv/bin/python" "$VM_ROOT/tests/vm/guest/altered_server.py" "$faults" \
        "${VM_WITHOUT:-nothing}" $swap_options "$@"
}

inject() { # writes|reads batches, below 256
    case $1 in writes) at=0 ;; *) at=1 ;; esac
    # shellcheck disable=SC2059
    printf "\\$(printf %o "$2")" | dd of="$faults" bs=1 seek="$at" conv=notrunc status=none
}

start_program() {
    in-group server "$@" >>"$server_log" 2>&1 &
    server=$!
    until_true 240 server_decided || fail 'the server is not ready after 240 s'
    is_ready || fail 'the server ended instead of becoming ready'
}

# Says that it waits, so that a slow machine is not taken for a guest that hangs.
server_decided() { is_ready || ! kill -0 "$server" 2>/dev/null || ! echo 'the server starts'; }

server_pids() { cat /sys/fs/cgroup/server/cgroup.procs; }

pid_of() { # process name as the kernel cuts it
    for each in $(server_pids); do
        read -r name <"/proc/$each/comm" && [ "$name" = "$1" ] && echo "$each" && return
    done
}

# ---------------------------------------------------------------- pressure

start_filler() { # MiB passes [until]
    in-group victim filler "$@" &
    filler=$!
}

wait_filler() {
    wait "$filler"
    filler_status=$?
}

# A filler whose words a case reads: they are in /run/NAME.log too. A file that it wrote itself would be swapped, and
# lost, as its pages are.
start_named_filler() { # name MiB passes [until]
    named=$1
    shift
    mkfifo "/run/$named.said"
    tee "/run/$named.log" <"/run/$named.said" &
    listener=$!
    start_filler "$@" >"/run/$named.said"
    eval "$named=\$filler ${named}_listener=\$listener"
}

wait_named_filler() { # name
    eval "filler=\$$1 listener=\$${1}_listener"
    wait_filler
    wait "$listener"
}

verified() { # text
    wait_filler
    [ "$filler_status" = 0 ] || fail "$1: the filler ended with status $filler_status"
    pass "$1"
}

swapped_out_mib() { awk '$1 == "pswpout" { print int($2 / 256) }' /proc/vmstat; }

swap_used_mib() { awk 'NR > 1 { used += $4 } END { print int(used / 1024) }' /proc/swaps; }

swap_of() { awk '$1 == "VmSwap:" { print $2 }' "/proc/$1/status"; } # pid; in KiB

swap_holds() { [ "$(swap_used_mib)" -ge "$1" ]; }

# Waits until the pressure is real: so much is in swap.
pressed() { until_true 300 swap_holds "${1:-$((VM_MIB / 2))}" || fail 'the filler does not reach swap'; }

twice_ram=$((VM_MIB * 2))

# ---------------------------------------------------------------- what the server may not do under pressure

# attach [NAME=VALUE...]: swap on through the host script, with a record of how much of it is said.
attach() {
    leave_out_of_the_host
    env "$@" vramblk-swap up || fail "vramblk-swap up: exit status $?"
    swapon_seen || fail 'vramblk-swap up says that swap is on, the kernel does not'
    ! left_out swap_max || echo max >/sys/fs/cgroup/server/memory.swap.max
    pass 'vramblk-swap up attaches the server'
    echo "@@ NOTE min_free_kbytes $(cat /proc/sys/vm/min_free_kbytes), locked $(locked_kib) KiB"
}

# attach_mirrored [NAME=VALUE...]: the same with a mirror on /dev/ubda.
attach_mirrored() {
    attach VRAMBLK_SWAP_MIRROR=/dev/ubda "$@"
    grep -q '^/dev/md' /proc/swaps || fail 'the swap device is no array'
    grep -q '\[UU\]' /proc/mdstat || fail 'the array does not have both halves'
}

# Without starting a process, which may take long while memory is short.
is_degraded() { read -r degraded <"/sys/block/md127/md/degraded" && [ "$degraded" = 1 ]; }
is_whole() { ! is_degraded; }
loses_its_half() { until_true 90 is_degraded && mirror_is degraded; }

mirror_is() { vramblk-swap status --json | grep -q "\"mirror\": {\"state\": \"$1\""; } # state

# After `down`: no array, no NBD device, no signature on the disk.
left_as_found() {
    ! swapon_seen || fail 'something is still swap'
    ! grep -q '^md' /proc/mdstat 2>/dev/null || fail 'an array is left'
    [ -z "$(wipefs --parsable --noheadings /dev/ubda)" ] || fail 'a signature is left on the disk'
    [ ! -e /run/vramblk-swap/records ] || fail 'records are left'
    [ -z "$(cat /sys/block/nbd*/pid 2>/dev/null)" ] || fail 'an NBD device is still attached'
    pass 'down leaves no array, no connection and no signature'
}

# The host's safeguards. Copies stand before the real ones in PATH.
leave_out_of_the_host() {
    ! left_out min_free || export VRAMBLK_MIN_FREE_KBYTES=keep
    if left_out no_timeout; then
        # shellcheck disable=SC2016  # for the script that this writes
        printf '#!/bin/sh\ncase $1 in -unix) set -- "$@" -timeout 5 ;; esac\nexec %s "$@"\n' \
            "$(command -v nbd-client)" >/run/bin/nbd-client
        chmod +x /run/bin/nbd-client
    fi
    # room: down does not look first whether memory can take back what is in the device.
    # stays: and if swapoff fails, as it does here once, down goes on.
    if left_out room; then edit_script "s/ force='' / force=yes /"; fi
    if left_out stays; then
        # shellcheck disable=SC2016  # for sed
        edit_script 's/^ *\[ "$undo_kind" != swapon \] || return 2$/:/'
        printf '#!/bin/sh\n[ -e /run/failed ] || { : >/run/failed; exit 1; }\nexec %s "$@"\n' \
            "$(command -v swapoff)" >/run/bin/swapoff
        chmod +x /run/bin/swapoff
    fi
}

edit_script() { # sed's expression
    if [ ! -d /run/host ]; then
        mkdir /run/host
        cp -r "$VM_ROOT/host/vramblk-swap" "$VM_ROOT/host/lib" /run/host
        ln -sf /run/host/vramblk-swap /run/bin/vramblk-swap
    fi
    cat /run/host/vramblk-swap /run/host/lib/*.sh >/run/before
    sed -i "$1" /run/host/vramblk-swap /run/host/lib/*.sh
    ! cat /run/host/vramblk-swap /run/host/lib/*.sh | cmp -s /run/before - || fail 'nothing was left out of vramblk-swap'
}

swapon_seen() { grep -q '^/dev/[nm][bd]' /proc/swaps; }

data_path() { # pids of supervisor, engine, and workers if there are any
    for each in $(server_pids); do
        read -r name <"/proc/$each/comm" || continue
        case $name in vramblk-observe*) ;; vramblk-*) echo "$each" ;; esac
    done
}

locked_kib() {
    for each in $(data_path); do cat "/proc/$each/smaps_rollup"; done | awk '$1 == "Locked:" { sum += $2 } END { print sum + 0 }'
}

# A look at nobody would find nothing amiss.
is_complete() {
    for each in vramblk-supervi vramblk-engine; do
        [ -n "$(pid_of "$each")" ] || fail "no $each is in the data path"
    done
}

# Major faults, maps and threads of the data path, into /run/NAME.*
photograph() { # name
    is_complete
    for each in $(data_path); do
        read -r name <"/proc/$each/comm"
        # Field 12 of stat, counted behind the name, which may hold anything.
        echo "$name $each $(sed 's/.*) //' "/proc/$each/stat" | cut -d ' ' -f 10)"
    done >"/run/$1.faults"
    # Field 10: the pages that were taken.
    for each in $(data_path); do sed 's/.*) //' "/proc/$each/stat" | cut -d ' ' -f 8; done >"/run/$1.minor"
    for each in $(data_path); do ls "/proc/$each/task"; done >"/run/$1.threads"
    for each in $(data_path); do awk '{ print $1, $2, $6 }' "/proc/$each/maps"; done >"/run/$1.maps"
}

remember_server() { photograph before; }

compare_server() {
    photograph after
    cat /run/after.faults
    cmp -s /run/before.faults /run/after.faults || {
        diff /run/before.faults /run/after.faults
        fail 'the data path took major faults (promise 1)'
    }
    pass 'no major fault in the data path (promise 1)'
    note "minor faults in the data path: $(paste /run/before.minor /run/after.minor | awk '{ print $2 - $1 }' | tr '\n' ' ')"
    cmp -s /run/before.threads /run/after.threads || fail 'the data path started or ended a thread (promise 2)'
    cmp -s /run/before.maps /run/after.maps || {
        diff /run/before.maps /run/after.maps
        fail 'the data path changed its memory maps (promise 2)'
    }
    pass 'the same threads and the same memory maps in the data path (promise 2)'
    threads_are_safe
}

# Promise 3, read from the kernel for every thread: flags 0x180000 (field 9) and policy 1 (field 41).
threads_are_safe() {
    is_complete
    for each in $(data_path); do
        for thread in "/proc/$each/task"/*; do
            # shellcheck disable=SC2046  # fields
            set -- $(sed 's/.*) //' "$thread/stat")
            [ $(($7 & 0x180000)) = $((0x180000)) ] || fail "no IO_FLUSHER on $thread (promise 3)"
            [ "${39}" = 1 ] || fail "no SCHED_FIFO on $thread (promise 3)"
            [ "$(cat "$thread/../../oom_score_adj")" = -1000 ] || fail "oom_score_adj of $thread (promise 3)"
        done
    done
    pass 'IO_FLUSHER and SCHED_FIFO on every thread of the data path (promise 3)'
}

stop_server() {
    kill -TERM "$server"
    until_true 60 server_is_gone || fail 'the server does not end after SIGTERM without clients'
    wait "$server"
    server_status=$?
    [ "$server_status" = 0 ] || fail "the server ended with status $server_status"
    pass 'the server ends, exit 0, once nobody is attached'
}

server_is_gone() { ! kill -0 "$server" 2>/dev/null; }
