# shellcheck shell=sh disable=SC2154,SC2034,SC2086,SC2046,SC3045
# Promise 21: with a mirror the death of the engine in the middle of twice the RAM loses nothing.
start_server
attach_mirrored
start_filler "$twice_ram" 1
pressed
kill -KILL "$(pid_of vramblk-engine)"
loses_its_half || fail 'status does not report the death of the engine'
verified 'engine killed: every page as written (promise 21)'
[ "$(swapped_out_mib)" -ge "$VM_MIB" ] || fail 'hardly anything was swapped, so the run proves nothing'
expect 1 'status reports a degraded mirror' vramblk-swap status
expect 0 'down without the server' vramblk-swap down
left_as_found
