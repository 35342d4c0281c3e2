# shellcheck shell=sh disable=SC2154,SC2034,SC2086,SC2046,SC3045
# Negative control of promise 21: what mirror.sh does, without the mirror, ends by SIGBUS.
start_server
attach
start_filler "$twice_ram" 1 /run 1 # which locks its own pages: lost, they would end it by SIGSEGV
pressed
kill -KILL "$(pid_of vramblk-engine)"
wait_filler
[ "$filler_status" = 4 ] || fail "the filler ended with status $filler_status, expected 4 for SIGBUS"
pass 'engine killed without a mirror: SIGBUS'
