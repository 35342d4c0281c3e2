# shellcheck shell=sh disable=SC2154,SC2034,SC2086,SC2046,SC3045
# Promise 6: twice the RAM through swap, no mismatch. On the way promises 1, 2, 3 and 9: see each line.
start_server
attach
# The guest's RAM is as small as this allows.
locked=$(locked_kib)
{ [ "$locked" -gt 0 ] && [ "$locked" -le 122880 ]; } || fail "the server locks $locked KiB, nothing or more than 120 MiB"
remember_server
start_filler "$twice_ram" "${VM_PASSES:-1}"
verified 'twice the RAM, every page as written (promise 6)'
[ "$(swapped_out_mib)" -ge "$VM_MIB" ] || fail 'hardly anything was swapped, so the run proves nothing'
compare_server
expect 0 'down gives everything back' vramblk-swap down
[ "$(wc -l </proc/swaps)" = 1 ] || fail 'something is still swap'
stop_server
