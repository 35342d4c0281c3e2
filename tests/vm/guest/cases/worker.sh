# shellcheck shell=sh disable=SC2154,SC2034,SC2086,SC2046,SC3045
# Promise 16: what a dead worker means, and that no page is ever read from a server that came later.
start_server --workers 1
attach
# One that sleeps all the while with its pages in swap, and one that works.
start_named_filler sleeper 16 1 /run/awake 4096
is_written() { grep -q 'verified 0 of' /run/sleeper.log; }
until_true 60 is_written || fail 'the sleeper does not get its memory'
kill -STOP "$sleeper"
sleeps_in_swap() { [ "$(swap_of "$sleeper")" -ge 8192 ]; }
start_filler "$((VM_MIB * 5 / 4))" 1 /run/enough
pressed
until_true 120 sleeps_in_swap || fail 'the sleeper is not in swap'
kill -KILL "$(pid_of vramblk-worker)"
wait_filler
case $filler_status in
4 | 135 | 139) pass "worker killed: who works ends by SIGBUS (status $filler_status), no page differs" ;;
137) note 'worker killed: who works was ended for want of memory, as nothing can be swapped out any more' ;;
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
start_server --workers 1
expect 1 'up refuses, although a new server is ready' vramblk-swap up
expect 1 'up --force refuses too' vramblk-swap up --force
mv /run/vramblk-swap /run/records-of-up
expect 1 'up refuses without its records too' vramblk-swap up
rm -rf /run/vramblk-swap
mv /run/records-of-up /run/vramblk-swap
touch /run/awake
kill -CONT "$sleeper"
wait_named_filler sleeper
# 4: it lost pages by SIGBUS and went on; all that it still has is as written.
[ "$filler_status" = 4 ] || fail "the sleeper ended with status $filler_status, expected SIGBUS and nothing else"
grep -q 'pages as written$' /run/sleeper.log || fail 'the sleeper did not verify its pages'
pass 'who slept meanwhile gets SIGBUS for what is lost, no zeros of the new server (promise 16)'
read_bytes=$(ask /metrics | awk '/^vramblk_bytes_total.*op="read"/ { sum += $NF; found = 1 } END { print found ? sum : "nothing" }')
[ "$read_bytes" = 0 ] || fail "read from the new server: $read_bytes"
pass 'no page was read from the new server (promise 16)'
expect 0 'down after a loss' vramblk-swap down
swapon_seen && fail 'the lost device is still swap'
expect 0 'up attaches the new server afterwards' vramblk-swap up
expect 0 'and down' vramblk-swap down
