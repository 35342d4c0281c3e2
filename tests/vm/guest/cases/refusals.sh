# shellcheck shell=sh disable=SC2154,SC2034,SC2086,SC2046,SC3045
# Promises 4, 5 and 7: what is missing is refused by name. And `up` against servers that cannot be used.
vramblk=$VM_ROOT/.venv/bin/vramblk
VM_SWAP_MIB=16

refused() { # text words command...: exit 78 and one line with these words
    text=$1 words=$2
    shift 2
    "$@" >/run/out 2>/run/err
    got=$?
    cat /run/err
    [ "$got" = 78 ] || fail "$text: exit status $got, expected 78"
    [ "$(wc -l </run/err)" = 1 ] || fail "$text: not one line"
    grep -q "$words" /run/err || fail "$text: does not name $words"
    pass "$text"
}

without() { # capability options of the server
    capability=$1
    shift
    # shellcheck disable=SC2086
    setpriv --bounding-set "-$capability" --inh-caps "-$capability" "$vramblk" $swap_options --size 16M "$@"
}

# shellcheck disable=SC2086
refused 'TCP is refused (promise 7)' listen_addr "$vramblk" $swap_options --size 16M --listen-addr 127.0.0.1:10809
truncate -s 16M /run/file
refused 'a file is refused as memory (promise 4)' '/run/file' "$vramblk" --mode swap --device map:/run/file --size 16M \
    --listen-addr unix:/run/vramblk/nbd.sock
ulimit -l 64
refused 'no CAP_IPC_LOCK is refused (promise 4)' 'IPC_LOCK' without ipc_lock
ulimit -l unlimited
refused 'no CAP_SYS_RESOURCE is refused (promise 4)' 'SYS_RESOURCE' without sys_resource
refused 'no CAP_SYS_NICE is refused (promise 4)' 'SYS_NICE' without sys_nice

expect 1 'up with no server' vramblk-swap up
start_server
touch /run/no-modules
expect 78 'up without the nbd module' vramblk-swap up
rm /run/no-modules
grep '"event":"swap_hazard"' "$server_log" | grep -q 'min_free_kbytes is [0-9]*, and 16384 is wanted' ||
    fail 'the log does not say which min_free_kbytes is wanted (promise 5)'
ask /status.json | grep -q min_free || fail 'the server says nothing of min_free_kbytes'
ask /metrics | grep -E 'vramblk_swap_precondition.*min_free.* 0' || fail 'min_free_kbytes too small is not said (promise 5)'
pass 'the server says that min_free_kbytes is too small (promise 5)'
attach
ask /metrics | grep -E 'vramblk_swap_precondition.*min_free.* 1' || fail 'min_free_kbytes is still called too small'
[ "$(cat /sys/fs/cgroup/server/memory.swap.max)" = 0 ] || fail 'memory.swap.max of the server'
for each in read_ahead_kb:0 'scheduler:\[none\].*'; do
    grep -qE "^${each#*:}" "/sys/block/nbd0/queue/${each%%:*}" || fail "$each"
done
for each in page-cluster watermark_boost_factor; do
    grep -q '^0$' "/proc/sys/vm/$each" || fail "$each"
done
pass 'queue settings, page-cluster, watermark_boost_factor and memory.swap.max are as documented'
expect 0 'up twice is one up' vramblk-swap up
[ "$(grep -c '^/dev/nbd' /proc/swaps)" = 1 ] || fail 'up twice made two'
vramblk-swap status
vramblk-swap status --json
expect 0 'status' vramblk-swap status
expect 0 'down' vramblk-swap down
[ "$(cat /sys/fs/cgroup/server/memory.swap.max)" = max ] || fail 'memory.swap.max was not restored'
expect 0 'down twice is one down' vramblk-swap down
stop_server

start_program "$vramblk" --device map:/dev/mmapper --size 16M --listen-addr unix:/run/vramblk/nbd.sock
expect 1 'up with a server in scratch mode' vramblk-swap up
stop_server
python=$VM_ROOT/.venv/bin/python
start_server
rm /run/vramblk/nbd.sock
"$python" -c 'import socket; socket.socket(socket.AF_UNIX).bind("/run/vramblk/nbd.sock")'
cannot_attach() { # options of up
    vramblk-swap up "$@" 2>/run/err
    got=$?
    cat /run/err
    [ "$got" = 1 ] && grep -q 'could not attach' /run/err
}
expect 0 'up with a dead socket beside a server that says it is ready' cannot_attach
expect 0 'up --force with a dead socket' cannot_attach --force
swapon_seen && fail 'there is swap on a dead socket'
[ ! -e /run/vramblk-swap/records ] || fail 'records are left'
stop_server
