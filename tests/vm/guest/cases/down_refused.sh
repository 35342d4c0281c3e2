# shellcheck shell=sh disable=SC2154,SC2034,SC2086,SC2046,SC3045
# Promise 10: down with too little memory refuses, and everything goes on.
start_server
attach
start_filler "$((VM_MIB * 3 / 2))" 1 /run/enough
pressed "$VM_MIB"
expect 1 'down refuses when memory cannot take it back (promise 10)' vramblk-swap down
swapon_seen || fail 'swap is off although down refused'
touch /run/enough
verified 'after the refusal: every page as written (promise 10)'
expect 0 'down once there is room' vramblk-swap down
expect 0 'down twice is one down' vramblk-swap down
stop_server
