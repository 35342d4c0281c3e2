# shellcheck shell=sh disable=SC2154,SC2034,SC2086,SC2046,SC3045
# Promise 12: a device that fails reads costs the process whose page it was, by SIGBUS, that page and no other, and never
# gives wrong data. Others, with pages in the same swap at the same time, notice nothing.
start_altered_server
attach
start_named_filler large "$VM_MIB" 1 /run/enough 8
start_named_filler small "$((VM_MIB / 4))" 1 /run/enough 8
pressed
small_is_in_swap() { [ "$(swap_of "$small")" -ge 8192 ]; }
until_true 60 small_is_in_swap || fail 'the small filler is not in swap'
is_noticed() { grep -q -e 'SIGBUS in page' -e differs /run/large.log /run/small.log; }
inject reads 3
until_true 120 is_noticed || fail 'no read that failed has reached a process'
sleep 5
touch /run/enough
for each in large small; do
    wait_named_filler "$each"
    lost=$(grep -c 'SIGBUS in page' "/run/$each.log")
    # 4: it went on behind the SIGBUS. Either way every other page is as written.
    [ "$filler_status" = "$([ "$lost" = 0 ] && echo 0 || echo 4)" ] || fail "the $each filler ended with status $filler_status"
    grep -q 'pages as written$' "/run/$each.log" || fail "the $each filler did not verify its pages"
done
lost=$(cat /run/large.log /run/small.log | grep -c 'SIGBUS in page')
# The first failure is that of a whole batch, whose reads are then repeated one by one.
[ "$lost" -le 2 ] || fail "3 failures lost $lost pages"
pass "failed reads are SIGBUS in $lost pages; all others of two processes are as written (promise 12)"
start_filler "$((VM_MIB * 5 / 4))" 1
verified 'after the errors another process swaps over the same connection (promise 12)'
expect 0 'down after read errors' vramblk-swap down
stop_server
