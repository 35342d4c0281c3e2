# shellcheck shell=sh disable=SC2154,SC2034,SC2086,SC2046,SC3045
# Promise 16: what a dead worker means, and that no page is ever read from a server that came later.
start_server
attach
start_filler "$((VM_MIB * 5 / 4))" 1 /run/enough
pressed
kill -KILL "$(pid_of vramblk-worker)"
wait_filler
case $filler_status in
4 | 135 | 137 | 139) pass "worker killed: the victim ends (status $filler_status), no page differs" ;;
*) fail "worker killed: the filler ended with status $filler_status" ;;
esac
swapon_seen || fail 'the device left /proc/swaps by itself'
expect 1 'up refuses a device that is still in /proc/swaps' vramblk-swap up
expect 1 'status says that the swap is lost' vramblk-swap status
ask /healthz >/dev/null && fail '/healthz says that all is well'
curl --silent --max-time 20 --unix-socket "$status_socket" http://localhost/healthz | grep '/dev/nbd0 .* is lost' ||
    fail '/healthz does not name the device'
pass '/healthz says which device is lost'
kill -KILL $(server_pids)
sleep 1
rm -f /run/vramblk/*
start_server
expect 1 'up refuses, although a new server is ready' vramblk-swap up
expect 1 'up --force refuses too' vramblk-swap up --force
ask /metrics | grep -E '^vramblk_bytes_total.*op="read".* [1-9]' && fail 'a page was read from the new server'
pass 'no page was read from the new server (promise 16)'
expect 0 'down after a loss' vramblk-swap down
swapon_seen && fail 'the lost device is still swap'
expect 0 'up attaches the new server afterwards' vramblk-swap up
expect 0 'and down' vramblk-swap down
