# shellcheck shell=sh disable=SC2154,SC2034,SC2086,SC2046,SC3045
# Promise 8: no I/O timeout, so an engine that stands still for 45 s is only slow.
start_server
attach
start_filler "$((VM_MIB * 5 / 4))" 1 /run/enough
pressed
# Not `kill` and `sleep`: while nothing can be swapped out a shell gets no memory to start them.
/run/build/stopper "$(pid_of vramblk-engine)" 45 || fail 'stopper'
touch /run/enough
verified 'engine stopped for 45 s and continued: every page as written (promise 8)'
expect 0 'down' vramblk-swap down
stop_server
