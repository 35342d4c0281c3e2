# shellcheck shell=sh disable=SC2154,SC2034,SC2086,SC2046,SC3045
# Negative control of promise 21: what mirror.sh does, without the mirror, ends by SIGBUS.
start_server
attach
# It locks its own pages, which would end it by SIGSEGV if they were lost, and has written nearly all that it will, since
# the OOM killer acts when writes fail.
start_filler "$((VM_MIB * 5 / 4))" 1 /run/enough 1
pressed 180
kill -KILL "$(pid_of vramblk-engine)"
wait_filler
[ "$filler_status" = 4 ] || fail "the filler ended with status $filler_status, expected 4 for SIGBUS"
pass 'engine killed without a mirror: SIGBUS'
