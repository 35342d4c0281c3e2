# shellcheck shell=sh disable=SC2154,SC2034,SC2086,SC2046,SC3045
# Negative control of promise 21: what mirror.sh does, without the mirror, ends by SIGBUS.
start_server
attach
start_filler "$twice_ram" 1
pressed
kill -KILL "$(pid_of vramblk-engine)"
wait_filler
case $filler_status in
4 | 135) pass "engine killed without a mirror: SIGBUS (status $filler_status)" ;;
*) fail "the filler ended with status $filler_status, expected SIGBUS" ;;
esac
