# shellcheck shell=sh disable=SC2154,SC2034,SC2086,SC2046,SC3045
# Promise 12: a device that fails reads costs the process whose page it was, by SIGBUS, and never gives wrong data.
start_altered_server
attach
start_filler "$((VM_MIB * 5 / 4))" 1 /run/enough
pressed
inject reads 3
wait_filler
# 139 where the page was one that the handler of SIGBUS itself needs.
case $filler_status in
4 | 135 | 139) ;;
*) fail "the victim ended with status $filler_status, expected SIGBUS" ;;
esac
pass 'a failed read is SIGBUS in the victim and no wrong data (promise 12)'
start_filler "$((VM_MIB * 5 / 4))" 1
verified 'after the errors another process swaps over the same connection (promise 12)'
expect 0 'down after read errors' vramblk-swap down
stop_server
