# shellcheck shell=sh disable=SC2154,SC2034,SC2086,SC2046,SC3045
# Promise 9: the death of the supervisor leaves live swap alone.
start_server
attach
start_filler "$((VM_MIB * 5 / 4))" 1 /run/enough
pressed
kill -KILL "$(pid_of vramblk-supervi)"
sleep 10
touch /run/enough
verified 'supervisor killed in the middle: every page as written'
expect 1 'up refuses the swap whose supervisor is gone' vramblk-swap up
expect 0 'down works without the supervisor' vramblk-swap down
is_gone() { [ -z "$(data_path)" ]; }
until_true 60 is_gone || fail "left behind: $(data_path)"
pass 'the engine ends once the last client has gone'
